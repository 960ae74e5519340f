//! Claims that are fixed before anybody looks: `[[claims]]` of an experiment file.
//!
//! A claim names what is compared, in which direction, and the smallest effect of interest, so that afterwards only
//! three verdicts are possible: it holds, it does not hold (the interval excludes that effect), or the study was
//! underpowered. Effects and margins are in units of the base's standard deviation between images of one prompt,
//! which makes one number mean the same on every reward; win rates and correlations are plain.
//!
//! ```toml
//! [[claims]]
//! id = "ppd-beats-base"
//! text = "PPD raises each reward over the base when conditioned on that reward's user"
//! test = { kind = "higher-mean", method = "ppd", over = "base", rewards = ["clip", "aesthetic", "hps"], smallest_effect = 0.1 }
//! ```
//!
//! A claim over several rewards, and the diagonal, is an intersection-union test: it holds where every part holds. A
//! part on a reward that has a twin holds only where the twin agrees. Holm's correction runs across all claims of a
//! study. Evaluating claims is `report`'s business; here they are read and refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, nearest};

/// A claim, as an experiment file states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// A short name, unique within the study.
    pub id: String,
    /// The claim in a sentence.
    pub text: String,
    /// How it is decided.
    pub test: Test,
    /// A control: where it fails, the study itself is in doubt.
    #[serde(default)]
    pub control: bool,
}

/// Which way a comparison points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// The first is greater than the second.
    #[default]
    Greater,
    /// The first is less than the second.
    Less,
}

/// How a claim is decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Test {
    /// The mean reward of `method` exceeds that of `over`, on each of `rewards`.
    HigherMean {
        /// The method that should have more.
        method: String,
        /// Its condition; without one, each reward's own user where the method takes users.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        condition: Option<String>,
        /// The method that it is compared with, under the condition that its table row uses.
        over: String,
        /// The rewards; the claim needs all of them.
        rewards: Vec<String>,
        /// The smallest difference worth the name, in the base's standard deviations between images of one prompt.
        smallest_effect: f64,
        /// `greater`, unless the claim is that `method` has less.
        #[serde(default)]
        expected: Expected,
    },
    /// `method` wins more than half of all images against `over` (ties count one half), on each of `rewards`.
    WinRate {
        /// The method that should win.
        method: String,
        /// The method that it is compared with.
        over: String,
        /// The rewards; the claim needs all of them.
        rewards: Vec<String>,
        /// The smallest distance from one half worth the name.
        smallest_effect: f64,
        /// `greater`, unless the claim is that `method` wins less than half.
        #[serde(default)]
        expected: Expected,
    },
    /// Each reward is highest under its own user: every other user of the same method scores lower on it.
    Diagonal {
        /// The method that takes users.
        method: String,
        /// The rewards, whose users are compared with one another.
        rewards: Vec<String>,
        /// The smallest difference worth the name, in the base's standard deviations between images of one prompt.
        smallest_effect: f64,
    },
    /// `method` is not worse than each reward's specialist by more than `margin`.
    NonInferior {
        /// The method that should keep up.
        method: String,
        /// The specialist of each reward.
        specialists: BTreeMap<String, String>,
        /// The largest loss that still counts as keeping up, in the base's standard deviations between images of one prompt.
        margin: f64,
    },
    /// The mean of `method` differs from that of `over` by less than `largest_effect`, either way: for controls.
    NoEffect {
        /// The method that should change nothing.
        method: String,
        /// The method that it should equal.
        over: String,
        /// The rewards; the claim needs all of them.
        rewards: Vec<String>,
        /// The bound on the difference, in the base's standard deviations between images of one prompt.
        largest_effect: f64,
    },
    /// A reward under its own user differs from its mean under the other users by less than `largest_effect`.
    NoDiagonal {
        /// The method whose users should not matter.
        method: String,
        /// The rewards, whose users are compared with one another.
        rewards: Vec<String>,
        /// The bound on the difference, in the base's standard deviations between images of one prompt.
        largest_effect: f64,
    },
    /// A user's weight and that reward go together over the simplex: Spearman within a prompt, averaged, is above
    /// zero, and that of the mean curve is above `least`.
    Correlation {
        /// The method whose users are mixed.
        method: String,
        /// The rewards; the claim needs all of them.
        rewards: Vec<String>,
        /// What Spearman's coefficient of the mean curve must exceed.
        least: f64,
    },
}

impl Test {
    /// Every kind's name, as a file writes it.
    pub const KINDS: &[&str] =
        &["higher-mean", "win-rate", "diagonal", "non-inferior", "no-effect", "no-diagonal", "correlation"];

    /// This test's kind, as a file writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::HigherMean { .. } => "higher-mean",
            Self::WinRate { .. } => "win-rate",
            Self::Diagonal { .. } => "diagonal",
            Self::NonInferior { .. } => "non-inferior",
            Self::NoEffect { .. } => "no-effect",
            Self::NoDiagonal { .. } => "no-diagonal",
            Self::Correlation { .. } => "correlation",
        }
    }

    /// The methods that it needs, the one that is spoken of first.
    pub fn methods(&self) -> Vec<&str> {
        match self {
            Self::HigherMean { method, over, .. }
            | Self::WinRate { method, over, .. }
            | Self::NoEffect { method, over, .. } => vec![method, over],
            Self::NonInferior { method, specialists, .. } => {
                std::iter::once(method).chain(specialists.values()).map(String::as_str).collect()
            }
            Self::Diagonal { method, .. }
            | Self::NoDiagonal { method, .. }
            | Self::Correlation { method, .. } => {
                vec![method]
            }
        }
    }

    /// The rewards that it needs.
    pub fn rewards(&self) -> Vec<&str> {
        match self {
            Self::HigherMean { rewards, .. }
            | Self::WinRate { rewards, .. }
            | Self::Diagonal { rewards, .. }
            | Self::NoEffect { rewards, .. }
            | Self::NoDiagonal { rewards, .. }
            | Self::Correlation { rewards, .. } => rewards.iter().map(String::as_str).collect(),
            Self::NonInferior { specialists, .. } => specialists.keys().map(String::as_str).collect(),
        }
    }

    /// The smallest effect, bound or margin with the name of its key, and the range it must lie in.
    fn size(&self) -> (&'static str, f64, std::ops::Range<f64>) {
        match self {
            Self::HigherMean { smallest_effect, .. } | Self::Diagonal { smallest_effect, .. } => {
                ("smallest_effect", *smallest_effect, 0.0..f64::MAX)
            }
            Self::WinRate { smallest_effect, .. } => ("smallest_effect", *smallest_effect, 0.0..0.5),
            Self::NonInferior { margin, .. } => ("margin", *margin, f64::MIN_POSITIVE..f64::MAX),
            Self::NoEffect { largest_effect, .. } | Self::NoDiagonal { largest_effect, .. } => {
                ("largest_effect", *largest_effect, f64::MIN_POSITIVE..f64::MAX)
            }
            Self::Correlation { least, .. } => ("least", *least, 0.0..1.0),
        }
    }
}

/// Refuses claims that a study cannot decide.
///
/// `methods` are the study's methods with the conditions of each; `scores` are all rewards and measured statistics
/// that its rows will hold.
///
/// # Errors
/// Where two claims share an id, or one names a method, condition or reward that the study lacks, or a size out of
/// range; the message names the claim and the nearest known name.
pub fn check(claims: &[Claim], methods: &[(&str, &[String])], scores: &[&str]) -> Result<()> {
    for (index, claim) in claims.iter().enumerate() {
        let refuse = |message: String| Err(Error::Spec(format!("claim {:?}: {message}", claim.id)));
        if claim.id.is_empty() || claim.text.is_empty() {
            return refuse("id and text must not be empty".into());
        }
        if claims[..index].iter().any(|earlier| earlier.id == claim.id) {
            return refuse("a second claim with this id; give each its own".into());
        }
        for method in claim.test.methods() {
            if !methods.iter().any(|(name, _)| *name == method) {
                return refuse(unknown("method", method, methods.iter().map(|(name, _)| *name)));
            }
        }
        let rewards = claim.test.rewards();
        if rewards.is_empty() {
            return refuse("names no reward; expected at least one".into());
        }
        for reward in &rewards {
            if !scores.contains(reward) {
                return refuse(unknown("reward", reward, scores.iter().copied()));
            }
        }
        let (key, size, range) = claim.test.size();
        if !range.contains(&size) {
            let most = if range.end == f64::MAX { "any number".into() } else { range.end.to_string() };
            let least = if range.start == 0.0 { "0 or more" } else { "above 0" };
            return refuse(format!("{key} is {size}, expected {least} and below {most}"));
        }
        let conditions =
            |of: &str| methods.iter().find(|(name, _)| *name == of).map_or(&[][..], |(_, all)| *all);
        let subject = claim.test.methods()[0];
        let needed: Vec<&str> = match &claim.test {
            Test::HigherMean { condition: Some(condition), .. } => vec![condition],
            Test::Diagonal { .. } | Test::NoDiagonal { .. } if rewards.len() < 2 => {
                return refuse("compares users with one another; expected at least two rewards".into());
            }
            Test::Diagonal { .. } | Test::NoDiagonal { .. } => rewards,
            _ => Vec::new(),
        };
        for condition in needed {
            if !conditions(subject).iter().any(|known| known == condition) {
                let known = conditions(subject).iter().map(String::as_str);
                return refuse(unknown(&format!("condition of {subject}"), condition, known));
            }
        }
        let mixed = |condition: &String| condition.contains('+');
        if matches!(claim.test, Test::Correlation { .. }) && !conditions(subject).iter().any(mixed) {
            return refuse(format!(
                "needs mixtures such as \"clip=0.50+hps=0.50\" among the conditions of {subject}, found none"
            ));
        }
    }
    Ok(())
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let all = known.clone().collect::<Vec<_>>().join(", ");
    match nearest(name, known) {
        Some(meant) => format!("unknown {what} {name:?}, did you mean {meant:?}? (known: {all})"),
        None => format!("unknown {what} {name:?}; known: {all}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        claims: Vec<Claim>,
    }

    /// One claim of every kind.
    const ALL: &str = r#"
        [[claims]]
        id = "mean"
        text = "PPD raises each reward over the base."
        test = { kind = "higher-mean", method = "ppd", over = "base", rewards = ["clip", "hps"], smallest_effect = 0.1 }

        [[claims]]
        id = "mean-of-one"
        text = "Conditioned on CLIP's user, PPD has less HPS than the base."
        test = { kind = "higher-mean", method = "ppd", condition = "clip", over = "base", rewards = ["hps"], smallest_effect = 0.1, expected = "less" }

        [[claims]]
        id = "wins"
        text = "PPD wins over the base."
        test = { kind = "win-rate", method = "ppd", over = "base", rewards = ["clip"], smallest_effect = 0.05 }

        [[claims]]
        id = "diagonal"
        text = "Each reward is highest under its own user."
        test = { kind = "diagonal", method = "ppd", rewards = ["clip", "hps"], smallest_effect = 0.0 }

        [[claims]]
        id = "keeps-up"
        text = "PPD is not worse than the specialists."
        [claims.test]
        kind = "non-inferior"
        method = "ppd"
        specialists = { clip = "dpo-clip" }
        margin = 0.2

        [[claims]]
        id = "shuffled-labels"
        text = "Shuffled labels teach nothing."
        control = true
        test = { kind = "no-effect", method = "shuffled", over = "base", rewards = ["clip"], largest_effect = 0.2 }

        [[claims]]
        id = "shuffled-users"
        text = "Shuffled users do not matter."
        control = true
        test = { kind = "no-diagonal", method = "ppd", rewards = ["clip", "hps"], largest_effect = 0.2 }

        [[claims]]
        id = "interpolates"
        text = "A reward grows with its user's weight."
        test = { kind = "correlation", method = "ppd", rewards = ["clip", "hps"], least = 0.6 }
    "#;

    fn read(text: &str) -> Vec<Claim> {
        toml::from_str::<File>(text).unwrap().claims
    }

    fn refusal(text: &str) -> String {
        let users: Vec<String> = ["clip", "hps", "clip=0.50+hps=0.50"].map(String::from).to_vec();
        let nobody = ["none".to_owned()];
        let methods = [
            ("base", &nobody[..]),
            ("ppd", &users[..]),
            ("dpo-clip", &nobody[..]),
            ("shuffled", &nobody[..]),
        ];
        match check(&read(text), &methods, &["clip", "hps", "brightness"]) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_kind_is_read_written_and_accepted() {
        let claims = read(ALL);
        let kinds: std::collections::BTreeSet<_> = claims.iter().map(|claim| claim.test.kind()).collect();
        assert_eq!(kinds.len(), Test::KINDS.len());
        assert!(Test::KINDS.iter().all(|kind| kinds.contains(kind)));
        assert_eq!(refusal(ALL), "");
        let again = serde_json::to_string(&claims).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Claim>>(&again).unwrap(), claims);
        assert!(claims[0].test.methods() == ["ppd", "base"] && claims[4].test.rewards() == ["clip"]);
    }

    #[test]
    fn what_cannot_be_decided_is_refused_with_the_way_out() {
        for (wrong, right, expected) in [
            ("over = \"base\"", "over = \"bse\"", "did you mean \"base\""),
            (
                "rewards = [\"clip\"]",
                "rewards = [\"clp\"]",
                "claim \"wins\": unknown reward \"clp\", did you mean \"clip\"",
            ),
            ("rewards = [\"clip\"]", "rewards = []", "names no reward"),
            (
                "smallest_effect = 0.05",
                "smallest_effect = 0.5",
                "smallest_effect is 0.5, expected 0 or more and below 0.5",
            ),
            ("margin = 0.2", "margin = 0.0", "margin is 0, expected above 0"),
            ("id = \"wins\"", "id = \"mean\"", "a second claim with this id"),
            (
                "condition = \"clip\"",
                "condition = \"clips\"",
                "unknown condition of ppd \"clips\", did you mean \"clip\"",
            ),
            (
                "method = \"ppd\", rewards = [\"clip\", \"hps\"], least",
                "method = \"base\", rewards = [\"clip\", \"hps\"], least",
                "needs mixtures",
            ),
            (
                "method = \"ppd\", rewards = [\"clip\", \"hps\"], largest",
                "method = \"ppd\", rewards = [\"clip\"], largest",
                "at least two rewards",
            ),
        ] {
            assert!(ALL.contains(wrong), "{wrong}");
            let got = refusal(&ALL.replace(wrong, right));
            assert!(got.contains(expected), "{right} gave {got:?}, expected {expected:?}");
        }
        for (wrong, right) in
            [("kind = \"diagonal\"", "kind = \"diagnal\""), ("margin = 0.2", "margins = 0.2")]
        {
            assert!(toml::from_str::<File>(&ALL.replace(wrong, right)).is_err());
        }
    }
}
