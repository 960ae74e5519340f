//! Can a user be told from few-shot features (the paper's Fig. 2)? From users' choices to the rank that each user has among
//! all, for a few of her choices.
//!
//! A group is `shots` of a user's pairs. Heads learn from some groups of every user which user a group belongs to, and are
//! asked about others. What this module does not do: train the model that embeds, or say how good a rank is.

mod features;
mod knowledge;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;

use crate::data::Preference;
use crate::data::album::States;
use crate::data::desk::users::{self, Choice, Shown, Use};
use crate::data::gallery::Gallery;
use crate::data::recorded;
use crate::embed::choices::Source;
use crate::error::{Error, Result};
use crate::nn::workers::Workers;
use crate::pretrain::classify::{self, Examples};
use crate::progress::Progress;
use crate::rng::stream;
use crate::scenes::population::SAMPLES;
use crate::scenes::tastes::{self, Kind, Taste, Tastes};
use crate::spec::identify::{Cell, Features, Identification, RANK, Separation, World, rank_by};
use crate::units::Digest;

use knowledge::Scores;

/// Of 256 captions, how many are kept for asked groups where these share none with learned ones.
const ASKED_CAPTIONS: u8 = 64;

/// Features, a row for each group.
type Rows = Vec<Vec<f32>>;

/// What the cells of a study share.
pub struct Identifier<'a> {
    study: &'a Identification,
    assets: &'a Path,
    cache: &'a Path,
    workers: &'a Workers,
    device: Device,
    gallery: Gallery,
    users: Users,
}

/// Who is to be told from whom.
enum Users {
    /// Simulated ones, with known utilities.
    Simulated(Tastes),
    /// People, each with her choices.
    Recorded(Vec<Vec<Choice>>),
}

/// A few choices of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The user's number.
    pub user: usize,
    /// Her choices.
    pub choices: Vec<Choice>,
}

/// The groups of all users.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// Those that heads learn from.
    pub learned: Vec<Group>,
    /// Those that heads are asked about.
    pub asked: Vec<Group>,
}

/// What is said of one asked group.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The user's number.
    pub user: usize,
    /// The place among the user's asked groups.
    pub group: usize,
    /// The true user's rank by each head, and what the features know of her.
    pub scores: Scores,
}

impl<'a> Identifier<'a> {
    /// Gathers the pictures that users look at, out of the desk's `pairs`.
    ///
    /// # Errors
    /// Where a picture cannot be decoded or a caption is none of the desk's.
    pub fn new(
        study: &'a Identification,
        pairs: &[Preference],
        (assets, cache): (&'a Path, &'a Path),
        workers: &'a Workers,
    ) -> Result<Self> {
        let pairs: Vec<&Preference> =
            pairs.iter().filter(|pair| Use::of(&pair.caption) == Use::Study).collect();
        let gallery = Gallery::Desk(Shown::of_pairs(&pairs, &SAMPLES)?);
        let users = Users::Simulated(Tastes::new(study.users.seed, tastes::Config::desk(SAMPLES)));
        Ok(Self { study, assets, cache, workers, device: Device::Cpu, gallery, users })
    }

    /// Draws users among the people whose choices a data set records: those who have enough of them.
    ///
    /// # Errors
    /// Where too few have, with how many the others have.
    pub fn recorded(
        study: &'a Identification,
        source: &Source<'a>,
        assets: &'a Path,
        workers: &'a Workers,
        progress: &Progress,
    ) -> Result<Self> {
        let (album, pairs) = source.recorded()?;
        let mut states = States::open(&album, source.cache)?;
        let enough = |choices: &[Choice]| {
            let fits = |separation: &Separation| {
                let parts = parted(study, *separation, choices.to_vec(), |pair| pairs[pair].caption.as_str());
                parts.iter().all(|(choices, count)| choices.len() / study.groups.shots >= *count)
            };
            study.groups.separations.iter().all(fits)
        };
        let who = (study.users.seed, study.users.count, study.users.pairs_per_user);
        let people = recorded::with_enough(&pairs, (&album, &mut states), who, enough, progress)?;
        drop(states);
        let mut captions = BTreeMap::new();
        let choices: Vec<Vec<Choice>> = people
            .into_iter()
            .enumerate()
            .map(|(number, of)| {
                let own = of.learned.into_iter().map(|choice| Choice { user: number as i64, ..choice });
                own.collect()
            })
            .collect();
        for choice in choices.iter().flatten() {
            captions.entry(choice.pair).or_insert_with(|| pairs[choice.pair].caption.clone());
        }
        let gallery = Gallery::Album { album, captions };
        let (cache, users) = (source.cache, Users::Recorded(choices));
        Ok(Self { study, assets, cache, workers, device: Device::Cpu, gallery, users })
    }

    /// The same, with models that compute on `device`.
    pub fn on(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    fn config(&self, world: users::World) -> users::Config {
        let users = &self.study.users;
        let pairs_per_user = users.pairs_per_user;
        users::Config { seed: users.seed, world, seen: users.count, unseen: 0, pairs_per_user }
    }

    /// What simulated users look at, and their tastes.
    fn simulated(&self) -> Result<(&[Shown], &Tastes)> {
        match (self.gallery.shown(), &self.users) {
            (Some(shown), Users::Simulated(tastes)) => Ok((shown, tastes)),
            _ => Err(Error::Spec(format!(
                "{}: people's utilities are unknown where choices are recorded; leave out what asks for them",
                self.study.name
            ))),
        }
    }

    /// Everybody's choices.
    fn choices(&self, world: World) -> Result<Vec<Vec<Choice>>> {
        match (&self.users, world.simulated()) {
            (Users::Recorded(choices), None) => Ok(choices.clone()),
            (Users::Simulated(tastes), Some(world)) => {
                let shown = self.gallery.shown().unwrap_or_default();
                let all = users::choices(shown, tastes, &self.config(world))?;
                Ok(all.chunk_by(|a, b| a.user == b.user).map(<[Choice]>::to_vec).collect())
            }
            _ => Err(Error::Spec(format!(
                "{}: there is no world `{}` among these users",
                self.study.name,
                world.name()
            ))),
        }
    }

    /// Cuts all users' choices into groups.
    ///
    /// # Errors
    /// [`Error::Spec`] where a user has too few choices.
    pub fn cut(&self, world: World, separation: Separation) -> Result<Cut> {
        let sizes = &self.study.groups;
        let mut cut = Cut::default();
        for mut choices in self.choices(world)? {
            let Some(user) = choices.first().map(|choice| choice.user as usize) else { continue };
            stream(sizes.seed, "identify groups", user as u64).shuffle(&mut choices);
            let [learned, asked] = parted(self.study, separation, choices, |pair| self.gallery.caption(pair));
            for (groups, (choices, count)) in [(&mut cut.learned, learned), (&mut cut.asked, asked)] {
                let chunks = choices.chunks_exact(sizes.shots);
                if chunks.len() < count {
                    return Err(Error::Spec(format!(
                        "user {user} has choices for {} groups of {} in the world `{}` under `{}`, and {count} are asked \
                         for; raise users.pairs_per_user or lower groups.learned or groups.asked",
                        chunks.len(),
                        sizes.shots,
                        world.name(),
                        separation.name()
                    )));
                }
                groups.extend(chunks.take(count).map(|choices| Group { user, choices: choices.to_vec() }));
            }
        }
        Ok(cut)
    }

    /// What the features of a cell say of each asked group.
    ///
    /// # Errors
    /// Where a model is missing or damaged, and where the work is to stop.
    pub fn answers(&self, cell: &Cell, progress: &Progress) -> Result<Vec<Answered>> {
        let cut = self.cut(cell.world, cell.separation)?;
        let rows = match &cell.method.features {
            Features::KnownUtilities => None,
            Features::ClipDifference { model } => Some(self.differences(&cut, model)?),
            Features::Embedding { choices, layer, model } => {
                let model = model.as_ref().unwrap_or(&self.study.embedding.model);
                Some(self.embeddings(&cut, (*choices, model), *layer, progress)?)
            }
        };
        let mut answers: Vec<Scores> = match (&self.study.knowledge, &rows) {
            (None, _) => vec![Scores::new(); cut.asked.len()],
            (Some(settings), None) => self.knowable(settings, &cut)?,
            (Some(settings), Some((learned, asked))) => self.knowledge(settings, &cut, (learned, asked))?,
        };
        let ranks = match rows {
            None => vec![(RANK.to_owned(), self.known(&cut.asked, cell.world, cell.separation)?)],
            Some(rows) => self.by_heads(&cut, rows, progress)?,
        };
        for (name, ranks) in ranks {
            for (answer, rank) in answers.iter_mut().zip(ranks) {
                answer.insert(name.clone(), rank);
            }
        }
        let asked = self.study.groups.asked;
        let answered = answers.into_iter().zip(&cut.asked).enumerate();
        Ok(answered
            .map(|(at, (scores, group))| Answered { user: group.user, group: at % asked, scores })
            .collect())
    }

    /// The ranks by each head, of features of the learned and of the asked groups.
    fn by_heads(
        &self,
        cut: &Cut,
        (learned, asked): (Rows, Rows),
        progress: &Progress,
    ) -> Result<Vec<(String, Vec<f64>)>> {
        let examples = |groups: &[Group], features| Examples {
            features,
            classes: groups.iter().map(|group| group.user).collect(),
        };
        let (learned, asked) = (examples(&cut.learned, learned), examples(&cut.asked, asked));
        progress.begin("heads", self.study.heads.len());
        let ranks = self.workers.map(&self.study.heads, |_, head| {
            let ranks = classify::ranks(head, self.study.users.count, &learned, &asked);
            progress.advance(1);
            Ok((rank_by(head.head), ranks?))
        });
        ranks.into_iter().collect()
    }

    /// What is known of all users says, by Bayes' rule from equal odds, of each group: the rank of its own user.
    fn known(&self, groups: &[Group], world: World, separation: Separation) -> Result<Vec<f64>> {
        let (shown, tastes) = self.simulated()?;
        let config = self.config(world.simulated().unwrap_or(users::World::Shared));
        let tastes: Vec<Taste> =
            (0..self.study.users.count).map(|user| tastes.user(Kind::Seen, user as u64)).collect();
        let asked =
            |place: &usize| separation == Separation::Random || kept_for_asked(self.gallery.caption(*place));
        // The chance of meeting a pair of one's own is the same for each of them.
        let pools: Vec<(Vec<bool>, f64)> = (0..self.study.users.count)
            .map(|user| {
                let pool = users::pool(shown, &config, user as i64);
                let mut holds = vec![false; shown.len()];
                pool.iter().for_each(|&place| holds[place] = true);
                let size = pool.iter().filter(|place| asked(place)).count();
                (holds, -(size.max(1) as f64).ln())
            })
            .collect();
        let rank = |_: usize, group: &Group| {
            let likelihood = |(taste, (holds, chance)): (&Taste, &(Vec<bool>, f64))| -> f64 {
                let of = |choice: &Choice| {
                    if !holds[choice.pair] {
                        return f64::NEG_INFINITY;
                    }
                    let features = &shown[choice.pair].features;
                    chance + taste.prefers(&features[choice.chosen], &features[1 - choice.chosen]).ln()
                };
                group.choices.iter().map(of).sum()
            };
            let all: Vec<f64> = tastes.iter().zip(&pools).map(likelihood).collect();
            classify::rank(&all, group.user)
        };
        Ok(self.workers.map(groups, rank))
    }
}

/// A user's choices to learn from and to ask about, in that order, each with the number of groups that they must do for.
fn parted<'c>(
    study: &Identification,
    separation: Separation,
    mut choices: Vec<Choice>,
    caption: impl Fn(usize) -> &'c str,
) -> [(Vec<Choice>, usize); 2] {
    let sizes = &study.groups;
    let (asked, learned): (Vec<Choice>, Vec<Choice>) = match separation {
        Separation::Random => {
            let learned = choices.split_off((sizes.shots * sizes.asked).min(choices.len()));
            (choices, learned)
        }
        Separation::CaptionDisjoint => {
            choices.into_iter().partition(|choice| kept_for_asked(caption(choice.pair)))
        }
    };
    [(learned, sizes.learned), (asked, sizes.asked)]
}

/// Whether captions like this one are kept for asked groups, where these share none with learned ones.
fn kept_for_asked(caption: &str) -> bool {
    let digest = Digest::of(format!("identify asked {caption}").as_bytes());
    u8::from_str_radix(&digest.hex()[..2], 16).is_ok_and(|byte| byte < ASKED_CAPTIONS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::image::{Format, encode};
    use crate::pretrain::vlm::{self, VlmConfig};
    use crate::scenes::{Split, render, sample_scene, style::Style};
    use crate::spec::identify::{Knowledge, score};
    use crate::spec::{Places, Request};
    use crate::units::Seed;

    /// Pairs of renders in two styles each.
    fn pairs(count: usize) -> Vec<Preference> {
        let one = |index: usize| {
            let mut draw = stream(Seed::new(8), "identify test", index as u64);
            let scene = sample_scene(&mut draw, [1.0, 1.0, 0.0], Split::Train);
            let images = [0, 1].map(|_| {
                let style = Style::sample(&mut draw);
                encode(&render(&scene, &style, &mut draw), Format::Png).unwrap()
            });
            Preference { caption: scene.caption(), images: Some(images), ..Preference::default() }
        };
        (0..count).map(one).collect()
    }

    fn study(set: &[&str]) -> Identification {
        let request = Request {
            study: "fig2".into(),
            size: crate::spec::Size::Quick,
            set: set.iter().map(|set| (*set).to_owned()).collect(),
            experiments: "experiments".into(),
            ..Request::default()
        };
        Identification::load(&request).unwrap()
    }

    #[test]
    fn groups_share_no_choice_and_where_asked_no_caption() {
        let study = study(&[
            "users.pairs_per_user=60",
            "groups.separations=[\"random\", \"caption-disjoint\"]",
            "groups.asked=2",
        ]);
        let (pairs, workers) = (pairs(220), Workers::new(1).unwrap());
        let nowhere = Path::new("nowhere");
        let identifier = Identifier::new(&study, &pairs, (nowhere, nowhere), &workers).unwrap();
        for &separation in &study.groups.separations {
            let cut = identifier.cut(World::Shared, separation).unwrap();
            assert_eq!((cut.learned.len(), cut.asked.len()), (12 * 3, 12 * 2));
            let mut taken = BTreeSet::new();
            for group in cut.learned.iter().chain(&cut.asked) {
                assert_eq!(group.choices.len(), 4);
                for choice in &group.choices {
                    assert_eq!(choice.user as usize, group.user);
                    assert!(taken.insert((choice.user, choice.pair)));
                }
            }
            let captions = |groups: &[Group]| -> BTreeSet<String> {
                let choices = groups.iter().flat_map(|group| &group.choices);
                choices.map(|choice| identifier.gallery.caption(choice.pair).to_owned()).collect()
            };
            let shared = captions(&cut.learned).intersection(&captions(&cut.asked)).count();
            assert_eq!(shared == 0, separation == Separation::CaptionDisjoint, "{shared}");
            let ranks = identifier.known(&cut.asked, World::Shared, separation).unwrap();
            // By chance 6.5 of 12, with a standard error of 0.7; what is known says far more.
            let mean = ranks.iter().sum::<f64>() / ranks.len() as f64;
            assert!(mean < 4.4, "{mean}");
        }
    }

    #[test]
    fn what_is_known_of_a_taste_foresees_choices_and_what_says_nothing_does_not() {
        let study = study(&["users.count=40", "users.pairs_per_user=40", "groups.asked=3"]);
        // Few users need more passes.
        let settings = Knowledge { epochs: 100, ..study.knowledge.clone().unwrap() };
        let (pairs, workers) = (pairs(200), Workers::new(1).unwrap());
        let nowhere = Path::new("nowhere");
        let identifier = Identifier::new(&study, &pairs, (nowhere, nowhere), &workers).unwrap();
        let cut = identifier.cut(World::Shared, Separation::Random).unwrap();
        let mean = |scores: &[Scores], name: &str| {
            scores.iter().map(|one| one[name]).sum::<f64>() / scores.len() as f64
        };
        let explained = |scores: &[Scores]| {
            let [utilities, between] = [
                (score::UTILITIES_ERROR, score::UTILITIES_SPREAD),
                (score::BETWEEN_ERROR, score::BETWEEN_SPREAD),
            ]
            .map(|(error, spread)| 1.0 - mean(scores, error) / mean(scores, spread));
            (utilities, between)
        };
        // The true weights as features, and numbers that say nothing.
        let rows = |tells: bool| {
            let mut draw = stream(Seed::new(3), "knowledge test", 0);
            let mut of = |groups: &[Group]| -> Rows {
                let row = |group: &Group| {
                    let weights =
                        identifier.simulated().unwrap().1.user(Kind::Seen, group.user as u64).weights;
                    weights.iter().map(|w| if tells { *w as f32 } else { draw.normal() as f32 }).collect()
                };
                groups.iter().map(row).collect()
            };
            (of(&cut.learned), of(&cut.asked))
        };
        let know = |tells| {
            let (learned, asked) = rows(tells);
            identifier.knowledge(&settings, &cut, (&learned, &asked)).unwrap()
        };
        let bayes = identifier.knowable(&settings, &cut).unwrap();
        let (all, nothing) = (know(true), know(false));
        // 960 choices: a standard error of 1.6 points, and somewhat more as users share theirs.
        let gain = |scores: &[Scores]| mean(scores, score::CHOICE_OWN) - mean(scores, score::CHOICE_SHUFFLED);
        assert!(gain(&all) > 0.12, "{}", gain(&all));
        assert!(gain(&nothing).abs() < 0.08, "{}", gain(&nothing));
        assert!(gain(&bayes) > 0.03 && gain(&bayes) < gain(&all), "{}", gain(&bayes));
        assert!(mean(&all, score::CHOICE_OWN) > mean(&bayes, score::CHOICE_OWN));
        let ((all, between), (nothing, _), (known, _)) =
            (explained(&all), explained(&nothing), explained(&bayes));
        assert!(all > 0.9 && between > 0.9, "{all} {between}");
        assert!(nothing < 0.1, "{nothing}");
        assert!((0.1..0.7).contains(&known), "{known}");
    }

    #[test]
    fn a_cell_gives_every_asked_group_a_rank_and_embeds_once() {
        let folder = tempfile::tempdir().unwrap();
        let (assets, cache) = (folder.path().join("assets"), folder.path().join("cache"));
        let model = assets.join("desk/vlm");
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(assets.join("desk/pairs.parquet"), b"stands for the pairs").unwrap();
        vlm::run(&VlmConfig::smoke(), &[], &model, 1, &mut |_| true).unwrap();
        let study = study(&[
            "users.count=5",
            "ranks=[1, 2]",
            "embedding.max_new_tokens=3",
            "heads=[]",
            "knowledge.folds=2",
        ]);
        let places = Places {
            results: folder.path().join("results"),
            figures: folder.path().join("figures"),
            cache: cache.clone(),
            assets: assets.clone(),
        };
        let mut wanted = study.clone();
        // The smallest model has two layers.
        wanted.methods.retain(|method| {
            !matches!(
                method.features,
                Features::ClipDifference { .. } | Features::Embedding { layer: Some(3), .. }
            )
        });
        let cells = wanted.cells(&places).unwrap();
        let (pairs, workers) = (pairs(60), Workers::new(1).unwrap());
        let identifier = Identifier::new(&study, &pairs, (&assets, &cache), &workers).unwrap();
        for cell in &cells {
            let answered = identifier.answers(cell, &Progress::silent()).unwrap();
            assert_eq!(answered.len(), 5 * study.groups.asked);
            for one in &answered {
                let mut wanted = cell.scores(&study);
                wanted.sort();
                assert!(one.scores.keys().eq(&wanted), "{one:?}");
                assert!(one.scores.values().all(|score| score.is_finite()), "{one:?}");
            }
        }
        // Own choices with all their layers, and those by a coin.
        let stored = std::fs::read_dir(cache.join("user-embeddings")).unwrap().count();
        assert_eq!(stored, 2);
        let ids: BTreeSet<&str> = cells.iter().map(|cell| cell.id.as_str()).collect();
        assert_eq!(ids.len(), cells.len());
    }
}
