//! Simulated users with known utilities, and the desk world's own aesthetic rating.
//!
//! A user judges a picture by its measured pixels and its alignment, never by how it was made, so pictures of a model
//! are judged like renders. Two disjoint populations exist: one behind the HPS-like reward, one behind raw labels.
//! Aesthetic ratings come from a third source, which looks at no caption.
//!
//! # Equation
//! A user's utility of a picture with alignment `a` and standardised statistics `z_k` (clipped to ±3), and her choice
//! between two pictures (Davidson's model: Bradley-Terry with ties):
//!
//! ```text
//! U      = w_a (a - 0.7) / 0.2 + Σ_k w_k z_k - Σ_k q_k (z_k - c_k)²
//! π      = exp(U / temperature)
//! P(tie) = ν √(π_1 π_2) / (π_1 + π_2 + ν √(π_1 π_2))
//! ```
//!
//! Each user's `w_k` is the population's mean taste plus `individual` times a standard normal number, her `w_a` the
//! population's times a log-normal one with median one; `q` and `c` are the population's.

use serde::{Deserialize, Serialize};

use super::measure::{COUNT, Measured};
use crate::rng::{Stream, stream};
use crate::units::Seed;

/// Whose population.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Behind the HPS-like reward.
    Hps,
    /// Behind the raw labels of preference pairs, as Pick-a-Pic's users are.
    Pick,
}

/// Standardisation of measured statistics, in the order of [`Measured::NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// The mean over pictures.
    pub mean: [f64; COUNT],
    /// The standard deviation among pictures of one caption.
    pub deviation: [f64; COUNT],
}

/// The statistics of renders of training captions under random styles (a test measures them again).
pub const RENDERS: Reference = Reference {
    mean: [0.555, 0.204, -0.009, 0.111, 0.0164, 0.765, 0.109],
    deviation: [0.140, 0.0762, 0.0838, 0.0319, 0.0122, 0.147, 0.0261],
};

/// The statistics of the desk base's samples for training captions (those that the shipped pairs were judged by, rounded;
/// a test compares).
pub const SAMPLES: Reference = Reference {
    mean: [0.549, 0.215, -0.0221, 0.103, 0.00539, 0.748, 0.117],
    deviation: [0.126, 0.0627, 0.0684, 0.0316, 0.00253, 0.127, 0.0316],
};

impl Reference {
    /// The reference of given pictures, grouped by caption; groups of one count towards the mean alone.
    ///
    /// # Panics
    /// Where no group has two pictures.
    pub fn fit(groups: &[Vec<Measured>]) -> Self {
        let mut reference = Self { mean: [0.0; COUNT], deviation: [0.0; COUNT] };
        let pictures = groups.iter().map(Vec::len).sum::<usize>() as f64;
        let freedom = groups.iter().map(|group| group.len().saturating_sub(1)).sum::<usize>() as f64;
        assert!(freedom > 0.0, "a deviation within captions needs two pictures of one caption");
        for k in 0..COUNT {
            let mut squares = 0.0;
            for group in groups {
                let values: Vec<f64> = group.iter().map(|measured| measured.values()[k]).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                reference.mean[k] += values.iter().sum::<f64>() / pictures;
                squares += values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
            }
            // A statistic that never varies tells users nothing: its deviation is kept off zero.
            reference.deviation[k] = (squares / freedom).sqrt().max(1e-6);
        }
        reference
    }

    /// The standardised statistics, clipped to ±3.
    pub fn standardise(&self, measured: &Measured) -> [f64; COUNT] {
        let values = measured.values();
        std::array::from_fn(|k| ((values[k] - self.mean[k]) / self.deviation[k]).clamp(-3.0, 3.0))
    }
}

/// What a population is like; [`Config::of`] gives the released ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The weight of alignment, per 0.2 of it.
    pub alignment: f64,
    /// The mean weight of each standardised statistic.
    pub taste: [f64; COUNT],
    /// The curvature of each statistic's utility; zero is linear.
    pub curvature: [f64; COUNT],
    /// The standardised value that the curvature prefers.
    pub ideal: [f64; COUNT],
    /// The standard deviation of a user's weights around the population's.
    pub individual: f64,
    /// How noisy choices are: utilities are divided by it.
    pub temperature: f64,
    /// Davidson's ν: at equal utilities a tie has probability ν / (2 + ν).
    pub ties: f64,
    /// How statistics are standardised.
    pub reference: Reference,
}

impl Config {
    /// The released population of `kind`.
    ///
    /// The HPS users like light, warm, close and smooth pictures. The users behind raw labels share that
    /// more weakly, also like vividness and contrast, differ more from each other and choose more noisily.
    pub fn of(kind: Kind) -> Self {
        // brightness, saturation, warmth, contrast, texture, centredness, fill
        match kind {
            Kind::Hps => Self {
                alignment: 1.0,
                taste: [0.55, 0.10, 0.60, -0.15, -0.35, 0.00, 0.35],
                curvature: [0.0, 0.05, 0.0, 0.0, 0.0, 0.0, 0.0],
                ideal: [0.0; COUNT],
                individual: 0.20,
                temperature: 0.7,
                ties: 0.0,
                reference: RENDERS,
            },
            Kind::Pick => Self {
                alignment: 0.5,
                taste: [0.20, 0.15, 0.25, 0.18, -0.15, 0.00, 0.25],
                curvature: [0.08, 0.0, 0.0, 0.05, 0.0, 0.0, 0.0],
                ideal: [0.0; COUNT],
                individual: 0.30,
                temperature: 1.3,
                ties: 0.3,
                reference: RENDERS,
            },
        }
    }
}

/// One simulated user.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// Her weight of alignment, per 0.2 of it.
    pub alignment: f64,
    /// Her weight of each standardised statistic.
    pub taste: [f64; COUNT],
}

/// A population of users, as many as asked for.
#[derive(Debug, Clone)]
pub struct Population {
    seed: Seed,
    kind: Kind,
    config: Config,
}

/// What a user answers when shown two pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// She prefers the first.
    First,
    /// She prefers the second.
    Second,
    /// She has no preference.
    Tie,
}

impl Population {
    /// The released population of `kind`.
    pub fn new(seed: Seed, kind: Kind) -> Self {
        Self::with(seed, kind, Config::of(kind))
    }

    /// A population of your own making.
    pub fn with(seed: Seed, kind: Kind, config: Config) -> Self {
        Self { seed, kind, config }
    }

    /// What the population is like.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// User number `index`; the populations of two kinds share no user, even under one seed.
    pub fn user(&self, index: u64) -> User {
        let purpose = match self.kind {
            Kind::Hps => "population hps",
            Kind::Pick => "population pick",
        };
        let mut s = stream(self.seed, purpose, index);
        let Config { alignment, taste, individual, .. } = &self.config;
        User {
            alignment: alignment * (individual * s.normal()).exp(),
            taste: taste.map(|mean| mean + individual * s.normal()),
        }
    }

    /// The user whose weights are the population's means.
    pub fn mean_user(&self) -> User {
        User { alignment: self.config.alignment, taste: self.config.taste }
    }

    /// A user's utility of a picture with these statistics and this alignment with its caption.
    pub fn utility(&self, user: &User, measured: &Measured, alignment: f64) -> f64 {
        let config = &self.config;
        let z = config.reference.standardise(measured);
        let style: f64 = (0..COUNT)
            .map(|k| user.taste[k] * z[k] - config.curvature[k] * (z[k] - config.ideal[k]).powi(2))
            .sum();
        user.alignment * (alignment - 0.7) / 0.2 + style
    }

    /// The probabilities that a user answers [`Choice::First`], [`Choice::Second`] and [`Choice::Tie`].
    pub fn odds(&self, user: &User, first: (&Measured, f64), second: (&Measured, f64)) -> [f64; 3] {
        let margin = self.utility(user, first.0, first.1) - self.utility(user, second.0, second.1);
        // Half the margin to each side keeps the exponentials finite.
        let half = (margin / self.config.temperature / 2.0).clamp(-300.0, 300.0);
        let (up, down, tie) = (half.exp(), (-half).exp(), self.config.ties);
        let total = up + down + tie;
        [up / total, down / total, tie / total]
    }

    /// Lets a user choose between two pictures of one caption, each with its statistics and alignment.
    pub fn choose(
        &self,
        stream: &mut Stream,
        user: &User,
        first: (&Measured, f64),
        second: (&Measured, f64),
    ) -> Choice {
        let [up, down, _] = self.odds(user, first, second);
        match stream.uniform() {
            drawn if drawn < up => Choice::First,
            drawn if drawn < up + down => Choice::Second,
            _ => Choice::Tie,
        }
    }
}

/// The aesthetic raters' weight of each standardised statistic; light beyond the middle they dislike besides.
pub const AESTHETIC_TASTE: [f64; COUNT] = [0.0, 0.50, -0.30, 0.45, -0.15, 0.40, 0.0];

/// The desk world's aesthetic rating of a picture without rater noise, in 1..10, about 5.5 on average.
///
/// Pleasing is a vivid, contrasty, centred picture of middle light that is rather cool; grain and stripes displease a
/// little. No caption is looked at, so alignment plays no part.
pub fn aesthetic(measured: &Measured) -> f64 {
    let z = RENDERS.standardise(measured);
    let taste: f64 = z.iter().zip(AESTHETIC_TASTE).map(|(z, weight)| weight * z).sum();
    let pleasing = taste - 0.10 * z[0].powi(2);
    (5.6 + 0.9 * pleasing).clamp(1.0, 10.0)
}

/// One rater's aesthetic rating: [`aesthetic`] plus rater noise of 0.6, in 1..10.
pub fn aesthetic_rating(measured: &Measured, stream: &mut Stream) -> f64 {
    (aesthetic(measured) + 0.6 * stream.normal()).clamp(1.0, 10.0)
}

#[cfg(test)]
mod tests;
