//! Where a study's choices come from: simulated users choose between the desk's pairs, or people did and a data set says so.
//! What follows from them is the same for both.

use std::collections::BTreeMap;
use std::path::Path;

use crate::data::Preference;
use crate::data::album::{Album, States};
use crate::data::desk::users::{self, Choice, Shown, Use};
use crate::data::gallery::Gallery;
use crate::data::pick_a_pic::{self, Columns};
use crate::data::recorded::{self, Of};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::rng::stream;
use crate::scenes::population::SAMPLES;
use crate::scenes::tastes::{self, Kind, Taste, Tastes};
use crate::spec::users::{Choosing, Users};
use crate::units::Digest;

/// Who chose what, before anything was made of it.
#[derive(Debug)]
pub struct Choices {
    /// The study's pairs, by the numbers that choices know them by.
    pub gallery: Gallery,
    /// The place of each of the desk's among all pairs; others are known by it.
    places: Option<Vec<usize>>,
    /// Everybody's taste, where it is known.
    pub tastes: Option<Tastes>,
    /// Of each user, the blocks that images and judgements are made from.
    pub blocks: BTreeMap<i64, Vec<Vec<Choice>>>,
    /// Of each user that is trained on, the groups to learn from.
    pub groups: BTreeMap<i64, Vec<Vec<Choice>>>,
}

/// Where the pairs are.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The pairs.
    pub path: &'a Path,
    /// Their digest.
    pub digest: &'a Digest,
    /// How many of recorded ones are used, from the first; none: all.
    pub most: Option<usize>,
    /// What is known of their pictures is kept below it.
    pub cache: &'a Path,
}

impl Source<'_> {
    /// Recorded pairs, and the album that their pictures are in.
    ///
    /// # Errors
    /// Where there are none, or a file is damaged.
    pub fn recorded(&self) -> Result<(Album, Vec<Preference>)> {
        let album = Album::open(self.path, self.digest.clone())?;
        let mut pairs = album.load()?;
        pairs.truncate(self.most.unwrap_or(usize::MAX));
        Ok((album, pairs))
    }
}

impl Choices {
    /// Lets everybody choose among the study's pairs, or reads what she chose.
    ///
    /// # Errors
    /// Where users have too few choices, with how many have how many, or a file is damaged.
    pub fn gather(spec: &Users, source: &Source, progress: &Progress) -> Result<Self> {
        match spec.choices {
            Choosing::Simulated => Self::simulated(spec, &pick_a_pic::read(source.path, Columns::All)?),
            Choosing::Recorded(shares) => {
                let config = recorded::Config {
                    seed: spec.seed,
                    shares,
                    seen: spec.seen,
                    unseen: spec.unseen,
                    told: spec.draws * spec.block(),
                    asked: spec.held_out,
                    learned: spec.pairs_per_user,
                };
                Self::recorded(spec, source, &config, progress)
            }
        }
    }

    /// Lets simulated users choose among the desk's `pairs`.
    ///
    /// # Errors
    /// Where users have too few pairs to choose between, or a picture cannot be decoded.
    pub fn simulated(spec: &Users, pairs: &[Preference]) -> Result<Self> {
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
            let (told, learned) = own.split_at((spec.draws * spec.block()).min(own.len()));
            blocks.insert(own[0].user, blocks_of(spec, told));
            // Of an unseen user nothing but the blocks is ever looked at.
            if users::of_identifier(own[0].user).0 == Kind::Seen {
                groups.insert(own[0].user, groups_of(spec, own[0].user, learned));
            }
        }
        Ok(Self { gallery: Gallery::Desk(shown), places: Some(places), tastes: Some(tastes), blocks, groups })
    }

    fn recorded(
        spec: &Users,
        source: &Source,
        config: &recorded::Config,
        progress: &Progress,
    ) -> Result<Self> {
        let (album, pairs) = source.recorded()?;
        let mut states = States::open(&album, source.cache)?;
        let everybody = recorded::gather(&pairs, (&album, &mut states), config, progress)?;
        drop(states);
        let mut captions = BTreeMap::new();
        let (mut blocks, mut groups) = (BTreeMap::new(), BTreeMap::new());
        for (user, Of { told, asked, learned, .. }) in everybody {
            for choice in told.iter().chain(&asked).chain(&learned) {
                captions.entry(choice.pair).or_insert_with(|| pairs[choice.pair].caption.clone());
            }
            if !told.is_empty() {
                let mut own = blocks_of(spec, &told);
                own.extend((!asked.is_empty()).then_some(asked));
                blocks.insert(user, own);
            }
            if users::of_identifier(user).0 == Kind::Seen {
                groups.insert(user, groups_of(spec, user, &learned));
            }
        }
        // A group is learned under another group's embedding.
        if !groups.values().any(|own: &Vec<Vec<Choice>>| own.len() > 1) {
            let sizes: Vec<String> = spec.learned_shots().iter().map(ToString::to_string).collect();
            return Err(Error::data(
                source.path,
                format!(
                    "nobody has two groups of {} choices to learn from, beside what is told and asked; lower \
                     users.learned_shots, or users.choices.held_out",
                    sizes.join(" or ")
                ),
            ));
        }
        let gallery = Gallery::Album { album, captions };
        Ok(Self { gallery, places: None, tastes: None, blocks, groups })
    }

    /// The place of a pair among all.
    pub fn place(&self, pair: usize) -> usize {
        self.places.as_ref().map_or(pair, |places| places.get(pair).copied().unwrap_or(pair))
    }

    /// A block of a user's choices.
    ///
    /// # Errors
    /// [`Error::Spec`] where she has none of this number.
    pub fn block(&self, user: i64, block: usize) -> Result<&[Choice]> {
        let own = self.blocks.get(&user).and_then(|own| own.get(block));
        own.map(Vec::as_slice).ok_or_else(|| Error::Spec(format!("user {user} has no block {block}")))
    }

    /// A user's taste, where it is known.
    pub fn taste(&self, user: i64) -> Option<Taste> {
        self.tastes.as_ref().map(|tastes| users::taste(tastes, user))
    }

    /// The probability that a user chooses a pair's first picture, where it is known.
    pub fn probability(&self, user: i64, pair: usize) -> Option<f64> {
        let shown = self.gallery.shown()?.get(pair)?;
        Some(self.taste(user)?.prefers(&shown.features[0], &shown.features[1]))
    }

    /// The captions of the evaluated users' held-out choices, `each` of a user, in the order of
    /// [`Users::own_prompts`].
    ///
    /// # Errors
    /// [`Error::Spec`] where somebody has fewer.
    pub fn own_prompts(&self, spec: &Users, each: usize) -> Result<Vec<String>> {
        let mut prompts = Vec::new();
        for user in spec.evaluated(Kind::Seen).chain(spec.evaluated(Kind::Unseen)) {
            let held_out = self.block(user, spec.draws)?.get(..each).ok_or_else(|| {
                Error::Spec(format!(
                    "user {user} has fewer than {each} held-out choices; raise users.held_out"
                ))
            })?;
            prompts.extend(held_out.iter().map(|choice| self.gallery.caption(choice.pair).to_owned()));
        }
        Ok(prompts)
    }
}

fn blocks_of(spec: &Users, told: &[Choice]) -> Vec<Vec<Choice>> {
    told.chunks(spec.block()).map(<[Choice]>::to_vec).collect()
}

/// The groups that one user's choices are learned from in.
fn groups_of(spec: &Users, user: i64, mut rest: &[Choice]) -> Vec<Vec<Choice>> {
    let sizes = spec.learned_shots();
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
    groups
}
