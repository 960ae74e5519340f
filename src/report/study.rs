//! What a study asked and what came out, indexed once for all outputs.
//!
//! [`Design`] is what the experiment file says, in the few words that tables need; [`Study`] sets the rows beside it.
//! Scores come out as [`Values`], one number for each (prompt, noise seed) and training seed, which are paired image
//! by image before anything is averaged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::judged::Said;
use crate::error::{Error, Result};
use crate::record::{self, Header, Kept, Row, Step};
use crate::spec::Users;
use crate::spec::claim::Claim;
use crate::stats::crossed::Gathered;
use crate::stats::{Crossed, Estimate, Inference};
use crate::units::Seed;

/// The confidence level of every interval.
pub const LEVEL: f64 = 0.95;
/// Bootstrap resamples behind every interval and p-value.
pub const RESAMPLES: usize = 4000;
/// The seed of the bootstrap's streams: a report is the same on every day.
pub const BOOTSTRAP: Seed = Seed::new(0);
/// The condition of an image that was made for nobody in particular.
pub const NOBODY: &str = "none";

/// What a method is for the tables: where its row stands and with whom it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The model that all others start from; it trained nothing.
    Base,
    /// One model for all users.
    Personal,
    /// Something that the personal model should beat.
    Baseline,
    /// A model of its own for this reward: the paper's upper bound.
    Specialist(String),
    /// A run whose outcome is known beforehand; it stands in no comparison.
    Control,
}

/// A user as rows name it, and as a point of the simplex.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// Its name in rows: `none`, a reward, or a mixture such as `clip=0.50+hps=0.50`.
    pub condition: String,
    /// Its weight on each of the design's rewards; all zero for nobody.
    pub weights: Vec<f64>,
}

/// One method of the study.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// Its name in rows and claims.
    pub name: String,
    /// Its name in tables.
    pub label: String,
    /// What it is for the tables.
    pub role: Role,
    /// The users it was asked to please.
    pub conditions: Vec<User>,
    /// What the paper reports for it, by reward.
    pub paper: BTreeMap<String, f64>,
}

impl Method {
    /// The condition under which this method speaks for `reward`: that reward's user where it takes users.
    pub fn condition_for<'a>(&'a self, reward: &'a str) -> &'a str {
        if self.conditions.iter().any(|user| user.condition == reward) { reward } else { NOBODY }
    }
}

/// What the experiment file says, in the words that tables need.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Design {
    /// The study's name, which is also its folder's.
    pub study: String,
    /// The study's title.
    pub title: String,
    /// The profile that was run.
    pub profile: String,
    /// The rewards that stand for users, in the tables' order.
    pub rewards: Vec<String>,
    /// The methods, in the tables' order.
    pub methods: Vec<Method>,
    /// The claims that were fixed beforehand.
    pub claims: Vec<Claim>,
    /// What was swept, where the study is a sweep.
    pub sweep: Option<Sweep>,
    /// The outputs that are rendered; absent: all that there is something for.
    pub outputs: Option<Vec<String>>,
    /// The people, where it is a study of them.
    pub people: Option<Users>,
    /// How many prompts each evaluated user has of her own; none where all have the same.
    pub own_prompts: Option<usize>,
    /// The noise seeds that all methods share; further images of the base only show how its images differ.
    pub noise_seeds: Vec<u64>,
}

/// The points of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// The method that was varied.
    pub method: String,
    /// The keys that were varied, such as `objective.beta`.
    pub keys: Vec<String>,
    /// Each point's method name with its value of each key.
    pub points: Vec<(String, Vec<f64>)>,
    /// The rewards that the method is to raise: those that label its pairs, or all where people do.
    pub rewards: Vec<String>,
}

impl Design {
    /// The method of this name.
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }

    /// The first method with this role.
    pub fn first(&self, role: &Role) -> Option<&Method> {
        self.methods.iter().find(|method| method.role == *role)
    }

    /// The place of a method among all, which gives it the same colour and marker in every figure.
    pub fn place(&self, name: &str) -> usize {
        self.methods.iter().position(|method| method.name == name).unwrap_or(self.methods.len())
    }
}

/// The name of the twin of a reward: a model of the same kind that no method ever trains on.
pub fn twin(reward: &str) -> String {
    format!("{reward}-twin")
}

/// A reward's name in tables and figures.
pub fn reward_label(reward: &str) -> String {
    match reward {
        "clip" => "CLIP".into(),
        "hps" => "HPS".into(),
        "aesthetic" => "Aesthetic".into(),
        other => match other.strip_suffix("-twin") {
            Some(of) => format!("{} twin", reward_label(of)),
            None => {
                let mut letters = other.chars();
                letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
            }
        },
    }
}

/// The training trace of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The method that was trained.
    pub method: String,
    /// The seed of the run.
    pub train_seed: u64,
    /// Its logged steps.
    pub steps: Vec<Step>,
}

/// An image that a record keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The method that made it.
    pub method: String,
    /// The seed of the training run behind it.
    pub train_seed: u64,
    /// What it was asked to show, and for whom.
    pub kept: Kept,
    /// The record's folder.
    pub folder: PathBuf,
}

impl Picture {
    /// The PNG's bytes.
    ///
    /// # Errors
    /// Where the file is missing or was changed.
    pub fn png(&self) -> Result<Vec<u8>> {
        record::read_image(&self.folder, &self.kept)
    }
}

/// A study's design with everything that its finished cells hold.
#[derive(Debug)]
pub struct Study {
    /// What was asked.
    pub design: Design,
    /// The headers of all finished cells.
    pub headers: Vec<Header>,
    /// The training traces, by method in the design's order and by seed.
    pub traces: Vec<Trace>,
    /// The images that the records keep, by method in the design's order, training seed, condition and prompt.
    pub pictures: Vec<Picture>,
    /// What judges said of the images, where they were asked.
    pub judged: Vec<Said>,
    /// How many cells were begun but are not finished; their rows are not used.
    pub unfinished: usize,
    /// The names of all scores that some row holds.
    pub scores: BTreeSet<String>,
    rows: Vec<Row>,
    blocks: HashMap<(String, String), Block>,
    deviations: BTreeMap<String, f64>,
}

/// The rows of one method under one condition, laid out as images × training seeds.
#[derive(Debug, Default)]
struct Block {
    seeds: Vec<u64>,
    images: Vec<(u32, u64)>,
    rows: Vec<Option<u32>>,
    /// Each score of those rows.
    scores: BTreeMap<String, Vec<Option<f64>>>,
}

/// One score of one method under one condition: images × training seeds, missing where an image failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    seeds: Vec<u64>,
    images: Vec<(u32, u64)>,
    values: Vec<Option<f64>>,
}

impl Study {
    /// Sets rows beside a design.
    pub fn new(design: Design, mut rows: Vec<Row>) -> Self {
        let deviations = deviations(&design, &rows);
        rows.retain(|row| design.noise_seeds.contains(&row.noise_seed));
        let mut gathered: HashMap<(&str, &str), Vec<u32>> = HashMap::new();
        for (index, row) in rows.iter().enumerate() {
            gathered.entry((&row.method, &row.condition)).or_default().push(index as u32);
        }
        let blocks = gathered
            .into_iter()
            .map(|((method, condition), indices)| {
                ((method.to_owned(), condition.to_owned()), Block::new(&rows, &indices))
            })
            .collect();
        let scores =
            rows.iter().flat_map(|row| row.scores.keys()).fold(BTreeSet::new(), |mut names, name| {
                if !names.contains(name) {
                    names.insert(name.clone());
                }
                names
            });
        Self {
            design,
            headers: Vec::new(),
            traces: Vec::new(),
            pictures: Vec::new(),
            judged: Vec::new(),
            unfinished: 0,
            scores,
            rows,
            blocks,
            deviations,
        }
    }

    /// Reads all finished cells below `folder` (`results/<study>/<profile>`).
    ///
    /// # Errors
    /// Where a record is corrupt, or two of them hold the same image.
    pub fn load(design: Design, folder: &Path) -> Result<Self> {
        let folders = record::cell_folders(folder)?;
        let cells: Vec<_> = folders
            .par_iter()
            .map(|folder| Ok((record::read_cell(folder)?, record::read_trace(folder)?, folder)))
            .collect::<Result<_>>()?;
        let (mut rows, mut headers, mut traces, mut unfinished) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut pictures = Vec::new();
        let mut owners: HashMap<(String, u64), &Path> = HashMap::new();
        for ((header, cell_rows), steps, folder) in cells {
            // A study may look at another's records and leave some of its methods out.
            if design.method(&header.method).is_none() {
                continue;
            }
            if header.finished.is_none() {
                unfinished += 1;
                continue;
            }
            if let Some(first) = owners.insert((header.method.clone(), header.train_seed), folder) {
                return Err(Error::data(
                    folder,
                    format!(
                        "holds {} with training seed {}, and so does {}; keep one of the two folders",
                        header.method,
                        header.train_seed,
                        first.display()
                    ),
                ));
            }
            if !steps.is_empty() {
                traces.push(Trace { method: header.method.clone(), train_seed: header.train_seed, steps });
            }
            pictures.extend(header.images.iter().map(|kept| Picture {
                method: header.method.clone(),
                train_seed: header.train_seed,
                kept: kept.clone(),
                folder: folder.clone(),
            }));
            rows.extend(cell_rows);
            headers.push(header);
        }
        traces.sort_by_key(|trace| (design.place(&trace.method), trace.train_seed));
        pictures.sort_by_key(|picture| {
            (
                design.place(&picture.method),
                picture.train_seed,
                picture.kept.condition.clone(),
                picture.kept.prompt,
            )
        });
        let judges = design.people.as_ref().map(|people| people.judges.as_slice()).unwrap_or_default();
        let judged = Said::read_all(judges, folder)?;
        Ok(Self { headers, traces, pictures, judged, unfinished, ..Self::new(design, rows) })
    }

    /// The number of rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The conditions that rows of this method hold, in name order.
    pub fn conditions(&self, method: &str) -> Vec<&str> {
        let mut conditions: Vec<&str> = self
            .blocks
            .keys()
            .filter(|(of, _)| of == method)
            .map(|(_, condition)| condition.as_str())
            .collect();
        conditions.sort_unstable();
        conditions
    }

    /// One score of one method under one condition; `None` where no row holds it.
    pub fn values(&self, method: &str, condition: &str, score: &str) -> Option<Values> {
        let block = self.blocks.get(&(method.to_owned(), condition.to_owned()))?;
        let values = block.scores.get(score)?.clone();
        Some(Values { seeds: block.seeds.clone(), images: block.images.clone(), values })
    }

    /// The unit of effects on a score: its standard deviation between the base's images of one prompt. `None` where no
    /// prompt has two images of the base, or they do not differ.
    pub fn deviation(&self, score: &str) -> Option<f64> {
        self.deviations.get(score).copied()
    }

    /// How many images of this method, under this condition, failed.
    pub fn failures(&self, method: &str, condition: &str) -> usize {
        let block = self.blocks.get(&(method.to_owned(), condition.to_owned()));
        let failed = |row: &&Option<u32>| row.is_some_and(|row| self.rows[row as usize].failure.is_some());
        block.map_or(0, |block| block.rows.iter().filter(failed).count())
    }

    /// All failures by reason, most frequent first.
    pub fn failure_reasons(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.rows.iter().filter_map(|row| row.failure.as_deref()) {
            *counts.entry(reason).or_default() += 1;
        }
        let mut reasons: Vec<_> =
            counts.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.1));
        reasons
    }

    /// The training seeds, prompts and images per prompt behind the tables, in a sentence.
    pub fn scale(&self) -> String {
        let count = |of: &dyn Fn(&Row) -> u64| self.rows.iter().map(of).collect::<BTreeSet<_>>().len();
        let trained: BTreeSet<u64> = self
            .rows
            .iter()
            .filter(|row| self.design.method(&row.method).is_none_or(|method| method.role != Role::Base))
            .map(|row| row.train_seed)
            .collect();
        let plural =
            |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        format!(
            "{}, {}, {} a prompt, {} images in all",
            plural(trained.len(), "training seed"),
            plural(count(&|row| u64::from(row.prompt)), "prompt"),
            plural(count(&|row| row.noise_seed), "noise seed"),
            self.rows.len()
        )
    }
}

/// Of each score, the standard deviation between the base's images of one prompt, pooled over prompts.
fn deviations(design: &Design, rows: &[Row]) -> BTreeMap<String, f64> {
    let Some(base) = design.first(&Role::Base) else { return BTreeMap::new() };
    let mut images: BTreeMap<(&str, u32), Vec<f64>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.method == base.name) {
        for (score, value) in &row.scores {
            images.entry((score, row.prompt)).or_default().push(*value);
        }
    }
    let mut pooled: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for ((score, _), values) in &images {
        if let Some(variance) = crate::stats::sample::variance(values) {
            let freedom = (values.len() - 1) as f64;
            let (squares, count) = pooled.entry(score).or_default();
            *squares += freedom * variance;
            *count += freedom;
        }
    }
    let deviations =
        pooled.into_iter().map(|(score, (squares, count))| (score.to_owned(), (squares / count).sqrt()));
    deviations.filter(|(_, deviation)| *deviation > 0.0).collect()
}

impl Block {
    fn new(rows: &[Row], indices: &[u32]) -> Self {
        let row = |index: &u32| &rows[*index as usize];
        let seeds: Vec<u64> =
            indices.iter().map(|i| row(i).train_seed).collect::<BTreeSet<_>>().into_iter().collect();
        let images: Vec<(u32, u64)> = indices
            .iter()
            .map(|i| (row(i).prompt, row(i).noise_seed))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let mut laid = vec![None; seeds.len() * images.len()];
        for index in indices {
            let of = row(index);
            let place = images
                .binary_search(&(of.prompt, of.noise_seed))
                .ok()
                .zip(seeds.binary_search(&of.train_seed).ok());
            if let Some((image, seed)) = place {
                laid[image * seeds.len() + seed] = Some(*index);
            }
        }
        let names: BTreeSet<&String> = indices.iter().flat_map(|index| row(index).scores.keys()).collect();
        let empty = |name: &String| (name.clone(), vec![None; laid.len()]);
        let mut scores: BTreeMap<String, Vec<Option<f64>>> = names.into_iter().map(empty).collect();
        for (place, index) in
            laid.iter().enumerate().filter_map(|(place, index)| Some((place, index.as_ref()?)))
        {
            // Both are in the order of their names: no name is looked up.
            let mut columns = scores.iter_mut();
            for (name, value) in &row(index).scores {
                if let Some((_, column)) = columns.find(|(column, _)| *column == name) {
                    column[place] = Some(*value);
                }
            }
        }
        Self { seeds, images, rows: laid, scores }
    }
}

impl Values {
    /// This score combined with another, image by image.
    ///
    /// Images that only one side has are left out. Training seeds are paired by number; a side with a single seed (the
    /// base, which trains nothing) stands beside every seed of the other.
    pub fn combine(&self, other: &Self, with: impl Fn(f64, f64) -> f64) -> Self {
        let pairs: Vec<(u64, usize, usize)> = match (self.seeds.len(), other.seeds.len()) {
            (1, n) if n > 1 => other.seeds.iter().enumerate().map(|(b, seed)| (*seed, 0, b)).collect(),
            (n, 1) if n > 1 => self.seeds.iter().enumerate().map(|(a, seed)| (*seed, a, 0)).collect(),
            (1, 1) => vec![(self.seeds[0], 0, 0)],
            _ => self
                .seeds
                .iter()
                .enumerate()
                .filter_map(|(a, seed)| other.seeds.binary_search(seed).ok().map(|b| (*seed, a, b)))
                .collect(),
        };
        let mut combined =
            Self { seeds: pairs.iter().map(|pair| pair.0).collect(), images: Vec::new(), values: Vec::new() };
        for (image, key) in self.images.iter().enumerate() {
            let Ok(theirs) = other.images.binary_search(key) else { continue };
            combined.images.push(*key);
            for (_, a, b) in &pairs {
                let (a, b) =
                    (self.values[image * self.seeds.len() + a], other.values[theirs * other.seeds.len() + b]);
                combined.values.push(a.zip(b).map(|(a, b)| with(a, b)));
            }
        }
        combined
    }

    /// The paired differences `self − other`.
    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a - b)
    }

    /// 1 where this image scores higher, 0 where the other does, ½ where they tie.
    pub fn wins_over(&self, other: &Self) -> Self {
        self.combine(other, |a, b| match a.partial_cmp(&b) {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Less) => 0.0,
            _ => 0.5,
        })
    }

    /// Every value times `factor`.
    pub fn scaled(mut self, factor: f64) -> Self {
        self.values.iter_mut().flatten().for_each(|value| *value *= factor);
        self
    }

    /// Averaged over noise seeds: prompts × training seeds, over the prompts that every seed has.
    ///
    /// # Errors
    /// Where no prompt has a value from every seed.
    pub fn gathered(&self) -> Result<Gathered> {
        let seeds = self.seeds.len();
        Crossed::gather(self.values.iter().enumerate().filter_map(|(at, value)| {
            value.map(|value| (self.seeds[at % seeds], self.images[at / seeds].0, value))
        }))
    }

    /// The mean with everything needed for intervals and p-values.
    ///
    /// # Errors
    /// Where no prompt has a value from every seed.
    pub fn inference(&self) -> Result<Inference> {
        self.gathered()?.values.inference(RESAMPLES, BOOTSTRAP)
    }

    /// The mean with its interval.
    ///
    /// # Errors
    /// Where no prompt has a value from every seed.
    pub fn mean(&self) -> Result<Estimate> {
        Ok(self.inference()?.estimate(LEVEL))
    }

    /// The rate (of values in [0, 1]) with its interval.
    ///
    /// # Errors
    /// Where no prompt has a value from every seed.
    pub fn rate(&self) -> Result<Estimate> {
        Ok(self.rate_inference()?.estimate(LEVEL).clamped(0.0, 1.0))
    }

    /// As [`Values::inference`] for a rate.
    ///
    /// # Errors
    /// Where no prompt has a value from every seed.
    pub fn rate_inference(&self) -> Result<Inference> {
        self.gathered()?.values.rate_inference(RESAMPLES, BOOTSTRAP)
    }

    /// All numbers that are there, in no particular order.
    pub fn all(&self) -> Vec<f64> {
        self.values.iter().flatten().copied().collect()
    }

    /// The number of training seeds.
    pub fn seeds(&self) -> usize {
        self.seeds.len()
    }
}
