use std::path::Path;

use candle_core::Device;

use super::*;
use crate::collective::Simulated;
use crate::launch::local::{self, Outcome};
use crate::nn::workers::Workers;
use crate::spec::{Places, Request as Asked, Size, Spec};

/// A smoke run's plan of the base and two methods with a training each, on validation prompts.
fn plan(root: &Path, assets: &Path) -> Plan {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let set = ["data.prompts=validation", "claims=[]", "only=[\"base\",\"dpo\",\"dpo-pooled\"]"];
    let asked = Asked {
        study: "table1".into(),
        set: set.map(str::to_owned).to_vec(),
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
