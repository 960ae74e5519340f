//! Left's win rate over pairs of (user, caption, noise), each asked in both orders: three estimands and their intervals.
//!
//! - *Ties as half* is the one to report: over all asked pairs, ½ where the orders contradict each other. Pairs that are not
//!   judged have no value; the rate is over the judged ones, beside what it would be had left lost or won all the others.
//! - *Strict* is the paper's: over the pairs on which both orders agree. It goes with its consistency, since it is not a rate of
//!   the pairs asked ([`strict`](super::strict)).
//! - *By log-probability*: the mean probability of left, over the pairs whose judge gives log-probabilities in both orders.
//!
//! Users and captions are both a sample of what could have been, and rows share both: intervals are those of
//! [`TwoWay`]. Several noises, or repeats, of one user and caption are rows of one cell.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::stats::crossed::check_level;
use crate::stats::{Estimate, TwoWay};
use crate::units::Seed;

/// What the two orders of a pair say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdicts {
    /// Left won in both.
    Left,
    /// Right won in both.
    Right,
    /// They contradict each other.
    Contradictory,
    /// At least one has no verdict.
    NotJudged,
}

impl Verdicts {
    /// 1, 0 or ½; none where the pair is not judged.
    pub fn ties_as_half(self) -> Option<f64> {
        match self {
            Self::Left => Some(1.0),
            Self::Right => Some(0.0),
            Self::Contradictory => Some(0.5),
            Self::NotJudged => None,
        }
    }

    /// 1 or 0 where the orders agree.
    pub fn strict(self) -> Option<f64> {
        self.ties_as_half().filter(|value| *value != 0.5)
    }

    /// Whether the orders agree; none where the pair is not judged.
    pub fn consistent(self) -> Option<f64> {
        self.ties_as_half().map(|value| f64::from(u8::from(value != 0.5)))
    }
}

/// One pair that was asked about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asked {
    /// Whose preference was asked for.
    pub user: u64,
    /// The caption of both images.
    pub caption: u64,
    /// What the two orders say.
    pub verdicts: Verdicts,
    /// The judge's probability that left is preferred, its slot bias cancelled over both orders, where it is known.
    pub probability: Option<f64>,
}

/// How intervals are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The confidence level, in (0, 1).
    pub level: f64,
    /// The number of bootstrap resamples, above 0.
    pub resamples: usize,
    /// What the resamples are drawn with.
    pub seed: Seed,
}

impl Interval {
    pub(crate) fn check(&self) -> Result<()> {
        check_level(self.level)?;
        match self.resamples {
            0 => Err(Error::Spec("an interval needs at least one bootstrap resample, got 0".into())),
            _ => Ok(()),
        }
    }
}

/// A rate over pairs with what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// The rate with its interval, both within [0, 1].
    pub estimate: Estimate,
    /// The number of pairs.
    pub pairs: usize,
    /// The number of users who have one.
    pub users: usize,
    /// The number of captions that have one.
    pub captions: usize,
    /// The variance of the rate over that of as many independent pairs; none where the pairs all agree.
    pub design_effect: Option<f64>,
}

impl Rate {
    /// The number of independent pairs that would tell as much.
    pub fn effective_pairs(&self) -> Option<f64> {
        self.design_effect.filter(|effect| *effect > 0.0).map(|effect| self.pairs as f64 / effect)
    }

    fn of(
        asked: &[Asked],
        value: impl Fn(&Asked) -> Option<f64>,
        interval: Interval,
    ) -> Result<Option<Self>> {
        let rows: Vec<(f64, u64, u64)> =
            asked.iter().filter_map(|asked| Some((value(asked)?, asked.user, asked.caption))).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        if let Some((value, ..)) = rows.iter().find(|(value, ..)| !(0.0..=1.0).contains(value)) {
            return Err(Error::Shape(format!("a win rate averages values in [0, 1], got {value}")));
        }
        let values: Vec<f64> = rows.iter().map(|row| row.0).collect();
        let users: Vec<u64> = rows.iter().map(|row| row.1).collect();
        let captions: Vec<u64> = rows.iter().map(|row| row.2).collect();
        let rows = TwoWay::new(&values, &users, &captions)?;
        let estimate = rows.rate_inference(interval.resamples, interval.seed)?.estimate(interval.level);
        Ok(Some(Self {
            estimate: estimate.clamped(0.0, 1.0),
            pairs: values.len(),
            users: rows.users(),
            captions: rows.captions(),
            design_effect: rows.design_effect(),
        }))
    }
}

/// What the rate over all asked pairs can be, whatever the pairs say that were not judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Had left lost all of them.
    pub low: f64,
    /// Had left won all of them.
    pub high: f64,
    /// From the lower end of the first's interval to the upper end of the second's: it holds the rate over all asked pairs
    /// at least as often as the level says (Horowitz and Manski 2000).
    pub interval: (f64, f64),
}

/// The win rates of a table of pairs; a rate without a pair is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WinRates {
    /// Pairs that were to be asked.
    pub asked: usize,
    /// Pairs with a verdict in both orders.
    pub judged: usize,
    /// Over the judged pairs, contradictions as half a win.
    pub ties_as_half: Option<Rate>,
    /// The same over all asked pairs, where some are not judged.
    pub bounds: Option<Bounds>,
    /// Over the consistent pairs.
    pub strict: Option<Rate>,
    /// The share of judged pairs that are consistent.
    pub consistency: Option<Rate>,
    /// The mean probability of left.
    pub by_probability: Option<Rate>,
}

impl WinRates {
    /// The rates of pairs.
    ///
    /// # Errors
    /// Where a probability is outside [0, 1], the level is not in (0, 1), or no resample is asked for.
    pub fn of(asked: &[Asked], interval: Interval) -> Result<Self> {
        interval.check()?;
        let rate = |value: &dyn Fn(&Asked) -> Option<f64>| Rate::of(asked, value, interval);
        let ties_as_half = rate(&|pair| pair.verdicts.ties_as_half())?;
        let judged = ties_as_half.as_ref().map_or(0, |rate| rate.pairs);
        let bounds = match asked.len() - judged {
            0 => None,
            _ => {
                let had = |others: f64| rate(&|pair| Some(pair.verdicts.ties_as_half().unwrap_or(others)));
                had(0.0)?.zip(had(1.0)?).map(|(lost, won)| Bounds {
                    low: lost.estimate.value,
                    high: won.estimate.value,
                    interval: (lost.estimate.low, won.estimate.high),
                })
            }
        };
        Ok(Self {
            asked: asked.len(),
            judged,
            ties_as_half,
            bounds,
            strict: rate(&|pair| pair.verdicts.strict())?,
            consistency: rate(&|pair| pair.verdicts.consistent())?,
            by_probability: rate(&|pair| pair.probability)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Method;

    const INTERVAL: Interval = Interval { level: 0.95, resamples: 999, seed: Seed::new(3) };

    fn pair(user: u64, caption: u64, verdicts: Verdicts) -> Asked {
        Asked { user, caption, verdicts, probability: None }
    }

    #[test]
    fn each_rate_is_over_its_own_pairs() {
        use Verdicts::{Contradictory, Left, NotJudged, Right};
        let said = [Left, Left, Right, Contradictory, Left, NotJudged, Contradictory, Left, Right, NotJudged];
        let mut asked: Vec<Asked> = (0..10).map(|i| pair(i / 2, i, said[i as usize])).collect();
        asked[0].probability = Some(0.9);
        asked[3].probability = Some(0.4);
        let rates = WinRates::of(&asked, INTERVAL).unwrap();
        assert_eq!((rates.asked, rates.judged), (10, 8));
        let value =
            |rate: &Option<Rate>| rate.as_ref().map(|rate| (rate.estimate.value, rate.pairs, rate.users));
        assert_eq!(value(&rates.ties_as_half), Some((0.625, 8, 5)));
        assert_eq!(value(&rates.strict), Some((4.0 / 6.0, 6, 5)));
        assert_eq!(value(&rates.consistency), Some((0.75, 8, 5)));
        assert_eq!(value(&rates.by_probability), Some((0.65, 2, 2)));
        let bounds = rates.bounds.unwrap();
        assert!((bounds.low - 0.5).abs() < 1e-12 && (bounds.high - 0.7).abs() < 1e-12);
        assert!(bounds.interval.0 <= bounds.low && bounds.interval.1 >= bounds.high);
        for rate in [&rates.ties_as_half, &rates.strict, &rates.consistency].into_iter().flatten() {
            assert!(
                rate.estimate.covers(rate.estimate.value)
                    && rate.estimate.low >= 0.0
                    && rate.estimate.high <= 1.0
            );
        }
        asked[0].probability = Some(1.2);
        assert!(WinRates::of(&asked, INTERVAL).unwrap_err().to_string().contains("1.2"));
        assert!(WinRates::of(&asked[1..], Interval { level: 1.0, ..INTERVAL }).is_err());
        assert!(WinRates::of(&asked[1..], Interval { resamples: 0, ..INTERVAL }).is_err());
        let none = WinRates::of(&[], INTERVAL).unwrap();
        assert_eq!((none.asked, none.ties_as_half, none.bounds), (0, None, None));
    }

    #[test]
    fn pairs_that_all_agree_have_wilsons_interval_over_users() {
        let asked: Vec<Asked> = (0..40).map(|i| pair(i % 10, i, Verdicts::Left)).collect();
        let rate = WinRates::of(&asked, INTERVAL).unwrap().ties_as_half.unwrap();
        assert_eq!(
            (rate.estimate.method, rate.design_effect, rate.effective_pairs()),
            (Method::Wilson, None, None)
        );
        let wilson = crate::stats::proportion::wilson(10.0, 10, 0.95).unwrap();
        assert!((rate.estimate.low - wilson.low).abs() < 1e-12);
    }

    #[test]
    fn a_user_who_always_says_the_same_counts_once() {
        // Ten users of eight captions each, five for left and five for right in everything.
        let verdicts = |user: u64| if user < 5 { Verdicts::Left } else { Verdicts::Right };
        let asked: Vec<Asked> = (0..80).map(|i| pair(i / 8, i, verdicts(i / 8))).collect();
        let rate = WinRates::of(&asked, INTERVAL).unwrap().ties_as_half.unwrap();
        // Var(user) / 10 against Var(pair) / 80, each with its n − 1: 8 · (80 − 1) / (10 − 1) / 8 = 79 / 9.
        assert!((rate.design_effect.unwrap() - 79.0 / 9.0).abs() < 1e-9, "{rate:?}");
        assert!((rate.effective_pairs().unwrap() - 80.0 * 9.0 / 79.0).abs() < 1e-9);
    }
}
