use super::*;
use crate::rng::stream;
use crate::units::Seed;

/// `count` pairs asked in both orders.
fn answers(count: usize, bias: f64, noise: f64, seed: u64) -> Vec<Answer> {
    let mut draws = stream(Seed::new(seed), "oracle answers", 0);
    let mut answers = Vec::new();
    for _ in 0..count {
        let d = 1.5 * draws.normal();
        for log_odds in [d, -d] {
            let p = (1.0 - noise) * sigmoid(log_odds + bias) + noise / 2.0;
            answers.push(Answer { log_odds, first: draws.chance(p) });
        }
    }
    answers
}

fn fitted(answers: &[Answer]) -> Fit {
    match Oracle::of(answers, 0.95).unwrap() {
        Oracle::Fitted(fit) => fit,
        Oracle::NotIdentifiable { reason } => panic!("{reason:?}"),
    }
}

fn likelihood(answers: &[Answer]) -> Likelihood {
    let answers = answers.iter().map(|a| (a.log_odds, if a.first { 1.0 } else { -1.0 })).collect();
    Likelihood { answers }
}

#[test]
fn the_fit_is_scipys() {
    // d = 3 sin(1.3 i), first = (frac(0.618 i) < P(A)) with b = 0.6, n = 0.2, i = 0 .. 199.
    let answers: Vec<Answer> = (0..200)
        .map(|i| {
            let d = 3.0 * (1.3 * f64::from(i)).sin();
            let p = 0.8 * sigmoid(d + 0.6) + 0.1;
            Answer { log_odds: d, first: (0.618 * f64::from(i)).fract() < p }
        })
        .collect();
    let fit = fitted(&answers);
    let got = [
        fit.bias.value,
        fit.noise.value,
        fit.log_likelihood,
        fit.bias.low,
        fit.bias.high,
        fit.noise.low,
        fit.noise.high,
    ];
    for (got, expected) in got.into_iter().zip(SCIPY) {
        assert!((got - expected).abs() < 2e-5, "{got}, expected {expected}");
    }
}
// tests/reference/judging.py, scipy 1.17: optimize.minimize_scalar(method="bounded") for both profiles, brentq for where they cross. b, n and the
// log-likelihood; the interval of b; that of n, its critical values from the same equation.
const SCIPY: [f64; 7] = [
    0.48492814104663357,
    0.2634700972259538,
    -108.66492548266751,
    -0.14776176135028013,
    1.11438790738037,
    0.12408175917520861,
    0.428622594421517,
];

#[test]
fn slopes_are_those_of_the_likelihood() {
    let likelihood = likelihood(&answers(60, 0.5, 0.2, 3));
    let at = |bias: f64, noise: f64| Likelihood::at(&likelihood.clean(bias), noise);
    for (bias, noise) in [(0.0, 0.1), (0.7, 0.3), (-1.0, 0.0), (2.0, 0.8)] {
        let (_, [_, _, slope, _]) = likelihood.information(bias, noise);
        let numeric = (at(bias + 1e-5, noise) - at(bias - 1e-5, noise)) / 2e-5;
        assert!((slope - numeric).abs() < 1e-5, "{slope} {numeric}");
        // The best noise of a bias, and the best bias of a noise, are no lower than their neighbours.
        let (best, height) = likelihood.over_noise(bias);
        let around = [best - 1e-3, best + 1e-3].map(|noise| at(bias, noise.clamp(0.0, 1.0)));
        assert!((at(bias, best) - height).abs() < 1e-9 && around.iter().all(|other| *other <= height));
        let (best, height) = likelihood.over_bias(noise, 0.0);
        assert!([best - 1e-3, best + 1e-3].iter().all(|bias| at(*bias, noise) <= height), "{noise}: {best}");
    }
}

#[test]
fn the_information_is_the_slopes_own_spread() {
    // Over many draws of one answer, the variance of the slope in b is I_bb.
    let (bias, noise) = (0.4, 0.3);
    let (mut squares, mut expected) = (0.0, 0.0);
    let drawn = answers(20_000, bias, noise, 9);
    for answer in &drawn {
        let (_, [_, _, slope, bb]) = likelihood(std::slice::from_ref(answer)).information(bias, noise);
        squares += slope * slope;
        expected += bb;
    }
    assert!((squares / expected - 1.0).abs() < 0.05, "{squares} {expected}");
}

#[test]
fn many_answers_find_the_judge() {
    for (bias, noise) in [(0.0, 0.0), (0.8, 0.1), (-1.2, 0.5), (3.0, 0.0)] {
        let fit = fitted(&answers(20_000, bias, noise, 4));
        assert!((fit.bias.value - bias).abs() < 0.15 && (fit.noise.value - noise).abs() < 0.03, "{fit:?}");
        assert!(fit.bias.half_width() < 0.15 && fit.noise.half_width() < 0.03, "{fit:?}");
    }
}

#[test]
fn turned_about_a_judge_favours_the_other_slot() {
    let drawn = answers(200, 0.7, 0.2, 5);
    let turned: Vec<Answer> =
        drawn.iter().map(|a| Answer { log_odds: -a.log_odds, first: !a.first }).collect();
    let (one, other) = (fitted(&drawn), fitted(&turned));
    for (a, b) in [
        (one.bias.value, -other.bias.value),
        (one.bias.low, -other.bias.high),
        (one.bias.high, -other.bias.low),
        (one.noise.low, other.noise.low),
        (one.noise.high, other.noise.high),
    ] {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn what_is_not_in_the_answers_has_a_name_or_no_end() {
    let answer = |log_odds, first| Answer { log_odds, first };
    let reason = |answers: &[Answer]| match Oracle::of(answers, 0.95).unwrap() {
        Oracle::NotIdentifiable { reason } => Some(reason),
        Oracle::Fitted(_) => None,
    };
    assert_eq!(reason(&[]), Some(Reason::NoAnswers));
    assert_eq!(reason(&[answer(1.0, true), answer(-1.0, true)]), Some(Reason::OneSlot));
    assert_eq!(reason(&[answer(0.0, true), answer(0.0, false)]), Some(Reason::OneTruth));
    let printed = Oracle::of(&[answer(1.0, true)], 0.95).unwrap().to_string();
    assert_eq!(printed, "not identifiable: every answer names the same slot");
    assert!(Oracle::of(&[answer(f64::INFINITY, true)], 0.95).is_err());
    assert!(Oracle::of(&[answer(1.0, true)], 1.0).is_err());
    // Coins: each answer as often, whatever the truth.
    let coins: Vec<Answer> = (0..80).map(|i| answer([1.0, -1.0][i % 2], i % 4 < 2)).collect();
    let fit = fitted(&coins);
    assert_eq!((fit.bias.low, fit.bias.high), (f64::NEG_INFINITY, f64::INFINITY));
    assert!(fit.noise.high == 1.0 && fit.noise.low > 0.2, "{fit:?}");
    // A judge that is always right, about pairs far apart: no noise, and a bias anywhere in the gap.
    let right: Vec<Answer> =
        (0..200).map(|i| answer(if i % 2 == 0 { 9.0 } else { -9.0 }, i % 2 == 0)).collect();
    let fit = fitted(&right);
    assert!(fit.noise.value < 1e-6 && fit.noise.low == 0.0 && fit.noise.high < 0.1, "{fit:?}");
    assert!(fit.bias.low < -3.0 && fit.bias.high > 3.0, "{fit:?}");
}

/// Studies of which the interval of b, and that of n, hold the truth.
fn covered(studies: u64, pairs: usize, bias: f64, noise: f64) -> [u32; 2] {
    let mut covered = [0; 2];
    for study in 0..studies {
        let fit = fitted(&answers(pairs, bias, noise, 1000 + study));
        covered[0] += u32::from(fit.bias.covers(bias));
        covered[1] += u32::from(fit.noise.covers(noise));
    }
    covered
}

#[test]
fn intervals_cover_at_the_bound_near_it_and_far_from_it() {
    const STUDIES: u64 = 200;
    for (pairs, bias, noise) in [(150, 0.5, 0.0), (150, -0.4, 0.05), (150, 0.8, 0.3)] {
        // Three standard errors of a binomial count.
        let slack = 3.0 * (STUDIES as f64 * 0.95 * 0.05).sqrt();
        for covered in covered(STUDIES, pairs, bias, noise) {
            let expected = 0.95 * STUDIES as f64;
            assert!((f64::from(covered) - expected).abs() < slack, "{bias} {noise}: {covered}");
        }
    }
}
