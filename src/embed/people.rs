//! The people of a real-user study as the user branch meets them: a vector for each, and who chose what.
//!
//! A user's first blocks of choices make images for her and are used for nothing else. Of her others, cut into groups, each
//! is learned under the embedding of another one of her groups, so that no vector was made from the very choice that it is
//! to explain.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use super::choices::Choices;
use super::groups::{How, embed_groups};
use super::profile_in;
use super::vectors::{Key, Vectors, believed};
use crate::data::desk::users::{self, Choice};
use crate::error::{Error, Result};
use crate::nn::workers::Workers;
use crate::progress::Progress;
use crate::rng::stream;
use crate::scenes::tastes::{FEATURES, Tastes};
use crate::spec::users::{Addressee, MEAN_USER, NULL_USER, Users};
use crate::spec::{Condition, Conditioning, Method};

/// The people of a study.
#[derive(Debug)]
pub struct People {
    spec: Users,
    tastes: Option<Tastes>,
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

/// How choices are read.
pub struct Reader<'a> {
    /// The folder of a model by what the study calls it.
    pub folder: &'a dyn Fn(&Path) -> Result<PathBuf>,
    /// Where it computes, and in which precision.
    pub place: (&'a Device, DType),
    /// Where embeddings are kept.
    pub cache: &'a Path,
}

impl People {
    /// Makes the embeddings that `methods` ask for.
    ///
    /// # Errors
    /// Where the model that embeds is missing, or a picture cannot be read.
    pub fn gather(
        (spec, methods): (&Users, &[Method]),
        choices: &Choices,
        reader: &Reader,
        workers: &Workers,
        progress: &Progress,
    ) -> Result<Self> {
        let mut people = Self {
            spec: spec.clone(),
            tastes: choices.tastes.clone(),
            groups: choices.groups.clone(),
            embedded: Vectors::default(),
            believed: Vectors::default(),
            profiles: BTreeMap::new(),
        };
        let told = spec.told(methods).into_iter().map(|key| {
            let (user, shots, draw) = key;
            let block = choices.blocks.get(&user).and_then(|own: &Vec<Vec<Choice>>| own.get(draw));
            let choices = block.and_then(|block| block.get(..shots)).ok_or_else(|| nobody(user))?;
            Ok((key, choices))
        });
        let told: BTreeMap<Key, &[Choice]> = told.collect::<Result<_>>()?;
        if methods.iter().any(Method::is_embedded) {
            let how = How {
                model: &(reader.folder)(&spec.model)?,
                template: spec.words.few_shot(),
                max_new_tokens: spec.max_new_tokens,
                batch: spec.batch,
                place: reader.place,
                layer: spec.layer,
                cache: reader.cache,
            };
            let embed = |groups: &[&[Choice]]| embed_groups(&choices.gallery, groups, how, workers, progress);
            let learned: Vec<&[Choice]> = people.groups.values().flatten().map(Vec::as_slice).collect();
            let learned = embed(&learned)?.states;
            let of_told = embed(&told.values().copied().collect::<Vec<_>>())?;
            people.tell(&learned, told.keys(), (&of_told.states, &of_told.texts));
        }
        if methods.iter().any(|method| method.conditioning == Conditioning::Posterior) {
            let (Some(tastes), Some(shown)) = (&choices.tastes, choices.gallery.shown()) else {
                return Err(unknown());
            };
            people.believed = believed(tastes, spec, shown, &people.groups, &told);
        }
        // From here on a pair is known by its place among all.
        for choice in people.groups.values_mut().flatten().flatten() {
            choice.pair = choices.place(choice.pair);
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
                Conditioning::UserNumber => self.groups.len(),
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
                let mut number = vec![0.0; self.groups.len()];
                let place = usize::try_from(user).ok().filter(|place| *place < number.len());
                let place = place.ok_or_else(|| {
                    Error::Spec(format!("user {user} is not trained on, and a number can stand for no other"))
                })?;
                number[place] = 1.0;
                number
            }
            Conditioning::Utilities => {
                let tastes = self.tastes.as_ref().ok_or_else(|| {
                    Error::Spec(format!(
                        "nobody knows the utilities of user {user}, whose choices are recorded"
                    ))
                })?;
                let taste = users::taste(tastes, user);
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

fn unknown() -> Error {
    Error::Spec(
        "people's utilities are unknown where their choices are recorded; take conditioning `embedding`"
            .into(),
    )
}

fn nobody(user: i64) -> Error {
    Error::Spec(format!("nothing was read about user {user}; no condition of the study asks for it"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::data::Preference;
    use crate::data::desk::users::Use;
    use crate::image::{Format, encode};
    use crate::scenes::{Split, render, sample_scene, style::Style};
    use crate::spec::users::{Choosing, Evaluated, Words};
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
            choices: Choosing::Simulated,
            held_out: 0,
            words: Words::Desk,
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
            evaluated: Evaluated::OfEach(2),
            varied: None,
            model: "desk/vlm".into(),
            max_new_tokens: 4,
            batch: 2,
            layer: None,
            claims: Vec::new(),
            showcase: None,
        };
        let (nowhere, workers) = (Path::new("nowhere"), Workers::new(1).unwrap());
        let choices = Choices::simulated(&spec, &pairs).unwrap();
        let folder = |model: &Path| Ok(model.to_owned());
        let reader = Reader { folder: &folder, place: (&Device::Cpu, DType::F32), cache: nowhere };
        let mut people =
            People::gather((&spec, &[]), &choices, &reader, &workers, &Progress::silent()).unwrap();
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
