//! The log of looks at the test prompts, beside the records.

use std::io::Write as _;
use std::path::Path;

use crate::error::{Error, Result};
use crate::provenance::{Git, now};
use crate::units::Seed;

/// The log's file, below the folder of records.
const FILE: &str = "test-looks.csv";

/// Who opens the test prompts, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The study; or the command, where no study runs.
    pub study: &'a str,
    /// The profile, with what `--set` and `--quick` add to its name.
    pub profile: &'a str,
    /// How many cells will be sampled.
    pub cells: usize,
    /// Their training seeds.
    pub seeds: &'a [Seed],
}

impl Look<'_> {
    /// Adds this look to the log in the folder of records.
    ///
    /// # Errors
    /// Where the log cannot be written.
    pub fn log(&self, results: &Path, git: Option<&Git>) -> Result<()> {
        std::fs::create_dir_all(results).map_err(Error::io("create", results))?;
        let path = results.join(FILE);
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let mut text = String::new();
        if file.metadata().map_err(Error::io("read", &path))?.len() == 0 {
            text.push_str("time,study,profile,cells,train_seeds,commit,changed\n");
        }
        let seeds: Vec<String> = self.seeds.iter().map(|seed| seed.get().to_string()).collect();
        text.push_str(&format!(
            "{},{},{},{},{},{},{}\n",
            now(),
            self.study,
            self.profile,
            self.cells,
            seeds.join(" "),
            git.and_then(|git| git.commit.as_deref()).unwrap_or("unknown"),
            git.map_or("unknown", |git| if git.diff.is_some() { "yes" } else { "no" }),
        ));
        file.write_all(text.as_bytes()).map_err(Error::io("write", &path))
    }
}
