//! What `[users]` says of people whose choices are recorded: whose utilities nobody knows, and who each answer captions of
//! their own.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Addressee, FARTHEST, Users};
use crate::data::desk::users;
use crate::data::recorded::Shares;
use crate::data::splits;
use crate::rng::stream;
use crate::scenes::tastes::Kind;
use crate::spec::source::Problems;
use crate::spec::{Condition, Conditioning, Method, Role};

/// Who chooses between the study's pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Choosing {
    /// Simulated users with known utilities, between the desk's pairs.
    #[default]
    Simulated,
    /// People did, and the data set says who and what; their utilities are unknown.
    Recorded(Shares),
}

impl Choosing {
    /// Whether utilities are known.
    pub fn is_simulated(&self) -> bool {
        *self == Self::Simulated
    }
}

/// Of how many users images are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, or { seen = .., unseen = .. }")]
pub enum Evaluated {
    /// Of so many of each kind.
    OfEach(usize),
    /// Of so many seen ones, and so many unseen ones.
    Of {
        /// Seen ones.
        seen: usize,
        /// Unseen ones.
        unseen: usize,
    },
}

impl Evaluated {
    /// How many of a kind.
    pub fn of(self, kind: Kind) -> usize {
        match (self, kind) {
            (Self::OfEach(count), _) => count,
            (Self::Of { seen, .. }, Kind::Seen) => seen,
            (Self::Of { unseen, .. }, Kind::Unseen) => unseen,
        }
    }

    /// How many in all.
    pub fn all(self) -> usize {
        self.of(Kind::Seen) + self.of(Kind::Unseen)
    }
}

impl Users {
    /// For each user another one, by a derangement from the study's seed: no user meets herself, each is met once.
    pub fn strangers(&self, who: &[i64]) -> BTreeMap<i64, i64> {
        // A random circle has nobody who meets herself.
        let mut circle = who.to_vec();
        stream(self.seed, "mismatched users", who.len() as u64).shuffle(&mut circle);
        let next = circle.iter().cycle().skip(1);
        circle.iter().copied().zip(next.copied()).filter(|(user, other)| user != other).collect()
    }

    /// The numbers of the prompts that a method makes images of under a condition, where prompts are the captions of
    /// everybody's own held-out choices, `each` of a user: hers; for nobody in particular, everybody's. The personal model
    /// also makes images for her of the one to whom she is a stranger.
    pub fn own_prompts(&self, role: Role, condition: &Condition, each: usize) -> Vec<u32> {
        let Some(one) = condition.single().and_then(Addressee::parse) else {
            return (0..(self.evaluated.all() * each) as u32).collect();
        };
        let mut whose = vec![one.user];
        if role == Role::Personal {
            let who: Vec<i64> = self.evaluated(users::of_identifier(one.user).0).collect();
            let met = self.strangers(&who).into_iter().find(|(_, other)| *other == one.user);
            whose.extend(met.map(|(user, _)| user));
        }
        whose.into_iter().flat_map(|user| self.prompts_of_user(user, each)).collect()
    }

    /// The numbers of a user's own prompts, `each` of a user: seen ones first. None of somebody who is not looked at.
    pub fn prompts_of_user(&self, user: i64, each: usize) -> Range<u32> {
        let (kind, index) = users::of_identifier(user);
        if index >= self.evaluated.of(kind) as u64 {
            return 0..0;
        }
        let before = if kind == Kind::Seen { 0 } else { self.evaluated.of(Kind::Seen) };
        let place = (before + index as usize) * each;
        place as u32..(place + each) as u32
    }

    /// What cannot be where nobody knows people's utilities, and what only then can.
    pub(super) fn check_recorded(&self, study: &str, methods: &[Method], problems: &mut Problems) {
        if self.choices.is_simulated() {
            if self.held_out > 0 {
                problems.push(format!(
                    "{study}: users.held_out is for recorded choices (users.choices = {{ kind = \"recorded\" }}); of simulated \
                     ones each block is held out: raise users.draws"
                ));
            }
            return;
        }
        if let Choosing::Recorded(Shares { unseen_users, validation, held_out }) = self.choices {
            let config = splits::Config { seed: self.seed, unseen_users, validation, held_out };
            problems.take(splits::assign(&[], &config));
        }
        let unknown = "people's utilities are unknown where users.choices are recorded";
        let knows = [Conditioning::Utilities, Conditioning::Posterior];
        for method in methods.iter().filter(|method| knows.contains(&method.conditioning)) {
            let name = if method.conditioning == knows[0] { "utilities" } else { "posterior" };
            problems.push(format!(
                "{study}: methods.{}: conditioning `{name}`: {unknown}; leave it out (`only`), or take `embedding`",
                method.name
            ));
        }
        if self.labelled.is_some() {
            problems.push(format!(
                "{study}: users.labelled: {unknown}, and the labels of the data set are of other pairs than the judges'; leave \
                 the section out: rates are then printed as not correctable"
            ));
        }
        if !self.claims.is_empty() {
            problems.push(format!(
                "{study}: users.claims are about true preferences, and {unknown}; leave them out: figure 5 then shows what judges \
                 say"
            ));
        }
        for judge in &self.judges {
            if judge.judge.get("kind").and_then(toml::Value::as_str) == Some("oracle") {
                problems.push(format!(
                    "{study}: users.judges: {}: an oracle says what is true, and {unknown}; ask a model (`vlm`, `openai`)",
                    judge.name
                ));
            }
            if judge.over.iter().flatten().any(|over| over == FARTHEST) {
                problems.push(format!(
                    "{study}: users.judges: {}: over `{FARTHEST}`: {unknown}, and so is how far two tastes are apart; take \
                     `mismatched`",
                    judge.name
                ));
            }
        }
    }
}
