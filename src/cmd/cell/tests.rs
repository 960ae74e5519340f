use std::path::Path;

use candle_core::Device;

use super::*;
use crate::collective::{Alone, Simulated};
use crate::launch::local::{self, Outcome};
use crate::nn::workers::Workers;
use crate::spec::{Places, Request as Asked, Size, Spec};

/// A smoke run's plan of the base and two methods with a training each, on validation prompts.
fn plan(root: &Path, assets: &Path) -> Plan {
    let set = ["data.prompts=validation", "claims=[]", "only=[\"base\",\"dpo\",\"dpo-pooled\"]"];
    plan_of(root, assets, "table1", &set)
}

/// A study's smoke run with changes.
fn plan_of(root: &Path, assets: &Path, study: &str, set: &[&str]) -> Plan {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asked = Asked {
        study: study.into(),
        set: set.iter().map(|&set| set.to_owned()).collect(),
        size: Size::Quick,
        experiments: checkout.join("experiments"),
        ..Asked::default()
    };
    let folder = |name: &str| root.join(name);
    Spec::load(&asked)
        .unwrap()
        .resolve(&Places {
            results: folder("results"),
            figures: folder("figures"),
            cache: folder("cache"),
            assets: assets.to_owned(),
        })
        .unwrap()
}

/// What both ranks of a run do; `second` is the other rank's view of the plan.
fn on_two_ranks(first: &Plan, second: &Plan) -> Outcome {
    let compute = |rank: Simulated| Compute {
        device: Device::Cpu,
        workers: Workers::new(1).unwrap(),
        collective: Box::new(rank),
    };
    let mut ranks = Simulated::ranks(2);
    let (follower, leader) = (compute(ranks.remove(1)), compute(ranks.remove(0)));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| Laboratory::new(second, &follower).follow(&Progress::silent()));
        let laboratory = Laboratory::new(first, &leader);
        let session = Session::begin(&first.places, &first.folder, 1, "cpu").unwrap();
        let outcome = local::run(first, &session, &Progress::silent(), |cell, progress| {
            laboratory.run(cell, &session, progress)
        })
        .unwrap();
        laboratory.announce(None).unwrap();
        other.join().unwrap().unwrap();
        outcome
    })
}

#[test]
fn ranks_go_through_a_plan_together() {
    let root = tempfile::tempdir().unwrap();
    let plan = plan(root.path(), &Path::new(env!("CARGO_MANIFEST_DIR")).join("assets"));
    let outcome = on_two_ranks(&plan, &plan);
    assert_eq!((outcome.done, outcome.failed.len()), (plan.cells.len(), 0), "{:?}", outcome.failed);
    // Again: nothing is trained, and the other rank is dismissed at once.
    assert_eq!(on_two_ranks(&plan, &plan).complete, plan.cells.len());
}

#[test]
fn a_rank_that_fails_takes_the_training_with_it_and_leaves_nobody_waiting() {
    let root = tempfile::tempdir().unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let first = plan(root.path(), &assets);
    // The other rank finds no weights: its plan is made, its assets are gone.
    let mut second = plan(root.path(), &assets);
    second.places.assets = root.path().join("nowhere");
    let outcome = on_two_ranks(&first, &second);
    assert_eq!((outcome.done, outcome.failed.len()), (1, 2), "the base needs no other rank");
    for (cell, reason) in &outcome.failed {
        assert!(format!("{reason:#}").contains("another rank failed"), "{cell}: {reason:#}");
    }
}

#[test]
fn a_second_beta_finds_all_errors_of_the_reference_in_one_file() {
    let root = tempfile::tempdir().unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let set = ["sweep.axes={\"objective.beta\"=[0.1,2.0],\"train.learning_rate\"=[1e-4]}"];
    let plan = plan_of(root.path(), &assets, "beta", &set);
    let compute =
        || Compute { device: Device::Cpu, workers: Workers::new(1).unwrap(), collective: Box::new(Alone) };
    let trained: Vec<&Cell> = plan.cells.iter().filter(|cell| cell.train_key.is_some()).collect();
    assert_eq!(trained.len(), 2);
    let evaluated: Vec<u64> = trained
        .iter()
        .map(|cell| {
            // Each opens everything anew, as another process would.
            let compute = compute();
            let laboratory = Laboratory::new(&plan, &compute);
            laboratory.adapter(cell, cell.train_key.as_ref().unwrap(), &Progress::silent()).unwrap();
            laboratory.base().unwrap().prior.denoiser.evaluations()
        })
        .collect();
    let train = &trained[0].method.train;
    let policy = 2 * (train.steps * train.pairs_per_step) as u64;
    assert_eq!(evaluated, [2 * policy, policy], "the second evaluates the policy alone");
    let stored = std::fs::read_dir(plan.places.cache.join("reference")).unwrap().count();
    assert_eq!(stored, 1, "one file, whatever β");
}

#[test]
fn an_image_that_fails_takes_no_other_with_it() {
    let root = |x: &f64| match x.sqrt() {
        root if root.is_finite() => Ok(root),
        value => Err(Error::NonFinite { what: "a root".into(), value, place: format!("item {x}") }),
    };
    let make = |items: &[f64]| items.iter().map(root).collect::<Result<Vec<f64>>>();
    assert_eq!(one_by_one(&[1.0, 4.0], make).unwrap(), [Ok(1.0), Ok(2.0)]);
    let made = one_by_one(&[1.0, -4.0, 9.0], make).unwrap();
    assert_eq!((&made[0], &made[2]), (&Ok(1.0), &Ok(3.0)));
    assert!(made[1].as_ref().unwrap_err().contains("a root is not finite"), "{made:?}");
    let full = |_: &[f64]| -> Result<Vec<f64>> { Err(Error::Stopped) };
    assert!(one_by_one(&[1.0], full).is_err(), "what is nobody's fault ends them all");
}
