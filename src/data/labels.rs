//! Who chooses: raw labels, or a reward (the paper's relabelling, Sec. 5.1), and what a method trains on then.
//!
//! A label source turns each pair into a comparison: the chosen side, for a user where the method has users. One
//! reward is one synthetic user, numbered by its place in the list; every pair is relabelled by each of them.

use serde::{Deserialize, Serialize};

use crate::data::scores::Scores;
use crate::data::{Choice, Preference};
use crate::error::{Error, Result};
use crate::rng::stream;
use crate::stats::Estimate;
use crate::stats::proportion::wilson;
use crate::units::Seed;

/// Who says which image of a pair is better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Labels {
    /// The labels that came with the pairs, `label_0` and `label_1`; ties are dropped.
    Raw,
    /// The choices of the people of a study's `[users]`, each trained as hers.
    Users,
    /// Each pair is labelled by each reward, and trained as that reward's user.
    Reward {
        /// The rewards that label.
        rewards: Vec<String>,
    },
    /// Each pair is labelled by each reward, and nobody is told by which: contradictions stay in.
    Pooled {
        /// The rewards that label.
        rewards: Vec<String>,
    },
    /// As `reward`, with chosen and rejected drawn by lot: a control without signal.
    ShuffledLabels {
        /// The rewards whose labels are shuffled.
        rewards: Vec<String>,
    },
    /// As `reward`, with the users drawn by lot among the labelled pairs: a control without personal signal.
    ShuffledUsers {
        /// The rewards whose users are shuffled.
        rewards: Vec<String>,
    },
}

impl Labels {
    /// The rewards that label; none for raw labels.
    pub fn rewards(&self) -> &[String] {
        match self {
            Self::Raw | Self::Users => &[],
            Self::Reward { rewards }
            | Self::Pooled { rewards }
            | Self::ShuffledLabels { rewards }
            | Self::ShuffledUsers { rewards } => rewards,
        }
    }
}

/// One thing to learn: of this pair, this side is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Comparison {
    /// The pair's place in the dataset.
    pub pair: usize,
    /// The chosen side, 0 or 1; the other is rejected.
    pub chosen: usize,
    /// Whose choice it is: the reward's place in [`Labels::rewards`], or `None` where the method has no users.
    pub user: Option<usize>,
}

impl Comparison {
    /// The rejected side.
    pub fn rejected(&self) -> usize {
        1 - self.chosen
    }
}

/// What a method trains on, and how many choices were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparisons {
    /// The choices, by reward and then by pair.
    pub items: Vec<Comparison>,
    /// Choices left out because both sides were equal.
    pub ties: usize,
    /// Pairs left out because nobody labelled them.
    pub unlabelled: usize,
    /// Choices left out because the two scores were among the closest.
    pub close: usize,
}

/// The comparisons that `labels` make of the pairs.
///
/// `gap_filter` is the share of a reward's choices that is dropped, those with the smallest difference of scores
/// first; raw labels have no gap. `seed` is asked only by the shuffled controls.
///
/// # Errors
/// [`Error::Spec`] where a reward has no scores, none is named, or the share is not in `[0, 1)`; [`Error::Shape`]
/// where pairs and scores are not as many; [`Error::Spec`] where no comparison is left.
pub fn comparisons(
    labels: &Labels,
    pairs: &[Preference],
    scores: &Scores,
    gap_filter: f64,
    seed: Seed,
) -> Result<Comparisons> {
    if !(0.0..1.0).contains(&gap_filter) {
        return Err(Error::Spec(format!(
            "gap_filter must be in [0, 1), a share of the pairs, got {gap_filter}"
        )));
    }
    let mut all = Comparisons::default();
    if *labels == Labels::Raw {
        for (pair, preference) in pairs.iter().enumerate() {
            match preference.choice() {
                Some(Choice::Side(chosen)) => all.items.push(Comparison { pair, chosen, user: None }),
                Some(Choice::Tie) => all.ties += 1,
                None => all.unlabelled += 1,
            }
        }
    } else if *labels == Labels::Users {
        return Err(Error::Spec(
            "labels by users are choices of a study's own people, not of the pairs".into(),
        ));
    } else if labels.rewards().is_empty() {
        return Err(Error::Spec("labels by reward need at least one reward; name one in `rewards`".into()));
    }
    for (user, reward) in labels.rewards().iter().enumerate() {
        let values = scores.get(reward)?;
        if values.len() != pairs.len() {
            return Err(Error::Shape(format!(
                "{} pairs, but {reward} scores {}; score the pairs again",
                pairs.len(),
                values.len()
            )));
        }
        let (kept, ties, close) = wide(values, gap_filter);
        all.ties += ties;
        all.close += close;
        let user = if matches!(labels, Labels::Pooled { .. }) { None } else { Some(user) };
        all.items.extend(kept.into_iter().map(|(pair, chosen)| Comparison { pair, chosen, user }));
    }
    match labels {
        Labels::ShuffledLabels { .. } => {
            let mut coins = stream(seed, "shuffled-labels", 0);
            all.items.iter_mut().for_each(|item| item.chosen = coins.below(2));
        }
        Labels::ShuffledUsers { .. } => {
            let mut users: Vec<Option<usize>> = all.items.iter().map(|item| item.user).collect();
            stream(seed, "shuffled-users", 0).shuffle(&mut users);
            all.items.iter_mut().zip(users).for_each(|(item, user)| item.user = user);
        }
        Labels::Raw | Labels::Users | Labels::Reward { .. } | Labels::Pooled { .. } => {}
    }
    if all.items.is_empty() {
        return Err(Error::Spec(format!(
            "no comparison is left of {} pairs: {} ties, {} without a label, {} too close; lower gap_filter or give \
             more pairs",
            pairs.len(),
            all.ties,
            all.unlabelled,
            all.close
        )));
    }
    Ok(all)
}

/// The pairs that a reward tells apart, with the chosen side, without the `share` of them with the smallest gaps;
/// and how many were ties and how many too close.
fn wide(values: &[[f64; 2]], share: f64) -> (Vec<(usize, usize)>, usize, usize) {
    let mut told: Vec<(usize, usize, f64)> = values
        .iter()
        .enumerate()
        .filter_map(|(pair, &sides)| {
            Some((pair, Choice::by_score(sides).side()?, (sides[0] - sides[1]).abs()))
        })
        .collect();
    let ties = values.len() - told.len();
    told.sort_by(|a, b| a.2.total_cmp(&b.2).then(a.0.cmp(&b.0)));
    let close = (share * told.len() as f64).floor() as usize;
    let mut kept: Vec<(usize, usize)> = told.drain(close..).map(|(pair, chosen, _)| (pair, chosen)).collect();
    kept.sort_unstable();
    (kept, ties, close)
}

/// How often two label sources choose the same side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// Pairs on which both choose the same side.
    pub same: usize,
    /// Pairs on which both choose.
    pub both: usize,
    /// Pairs that are left out: one of the two ties, or says nothing.
    pub left_out: usize,
}

impl Agreement {
    /// The share of agreement; `None` where there is no pair to agree on.
    pub fn fraction(&self) -> Option<f64> {
        (self.both > 0).then(|| self.same as f64 / self.both as f64)
    }

    /// The share with Wilson's interval, pairs taken as independent.
    ///
    /// # Errors
    /// [`Error::Spec`] where there is no pair to agree on.
    pub fn interval(&self, level: f64) -> Result<Estimate> {
        if self.both == 0 {
            let left_out = self.left_out;
            return Err(Error::Spec(format!(
                "the two label sources share no choice: {left_out} pairs are left out"
            )));
        }
        wilson(self.same as f64, self.both as u64, level)
    }
}

/// Counts how often two label sources, over the same pairs, choose the same side.
///
/// # Panics
/// Where the two are not over the same number of pairs.
pub fn agreement(first: &[Option<Choice>], second: &[Option<Choice>]) -> Agreement {
    assert_eq!(first.len(), second.len(), "two label sources speak of the same pairs");
    let sides = |choice: &Option<Choice>| choice.and_then(Choice::side);
    let mut counted = Agreement { same: 0, both: 0, left_out: 0 };
    for pair in first.iter().zip(second) {
        match (sides(pair.0), sides(pair.1)) {
            (Some(a), Some(b)) => {
                counted.both += 1;
                counted.same += usize::from(a == b);
            }
            _ => counted.left_out += 1,
        }
    }
    counted
}

/// The raw labels of pairs, as a label source.
pub fn raw_choices(pairs: &[Preference]) -> Vec<Option<Choice>> {
    pairs.iter().map(Preference::choice).collect()
}

/// A reward's choices, as a label source.
///
/// # Errors
/// [`Error::Spec`] where the reward has no scores.
pub fn reward_choices(scores: &Scores, reward: &str) -> Result<Vec<Option<Choice>>> {
    Ok(scores.get(reward)?.iter().map(|&sides| Some(Choice::by_score(sides))).collect())
}

/// How often each reward agrees with the raw labels, in the scores' order.
///
/// # Errors
/// [`Error::Shape`] where pairs and scores are not as many.
pub fn agreements(pairs: &[Preference], scores: &Scores) -> Result<Vec<(String, Agreement)>> {
    if !scores.rewards().is_empty() && scores.len() != pairs.len() {
        return Err(Error::Shape(format!("{} pairs, but scores of {}", pairs.len(), scores.len())));
    }
    let raw = raw_choices(pairs);
    let with = |reward: &String| Ok((reward.clone(), agreement(&raw, &reward_choices(scores, reward)?)));
    scores.rewards().iter().map(with).collect()
}

/// How often each two rewards agree with each other: first, second, agreement.
///
/// # Errors
/// None that [`Scores`] lets happen; kept for the look-up by name.
pub fn agreements_between(scores: &Scores) -> Result<Vec<(String, String, Agreement)>> {
    let mut table = Vec::new();
    for (place, first) in scores.rewards().iter().enumerate() {
        for second in &scores.rewards()[place + 1..] {
            let counted = agreement(&reward_choices(scores, first)?, &reward_choices(scores, second)?);
            table.push((first.clone(), second.clone(), counted));
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(labels: &[Option<[f64; 2]>]) -> Vec<Preference> {
        labels.iter().map(|&label| Preference { label, ..Preference::default() }).collect()
    }

    fn scored() -> (Vec<Preference>, Scores) {
        let mut scores = Scores::new();
        scores.insert("clip", vec![[1.0, 0.0], [0.0, 0.5], [3.0, 3.0], [0.0, 9.0], [0.2, 0.0]]).unwrap();
        scores.insert("hps", vec![[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0], [0.0, 5.0]]).unwrap();
        let raw = [Some([1.0, 0.0]), Some([0.0, 1.0]), Some([0.5, 0.5]), None, Some([0.0, 1.0])];
        (pairs(&raw), scores)
    }

    fn triples(made: &Comparisons) -> Vec<(usize, usize, Option<usize>)> {
        made.items.iter().map(|item| (item.pair, item.chosen, item.user)).collect()
    }

    fn both() -> Vec<String> {
        vec!["clip".into(), "hps".into()]
    }

    #[test]
    fn raw_labels_lose_ties_and_gaps_do_not_touch_them() {
        let (pairs, scores) = scored();
        let made = comparisons(&Labels::Raw, &pairs, &scores, 0.9, Seed::new(0)).unwrap();
        assert_eq!(triples(&made), [(0, 0, None), (1, 1, None), (4, 1, None)]);
        assert_eq!((made.ties, made.unlabelled, made.close), (1, 1, 0));
        assert_eq!(made.items[0].rejected(), 1);
    }

    #[test]
    fn each_reward_relabels_as_its_own_user_and_drops_its_own_close_pairs() {
        let (pairs, scores) = scored();
        let labels = Labels::Reward { rewards: both() };
        let made = comparisons(&labels, &pairs, &scores, 0.5, Seed::new(0)).unwrap();
        // clip ties on pair 2 and loses its two closest, 4 and 1; hps loses 0 and 1 of five.
        let expected = [(0, 0, Some(0)), (3, 1, Some(0)), (2, 1, Some(1)), (3, 1, Some(1)), (4, 1, Some(1))];
        assert_eq!(triples(&made), expected);
        assert_eq!((made.ties, made.close), (1, 4));
        let pooled =
            comparisons(&Labels::Pooled { rewards: both() }, &pairs, &scores, 0.5, Seed::new(0)).unwrap();
        assert!(
            pooled
                .items
                .iter()
                .zip(&made.items)
                .all(|(a, b)| { (a.pair, a.chosen, a.user) == (b.pair, b.chosen, None) })
        );
    }

    #[test]
    fn controls_keep_everything_but_what_they_shuffle() {
        let n = 2000;
        let mut scores = Scores::new();
        scores.insert("clip", vec![[1.0, 0.0]; n]).unwrap();
        scores.insert("hps", vec![[0.0, 1.0]; n]).unwrap();
        let pairs = vec![Preference::default(); n];
        let make = |labels: Labels| comparisons(&labels, &pairs, &scores, 0.0, Seed::new(5)).unwrap().items;
        let coins = make(Labels::ShuffledLabels { rewards: both() });
        let users = make(Labels::ShuffledUsers { rewards: both() });
        assert_eq!(
            users.iter().filter(|item| item.user == Some(0)).count(),
            n,
            "as many of each user as before"
        );
        // Four standard errors of a fair coin over 2000 choices: 0.045.
        let share = |items: &[Comparison]| {
            let first: Vec<&Comparison> = items.iter().filter(|item| item.user == Some(0)).collect();
            first.iter().filter(|item| item.chosen == 0).count() as f64 / first.len() as f64
        };
        assert!((share(&coins) - 0.5).abs() < 0.045, "{}", share(&coins));
        assert!((share(&users) - 0.5).abs() < 0.045, "{}", share(&users));
        assert_eq!(coins, make(Labels::ShuffledLabels { rewards: both() }), "the same seed, the same coins");
    }

    #[test]
    fn agreement_counts_only_where_both_choose() {
        let (pairs, scores) = scored();
        let found = agreement(&raw_choices(&pairs), &reward_choices(&scores, "clip").unwrap());
        assert_eq!(found, Agreement { same: 2, both: 3, left_out: 2 });
        assert_eq!(found.fraction(), Some(2.0 / 3.0));
        let empty = agreement(&[None], &[None]);
        assert_eq!(empty.fraction(), None);
        assert!(empty.interval(0.95).unwrap_err().to_string().contains("1 pairs are left out"));
        let table = agreements(&pairs, &scores).unwrap();
        assert_eq!(table[0], ("clip".into(), found));
        assert_eq!(table[1].1, Agreement { same: 2, both: 3, left_out: 2 });
        let between = agreements_between(&scores).unwrap();
        assert_eq!(between, [("clip".into(), "hps".into(), Agreement { same: 2, both: 4, left_out: 1 })]);
        // Wilson's 95 % interval of 2 out of 3, as statsmodels' proportion_confint gives it.
        let interval = found.interval(0.95).unwrap();
        assert!(
            (interval.low - 0.20765960080204776).abs() < 1e-9
                && (interval.high - 0.9385080552796037).abs() < 1e-9
        );
        assert!(agreements(&pairs[1..], &scores).is_err());
    }

    #[test]
    fn impossible_labels_are_refused() {
        let (pairs, scores) = scored();
        let message = |labels: Labels, gap: f64| {
            comparisons(&labels, &pairs, &scores, gap, Seed::new(0)).unwrap_err().to_string()
        };
        assert!(message(Labels::Raw, 1.0).contains("[0, 1)"));
        assert!(message(Labels::Pooled { rewards: vec![] }, 0.0).contains("at least one reward"));
        assert!(
            message(Labels::Reward { rewards: vec!["clap".into()] }, 0.0).contains("did you mean \"clip\"")
        );
        let nobody = vec![Preference::default(); 2];
        let none = comparisons(&Labels::Raw, &nobody, &scores, 0.0, Seed::new(0)).unwrap_err().to_string();
        assert!(none.contains("2 without a label"), "{none}");
        assert!(
            comparisons(&Labels::Reward { rewards: both() }, &nobody, &scores, 0.0, Seed::new(0)).is_err()
        );
    }

    #[test]
    fn labels_are_written_by_their_kind() {
        let read = |text: &str| toml::from_str::<Labels>(text);
        assert_eq!(read("kind = \"raw\"").unwrap(), Labels::Raw);
        let shuffled = read("kind = \"shuffled-labels\"\nrewards = [\"clip\", \"hps\"]").unwrap();
        assert_eq!(shuffled, Labels::ShuffledLabels { rewards: both() });
        assert!(read("kind = \"reward\"\nrewards = []\nseed = 1").is_err());
    }
}
