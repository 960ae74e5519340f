//! Files of others: weights and data sets of the Hugging Face Hub, of a plain web address, or of a folder.
//!
//! An [`Artefact`] names what a profile needs. [`Hub::plan`] finds out what is missing and how large it is,
//! [`Hub::fetch`] brings it, and [`Hub::locate`] says, without a network, where it lies. What was first fetched is
//! kept in a [`Lock`] (commit, sizes, SHA-256); whatever differs from it later is refused.
//!
//! The cache is the Hub's own (`HF_HOME`), so files that other tools brought are used, and the other way round. The
//! crate `hf-hub` gives its layout, addresses, token file and the question for a repository's revision. The transfer
//! is ours, because that crate checks no digest, gives a file its final name before anybody could, takes a whole
//! answer to a request for the rest as that rest, and sends the token on to the storage host that it is redirected to.

mod cache;
mod client;
mod download;
mod fetch;
mod lock;
mod pattern;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::units::Digest;

pub use fetch::{Item, Plan};
pub use lock::{Entry, Lock, Source};

/// Where the lock lies, from the folder that the program runs in.
pub const LOCK: &str = "experiments/hub.lock";

/// Where an artefact comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A model repository of the Hub.
    #[default]
    Model,
    /// A data set repository of the Hub.
    Dataset,
    /// A plain web address, with the files below it.
    Url,
}

/// `[artefacts.NAME]` of a profile: files that somebody else published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artefact {
    /// Where it comes from.
    #[serde(default)]
    pub kind: Kind,
    /// `owner/name` on the Hub, or the address that the files lie below.
    pub repository: String,
    /// A branch, a tag or a commit; resolved to a commit at the first fetch.
    #[serde(default = "main_branch")]
    pub revision: String,
    /// The files from the repository's root; `*` stands for any characters.
    pub files: Vec<String>,
    /// The licence as the repository names it.
    pub licence: String,
    /// Whether the licence forbids commercial use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub non_commercial: bool,
    /// Whether it is a data set rather than weights.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub data: bool,
    /// Whether it is fetched only where it is named: large, or not needed by any study as it stands.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_request: bool,
    /// Sizes that are known beforehand, by file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bytes: BTreeMap<String, u64>,
    /// Digests that are known beforehand, by file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sha256: BTreeMap<String, Digest>,
    /// Other repositories that hold the same, for whoever finds this one closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// A folder (or, for one file, that file) that stands for the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<PathBuf>,
}

fn main_branch() -> String {
    "main".into()
}

impl Artefact {
    /// What the lock calls the repository at its revision: `models/owner/name@main`, or its address.
    pub fn source(&self) -> String {
        match self.kind {
            Kind::Model => format!("models/{}@{}", self.repository, self.revision),
            Kind::Dataset => format!("datasets/{}@{}", self.repository, self.revision),
            Kind::Url => self.repository.clone(),
        }
    }

    /// What is wrong with the entry as it is written, if anything.
    pub fn fault(&self) -> Option<String> {
        let plain = |path: &str| {
            !path.is_empty()
                && !path.starts_with('/')
                && !path.contains('\\')
                && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        };
        let url = ["http://", "https://"].iter().any(|scheme| self.repository.starts_with(scheme));
        if self.kind == Kind::Url && !url {
            return Some(format!(
                "repository: expected an address that begins with https://, got `{}`",
                self.repository
            ));
        }
        if self.kind != Kind::Url && (!plain(&self.repository) || self.repository.split('/').count() > 2) {
            return Some(format!("repository: expected `owner/name`, got `{}`", self.repository));
        }
        if self.revision.is_empty() || self.revision.contains("..") || self.revision.starts_with('/') {
            return Some(format!("revision: expected a branch, a tag or a commit, got `{}`", self.revision));
        }
        if self.files.is_empty() {
            return Some("files: expected at least one file, got none".into());
        }
        let wrong = self.files.iter().find(|file| !plain(file))?;
        Some(format!("files: expected a path below the repository, got `{wrong}`"))
    }
}

/// One file of an artefact, as it lies on this disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path in the repository.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// An artefact on this disk, equal to what the lock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The file itself where the artefact is one file; else the deepest folder that holds all of its files.
    pub path: PathBuf,
    /// The folder that stands for the repository's root.
    pub root: PathBuf,
    /// Its files, sorted by name.
    pub files: Vec<Found>,
    /// The commit it was fetched at; none where a folder or a plain address stood for it.
    pub commit: Option<String>,
    /// The licence.
    pub licence: String,
}

impl Located {
    /// The digest of the file, or, of several, of their names and digests: what a run records.
    pub fn digest(&self) -> Digest {
        match self.files.as_slice() {
            [only] => only.sha256.clone(),
            files => {
                let lines: String =
                    files.iter().map(|file| format!("{} {}\n", file.sha256, file.name)).collect();
                Digest::of(lines.as_bytes())
            }
        }
    }

    /// The file whose name in the repository ends with `ending`.
    ///
    /// # Errors
    /// Where none does, or several do.
    pub fn file(&self, ending: &str) -> Result<&Found> {
        let named: Vec<&Found> = self.files.iter().filter(|file| file.name.ends_with(ending)).collect();
        match named.as_slice() {
            [only] => Ok(only),
            found => Err(Error::hub(
                self.root.display().to_string(),
                format!(
                    "expected one file that ends with `{ending}`, got {} among {}; name it in the profile's `files`",
                    found.len(),
                    self.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(", ")
                ),
            )),
        }
    }
}

/// What stands for a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// A repository of the Hub: the artefact's own, or a mirror's.
    Hub { kind: Kind, repository: String, revision: String },
    /// Files below a plain address.
    Web(String),
    /// Files below a folder, or one file.
    Folder(PathBuf),
}

/// The Hub as this machine reaches it, the cache, and the lock.
pub struct Hub {
    home: PathBuf,
    cache: hf_hub::Cache,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    lock: PathBuf,
    /// What stands for an artefact or a repository in this process, by its name.
    mirrors: BTreeMap<String, String>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is nobody's to print.
        f.debug_struct("Hub").field("home", &self.home).field("lock", &self.lock).finish_non_exhaustive()
    }
}

impl Hub {
    /// The Hub as the environment says: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` (or the token file that
    /// the Hub's own tools wrote), `HF_HUB_OFFLINE`; `lock` is the lock's path, usually [`LOCK`].
    ///
    /// # Errors
    /// Where `HF_ENDPOINT` is no address.
    pub fn from_env(lock: impl Into<PathBuf>) -> Result<Self> {
        Self::new(lock, |name| std::env::var(name).ok())
    }

    /// The same, with `value_of` in the place of the environment.
    ///
    /// # Errors
    /// Where `HF_ENDPOINT` is no address.
    pub fn new(lock: impl Into<PathBuf>, value_of: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let lock = lock.into();
        let set = |name: &str| {
            value_of(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let home = set("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache/huggingface")));
        let home = home.unwrap_or_else(|| ".cache/huggingface".into());
        let folder = set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(Error::Spec(format!(
                "HF_ENDPOINT: expected an address that begins with https://, got `{}`; unset it to use the Hub itself",
                client::shown(&endpoint)
            )));
        }
        let offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
        });
        let token = set("HF_TOKEN").or_else(|| hf_hub::Cache::new(home.join("hub")).token());
        let cache = hf_hub::Cache::new(folder);
        Ok(Self { home, cache, endpoint, token, offline, lock, mirrors: BTreeMap::new() })
    }

    /// Lets something else stand for an artefact: a folder, a file, an address that the files lie below, or
    /// `hf://owner/name[@revision]`. `name` is the artefact's or its repository's.
    ///
    /// # Errors
    /// Where it is none of these, or a folder that is not there.
    pub fn with_mirror(mut self, name: &str, stands: &str) -> Result<Self> {
        self.origin_of(stands, Kind::Model)?;
        self.mirrors.insert(name.to_owned(), stands.to_owned());
        Ok(self)
    }

    /// The folder of the Hub's cache.
    pub fn folder(&self) -> &Path {
        self.cache.path()
    }

    /// Whether the network is not to be used.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// What the lock holds; nothing where there is none yet.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read_lock(&self) -> Result<Lock> {
        Lock::read(&self.lock)
    }

    /// Where an artefact lies on this disk, checked against the lock; no network is used. `profile` names whose it is
    /// in messages.
    ///
    /// Digests of what was checked before and has not been written to since are not computed again.
    ///
    /// # Errors
    /// [`Error::Hub`] where it was not fetched (with the command that does), or is not what the lock says.
    pub fn locate(&self, profile: &str, name: &str, artefact: &Artefact) -> Result<Located> {
        let lock = self.read_lock()?;
        let source = artefact.source();
        let way_out = format!("run `ppd fetch --profile {profile} --only {name}`");
        let missing = |what: &str| Error::hub(name, format!("{what} ({source}); {way_out}"));
        let known = lock.sources.get(&source).ok_or_else(|| missing("is not fetched yet"))?;
        let wanted = known.matching(&artefact.files);
        if let Some(absent) = artefact.files.iter().find(|file| !known.covers(file)) {
            return Err(missing(&format!("`{absent}` is not fetched yet")));
        }
        let root = self.root(name, artefact, known.commit.as_deref())?;
        let mut files = Vec::with_capacity(wanted.len());
        let mut stamps = cache::Stamps::read(&self.home);
        for (file, entry) in wanted {
            let path = cache::place(&root, file);
            if !path.exists() {
                return Err(missing(&format!("`{file}` is not at {}", path.display())));
            }
            let got = stamps.measure(&path)?;
            let origin = format!("fetched first ({})", self.lock.display());
            cache::same(&path, &origin, Some(entry.bytes), Some(&entry.sha256), &got)?;
            files.push(Found { name: file.clone(), path, bytes: entry.bytes, sha256: entry.sha256.clone() });
        }
        stamps.write();
        let path = match files.as_slice() {
            [only] => only.path.clone(),
            files => match pattern::common_folder(files.iter().map(|file| file.name.as_str())) {
                "" => root.clone(),
                folder => cache::place(&root, folder),
            },
        };
        Ok(Located { path, root, files, commit: known.commit.clone(), licence: artefact.licence.clone() })
    }

    /// The folder that stands for the repository's root, once everything is fetched.
    fn root(&self, name: &str, artefact: &Artefact, commit: Option<&str>) -> Result<PathBuf> {
        if let Some(local) = &artefact.local {
            return std::path::absolute(local).map_err(Error::io("find", local));
        }
        Ok(self.shelf(name, artefact).root(commit))
    }

    /// What is used in the place of an artefact's repository.
    fn origin(&self, name: &str, artefact: &Artefact) -> Result<Origin> {
        let mirror = self.mirrors.get(name).or_else(|| self.mirrors.get(&artefact.repository));
        if let Some(stands) = mirror {
            return self.origin_of(stands, artefact.kind);
        }
        if let Some(local) = &artefact.local {
            return self.origin_of(&local.to_string_lossy(), artefact.kind);
        }
        Ok(match artefact.kind {
            Kind::Url => Origin::Web(artefact.repository.trim_end_matches('/').to_owned()),
            kind => Origin::Hub {
                kind,
                repository: artefact.repository.clone(),
                revision: artefact.revision.clone(),
            },
        })
    }

    fn origin_of(&self, stands: &str, kind: Kind) -> Result<Origin> {
        if let Some(repository) = stands.strip_prefix("hf://") {
            let (kind, repository) = match repository.strip_prefix("datasets/") {
                Some(rest) => (Kind::Dataset, rest),
                None => (if kind == Kind::Url { Kind::Model } else { kind }, repository),
            };
            let (repository, revision) = repository.split_once('@').unwrap_or((repository, "main"));
            return Ok(Origin::Hub { kind, repository: repository.into(), revision: revision.into() });
        }
        if stands.starts_with("http://") || stands.starts_with("https://") {
            return Ok(Origin::Web(stands.trim_end_matches('/').to_owned()));
        }
        let path = std::path::absolute(stands).map_err(Error::io("find", stands))?;
        if path.exists() {
            return Ok(Origin::Folder(path));
        }
        Err(Error::Spec(format!(
            "{}: is not there; a mirror is a folder, a file, an address that begins with https://, or \
             hf://owner/name",
            path.display()
        )))
    }
}

#[cfg(test)]
mod tests;
