//! What judges said, as plain values: one row a call, and what rows say together.
//!
//! A judge sees two images and says which one a user would prefer. Each pair is asked in both orders, since judges favour a
//! place. A call ends in exactly one named state, and nothing but an answer that was read becomes a verdict. What this module
//! does not do: ask anybody (see [`judge`](crate::judge)), touch files, or attach intervals (see [`stats::judging`](crate::stats::judging), which
//! takes pairs and calls as [`asked`] and [`calls`] hand them on).

mod rates;
mod table;
mod tally;
pub mod truth;

use serde::{Deserialize, Serialize};

use crate::units::Digest;

pub use rates::{asked, calls};
pub use table::{COLUMNS, read, write};
pub use tally::{Calls, Pair, PairState, Tally, pairs, sigmoid};

/// The image that a judge named: the one in the first slot, shown as A, or the one in the second, shown as B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// Its letter.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// One of the two images of a pair, wherever it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The left one, whose win rate is counted.
    Left,
    /// The right one.
    Right,
}

/// Which image stands in the first slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The left one.
    LeftFirst,
    /// The right one.
    RightFirst,
}

impl Order {
    /// Both.
    pub const ALL: [Self; 2] = [Self::LeftFirst, Self::RightFirst];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeftFirst => "left-first",
            Self::RightFirst => "right-first",
        }
    }

    /// The image in a slot.
    pub const fn side(self, slot: Slot) -> Side {
        match (self, slot) {
            (Self::LeftFirst, Slot::A) | (Self::RightFirst, Slot::B) => Side::Left,
            _ => Side::Right,
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// The judge named an image.
    Verdict {
        /// Which one.
        slot: Slot,
        /// ln P(A) − ln P(B) of the answer's letter, where the judge says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log_odds: Option<f64>,
    },
    /// The judge would not answer.
    Refusal {
        /// Its words.
        raw: String,
    },
    /// The judge answered, but not the question.
    Unreadable {
        /// Its words.
        raw: String,
    },
    /// No answer arrived, however often it was asked for.
    TransportError {
        /// Why.
        reason: String,
    },
    /// It was not asked, since a cap on calls, tokens or money was reached.
    OverBudget {
        /// Which one.
        reason: String,
    },
}

impl Outcome {
    /// The names of all states, in the order in which they are counted.
    pub const STATES: [&'static str; 5] =
        ["verdict", "refusal", "unreadable", "transport-error", "over-budget"];

    /// The state's name in tables.
    pub const fn state(&self) -> &'static str {
        match self {
            Self::Verdict { .. } => "verdict",
            Self::Refusal { .. } => "refusal",
            Self::Unreadable { .. } => "unreadable",
            Self::TransportError { .. } => "transport-error",
            Self::OverBudget { .. } => "over-budget",
        }
    }

    /// Whether asking again would only repeat it. What did not arrive or was not asked is not an answer.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Verdict { .. } | Self::Refusal { .. } | Self::Unreadable { .. })
    }

    /// What the judge wrote, or why it wrote nothing; empty beside a verdict.
    pub fn reason(&self) -> &str {
        match self {
            Self::Verdict { .. } => "",
            Self::Refusal { raw } | Self::Unreadable { raw } => raw,
            Self::TransportError { reason } | Self::OverBudget { reason } => reason,
        }
    }
}

/// One call: who was asked about what, in which order, and how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The user whose preference was asked for.
    pub user: String,
    /// The prompt that both images answer.
    pub prompt: String,
    /// The left image's name.
    pub left: String,
    /// The right image's name.
    pub right: String,
    /// Which of them stood first.
    pub order: Order,
    /// The number of this repetition of the question, from 0.
    pub repeat: u32,
    /// How many of the user's pairs the judge was shown.
    pub shots: u32,
    /// The judge: its kind and its model.
    pub judge: String,
    /// The backend and version that are configured, and what the endpoint says of itself.
    pub version: String,
    /// The prompt's template.
    pub template: Digest,
    /// How it ended.
    pub outcome: Outcome,
    /// The tokens that the judge read, where known.
    pub tokens_in: Option<u64>,
    /// The tokens that it wrote, where known.
    pub tokens_out: Option<u64>,
}

impl Row {
    /// The image that the judge preferred, where it named one.
    pub fn preferred(&self) -> Option<Side> {
        match self.outcome {
            Outcome::Verdict { slot, .. } => Some(self.order.side(slot)),
            _ => None,
        }
    }

    /// ln P(left) − ln P(right), where the judge says so.
    pub fn log_odds_of_left(&self) -> Option<f64> {
        match (&self.outcome, self.order) {
            (Outcome::Verdict { log_odds, .. }, Order::LeftFirst) => *log_odds,
            (Outcome::Verdict { log_odds, .. }, Order::RightFirst) => log_odds.map(|odds| -odds),
            _ => None,
        }
    }
}
