//! Vectors that are made from a few of a user's choices: of groups that are learned from, and of blocks that images are
//! made for.

use std::collections::BTreeMap;

use super::discriminant::Discriminants;
use crate::data::desk::users::{Choice, Shown};
use crate::scenes::belief::Prior;
use crate::scenes::tastes::{FEATURES, Kind, Tastes};
use crate::spec::users::Users;

/// A user, a number of choices, a block.
pub(super) type Key = (i64, usize, usize);

/// One vector for each group of choices.
#[derive(Debug, Default)]
pub(super) struct Vectors {
    /// Of each user that is trained on, her groups'.
    pub learned: BTreeMap<i64, Vec<Vec<f32>>>,
    /// What stands for a user: by her number, how many choices are told, and of which block.
    pub told: BTreeMap<Key, Vec<f32>>,
    /// Of each.
    pub width: usize,
}

/// The largest coordinate of an embedding, whatever was shown.
const FARTHEST: f64 = 4.0;
/// Users that stand for the population where Bayes' rule is used.
const POPULATION: u64 = 2000;

impl Vectors {
    /// Embeddings, standardised over those that are trained on, whose `owners` stand beside, and, where a number of
    /// discriminants is given, reduced to the directions in which their users differ. Their root mean square length there is
    /// `length`.
    pub fn standardised<'a>(
        (owners, learned): (&[i64], &[Vec<f32>]),
        (told, rows): (impl Iterator<Item = &'a Key>, &[Vec<f32>]),
        (discriminants, length): (Option<usize>, f64),
    ) -> Self {
        let width = learned.first().or(rows.first()).map_or(0, Vec::len);
        let count = learned.len().max(1) as f64;
        let moments: Vec<(f64, f64)> = (0..width)
            .map(|k| {
                let mean = learned.iter().map(|row| f64::from(row[k])).sum::<f64>() / count;
                let variance =
                    learned.iter().map(|row| (f64::from(row[k]) - mean).powi(2)).sum::<f64>() / count;
                (mean, variance.sqrt().max(1e-6))
            })
            .collect();
        let standard = |row: &Vec<f32>| -> Vec<f64> {
            let standard = |(x, (mean, deviation)): (&f32, &(f64, f64))| (f64::from(*x) - mean) / deviation;
            row.iter().zip(&moments).map(standard).collect()
        };
        let standardised: Vec<Vec<f64>> = learned.iter().map(standard).collect();
        let reduced = discriminants.map(|count| Discriminants::of(&standardised, owners, count));
        let directions = |row: Vec<f64>| match &reduced {
            Some(reduced) => reduced.apply(&row),
            None => row,
        };
        let of_learned: Vec<Vec<f64>> = standardised.into_iter().map(directions).collect();
        let square = of_learned.iter().flatten().map(|x| x * x).sum::<f64>() / count;
        let scale = if square > 0.0 { length / square.sqrt() } else { 1.0 };
        let vector = |row: &Vec<f64>| -> Vec<f32> {
            row.iter().map(|x| (x * scale).clamp(-FARTHEST, FARTHEST) as f32).collect()
        };
        let mut vectors = Self { width: of_learned.first().map_or(0, Vec::len), ..Self::default() };
        for (user, row) in owners.iter().zip(&of_learned) {
            vectors.learned.entry(*user).or_default().push(vector(row));
        }
        vectors.told = told.copied().zip(rows.iter().map(|row| vector(&directions(standard(row))))).collect();
        vectors
    }
}

/// The mean weights of users who choose so, in units of the length of everybody's weights; the population stands for itself in
/// users beyond those of the study.
pub(super) fn believed(
    tastes: &Tastes,
    spec: &Users,
    shown: &[Shown],
    groups: &BTreeMap<i64, Vec<Vec<Choice>>>,
    told: &BTreeMap<Key, &[Choice]>,
) -> Vectors {
    let beyond = spec.seen as u64;
    let users = (beyond..beyond + POPULATION).map(|index| tastes.user(Kind::Seen, index));
    let prior = Prior::from_users(users.collect());
    let vector = |choices: &[Choice]| -> Vec<f32> {
        let mut belief = prior.belief();
        for choice in choices {
            let features = &shown[choice.pair].features;
            belief.see(&features[choice.chosen], &features[1 - choice.chosen]);
        }
        belief.weights().iter().map(|weight| (weight / tastes.config().strength) as f32).collect()
    };
    let of_user = |own: &Vec<Vec<Choice>>| own.iter().map(|group| vector(group)).collect();
    Vectors {
        learned: groups.iter().map(|(user, own)| (*user, of_user(own))).collect(),
        told: told.iter().map(|(key, choices)| (*key, vector(choices))).collect(),
        width: FEATURES,
    }
}
