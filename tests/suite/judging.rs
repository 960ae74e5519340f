//! The statistics of a judge, held to what their intervals promise in simulated studies.

use ppd::rng::stream;
use ppd::stats::Estimate;
use ppd::stats::judging::correction::{Inclusion, Plan, Scope, Weight};
use ppd::stats::judging::{
    Agreement, Answer, Asked, Audit, Call, Corrected, Interval, Label, Oracle, Predicted, Spread, Verdicts,
    WinRates,
};
use ppd::stats::proportion::{Alternative, binomial_test};
use ppd::units::Seed;

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

/// The interval is in order, holds its value, and lies where the quantity can.
#[track_caller]
fn is_sound(estimate: &Estimate, least: f64, most: f64) {
    let Estimate { value, low, high, .. } = *estimate;
    assert!(
        value.is_finite() && low <= value && value <= high && low >= least && high <= most,
        "{estimate:?}"
    );
}

#[test]
fn small_and_odd_tables_give_sound_intervals() {
    for index in 0..400 {
        let mut draws = stream(Seed::new(index), "odd tables", 0);
        let (users, each, one_sided) =
            (1 + draws.below(5) as u64, 1 + draws.below(4) as u64, draws.uniform());
        let scale = *draws.pick(&[0.0, 1e-9, 0.5, 3.0, 40.0, 1e6]);
        let interval = Interval { level: 0.95, resamples: 49, seed: Seed::new(index) };
        let (mut asked, mut answers, mut calls, mut others) = (vec![], vec![], vec![], vec![]);
        let (mut predicted, mut labels) = (vec![], vec![]);
        for pair in 0..users * each {
            let user = pair / each;
            let verdicts =
                *draws.pick(&[Verdicts::Left, Verdicts::Right, Verdicts::Contradictory, Verdicts::NotJudged]);
            let verdicts = if draws.chance(one_sided) { Verdicts::Left } else { verdicts };
            asked.push(Asked {
                user,
                caption: draws.below(3) as u64,
                verdicts,
                probability: Some(draws.uniform()),
            });
            predicted.push(Predicted {
                user,
                pair,
                prediction: if draws.chance(one_sided) { 1.0 } else { draws.uniform() },
            });
            if user < 3 {
                labels.push(Label { pair, truth: f64::from(u8::from(draws.chance(one_sided))) });
            }
            for (repeat, left_first) in [(0, true), (0, false), (1, true)] {
                answers.push(Answer { log_odds: scale * draws.normal(), first: draws.chance(one_sided) });
                let call = Call {
                    user,
                    pair,
                    left_first,
                    repeat,
                    first: draws.chance(one_sided),
                    truth: Some(one_sided),
                };
                calls.push(call);
                others.push(Call { first: draws.chance(one_sided), ..call });
            }
        }
        let rates = WinRates::of(&asked, interval).expect("valid");
        let all = [&rates.ties_as_half, &rates.strict, &rates.consistency, &rates.by_probability];
        all.into_iter().flatten().for_each(|rate| is_sound(&rate.estimate, 0.0, 1.0));
        if let Spread::Fitted(fit) = Spread::of_asked(&asked, 0.95).expect("valid") {
            is_sound(&fit.mean, 0.0, 1.0);
            is_sound(&fit.overdispersion, 0.0, 1.0);
        }
        if let Oracle::Fitted(fit) = Oracle::of(&answers, 0.95).expect("valid") {
            is_sound(&fit.bias, f64::NEG_INFINITY, f64::INFINITY);
            is_sound(&fit.noise, 0.0, 1.0);
        }
        let audit = Audit::of(&calls, interval).expect("valid");
        let all = [audit.accuracy, audit.consistency, audit.first_slot, audit.stability];
        all.into_iter().flatten().for_each(|share| is_sound(&share.estimate, 0.0, 1.0));
        let agreement = Agreement::of(&calls, &others, interval).expect("valid").expect("the same questions");
        agreement.kappa.iter().for_each(|kappa| is_sound(kappa, f64::NEG_INFINITY, f64::INFINITY));
        for scope in [Scope::AskedPairs, Scope::Users] {
            for weight in [Weight::Full, Weight::Tuned] {
                let plan = Plan { inclusion: Inclusion::Simple, scope, weight, level: 0.95 };
                if let Corrected::Corrected(found) = Corrected::of(&predicted, &labels, &plan).expect("valid")
                {
                    is_sound(&found.estimate, 0.0, 1.0);
                    is_sound(&found.labels_alone, 0.0, 1.0);
                }
            }
        }
    }
}
