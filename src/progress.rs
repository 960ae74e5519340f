//! How work tells how far it is, and learns that it should stop.
//!
//! Work on any floor takes a [`Progress`]: it counts, and it asks [`Progress::check`] between units of work, so that
//! Ctrl-C ends a run at a clean place. What is shown, and where, is decided by whoever made the [`Observer`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Whoever watches work being done.
pub trait Observer: Send + Sync {
    /// Work on something with a name of its own begins, such as one cell of a plan; phases follow.
    fn enter(&self, name: &str);
    /// A phase of `total` units begins; it replaces the one before it.
    fn begin(&self, phase: &str, total: u64);
    /// A phase of `total` bytes begins, to be shown as such.
    fn begin_bytes(&self, phase: &str, total: u64) {
        self.begin(phase, total);
    }
    /// `units` more are done.
    fn advance(&self, units: u64);
    /// Something worth a line of its own, such as a loss.
    fn note(&self, text: &str);
}

/// Watches nothing.
struct Nobody;

impl Observer for Nobody {
    fn enter(&self, _: &str) {}
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
}

/// The handle that work holds: cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Progress {
    stop: Arc<AtomicBool>,
    observer: Arc<dyn Observer>,
}

impl Progress {
    /// A handle that reports to `observer` and stops when `stop` becomes true.
    pub fn new(stop: Arc<AtomicBool>, observer: Arc<dyn Observer>) -> Self {
        Self { stop, observer }
    }

    /// A handle that nobody watches and nobody stops: for tests and for callers that do not care.
    pub fn silent() -> Self {
        Self::new(Arc::default(), Arc::new(Nobody))
    }

    /// Says what the phases that follow belong to.
    pub fn enter(&self, name: &str) {
        self.observer.enter(name);
    }

    /// Begins a phase, such as `train`, of `total` units.
    pub fn begin(&self, phase: &str, total: usize) {
        self.observer.begin(phase, total as u64);
    }

    /// Begins a phase, such as a download, of `total` bytes.
    pub fn begin_bytes(&self, phase: &str, total: u64) {
        self.observer.begin_bytes(phase, total);
    }

    /// Counts `units` as done.
    pub fn advance(&self, units: usize) {
        self.observer.advance(units as u64);
    }

    /// Says something worth a line of its own.
    pub fn note(&self, text: &str) {
        self.observer.note(text);
    }

    /// Whether the work should stop at the next clean place.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Ends the work with an error where it should stop; call it between units of work.
    ///
    /// # Errors
    /// [`Error::Stopped`], where somebody asked for it.
    pub fn check(&self) -> Result<()> {
        if self.stopping() { Err(Error::Stopped) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("stopping", &self.stopping()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stops_where_it_asks() {
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Progress::new(stop.clone(), Arc::new(Nobody));
        assert!(progress.check().is_ok());
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(progress.clone().check(), Err(Error::Stopped)));
        assert!(Progress::silent().check().is_ok());
    }
}
