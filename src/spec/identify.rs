//! Studies of `kind = "identification"`: can a user be told from few-shot features (the paper's Fig. 2)?

mod cells;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::unknown;
use super::plan::SCHEMA;
use super::sections::Sections;
use super::source::{Problems, Sources};
use super::users::Words;
use super::{Profile, Request, Size, label, library, study_chain, take_table, whole};
use crate::data::desk::users;
use crate::error::{Error, Result};
use crate::pretrain::classify;
use crate::units::Seed;

pub use cells::Cell;

/// The word in `kind` that makes a file one of these.
pub const KIND: &str = "identification";

/// A study, as its file says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identification {
    /// The version of experiment files.
    pub schema: u32,
    /// [`KIND`].
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its title.
    pub title: String,
    /// What it stands beside in the paper.
    pub paper: Option<String>,
    /// Who is to be told from whom.
    pub users: Users,
    /// How a user's choices are cut.
    pub groups: Groups,
    /// The model that embeds.
    pub embedding: Embedding,
    /// The heads, each trained on every kind of features.
    pub heads: Vec<classify::Config>,
    /// How it is asked what features know of a taste; absent: it is not.
    #[serde(default)]
    pub knowledge: Option<Knowledge>,
    /// The kinds of features.
    pub methods: Vec<Method>,
    /// Of these, the ones that are kept; absent: all.
    #[serde(default, skip_serializing)]
    pub only: Option<Vec<String>>,
    /// A user counts as found where her rank is at most this; each is a point of the figure.
    pub ranks: Vec<usize>,
    /// What the paper reports: the share found at a rank.
    #[serde(default)]
    pub published: Vec<Published>,
    /// What is claimed, fixed before looking.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// The weights and data that it runs on.
    #[serde(skip)]
    pub profile: Option<Profile>,
    /// The folder name of the profile with its changes.
    #[serde(skip)]
    pub label: String,
}

/// Where users come from, and what they look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum World {
    /// Simulated ones, who all look at the same prompts.
    Shared,
    /// Simulated ones, each of whom looks at prompts about her own topics.
    Topics,
    /// People, of whom a data set records who chose what.
    Recorded,
}

impl World {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Topics => "topics",
            Self::Recorded => "recorded",
        }
    }

    /// The world of simulated users; of people there is none.
    pub fn simulated(self) -> Option<users::World> {
        match self {
            Self::Shared => Some(users::World::Shared),
            Self::Topics => Some(users::World::Topics),
            Self::Recorded => None,
        }
    }
}

/// Who is to be told from whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// Of tastes, topics and choices.
    pub seed: Seed,
    /// How many there are.
    pub count: usize,
    /// Pairs that each chooses between; where choices are recorded: the most of one user that are used.
    pub pairs_per_user: usize,
    /// The worlds that they live in, one after the other.
    pub worlds: Vec<World>,
}

/// How the groups that are asked differ from those that are learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Separation {
    /// They are other choices of the same users, about any captions (the paper's).
    Random,
    /// They are about captions that no learned group is about.
    CaptionDisjoint,
}

impl Separation {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::CaptionDisjoint => "caption-disjoint",
        }
    }
}

/// How a user's choices are cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// Of the order of choices.
    pub seed: Seed,
    /// Pairs in a group.
    pub shots: usize,
    /// Groups of each user that are learned from.
    pub learned: usize,
    /// Groups of each user that are asked.
    pub asked: usize,
    /// How asked groups differ from learned ones, one after the other.
    pub separations: Vec<Separation>,
}

/// The model that embeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// Its folder among the assets, or the name of the profile's artefact.
    pub model: PathBuf,
    /// The words that it is asked in.
    #[serde(default = "Words::desk")]
    pub words: Words,
    /// The most tokens that it writes about a group.
    pub max_new_tokens: usize,
    /// Groups that are embedded at once.
    pub batch: usize,
}

/// How a reward told the features and a probe of the utilities are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knowledge {
    /// Of the order of examples.
    pub seed: Seed,
    /// Parts of the users: each is asked about once, by what the others taught.
    pub folds: usize,
    /// Passes over the examples.
    pub epochs: usize,
    /// Examples of a step.
    pub batch: usize,
    /// The learning rate after warm-up.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The scores of rows about what features know.
pub mod score {
    /// Share of held-out choices foreseen by a reward that is told the group's own features.
    pub const CHOICE_OWN: &str = "choice own";
    /// By the same reward told the mean features of those learned from.
    pub const CHOICE_MEAN: &str = "choice mean";
    /// By the same reward told another user's features.
    pub const CHOICE_SHUFFLED: &str = "choice shuffled";
    /// Squared distance of the weights read off the features to the true ones.
    pub const UTILITIES_ERROR: &str = "utilities error";
    /// Squared distance of the mean weights of those learned from to the true ones.
    pub const UTILITIES_SPREAD: &str = "utilities spread";
    /// As [`UTILITIES_ERROR`], for the middle between two users' features and between their weights.
    pub const BETWEEN_ERROR: &str = "between error";
    /// As [`UTILITIES_SPREAD`], for the middle between two users.
    pub const BETWEEN_SPREAD: &str = "between spread";
    /// All of them.
    pub const KNOWLEDGE: [&str; 7] = [
        CHOICE_OWN,
        CHOICE_MEAN,
        CHOICE_SHUFFLED,
        UTILITIES_ERROR,
        UTILITIES_SPREAD,
        BETWEEN_ERROR,
        BETWEEN_SPREAD,
    ];
}

/// A kind of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Its name in rows.
    pub name: String,
    /// Its name in the figure.
    pub label: String,
    /// What the features are.
    pub features: Features,
    /// Where they are looked at; absent: in every world, under every separation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<Setting>,
}

/// A world and a separation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// The world.
    pub world: World,
    /// The separation.
    pub separation: Separation,
}

/// What a user is to be told from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Features {
    /// The model's hidden state of one layer at the last written position.
    Embedding {
        /// Which pictures are shown as chosen.
        choices: Choices,
        /// The layer, from 0, the embeddings' own; absent: the last.
        #[serde(default)]
        layer: Option<usize>,
        /// The model's folder among the assets; absent: the study's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<PathBuf>,
    },
    /// The mean over the pairs of the chosen picture's embedding under a CLIP less the rejected one's.
    ClipDifference {
        /// The CLIP's folder among the assets, or the name of the profile's public reward.
        model: PathBuf,
    },
    /// Nothing is learned: each user's probability of the observed choices, from her known utilities; where users have
    /// topics, also of the observed captions.
    KnownUtilities,
}

/// Which pictures are shown as chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choices {
    /// Those that the user chose.
    Own,
    /// Those that a coin says: what is found nevertheless comes from content alone.
    Coin,
}

/// A point of the paper's figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The rank.
    pub rank: usize,
    /// The share found.
    pub accuracy: f64,
}

/// That one kind of features finds more users than another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its name.
    pub id: String,
    /// In words.
    pub text: String,
    /// The features that find more.
    pub method: String,
    /// Than which.
    pub over: String,
    /// In which world.
    pub world: World,
    /// With which asked groups.
    pub separation: Separation,
    /// By which head.
    pub head: classify::Head,
    /// At which rank.
    pub rank: usize,
    /// The least difference that counts.
    pub smallest_effect: f64,
}

/// The score of features that need no head.
pub const RANK: &str = "rank";

/// The score of a head.
pub fn rank_by(head: classify::Head) -> String {
    format!("{RANK} {}", head.name())
}

/// What rows are called.
pub fn row_method(features: &str, world: World, separation: Separation) -> String {
    format!("{features} {} {}", world.name(), separation.name())
}

impl Identification {
    /// Whether a study's file is one of these.
    ///
    /// # Errors
    /// Where the file is missing or is no TOML.
    pub fn is_asked_for(request: &Request) -> Result<bool> {
        #[derive(Deserialize)]
        struct Kind {
            kind: Option<String>,
        }
        let text = super::library::experiment(&request.experiments, &request.study)?;
        let kind: Kind = toml::from_str(&text.text)
            .map_err(|fault| Error::Spec(format!("{}: {}", text.name, fault.message())))?;
        match kind.kind.as_deref() {
            None => Ok(false),
            Some(KIND) => Ok(true),
            Some(other) => {
                Err(Error::Spec(format!("{}: kind is `{other}`, expected `{KIND}` or none", text.name)))
            }
        }
    }

    /// Reads a study with its overrides.
    ///
    /// # Errors
    /// All problems at once, each with file and line, or with the override that it stands in.
    pub fn load(request: &Request) -> Result<Self> {
        let name = if request.profile.is_empty() { "desk" } else { &request.profile };
        let mut sources = Sources::default();
        let chain = study_chain(&request.experiments, &request.study, &mut sources)?;
        let overrides: Vec<usize> =
            request.set.iter().map(|setting| sources.add_override(setting)).collect::<Result<_>>()?;
        let text = library::profile(&request.experiments, name)?;
        let profile = sources.add_file(&text.name, &text.text);
        let mut problems = Problems::default();
        let mut profile = sources.parse(profile)?;
        // What a profile changes of studies is about trainings and images.
        for layer in ["set", "quick"] {
            take_table(&mut profile, layer);
        }
        let profile: Option<Profile> = sources.read(whole(profile), &mut problems);
        for fault in profile.iter().flat_map(Profile::faults) {
            problems.push(format!("{}: {fault}", text.name));
        }
        let mut tree = toml::de::DeTable::new();
        for &index in &chain {
            let mut layer = sources.parse(index)?;
            layer.remove("extends");
            sources.merge(&mut tree, layer, &mut problems);
        }
        let sections = profile.as_ref().map_or(name, Profile::sections);
        let sections = Sections::take(&mut tree, sections, &sources, &mut problems);
        sources.merge(&mut tree, sections.profile, &mut problems);
        match request.size {
            Size::Standard => {}
            Size::Quick => sources.merge(&mut tree, sections.quick, &mut problems),
            Size::Released => sources.merge(&mut tree, sections.released, &mut problems),
        }
        for &index in &overrides {
            sources.merge(&mut tree, sources.parse(index)?, &mut problems);
        }
        let study: Option<Self> = sources.read(whole(tree), &mut problems);
        let study = study.zip(profile).map(|(mut study, profile)| {
            study.label = label(&profile.name, request);
            study.profile = Some(profile);
            study.keep_only(&mut problems);
            study.check(&mut problems);
            study
        });
        problems.finish()?;
        study.ok_or_else(|| Error::Spec(format!("{}: cannot be read", request.study)))
    }

    /// Whether users are people whose choices a data set records.
    pub fn is_recorded(&self) -> bool {
        self.users.worlds.contains(&World::Recorded)
    }

    /// What cannot be where nobody knows people's utilities, and where there are people instead of the desk's users.
    fn check_recorded(&self, problems: &mut Problems) {
        let profile = self.profile.as_ref();
        if !self.is_recorded() {
            if let Some(profile) = profile.filter(|profile| !profile.artefacts.is_empty()) {
                problems.push(format!(
                    "{}: users.worlds are of simulated users, who look at the desk's pictures, not those of profile `{}`; set \
                     users.worlds = [\"recorded\"] (in the study's [profiles.{}]), or run it under `desk`",
                    self.name,
                    profile.name,
                    profile.sections()
                ));
            }
            return;
        }
        if self.users.worlds.len() > 1 {
            problems.push(format!(
                "{}: users.worlds: `recorded` users are people, and stand alone; give the others a study of their own",
                self.name
            ));
        }
        let nobody = "nobody knows people's utilities where choices are recorded";
        if self.knowledge.is_some() {
            problems.push(format!(
                "{}: [knowledge] is about true utilities and what is measured of the desk's pictures, and {nobody}; leave it \
                 out",
                self.name
            ));
        }
        for method in self.methods.iter().filter(|method| method.features == Features::KnownUtilities) {
            problems.push(format!(
                "{}: methods.{}: `known-utilities`: {nobody}; leave it out (`only`)",
                self.name, method.name
            ));
        }
    }

    /// Leaves out the methods that are not asked for.
    fn keep_only(&mut self, problems: &mut Problems) {
        let Some(only) = self.only.take() else { return };
        let known: Vec<&str> = self.methods.iter().map(|method| method.name.as_str()).collect();
        for name in only.iter().filter(|name| !known.contains(&name.as_str())) {
            problems.push(unknown(&format!("{}: only", self.name), "method", name, &known));
        }
        self.methods.retain(|method| only.contains(&method.name));
    }

    fn check(&self, problems: &mut Problems) {
        self.check_recorded(problems);
        let Groups { shots, learned, asked, .. } = self.groups;
        if self.schema != SCHEMA {
            problems.push(format!("{}: schema must be {SCHEMA}", self.name));
        }
        for (what, value) in [
            ("users.count", self.users.count),
            ("groups.shots", shots),
            ("groups.learned", learned),
            ("groups.asked", asked),
            ("embedding.batch", self.embedding.batch),
            ("embedding.max_new_tokens", self.embedding.max_new_tokens),
        ] {
            if value == 0 {
                problems.push(format!("{}: {what} is 0, expected at least 1", self.name));
            }
        }
        let needed = shots * (learned + asked);
        if needed > self.users.pairs_per_user {
            problems.push(format!(
                "{}: users.pairs_per_user is {}, and {learned} + {asked} groups of {shots} need {needed}",
                self.name, self.users.pairs_per_user
            ));
        }
        if let Some(rank) = self.ranks.iter().find(|&&rank| rank == 0 || rank > self.users.count) {
            problems.push(format!("{}: ranks has {rank}, expected 1 to users.count", self.name));
        }
        if let Some(knowledge) = &self.knowledge {
            // Choices are foreseen from another group, and another user of the same part stands for a stranger.
            if asked < 2 || learned < 2 {
                problems.push(format!(
                    "{}: [knowledge] needs groups.learned and groups.asked of at least 2, got {learned} and {asked}",
                    self.name
                ));
            }
            if knowledge.folds < 2 || 2 * knowledge.folds > self.users.count {
                problems.push(format!(
                    "{}: knowledge.folds is {}, expected 2 to half of users.count",
                    self.name, knowledge.folds
                ));
            }
            if knowledge.epochs == 0 || knowledge.batch == 0 {
                problems
                    .push(format!("{}: knowledge.epochs and knowledge.batch must be at least 1", self.name));
            }
        }
        for claim in &self.claims {
            for method in [&claim.method, &claim.over] {
                if !self.methods.iter().any(|known| known.name == *method) {
                    problems.push(format!("{}: claim {}: no method `{method}`", self.name, claim.id));
                }
            }
        }
    }

    /// The weights and data that it runs on.
    ///
    /// # Errors
    /// [`Error::Spec`] where it was not read with any.
    pub fn profile(&self) -> Result<&Profile> {
        self.profile.as_ref().ok_or_else(|| Error::Spec(format!("{}: has no profile", self.name)))
    }

    /// The folder of its records under a results folder.
    pub fn folder(&self, results: &Path) -> PathBuf {
        results.join(&self.name).join(&self.label)
    }
}
