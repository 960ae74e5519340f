//! What a judge's verdicts are worth: win rates with intervals, how good the judge is, and what its errors do to a rate.
//!
//! A judge sees two images, left and right, in both orders, and names the one in the first or the second slot. The parts, in
//! the order in which a study uses them:
//!
//! - [`win_rate`]: the three win rates of a table of pairs, each with its interval over users and captions;
//! - [`strict`]: what counting only consistent pairs does to a rate;
//! - [`spread`]: how much users differ in how often they prefer left;
//! - [`audit`]: accuracy, consistency, favourite slot, stability, agreement, where the truth is known or labelled;
//! - [`bias_and_noise`]: the two parameters of a judge that is right but for a favourite slot and coins;
//! - [`correction`]: the mean true preference from the judge's answers and a labelled sample of the same pairs.
//!
//! `cargo test --test soak` holds the intervals of the last two to 95 % ± 2 in 1,000 simulated studies of each of ten designs.
//!
//! All of it takes plain numbers, users and captions as any integers that tell them apart.

pub mod audit;
pub mod bias_and_noise;
pub mod correction;
pub mod spread;
pub mod strict;
pub mod win_rate;

pub use audit::{Agreement, Audit, Call, Share};
pub use bias_and_noise::{Answer, Oracle};
pub use correction::{Corrected, Correction, Label, Predicted};
pub use spread::Spread;
pub use win_rate::{Asked, Interval, Rate, Verdicts, WinRates};
