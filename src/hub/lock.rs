//! `experiments/hub.lock`: what was first fetched, and which licences were shown.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::pattern;
use crate::error::{Error, Result};
use crate::record::replace_file;
use crate::units::Digest;

/// The version of the format.
const SCHEMA: u32 = 1;
const HEADING: &str = "# What `ppd fetch` first fetched: commits, sizes and SHA-256. Whatever differs from it is refused.\n\
                       # To take a newer version on purpose, remove its table and fetch again.\n\n";

/// What was first fetched, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The version of the format.
    pub schema: u32,
    /// The licences that forbid commercial use and were shown, with the repositories they stand for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub non_commercial: BTreeMap<String, BTreeSet<String>>,
    /// Each repository at a revision, such as `models/owner/name@main`, or a plain address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, Source>,
}

impl Default for Lock {
    fn default() -> Self {
        Self { schema: SCHEMA, non_commercial: BTreeMap::new(), sources: BTreeMap::new() }
    }
}

/// One repository at a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The commit that the revision was resolved to; none where a folder or a plain address stood for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The licence, as the profile names it.
    pub licence: String,
    /// The names with `*` whose files are all fetched.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub complete: BTreeSet<String>,
    /// The files.
    #[serde(default)]
    pub files: BTreeMap<String, Entry>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

impl Source {
    /// The files that any of the patterns stands for.
    pub(super) fn matching(&self, patterns: &[String]) -> Vec<(&String, &Entry)> {
        let wanted = |name: &String| patterns.iter().any(|pattern| pattern::matches(pattern, name.as_str()));
        self.files.iter().filter(|(name, _)| wanted(name)).collect()
    }

    /// Whether everything that the pattern stands for is known.
    pub(super) fn covers(&self, pattern: &str) -> bool {
        if pattern::is_open(pattern) {
            self.complete.contains(pattern)
        } else {
            self.files.contains_key(pattern)
        }
    }
}

impl Lock {
    /// Reads a lock; there is nothing in one that is not there.
    ///
    /// # Errors
    /// [`Error::Data`] where it is not one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(fault) => return Err(Error::io("read", path)(fault)),
        };
        let wrong = |message: String| {
            Error::data(
                path,
                format!(
                    "{message}; take it from version control, or remove it and fetch again \
                     (what was first fetched is then no longer known)"
                ),
            )
        };
        let lock: Self = toml::from_str(&text).map_err(|fault| wrong(fault.to_string()))?;
        if lock.schema != SCHEMA {
            return Err(wrong(format!("expected schema {SCHEMA}, got {}", lock.schema)));
        }
        Ok(lock)
    }

    /// Writes it whole, sorted.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let text = toml::to_string(self).map_err(|fault| Error::data(path, fault.to_string()))?;
        replace_file(path, format!("{HEADING}{text}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_comes_back_sorted_and_faults_name_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("experiments/hub.lock");
        assert_eq!(Lock::read(&path).unwrap(), Lock::default());
        let mut lock = Lock::default();
        for name in ["models/b/b@main", "models/a/a@main"] {
            let entry = Entry { bytes: 3, sha256: Digest::of(name.as_bytes()) };
            let files = [("x/model-1.safetensors".to_owned(), entry)].into();
            let source =
                Source { commit: Some("0".repeat(40)), licence: "mit".into(), files, ..Source::default() };
            lock.sources.insert(name.into(), source);
        }
        lock.non_commercial.entry("nc".into()).or_default().insert("models/a/a@main".into());
        lock.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.find("a/a@main\"]") < text.find("b/b@main\"]"), "{text}");
        std::fs::write(&path, "schema = 2\n").unwrap();
        assert!(Lock::read(&path).unwrap_err().to_string().contains("expected schema 1, got 2"));
    }
}
