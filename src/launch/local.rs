//! Cells one after another in this process: complete ones are skipped, one that fails does not take others with it.

use crate::error::{Error, Result};
use crate::launch::Session;
use crate::progress::Progress;
use crate::record::FolderLock;
use crate::spec::{Cell, Plan};

/// How a run of a plan ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Cells that were complete before.
    pub complete: usize,
    /// Cells that were completed now.
    pub done: usize,
    /// Cells that failed, each with its reason.
    pub failed: Vec<(String, anyhow::Error)>,
    /// Cells that were not reached.
    pub left: usize,
    /// Whether somebody asked to stop.
    pub stopped: bool,
}

impl Outcome {
    /// Whether every cell is complete.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.left == 0
    }
}

/// Runs the pending cells of a plan; `run_cell` must leave each with a complete record.
///
/// The folder is locked for as long as this runs. A cell that fails is kept for the end, and the others go on, unless
/// the reason (a full disk, a folder that cannot be written) would fail them all.
///
/// # Errors
/// Where the folder is in use by another process, or cannot be written.
pub fn run(
    plan: &Plan,
    session: &Session,
    progress: &Progress,
    mut run_cell: impl FnMut(&Cell, &Progress) -> anyhow::Result<()>,
) -> Result<Outcome> {
    let _lock = FolderLock::acquire(&plan.folder)?;
    let pending = plan.pending();
    let mut outcome = Outcome { complete: plan.cells.len() - pending.len(), ..Outcome::default() };
    if pending.is_empty() {
        return Ok(outcome);
    }
    session.log_look(plan, pending.len())?;
    for (index, cell) in pending.iter().enumerate() {
        if progress.stopping() {
            outcome.stopped = true;
            outcome.left = pending.len() - index;
            break;
        }
        progress.enter(&format!(
            "[{}/{}] {}, seed {}",
            outcome.complete + index + 1,
            plan.cells.len(),
            cell.method.name,
            cell.train_seed.get()
        ));
        let result = run_cell(cell, progress).and_then(|()| match cell.is_complete() {
            true => Ok(()),
            false => {
                Err(Error::data(&cell.folder, "its record is not complete, though nothing failed").into())
            }
        });
        match result {
            Ok(()) => outcome.done += 1,
            Err(reason) if matches!(reason.downcast_ref(), Some(Error::Stopped)) => {
                outcome.stopped = true;
                outcome.left = pending.len() - index;
                break;
            }
            Err(reason) => {
                let hopeless = is_hopeless(&reason);
                progress.note(&format!("{} failed: {reason:#}", cell.id));
                outcome.failed.push((cell.id.clone(), reason));
                if hopeless {
                    outcome.left = pending.len() - index - 1;
                    break;
                }
            }
        }
    }
    Ok(outcome)
}

/// Whether a reason would fail every other cell too.
fn is_hopeless(reason: &anyhow::Error) -> bool {
    use std::io::ErrorKind;
    let kind = match reason.downcast_ref() {
        Some(Error::Io { source, .. }) => source.kind(),
        _ => return false,
    };
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}
