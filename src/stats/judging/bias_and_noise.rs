//! A judge's two parameters where the truth is known: how much it favours the first slot, and how often it throws a coin.
//!
//! # Equation
//! With d the true log-odds that the image in the first slot is preferred, b the position bias in logits and n the noise,
//! P(A) = (1 − n) · σ(d + b) + n / 2,
//! which is how the oracle judge answers. (b, n) are estimated by maximum likelihood over calls, with profile-likelihood intervals.
//!
//! Calls are taken as independent given d, as the oracle's are. A real judge's errors go together within a pair and a user: its
//! interval here is too narrow, and the clustered ones of [`audit`](super::audit) are the ones to report.
//!
//! # The bound n = 0
//! A judge without noise lies on the edge of what n can be, and the usual critical value would cover 97.5 % there. Each candidate
//! n has the critical value of its distance from 0 in standard errors, by the expected information
//! ([`critical_value`]): the interval covers its level at 0, near it and far from it.
//!
//! # What cannot be known
//! Where one answer is as likely whatever d is, b and n are not told apart. Where the data do not exclude a judge
//! of coins alone (n = 1), no b is excluded either, and the interval of b has no ends.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::stats::crossed::check_level;
use crate::stats::likelihood::{critical_value, crossing, outside, peak};
use crate::stats::sample::is_constant;
use crate::stats::{Estimate, Method};

/// One call about a pair whose truth is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// d: the true ln P(first) − ln P(second).
    pub log_odds: f64,
    /// Whether the judge named the first.
    pub first: bool,
}

/// The parameters of a judge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Oracle {
    /// The estimates.
    Fitted(Fit),
    /// These answers do not say.
    NotIdentifiable {
        /// Why.
        reason: Reason,
    },
}

/// What the answers say of a judge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// b, in logits; above 0 it favours the first slot. Its interval may have no end.
    pub bias: Estimate,
    /// n, in [0, 1].
    pub noise: Estimate,
    /// The log-likelihood at both.
    pub log_likelihood: f64,
    /// The number of answers.
    pub answers: usize,
}

/// Why the parameters cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There is no answer.
    NoAnswers,
    /// Every answer names the same slot.
    OneSlot,
    /// The truth is the same in every call.
    OneTruth,
}

impl fmt::Display for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fitted(Fit { bias, noise, answers, .. }) => write!(
                f,
                "bias {:.3} [{:.3}, {:.3}] logits, noise {:.3} [{:.3}, {:.3}] over {answers} calls",
                bias.value, bias.low, bias.high, noise.value, noise.low, noise.high
            ),
            Self::NotIdentifiable { reason } => f.write_str(match reason {
                Reason::NoAnswers => "not identifiable: there is no answer",
                Reason::OneSlot => "not identifiable: every answer names the same slot",
                Reason::OneTruth => "not identifiable: the truth is the same in every call",
            }),
        }
    }
}

/// The largest bias looked for, in logits: beyond it no pair of the truth's range says anything.
const WIDEST: f64 = 64.0;

/// 1 / (1 + e⁻ˣ).
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The answers, each as (d, 1) or (d, −1).
struct Likelihood {
    answers: Vec<(f64, f64)>,
}

impl Likelihood {
    /// σ(±(d + b)): what a judge without noise gives to what was answered.
    fn clean(&self, bias: f64) -> Vec<f64> {
        self.answers.iter().map(|(d, sign)| sigmoid(sign * (d + bias))).collect()
    }

    /// The log-likelihood of a noise, given the clean probabilities; concave in n.
    fn at(clean: &[f64], noise: f64) -> f64 {
        // Products of eight before the logarithm: an eighth of the time, and far from underflow but where one factor is.
        let of = |q: &f64| q + noise * (0.5 - q);
        let (chunks, rest) = clean.as_chunks::<8>();
        let product = |sum: f64, values: &[f64]| {
            let product: f64 = values.iter().map(of).product();
            sum + if product > 1e-290 { product.ln() } else { values.iter().map(|q| of(q).ln()).sum() }
        };
        product(chunks.iter().fold(0.0, |sum, chunk| product(sum, chunk)), rest)
    }

    /// The best noise for a bias and its log-likelihood: Newton's steps within a shrinking bracket.
    fn over_noise(&self, bias: f64) -> (f64, f64) {
        let clean = self.clean(bias);
        let slopes = |noise: f64| {
            clean.iter().fold((0.0, 0.0), |(slope, curvature), q| {
                let relative = (0.5 - q) / (q + noise * (0.5 - q));
                (slope + relative, curvature + relative * relative)
            })
        };
        let (mut low, mut high) = (0.0, 1.0);
        let mut noise = 0.0;
        if slopes(0.0).0 <= 0.0 {
            high = 0.0;
        } else if slopes(1.0).0 >= 0.0 {
            noise = 1.0;
            low = 1.0;
        }
        for _ in 0..60 {
            if high - low < 1e-12 {
                break;
            }
            let (slope, curvature) = slopes(noise);
            if slope > 0.0 {
                low = noise
            } else {
                high = noise
            }
            let next = noise + slope / curvature;
            let next = if next > low && next < high { next } else { (low + high) / 2.0 };
            let done = (next - noise).abs() < 1e-10;
            noise = next;
            if done {
                break;
            }
        }
        (noise, Self::at(&clean, noise))
    }

    /// The best bias for a noise and its log-likelihood, from `bias` on: Fisher's scoring, a step halved until it climbs.
    fn over_bias(&self, noise: f64, mut bias: f64) -> (f64, f64) {
        let mut height = Self::at(&self.clean(bias), noise);
        for _ in 0..50 {
            let [_, _, slope, information] = self.information(bias, noise).1;
            if information <= 0.0 {
                break;
            }
            let mut step = (slope / information).clamp(-4.0, 4.0);
            while step.abs() > 1e-9 {
                let higher = Self::at(&self.clean(bias + step), noise);
                if higher > height {
                    (bias, height) = (bias + step, higher);
                    break;
                }
                step /= 2.0;
            }
            if step.abs() < 1e-7 || bias.abs() > WIDEST {
                break;
            }
        }
        (bias, height)
    }

    /// The standard error of n by the expected information, and (I_nn, I_bn, slope in b, I_bb).
    fn information(&self, bias: f64, noise: f64) -> (f64, [f64; 4]) {
        let [mut nn, mut bn, mut slope, mut bb] = [0.0; 4];
        for (d, sign) in &self.answers {
            let q = sigmoid(d + bias);
            let p = q + noise * (0.5 - q);
            let by_bias = (1.0 - noise) * q * (1.0 - q);
            let by_noise = 0.5 - q;
            let variance = (p * (1.0 - p)).max(f64::MIN_POSITIVE);
            nn += by_noise * by_noise / variance;
            bn += by_noise * by_bias / variance;
            bb += by_bias * by_bias / variance;
            slope += if *sign > 0.0 { by_bias / p } else { -by_bias / (1.0 - p).max(f64::MIN_POSITIVE) };
        }
        let left = nn - if bb > 0.0 { bn * bn / bb } else { 0.0 };
        (if left > 0.0 { left.sqrt().recip() } else { f64::INFINITY }, [nn, bn, slope, bb])
    }

    /// How many standard errors a noise lies above 0.
    fn distance(&self, bias: f64, noise: f64) -> f64 {
        let error = self.information(bias, noise).0;
        match noise {
            0.0 => 0.0,
            // What cannot be told has no bound nearby.
            _ if error.is_infinite() => f64::INFINITY,
            _ => noise / error,
        }
    }

    /// The maximum: a grid over b, the best noise for each, and what lies about the best.
    fn maximum(&self) -> (f64, f64, f64) {
        let curve = |bias: f64| self.over_noise(bias).1;
        let mut grid: Vec<f64> = (-4..=4).map(|step| 2.0 * f64::from(step)).collect();
        let mut heights: Vec<f64> = grid.iter().map(|bias| curve(*bias)).collect();
        loop {
            let best = (0..grid.len()).max_by(|&a, &b| heights[a].total_cmp(&heights[b])).unwrap_or(0);
            let widest = grid[grid.len() - 1];
            if best > 0 && best + 1 < grid.len() || widest >= WIDEST {
                let (low, high) = (best.saturating_sub(1), (best + 1).min(grid.len() - 1));
                let (bias, height) = peak(curve, grid[low], grid[high], 1e-7);
                return (bias, self.over_noise(bias).0, height);
            }
            let wider = 2.0 * widest;
            grid.insert(0, -wider);
            heights.insert(0, curve(-wider));
            grid.push(wider);
            heights.push(curve(wider));
        }
    }
}

impl Oracle {
    /// The parameters behind a judge's answers.
    ///
    /// # Errors
    /// Where log-odds are not finite, or the level is not in (0, 1).
    pub fn of(answers: &[Answer], level: f64) -> Result<Self> {
        check_level(level)?;
        if let Some(row) = answers.iter().position(|answer| !answer.log_odds.is_finite()) {
            return Err(Error::Shape(format!(
                "the true log-odds of answer {row} are {}; leave out calls whose truth is not known",
                answers[row].log_odds
            )));
        }
        let not = |reason| Ok(Self::NotIdentifiable { reason });
        let Some(one) = answers.first() else { return not(Reason::NoAnswers) };
        if answers.iter().all(|answer| answer.first == one.first) {
            return not(Reason::OneSlot);
        }
        if is_constant(&answers.iter().map(|answer| answer.log_odds).collect::<Vec<_>>()) {
            return not(Reason::OneTruth);
        }
        let sign = |first: bool| if first { 1.0 } else { -1.0 };
        let answers = answers.iter().map(|answer| (answer.log_odds, sign(answer.first))).collect();
        Ok(Self::Fitted(Likelihood { answers }.fit(level)))
    }
}

impl Likelihood {
    fn fit(&self, level: f64) -> Fit {
        let (bias, noise, highest) = self.maximum();
        let root = |height: f64| (2.0 * (highest - height)).max(0.0).sqrt();
        let far = critical_value(level, f64::INFINITY).sqrt();
        let answers = self.answers.len();

        let of_bias = |candidate: f64| root(self.over_noise(candidate).1) - far;
        let (_, [_, _, _, bb]) = self.information(bias, noise);
        let step = if bb > 0.0 { (2.0 / bb.sqrt()).clamp(1e-3, 4.0) } else { 4.0 };
        let coins = answers as f64 * 0.5f64.ln();
        let end = |sign: f64| {
            // With coins alone, whatever the bias is makes no difference.
            if root(coins) <= far {
                return sign * f64::INFINITY;
            }
            match outside(of_bias, bias, sign * step, sign * WIDEST) {
                Some(out) => crossing(of_bias, bias, out, 1e-7),
                None => sign * f64::INFINITY,
            }
        };
        let bias_ends = (end(-1.0), end(1.0));

        let mut nearby = bias;
        let mut of_noise = |candidate: f64| {
            let (best, height) = self.over_bias(candidate, nearby);
            nearby = if best.abs() < WIDEST { best } else { bias };
            root(height) - critical_value(level, self.distance(best, candidate)).sqrt()
        };
        let low = match noise > 0.0 && of_noise(0.0) > 0.0 {
            true => crossing(&mut of_noise, noise, 0.0, 1e-7),
            false => 0.0,
        };
        let step = (2.0 * self.information(bias, noise).0).clamp(1e-4, 0.25);
        let high = match outside(&mut of_noise, noise, step, 1.0) {
            Some(out) => crossing(&mut of_noise, noise, out, 1e-7),
            None => 1.0,
        };
        let interval = |value, ends| Estimate::new(value, ends, level, Method::ProfileLikelihood);
        Fit {
            bias: interval(bias, bias_ends),
            noise: interval(noise, (low, high)),
            log_likelihood: highest,
            answers,
        }
    }
}

#[cfg(test)]
mod tests {
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
    // scipy 1.17: optimize.minimize_scalar(method="bounded") for both profiles, brentq for where they cross. b, n and the
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
            assert!(
                [best - 1e-3, best + 1e-3].iter().all(|bias| at(*bias, noise) <= height),
                "{noise}: {best}"
            );
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
            assert!(
                (fit.bias.value - bias).abs() < 0.15 && (fit.noise.value - noise).abs() < 0.03,
                "{fit:?}"
            );
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
}
