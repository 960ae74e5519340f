//! A method: objective × conditioning × labels, and the users that it makes images for.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::settings::{Adapter, Train};
pub use crate::data::labels::Labels;
use crate::error::{Error, Result};
use crate::objective;

/// One row of a table: an entry of `[[methods]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Its name in records, tables and `--set methods.NAME.…`.
    pub name: String,
    /// How tables and figures call it.
    pub label: String,
    /// What it is among the others.
    pub role: Role,
    /// What it descends; absent: nothing is trained, which is the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<objective::Config>,
    /// What the user branch is told.
    #[serde(default)]
    pub conditioning: Conditioning,
    /// Who says which image of a pair is better; absent for the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// What it is asked to show.
    #[serde(default, skip_serializing_if = "Captions::is_plain")]
    pub captions: Captions,
    /// The users that it makes images for.
    pub conditions: Vec<Condition>,
    /// The paper's numbers for this row, by reward.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub paper: BTreeMap<String, f64>,
    /// `[train]`, with this method's own changes.
    pub train: Train,
    /// `[adapter]`, with this method's own changes.
    pub adapter: Adapter,
}

/// What a method is asked to show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Captions {
    /// The prompt.
    #[default]
    Plain,
    /// The prompt with the user's written profile behind it: personal without a user branch, by words alone.
    WithProfile,
}

impl Captions {
    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

impl Method {
    /// Whether it tells the people of `[users]` apart: by its user branch, or by the words that it is asked with.
    pub fn is_of_people(&self) -> bool {
        self.conditioning.is_of_people() || self.captions == Captions::WithProfile
    }

    /// Whether a vision-language model reads users' choices for it.
    pub fn is_embedded(&self) -> bool {
        self.conditioning == Conditioning::Embedding || self.captions == Captions::WithProfile
    }

    /// Whether its images follow from a few of a user's choices.
    pub fn reads_choices(&self) -> bool {
        self.is_embedded() || self.conditioning == Conditioning::Posterior
    }
}

/// What a method is among the others: where its row stands, and with whom it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The model that all others start from.
    Base,
    /// One model for all users.
    Personal,
    /// Something that the personal model should beat.
    Baseline,
    /// A model of its own for the one reward that labels its pairs: the paper's upper bound.
    Specialist,
    /// A run whose outcome is known beforehand.
    Control,
}

/// What the user branch is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Conditioning {
    /// There is no user branch: the base.
    #[default]
    None,
    /// One constant, non-zero user: a method without users, with the same added layers.
    Constant,
    /// One coordinate for each reward in `[rewards] users`.
    OneHot,
    /// The embedding of a few of a user's choices, standardised over those that are trained on, and a constant.
    Embedding,
    /// One coordinate for each user that is trained on, and a constant; it can serve nobody else.
    UserNumber,
    /// The mean of the true weights given a few of a user's choices, by Bayes' rule over the desk's population, and a constant:
    /// what an embedding of these choices could tell at best.
    Posterior,
    /// A user's true weights, which nobody but the desk world knows, and a constant: the ceiling of any embedding.
    Utilities,
}

impl Conditioning {
    /// One of each, for family tests.
    pub const ALL: &[Self] = &[
        Self::None,
        Self::Constant,
        Self::OneHot,
        Self::Embedding,
        Self::UserNumber,
        Self::Posterior,
        Self::Utilities,
    ];

    /// Whether it tells the people of `[users]` apart.
    pub fn is_of_people(self) -> bool {
        matches!(self, Self::Embedding | Self::UserNumber | Self::Posterior | Self::Utilities)
    }
}

/// A user to make images for: nobody, one reward's user, or a point between several.
///
/// Written `none`, `clip`, or `clip=0.50+aesthetic=0.50`; weights have two digits and sum to one.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition(Vec<(String, f64)>);

impl Condition {
    /// Nobody.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The user of one reward.
    pub fn user(reward: impl Into<String>) -> Self {
        Self(vec![(reward.into(), 1.0)])
    }

    /// Whether it is nobody.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The reward, where the condition is one reward's user.
    pub fn single(&self) -> Option<&str> {
        match self.0.as_slice() {
            [(reward, _)] => Some(reward),
            _ => None,
        }
    }

    /// Each reward with its weight.
    pub fn parts(&self) -> &[(String, f64)] {
        &self.0
    }

    /// The user vector over `users`; all zeros for nobody.
    ///
    /// # Errors
    /// Where a part is not among `users`.
    pub fn weights(&self, users: &[String]) -> Result<Vec<f64>> {
        let mut weights = vec![0.0; users.len()];
        for (reward, weight) in &self.0 {
            let index = users.iter().position(|user| user == reward).ok_or_else(|| {
                Error::Spec(format!(
                    "condition {self}: {reward} is not a user; expected {}",
                    users.join(", ")
                ))
            })?;
            weights[index] = *weight;
        }
        Ok(weights)
    }
}

impl std::str::FromStr for Condition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Error::Spec(format!(
                "condition {text:?}: {why}; expected none, a reward, or a mixture such as clip=0.50+aesthetic=0.50"
            ))
        };
        if text == "none" {
            return Ok(Self::none());
        }
        if text.is_empty() || text.contains(char::is_whitespace) {
            return Err(refuse("it is empty or has spaces"));
        }
        if !text.contains('=') {
            return if text.contains('+') {
                Err(refuse("a part has no weight"))
            } else {
                Ok(Self::user(text))
            };
        }
        let mut parts: Vec<(String, f64)> = Vec::new();
        for part in text.split('+') {
            let (reward, weight) = part.split_once('=').ok_or_else(|| refuse("a part has no weight"))?;
            let weight: f64 = weight.parse().map_err(|_| refuse("a weight is not a number"))?;
            if !(0.0..=1.0).contains(&weight) {
                return Err(refuse("a weight is not between 0 and 1"));
            }
            if parts.iter().any(|(other, _)| other == reward) {
                return Err(refuse("a reward stands twice"));
            }
            parts.push((reward.into(), (weight * 100.0).round() / 100.0));
        }
        let sum: f64 = parts.iter().map(|(_, weight)| weight).sum();
        if (sum - 1.0).abs() > 0.005 {
            return Err(refuse(&format!("the weights sum to {sum:.2}, not 1")));
        }
        parts.retain(|(_, weight)| *weight > 0.0);
        Ok(Self(parts))
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("none"),
            [(reward, _)] => f.write_str(reward),
            parts => {
                let parts: Vec<String> =
                    parts.iter().map(|(reward, weight)| format!("{reward}={weight:.2}")).collect();
                f.write_str(&parts.join("+"))
            }
        }
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_written_one_way() {
        for (text, printed) in [
            ("none", "none"),
            ("clip", "clip"),
            ("clip=1", "clip"),
            ("clip=1+hps=0", "clip"),
            ("clip=0.5+aesthetic=0.50", "clip=0.50+aesthetic=0.50"),
            ("clip=0.33+aesthetic=0.33+hps=0.34", "clip=0.33+aesthetic=0.33+hps=0.34"),
        ] {
            assert_eq!(text.parse::<Condition>().unwrap().to_string(), printed);
        }
        for text in ["", "clip+hps", "clip=0.5", "clip=2+hps=-1", "clip=x", "clip=0.5+clip=0.5", "a b"] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }

    #[test]
    fn weights_follow_the_order_of_users() {
        let users = ["clip".to_owned(), "aesthetic".into(), "hps".into()];
        let weights = |text: &str| text.parse::<Condition>().unwrap().weights(&users);
        assert_eq!(weights("hps=0.25+clip=0.75").unwrap(), [0.75, 0.0, 0.25]);
        assert_eq!(weights("none").unwrap(), [0.0; 3]);
        assert!(weights("taste").unwrap_err().to_string().contains("not a user"));
    }
}
