//! From a bootstrap distribution to bounds, intervals and p-values that agree with one another.
//!
//! One function, the confidence bound at level `q`, gives both ends of an interval (`q` and `1 − q`) and, inverted,
//! the p-value; so an interval excludes a value exactly where the p-value says so, and Holm's correction across
//! claims rests on the same numbers as the intervals in the table.

use super::distribution::{normal_cdf, student_over_normal};
use super::estimate::{Estimate, Method, add_remark};
use super::proportion::wilson_bound;
use super::replicates::{BcaCorrection, Replicates, widened_z};

/// How bounds are read from a bootstrap distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// BCa levels, widened for `units` clusters.
    Bca {
        /// The bias correction and acceleration.
        correction: BcaCorrection,
        /// The number of clusters.
        units: usize,
    },
    /// Percentile levels, widened for `units` clusters.
    Percentile {
        /// The number of clusters.
        units: usize,
    },
    /// Deviations of the right variance, whose quantiles are stretched from normal to Student's t.
    Stretched {
        /// The degrees of freedom of that variance.
        df: f64,
        /// What the interval is called.
        method: Method,
    },
    /// A proportion that does not vary: Wilson's bounds.
    Wilson {
        /// How many observations count.
        count: usize,
    },
    /// Values that do not vary at all.
    Constant {
        /// How many observations agree.
        count: usize,
    },
    /// Too little to say anything.
    Unknown,
}

/// An estimate with everything needed for its bounds at any level and its p-values against any value.
#[derive(Debug, Clone, PartialEq)]
pub struct Inference {
    value: f64,
    replicates: Option<Replicates>,
    shape: Shape,
    note: Option<String>,
}

impl Inference {
    /// Bounds read from `replicates` as `shape` says.
    pub fn new(replicates: Replicates, shape: Shape) -> Self {
        Self { value: replicates.point(), replicates: Some(replicates), shape, note: None }
    }

    /// A value whose uncertainty cannot be known, with the reason.
    pub fn unknown(value: f64, reason: &str) -> Self {
        Self { value, replicates: None, shape: Shape::Unknown, note: Some(reason.to_owned()) }
    }

    /// A value on which all `count` observations agree: the interval has no width, and the note says why.
    pub fn constant(value: f64, count: usize) -> Self {
        let note = format!("all {count} observations are equal, no resample can differ");
        Self { value, replicates: None, shape: Shape::Constant { count }, note: Some(note) }
    }

    /// The same, where a value that does not vary is a proportion of `count` observations: Wilson's interval.
    #[must_use]
    pub fn as_rate(self, count: usize) -> Self {
        match self.shape {
            Shape::Constant { .. } => Self {
                value: self.value,
                replicates: None,
                shape: Shape::Wilson { count },
                note: Some(format!(
                    "all {count} observations agree, Wilson interval over them instead of the bootstrap"
                )),
            },
            _ => self,
        }
    }

    /// The same with `remark` added to its note.
    #[must_use]
    pub fn with_note(mut self, remark: &str) -> Self {
        add_remark(&mut self.note, remark);
        self
    }

    /// The point estimate.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// What a reader must know beside the numbers.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The confidence bound at level `q`: the truth lies below it with confidence `q`.
    pub fn bound(&self, q: f64) -> f64 {
        match (self.shape, &self.replicates) {
            (Shape::Bca { correction, units }, Some(replicates)) => {
                replicates.quantile(correction.level_of(widened_z(q, units)))
            }
            (Shape::Percentile { units }, Some(replicates)) => {
                replicates.quantile(normal_cdf(widened_z(q, units)))
            }
            (Shape::Stretched { df, .. }, Some(replicates)) => {
                self.value + (replicates.quantile(q) - self.value) * student_over_normal(q, df)
            }
            (Shape::Wilson { count }, _) => wilson_bound(self.value, count as f64, q),
            (Shape::Constant { .. }, _) => self.value,
            _ if q < 0.5 => f64::NEG_INFINITY,
            _ => f64::INFINITY,
        }
    }

    /// The two-sided interval at `level`.
    pub fn estimate(&self, level: f64) -> Estimate {
        let tail = (1.0 - level) / 2.0;
        let method = match self.shape {
            Shape::Bca { .. } => Method::ClusterBootstrap,
            Shape::Percentile { .. } => Method::Percentile,
            Shape::Stretched { method, .. } => method,
            Shape::Wilson { .. } => Method::Wilson,
            Shape::Constant { .. } | Shape::Unknown => Method::None,
        };
        let ends = (self.bound(tail), self.bound(1.0 - tail));
        Estimate { note: self.note.clone(), ..Estimate::new(self.value, ends, level, method) }
    }

    /// The one-sided p-value for "greater than `null`": the largest `q` whose bound does not exceed `null`.
    ///
    /// Never below 1/(resamples + 1), which is all that so many resamples can show. Where all observations agree, that
    /// of the sign test.
    pub fn p_greater(&self, null: f64) -> f64 {
        self.invert(|q| self.bound(q) > null, self.value > null)
    }

    /// The one-sided p-value for "less than `null`".
    pub fn p_less(&self, null: f64) -> f64 {
        self.invert(|q| self.bound(1.0 - q) < null, self.value < null)
    }

    /// The smallest confidence `q` at which `beyond` holds, by bisection.
    fn invert(&self, beyond: impl Fn(f64) -> bool, agrees: bool) -> f64 {
        let least = match self.shape {
            Shape::Unknown => return 1.0,
            Shape::Constant { count } if agrees => return 0.5f64.powi(count.min(1000) as i32),
            Shape::Constant { .. } => return 1.0,
            Shape::Wilson { .. } => 1e-12,
            _ => 1.0 / (1.0 + self.replicates.as_ref().map_or(0, |r| r.sorted().len()) as f64),
        };
        if beyond(least) {
            return least;
        }
        let (mut within, mut without) = (least, 1.0 - least);
        if !beyond(without) {
            return 1.0;
        }
        // 60 halvings reach the spacing of doubles.
        for _ in 0..60 {
            let middle = (within + without) / 2.0;
            if beyond(middle) { without = middle } else { within = middle }
        }
        without
    }
}
