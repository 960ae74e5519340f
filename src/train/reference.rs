//! The reference's errors: computed once for each visit, shared by every method that visits the same, kept on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::replace_file;

/// What the base makes of both images of a pair, by (pair, visits of it so far).
///
/// A visit's timestep, noise and dropped caption follow from the training's seed, its range of timesteps and its text
/// dropout, so one store belongs to one base model, one set of pairs and one of each of these; labels, users, objectives
/// and learning rates share it.
#[derive(Debug, Default)]
pub struct ReferenceErrors {
    path: Option<PathBuf>,
    known: Mutex<BTreeMap<(usize, usize), [f64; 2]>>,
}

/// One line on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    pair: usize,
    visit: usize,
    first: f64,
    second: f64,
}

impl ReferenceErrors {
    /// The store at `path`, with what is there.
    ///
    /// # Errors
    /// Where the file cannot be read or is damaged.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let known = match std::fs::read(&path) {
            Ok(bytes) => read(&bytes, &path)?,
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(fault) => return Err(Error::io("read", &path)(fault)),
        };
        Ok(Self { path: Some(path), known: Mutex::new(known) })
    }

    /// Writes everything to the store's file, where it has one, beside what another process stored there meanwhile.
    ///
    /// # Errors
    /// Where the disk refuses, or what is there is damaged.
    pub fn store(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        for (visit, errors) in Self::open(path)?.lock().iter() {
            self.lock().entry(*visit).or_insert(*errors);
        }
        let fault = |fault: csv::Error| Error::data(path, fault.to_string());
        let mut writer = csv::Writer::from_writer(Vec::new());
        for (&(pair, visit), &[first, second]) in self.lock().iter() {
            writer.serialize(Line { pair, visit, first, second }).map_err(fault)?;
        }
        let bytes = writer.into_inner().map_err(|fault| Error::data(path, fault.to_string()))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        replace_file(path, &bytes)
    }

    /// Errors on (first, second) image.
    pub(super) fn get(&self, pair: usize, visit: usize) -> Option<[f64; 2]> {
        self.lock().get(&(pair, visit)).copied()
    }

    pub(super) fn set(&self, pair: usize, visit: usize, errors: [f64; 2]) {
        self.lock().insert((pair, visit), errors);
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True where none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(usize, usize), [f64; 2]>> {
        self.known.lock().expect("no thread panics while it holds the reference errors")
    }
}

fn read(bytes: &[u8], path: &Path) -> Result<BTreeMap<(usize, usize), [f64; 2]>> {
    csv::Reader::from_reader(bytes)
        .deserialize()
        .map(|line| {
            let line: Line = line.map_err(|fault| {
                Error::data(
                    path,
                    format!("stored reference errors cannot be read ({fault}); delete the file"),
                )
            })?;
            Ok(((line.pair, line.visit), [line.first, line.second]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_back_to_the_last_bit_and_a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference/a.csv");
        let store = ReferenceErrors::open(&path).unwrap();
        assert!(store.is_empty());
        store.set(7, 1, [0.1 + 0.2, 1.0 / 3.0]);
        store.set(2, 0, [1e-300, f64::from(0.7f32)]);
        store.store().unwrap();
        let again = ReferenceErrors::open(&path).unwrap();
        assert_eq!((again.len(), again.get(7, 1)), (2, Some([0.1 + 0.2, 1.0 / 3.0])));
        assert_eq!(again.get(2, 0), Some([1e-300, f64::from(0.7f32)]));
        // Another process opened the store before, and knows what this one does not.
        let other = ReferenceErrors { path: Some(path.clone()), known: Mutex::default() };
        other.set(9, 0, [1.0, 2.0]);
        other.store().unwrap();
        assert_eq!(ReferenceErrors::open(&path).unwrap().len(), 3);
        std::fs::write(&path, "pair,visit,first,second\n1,0,x,2\n").unwrap();
        let message = ReferenceErrors::open(&path).unwrap_err().to_string();
        assert!(message.contains("a.csv") && message.contains("delete"), "{message}");
        assert!(ReferenceErrors::default().store().is_ok(), "without a file nothing is written");
    }
}
