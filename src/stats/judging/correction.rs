//! The mean true preference over all asked pairs, from a judge's answers to all of them and labels of some.
//!
//! A judge answers every pair, with a bias that no number of pairs takes away. People label some of *those same pairs*: users are
//! sampled with known probabilities, and all of a sampled user's pairs are labelled. What the judge gets wrong on these is taken
//! off the mean of its answers: prediction-powered inference. A poor judge costs nothing but width.
//!
//! # Equation
//! With predictions f of all N pairs, labels y and inclusion probabilities π of the sampled users' pairs, and weights w = 1 / π,
//! θ = λ · mean(f) + Σ w (y − λ f) / Σ w,
//! the second sum over labelled pairs (Hájek's mean of the differences). λ = 1 takes the judge at its word; the tuned λ is
//! the weighted regression of users' label sums on their prediction sums, cut to [0, 1], at which the variance is least:
//! λ = 0 is the labels alone.
//!
//! # Variance
//! Users are what is sampled, so each sampled user is left out in turn, λ estimated anew (jackknife):
//! V = (m − 1)/m · Σ_j (1 − π_j) (θ₍ⱼ₎ − θ)² over the m sampled users. The factor 1 − π is the finite population's: where the rate of the asked
//! pairs is asked for, a user who was surely sampled adds nothing. Where users in general are meant ([`Scope::Users`]), it falls
//! away, and leaving out each user who was not sampled adds her share of the mean prediction's variance. The interval is
//! Student's t with (Σ w n)² / Σ (w n)² − 1 degrees of freedom over sampled users of n pairs; for users of one size and one weight
//! that is m − 1. The estimate and its interval are cut to [0, 1].
//!
//! # Source
//! Angelopoulos, Bates, Fannjiang, Jordan and Zrnic 2023, "Prediction-powered inference"; the tuned λ is that of Angelopoulos, Duchi
//! and Zrnic 2023, "PPI++: Efficient prediction-powered inference", here for clusters. In survey sampling this is the
//! difference estimator (Särndal, Swensson and Wretman 1992).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::stats::crossed::check_level;
use crate::stats::distribution::student_quantile;
use crate::stats::proportion::wilson_bound;
use crate::stats::{Estimate, Method};

/// What the judge says of one asked pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// Whose preference was asked for.
    pub user: u64,
    /// Which pair.
    pub pair: u64,
    /// Ties as half, or the probability of left, in [0, 1]. A pair that is not judged may have any fixed value, such as ½.
    pub prediction: f64,
}

/// The true preference in one pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Label {
    /// Which pair.
    pub pair: u64,
    /// 1 where left is preferred, 0 where right is, or the probability of it.
    pub truth: f64,
}

/// With what probability a user was sampled.
#[derive(Debug, Clone, PartialEq)]
pub enum Inclusion {
    /// As many users as are labelled were drawn without replacement, all alike.
    Simple,
    /// Each labelled user's, in (0, 1].
    Of(BTreeMap<u64, f64>),
}

/// Whose preference is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The mean over the pairs that were asked.
    AskedPairs,
    /// The mean over users like these.
    Users,
}

/// How much weight predictions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// λ = 1.
    Full,
    /// The λ of least variance.
    Tuned,
}

/// How a rate is corrected.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// How users were sampled.
    pub inclusion: Inclusion,
    /// What is estimated.
    pub scope: Scope,
    /// How much weight predictions have.
    pub weight: Weight,
    /// The confidence level, in (0, 1).
    pub level: f64,
}

/// What comes of a correction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Corrected {
    /// The corrected rate.
    Corrected(Correction),
    /// These labels cannot correct these predictions.
    NotCorrectable {
        /// Why.
        reason: Reason,
    },
}

/// A corrected rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Correction {
    /// The mean true preference.
    pub estimate: Estimate,
    /// The mean of the predictions, as the judge has it.
    pub uncorrected: f64,
    /// The mean of label less prediction on the labelled pairs: what the judge gets wrong.
    pub error: f64,
    /// λ.
    pub lambda: f64,
    /// The same from the labels alone (λ = 0).
    pub labels_alone: Estimate,
    /// Users, and those of them with labels.
    pub users: [usize; 2],
    /// Pairs, and those of them with labels.
    pub pairs: [usize; 2],
}

/// Why a rate cannot be corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Reason {
    /// There are no labels.
    NoLabels,
    /// Labels are of pairs that were not asked: what the judge gets wrong on them may not be what it gets wrong here.
    OtherPairs {
        /// How many.
        labels: usize,
    },
    /// Some, not all, of a user's pairs are labelled; which ones may have to do with what they say.
    PartlyLabelled {
        /// How many users.
        users: usize,
    },
    /// A single user has labels.
    OneUser,
}

impl fmt::Display for Corrected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrected(found) => write!(
                f,
                "{:.3} [{:.3}, {:.3}], the judge's own {:.3}, labels of {} of {} users",
                found.estimate.value,
                found.estimate.low,
                found.estimate.high,
                found.uncorrected,
                found.users[1],
                found.users[0]
            ),
            Self::NotCorrectable { reason } => match reason {
                Reason::NoLabels => f.write_str("not correctable: there are no labels"),
                Reason::OtherPairs { labels } => {
                    write!(f, "not correctable: {labels} labels are of pairs that were not asked")
                }
                Reason::PartlyLabelled { users } => {
                    write!(f, "not correctable: {users} users have labels of some of their pairs only")
                }
                Reason::OneUser => f.write_str("not correctable: a single user has labels"),
            },
        }
    }
}

/// One user's sums.
#[derive(Debug, Clone, Copy, Default)]
struct User {
    pairs: f64,
    predictions: f64,
    labels: f64,
    labelled: f64,
    /// 0 where she was not sampled.
    inclusion: f64,
}

impl User {
    fn weight(&self) -> f64 {
        if self.inclusion > 0.0 { self.inclusion.recip() } else { 0.0 }
    }
}

/// What the sampled users say, but for one of them.
struct Sample {
    lambda: f64,
    /// The weighted means of labels and of predictions over labelled pairs.
    labels: f64,
    predictions: f64,
}

impl Sample {
    fn of(sampled: &[User], left_out: Option<usize>, weight: Option<Weight>) -> Self {
        let kept =
            || sampled.iter().enumerate().filter(|(at, _)| Some(*at) != left_out).map(|(_, user)| user);
        let sum = |of: fn(&User) -> f64| kept().map(|user| user.weight() * of(user)).sum::<f64>();
        let pairs = sum(|user| user.pairs);
        let (labels, predictions) = (sum(|user| user.labels) / pairs, sum(|user| user.predictions) / pairs);
        let lambda = match weight {
            None => 0.0,
            Some(Weight::Full) => 1.0,
            Some(Weight::Tuned) => {
                let (mut product, mut square) = (0.0, 0.0);
                for user in kept() {
                    let weight = user.weight().powi(2) * (1.0 - user.inclusion);
                    let prediction = user.predictions - predictions * user.pairs;
                    product += weight * prediction * (user.labels - labels * user.pairs);
                    square += weight * prediction * prediction;
                }
                if square > 0.0 { (product / square).clamp(0.0, 1.0) } else { 1.0 }
            }
        };
        Self { lambda, labels, predictions }
    }

    /// θ.
    fn estimate(&self, mean: f64) -> f64 {
        self.labels + self.lambda * (mean - self.predictions)
    }
}

impl Corrected {
    /// Corrects the mean of `predicted`, one entry for each asked pair, by `labels`.
    ///
    /// # Errors
    /// Where there is no prediction, a pair is predicted or labelled twice, a number is outside [0, 1], a labelled user has no
    /// inclusion probability in (0, 1], or the level is not in (0, 1).
    pub fn of(predicted: &[Predicted], labels: &[Label], plan: &Plan) -> Result<Self> {
        check_level(plan.level)?;
        let (mut users, owners) = gather(predicted)?;
        let not = |reason| Ok(Self::NotCorrectable { reason });
        let (mut labelled, mut elsewhere) = (BTreeSet::new(), 0);
        for label in labels {
            if !(0.0..=1.0).contains(&label.truth) {
                return Err(Error::Shape(format!(
                    "a label is a probability, got {} for pair {}",
                    label.truth, label.pair
                )));
            }
            if !labelled.insert(label.pair) {
                return Err(Error::Shape(format!("pair {} is labelled twice", label.pair)));
            }
            match owners.get(&label.pair).and_then(|user| users.get_mut(user)) {
                Some(user) => {
                    user.labels += label.truth;
                    user.labelled += 1.0;
                }
                None => elsewhere += 1,
            }
        }
        if labels.is_empty() {
            return not(Reason::NoLabels);
        }
        if elsewhere > 0 {
            return not(Reason::OtherPairs { labels: elsewhere });
        }
        let partly = users.values().filter(|user| user.labelled > 0.0 && user.labelled < user.pairs).count();
        if partly > 0 {
            return not(Reason::PartlyLabelled { users: partly });
        }
        let sampled = users.values().filter(|user| user.labelled > 0.0).count();
        let all = users.len();
        if sampled < 2 && all > 1 {
            return not(Reason::OneUser);
        }
        for (name, user) in users.iter_mut().filter(|(_, user)| user.labelled > 0.0) {
            user.inclusion = match &plan.inclusion {
                Inclusion::Simple => sampled as f64 / all as f64,
                Inclusion::Of(known) => known.get(name).copied().unwrap_or(0.0),
            };
            if !(user.inclusion > 0.0 && user.inclusion <= 1.0) {
                return Err(Error::Spec(format!(
                    "user {name} has labels, so the probability of her being sampled lies in (0, 1]; got {}",
                    user.inclusion
                )));
            }
        }
        let users: Vec<User> = users.into_values().collect();
        Ok(Self::Corrected(correct(&users, plan, predicted.len(), labels.len())))
    }
}

type Users = BTreeMap<u64, User>;

/// The users' sums of predictions, and whose each pair is.
fn gather(predicted: &[Predicted]) -> Result<(Users, BTreeMap<u64, u64>)> {
    if predicted.is_empty() {
        return Err(Error::Shape("a mean preference needs at least one asked pair, got none".into()));
    }
    let (mut users, mut owners) = (Users::new(), BTreeMap::new());
    for Predicted { user, pair, prediction } in predicted {
        if !(0.0..=1.0).contains(prediction) {
            return Err(Error::Shape(format!(
                "a prediction is a probability, got {prediction} for pair {pair}"
            )));
        }
        if owners.insert(*pair, *user).is_some() {
            return Err(Error::Shape(format!("pair {pair} has two predictions; average repeats beforehand")));
        }
        let user = users.entry(*user).or_default();
        user.pairs += 1.0;
        user.predictions += prediction;
    }
    Ok((users, owners))
}

fn correct(users: &[User], plan: &Plan, pairs: usize, labelled: usize) -> Correction {
    let sampled: Vec<User> = users.iter().copied().filter(|user| user.inclusion > 0.0).collect();
    let mean = users.iter().map(|user| user.predictions).sum::<f64>() / pairs as f64;
    let whole = Sample::of(&sampled, None, Some(plan.weight));
    Correction {
        estimate: interval(users, &sampled, plan, Some(plan.weight)),
        uncorrected: mean,
        error: whole.labels - whole.predictions,
        lambda: whole.lambda,
        labels_alone: interval(users, &sampled, plan, None),
        users: [users.len(), sampled.len()],
        pairs: [pairs, labelled],
    }
}

/// The estimate with its interval.
fn interval(users: &[User], sampled: &[User], plan: &Plan, weight: Option<Weight>) -> Estimate {
    let total = |of: fn(&User) -> f64| users.iter().map(of).sum::<f64>();
    let (pairs, predictions) = (total(|user| user.pairs), total(|user| user.predictions));
    let whole = Sample::of(sampled, None, weight);
    let value = whole.estimate(predictions / pairs);
    let count = sampled.len() as f64;
    let mean_without = |user: &User| (predictions - user.predictions) / (pairs - user.pairs);
    let mut variance = 0.0;
    for (at, user) in sampled.iter().enumerate() {
        let without = Sample::of(sampled, Some(at), weight);
        let (mean, kept) = match plan.scope {
            Scope::AskedPairs => (predictions / pairs, 1.0 - user.inclusion),
            Scope::Users => (mean_without(user), 1.0),
        };
        variance += (count - 1.0) / count * kept * (without.estimate(mean) - value).powi(2);
    }
    if plan.scope == Scope::Users {
        let others = users.iter().filter(|user| user.inclusion == 0.0);
        variance += others.map(|user| (whole.estimate(mean_without(user)) - value).powi(2)).sum::<f64>();
    }
    let level = plan.level;
    let census = plan.scope == Scope::AskedPairs && sampled.iter().all(|user| user.inclusion >= 1.0);
    if census {
        return Estimate::new(value, (value, value), level, Method::None)
            .with_note("every asked pair is labelled: nothing is estimated");
    }
    if !variance.is_finite() || sampled.len() < 2 {
        return Estimate::new(value, (0.0, 1.0), level, Method::None).with_note("a single user: no interval");
    }
    let q = (1.0 + level) / 2.0;
    if variance < 1e-24 {
        // Each sampled user has the same difference per pair. Others may not: as many as Wilson's bound lets there be, each of a
        // difference anywhere in [−1, 1].
        let error = whole.labels - whole.lambda * whole.predictions;
        let share = wilson_bound(0.0, count, q);
        let ends = (value - share * (1.0 + error), value + share * (1.0 - error));
        return Estimate::new(value.clamp(0.0, 1.0), ends, level, Method::Wilson).clamped(0.0, 1.0).with_note(format!(
            "no user of {count} differs in what the judge gets wrong, Wilson interval over them instead of the jackknife"
        ));
    }
    let weights = sampled.iter().map(|user| user.weight() * user.pairs);
    let (sum, squares) =
        weights.fold((0.0, 0.0), |(sum, squares), weight| (sum + weight, squares + weight * weight));
    let df = (sum * sum / squares - 1.0).max(1.0);
    let half = student_quantile(q, df) * variance.sqrt();
    Estimate::new(value.clamp(0.0, 1.0), (value - half, value + half), level, Method::Jackknife)
        .clamped(0.0, 1.0)
}

#[cfg(test)]
mod tests;
