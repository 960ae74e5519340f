use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::error::Error;
use crate::progress::{Observer, Progress};
use crate::record::{Recorder, Row, read_records};
use crate::spec::tests::{plan, with_assets};
use crate::spec::{Cell, Plan};

/// A cell's work that makes up its scores: what the executor must handle is not what the numbers are.
fn work(plan: &Plan, session: &Session, cell: &Cell, progress: &Progress) -> anyhow::Result<()> {
    let header = cell.header(plan, &session.provenance, session.binary.as_ref(), &["clip".into()]);
    let mut recorder = Recorder::open(&cell.folder, header)?;
    for prompt in 0..cell.rows as u32 {
        progress.check()?;
        let row = Row {
            method: cell.method.name.clone(),
            condition: "none".into(),
            train_seed: cell.train_seed.get(),
            prompt,
            noise_seed: 0,
            scores: BTreeMap::from([("clip".into(), f64::from(prompt))]),
            failure: None,
        };
        if !recorder.has(&row.key()) {
            recorder.append(&row)?;
            progress.advance(1);
        }
    }
    recorder.finish()?;
    Ok(())
}

/// Asks to stop after some units of work.
struct StopAfter {
    units: std::sync::Mutex<u64>,
    stop: Arc<AtomicBool>,
}

impl Observer for StopAfter {
    fn enter(&self, _: &str) {}
    fn begin(&self, _: &str, _: u64) {}
    fn note(&self, _: &str) {}
    fn advance(&self, units: u64) {
        let mut left = self.units.lock().unwrap();
        *left = left.saturating_sub(units);
        if *left == 0 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn small(root: &std::path::Path) -> (Plan, Session) {
    let plan = plan(root, "fig3", &["data.num_prompts=5", "only=[\"base\",\"dpo\",\"sft\"]", "claims=[]"]);
    let session = Session::begin(&plan.places, &plan.folder, 2, "cpu").unwrap();
    (plan, session)
}

#[test]
fn a_stopped_run_goes_on_and_ends_with_the_same_records() {
    let root = with_assets();
    let (plan, session) = small(root.path());
    let mut stops = 0;
    loop {
        let stop = Arc::new(AtomicBool::new(false));
        let observer = StopAfter { units: std::sync::Mutex::new(4), stop: stop.clone() };
        let progress = Progress::new(stop, Arc::new(observer));
        let outcome =
            local::run(&plan, &session, &progress, |cell, progress| work(&plan, &session, cell, progress))
                .unwrap();
        if outcome.is_complete() {
            break;
        }
        assert!(outcome.stopped && outcome.failed.is_empty());
        stops += 1;
    }
    assert!(stops > 2, "{stops}");
    let rows = |root: &std::path::Path| -> Vec<Row> {
        read_records(root).unwrap().into_iter().flat_map(|(_, rows)| rows).collect()
    };
    let other = with_assets();
    let (straight, session) = small(other.path());
    local::run(&straight, &session, &Progress::silent(), |cell, progress| {
        work(&straight, &session, cell, progress)
    })
    .unwrap();
    assert_eq!(rows(&plan.folder), rows(&straight.folder));

    let mut called = 0;
    let outcome = local::run(&plan, &session, &Progress::silent(), |_, _| {
        called += 1;
        Ok(())
    });
    let outcome = outcome.unwrap();
    assert_eq!((called, outcome.complete, outcome.done), (0, 3, 0), "a complete plan has nothing to do");
}

#[test]
fn one_failure_leaves_the_others_alone() {
    let root = with_assets();
    let (plan, session) = small(root.path());
    let outcome = local::run(&plan, &session, &Progress::silent(), |cell, progress| {
        if cell.method.name == "dpo" {
            let fault = Error::NonFinite { what: "loss".into(), value: f64::NAN, place: "step 3".into() };
            return Err(anyhow::Error::from(fault).context("training"));
        }
        work(&plan, &session, cell, progress)
    });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.done, outcome.failed.len(), outcome.left), (2, 1, 0));
    assert!(outcome.failed[0].0.starts_with("dpo-s0-"));
    assert!(format!("{:#}", outcome.failed[0].1).contains("loss is not finite (NaN) at step 3"));

    // A cell that says it is done without a complete record is a failure, not a success.
    let outcome = local::run(&plan, &session, &Progress::silent(), |_, _| Ok(())).unwrap();
    assert_eq!((outcome.done, outcome.failed.len()), (0, 1));
}

#[test]
fn a_full_disk_ends_the_run() {
    let root = with_assets();
    let (plan, session) = small(root.path());
    let mut called = 0;
    let outcome = local::run(&plan, &session, &Progress::silent(), |cell, _| {
        called += 1;
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(anyhow::Error::from(Error::Io { action: "write", path: cell.folder.clone(), source })
            .context("rows"))
    });
    assert_eq!((called, outcome.unwrap().left), (1, 2));
}

#[test]
fn two_runs_in_one_folder_are_refused_and_looks_are_logged() {
    let root = with_assets();
    let (plan, session) = small(root.path());
    let outer = local::run(&plan, &session, &Progress::silent(), |cell, progress| {
        let second = local::run(&plan, &session, &Progress::silent(), |_, _| Ok(()));
        assert!(second.unwrap_err().to_string().contains(&format!("process {}", std::process::id())));
        work(&plan, &session, cell, progress)
    });
    assert!(outer.unwrap().is_complete());
    let looks = std::fs::read_to_string(plan.places.results.join("test-looks.csv")).unwrap();
    assert_eq!(looks.lines().count(), 2, "{looks}");
    assert!(looks.contains(",fig3,desk-set-"), "{looks}");
}
