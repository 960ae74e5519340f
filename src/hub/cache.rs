//! The cache on disk: where files lie, how one gets its final name, and what was already checked.
//!
//! A repository's files lie as the Hub's own tools lay them: `blobs/<etag>` holds the bytes, `snapshots/<commit>/` the
//! names. What comes from a plain address lies in the same form under `HF_HOME/ppd/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::{Deserialize, Serialize};

use super::{Artefact, Hub, Kind};
use crate::error::{Error, Result};
use crate::provenance::file_digest;
use crate::record::replace_file;
use crate::units::Digest;

/// The name of a snapshot that has no commit.
const UNVERSIONED: &str = "unversioned";

/// The place of one repository in the cache.
#[derive(Debug)]
pub(super) struct Shelf {
    repository: CacheRepo,
    /// Where the commit of its revision is noted.
    reference: PathBuf,
}

/// The repository as the crate names it.
pub(super) fn repository(kind: Kind, name: &str, revision: &str) -> Repo {
    let kind = if kind == Kind::Dataset { RepoType::Dataset } else { RepoType::Model };
    Repo::with_revision(name.to_owned(), kind, revision.to_owned())
}

impl Hub {
    /// The place of an artefact's files in the cache; a mirror's files lie there too, since they are the same.
    pub(super) fn shelf(&self, name: &str, artefact: &Artefact) -> Shelf {
        let repository = match artefact.kind {
            Kind::Url => {
                let folder = Cache::new(self.home.join("ppd"));
                folder.repo(repository(Kind::Model, name, "main"))
            }
            kind => self.cache.repo(repository(kind, &artefact.repository, &artefact.revision)),
        };
        let reference = repository.blob_path("").join("../refs").join(&artefact.revision);
        Shelf { repository, reference }
    }
}

impl Shelf {
    /// The folder that stands for the repository's root at a commit.
    pub(super) fn root(&self, commit: Option<&str>) -> PathBuf {
        self.repository.pointer_path(commit.unwrap_or(UNVERSIONED))
    }

    /// Where the bytes of a file with this tag lie.
    pub(super) fn blob(&self, tag: &str) -> PathBuf {
        self.repository.blob_path(tag)
    }

    /// Gives a file its name at a commit: a link to `target`, absolute or in the cache.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(super) fn name(&self, commit: Option<&str>, file: &str, target: &Path) -> Result<PathBuf> {
        let path = place(&self.root(commit), file);
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        // Another link with this name is one to other bytes, or to nothing any more.
        if std::fs::symlink_metadata(&path).is_ok() {
            std::fs::remove_file(&path).map_err(Error::io("replace", &path))?;
        }
        link(&self.from(file, target), target, &path).map_err(Error::io("create", &path))?;
        // Where other tools have noted the revision already, it is theirs to move.
        if let Some(commit) = commit
            && !self.reference.exists()
        {
            self.repository.create_ref(commit).map_err(Error::io("write", &path))?;
        }
        Ok(path)
    }

    /// What a link with this name leads to: relative where the bytes are in the cache, so that it can be moved.
    fn from(&self, file: &str, target: &Path) -> PathBuf {
        let blobs = self.repository.blob_path("");
        match target.strip_prefix(&blobs) {
            // Up from the file's folder to the snapshot, to `snapshots`, to the repository.
            Ok(tag) => {
                let up = "../".repeat(file.split('/').count() + 1);
                Path::new(&up).join("blobs").join(tag)
            }
            Err(_) => target.to_path_buf(),
        }
    }
}

#[cfg(unix)]
fn link(from: &Path, _: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(from, path)
}

#[cfg(not(unix))]
fn link(_: &Path, target: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::hard_link(target, path)
}

/// A file's place below a root that may be that file itself.
pub(super) fn place(root: &Path, file: &str) -> PathBuf {
    if root.is_file() { root.to_path_buf() } else { root.join(file) }
}

/// A file's size and digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) bytes: u64,
    pub(super) sha256: Digest,
}

/// Refuses a file that is not what it should be, as `origin` says.
///
/// # Errors
/// [`Error::Hub`] with file, expected, got and the way out.
pub(super) fn same(
    path: &Path,
    origin: &str,
    bytes: Option<u64>,
    sha256: Option<&Digest>,
    got: &Measured,
) -> Result<()> {
    let expected = match (bytes, sha256) {
        (_, Some(digest)) if *digest != got.sha256 => format!("SHA-256 {digest}"),
        (Some(bytes), _) if bytes != got.bytes => format!("{bytes} bytes"),
        _ => return Ok(()),
    };
    Err(Error::hub(
        path.display().to_string(),
        format!(
            "is not the file that was {origin}: expected {expected}{}, got SHA-256 {} of {} bytes; it was changed or \
             damaged on this disk: remove it and run `ppd fetch` again",
            bytes.map(|bytes| format!(" of {bytes} bytes")).filter(|_| sha256.is_some()).unwrap_or_default(),
            got.sha256,
            got.bytes
        ),
    ))
}

/// What is known of a file that nobody has written to since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    sha256: Digest,
}

/// Digests of files that were computed once, by the files' real paths; believed as long as size and time stand.
#[derive(Debug)]
pub(super) struct Stamps {
    path: PathBuf,
    known: BTreeMap<PathBuf, Stamp>,
    changed: bool,
}

impl Stamps {
    /// Those of a Hub's home; a file that cannot be read only costs time.
    pub(super) fn read(home: &Path) -> Self {
        let path = home.join("ppd/checked.json");
        let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, known: known.unwrap_or_default(), changed: false }
    }

    /// A file's size and digest, computed where it was written to since.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(super) fn measure(&mut self, path: &Path) -> Result<Measured> {
        let real = std::fs::canonicalize(path).map_err(Error::io("read", path))?;
        let (bytes, modified) = Self::state(&real)?;
        if let Some(stamp) = self.known.get(&real)
            && stamp.bytes == bytes
            && Some(stamp.modified) == modified
        {
            return Ok(Measured { bytes, sha256: stamp.sha256.clone() });
        }
        self.measure_again(path)
    }

    /// A file's size and digest, computed now.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(super) fn measure_again(&mut self, path: &Path) -> Result<Measured> {
        let real = std::fs::canonicalize(path).map_err(Error::io("read", path))?;
        let sha256 = file_digest(&real)?;
        let (bytes, _) = Self::state(&real)?;
        self.note(&real, &sha256)?;
        Ok(Measured { bytes, sha256 })
    }

    /// Notes a digest that was computed while the file was written.
    ///
    /// # Errors
    /// Where the file is not there.
    pub(super) fn note(&mut self, path: &Path, sha256: &Digest) -> Result<()> {
        let real = std::fs::canonicalize(path).map_err(Error::io("read", path))?;
        let (bytes, modified) = Self::state(&real)?;
        if let Some(modified) = modified {
            self.known.insert(real, Stamp { bytes, modified, sha256: sha256.clone() });
            self.changed = true;
        }
        Ok(())
    }

    fn state(path: &Path) -> Result<(u64, Option<u64>)> {
        let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok((metadata.len(), modified.and_then(|time| u64::try_from(time.as_nanos()).ok())))
    }

    /// Keeps them; where that cannot be, digests are computed again the next time.
    pub(super) fn write(&mut self) {
        if !self.changed {
            return;
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        if let (Ok(()), Ok(text)) = (std::fs::create_dir_all(folder), serde_json::to_vec_pretty(&self.known))
        {
            let _ = replace_file(&self.path, &text);
        }
        self.changed = false;
    }
}
