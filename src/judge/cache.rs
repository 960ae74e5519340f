//! Answers that were paid for, kept: a file a judge, to which lines are only ever added.
//!
//! A line is written and handed to the disk as soon as its answer has been read, so a killed run repeats no call whose answer was
//! written; a call whose answer was on its way, or arrived in the moment before the line was written, is asked again. Only final
//! answers are kept: verdicts, refusals, and what could not be read. Other processes may add to the same file: each locks it
//! while it adds, and reads what the others added since.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::judgement::Outcome;
use crate::units::Digest;

/// A judge's answer to a question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What it was.
    pub outcome: Outcome,
    /// The tokens that the judge read, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_in: Option<u64>,
    /// The tokens that it wrote, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_out: Option<u64>,
    /// The model and the fingerprint that an endpoint says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl Answer {
    /// An answer without counts of tokens.
    pub fn of(outcome: Outcome) -> Self {
        Self { outcome, tokens_in: None, tokens_out: None, endpoint: None }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: Digest,
    answer: Answer,
}

/// The answers of one judge.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Up to where the file was read: the end of a line.
    read: u64,
    answers: HashMap<Digest, Answer>,
    damaged: usize,
}

impl Cache {
    /// Opens a judge's answers below `folder`, making the file where it is missing.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn open(folder: &Path, identity: &Digest) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(format!("{}.jsonl", identity.short()));
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(Error::io("open", &path))?;
        let mut state = State { file, read: 0, answers: HashMap::new(), damaged: 0 };
        state.catch_up(&path)?;
        Ok(Self { path, state: Mutex::new(state) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of answers.
    pub fn len(&self) -> usize {
        self.state().answers.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lines that hold no answer, such as those that a failing disk left; their questions are asked again.
    pub fn damaged(&self) -> usize {
        self.state().damaged
    }

    /// The answer to a question.
    pub fn get(&self, key: &Digest) -> Option<Answer> {
        self.state().answers.get(key).cloned()
    }

    /// Reads what other processes added.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn refresh(&self) -> Result<()> {
        self.state().catch_up(&self.path)
    }

    /// Keeps an answer, and returns the one that is kept: another process's, where that came first.
    ///
    /// # Errors
    /// Where the answer is not final, or the system refuses: then the answer is not kept.
    pub fn put(&self, key: &Digest, answer: Answer) -> Result<Answer> {
        if !answer.outcome.is_final() {
            let state = answer.outcome.state();
            return Err(Error::Judge(format!("a {state} is no answer, and only answers are kept")));
        }
        let mut state = self.state();
        state.file.lock().map_err(Error::io("lock", &self.path))?;
        let kept = state.append(&self.path, key, answer);
        let freed = state.file.unlock().map_err(Error::io("unlock", &self.path));
        let kept = kept?;
        freed?;
        Ok(kept)
    }

    /// Forgets, in this process alone, the answers that could not be read, so that they are asked for again; the new answers
    /// are added behind the old ones, and the last one counts.
    pub fn forget_unreadable(&self) {
        self.state().answers.retain(|_, answer| !matches!(answer.outcome, Outcome::Unreadable { .. }));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it held the lock has written a whole line or none.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reads the whole lines behind those that were read.
    fn catch_up(&mut self, path: &Path) -> Result<()> {
        let length = self.file.metadata().map_err(Error::io("read", path))?.len();
        if length <= self.read {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity((length - self.read) as usize);
        self.file.seek(SeekFrom::Start(self.read)).map_err(Error::io("read", path))?;
        self.file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        // What stands behind the last line's end is being written, or was torn.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Line>(line) {
                Ok(line) => drop(self.answers.insert(line.key, line.answer)),
                Err(_) => self.damaged += 1,
            }
        }
        self.read += whole as u64;
        Ok(())
    }

    fn append(&mut self, path: &Path, key: &Digest, answer: Answer) -> Result<Answer> {
        let readable = |answer: &&Answer| !matches!(answer.outcome, Outcome::Unreadable { .. });
        self.catch_up(path)?;
        if let Some(standing) = self.answers.get(key).filter(readable) {
            return Ok(standing.clone());
        }
        let line = Line { key: key.clone(), answer };
        let mut text = serde_json::to_string(&line).map_err(|fault| Error::Judge(fault.to_string()))?;
        text.push('\n');
        // Nobody else writes now, so that a line without an end is one that a killed process left.
        let start = self.read;
        let written = self
            .file
            .set_len(start)
            .and_then(|()| self.file.seek(SeekFrom::Start(start)))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            let _ = self.file.set_len(start);
            return Err(Error::Io { action: "write", path: path.to_owned(), source });
        }
        self.read = start + text.len() as u64;
        self.answers.insert(line.key, line.answer.clone());
        Ok(line.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::Slot;

    fn verdict(slot: Slot) -> Answer {
        let outcome = Outcome::Verdict { slot, log_odds: Some(-0.1) };
        Answer { tokens_in: Some(7), endpoint: Some("m fp".into()), ..Answer::of(outcome) }
    }

    fn key(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn answers_survive_torn_and_damaged_lines() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), &key("judge")).unwrap();
        cache.put(&key("a"), verdict(Slot::A)).unwrap();
        cache.put(&key("b"), Answer::of(Outcome::Refusal { raw: "no\n\"no\"".into() })).unwrap();
        let whole = std::fs::read(cache.path()).unwrap();
        let path = cache.path().to_owned();
        drop(cache);
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        // Killed at every byte of the second line.
        for length in first..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let cache = Cache::open(folder.path(), &key("judge")).unwrap();
            assert_eq!((cache.len(), cache.damaged()), (1, 0));
            cache.put(&key("c"), verdict(Slot::B)).unwrap();
            let again = Cache::open(folder.path(), &key("judge")).unwrap();
            assert_eq!(again.get(&key("a")), Some(verdict(Slot::A)));
            assert_eq!(again.get(&key("c")), Some(verdict(Slot::B)));
            assert_eq!((again.len(), again.damaged()), (2, 0));
        }
        std::fs::write(&path, [&whole[..first], b"\0\0\0\n", &whole[first..]].concat()).unwrap();
        let cache = Cache::open(folder.path(), &key("judge")).unwrap();
        assert_eq!((cache.len(), cache.damaged()), (2, 1));
    }

    #[test]
    fn two_processes_see_each_other_and_the_first_answer_stands() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Cache::open(folder.path(), &key("judge")).unwrap();
        let (one, other) = (open(), open());
        one.put(&key("a"), verdict(Slot::A)).unwrap();
        assert_eq!(other.put(&key("a"), verdict(Slot::B)).unwrap(), verdict(Slot::A));
        other.put(&key("b"), verdict(Slot::B)).unwrap();
        assert!(one.get(&key("b")).is_none());
        one.refresh().unwrap();
        assert_eq!(one.get(&key("b")), Some(verdict(Slot::B)));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let mine = open();
                scope.spawn(move || {
                    for i in 0..25 {
                        mine.put(&key(&format!("{}", thread % 2 * 100 + i)), verdict(Slot::A)).unwrap();
                    }
                });
            }
        });
        let text = std::fs::read_to_string(one.path()).unwrap();
        assert_eq!((open().len(), text.lines().count(), open().damaged()), (52, 52, 0));
    }

    #[test]
    fn what_is_no_answer_is_not_kept_and_what_could_not_be_read_may_be_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), &key("judge")).unwrap();
        for outcome in
            [Outcome::TransportError { reason: "500".into() }, Outcome::OverBudget { reason: "calls".into() }]
        {
            assert!(cache.put(&key("a"), Answer::of(outcome)).is_err());
        }
        cache.put(&key("a"), Answer::of(Outcome::Unreadable { raw: "well".into() })).unwrap();
        cache.put(&key("b"), verdict(Slot::A)).unwrap();
        cache.forget_unreadable();
        assert_eq!(cache.len(), 1);
        cache.put(&key("a"), verdict(Slot::B)).unwrap();
        let again = Cache::open(folder.path(), &key("judge")).unwrap();
        assert_eq!(again.get(&key("a")), Some(verdict(Slot::B)));
    }
}
