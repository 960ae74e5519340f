//! Verdicts on claims: one from an interval, several as a conjunction, many with a correction for their number.
//!
//! Levels: an interval at level 1 − α leaves α/2 beyond each end, so a claim with a direction is tested one-sided at
//! α/2, and adjusted p-values are compared with α/2 too. Interval and test then never disagree.

use serde::{Deserialize, Serialize};

use super::estimate::Estimate;
use super::inference::Inference;

/// Which way a claim points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The quantity is greater than the null.
    Greater,
    /// The quantity is less than the null.
    Less,
}

/// What the data say about a claim that was fixed beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The interval lies wholly on the claimed side of the null, and does not exclude the smallest effect of interest.
    Holds,
    /// The interval excludes the smallest effect of interest: an effect worth the name is not there.
    DoesNotHold,
    /// Neither: these data cannot tell.
    Underpowered,
}

impl Verdict {
    /// The verdict on "this and that": one failure fails it, one doubt leaves it open.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::DoesNotHold, _) | (_, Self::DoesNotHold) => Self::DoesNotHold,
            (Self::Underpowered, _) | (_, Self::Underpowered) => Self::Underpowered,
            (Self::Holds, Self::Holds) => Self::Holds,
        }
    }

    /// The verdict on all of several claims (an intersection-union test); `None` where there is none.
    pub fn all(verdicts: impl IntoIterator<Item = Self>) -> Option<Self> {
        verdicts.into_iter().reduce(Self::and)
    }

    /// The verdict in the words of a table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::DoesNotHold => "does not hold",
            Self::Underpowered => "underpowered",
        }
    }
}

/// A claim's direction, null and smallest effect of interest, fixed before looking.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which way the claim points.
    pub direction: Direction,
    /// The value that the claim must exclude: 0 for a difference, ½ for a win rate, the margin for non-inferiority.
    #[serde(default)]
    pub null: f64,
    /// The smallest distance from the null that is worth the name, at least 0.
    #[serde(default)]
    pub smallest_effect: f64,
}

impl Rule {
    /// "Not worse than by `margin`": the difference (ours − theirs, more is better) is above −`margin`.
    pub fn non_inferior(margin: f64) -> Self {
        Self { direction: Direction::Greater, null: -margin, smallest_effect: 0.0 }
    }

    /// "Keeps at least `fraction`" of something, for a ratio.
    pub fn keeps(fraction: f64) -> Self {
        Self { direction: Direction::Greater, null: fraction, smallest_effect: 0.0 }
    }

    /// The one-sided p-value of the claim.
    pub fn p(&self, inference: &Inference) -> f64 {
        match self.direction {
            Direction::Greater => inference.p_greater(self.null),
            Direction::Less => inference.p_less(self.null),
        }
    }

    /// The verdict from an interval; `adjusted_p`, where several claims were tested, is this one's one-sided p-value
    /// after correction ([`holm`]), and a claim holds only where it is at most half of 1 − level too.
    pub fn verdict(&self, estimate: &Estimate, adjusted_p: Option<f64>) -> Verdict {
        // Mirrored, a claim of "less" is one of "greater".
        let (low, high, null) = match self.direction {
            Direction::Greater => (estimate.low, estimate.high, self.null),
            Direction::Less => (-estimate.high, -estimate.low, -self.null),
        };
        let significant = adjusted_p.is_none_or(|p| p <= one_sided_alpha(estimate.level));
        if high < null + self.smallest_effect {
            Verdict::DoesNotHold
        } else if low > null && significant {
            Verdict::Holds
        } else {
            Verdict::Underpowered
        }
    }
}

/// What lies beyond each end of an interval at `level`: the level of its one-sided tests.
pub fn one_sided_alpha(level: f64) -> f64 {
    // 0.95 leaves 0.025, not the 0.025000000000000022 of plain subtraction.
    ((1.0 - level) / 2.0 * 1e12).round() / 1e12
}

/// The p-value of "all of these hold" (Berger 1982): the largest of them, `None` where there is none.
pub fn intersection_union(p_values: &[f64]) -> Option<f64> {
    p_values.iter().copied().reduce(f64::max)
}

/// Each p-value times their number, at most 1 (Bonferroni).
pub fn bonferroni(p_values: &[f64]) -> Vec<f64> {
    p_values.iter().map(|p| (p * p_values.len() as f64).min(1.0)).collect()
}

/// Holm's step-down correction (1979): adjusted p-values that keep the family-wise error, in the order given.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let count = p_values.len();
    let mut adjusted = vec![0.0; count];
    let mut running = 0.0f64;
    for (rank, index) in ascending(p_values).into_iter().enumerate() {
        running = running.max(p_values[index] * (count - rank) as f64).min(1.0);
        adjusted[index] = running;
    }
    adjusted
}

/// Benjamini and Hochberg's step-up correction (1995): adjusted p-values that keep the false discovery rate.
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let count = p_values.len();
    let mut adjusted = vec![0.0; count];
    let mut running = 1.0f64;
    for (rank, index) in ascending(p_values).into_iter().enumerate().rev() {
        running = running.min(p_values[index] * count as f64 / (rank + 1) as f64);
        adjusted[index] = running;
    }
    adjusted
}

fn ascending(p_values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Method;

    fn interval(low: f64, high: f64) -> Estimate {
        Estimate::new((low + high) / 2.0, (low, high), 0.95, Method::CrossedBootstrap)
    }

    #[test]
    fn verdicts_follow_the_interval() {
        let rule = Rule { direction: Direction::Greater, null: 0.5, smallest_effect: 0.05 };
        assert_eq!(rule.verdict(&interval(0.52, 0.6), None), Verdict::Holds);
        assert_eq!(rule.verdict(&interval(0.49, 0.6), None), Verdict::Underpowered);
        assert_eq!(rule.verdict(&interval(0.45, 0.54), None), Verdict::DoesNotHold);
        // There, but smaller than what was said to matter.
        assert_eq!(rule.verdict(&interval(0.51, 0.54), None), Verdict::DoesNotHold);
        assert_eq!(rule.verdict(&interval(0.52, 0.6), Some(0.025)), Verdict::Holds);
        assert_eq!(rule.verdict(&interval(0.52, 0.6), Some(0.026)), Verdict::Underpowered);
        let less = Rule { direction: Direction::Less, null: 0.0, smallest_effect: 0.1 };
        assert_eq!(less.verdict(&interval(-0.3, -0.1), None), Verdict::Holds);
        assert_eq!(less.verdict(&interval(-0.05, 0.2), None), Verdict::DoesNotHold);
        assert_eq!(Rule::non_inferior(0.1).verdict(&interval(-0.09, 0.0), None), Verdict::Holds);
        assert_eq!(Rule::keeps(0.8).verdict(&interval(0.5, 0.79), None), Verdict::DoesNotHold);
        let open = interval(f64::NEG_INFINITY, f64::INFINITY);
        assert_eq!(rule.verdict(&open, None), Verdict::Underpowered);
    }

    #[test]
    fn conjunctions_are_as_weak_as_their_weakest() {
        use Verdict::{DoesNotHold, Holds, Underpowered};
        assert_eq!(Verdict::all([Holds, Underpowered, Holds]), Some(Underpowered));
        assert_eq!(Verdict::all([Holds, Underpowered, DoesNotHold]), Some(DoesNotHold));
        assert_eq!(Verdict::all([Holds, Holds]), Some(Holds));
        assert_eq!(Verdict::all([]), None);
        assert_eq!(intersection_union(&[0.01, 0.2, 0.03]), Some(0.2));
        assert_eq!(intersection_union(&[]), None);
    }
}
