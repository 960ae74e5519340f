//! The people of a real-user study as the user branch meets them: a vector for each, and who chose what.
//!
//! A user's first blocks of choices make images for her and are used for nothing else. Of her others, cut into groups, each
//! is learned under the embedding of another one of her groups, so that no vector was made from the very choice that it is
//! to explain.

use std::collections::BTreeMap;
use std::path::Path;

use super::groups::{How, embed_groups, layer};
use super::profile_in;
use super::vectors::{Key, Vectors, believed};
use crate::data::Preference;
use crate::data::desk::users::{self, Choice, Shown, Use};
use crate::error::{Error, Result};
use crate::nn::workers::Workers;
use crate::progress::Progress;
use crate::rng::stream;
use crate::scenes::population::SAMPLES;
use crate::scenes::talk;
use crate::scenes::tastes::{self, FEATURES, Kind, Tastes};
use crate::spec::users::{Addressee, MEAN_USER, NULL_USER, Users};
use crate::spec::{Condition, Conditioning, Method};

/// The people of a study.
#[derive(Debug)]
pub struct People {
    spec: Users,
    tastes: Tastes,
    /// Of each user that is trained on: the groups of choices.
    groups: BTreeMap<i64, Vec<Vec<Choice>>>,
    /// Embeddings, where a method asks for them.
    embedded: Vectors,
    /// What Bayes' rule believes, where a method asks for it.
    believed: Vectors,
    /// What was written of a user; nothing where the text did not get so far.
    profiles: BTreeMap<Key, String>,
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

/// What every vector ends with: whether it stands for the null user, and one, through which is learned what all have in
/// common.
const SOMEBODY: [f32; 2] = [0.0, 1.0];
const NULL: [f32; 2] = [1.0, 1.0];

/// Who chose what, before anything was made of it.
#[derive(Debug)]
pub struct Choices {
    /// The study's pairs, in which places of choices count.
    pub shown: Vec<Shown>,
    /// The place of each among all pairs.
    pub places: Vec<usize>,
    /// Everybody's taste.
    pub tastes: Tastes,
    /// Of each user, the blocks that images and judgements are made from.
    pub blocks: BTreeMap<i64, Vec<Vec<Choice>>>,
    /// Of each user that is trained on, the groups to learn from.
    pub groups: BTreeMap<i64, Vec<Vec<Choice>>>,
}

impl Choices {
    /// Lets everybody choose among the study's pairs.
    ///
    /// # Errors
    /// Where users have too few pairs to choose between, or a picture cannot be decoded.
    pub fn gather(spec: &Users, pairs: &[Preference]) -> Result<Self> {
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
        let (mut blocks, mut groups) = (BTreeMap::new(), BTreeMap::new());
        for own in choices.chunk_by(|a, b| a.user == b.user) {
            let (asked, learned) = cut(spec, own);
            blocks.insert(own[0].user, asked);
            // Of an unseen user nothing but the blocks is ever looked at.
            if users::of_identifier(own[0].user).0 == Kind::Seen {
                groups.insert(own[0].user, learned);
            }
        }
        Ok(Self { shown, places, tastes, blocks, groups })
    }
}

/// One user's choices: the blocks that images are made from, and the groups to learn from.
fn cut(spec: &Users, own: &[Choice]) -> (Vec<Vec<Choice>>, Vec<Vec<Choice>>) {
    let (blocks, mut rest) = own.split_at((spec.draws * spec.block()).min(own.len()));
    let sizes = spec.learned_shots();
    let user = own.first().map_or(0, |choice| choice.user);
    let mut draws = stream(spec.seed, "people shots", user as u64);
    let mut groups = Vec::new();
    loop {
        let size = *draws.pick(&sizes);
        if size > rest.len() {
            break;
        }
        let (group, others) = rest.split_at(size);
        groups.push(group.to_vec());
        rest = others;
    }
    (blocks.chunks(spec.block()).map(<[Choice]>::to_vec).collect(), groups)
}

impl People {
    /// Lets everybody choose among the study's `pairs`, and makes the embeddings that `methods` ask for.
    ///
    /// # Errors
    /// Where users have too few pairs to choose between, or the model that embeds is missing.
    pub fn gather(
        (spec, methods): (&Users, &[Method]),
        pairs: &[Preference],
        (assets, cache): (&Path, &Path),
        workers: &Workers,
        progress: &Progress,
    ) -> Result<Self> {
        let Choices { shown, places, tastes, blocks, groups } = Choices::gather(spec, pairs)?;
        let mut people = Self {
            spec: spec.clone(),
            tastes,
            groups,
            embedded: Vectors::default(),
            believed: Vectors::default(),
            profiles: BTreeMap::new(),
        };
        let told = spec.told(methods).into_iter().map(|key| {
            let (user, shots, draw) = key;
            let block = blocks.get(&user).and_then(|own: &Vec<Vec<Choice>>| own.get(draw));
            let choices = block.and_then(|block| block.get(..shots)).ok_or_else(|| nobody(user))?;
            Ok((key, choices))
        });
        let told: BTreeMap<Key, &[Choice]> = told.collect::<Result<_>>()?;
        if methods.iter().any(Method::is_embedded) {
            let how = How {
                model: &assets.join(&spec.model),
                template: (talk::FEW_SHOT, talk::FEW_SHOT_FILE),
                max_new_tokens: spec.max_new_tokens,
                batch: spec.batch,
                cache,
            };
            let embed = |groups: &[&[Choice]]| embed_groups(&shown, groups, how, workers, progress);
            let learned: Vec<&[Choice]> = people.groups.values().flatten().map(Vec::as_slice).collect();
            let learned = layer(&embed(&learned)?.states, spec.layer)?;
            let of_told = embed(&told.values().copied().collect::<Vec<_>>())?;
            people.tell(&learned, told.keys(), (&layer(&of_told.states, spec.layer)?, &of_told.texts));
        }
        if methods.iter().any(|method| method.conditioning == Conditioning::Posterior) {
            people.believed = believed(&people.tastes, spec, &shown, &people.groups, &told);
        }
        // From here on a pair is known by its place among all.
        for choice in people.groups.values_mut().flatten().flatten() {
            choice.pair = places[choice.pair];
        }
        Ok(people)
    }

    /// Keeps embeddings and profiles.
    fn tell<'a>(
        &mut self,
        learned: &[Vec<f32>],
        told: impl Iterator<Item = &'a Key> + Clone,
        (rows, texts): (&[Vec<f32>], &[String]),
    ) {
        let owners: Vec<i64> = self.groups.iter().flat_map(|(user, own)| own.iter().map(|_| *user)).collect();
        let reduce = (self.spec.discriminants, self.spec.length);
        self.embedded = Vectors::standardised((&owners, learned), (told.clone(), rows), reduce);
        let profiles = texts
            .iter()
            .map(|text| profile_in(text).unwrap_or_default().replace("<|im_end|>", "").trim().to_owned());
        self.profiles = told.copied().zip(profiles).collect();
    }

    /// Width of a user's vector under a conditioning of people.
    pub fn width(&self, conditioning: Conditioning) -> usize {
        SOMEBODY.len()
            + match conditioning {
                Conditioning::Embedding => self.embedded.width,
                Conditioning::Posterior | Conditioning::Utilities => FEATURES,
                Conditioning::UserNumber => self.spec.seen,
                Conditioning::None | Conditioning::Constant | Conditioning::OneHot => 0,
            }
    }

    /// What a condition tells of a user.
    fn key(&self, one: Addressee) -> Key {
        (one.user, one.shots.unwrap_or(self.spec.shots), one.draw)
    }

    /// The vectors that are made from choices under a conditioning, where it has such ones.
    fn of_choices(&self, conditioning: Conditioning) -> Option<&Vectors> {
        match conditioning {
            Conditioning::Embedding => Some(&self.embedded),
            Conditioning::Posterior => Some(&self.believed),
            _ => None,
        }
    }

    /// What is written about whom a condition stands for: the words behind a prompt that shall know her; none for nobody.
    ///
    /// # Errors
    /// [`Error::Spec`] where nothing was read about her.
    pub fn profile(&self, condition: &Condition) -> Result<Option<&str>> {
        match condition.single().and_then(Addressee::parse) {
            None => Ok(None),
            Some(one) => {
                let profile = self.profiles.get(&self.key(one)).ok_or_else(|| nobody(one.user))?;
                Ok(Some(profile))
            }
        }
    }

    /// The vector of a condition: a user's, the mean user's, or the null user's.
    ///
    /// # Errors
    /// [`Error::Spec`] where the condition stands for nobody of this study, or for somebody whom the conditioning cannot
    /// tell.
    pub fn vector(&self, conditioning: Conditioning, condition: &Condition) -> Result<Vec<f32>> {
        let name = condition.to_string();
        match condition.single().and_then(Addressee::parse) {
            Some(one) => match self.of_choices(conditioning) {
                Some(vectors) => {
                    let own = vectors.told.get(&self.key(one)).ok_or_else(|| nobody(one.user))?;
                    Ok([&own[..], &SOMEBODY].concat())
                }
                None => self.of(conditioning, one.user, 0),
            },
            None if name == MEAN_USER => Ok(self.without(conditioning, SOMEBODY)),
            None if name == NULL_USER => Ok(self.without(conditioning, NULL)),
            None => Err(Error::Spec(format!("condition `{name}` stands for nobody of this study"))),
        }
    }

    /// A vector that tells nothing of anybody.
    fn without(&self, conditioning: Conditioning, end: [f32; 2]) -> Vec<f32> {
        let mut vector = vec![0.0; self.width(conditioning) - end.len()];
        vector.extend(end);
        vector
    }

    /// The vector of a user; where it is made from choices, from one of her groups that are trained on.
    fn of(&self, conditioning: Conditioning, user: i64, group: usize) -> Result<Vec<f32>> {
        let mut vector = match conditioning {
            Conditioning::Embedding | Conditioning::Posterior => {
                let own = self.of_choices(conditioning).and_then(|vectors| vectors.learned.get(&user));
                own.and_then(|own| own.get(group)).cloned().ok_or_else(|| nobody(user))?
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
        vector.extend(SOMEBODY);
        Ok(vector)
    }

    /// The choices of all users that are trained on, each with the vector from another of the user's groups, or, now and
    /// then, the null user's.
    ///
    /// # Errors
    /// As [`People::vector`].
    pub fn learned(&self, conditioning: Conditioning) -> Result<Vec<Learned>> {
        let mut learned = Vec::new();
        for (&user, groups) in self.groups.iter().filter(|(_, groups)| groups.len() > 1) {
            let mut draws = stream(self.spec.seed, "people groups", user as u64);
            for (at, group) in groups.iter().enumerate() {
                for choice in group {
                    let other = draws.below(groups.len() - 1);
                    let other = if other >= at { other + 1 } else { other };
                    // Drawn whether or not it is asked for, so that the groups stay the same.
                    let null = draws.chance(self.spec.null_share);
                    let user = match null && conditioning.is_of_people() {
                        true => self.without(conditioning, NULL),
                        false => self.of(conditioning, user, other)?,
                    };
                    learned.push(Learned { pair: choice.pair, chosen: choice.chosen, user });
                }
            }
        }
        Ok(learned)
    }
}

fn nobody(user: i64) -> Error {
    Error::Spec(format!("nothing was read about user {user}; no condition of the study asks for it"))
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
            pairs_per_user: 30,
            shots: 4,
            learned_shots: vec![2, 4],
            draws: 2,
            most_shots: Some(6),
            null_share: 0.2,
            discriminants: None,
            length: 1.0,
            judges: Vec::new(),
            labelled: None,
            evaluated: 2,
            model: "desk/vlm".into(),
            max_new_tokens: 4,
            batch: 2,
            layer: None,
            claims: Vec::new(),
            showcase: None,
        };
        let (nowhere, workers) = (Path::new("nowhere"), Workers::new(1).unwrap());
        let mut people =
            People::gather((&spec, &[]), &pairs, (nowhere, nowhere), &workers, &Progress::silent()).unwrap();
        // An embedding that says which user and group it is of.
        let learned: Vec<Vec<f32>> = people
            .groups
            .iter()
            .flat_map(|(user, own)| (0..own.len()).map(move |at| vec![*user as f32, at as f32, 7.0]))
            .collect();
        let asked: BTreeSet<Key> = [(0, 4, 0), (1, 4, 0), (100_000, 4, 0), (100_000, 0, 1)].into();
        let rows: Vec<Vec<f32>> =
            asked.iter().map(|(user, shots, draw)| vec![*user as f32, *shots as f32, *draw as f32]).collect();
        let texts: Vec<String> = asked
            .iter()
            .map(|(_, shots, _)| format!("Pair 1: warm User Profile: shows {shots} <|im_end|>"))
            .collect();
        people.tell(&learned, asked.iter(), (&rows, &texts));
        for choice in people.groups.values().flatten().flatten() {
            assert_eq!(Use::of(&pairs[choice.pair].caption), Use::Study);
        }
        people
    }

    #[test]
    fn a_choice_is_learned_under_another_group_and_blocks_are_not_learned() {
        let people = people();
        assert!(people.groups.keys().eq(&[0, 1, 2, 3, 4]), "unseen users are not trained on");
        // Two blocks of six are left out of thirty; the rest is in groups of two or four, up to what is left over.
        for groups in people.groups.values() {
            let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
            assert!(sizes.iter().all(|size| [2, 4].contains(size)), "{sizes:?}");
            assert!((15..=18).contains(&sizes.iter().sum::<usize>()), "{sizes:?}");
        }
        let learned = people.learned(Conditioning::Embedding).unwrap();
        let group_of = |vector: &[f32], user: i64| {
            people.embedded.learned[&user].iter().position(|own| own[..] == vector[..own.len()]).unwrap()
        };
        let (mut at, mut null) = (learned.iter(), 0);
        for (&user, groups) in &people.groups {
            for (own, group) in groups.iter().enumerate() {
                for choice in group {
                    let learned = at.next().unwrap();
                    assert_eq!((learned.pair, learned.chosen), (choice.pair, choice.chosen));
                    if learned.user.ends_with(&NULL) {
                        assert!(learned.user[..3].iter().all(|x| *x == 0.0));
                        null += 1;
                        continue;
                    }
                    assert!(learned.user.ends_with(&SOMEBODY));
                    assert_ne!(group_of(&learned.user, user), own);
                }
            }
        }
        assert!(at.next().is_none());
        // A fifth of about 85: four standard errors.
        assert!((3..32).contains(&null), "{null}");
        let numbers = people.learned(Conditioning::UserNumber).unwrap();
        let nobody = |one: &&Learned| one.user.ends_with(&NULL);
        assert_eq!(numbers.iter().filter(nobody).count(), null, "the same choices for every conditioning");
        assert!(people.learned(Conditioning::Constant).unwrap().iter().all(|one| one.user == SOMEBODY));
    }

    #[test]
    fn vectors_are_standardised_and_as_wide_as_promised() {
        let people = people();
        for conditioning in [Conditioning::Embedding, Conditioning::UserNumber, Conditioning::Utilities] {
            let vectors: Vec<Vec<f32>> = [0, 1]
                .map(|user| people.vector(conditioning, &crate::spec::users::condition(user)).unwrap())
                .to_vec();
            assert!(vectors.iter().all(|vector| vector.len() == people.width(conditioning)));
            assert_ne!(vectors[0], vectors[1], "{conditioning:?}");
        }
        let count = people.embedded.learned.values().flatten().count() as f32;
        for k in 0..2 {
            let mean = people.embedded.learned.values().flatten().map(|row| row[k]).sum::<f32>() / count;
            assert!(mean.abs() < 1e-4, "{mean}");
        }
        let mean = people.vector(Conditioning::Embedding, &Condition::user(MEAN_USER)).unwrap();
        assert_eq!(mean, [0.0, 0.0, 0.0, 0.0, 1.0]);
        let null = people.vector(Conditioning::Embedding, &Condition::user(NULL_USER)).unwrap();
        assert_eq!(null, [0.0, 0.0, 0.0, 1.0, 1.0]);
        let stranger = crate::spec::users::condition(100_000);
        let message = people.vector(Conditioning::UserNumber, &stranger).unwrap_err().to_string();
        assert!(message.contains("not trained on"), "{message}");
        let of = |name: &str| people.vector(Conditioning::Embedding, &Condition::user(name));
        assert_eq!(of("user-100000").unwrap(), of("user-100000@4").unwrap());
        assert_ne!(of("user-100000").unwrap(), of("user-100000@0.1").unwrap());
        for unknown in ["user-100000@8", "user-3", "clip"] {
            assert!(of(unknown).is_err(), "{unknown}");
        }
        let profile = |name: &str| people.profile(&Condition::user(name)).unwrap();
        assert_eq!(profile("user-100000@0.1"), Some("shows 0"));
        assert_eq!(profile(MEAN_USER), None);
    }
}
