//! What stands beside pretrained weights: from what, by which code and how well, with the digest of each file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::provenance::{self, Provenance};
use crate::units::Digest;

/// The manifest of one pretrained model, `manifest.json` in its folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Which loop made it: `clip`, `aesthetic`, `hps`.
    pub kind: String,
    /// The whole recipe, seed included: running it again makes the model again.
    pub recipe: serde_json::Value,
    /// Optimiser steps done.
    pub steps: usize,
    /// The SHA-256 of every file that belongs to the model, by its name in the folder.
    pub files: BTreeMap<String, Digest>,
    /// What was measured on held-out scenes, with the weights as stored.
    pub evaluation: BTreeMap<String, f64>,
    /// When training ended, UTC.
    pub date: String,
    /// The crate's version.
    pub version: String,
    /// The commit of the code; `None` outside a repository.
    pub commit: Option<String>,
}

/// The manifest's name in a model's folder.
pub const FILE: &str = "manifest.json";

impl Manifest {
    /// Gathers a manifest over files already written to `folder`, and writes it beside them.
    ///
    /// # Errors
    /// Where a file cannot be read or the manifest cannot be written.
    pub fn write(
        folder: &Path,
        kind: &str,
        recipe: &impl Serialize,
        steps: usize,
        files: &[&str],
        evaluation: BTreeMap<String, f64>,
    ) -> Result<Self> {
        let mut digests = BTreeMap::new();
        for name in files {
            digests.insert((*name).to_owned(), provenance::file_digest(&folder.join(name))?);
        }
        let (code, _) = Provenance::gather(Path::new("."), &[], 1, "cpu")?;
        let manifest = Self {
            kind: kind.to_owned(),
            recipe: serde_json::to_value(recipe).expect("a recipe is plain data"),
            steps,
            files: digests,
            evaluation,
            date: provenance::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: code.git.and_then(|git| git.commit),
        };
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data") + "\n";
        std::fs::write(&path, text).map_err(Error::io("write", &path))?;
        Ok(manifest)
    }

    /// Reads the manifest of a folder and checks every file that it names.
    ///
    /// # Errors
    /// Where the manifest is missing or unreadable, or a file is not the one that it describes.
    pub fn read_checked(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let manifest: Self = serde_json::from_str(&text)
            .map_err(|fault| Error::weights(&path, format!("not a manifest of this version: {fault}")))?;
        for (name, expected) in &manifest.files {
            let file = folder.join(name);
            let got = provenance::file_digest(&file)?;
            if got != *expected {
                return Err(Error::weights(
                    &file,
                    format!(
                        "its SHA-256 is {}…, the manifest says {}…: restore it, or make it again with `ppd pretrain`",
                        got.short(),
                        expected.short()
                    ),
                ));
            }
        }
        Ok(manifest)
    }
}

/// Writes a model's `config.json`.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn write_config(folder: &Path, config: &impl Serialize) -> Result<()> {
    let path = folder.join("config.json");
    let text = serde_json::to_string_pretty(config).expect("a config is plain data") + "\n";
    std::fs::write(&path, text).map_err(Error::io("write", &path))
}
