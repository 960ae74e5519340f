//! Run records: one folder a cell with a header, one row an image, and the loss trace of its training.
//!
//! ```text
//! results/<study>/<profile>/cells/<cell-id>/header.json   what ran: Header
//!                                           rows.csv      what came out: one Row an image
//!                                           trace.csv     how training went: one Step a logged step
//!                                           images/       the first few images, for people to look at
//! ```
//!
//! Whoever keeps a finished record for long may pack its files (`gzip -9n`): `rows.csv.gz` reads as `rows.csv`.
//!
//! A row is appended and handed to the system at once, so a killed run keeps all rows but the one in flight; that
//! torn last line is dropped when the record is opened again. A finished header carries the digest of its rows, so
//! an edited or damaged record is refused instead of read. What is missing is empty, never 0.
//!
//! This module does not decide what a cell is, nor when it runs; nothing here names a tensor.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::provenance::{Provenance, now};
use crate::units::Digest;
use reader::parse_rows;

mod lock;
mod reader;
mod text;

pub use lock::FolderLock;
pub use reader::{
    cell_folders, is_record, is_there, read_cell, read_header, read_image, read_packed, read_records,
    read_trace,
};
pub use text::six_digits;

/// The version of the record's format; a reader refuses any other.
pub const SCHEMA: u32 = 1;

/// The score that every image has: its [difference](crate::pixels::Image::difference) to the base's image of the same
/// prompt and noise.
pub const DRIFT: &str = "drift";

/// The columns of `rows.csv` before the scores.
const KEY_COLUMNS: [&str; 5] = ["method", "condition", "train_seed", "prompt", "noise_seed"];

/// One image, and what was measured on it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    /// The method's name in the experiment file.
    pub method: String,
    /// The user it was made for: `none`, a reward such as `clip`, or a mixture such as `clip=0.50+aesthetic=0.50`.
    pub condition: String,
    /// The seed of the training run behind the image.
    pub train_seed: u64,
    /// The prompt's index in its prompt set.
    pub prompt: u32,
    /// The seed of the image's noise, common to all methods.
    pub noise_seed: u64,
    /// Each score by name: rewards, twins, measured pixel statistics. Empty where the image failed.
    pub scores: BTreeMap<String, f64>,
    /// Why there is no image or no score; `None` where all is well.
    pub failure: Option<String>,
}

/// What makes a row unique within a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    method: String,
    condition: String,
    train_seed: u64,
    prompt: u32,
    noise_seed: u64,
}

impl Key {
    /// The key of the image that these five name.
    pub fn new(method: &str, condition: &str, train_seed: u64, prompt: u32, noise_seed: u64) -> Self {
        Self { method: method.into(), condition: condition.into(), train_seed, prompt, noise_seed }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { method, condition, train_seed, prompt, noise_seed } = self;
        write!(f, "{method}, {condition}, train seed {train_seed}, prompt {prompt}, noise seed {noise_seed}")
    }
}

impl Row {
    /// What makes this row unique.
    pub fn key(&self) -> Key {
        Key::new(&self.method, &self.condition, self.train_seed, self.prompt, self.noise_seed)
    }
}

/// One logged step of a training run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The optimiser's step, from 0.
    pub step: u64,
    /// The objective's loss, averaged over the batch.
    pub loss: f64,
    /// The mean of the term inside the sigmoid; empty for objectives without one.
    pub margin: Option<f64>,
    /// The share of pairs whose margin is above zero.
    pub implicit_accuracy: Option<f64>,
    /// The share of pairs whose sigmoid lies outside [0.01, 0.99].
    pub saturation: Option<f64>,
    /// The policy's squared error on chosen images, less the reference's; the error itself where the objective (SFT) asks
    /// for no reference.
    pub error_chosen: Option<f64>,
    /// The policy's squared error on rejected images, less the reference's.
    pub error_rejected: Option<f64>,
    /// The norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate of this step.
    pub learning_rate: f64,
}

/// What ran, with all that is needed to run it again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The format's version, [`SCHEMA`].
    pub schema: u32,
    /// The study's name.
    pub study: String,
    /// The profile's name: `desk`, `paper`, or one with overrides.
    pub profile: String,
    /// The cell's id, which hashes its inputs.
    pub cell: String,
    /// The method's name in the experiment file.
    pub method: String,
    /// The seed of the training run.
    pub train_seed: u64,
    /// The identity of the training behind the cell; cells of several studies may share it.
    pub train_key: Option<String>,
    /// The full canonical configuration of the cell.
    pub config: serde_json::Value,
    /// SHA-256 of weights, data and binary, by name.
    pub digests: BTreeMap<String, Digest>,
    /// The code and the machine.
    pub provenance: Provenance,
    /// The names of the score columns, in their order in `rows.csv`.
    pub scores: Vec<String>,
    /// The sessions that went on with it after an interruption, in their order; `provenance` is the first one's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed: Vec<Resumed>,
    /// When the cell was first begun, in UTC.
    pub started: String,
    /// When the cell was complete; `None` while rows may still come.
    pub finished: Option<String>,
    /// Seconds by phase (`train`, `sample`, `score`) of the session that completed it: clocks, never part of an identity.
    pub seconds: BTreeMap<String, f64>,
    /// What was counted: `rows`, `failures`; and how many samples the denoiser evaluated (`train_evaluations`,
    /// `sample_evaluations`) in the session that completed it, which what was cached makes fewer.
    pub counts: BTreeMap<String, u64>,
    /// The digest of `rows.csv`, from the moment that the cell is complete.
    pub rows_digest: Option<Digest>,
    /// The images that were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<Kept>,
    /// What was written about the user that a condition stands for, by condition.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub profiles: BTreeMap<String, String>,
}

/// A session that went on with an interrupted record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resumed {
    /// When, in UTC.
    pub at: String,
    /// The code and the machine.
    pub provenance: Provenance,
    /// The digest of the program.
    pub binary: Option<Digest>,
}

/// An image that a record keeps as PNG, in its folder `images`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The file's name in that folder.
    pub file: String,
    /// The condition that it was made under.
    pub condition: String,
    /// The prompt's index in its prompt set.
    pub prompt: u32,
    /// The prompt.
    pub text: String,
    /// The seed of its noise.
    pub noise_seed: u64,
    /// The file's digest.
    pub digest: Digest,
}

/// The folder of kept images in a record.
const IMAGES: &str = "images";

/// An open record that takes rows.
#[derive(Debug)]
pub struct Recorder {
    folder: PathBuf,
    header: Header,
    file: File,
    length: u64,
    seen: HashSet<Key>,
    failures: u64,
}

impl Recorder {
    /// Begins the record in `folder`, or goes on with the one that stands there.
    ///
    /// A torn last line is dropped; finished rows are kept, and [`Recorder::has`] tells which they are.
    ///
    /// # Errors
    /// Where the folder holds a complete record or another cell's, where its rows are corrupt, where another
    /// process is writing it, or where the system refuses.
    pub fn open(folder: &Path, header: Header) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let header = settle_header(folder, header)?;
        let path = folder.join("rows.csv");
        let mut file = lock::open_or_create(&path)?;
        if file.try_lock().is_err() {
            return Err(Error::data(
                &path,
                "another process is writing this record; wait for it, or stop it, then run again",
            ));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(Error::io("read", &path))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text.truncate(whole);
        if text.is_empty() {
            text = text::line(
                KEY_COLUMNS
                    .iter()
                    .copied()
                    .chain(header.scores.iter().map(String::as_str))
                    .chain(["failure"]),
            );
            file.set_len(0).map_err(Error::io("write", &path))?;
            file.seek(SeekFrom::Start(0)).map_err(Error::io("write", &path))?;
            file.write_all(text.as_bytes()).map_err(Error::io("write", &path))?;
        }
        let rows = parse_rows(&path, &text, &header.scores)?;
        let length = text.len() as u64;
        file.set_len(length).map_err(Error::io("write", &path))?;
        file.seek(SeekFrom::Start(length)).map_err(Error::io("write", &path))?;
        let failures = rows.iter().filter(|row| row.failure.is_some()).count() as u64;
        let seen = rows.iter().map(Row::key).collect();
        Ok(Self { folder: folder.to_path_buf(), header, file, length, seen, failures })
    }

    /// Whether the record already holds the image that `key` names.
    pub fn has(&self, key: &Key) -> bool {
        self.seen.contains(key)
    }

    /// The number of rows in the record.
    pub fn rows(&self) -> usize {
        self.seen.len()
    }

    /// Appends one row and hands it to the system.
    ///
    /// # Errors
    /// Where the record already holds this image, where a score is not a column or not finite, where a row with a
    /// failure has scores or one without lacks some, or where the system refuses; then nothing is kept of the row.
    pub fn append(&mut self, row: &Row) -> Result<()> {
        let path = self.folder.join("rows.csv");
        let key = row.key();
        if self.seen.contains(&key) {
            return Err(Error::data(&path, format!("the record already holds a row for {key}")));
        }
        let line = text::row_line(row, &self.header.scores)
            .map_err(|message| Error::data(&path, format!("row for {key}: {message}")))?;
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // A half-written line would be dropped on resuming anyway; cutting it now keeps this process honest too.
            let _ = self.file.set_len(self.length);
            let _ = self.file.seek(SeekFrom::Start(self.length));
            return Err(Error::Io { action: "write", path, source });
        }
        self.length += line.len() as u64;
        self.failures += u64::from(row.failure.is_some());
        self.seen.insert(key);
        Ok(())
    }

    /// Writes the loss trace of the training behind this cell, replacing an earlier one.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn write_trace(&self, steps: &[Step]) -> Result<()> {
        write_trace(&self.folder, steps)
    }

    /// Keeps an image for people to look at; one that is kept again replaces the former.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn keep_image(&mut self, row: &Row, text: &str, png: &[u8]) -> Result<()> {
        let folder = self.folder.join(IMAGES);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let file = format!("{}.{}.{}.png", row.condition, row.prompt, row.noise_seed);
        replace_file(&folder.join(&file), png)?;
        self.header.images.retain(|kept| kept.file != file);
        self.header.images.push(Kept {
            file,
            condition: row.condition.clone(),
            prompt: row.prompt,
            text: text.to_owned(),
            noise_seed: row.noise_seed,
            digest: Digest::of(png),
        });
        self.header.images.sort_by(|a, b| a.file.cmp(&b.file));
        // An interrupted record must know its images when it is opened again.
        write_header(&self.folder, &self.header)
    }

    /// Keeps what was written about the user that a condition stands for.
    pub fn keep_profile(&mut self, condition: &str, profile: &str) {
        self.header.profiles.insert(condition.to_owned(), profile.to_owned());
    }

    /// Adds `seconds` to the clock of a phase such as `train`.
    pub fn add_seconds(&mut self, phase: &str, seconds: f64) {
        *self.header.seconds.entry(phase.into()).or_default() += seconds;
    }

    /// Adds to a count such as `train_evaluations`.
    pub fn add_count(&mut self, name: &str, count: u64) {
        *self.header.counts.entry(name.into()).or_default() += count;
    }

    /// Declares the record complete: counts and seals its rows.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn finish(mut self) -> Result<Header> {
        let path = self.folder.join("rows.csv");
        self.file.sync_all().map_err(Error::io("write", &path))?;
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        self.header.counts.insert("rows".into(), self.seen.len() as u64);
        self.header.counts.insert("failures".into(), self.failures);
        self.header.rows_digest = Some(Digest::of(&bytes));
        self.header.finished = Some(now());
        write_header(&self.folder, &self.header)?;
        Ok(self.header)
    }
}

/// Writes the trace of a training run beside whatever it belongs to.
///
/// # Errors
/// Where the system refuses.
pub fn write_trace(folder: &Path, steps: &[Step]) -> Result<()> {
    replace_file(&folder.join("trace.csv"), text::trace(steps).as_bytes())
}

/// The header that stands in `folder`, or the new one, written.
fn settle_header(folder: &Path, mut header: Header) -> Result<Header> {
    let path = folder.join("header.json");
    if !path.exists() {
        header.schema = SCHEMA;
        header.started = now();
        write_header(folder, &header)?;
        return Ok(header);
    }
    let mut standing = read_header(folder)?;
    if standing.cell != header.cell || standing.scores != header.scores {
        return Err(Error::data(
            &path,
            format!(
                "belongs to cell {} with scores {}, expected cell {} with scores {}; remove the folder {} and run again",
                standing.cell,
                standing.scores.join(" "),
                header.cell,
                header.scores.join(" "),
                folder.display()
            ),
        ));
    }
    if standing.finished.is_some() {
        return Err(Error::data(&path, "this record is complete, nothing may be added to it"));
    }
    let binary = header.digests.remove("binary");
    standing.resumed.push(Resumed { at: now(), provenance: header.provenance, binary });
    write_header(folder, &standing)?;
    Ok(standing)
}

fn write_header(folder: &Path, header: &Header) -> Result<()> {
    let mut text = serde_json::to_string_pretty(header).expect("a header is plain data, JSON can hold it");
    text.push('\n');
    replace_file(&folder.join("header.json"), text.as_bytes())
}

/// Replaces a file so that a reader sees the old one or the new one, never a part.
///
/// # Errors
/// Where the system refuses.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    // Two processes, or threads, that write the same file each finish their own.
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let count = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let partial = with_suffix(path, &format!(".{}-{count}.partial", std::process::id()));
    let mut file = File::create(&partial).map_err(Error::io("create", &partial))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(source) = written {
        let _ = std::fs::remove_file(&partial);
        return Err(Error::Io { action: "write", path: path.to_path_buf(), source });
    }
    std::fs::rename(&partial, path).map_err(Error::io("write", path))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;
