//! What the features of a few choices know of a taste (the paper's Sec. 4.2): whether they foresee the user's choices about
//! other captions, and whether her utilities can be read off them.
//!
//! # Equation
//! Features `e` of a group, standardised; `f` what users see in a picture; `w` the user's true weights:
//!
//! ```text
//! P(1 over 2 | e) = σ((A e + a) · (f_1 − f_2))          a Bradley-Terry reward that is told the features
//! ŵ(e)            = B e + b                             a probe, by least squares
//! ```
//!
//! Both are learned from some users and asked about others, every user once. A group never stands for the choices that it
//! was made from.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::Init;

use super::{Cut, Group, Identifier, Rows};
use crate::data::desk::users::Shown;
use crate::error::Result;
use crate::nn;
use crate::pretrain::classify::moments;
use crate::pretrain::{Optimisation, Trainer};
use crate::rng::stream;
use crate::scenes::belief::Prior;
use crate::scenes::tastes::{self, FEATURES, Kind};
use crate::spec::identify::{Knowledge, score};
use crate::weights::Trainable;

/// Scores of one asked group, by name.
pub type Scores = BTreeMap<String, f64>;

/// Users whose tastes stand for the population where Bayes' rule is asked.
const POPULATION: usize = 2000;

/// An affine map to one number for each of a taste's weights.
struct Map {
    rows: Vec<Vec<f32>>,
    shift: Vec<f32>,
}

impl Map {
    fn of(&self, features: &[f32]) -> tastes::Features {
        std::array::from_fn(|k| {
            let product: f32 = self.rows[k].iter().zip(features).map(|(a, b)| a * b).sum();
            f64::from(product + self.shift[k])
        })
    }
}

/// One example: the row of features, what a pair's first picture has more than its second, and the weights to be read.
struct Example {
    row: usize,
    more: tastes::Features,
    weights: tastes::Features,
}

impl Identifier<'_> {
    /// What the chosen pictures of a group's pairs have more than the rejected ones.
    fn margins<'s>(shown: &'s [Shown], group: &'s Group) -> impl Iterator<Item = tastes::Features> + 's {
        group.choices.iter().map(|choice| {
            let [chosen, rejected] =
                [choice.chosen, 1 - choice.chosen].map(|side| &shown[choice.pair].features[side]);
            std::array::from_fn(|k| chosen[k] - rejected[k])
        })
    }

    /// The held-out choices of an asked group: those of the same user's other asked groups.
    fn others<'c>(&self, asked: &'c [Group], at: usize) -> impl Iterator<Item = &'c Group> {
        let own = move |(other, group): &(usize, &Group)| *other != at && group.user == asked[at].user;
        asked.iter().enumerate().filter(own).map(|(_, group)| group)
    }

    /// Whom a group stands for where it stands for somebody else: the asked group of the same number of the next user in the
    /// same part.
    fn strangers(asked: &[Group], folds: usize) -> Vec<usize> {
        let mut by_place: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        let mut place = 0;
        for (at, group) in asked.iter().enumerate() {
            place = if at > 0 && asked[at - 1].user == group.user { place + 1 } else { 0 };
            by_place.entry((group.user % folds, place)).or_default().push(at);
        }
        let mut strangers = vec![0; asked.len()];
        for members in by_place.values() {
            for (i, &at) in members.iter().enumerate() {
                strangers[at] = members[(i + 1) % members.len()];
            }
        }
        strangers
    }

    /// What the features of asked groups know, learned from the groups of other users.
    ///
    /// # Errors
    /// Where a loss stops being finite.
    pub(super) fn knowledge(
        &self,
        settings: &Knowledge,
        cut: &Cut,
        (learned, asked): (&Rows, &Rows),
    ) -> Result<Vec<Scores>> {
        let (shown, tastes) = self.simulated()?;
        let taste = |user: usize| tastes.user(Kind::Seen, user as u64);
        let strangers = Self::strangers(&cut.asked, settings.folds);
        let folds: Vec<usize> = (0..settings.folds).collect();
        let parts = self.workers.map(&folds, |_, &fold| -> Result<Vec<(usize, Scores)>> {
            let kept: Vec<usize> =
                (0..cut.learned.len()).filter(|&at| cut.learned[at].user % settings.folds != fold).collect();
            let width = learned.first().map_or(0, Vec::len);
            let own: Vec<Vec<f32>> = kept.iter().map(|&at| learned[at].clone()).collect();
            let (mean, deviation) = moments(&own, width);
            let standard = |row: &[f32]| -> Vec<f32> {
                row.iter()
                    .zip(&mean)
                    .zip(&deviation)
                    .map(|((x, mean), deviation)| (x - mean) / deviation)
                    .collect()
            };
            let rows: Vec<Vec<f32>> = own.iter().map(|row| standard(row)).collect();
            let mut examples = Vec::new();
            for (row, &at) in kept.iter().enumerate() {
                // A group is told the choices of the user's next one.
                let user = cut.learned[at].user;
                let next = match cut.learned.get(at + 1) {
                    Some(next) if next.user == user => at + 1,
                    _ => at + 1 - self.study.groups.learned,
                };
                let weights = taste(user).weights;
                examples.extend(Self::margins(shown, &cut.learned[next]).map(|more| Example {
                    row,
                    more,
                    weights,
                }));
            }
            let reward = fit(settings, &rows, &examples, bradley_terry)?;
            let probe = fit(settings, &rows, &examples, least_squares)?;
            let count = examples.len().max(1) as f64;
            let mean_taste: tastes::Features =
                std::array::from_fn(|k| examples.iter().map(|one| one.weights[k]).sum::<f64>() / count);
            let nobody = vec![0f32; width];
            let of_fold = (0..cut.asked.len()).filter(|&at| cut.asked[at].user % settings.folds == fold);
            let scored = of_fold.map(|at| {
                let [row, other] = [at, strangers[at]].map(|at| standard(&asked[at]));
                let foresees = |weights: &tastes::Features| {
                    self.foreseen(shown, (&cut.asked, at), |more| dot(weights, more))
                };
                let [own, stranger] = [at, strangers[at]].map(|at| taste(cut.asked[at].user).weights);
                let between: Vec<f32> = row.iter().zip(&other).map(|(a, b)| 0.5 * (a + b)).collect();
                let middle = std::array::from_fn(|k| 0.5 * (own[k] + stranger[k]));
                let scores = [
                    (score::CHOICE_OWN, foresees(&reward.of(&row))),
                    (score::CHOICE_MEAN, foresees(&reward.of(&nobody))),
                    (score::CHOICE_SHUFFLED, foresees(&reward.of(&other))),
                    (score::UTILITIES_ERROR, distance(&probe.of(&row), &own)),
                    (score::UTILITIES_SPREAD, distance(&mean_taste, &own)),
                    (score::BETWEEN_ERROR, distance(&probe.of(&between), &middle)),
                    (score::BETWEEN_SPREAD, distance(&mean_taste, &middle)),
                ];
                (at, scores.map(|(name, value)| (name.to_owned(), value)).into())
            });
            Ok(scored.collect())
        });
        let mut all = vec![Scores::new(); cut.asked.len()];
        for part in parts {
            part?.into_iter().for_each(|(at, scores)| all[at] = scores);
        }
        Ok(all)
    }

    /// The same of who knows the population and sees what users see: Bayes' rule over a group's choices.
    pub(super) fn knowable(&self, settings: &Knowledge, cut: &Cut) -> Result<Vec<Scores>> {
        let (shown, tastes) = self.simulated()?;
        let taste = |user: usize| tastes.user(Kind::Seen, user as u64);
        let strangers = Self::strangers(&cut.asked, settings.folds);
        // Users beyond those of the study.
        let beyond = self.study.users.count as u64;
        let prior = Prior::from_users(
            (0..POPULATION as u64).map(|index| tastes.user(Kind::Seen, beyond + index)).collect(),
        );
        let nobody = prior.belief();
        let places: Vec<usize> = (0..cut.asked.len()).collect();
        let known = self.workers.map(&places, |_, &at| {
            let believed = |at: usize| {
                let mut belief = prior.belief();
                Self::margins(shown, &cut.asked[at]).for_each(|more| belief.see(&more, &[0.0; FEATURES]));
                belief
            };
            let (own, other) = (believed(at), believed(strangers[at]));
            let foresees = |belief: &crate::scenes::belief::Belief| {
                self.foreseen(shown, (&cut.asked, at), |more| belief.prefers(more, &[0.0; FEATURES]) - 0.5)
            };
            let [taste, stranger] = [at, strangers[at]].map(|at| taste(cut.asked[at].user).weights);
            let between =
                |a: &tastes::Features, b: &tastes::Features| std::array::from_fn(|k| 0.5 * (a[k] + b[k]));
            let middle = between(&taste, &stranger);
            let scores = [
                (score::CHOICE_OWN, foresees(&own)),
                (score::CHOICE_MEAN, foresees(&nobody)),
                (score::CHOICE_SHUFFLED, foresees(&other)),
                (score::UTILITIES_ERROR, distance(&own.weights(), &taste)),
                (score::UTILITIES_SPREAD, distance(&nobody.weights(), &taste)),
                (score::BETWEEN_ERROR, distance(&between(&own.weights(), &other.weights()), &middle)),
                (score::BETWEEN_SPREAD, distance(&nobody.weights(), &middle)),
            ];
            scores.map(|(name, value)| (name.to_owned(), value)).into()
        });
        Ok(known)
    }

    /// The share of the held-out choices of an asked group that a margin foresees; one of zero foresees half.
    fn foreseen(
        &self,
        shown: &[Shown],
        (asked, at): (&[Group], usize),
        margin: impl Fn(&tastes::Features) -> f64,
    ) -> f64 {
        let (mut right, mut count) = (0.0, 0.0);
        for group in self.others(asked, at) {
            for more in Self::margins(shown, group) {
                let margin = margin(&more);
                right += if margin > 0.0 {
                    1.0
                } else if margin < 0.0 {
                    0.0
                } else {
                    0.5
                };
                count += 1.0;
            }
        }
        if count > 0.0 { right / count } else { f64::NAN }
    }
}

fn dot(a: &tastes::Features, b: &tastes::Features) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn distance(a: &tastes::Features, b: &tastes::Features) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

fn flat(rows: impl Iterator<Item = tastes::Features>) -> Result<Tensor> {
    let values: Vec<f32> = rows.flatten().map(|value| value as f32).collect();
    let count = values.len() / FEATURES;
    Ok(Tensor::from_vec(values, (count, FEATURES), &Device::Cpu)?)
}

/// −log σ of the chosen picture's margin.
fn bradley_terry(told: &Tensor, examples: &[&Example]) -> Result<Tensor> {
    let margins = (told * flat(examples.iter().map(|one| one.more))?)?.sum(1)?;
    // log(1 + e⁻ˣ), stable on both sides.
    let tail = margins.abs()?.neg()?.exp()?;
    Ok(((tail + 1.0)?.log()? + margins.neg()?.relu()?)?.mean_all()?)
}

fn least_squares(told: &Tensor, examples: &[&Example]) -> Result<Tensor> {
    Ok((told - flat(examples.iter().map(|one| one.weights))?)?.sqr()?.mean_all()?)
}

/// Trains an affine map of the rows.
fn fit(
    settings: &Knowledge,
    rows: &[Vec<f32>],
    examples: &[Example],
    loss: impl Fn(&Tensor, &[&Example]) -> Result<Tensor> + Sync,
) -> Result<Map> {
    let width = rows.first().map_or(0, Vec::len);
    let trainable = Trainable::new(settings.seed);
    let vb = trainable.builder(&Device::Cpu);
    let weight = vb.get_with_hints((FEATURES, width), "weight", Init::Const(0.0))?;
    let bias = vb.get_with_hints(FEATURES, "bias", Init::Const(0.0))?;
    let batch = settings.batch.clamp(1, examples.len().max(1));
    let per_epoch = examples.len().div_ceil(batch).max(1);
    let optimisation = Optimisation {
        steps: settings.epochs * per_epoch,
        micro_batches: 1,
        micro_batch: batch,
        learning_rate: settings.learning_rate,
        warmup_steps: per_epoch.min(20),
        weight_decay: settings.weight_decay,
        max_grad_norm: 1.0,
        ema_decay: 0.0,
        former_plans: Vec::new(),
        restarts: Vec::new(),
    };
    let mut trainer = Trainer::new(&optimisation, &trainable, 1)?;
    while !trainer.is_done() {
        trainer.advance(|index| {
            let (epoch, part) = (index as usize / per_epoch, index as usize % per_epoch);
            let mut order: Vec<usize> = (0..examples.len()).collect();
            stream(settings.seed, "knowledge epoch", epoch as u64).shuffle(&mut order);
            let taken: Vec<&Example> = order[part * batch..((part + 1) * batch).min(order.len())]
                .iter()
                .map(|&at| &examples[at])
                .collect();
            let xs: Vec<f32> = taken.iter().flat_map(|one| rows[one.row].iter().copied()).collect();
            let xs = Tensor::from_vec(xs, (taken.len(), width), &Device::Cpu)?;
            loss(&nn::linear(&xs, &weight, Some(&bias))?, &taken)
        })?;
    }
    Ok(Map { rows: weight.to_vec2()?, shift: bias.to_vec1()? })
}
