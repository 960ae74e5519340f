//! Statistics over plain numbers: estimates, bootstrap intervals, proportions, contrasts, correlations.
//!
//! Everything here is a pure function of its arguments: no tensor, no file, no clock. What is random takes a
//! [`Seed`](crate::units::Seed) and gives the same bytes for any number of threads. What a report calls first:
//!
//! - [`mean_interval`], [`rate_interval`] and [`ratio_interval`] for values of (prompt, training seed), a [`Crossed`]
//!   matrix; [`Crossed::inference`] where a p-value is wanted beside the interval;
//! - [`Clusters`] for rows that share a cluster and have no second factor;
//! - [`TwoWay`] for rows of two crossed factors that are not balanced, such as users and the captions each was asked about;
//! - [`judging`] for what a judge's verdicts say, how good the judge is, and the correction for what it gets wrong;
//! - [`proportion`] for plain counts, [`contrast`] for verdicts and for several claims at once.
//!
//! The Fréchet distance is not here yet.

pub mod bootstrap;
pub mod contrast;
pub mod correlation;
pub mod crossed;
pub mod distribution;
pub mod estimate;
pub mod inference;
pub mod judging;
pub mod likelihood;
pub mod linear;
pub mod ordered_pairs;
pub mod paired;
pub mod proportion;
pub mod replicates;
pub mod sample;
pub mod two_way;

pub use bootstrap::Clusters;
pub use contrast::{Direction, Rule, Verdict};
pub use crossed::{Crossed, mean_interval, rate_interval, ratio_interval};
pub use estimate::{Estimate, Method};
pub use inference::Inference;
pub use replicates::Replicates;
pub use two_way::TwoWay;
