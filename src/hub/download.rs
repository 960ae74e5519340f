//! One download: resumed where it was cut, held by one process, checked before it gets its name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use ureq::http::StatusCode;

use super::cache::{Measured, same};
use super::client::{self, About, Client, Fault, pause};
use super::fetch::{Item, as_usize};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provenance::file_digest;
use crate::units::Digest;

/// How often one file's download goes on after it was cut.
const CUTS: u32 = 20;

/// The place of a download that is not complete.
pub(super) fn partial(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Downloads a file beside its place, from where an earlier download was cut, and lets it have the place once it is
/// whole and what it should be. Where the server has no tag that tells two versions apart, it `resumes` nothing that an
/// earlier process left.
pub(super) fn download(
    client: &Client,
    item: &Item,
    (url, resumes): (&str, bool),
    blob: &Path,
    about: &About,
    progress: &Progress,
) -> Result<Measured> {
    if blob.is_file() {
        let got = Measured {
            bytes: std::fs::metadata(blob).map_err(Error::io("read", blob))?.len(),
            sha256: file_digest(blob)?,
        };
        same(blob, "first fetched", item.bytes, item.sha256.as_ref(), &got)?;
        progress.advance(as_usize(got.bytes));
        return Ok(got);
    }
    let folder = blob.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = partial(blob);
    let mut part = Part::open(&path)?;
    if !resumes {
        part.restart()?;
    }
    progress.advance(as_usize(part.bytes));
    let (mut idle, mut cuts) = (0, 0);
    loop {
        let before = part.bytes;
        match part.go_on(client, item, url, about, progress) {
            Ok(()) => break,
            Err(Fault::Final(error)) => return Err(error),
            Err(Fault::Passing(error, seconds)) => {
                idle = if part.bytes > before { 0 } else { idle + 1 };
                cuts += 1;
                if cuts >= CUTS {
                    return Err(error);
                }
                pause(idle, error, seconds, progress)?;
            }
        }
    }
    part.file.sync_all().map_err(Error::io("write", &path))?;
    let got = Measured { bytes: part.bytes, sha256: Digest::from_hasher(part.hasher.clone()) };
    if let Some(expected) = item.sha256.as_ref().filter(|expected| **expected != got.sha256) {
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        return Err(about.fault(format!(
            "`{}` is not what it should be: expected SHA-256 {expected}, got {} of {} bytes; it was changed on the server \
             or on the way, and nothing of it was kept: run the same command again, or use another mirror (--mirror \
             {}=PATH_OR_URL)",
            item.file, got.sha256, got.bytes, item.artefact
        )));
    }
    match std::fs::rename(&path, blob) {
        // Another process was faster, between our look and our lock.
        Err(_) if blob.is_file() && !path.exists() => Ok(got),
        renamed => renamed.map(|()| got).map_err(Error::io("write", blob)),
    }
}

/// A download that is not complete, held by this process alone.
struct Part {
    file: File,
    path: PathBuf,
    bytes: u64,
    hasher: Sha256,
}

impl Part {
    /// Opens what is there, and reads it once for its digest.
    fn open(path: &Path) -> Result<Self> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(Error::io("create", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::hub(
                    path.display().to_string(),
                    "another process is downloading this file; wait for it, then run the same command again",
                ));
            }
            // A file system without locks: two downloads at once then end in a digest that does not fit.
            Err(TryLockError::Error(_)) => {}
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            let count = file.read(&mut buffer).map_err(Error::io("read", path))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            bytes += count as u64;
        }
        Ok(Self { file, path: path.to_path_buf(), bytes, hasher })
    }

    /// Begins again from nothing.
    fn restart(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(Error::io("write", &self.path))?;
        self.hasher = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Asks for the rest and appends it.
    fn go_on(
        &mut self,
        client: &Client,
        item: &Item,
        url: &str,
        about: &About,
        progress: &Progress,
    ) -> Result<(), Fault> {
        if item.bytes.is_some_and(|bytes| self.bytes > bytes) {
            self.restart()?;
        }
        if item.bytes == Some(self.bytes) && self.bytes > 0 {
            return Ok(());
        }
        let answer = client.get(url, self.bytes, &item.file, about)?;
        let range = client::content_range(answer.headers());
        let announced = match answer.status() {
            StatusCode::PARTIAL_CONTENT if range.is_some_and(|(start, _)| start == self.bytes) => {
                range.and_then(|(_, size)| size)
            }
            // The whole file again: this server does not resume.
            StatusCode::OK => {
                self.restart()?;
                client::content_length(answer.headers())
            }
            status => {
                self.restart()?;
                let error = about.fault(format!(
                    "expected the rest of `{}`, got another part of it ({status}); run the same command again",
                    item.file
                ));
                return Err(Fault::Passing(error, None));
            }
        };
        let whole = item.bytes.or(announced);
        let mut body = client::reader(answer);
        let mut buffer = vec![0; 256 << 10];
        loop {
            progress.check()?;
            let count = match body.read(&mut buffer) {
                Ok(0) if whole.is_none_or(|whole| self.bytes == whole) => return Ok(()),
                Ok(0) => return Err(self.cut(whole, "the connection ended", item, about)),
                Ok(count) => count,
                Err(fault) => return Err(self.cut(whole, &fault.to_string(), item, about)),
            };
            if whole.is_some_and(|whole| self.bytes + count as u64 > whole) {
                self.restart()?;
                return Err(Fault::Final(about.fault(format!(
                    "expected {} bytes of `{}`, got more; the server's file is another one: use another mirror \
                     (--mirror {}=PATH_OR_URL)",
                    whole.unwrap_or_default(),
                    item.file,
                    item.artefact
                ))));
            }
            self.file.write_all(&buffer[..count]).map_err(Error::io("write", &self.path))?;
            self.hasher.update(&buffer[..count]);
            self.bytes += count as u64;
            progress.advance(count);
        }
    }

    fn cut(&self, whole: Option<u64>, why: &str, item: &Item, about: &About) -> Fault {
        let error = about.fault(format!(
            "the download of `{}` was cut: expected {}, got {} ({why}); what came is kept in {}: run the same command \
             again, and it goes on from there",
            item.file,
            whole.map_or("its end".into(), |whole| format!("{whole} bytes")),
            self.bytes,
            self.path.display()
        ));
        Fault::Passing(error, None)
    }
}
