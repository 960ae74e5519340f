//! The people of a real-user study as the user branch meets them: a vector for each, and who chose what.
//!
//! A user's first group of choices makes images for her and is used for nothing else. Of her others, each is learned under
//! the embedding of another one of her groups, so that no vector was made from the very choice that it is to explain.

use std::collections::BTreeMap;
use std::path::Path;

use super::groups::{How, embed_groups, layer};
use crate::data::Preference;
use crate::data::desk::users::{self, Choice, Shown, Use};
use crate::error::{Error, Result};
use crate::nn::workers::Workers;
use crate::progress::Progress;
use crate::rng::stream;
use crate::scenes::population::SAMPLES;
use crate::scenes::talk;
use crate::scenes::tastes::{self, FEATURES, Kind, Tastes};
use crate::spec::users::{MEAN_USER, Users, of_condition};
use crate::spec::{Condition, Conditioning};

/// The people of a study.
#[derive(Debug)]
pub struct People {
    spec: Users,
    tastes: Tastes,
    /// Each user's groups of choices, the first one for her images.
    groups: BTreeMap<i64, Vec<Vec<Choice>>>,
    /// Each group's embedding, standardised, where a method asks for embeddings.
    embedded: BTreeMap<i64, Vec<Vec<f32>>>,
    /// Width of an embedding.
    width: usize,
}

/// A choice to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// The pair's place among all pairs.
    pub pair: usize,
    /// The chosen side.
    pub chosen: usize,
    /// The vector of the user who chose.
    pub user: Vec<f32>,
}

/// The last coordinate of every vector: what all users have in common is learned through it.
const COMMON: f32 = 1.0;

impl People {
    /// Lets everybody choose among the study's `pairs`, and, where they are asked for, makes the embeddings.
    ///
    /// # Errors
    /// Where users have too few pairs to choose between, or the model that embeds is missing.
    pub fn gather(
        spec: &Users,
        pairs: &[Preference],
        embeds: bool,
        (assets, cache): (&Path, &Path),
        workers: &Workers,
        progress: &Progress,
    ) -> Result<Self> {
        let places: Vec<usize> =
            (0..pairs.len()).filter(|&at| Use::of(&pairs[at].caption) == Use::Study).collect();
        let kept: Vec<&Preference> = places.iter().map(|&at| &pairs[at]).collect();
        let shown = Shown::of_pairs(&kept, &SAMPLES)?;
        let tastes = Tastes::new(spec.seed, tastes::Config::desk(SAMPLES));
        let config = users::Config {
            seed: spec.seed,
            world: spec.world,
            seen: spec.seen,
            unseen: spec.unseen,
            pairs_per_user: spec.pairs_per_user,
        };
        let choices = users::choices(&shown, &tastes, &config)?;
        let mut groups: BTreeMap<i64, Vec<Vec<Choice>>> = BTreeMap::new();
        for own in choices.chunk_by(|a, b| a.user == b.user) {
            // Of an unseen user only the group that images are made from is ever looked at.
            let most = match users::of_identifier(own[0].user).0 {
                Kind::Seen => usize::MAX,
                Kind::Unseen => 1,
            };
            let own_groups = own.chunks_exact(spec.shots).take(most).map(<[Choice]>::to_vec).collect();
            groups.insert(own[0].user, own_groups);
        }
        let mut people =
            Self { spec: spec.clone(), tastes, groups: BTreeMap::new(), embedded: BTreeMap::new(), width: 0 };
        if embeds {
            let how = How {
                model: &assets.join(&spec.model),
                template: (talk::FEW_SHOT, talk::FEW_SHOT_FILE),
                max_new_tokens: spec.max_new_tokens,
                batch: spec.batch,
                cache,
            };
            let all: Vec<&[Choice]> = groups.values().flatten().map(Vec::as_slice).collect();
            let states = embed_groups(&shown, &all, how, workers, progress)?;
            people.standardise(&groups, &layer(&states, spec.layer)?);
        }
        // From here on a pair is known by its place among all.
        for choice in groups.values_mut().flatten().flatten() {
            choice.pair = places[choice.pair];
        }
        people.groups = groups;
        Ok(people)
    }

    /// Standardises embeddings over the groups that are trained on; their sum of squares is about one.
    fn standardise(&mut self, groups: &BTreeMap<i64, Vec<Vec<Choice>>>, rows: &[Vec<f32>]) {
        self.width = rows.first().map_or(0, Vec::len);
        let owners = groups.iter().flat_map(|(user, own)| (0..own.len()).map(move |at| (*user, at)));
        let trained_on = |user: i64, at: usize| at > 0 && users::of_identifier(user).0 == Kind::Seen;
        let learned: Vec<&Vec<f32>> = owners
            .clone()
            .zip(rows)
            .filter_map(|((user, at), row)| trained_on(user, at).then_some(row))
            .collect();
        let count = learned.len().max(1) as f64;
        let moments: Vec<(f64, f64)> = (0..self.width)
            .map(|k| {
                let mean = learned.iter().map(|row| f64::from(row[k])).sum::<f64>() / count;
                let variance =
                    learned.iter().map(|row| (f64::from(row[k]) - mean).powi(2)).sum::<f64>() / count;
                (mean, variance.sqrt().max(1e-6))
            })
            .collect();
        let scale = 1.0 / (self.width.max(1) as f64).sqrt();
        for ((user, _), row) in owners.zip(rows) {
            let standard = row.iter().zip(&moments).map(|(x, (mean, deviation))| {
                ((f64::from(*x) - mean) / deviation * scale).clamp(-4.0, 4.0) as f32
            });
            self.embedded.entry(user).or_default().push(standard.collect());
        }
    }

    /// Width of a user's vector under a conditioning of people.
    pub fn width(&self, conditioning: Conditioning) -> usize {
        1 + match conditioning {
            Conditioning::Embedding => self.width,
            Conditioning::UserNumber => self.spec.seen,
            Conditioning::Utilities => FEATURES,
            Conditioning::None | Conditioning::Constant | Conditioning::OneHot => 0,
        }
    }

    /// The vector of a condition: a user's, or the mean user's.
    ///
    /// # Errors
    /// [`Error::Spec`] where the condition stands for nobody of this study, or for somebody whom the conditioning cannot
    /// tell.
    pub fn vector(&self, conditioning: Conditioning, condition: &Condition) -> Result<Vec<f32>> {
        let name = condition.to_string();
        let user = condition.single().and_then(of_condition);
        match user {
            Some(user) => self.of(conditioning, user, 0),
            None if name == MEAN_USER => {
                let mut vector = vec![0.0; self.width(conditioning)];
                vector.iter_mut().rev().take(1).for_each(|last| *last = COMMON);
                Ok(vector)
            }
            None => Err(Error::Spec(format!("condition `{name}` stands for nobody of this study"))),
        }
    }

    /// The vector of a user from one of her groups.
    fn of(&self, conditioning: Conditioning, user: i64, group: usize) -> Result<Vec<f32>> {
        let mut vector = match conditioning {
            Conditioning::Embedding => {
                let own = self.embedded.get(&user).and_then(|own| own.get(group));
                own.cloned().ok_or_else(|| Error::Spec(format!("user {user} has no embedding")))?
            }
            Conditioning::UserNumber => {
                let mut number = vec![0.0; self.spec.seen];
                let place = usize::try_from(user).ok().filter(|place| *place < number.len());
                let place = place.ok_or_else(|| {
                    Error::Spec(format!("user {user} is not trained on, and a number can stand for no other"))
                })?;
                number[place] = 1.0;
                number
            }
            Conditioning::Utilities => {
                let taste = users::taste(&self.tastes, user);
                let length = taste.weights.iter().map(|weight| weight * weight).sum::<f64>().sqrt();
                taste.weights.iter().map(|weight| (weight / length) as f32).collect()
            }
            Conditioning::None | Conditioning::Constant | Conditioning::OneHot => Vec::new(),
        };
        vector.push(COMMON);
        Ok(vector)
    }

    /// The choices of all users that are trained on, each with the vector from another of the user's groups.
    ///
    /// # Errors
    /// As [`People::vector`].
    pub fn learned(&self, conditioning: Conditioning) -> Result<Vec<Learned>> {
        let mut learned = Vec::new();
        for (&user, groups) in &self.groups {
            if users::of_identifier(user).0 == Kind::Unseen {
                continue;
            }
            let mut draws = stream(self.spec.seed, "people groups", user as u64);
            for (at, group) in groups.iter().enumerate().skip(1) {
                for choice in group {
                    // One of the others, the first one, which is for images, left out.
                    let other = 1 + draws.below(groups.len() - 2);
                    let other = if other >= at { other + 1 } else { other };
                    let user = self.of(conditioning, user, other)?;
                    learned.push(Learned { pair: choice.pair, chosen: choice.chosen, user });
                }
            }
        }
        Ok(learned)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::image::{Format, encode};
    use crate::scenes::{Split, render, sample_scene, style::Style};
    use crate::units::Seed;

    fn people() -> People {
        let one = |index: usize| {
            let mut draw = stream(Seed::new(8), "people test", index as u64);
            let scene = sample_scene(&mut draw, [1.0, 1.0, 0.0], Split::Train);
            let images = [0, 1].map(|_| {
                let style = Style::sample(&mut draw);
                encode(&render(&scene, &style, &mut draw), Format::Png).unwrap()
            });
            Preference { caption: scene.caption(), images: Some(images), ..Preference::default() }
        };
        let pairs: Vec<Preference> = (0..60).map(one).collect();
        let spec = Users {
            seed: Seed::new(4),
            world: users::World::Shared,
            seen: 5,
            unseen: 3,
            pairs_per_user: 17,
            shots: 4,
            evaluated: 2,
            model: "desk/vlm".into(),
            max_new_tokens: 4,
            batch: 2,
            layer: None,
            claims: Vec::new(),
        };
        let (nowhere, workers) = (Path::new("nowhere"), Workers::new(1).unwrap());
        let mut people =
            People::gather(&spec, &pairs, false, (nowhere, nowhere), &workers, &Progress::silent()).unwrap();
        // An embedding that says which user and group it is of.
        let groups = people.groups.clone();
        let rows: Vec<Vec<f32>> = groups
            .iter()
            .flat_map(|(user, own)| (0..own.len()).map(move |at| vec![*user as f32, at as f32, 7.0]))
            .collect();
        people.standardise(&groups, &rows);
        for choice in groups.values().flatten().flatten() {
            assert_eq!(Use::of(&pairs[choice.pair].caption), Use::Study);
        }
        people
    }

    #[test]
    fn a_choice_is_learned_under_another_group_and_the_first_group_is_not_learned() {
        let people = people();
        let learned = people.learned(Conditioning::Embedding).unwrap();
        // Three of four groups of four choices, of five users.
        assert_eq!(learned.len(), 5 * 3 * 4);
        let group_of = |vector: &[f32], user: i64| {
            people.embedded[&user].iter().position(|own| own[..] == vector[..own.len()]).unwrap()
        };
        let mut at = learned.iter();
        for (&user, groups) in people.groups.iter().filter(|(user, _)| **user < 5) {
            for (own, group) in groups.iter().enumerate().skip(1) {
                for choice in group {
                    let learned = at.next().unwrap();
                    assert_eq!((learned.pair, learned.chosen), (choice.pair, choice.chosen));
                    let used = group_of(&learned.user, user);
                    assert!(used != own && used != 0, "group {used} for a choice of group {own}");
                    assert_eq!(learned.user.last(), Some(&COMMON));
                }
            }
        }
        assert!(people.groups.iter().all(|(user, groups)| groups.len() == if *user < 5 { 4 } else { 1 }));
    }

    #[test]
    fn vectors_are_standardised_and_as_wide_as_promised() {
        let people = people();
        for conditioning in [Conditioning::Embedding, Conditioning::UserNumber, Conditioning::Utilities] {
            let vectors: Vec<Vec<f32>> = [0, 1, 2]
                .map(|user| people.vector(conditioning, &crate::spec::users::condition(user)).unwrap())
                .to_vec();
            assert!(vectors.iter().all(|vector| vector.len() == people.width(conditioning)));
            let distinct: BTreeSet<String> = vectors.iter().map(|vector| format!("{vector:?}")).collect();
            assert_eq!(distinct.len(), 3, "{conditioning:?}");
        }
        let learned = people.learned(Conditioning::Embedding).unwrap();
        for k in 0..2 {
            let mean = learned.iter().map(|one| one.user[k]).sum::<f32>() / learned.len() as f32;
            assert!(mean.abs() < 0.2, "{mean}");
        }
        let mean = people.vector(Conditioning::Embedding, &Condition::user(MEAN_USER)).unwrap();
        assert_eq!(mean, [0.0, 0.0, 0.0, COMMON]);
        let stranger = crate::spec::users::condition(100_000);
        let message = people.vector(Conditioning::UserNumber, &stranger).unwrap_err().to_string();
        assert!(message.contains("not trained on"), "{message}");
        assert!(people.vector(Conditioning::Embedding, &stranger).is_ok());
        assert!(people.vector(Conditioning::Embedding, &Condition::user("clip")).is_err());
    }
}
