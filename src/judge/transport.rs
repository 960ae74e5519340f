//! How calls reach a judge: as many at a time as it bears, patiently, and each until it ends in a state.
//!
//! The number of calls at a time grows by about one a round of successes and is halved where the judge says that it is too many,
//! or does not answer in time (additive increase, multiplicative decrease). A server's wish to wait holds back all calls. Other
//! failures are tried again after a random time below a bound that doubles (exponential backoff with full jitter).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::budget::{Budget, Price, Spent};
use super::cache::Answer;
use crate::error::{Error, Result};
use crate::judgement::Outcome;
use crate::progress::Progress;
use crate::rng::stream;
use crate::units::{Digest, Seed};

/// How patiently and how eagerly a judge is asked. None of it belongs to the judge's identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The most calls at a time.
    pub concurrency: usize,
    /// The number of calls at a time to begin with.
    pub start_concurrency: usize,
    /// How often a question is sent before it ends as a transport error.
    pub attempts: u32,
    /// How long a call may take, in seconds.
    pub timeout_seconds: f64,
    /// The bound of the first pause, in seconds.
    pub backoff_seconds: f64,
    /// The bound of the longest pause, in seconds.
    pub longest_backoff_seconds: f64,
    /// The longest that a server's wish to wait is granted, in seconds.
    pub longest_wait_seconds: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: 8,
            start_concurrency: 2,
            attempts: 6,
            timeout_seconds: 120.0,
            backoff_seconds: 0.5,
            longest_backoff_seconds: 30.0,
            longest_wait_seconds: 120.0,
        }
    }
}

impl Limits {
    /// One call at a time, for a judge on this machine.
    pub(super) fn alone() -> Self {
        Self { concurrency: 1, start_concurrency: 1, attempts: 1, ..Self::default() }
    }

    /// # Errors
    /// Where nothing could be asked, or a time is negative or no number.
    pub(super) fn check(&self) -> Result<()> {
        let times = [
            ("timeout_seconds", self.timeout_seconds),
            ("backoff_seconds", self.backoff_seconds),
            ("longest_backoff_seconds", self.longest_backoff_seconds),
            ("longest_wait_seconds", self.longest_wait_seconds),
        ];
        // A day is longer than any of them makes sense, and no duration overflows below it.
        if let Some((name, time)) = times.into_iter().find(|(_, time)| !(0.0..=86400.0).contains(time)) {
            return Err(Error::Spec(format!("limits.{name} is {time}; expected 0 to 86400 seconds")));
        }
        if self.timeout_seconds == 0.0 {
            return Err(Error::Spec(
                "limits.timeout_seconds is 0; expected more, no call takes no time".into(),
            ));
        }
        let counts = [
            ("concurrency", self.concurrency),
            ("start_concurrency", self.start_concurrency),
            ("attempts", self.attempts as usize),
        ];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => Err(Error::Spec(format!("limits.{name} is 0; expected at least 1"))),
            None => Ok(()),
        }
    }
}

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attempt {
    /// With an answer.
    Answer(Answer),
    /// With nothing, and the next attempt may do better.
    Again {
        /// What happened.
        reason: String,
        /// How long the server asks to wait.
        wait: Option<Duration>,
        /// Whether fewer calls at a time may help.
        crowded: bool,
        /// Whether the judge may have worked for it, so that it may be charged.
        charged: bool,
    },
    /// With nothing, and the next attempt at this question would end like it.
    Never(String),
    /// With nothing, and so would every question.
    Stop(String),
}

/// How many calls at a time a judge bears.
pub(super) struct Gate {
    most: f64,
    state: Mutex<GateState>,
    moved: Condvar,
}

struct GateState {
    limit: f64,
    active: usize,
    closed_until: Instant,
    last_cut: Instant,
}

impl Gate {
    pub(super) fn new(limits: &Limits) -> Self {
        let (most, now) = (limits.concurrency as f64, Instant::now());
        let limit = (limits.start_concurrency as f64).min(most);
        let state = GateState { limit, active: 0, closed_until: now, last_cut: now };
        Self { most, state: Mutex::new(state), moved: Condvar::new() }
    }

    /// Waits for a place, and says when it was given.
    fn enter(&self, progress: &Progress) -> Result<Instant> {
        let mut state = self.state();
        loop {
            progress.check()?;
            let now = Instant::now();
            if now >= state.closed_until && state.active < state.limit as usize {
                state.active += 1;
                return Ok(now);
            }
            let waited = self.moved.wait_timeout(state, Duration::from_millis(20));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn leave(&self, entered: Instant, attempt: &Attempt, longest: Duration) {
        let mut state = self.state();
        state.active -= 1;
        match attempt {
            Attempt::Answer(_) => state.limit = (state.limit + 1.0 / state.limit).min(self.most),
            Attempt::Again { wait, crowded, .. } => {
                // Calls that left before the last cut say nothing about the limit since.
                if *crowded && entered >= state.last_cut {
                    state.limit = (state.limit / 2.0).max(1.0);
                    state.last_cut = Instant::now();
                }
                if let Some(wait) = wait.filter(|wait| *wait <= longest) {
                    state.closed_until = state.closed_until.max(Instant::now() + wait);
                }
            }
            Attempt::Never(_) | Attempt::Stop(_) => {}
        }
        self.moved.notify_all();
    }

    /// The number of calls at a time that is allowed now.
    pub(super) fn limit(&self) -> f64 {
        self.state().limit
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one question's journey needs.
pub(super) struct Courier<'a> {
    pub(super) limits: &'a Limits,
    pub(super) price: &'a Price,
    pub(super) gate: &'a Gate,
    pub(super) budget: &'a Budget,
    pub(super) progress: &'a Progress,
    /// Why no question reaches the judge any more.
    pub(super) stopped: &'a Mutex<Option<String>>,
}

impl Courier<'_> {
    /// Asks until the question ends in a state.
    ///
    /// # Errors
    /// [`Error::Stopped`], and what is wrong with the question itself, such as an image that cannot be read.
    pub(super) fn ask(
        &self,
        key: &Digest,
        estimate: &Spent,
        mut attempt: impl FnMut() -> Result<Attempt>,
    ) -> Result<Answer> {
        let failed = |reason: String| Ok(Answer::of(Outcome::TransportError { reason }));
        let longest = Duration::from_secs_f64(self.limits.longest_wait_seconds);
        let mut number = 0;
        loop {
            number += 1;
            if let Some(reason) = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return failed(reason);
            }
            let reserved = match self.budget.reserve(estimate, self.progress) {
                Ok(reserved) => reserved,
                Err(Some(reason)) => return Ok(Answer::of(Outcome::OverBudget { reason })),
                Err(None) => return Err(Error::Stopped),
            };
            let entered =
                self.gate.enter(self.progress).inspect_err(|_| self.budget.settle(reserved, None))?;
            let ended = attempt();
            let nothing = Attempt::Never(String::new());
            self.gate.leave(entered, ended.as_ref().unwrap_or(&nothing), longest);
            let ended = ended.inspect_err(|_| self.budget.settle(reserved, None))?;
            let charge = match &ended {
                Attempt::Answer(answer) => Some(Spent::answer(answer, estimate, self.price)),
                Attempt::Again { charged: true, .. } => Some(*estimate),
                _ => None,
            };
            self.budget.settle(reserved, charge);
            match ended {
                Attempt::Answer(answer) => return Ok(answer),
                Attempt::Never(reason) => return failed(reason),
                Attempt::Stop(reason) => {
                    let reason = format!("{reason}; nothing more was asked");
                    *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
                    return failed(reason);
                }
                Attempt::Again { reason, wait, .. } => {
                    if let Some(wait) = wait.filter(|wait| *wait > longest) {
                        return failed(format!(
                            "{reason}; the server asks to wait {} s, longer than longest_wait_seconds grants: run the same \
                             command again then",
                            wait.as_secs()
                        ));
                    }
                    if number >= self.limits.attempts {
                        return failed(format!("{reason}; given up after {number} attempts"));
                    }
                    pause(self.limits, key, number, wait, self.progress)?;
                }
            }
        }
    }
}

/// Waits before the attempt after `number`: for what the server wishes, and a random time.
///
/// # Errors
/// [`Error::Stopped`].
pub(super) fn pause(
    limits: &Limits,
    key: &Digest,
    number: u32,
    wait: Option<Duration>,
    progress: &Progress,
) -> Result<()> {
    let doubled = limits.backoff_seconds * 2f64.powi(number.min(30) as i32 - 1);
    // Where the server says how long to wait, the random time only keeps calls apart.
    let bound = if wait.is_some() { limits.backoff_seconds } else { doubled };
    let bound = bound.min(limits.longest_backoff_seconds);
    let mut jitter = stream(Seed::new(0), &format!("judge backoff {key}"), u64::from(number));
    let pause = wait.unwrap_or_default() + Duration::from_secs_f64(bound * jitter.uniform());
    let until = Instant::now() + pause;
    loop {
        progress.check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Does work number 0 to `count` − 1 on `threads` threads, in this order, until one of it fails.
///
/// # Errors
/// The first.
pub(super) fn in_order(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let first: Mutex<Option<Error>> = Mutex::new(None);
    let keep = |fault: Error| {
        next.store(count, Ordering::Relaxed);
        first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    if let Err(fault) = work(index) {
                        keep(fault);
                    }
                }
            });
        }
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}
