//! The lock of a results folder: one run at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use crate::error::{Error, Result};

/// Holds a folder for one process; dropped, or with the process dead, the folder is free again.
///
/// The system keeps the lock, so a lock of a dead process is no lock: the file that stays behind is simply taken over.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Takes the folder, making it where it is missing.
    ///
    /// # Errors
    /// Where another process holds it (the message names its id), or where the system refuses.
    pub fn acquire(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(".lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
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
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // The file stays, empty: removing it would let a third process lock a new file beside a second one's old file.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}
