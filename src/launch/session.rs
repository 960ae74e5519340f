//! What all cells of one run share: where the code stands, on which machine, by which binary.

use std::path::Path;

use super::Look;
use crate::error::{Error, Result};
use crate::provenance::{Provenance, binary_digest};
use crate::record::replace_file;
use crate::spec::{Places, Plan, Prompts};
use crate::units::Digest;

/// The circumstances of one run, which every header repeats.
#[derive(Debug, Clone)]
pub struct Session {
    /// The code and the machine.
    pub provenance: Provenance,
    /// The digest of the running program.
    pub binary: Option<Digest>,
    /// Worker threads.
    pub threads: usize,
}

impl Session {
    /// Gathers the circumstances; the text of uncommitted changes is kept in `folder`, beside the records.
    ///
    /// # Errors
    /// Where the repository cannot be read or the records' folder not be written.
    pub fn begin(places: &Places, folder: &Path, threads: usize, device: &str) -> Result<Self> {
        let outputs = [places.results.as_path(), &places.figures];
        let (provenance, difference) = Provenance::gather(Path::new("."), &outputs, threads, device)?;
        if let Some(difference) = difference {
            let folder = folder.join("code");
            std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
            let path = folder.join(format!("{}.diff", difference.digest.short()));
            if !path.exists() {
                replace_file(&path, &difference.text)?;
            }
        }
        Ok(Self { provenance, binary: Some(binary_digest()?), threads })
    }

    /// Logs that the test prompts are opened; a study on validation prompts logs nothing.
    ///
    /// # Errors
    /// Where the log cannot be written.
    pub(super) fn log_look(&self, plan: &Plan, pending: usize) -> Result<()> {
        if plan.spec.data.prompts == Prompts::Validation {
            return Ok(());
        }
        let (study, profile) = (&plan.spec.name, &plan.spec.label);
        let look = Look { study, profile, cells: pending, seeds: plan.spec.seeds.get() };
        look.log(&plan.places.results, self.provenance.git.as_ref())
    }
}
