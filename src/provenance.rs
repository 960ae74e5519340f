//! Where a result comes from: the code (git), the machine, the versions, the clock.
//!
//! Outside a git repository the code's state is recorded as unknown, which is not an error. Nothing that names a
//! person or holds a secret is recorded: remotes lose their credentials and are left out where they are folders; the
//! host's name and the environment stay out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::units::Digest;

mod code;
pub mod gpu;
mod machine;

pub use code::{Difference, git};
pub use machine::{available_memory_mib, free_bytes, machine};

/// The code and the machine behind a record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The state of the repository; `None` outside one.
    pub git: Option<Git>,
    /// The machine.
    pub machine: Machine,
    /// Versions by name: `ppd`, `rustc`, the tensor library.
    pub versions: BTreeMap<String, String>,
    /// The command line's arguments, without the program's path; of absolute paths the last part alone.
    pub arguments: Vec<String>,
}

/// The state of a git repository.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Git {
    /// The commit at HEAD; `None` before the first commit.
    pub commit: Option<String>,
    /// The branch; `None` on a detached HEAD.
    pub branch: Option<String>,
    /// The URL of `origin` without credentials; `None` where it is a folder of this machine.
    pub remote: Option<String>,
    /// The digest of `git diff --binary HEAD`; `None` where nothing differs. Its text stands beside the records, in
    /// `code/<first twelve digits>.diff`.
    pub diff: Option<Digest>,
    /// Whether that text was cut at [`Git::DIFF_BYTES`]; the digest is that of the whole.
    pub diff_cut: bool,
    /// The files that git does not know and does not ignore, at most [`Git::UNTRACKED`].
    pub untracked: Vec<Untracked>,
    /// How many more untracked files there are.
    pub untracked_omitted: u64,
}

impl Git {
    /// The most untracked files that are listed.
    pub const UNTRACKED: usize = 100;
    /// The size above which an untracked file is named but not digested.
    pub const UNTRACKED_BYTES: u64 = 16 << 20;
    /// The most text of a difference that is kept.
    pub const DIFF_BYTES: usize = 4 << 20;
}

/// A file that git does not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Untracked {
    /// Its path from the repository's root.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its digest; `None` for a large file.
    pub digest: Option<Digest>,
}

/// The machine that ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The operating system and its architecture.
    pub system: String,
    /// The processor's model.
    pub processor: String,
    /// The vector instructions at hand: `avx2`, `fma`, `avx512f` and their like.
    pub features: Vec<String>,
    /// The worker threads that were used.
    pub threads: u64,
    /// The machine's memory in MiB.
    pub memory_mib: u64,
    /// The device that computed: `cpu` or `cuda:0`.
    pub device: String,
}

impl Provenance {
    /// The state of the repository around `folder` and of this machine, with the difference's text. `outputs` are the
    /// folders that runs write to.
    ///
    /// # Errors
    /// Where a repository is there but cannot be read.
    pub fn gather(
        folder: &Path,
        outputs: &[&Path],
        threads: usize,
        device: &str,
    ) -> Result<(Self, Option<Difference>)> {
        let (git, difference) = match git(folder, outputs)? {
            Some((git, difference)) => (Some(git), difference),
            None => (None, None),
        };
        let versions = [
            ("ppd", env!("CARGO_PKG_VERSION")),
            ("rustc", env!("PPD_RUSTC")),
            ("candle", env!("PPD_CANDLE")),
        ];
        let provenance = Self {
            git,
            machine: machine(threads, device),
            versions: versions.map(|(name, version)| (name.into(), version.into())).into(),
            arguments: std::env::args().skip(1).map(|argument| without_folders(&argument)).collect(),
        };
        Ok((provenance, difference))
    }
}

/// An argument in which an absolute path, which may name a person or a machine, has lost its folders.
fn without_folders(argument: &str) -> String {
    let (key, value) = argument.split_once('=').map_or(("", argument), |(key, value)| (key, value));
    let path = Path::new(value);
    match path.file_name().filter(|_| path.is_absolute()) {
        Some(name) if key.is_empty() => format!("…/{}", name.to_string_lossy()),
        Some(name) => format!("{key}=…/{}", name.to_string_lossy()),
        None => argument.to_owned(),
    }
}

/// The digest of a file's bytes, read in pieces.
///
/// # Errors
/// Where the system refuses.
pub fn file_digest(path: &Path) -> Result<Digest> {
    use sha2::Digest as _;
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let mut hasher = sha2::Sha256::new();
    std::io::copy(&mut std::io::BufReader::with_capacity(1 << 20, file), &mut hasher)
        .map_err(Error::io("read", path))?;
    Ok(Digest::from_hasher(hasher))
}

/// The digest of the running program.
///
/// # Errors
/// Where the system does not tell which file it is, or does not let it be read.
pub fn binary_digest() -> Result<Digest> {
    let path = std::env::current_exe().map_err(Error::io("find", PathBuf::from("the program's own file")))?;
    file_digest(&path)
}

/// The time in UTC, to the second, as `2025-01-31T12:00:00Z`.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    utc(since)
}

/// Seconds since 1970 as a date and a time (days to civil date after Howard Hinnant's algorithm).
fn utc(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    let shifted = days + 719_468; // from 0000-03-01, so that leap days end a year
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn arguments_lose_the_folders_of_absolute_paths() {
        for (given, kept) in [
            ("/home/person/cache", "…/cache"),
            ("--cache=/home/person/cache", "--cache=…/cache"),
            ("results/released", "results/released"),
            ("train.steps=100", "train.steps=100"),
            ("--released", "--released"),
        ] {
            assert_eq!(without_folders(given), kept);
        }
    }
}
