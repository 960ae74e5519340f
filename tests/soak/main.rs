//! The second stage, `cargo test --test soak`: what takes minutes and is held to tighter bounds than the suite can.

use ppd::rng::Stream;

mod cache;
mod coverage;
mod full_size;
mod judge;
mod judging;
// The suite uses the rest of it.
#[allow(dead_code)]
#[path = "../suite/judge_server.rs"]
mod judge_server;
mod memory;

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

/// 95 % ± 2 of 1,000 studies, nearly three standard errors.
fn hold_of_thousand(name: &str, covered: u64) -> bool {
    println!("{name}: {covered} of 1000");
    (930..=970).contains(&covered)
}

#[test]
fn soak_a_judges_audit_and_the_corrected_rate_cover_95_percent() {
    let mut failed = Vec::new();
    for (name, study) in judging::Study::designs() {
        for (of, covered) in ["bias", "noise", "corrected rate"].into_iter().zip(study.coverage(1000)) {
            let name = format!("{name}, {of}");
            if !hold_of_thousand(&name, covered) {
                failed.push(name);
            }
        }
    }
    assert!(failed.is_empty(), "not 95 ± 2 %: {failed:?}");
}

#[test]
fn soak_win_rates_over_users_and_captions_cover_95_percent() {
    let failed: Vec<&str> = judging::Layout::designs()
        .into_iter()
        .filter(|(name, layout)| !hold(name, layout.coverage(STUDIES, RESAMPLES) as f64 / STUDIES as f64))
        .map(|(name, _)| name)
        .collect();
    assert!(failed.is_empty(), "not 95 ± 1 %: {failed:?}");
}
