//! The second stage, `cargo test --test soak`: what takes minutes and is held to tighter bounds than the suite can.

use std::time::Instant;

use ppd::rng::{Stream, stream};
use ppd::stats::Clusters;
use ppd::units::Seed;

mod coverage;

/// 10,000 studies leave a standard error of 0.22 points.
const STUDIES: u64 = 10_000;
const RESAMPLES: usize = 999;

fn hold(name: &str, covered: f64) -> bool {
    println!("{name}: {:.2} %", 100.0 * covered);
    (covered - 0.95).abs() <= 0.01
}

#[test]
fn soak_crossed_intervals_cover_95_percent() {
    let failed: Vec<String> = coverage::designs()
        .into_iter()
        .filter(|(name, design)| !hold(name, design.coverage(STUDIES, RESAMPLES)))
        .map(|(name, _)| name)
        .collect();
    assert!(failed.is_empty(), "not 95 ± 1 %: {failed:?}");
}

#[test]
fn soak_cluster_intervals_cover_95_percent() {
    let failed: Vec<String> = [
        ("100 clusters, normal", 100, Stream::normal as fn(&mut Stream) -> f64),
        ("300 clusters, normal", 300, Stream::normal),
        ("100 clusters, exponential", 100, coverage::exponential),
        ("300 clusters, exponential", 300, coverage::exponential),
        ("300 clusters, chi-squared", 300, |stream| stream.normal().powi(2) - 1.0),
    ]
    .into_iter()
    .filter(|&(name, clusters, effect)| {
        !hold(name, coverage::cluster_coverage(clusters, effect, STUDIES, RESAMPLES))
    })
    .map(|(name, ..)| name.to_owned())
    .collect();
    assert!(failed.is_empty(), "not 95 ± 1 %: {failed:?}");
}

#[test]
fn soak_cluster_bootstrap_is_fast() {
    let mut stream = stream(Seed::new(0), "clusters", 0);
    let values: Vec<f64> = (0..4896).map(|_| stream.normal()).collect();
    let labels: Vec<u64> = (0..4896).map(|row| row / 3).collect();
    let clusters = Clusters::new(&values, &labels).expect("finite");
    assert_eq!(clusters.count(), 1632);
    let start = Instant::now();
    let estimate = clusters.inference(10_000, Seed::new(1)).expect("valid").estimate(0.95);
    let taken = start.elapsed();
    println!("10,000 BCa resamples of 4,896 rows in 1,632 clusters: {taken:?}");
    assert!(estimate.covers(0.0), "{estimate:?}");
    // 32 ms on two free cores; the bound leaves room for a machine that is busy with the tests beside this one.
    assert!(taken.as_secs() < 5, "{taken:?}");
}
