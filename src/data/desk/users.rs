//! The desk's real-user study as a data set: who of many users chose what between which samples of the base.
//!
//! Pick-a-Pic's users are people; here they are [`tastes`](crate::scenes::tastes) with known utilities, so that what an
//! embedding or a judge says of them can be held to the truth. There are two worlds. In one all users look at the same
//! prompts. In the other each has topics of her own, as on Pick-a-Pic, where what somebody asks for tells who it is.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::Preference;
use crate::error::{Error, Result};
use crate::pixels::Image;
use crate::rng::{Stream, stream};
use crate::scenes::alignment::alignment_percept;
use crate::scenes::measure::measure_percept;
use crate::scenes::perceive::Percept;
use crate::scenes::population::Reference;
use crate::scenes::tastes::{Features, Kind, Taste, Tastes, features};
use crate::scenes::{Colour, Shape, parse};
use crate::units::{Digest, Seed};

/// What a caption's samples are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The vision-language models learn from them.
    Language,
    /// Users choose between them.
    Study,
}

impl Use {
    /// What the samples of `caption` are for: a third is for language, by the caption's digest.
    pub fn of(caption: &str) -> Self {
        let digest = Digest::of(format!("desk use {caption}").as_bytes());
        let byte = u8::from_str_radix(&digest.hex()[..2], 16).unwrap_or(0);
        if byte < 86 { Self::Language } else { Self::Study }
    }
}

/// Two pictures for one caption, and what users see in them.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// What both were made for.
    pub caption: String,
    /// The pictures.
    pub images: [Image; 2],
    /// What users see in each.
    pub features: [Features; 2],
}

impl Shown {
    /// Two pictures of a caption of the desk's.
    ///
    /// # Errors
    /// [`Error::Spec`] where the caption is none of the desk's grammar.
    pub fn new(caption: String, images: [Image; 2], reference: &Reference) -> Result<Self> {
        let scene = parse(&caption).ok_or_else(|| {
            Error::Spec(format!(
                "the caption {caption:?} is none of the desk's grammar, so that nobody knows what its pictures should \
                 show; use the desk's own pairs"
            ))
        })?;
        let features = [0, 1].map(|side| {
            let percept = Percept::of(&images[side]);
            let alignment = alignment_percept(&percept, &scene);
            features(reference, &measure_percept(&images[side], &percept), alignment)
        });
        Ok(Self { caption, images, features })
    }

    /// What stored pairs show.
    ///
    /// # Errors
    /// As [`Shown::new`], and where a picture cannot be decoded.
    pub fn of_pairs(pairs: &[&Preference], reference: &Reference) -> Result<Vec<Self>> {
        let one = |pair: &&Preference| {
            let images = [pair.image(0, &pair.caption)?, pair.image(1, &pair.caption)?];
            Self::new(pair.caption.clone(), images, reference)
        };
        pairs.par_iter().map(one).collect()
    }
}

/// What users look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum World {
    /// All users look at the same prompts.
    Shared,
    /// Each user looks at prompts about her own topics: [`TOPICS`] colours and as many shapes.
    Topics,
}

impl World {
    /// Both.
    pub const ALL: &'static [Self] = &[Self::Shared, Self::Topics];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Topics => "topics",
        }
    }
}

/// Colours, and shapes, that a user of [`World::Topics`] asks for.
pub const TOPICS: usize = 3;

/// Who chooses, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of the users, their topics and their choices.
    pub seed: Seed,
    /// What users look at.
    pub world: World,
    /// Users of [`Kind::Seen`].
    pub seen: usize,
    /// Users of [`Kind::Unseen`].
    pub unseen: usize,
    /// Pairs that each user chooses between, none twice.
    pub pairs_per_user: usize,
}

/// The first identifier of an unseen user.
pub const FIRST_UNSEEN: i64 = 100_000;

/// The identifier of user `index` of a kind, as in Pick-a-Pic's `user_id`.
pub fn identifier(kind: Kind, index: usize) -> i64 {
    match kind {
        Kind::Seen => index as i64,
        Kind::Unseen => FIRST_UNSEEN + index as i64,
    }
}

/// The kind and index behind an identifier.
pub fn of_identifier(id: i64) -> (Kind, u64) {
    match id.checked_sub(FIRST_UNSEEN) {
        Some(index) if index >= 0 => (Kind::Unseen, index as u64),
        _ => (Kind::Seen, id.max(0) as u64),
    }
}

/// One choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Who chose.
    pub user: i64,
    /// The place of the pair among those shown.
    pub pair: usize,
    /// The side that was chosen.
    pub chosen: usize,
}

/// Every user's choices, user by user. A user's pairs and choices depend on the seed, the world and the user alone.
///
/// # Errors
/// [`Error::Spec`] where a user has fewer pairs to look at than she is to choose between.
pub fn choices(shown: &[Shown], tastes: &Tastes, config: &Config) -> Result<Vec<Choice>> {
    let everybody = (0..config.seen)
        .map(|index| (Kind::Seen, index))
        .chain((0..config.unseen).map(|index| (Kind::Unseen, index)));
    let mut all = Vec::with_capacity((config.seen + config.unseen) * config.pairs_per_user);
    for (kind, index) in everybody {
        let id = identifier(kind, index);
        let taste = tastes.user(kind, index as u64);
        let (mut places, mut draws) = pool_and_draws(shown, config, id);
        if places.len() < config.pairs_per_user {
            return Err(Error::Spec(format!(
                "user {id} has {} pairs to look at in the world `{}`, and is to choose between {}; lower `pairs_per_user`",
                places.len(),
                config.world.name(),
                config.pairs_per_user
            )));
        }
        draws.shuffle(&mut places);
        for &pair in &places[..config.pairs_per_user] {
            let [first, second] = &shown[pair].features;
            all.push(Choice { user: id, pair, chosen: taste.choose(first, second, &mut draws) });
        }
    }
    Ok(all)
}

/// The places of the pairs that a user looks at, from which hers are drawn.
pub fn pool(shown: &[Shown], config: &Config, user: i64) -> Vec<usize> {
    pool_and_draws(shown, config, user).0
}

fn pool_and_draws(shown: &[Shown], config: &Config, user: i64) -> (Vec<usize>, Stream) {
    let mut draws = stream(config.seed, &format!("desk users {}", config.world.name()), user as u64);
    let places = match config.world {
        World::Shared => (0..shown.len()).collect(),
        World::Topics => {
            let topics = Topics::draw(&mut draws);
            (0..shown.len()).filter(|&place| topics.hold(&shown[place].caption)).collect()
        }
    };
    (places, draws)
}

/// The taste behind a user's identifier.
pub fn taste(tastes: &Tastes, id: i64) -> Taste {
    let (kind, index) = of_identifier(id);
    tastes.user(kind, index)
}

/// What a user asks for.
struct Topics {
    colours: Vec<Colour>,
    shapes: Vec<Shape>,
}

impl Topics {
    fn draw(draws: &mut Stream) -> Self {
        let (mut colours, mut shapes) = (Colour::ALL.to_vec(), Shape::ALL.to_vec());
        draws.shuffle(&mut colours);
        draws.shuffle(&mut shapes);
        colours.truncate(TOPICS);
        shapes.truncate(TOPICS);
        Self { colours, shapes }
    }

    /// Whether an object of the caption is of the topics in colour and shape.
    fn hold(&self, caption: &str) -> bool {
        let fits = |object: &crate::scenes::Object| {
            self.colours.contains(&object.colour) && self.shapes.contains(&object.shape)
        };
        parse(caption).is_some_and(|scene| scene.objects.iter().any(fits))
    }
}

/// The choices as rows of Pick-a-Pic's, those about one pair together, so that a file holds each picture but a few times.
///
/// `ranking_id` numbers the choices in the order of [`choices`]; `created_at` stays empty, so that making the rows again
/// gives the same bytes.
pub fn preferences(pairs: &[&Preference], choices: &[Choice]) -> Vec<Preference> {
    let mut by_pair: BTreeMap<usize, Vec<(usize, &Choice)>> = BTreeMap::new();
    for (index, choice) in choices.iter().enumerate() {
        by_pair.entry(choice.pair).or_default().push((index, choice));
    }
    let row = |pair: &Preference, index: usize, choice: &Choice| Preference {
        label: Some(if choice.chosen == 0 { [1.0, 0.0] } else { [0.0, 1.0] }),
        user_id: Some(choice.user),
        ranking_id: Some(index as i64),
        best_image_uid: pair.image_uids[choice.chosen].clone(),
        are_different: Some(true),
        has_label: Some(true),
        created_at: None,
        index: Some(index as i64),
        ..pair.clone()
    };
    let rows = by_pair.into_iter().flat_map(|(pair, choices)| {
        choices.into_iter().map(move |(index, choice)| row(pairs[pair], index, choice))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::data::pick_a_pic::{self, Columns};
    use crate::scenes::population::SAMPLES;
    use crate::scenes::{Split, render, sample_scene, style::Style, tastes};

    /// Pairs of a grey and a warm picture, for captions of one and two objects.
    fn shown(count: usize) -> Vec<Shown> {
        let one = |index: usize| {
            let mut draw = stream(Seed::new(8), "users test", index as u64);
            let scene = sample_scene(&mut draw, [1.0, 1.0, 0.0], Split::Train);
            let styles = [Style::neutral(), Style { warmth: 0.9, brightness: 0.7, ..Style::neutral() }];
            let images = styles.map(|style| render(&scene, &style, &mut draw));
            Shown::new(scene.caption(), images, &SAMPLES).unwrap()
        };
        (0..count).map(one).collect()
    }

    fn config(world: World) -> Config {
        Config { seed: Seed::new(3), world, seen: 12, unseen: 5, pairs_per_user: 9 }
    }

    #[test]
    fn users_choose_by_their_tastes_none_twice_and_about_their_topics() {
        let shown = shown(150);
        let tastes = Tastes::new(Seed::new(3), tastes::Config::desk(SAMPLES));
        for &world in World::ALL {
            let all = choices(&shown, &tastes, &config(world)).unwrap();
            assert_eq!(all.len(), 17 * 9);
            let (mut likelier, mut decided) = (0.0, 0.0);
            for user in all.chunk_by(|a, b| a.user == b.user) {
                let pairs: BTreeSet<usize> = user.iter().map(|choice| choice.pair).collect();
                assert_eq!(pairs.len(), 9);
                let scenes = pairs.iter().map(|&pair| parse(&shown[pair].caption).unwrap());
                let colours: BTreeSet<_> = scenes.flat_map(|scene| scene.objects).map(|o| o.colour).collect();
                assert!(
                    world == World::Topics || colours.len() > 3,
                    "a user of the shared world sees every colour"
                );
                let taste = taste(&tastes, user[0].user);
                for choice in user {
                    let [a, b] = &shown[choice.pair].features;
                    let odds = taste.prefers(a, b);
                    likelier += if (choice.chosen == 0) == (odds > 0.5) { 1.0 } else { 0.0 };
                    decided += odds.max(1.0 - odds);
                }
            }
            // 153 choices whose likelier side is taken with the mean probability: four standard errors.
            assert!((likelier - decided).abs() / 153.0 < 0.14, "{likelier} for {decided}");
        }
        let message = choices(&shown[..5], &tastes, &config(World::Shared)).unwrap_err().to_string();
        assert!(message.contains("pairs_per_user"), "{message}");
    }

    #[test]
    fn identifiers_say_which_user() {
        for (kind, index) in [(Kind::Seen, 0), (Kind::Seen, 299), (Kind::Unseen, 0), (Kind::Unseen, 99)] {
            assert_eq!(of_identifier(identifier(kind, index)), (kind, index as u64));
        }
    }

    #[test]
    fn captions_are_for_language_or_for_the_study() {
        let share = (0..3000).filter(|i| Use::of(&format!("a caption {i}")) == Use::Language).count();
        assert!((900..1120).contains(&share), "{share} of 3000, a third on average");
    }

    #[test]
    fn choices_become_pick_a_pics_rows_and_come_back() {
        let shown = shown(30);
        let pairs: Vec<Preference> = shown
            .iter()
            .enumerate()
            .map(|(i, shown)| Preference {
                caption: shown.caption.clone(),
                images: Some([0, 1].map(|side| {
                    crate::image::encode(&shown.images[side], crate::image::Format::Jpeg(92)).unwrap()
                })),
                image_uids: [Some(format!("{i}a")), Some(format!("{i}b"))],
                ..Preference::default()
            })
            .collect();
        let pairs: Vec<&Preference> = pairs.iter().collect();
        let tastes = Tastes::new(Seed::new(3), tastes::Config::desk(SAMPLES));
        let all = choices(&shown, &tastes, &config(World::Shared)).unwrap();
        let rows = preferences(&pairs, &all);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.parquet");
        super::super::write(&path, &rows).unwrap();
        let back = pick_a_pic::read(&path, Columns::All).unwrap();
        assert_eq!(back.len(), all.len());
        for row in &back {
            let choice = all[row.ranking_id.unwrap() as usize];
            assert_eq!((row.user_id, row.choice().unwrap().side()), (Some(choice.user), Some(choice.chosen)));
            assert_eq!(row.caption, shown[choice.pair].caption);
            assert_eq!(row.best_image_uid, row.image_uids[choice.chosen]);
        }
    }
}
