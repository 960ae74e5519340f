//! `[users]`: the people of a real-user study, and the conditions that stand for them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::method::{Condition, Method};
use super::source::Problems;
use crate::data::desk::users::{self, World};
use crate::error::{Error, Result};
use crate::scenes::tastes::Kind;
use crate::units::Seed;

/// Who chooses, what of it is trained on, and whom images are made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// Of tastes, choices and groups.
    pub seed: Seed,
    /// What they look at.
    pub world: World,
    /// Users whose choices are trained on.
    pub seen: usize,
    /// Users of whom nothing is.
    pub unseen: usize,
    /// Pairs that each chooses between.
    pub pairs_per_user: usize,
    /// Choices that an embedding is made from. The first group of each user is used for nothing but to make images for her.
    pub shots: usize,
    /// Users of each kind that images are made for.
    pub evaluated: usize,
    /// The folder of the model that embeds, among the assets.
    pub model: PathBuf,
    /// The most tokens that it writes about a group.
    pub max_new_tokens: usize,
    /// Groups that are embedded at once.
    pub batch: usize,
    /// The layer whose state is the embedding; absent: the last.
    #[serde(default)]
    pub layer: Option<usize>,
    /// What is claimed, fixed before looking.
    #[serde(default)]
    pub claims: Vec<Claim>,
}

/// That users would rather have one method's images than another's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its name.
    pub id: String,
    /// In words.
    pub text: String,
    /// Whose images.
    pub method: String,
    /// Rather than whose: a method's, or those that the same method makes for another user.
    pub over: Over,
    /// Which users.
    pub users: Kind,
    /// By how much the mean true preference is above one half at least, to be worth the name.
    pub smallest_effect: f64,
}

/// What a method's images are compared with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// Another method's, for the same user where it knows users.
    Method(String),
    /// Its own for another user, by a random derangement.
    Mismatched,
    /// Its own for the user with the farthest taste.
    Farthest,
}

/// Stands for all evaluated users that are trained on.
const SEEN: &str = "seen-users";
/// Stands for all evaluated users that are not.
const UNSEEN: &str = "unseen-users";
/// The user whose embedding is the mean of those trained on.
pub const MEAN_USER: &str = "mean-user";
/// What a user's name begins with.
const PREFIX: &str = "user-";

/// That the model which embeds users is there: none is shipped yet.
///
/// # Errors
/// [`Error::Weights`] with the way to it.
pub(super) fn there(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    Err(Error::weights(
        path,
        "is not there; the vision-language model that embeds users is not shipped with the project yet: make it with `ppd \
         pretrain vlm` (about an hour on two cores), or name a folder that has it with --assets DIR",
    ))
}

/// The condition of one user.
pub fn condition(id: i64) -> Condition {
    Condition::user(format!("{PREFIX}{id}"))
}

/// The user that a condition's name stands for, where it stands for one.
pub fn of_condition(name: &str) -> Option<i64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

impl Users {
    /// The identifiers of the users that images are made for.
    pub fn evaluated(&self, kind: Kind) -> impl Iterator<Item = i64> {
        (0..self.evaluated).map(move |index| users::identifier(kind, index))
    }

    /// What trainings follow from: all but whom images are made for, and what is claimed.
    pub(super) fn identity(&self) -> serde_json::Value {
        let mut identity = serde_json::to_value(self).expect("a section is plain data");
        if let Some(fields) = identity.as_object_mut() {
            fields.remove("evaluated");
            fields.remove("claims");
        }
        identity
    }

    /// Puts each user's own condition where a method asks for all of a kind.
    pub(super) fn expand(&self, method: &mut Method) {
        let expanded = method.conditions.iter().flat_map(|condition| match condition.single() {
            Some(SEEN) => self.evaluated(Kind::Seen).map(self::condition).collect(),
            Some(UNSEEN) => self.evaluated(Kind::Unseen).map(self::condition).collect(),
            _ => vec![condition.clone()],
        });
        method.conditions = expanded.collect();
    }

    pub(super) fn check(&self, study: &str, methods: &[Method], problems: &mut Problems) {
        let most = self.seen.min(self.unseen);
        if self.evaluated == 0 || self.evaluated > most {
            problems.push(format!("{study}: users.evaluated is {}, expected 1 to {most}", self.evaluated));
        }
        // One group makes images; of two further ones, each can stand for the user while the other is learned from.
        let least = 3 * self.shots;
        if self.shots == 0 || self.pairs_per_user < least {
            problems.push(format!(
                "{study}: users.pairs_per_user is {}, expected at least {least}: three groups of users.shots",
                self.pairs_per_user
            ));
        }
        if self.batch == 0 || self.max_new_tokens == 0 {
            problems.push(format!("{study}: users.batch and users.max_new_tokens must be at least 1"));
        }
        let known = |name: &String| methods.iter().any(|method| method.name == *name);
        for claim in &self.claims {
            let over = match &claim.over {
                Over::Method(over) => Some(over),
                Over::Mismatched | Over::Farthest => None,
            };
            for name in std::iter::once(&claim.method).chain(over).filter(|name| !known(name)) {
                problems.push(format!("{study}: users.claims: {}: no method named `{name}`", claim.id));
            }
        }
    }
}
