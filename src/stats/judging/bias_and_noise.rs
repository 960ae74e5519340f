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
mod tests;
