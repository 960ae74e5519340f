//! Proportions: Wilson and exact intervals, the binomial test, win rates with ties counted one half.
//!
//! These are for independent observations. Wins that share prompts or training seeds go through
//! [`rate_interval`](super::rate_interval) or [`Clusters`](super::Clusters).

use serde::{Deserialize, Serialize};
use statrs::function::factorial::ln_binomial;

use super::distribution::{beta_quantile, normal_quantile};
use super::estimate::{Estimate, Method};
use crate::error::{Error, Result};

/// Wilson's score interval of `successes` out of `count`; `successes` need not be whole (a tie is one half).
///
/// # Errors
/// Where `count` is zero or `successes` lies outside [0, `count`].
pub fn wilson(successes: f64, count: u64, level: f64) -> Result<Estimate> {
    check(successes, count)?;
    let rate = successes / count as f64;
    let tail = (1.0 - level) / 2.0;
    let ends = (wilson_bound(rate, count as f64, tail), wilson_bound(rate, count as f64, 1.0 - tail));
    Ok(Estimate::new(rate, ends, level, Method::Wilson))
}

/// Wilson's bound at confidence `q` of a rate seen in `count` observations.
pub(crate) fn wilson_bound(rate: f64, count: f64, q: f64) -> f64 {
    let z = normal_quantile(q);
    let centre = rate + z * z / (2.0 * count);
    let spread = z * (rate * (1.0 - rate) / count + z * z / (4.0 * count * count)).sqrt();
    // At 0 and 1 the bound is exactly there; cancellation would leave 1e-17.
    if (rate == 0.0 && z < 0.0) || (rate == 1.0 && z > 0.0) {
        return rate;
    }
    ((centre + spread) / (1.0 + z * z / count)).clamp(0.0, 1.0)
}

/// Wilson's score interval with continuity correction (Newcombe 1998, method 4).
///
/// # Errors
/// Where `count` is zero or `successes` exceeds it.
pub fn wilson_corrected(successes: u64, count: u64, level: f64) -> Result<Estimate> {
    check(successes as f64, count)?;
    let n = count as f64;
    let rate = successes as f64 / n;
    let z = normal_quantile(0.5 + level / 2.0);
    let denominator = 2.0 * (n + z * z);
    let centre = (2.0 * n * rate + z * z) / denominator;
    let spread = |sign: f64| {
        z * (z * z - 1.0 / n + 4.0 * n * rate * (1.0 - rate) + sign * (4.0 * rate - 2.0)).sqrt() + 1.0
    };
    let low = if successes == 0 { 0.0 } else { centre - spread(1.0) / denominator };
    let high = if successes == count { 1.0 } else { centre + spread(-1.0) / denominator };
    Ok(Estimate::new(rate, (low, high), level, Method::WilsonCorrected))
}

/// The exact interval of Clopper and Pearson (1934): never less than its level, often more.
///
/// # Errors
/// Where `count` is zero or `successes` exceeds it.
pub fn clopper_pearson(successes: u64, count: u64, level: f64) -> Result<Estimate> {
    check(successes as f64, count)?;
    let (k, n) = (successes as f64, count as f64);
    let tail = (1.0 - level) / 2.0;
    let low = if successes == 0 { 0.0 } else { beta_quantile(tail, k, n - k + 1.0) };
    let high = if successes == count { 1.0 } else { beta_quantile(1.0 - tail, k + 1.0, n - k) };
    Ok(Estimate::new(k / n, (low, high), level, Method::ClopperPearson))
}

/// What a test holds against its null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alternative {
    /// Different in either direction.
    TwoSided,
    /// Greater than the null.
    Greater,
    /// Less than the null.
    Less,
}

/// The exact p-value of `successes` out of `count` against the rate `null`.
///
/// Two-sided, it sums every outcome no likelier than the one seen, as R and scipy do.
///
/// # Errors
/// Where `count` is zero, `successes` exceeds it, or `null` lies outside [0, 1].
pub fn binomial_test(successes: u64, count: u64, null: f64, alternative: Alternative) -> Result<f64> {
    check(successes as f64, count)?;
    if !(0.0..=1.0).contains(&null) {
        return Err(Error::Spec(format!("the null rate of a binomial test lies in [0, 1], got {null}")));
    }
    let mass = |k: u64| {
        // 0 · ln 0 is 0: a sure outcome.
        let term = |times: u64, p: f64| if times == 0 { 0.0 } else { times as f64 * p.ln() };
        (ln_binomial(count, k) + term(k, null) + term(count - k, 1.0 - null)).exp()
    };
    let p: f64 = match alternative {
        Alternative::Greater => (successes..=count).map(mass).sum(),
        Alternative::Less => (0..=successes).map(mass).sum(),
        Alternative::TwoSided => {
            // The slack lets outcomes as likely as the one seen count, whatever the last bits say.
            let limit = mass(successes) * (1.0 + 1e-7);
            (0..=count).map(mass).filter(|&m| m <= limit).sum()
        }
    };
    Ok(p.min(1.0))
}

/// Wins, ties and losses of one method against another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wins {
    /// Comparisons won.
    pub wins: u64,
    /// Comparisons without a winner.
    pub ties: u64,
    /// Comparisons lost.
    pub losses: u64,
}

impl Wins {
    /// Counts the pairs in which the first score is greater, equal and less.
    pub fn count(pairs: impl IntoIterator<Item = (f64, f64)>) -> Self {
        pairs.into_iter().fold(Self::default(), |mut counts, (ours, theirs)| {
            *(if ours > theirs {
                &mut counts.wins
            } else if ours < theirs {
                &mut counts.losses
            } else {
                &mut counts.ties
            }) += 1;
            counts
        })
    }

    /// The number of comparisons.
    pub fn total(self) -> u64 {
        self.wins + self.ties + self.losses
    }

    /// The win rate, ties one half, with Wilson's interval (a little too wide where there are ties).
    ///
    /// # Errors
    /// Where there is no comparison.
    pub fn rate(self, level: f64) -> Result<Estimate> {
        wilson(self.wins as f64 + 0.5 * self.ties as f64, self.total(), level)
    }

    /// The sign test: the exact p-value of as many wins among the comparisons that have a winner.
    ///
    /// # Errors
    /// Where no comparison has a winner.
    pub fn sign_test(self, alternative: Alternative) -> Result<f64> {
        binomial_test(self.wins, self.wins + self.losses, 0.5, alternative)
    }
}

fn check(successes: f64, count: u64) -> Result<()> {
    if count > 0 && (0.0..=count as f64).contains(&successes) {
        return Ok(());
    }
    Err(Error::Shape(format!(
        "a proportion needs 0 ≤ successes ≤ count and a count above 0, got {successes} of {count}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_one_half() {
        let wins = Wins::count([(1.0, 0.0), (2.0, 2.0), (0.0, 1.0), (3.0, 1.0)]);
        assert_eq!(wins, Wins { wins: 2, ties: 1, losses: 1 });
        assert_eq!(wins.rate(0.95).expect("four comparisons").value, 0.625);
        assert_eq!(wins.sign_test(Alternative::Greater).expect("three with a winner"), 0.5);
        assert!(Wins::default().rate(0.95).is_err());
    }

    #[test]
    fn refuses_impossible_counts() {
        assert!(wilson(3.0, 2, 0.95).is_err());
        assert!(clopper_pearson(0, 0, 0.95).is_err());
        assert!(binomial_test(1, 2, 1.5, Alternative::Less).is_err());
    }

    #[test]
    fn sure_nulls_are_sure() {
        assert_eq!(binomial_test(0, 5, 0.0, Alternative::TwoSided).expect("valid"), 1.0);
        assert_eq!(binomial_test(1, 5, 0.0, Alternative::Greater).expect("valid"), 0.0);
    }
}
