//! `[users]`: the people of a real-user study, and the conditions that stand for them.

mod recorded;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::method::{Condition, Method};
use super::source::Problems;
use crate::data::desk::users::{self, World};
use crate::error::{Error, Result};
use crate::scenes::talk;
use crate::scenes::tastes::Kind;
use crate::units::{Digest, Seed};

pub use recorded::{Choosing, Evaluated};

/// Who chooses, what of it is trained on, and whom images are made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// Of tastes, choices and groups.
    pub seed: Seed,
    /// Who chooses.
    #[serde(default, skip_serializing_if = "Choosing::is_simulated")]
    pub choices: Choosing,
    /// What simulated users look at.
    pub world: World,
    /// Users whose choices are trained on; where choices are recorded: those of them who are also looked at.
    pub seen: usize,
    /// Users of whom nothing is.
    pub unseen: usize,
    /// Pairs that each chooses between; where choices are recorded: the most of one user that are learned from.
    pub pairs_per_user: usize,
    /// Choices that stand for a user where nothing else is said.
    pub shots: usize,
    /// How many choices a vector that is trained on is made from: drawn from these for each group; absent: `shots`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned_shots: Vec<usize>,
    /// Blocks of choices of each user that are used for nothing but to make images for her: other ones under each draw.
    #[serde(default = "one")]
    pub draws: usize,
    /// Choices of a block: the most that a condition can ask for; absent: `shots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_shots: Option<usize>,
    /// Recorded choices of a further block behind the others, each under a caption that no other block has: what judges are
    /// asked to foresee, and what images are made of under `prompts = "own"`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_out: usize,
    /// How often a choice is learned for the null user instead of her who chose.
    #[serde(default)]
    pub null_share: f64,
    /// Users of each kind that images are made for.
    pub evaluated: Evaluated,
    /// For how many of them other choices are told than usual, or fewer or more; absent: for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub varied: Option<usize>,
    /// The model that embeds: its folder among the assets, or the name of the profile's artefact.
    pub model: PathBuf,
    /// The words that it is asked in.
    #[serde(default = "Words::desk", skip_serializing_if = "Words::is_desk")]
    pub words: Words,
    /// The most tokens that it writes about a group.
    pub max_new_tokens: usize,
    /// Groups that are embedded at once.
    pub batch: usize,
    /// The layer whose state is the embedding; absent: the last.
    #[serde(default)]
    pub layer: Option<usize>,
    /// How many linear discriminants of users an embedding is reduced to; absent: it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discriminants: Option<usize>,
    /// The root mean square length of embeddings over those that are trained on.
    #[serde(default = "unit")]
    pub length: f64,
    /// What is claimed, fixed before looking.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// Who is asked which of two images each user would prefer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judges: Vec<Judge>,
    /// The users whose true preferences correct the judges' rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labelled: Option<Labelled>,
    /// Whose images a figure shows; absent: nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub showcase: Option<Showcase>,
}

/// Somebody who is asked which of two images a user would prefer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// Its name in files.
    pub name: String,
    /// Its name in tables.
    pub label: String,
    /// What it is, as a judge's file says it; the folder of a `vlm` is one among the assets.
    pub judge: toml::Table,
    /// The words that it is asked in.
    #[serde(default)]
    pub words: Words,
    /// How many of a user's choices it is shown.
    pub shots: usize,
    /// Of which of her blocks; images are made from block 0 where nothing else is said.
    pub block: usize,
    /// The block whose choices it is asked to foresee.
    pub foresees: usize,
    /// How often it is asked each of these.
    #[serde(default = "one")]
    pub repeats: usize,
    /// The most calls, over all that it is asked; an endpoint needs this or the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_calls: Option<u64>,
    /// The most money, in the unit of its prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<f64>,
    /// Of how many prompts it sees images; absent: of all whose images are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<usize>,
    /// Whose images it compares with the personal model's: methods, `mismatched`, `farthest`; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Vec<String>>,
}

/// The words that a model is asked in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Words {
    /// `experiments/prompts/judge.txt`; `experiments/prompts/few-shot.txt` for a model that embeds.
    #[default]
    Default,
    /// `experiments/prompts/judge-desk.txt`, or `few-shot-desk.txt`, which the desk's own models were taught.
    Desk,
}

impl Words {
    /// What a model that embeds is asked, and where these words stand.
    pub fn few_shot(self) -> (&'static str, &'static str) {
        match self {
            Self::Default => {
                (include_str!("../../experiments/prompts/few-shot.txt"), "experiments/prompts/few-shot.txt")
            }
            Self::Desk => (talk::FEW_SHOT, talk::FEW_SHOT_FILE),
        }
    }

    pub(super) fn desk() -> Self {
        Self::Desk
    }

    fn is_desk(&self) -> bool {
        *self == Self::Desk
    }
}

/// Users who say themselves what they prefer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labelled {
    /// Which ones, and what they choose.
    pub seed: Seed,
    /// How many of the evaluated users, drawn without replacement.
    pub users: usize,
}

/// How many users and prompts a figure of images shows, and the seed that they are drawn by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Showcase {
    /// Of the lots.
    pub seed: Seed,
    /// Evaluated users, unseen and seen in turn.
    pub users: usize,
    /// Prompts of which images are kept.
    pub prompts: usize,
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
    /// Its own for each other user of the kind: the mean.
    Others,
    /// Its own for another user, by a random derangement.
    Mismatched,
    /// Its own for the user with the farthest taste.
    Farthest,
    /// Its own under another condition, such as `null-user`.
    Condition(String),
}

/// Stands for all evaluated users that are trained on.
const SEEN: &str = "seen-users";
/// Stands for all evaluated users that are not.
const UNSEEN: &str = "unseen-users";
/// The user whose embedding is the mean of those trained on.
pub const MEAN_USER: &str = "mean-user";
/// The user that choices of everybody are learned for.
pub const NULL_USER: &str = "null-user";
/// How judges' settings call images that were made for the user with the farthest taste.
pub const FARTHEST: &str = "farthest";
/// What a user's name begins with.
const PREFIX: &str = "user-";

/// That a vision-language model of the desk's is there; its folder is called what `ppd pretrain` calls it.
///
/// # Errors
/// [`Error::Weights`] with the way to it.
pub fn there(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().and_then(Path::file_name);
    let name = folder.unwrap_or_default().to_string_lossy();
    Err(Error::weights(
        path,
        format!(
            "is not there; make this vision-language model with `ppd pretrain {name}` (half an hour on two cores), or name a \
             folder that has it with --assets DIR"
        ),
    ))
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn one() -> usize {
    1
}

fn unit() -> f64 {
    1.0
}

/// Whom a condition's images are for, and which of her choices stand for her.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addressee {
    /// The user.
    pub user: i64,
    /// How many choices; none: the study's number.
    pub shots: Option<usize>,
    /// Out of which of her blocks.
    pub draw: usize,
}

impl Addressee {
    /// What a condition's name says: `user-3`, `user-3@8` (eight choices), `user-3@4.1` (four of the second block).
    pub fn parse(name: &str) -> Option<Self> {
        let (user, told) = match name.strip_prefix(PREFIX)?.split_once('@') {
            Some((user, told)) => (user, Some(told)),
            None => (name.strip_prefix(PREFIX)?, None),
        };
        let (shots, draw) = match told.map(|told| told.split_once('.').unwrap_or((told, "0"))) {
            Some((shots, draw)) => (Some(shots.parse().ok()?), draw.parse().ok()?),
            None => (None, 0),
        };
        Some(Self { user: user.parse().ok()?, shots, draw })
    }
}

impl std::fmt::Display for Addressee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}", self.user)?;
        match (self.shots, self.draw) {
            (None, _) => Ok(()),
            (Some(shots), 0) => write!(f, "@{shots}"),
            (Some(shots), draw) => write!(f, "@{shots}.{draw}"),
        }
    }
}

/// The condition of one user.
pub fn condition(id: i64) -> Condition {
    Condition::user(Addressee { user: id, shots: None, draw: 0 }.to_string())
}

impl Users {
    /// The identifiers of the users that images are made for.
    pub fn evaluated(&self, kind: Kind) -> impl Iterator<Item = i64> {
        (0..self.evaluated.of(kind)).map(move |index| users::identifier(kind, index))
    }

    /// What trainings follow from: all but whom images are made for, what is claimed, and what is shown.
    pub(super) fn identity(&self) -> serde_json::Value {
        let mut identity = serde_json::to_value(self).expect("a section is plain data");
        if let Some(fields) = identity.as_object_mut() {
            for reported in ["evaluated", "varied", "claims", "judges", "labelled", "showcase"] {
                fields.remove(reported);
            }
            if self.words != Words::Desk {
                fields.insert("few_shot".into(), json!(Digest::of(self.words.few_shot().0.as_bytes())));
            }
        }
        identity
    }

    /// Puts each user's own condition where a method asks for all of a kind: `seen-users`, `unseen-users@8`.
    pub(super) fn expand(&self, method: &mut Method) {
        let everybody = |name: &str| -> Option<Vec<Condition>> {
            let (kind, told) = [(SEEN, Kind::Seen), (UNSEEN, Kind::Unseen)]
                .into_iter()
                .find_map(|(all, kind)| Some((kind, name.strip_prefix(all)?)))?;
            let one = |id: i64| Condition::user(format!("{PREFIX}{id}{told}"));
            let most = if told.is_empty() { usize::MAX } else { self.varied.unwrap_or(usize::MAX) };
            (told.is_empty() || told.starts_with('@'))
                .then(|| self.evaluated(kind).take(most).map(one).collect())
        };
        let expanded = method.conditions.iter().flat_map(|condition| {
            condition.single().and_then(everybody).unwrap_or_else(|| vec![condition.clone()])
        });
        method.conditions = expanded.collect();
    }

    /// Choices of a block that images are made from.
    pub fn block(&self) -> usize {
        self.most_shots.unwrap_or(self.shots)
    }

    /// How many choices vectors that are trained on are made from.
    pub fn learned_shots(&self) -> Vec<usize> {
        if self.learned_shots.is_empty() { vec![self.shots] } else { self.learned_shots.clone() }
    }

    /// Everybody whose choices are read for images of these methods, and which ones.
    pub fn told(&self, methods: &[Method]) -> BTreeSet<(i64, usize, usize)> {
        let read = methods.iter().filter(|method| method.reads_choices());
        let addressed = read.flat_map(|method| &method.conditions).filter_map(Condition::single);
        let told = addressed.filter_map(Addressee::parse);
        told.map(|one| (one.user, one.shots.unwrap_or(self.shots), one.draw)).collect()
    }

    pub(super) fn check(&self, study: &str, methods: &[Method], problems: &mut Problems) {
        for (kind, name, most) in [(Kind::Seen, "seen", self.seen), (Kind::Unseen, "unseen", self.unseen)] {
            let evaluated = self.evaluated.of(kind);
            if !(1..=most).contains(&evaluated) {
                problems.push(format!(
                    "{study}: users.evaluated is {evaluated} {name} users, expected 1 to {most} (users.{name})"
                ));
            }
        }
        if self.varied.is_some_and(|varied| !(2..=self.evaluated.all()).contains(&varied)) {
            problems.push(format!(
                "{study}: users.varied is {}, expected at least 2, and no more than users.evaluated",
                self.varied.unwrap_or_default()
            ));
        }
        self.check_recorded(study, methods, problems);
        // Blocks make images; of two further groups, each can stand for the user while the other is learned from.
        let largest = self.learned_shots().into_iter().max().unwrap_or(self.shots);
        let blocks = if self.choices.is_simulated() { self.draws } else { 0 };
        let least = blocks * self.block() + 2 * largest;
        if self.pairs_per_user < least {
            problems.push(format!(
                "{study}: users.pairs_per_user is {}, expected at least {least}: {blocks} blocks of {} (users.draws) and two \
                 groups of {largest}",
                self.pairs_per_user,
                self.block()
            ));
        }
        if self.shots == 0 || self.draws == 0 || self.block() < self.shots || self.learned_shots.contains(&0)
        {
            problems.push(format!(
                "{study}: users.shots, users.draws and each of users.learned_shots must be at least 1, and \
                 users.most_shots at least users.shots"
            ));
        }
        if self.discriminants == Some(0) || !(self.length > 0.0 && self.length.is_finite()) {
            problems.push(format!("{study}: users.discriminants and users.length must be above 0"));
        }
        if !(0.0..1.0).contains(&self.null_share) {
            problems
                .push(format!("{study}: users.null_share is {}, expected 0 to less than 1", self.null_share));
        }
        for (user, shots, draw) in self.told(methods) {
            if shots > self.block() || draw >= self.draws {
                problems.push(format!(
                    "{study}: user {user} with {shots} choices of block {draw}: there are {} blocks of {}; raise users.draws \
                     or users.most_shots",
                    self.draws,
                    self.block()
                ));
            }
        }
        if self.batch == 0 || self.max_new_tokens == 0 {
            problems.push(format!("{study}: users.batch and users.max_new_tokens must be at least 1"));
        }
        for judge in &self.judges {
            let blocks = self.draws + usize::from(self.held_out > 0);
            if judge.block >= self.draws
                || judge.foresees >= blocks
                || judge.shots > self.block()
                || judge.block == judge.foresees
            {
                problems.push(format!(
                    "{study}: users.judges: {}: shown {} choices of block {}, asked about block {}: expected two of the {} \
                     blocks of {} (users.draws, users.most_shots), or to be asked about the held-out choices behind them \
                     (users.held_out)",
                    judge.name, judge.shots, judge.block, judge.foresees, self.draws, self.block()
                ));
            }
            if judge.name.is_empty() || !judge.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                problems.push(format!(
                    "{study}: users.judges: the name {:?}: expected letters, digits, hyphens",
                    judge.name
                ));
            }
            let is_endpoint = judge.judge.get("kind").and_then(toml::Value::as_str) == Some("openai");
            if is_endpoint && judge.max_calls.is_none() && judge.max_cost.is_none() {
                problems.push(format!(
                    "{study}: users.judges: {}: an endpoint may cost money; set max_calls or max_cost beside `judge`",
                    judge.name
                ));
            }
            if judge.repeats == 0 || self.judges.iter().filter(|other| other.name == judge.name).count() > 1 {
                problems
                    .push(format!("{study}: users.judges: {}: stands twice, or repeats is 0", judge.name));
            }
        }
        if let Some(labelled) = self.labelled
            && !(2..=self.evaluated.all()).contains(&labelled.users)
        {
            problems.push(format!(
                "{study}: users.labelled.users is {}, expected 2 to {}",
                labelled.users,
                self.evaluated.all()
            ));
        }
        if self.showcase.is_some_and(|showcase| showcase.users == 0 || showcase.prompts == 0) {
            problems.push(format!(
                "{study}: users.showcase.users and users.showcase.prompts must be at least 1; without the section there is no \
                 figure"
            ));
        }
        let known = |name: &String| methods.iter().any(|method| method.name == *name);
        for claim in &self.claims {
            let over = match &claim.over {
                Over::Method(over) => Some(over),
                Over::Others | Over::Mismatched | Over::Farthest | Over::Condition(_) => None,
            };
            for name in std::iter::once(&claim.method).chain(over).filter(|name| !known(name)) {
                problems.push(format!("{study}: users.claims: {}: no method named `{name}`", claim.id));
            }
        }
    }
}
