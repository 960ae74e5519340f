//! The lock of a folder: one run at a time in a results folder, any number of them beside each other in a cache.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Holds a folder for one process; dropped, or with the process dead, the folder is free again.
///
/// The system keeps the lock, so a lock of a dead process is no lock: the file that stays behind is simply taken over.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Takes the folder for this process alone, making it where it is missing.
    ///
    /// # Errors
    /// Where another process holds or shares it (the message names its id if it holds it), or where the system refuses.
    pub fn acquire(folder: &Path) -> Result<Self> {
        let (mut file, path) = open(folder)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".into(),
                    pid => format!("process {pid}"),
                };
                return Err(Error::data(
                    folder,
                    format!(
                        "{holder} is running here; wait for it, stop it, or choose another folder with --results DIR"
                    ),
                ));
            }
            Err(TryLockError::Error(source)) => return Err(Error::Io { action: "lock", path, source }),
        }
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()))
            .map_err(Error::io("write", &path))?;
        Ok(Self { file })
    }

    /// Uses the folder beside others that share it, making it where it is missing; [`Self::acquire`] is refused to all
    /// until the last of them is done.
    ///
    /// # Errors
    /// Where another process holds the folder alone, or where the system refuses.
    pub fn share(folder: &Path) -> Result<Self> {
        let (file, path) = open(folder)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(Error::data(
                folder,
                "another process is clearing it (ppd clean); wait for it, or choose another folder with --cache DIR",
            )),
            Err(TryLockError::Error(source)) => Err(Error::Io { action: "lock", path, source }),
        }
    }
}

/// The lock file of a folder, and its path.
fn open(folder: &Path) -> Result<(File, PathBuf)> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = folder.join(".lock");
    Ok((open_or_create(&path)?, path))
}

/// Opens a file to read, write and lock, making it where it is missing; what it holds stays.
pub(super) fn open_or_create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::io("open", path))
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // The file stays, empty: removing it would let a third process lock a new file beside a second one's old file.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}
