//! The statistics of a judge, held to what their intervals promise in simulated studies.

use ppd::stats::proportion::{Alternative, binomial_test};

#[path = "../soak/judging.rs"]
mod studies;

/// The soak target holds ten times as many of more designs.
const STUDIES: u64 = 200;

/// A count that a coverage of 95 % would give once in a thousand times is none of it.
fn is_95_percent(covered: u64) -> bool {
    binomial_test(covered, STUDIES, 0.95, Alternative::TwoSided).expect("a count") > 0.001
}

#[test]
fn audits_and_corrections_cover_in_a_short_simulation() {
    let short = [
        "ties as half, choices",
        "no bias, no noise",
        "tuned, probabilities, much noise",
        "users in general",
    ];
    let mut seen = 0;
    for (name, study) in studies::Study::designs().into_iter().filter(|(name, _)| short.contains(name)) {
        let covered = study.coverage(STUDIES);
        assert!(
            covered.into_iter().all(is_95_percent),
            "{name}: bias, noise, rate in {covered:?} of {STUDIES}"
        );
        seen += 1;
    }
    assert_eq!(seen, short.len());
}

#[test]
fn win_rates_cover_in_a_short_simulation() {
    for (name, layout) in studies::Layout::designs() {
        let covered = layout.coverage(STUDIES, 299);
        assert!(is_95_percent(covered), "{name}: {covered} of {STUDIES}");
    }
}
