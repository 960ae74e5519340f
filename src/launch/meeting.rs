//! How the processes of one run come to know the same bytes, through files in a folder that all of them see.
//!
//! Files of a run that died may lie there, so neither side believes a file that does not answer its own word: the first
//! rank's bytes are new in each run, the others repeat their digest beside a word of their own, and all go once the first
//! has repeated these words.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::record::replace_file;
use crate::units::Digest;

/// How long ranks wait for each other: a queue may start them minutes apart.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at the folder.
const PAUSE: Duration = Duration::from_millis(20);

/// The bytes that `fresh` makes on the first rank, on every rank.
///
/// # Errors
/// Where the folder cannot be written, or others do not come in time.
pub fn meet(
    folder: &Path,
    (rank, world_size): (usize, usize),
    patience: Duration,
    fresh: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let meeting = Meeting { folder, begun: Instant::now(), patience };
    if rank == 0 { meeting.call(world_size, &fresh()?) } else { meeting.answer(rank) }
}

/// Clears the folder of a meeting that all have left.
///
/// # Errors
/// Where the system refuses.
pub fn adjourn(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder).map_err(Error::io("remove", folder))
}

struct Meeting<'a> {
    folder: &'a Path,
    begun: Instant,
    patience: Duration,
}

impl Meeting<'_> {
    fn offer(&self) -> PathBuf {
        self.folder.join("offer")
    }

    fn answer_of(&self, rank: usize) -> PathBuf {
        self.folder.join(format!("answer-{rank}"))
    }

    fn start(&self) -> PathBuf {
        self.folder.join("start")
    }

    /// The first rank's part.
    fn call(&self, world_size: usize, bytes: &[u8]) -> Result<Vec<u8>> {
        replace_file(&self.offer(), bytes)?;
        let digest = Digest::of(bytes).to_string();
        let word = |rank: usize| {
            let text = std::fs::read_to_string(self.answer_of(rank)).ok()?;
            let (repeated, word) = text.split_once('\n')?;
            (repeated == digest).then(|| word.to_owned())
        };
        loop {
            let words: Vec<Option<String>> = (1..world_size).map(word).collect();
            if let Some(words) = words.iter().cloned().collect::<Option<Vec<_>>>() {
                replace_file(&self.start(), format!("{digest}\n{}", words.join("\n")).as_bytes())?;
                return Ok(bytes.to_vec());
            }
            let absent = words.iter().zip(1..).filter(|(word, _)| word.is_none());
            let absent: Vec<String> = absent.map(|(_, rank): (_, usize)| rank.to_string()).collect();
            self.wait(|| format!("the first rank heard nothing of rank {}", absent.join(", ")))?;
        }
    }

    /// Every other rank's part.
    fn answer(&self, rank: usize) -> Result<Vec<u8>> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let word =
            Digest::of(format!("{} {rank} {}", std::process::id(), now.as_nanos()).as_bytes()).to_string();
        let mut answered = String::new();
        loop {
            if let Ok(bytes) = std::fs::read(self.offer()) {
                let digest = Digest::of(&bytes).to_string();
                if digest != answered {
                    replace_file(&self.answer_of(rank), format!("{digest}\n{word}").as_bytes())?;
                    answered = digest;
                }
                let start = std::fs::read_to_string(self.start()).unwrap_or_default();
                let mut lines = start.lines();
                if lines.next() == Some(answered.as_str()) && lines.any(|line| line == word) {
                    return Ok(bytes);
                }
            }
            self.wait(|| format!("rank {rank} heard nothing of the first rank"))?;
        }
    }

    fn wait(&self, who: impl FnOnce() -> String) -> Result<()> {
        if self.begun.elapsed() > self.patience {
            let (who, seconds) = (who(), self.patience.as_secs());
            return Err(Error::data(
                self.folder,
                format!(
                    "{who} for {seconds} s; all ranks must run, with one --cache that all of them see (their own \
                     messages say more)"
                ),
            ));
        }
        std::thread::sleep(PAUSE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn meeting(folder: &Path, world_size: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
        std::thread::scope(|scope| {
            // The first rank is the last to come.
            let threads: Vec<_> = (0..world_size)
                .rev()
                .map(|rank| {
                    scope.spawn(move || meet(folder, (rank, world_size), SOON, || Ok(bytes.to_vec())))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
        })
    }

    #[test]
    fn all_leave_with_what_the_first_rank_brought_whatever_lies_there() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("job");
        assert_eq!(meeting(&folder, 3, b"old"), vec![b"old".to_vec(); 3]);
        // Nobody adjourned: the files of the former run are there, complete.
        assert_eq!(meeting(&folder, 3, b"new"), vec![b"new".to_vec(); 3]);
        adjourn(&folder).unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn who_does_not_come_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let soon = Duration::from_millis(50);
        let message = meet(folder.path(), (0, 3), soon, || Ok(vec![1])).unwrap_err().to_string();
        assert!(message.contains("rank 1, 2") && message.contains("--cache"), "{message}");
        // The offer of the first rank that gave up is no start.
        let message = meet(folder.path(), (2, 3), soon, || Ok(vec![1])).unwrap_err().to_string();
        assert!(message.contains("rank 2 heard nothing of the first"), "{message}");
    }
}
