//! A bootstrap distribution, and the intervals read from it, held to scipy's.

use super::distribution::{normal_cdf, normal_quantile, student_quantile};
use super::sample::{mean, quantile, variance};
use crate::error::{Error, Result};

/// A bootstrap distribution beside the estimate it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Replicates {
    point: f64,
    sorted: Vec<f64>,
}

impl Replicates {
    /// Sorts `values`, the statistic of each resample; `point` is the statistic of the sample itself.
    ///
    /// # Errors
    /// Where there is no resample, or a number is not finite.
    pub fn new(point: f64, mut values: Vec<f64>) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::Shape("a bootstrap needs at least one resample, got none".to_owned()));
        }
        if !point.is_finite() || values.iter().any(|x| !x.is_finite()) {
            return Err(Error::Shape("a bootstrap statistic must be finite in every resample".to_owned()));
        }
        values.sort_unstable_by(f64::total_cmp);
        Ok(Self { point, sorted: values })
    }

    /// The statistic of the sample itself.
    pub fn point(&self) -> f64 {
        self.point
    }

    /// The statistics of the resamples, ascending.
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }

    /// The standard deviation of the distribution; `None` for a single resample.
    pub fn standard_error(&self) -> Option<f64> {
        variance(&self.sorted).map(f64::sqrt)
    }

    /// The `q` quantile of the distribution, `q` cut to [0, 1].
    pub fn quantile(&self, q: f64) -> f64 {
        quantile(&self.sorted, q.clamp(0.0, 1.0)).expect("a distribution is never empty")
    }

    /// The percentile interval.
    pub fn percentile(&self, level: f64) -> (f64, f64) {
        let tail = (1.0 - level) / 2.0;
        (self.quantile(tail), self.quantile(1.0 - tail))
    }

    /// The basic interval: the percentile interval reflected about the estimate.
    pub fn basic(&self, level: f64) -> (f64, f64) {
        let (low, high) = self.percentile(level);
        (2.0 * self.point - high, 2.0 * self.point - low)
    }

    /// The bias-corrected and accelerated interval; `None` on a degenerate sample, where scipy gives NaN.
    ///
    /// `jackknife` holds the statistic with each unit (or cluster) left out.
    pub fn bca(&self, level: f64, jackknife: &[f64]) -> Option<(f64, f64)> {
        let correction = self.bca_correction(jackknife)?;
        let tail = (1.0 - level) / 2.0;
        Some((self.quantile(correction.level(tail)), self.quantile(correction.level(1.0 - tail))))
    }

    /// The bias correction and acceleration; `None` where one of them is not finite.
    ///
    /// # Source
    /// Efron 1987, "Better bootstrap confidence intervals", as in `scipy.stats.bootstrap`: ties with the estimate
    /// count one half.
    pub fn bca_correction(&self, jackknife: &[f64]) -> Option<BcaCorrection> {
        let below = self.sorted.partition_point(|&x| x < self.point);
        let up_to = self.sorted.partition_point(|&x| x <= self.point);
        let bias = normal_quantile((below + up_to) as f64 / (2 * self.sorted.len()) as f64);
        let centre = mean(jackknife)?;
        let (mut squares, mut cubes) = (0.0, 0.0);
        for left_out in jackknife {
            let influence = centre - left_out;
            squares += influence * influence;
            cubes += influence * influence * influence;
        }
        let acceleration = cubes / (6.0 * squares.powf(1.5));
        (bias.is_finite() && acceleration.is_finite()).then_some(BcaCorrection { bias, acceleration })
    }

    /// The two-sided p-value of "the statistic is `null`": twice the smaller share of resamples on one side of it.
    pub fn p_two_sided(&self, null: f64) -> f64 {
        let count = self.sorted.len() as f64;
        let at_most = self.sorted.partition_point(|&x| x <= null) as f64 / count;
        let at_least = 1.0 - self.sorted.partition_point(|&x| x < null) as f64 / count;
        (2.0 * at_most.min(at_least)).min(1.0)
    }
}

/// The two numbers by which BCa moves the levels of the percentile interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BcaCorrection {
    /// z₀, the normal quantile of the share of resamples below the estimate.
    pub bias: f64,
    /// a, a sixth of the skewness of the influence values.
    pub acceleration: f64,
}

impl BcaCorrection {
    /// The level of the bootstrap distribution that stands for the nominal level `q`.
    pub fn level(self, q: f64) -> f64 {
        self.level_of(normal_quantile(q))
    }

    /// The same, for a nominal level given as a normal quantile.
    pub fn level_of(self, z: f64) -> f64 {
        let moved = self.bias + z;
        normal_cdf(self.bias + moved / (1.0 - self.acceleration * moved))
    }
}

/// The percentile level that makes up for `units` being few: Φ(√(n/(n−1)) · t(q)), t with n − 1 degrees of freedom.
///
/// # Source
/// Hesterberg 2015, "What teachers should know about the bootstrap".
pub fn widened_z(q: f64, units: usize) -> f64 {
    let n = units as f64;
    (n / (n - 1.0)).sqrt() * student_quantile(q, n - 1.0)
}
