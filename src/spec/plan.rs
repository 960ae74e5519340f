//! A study set against this disk: a flat list of cells, each with an id that hashes its inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::source::Problems;
use super::{Captions, Conditioning, Cost, Labels, Method, Precision, Profile, Prompts, Spec};
use crate::data::pairs::Store;
use crate::data::{Split, pick_a_pic, prompts, scores};
use crate::error::{Error, Result};
use crate::hub::{self, Hub};
use crate::pretrain::{MANIFEST, Manifest};
use crate::provenance::{Provenance, file_digest, free_bytes};
use crate::record::{self, Header};
use crate::units::{Digest, Seed};
use crate::weights::Weights;

/// The version of experiment files and of what a cell's id means; a change of either makes all cells new.
pub const SCHEMA: u32 = 1;

/// Disk that a plan may take besides its rows: one adapter with its optimiser's state, generously.
const BYTES_PER_TRAINING: u64 = 8 << 20;
/// Pixels along a side of a training picture for one of its latents', and channels of these (Stable Cascade's encoder).
const ENCODER_STRIDE: usize = 32;
const LATENT_CHANNELS: u64 = 16;
/// Disk that one row takes, generously.
const BYTES_PER_ROW: u64 = 400;

/// The folders that a run reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Records.
    pub results: PathBuf,
    /// Figures.
    pub figures: PathBuf,
    /// What can be made again: adapters, reference errors.
    pub cache: PathBuf,
    /// Weights and data.
    pub assets: PathBuf,
}

impl Places {
    /// The folder of a training's results in the cache.
    pub fn training(&self, train_key: &str) -> PathBuf {
        self.cache.join("adapters").join(train_key)
    }
}

/// One method trained with one seed and evaluated: the unit of work, of resuming and of records.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Its name on disk; the last part hashes its inputs.
    pub id: String,
    /// The method.
    pub method: Method,
    /// The training seed; the base, which trains nothing, stands once, with seed 0.
    pub train_seed: Seed,
    /// The identity of its training, shared by all cells with the same; `None` for the base.
    pub train_key: Option<String>,
    /// The canonical configuration that its id hashes.
    pub config: serde_json::Value,
    /// The digests of the weights and data that it depends on.
    pub digests: BTreeMap<String, Digest>,
    /// How many rows its complete record has.
    pub rows: usize,
    /// The folder of its record.
    pub folder: PathBuf,
}

impl Cell {
    /// Whether its record is complete.
    pub fn is_complete(&self) -> bool {
        record::read_header(&self.folder).is_ok_and(|header| header.finished.is_some())
    }

    /// Where its record stands: rows that are there.
    ///
    /// # Errors
    /// Where the record is corrupt.
    pub fn rows_done(&self) -> Result<usize> {
        if !record::is_record(&self.folder) {
            return Ok(0);
        }
        Ok(record::read_cell(&self.folder)?.1.len())
    }

    /// The header of a new record of this cell.
    pub fn header(
        &self,
        plan: &Plan,
        provenance: &Provenance,
        binary: Option<&Digest>,
        scores: &[String],
    ) -> Header {
        let mut digests = self.digests.clone();
        digests.extend(binary.map(|digest| ("binary".to_owned(), digest.clone())));
        Header {
            schema: record::SCHEMA,
            study: plan.spec.records.clone(),
            profile: plan.spec.label.clone(),
            cell: self.id.clone(),
            method: self.method.name.clone(),
            train_seed: self.train_seed.get(),
            train_key: self.train_key.clone(),
            config: self.config.clone(),
            digests,
            provenance: provenance.clone(),
            scores: scores.to_vec(),
            ..Header::default()
        }
    }
}

/// All cells of a study on this disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The study.
    pub spec: Spec,
    /// The folders.
    pub places: Places,
    /// The folder that holds the records: `results/<study>/<profile>`.
    pub folder: PathBuf,
    /// The cells: seed by seed, in each the methods in the file's order.
    pub cells: Vec<Cell>,
    /// What is wanting before it can run; only an [`Spec::outline`] has any, and then its cells' ids are provisional.
    pub wanting: Vec<String>,
}

/// What a plan will take, from the profile's costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// Trainings that are not in the cache.
    pub trainings: usize,
    /// Images to make.
    pub images: usize,
    /// Seconds on one core; `None` where the profile states no cost.
    pub core_seconds: Option<f64>,
    /// Disk for records and cache.
    pub bytes: u64,
}

impl Plan {
    /// The cells whose records are not complete.
    pub fn pending(&self) -> Vec<&Cell> {
        self.cells.iter().filter(|cell| !cell.is_complete()).collect()
    }

    /// The file of a model of the profile.
    ///
    /// # Errors
    /// Where the profile names none.
    pub fn weights(&self, model: &str) -> Result<PathBuf> {
        self.spec.profile.weights_in(&self.places.assets, model)
    }

    /// The file of a data set of the profile.
    ///
    /// # Errors
    /// Where the profile names none.
    pub fn data(&self, name: &str) -> Result<PathBuf> {
        self.spec.profile.data_in(&self.places.assets, name)
    }

    /// What the cells still to run will take at these costs.
    ///
    /// # Errors
    /// Where a record is corrupt.
    pub fn estimate(&self, cost: Cost) -> Result<Estimate> {
        let evaluations = self.spec.sample.evaluations()?;
        let mut trained = BTreeSet::new();
        let mut estimate = Estimate { core_seconds: Some(0.0), ..Estimate::default() };
        let mut add = |count: f64, seconds: Option<f64>| {
            estimate.core_seconds = estimate.core_seconds.zip(seconds).map(|(sum, each)| sum + count * each);
        };
        for cell in self.pending() {
            if let Some(key) = &cell.train_key
                && trained.insert(key.clone())
                && !self.places.training(key).exists()
            {
                estimate.trainings += 1;
                let train = &cell.method.train;
                add((train.steps * train.pairs_per_step) as f64, cost.pair_seconds);
            }
            let images = cell.rows.saturating_sub(cell.rows_done()?);
            estimate.images += images;
            add((images * evaluations) as f64, cost.evaluation_seconds);
            add(images as f64, cost.score_seconds);
        }
        estimate.bytes =
            estimate.trainings as u64 * BYTES_PER_TRAINING + estimate.images as u64 * BYTES_PER_ROW;
        // Latents of the pairs that are visited; those of the desk are small.
        if let Some(pictures) = self.spec.profile.pictures {
            let trained = self.pending().into_iter().filter(|cell| cell.train_key.is_some());
            let visits = trained.map(|cell| cell.method.train.steps * cell.method.train.pairs_per_step).max();
            let pairs = visits.unwrap_or(0).min(self.spec.data.pairs.unwrap_or(usize::MAX)) as u64;
            let side = pictures.encoded_side.div_ceil(ENCODER_STRIDE) as u64;
            let width = if self.spec.profile.precision == Precision::Bf16 { 2 } else { 4 };
            estimate.bytes += pairs * 2 * LATENT_CHANNELS * side * side * width;
        }
        Ok(estimate)
    }
}

impl Spec {
    /// Sets the study against this disk: checks everything that can be refused, and lists the cells.
    ///
    /// # Errors
    /// All problems at once: names that do not fit together, missing or damaged files, too little room.
    pub fn resolve(&self, places: &Places) -> Result<Plan> {
        let mut problems = Problems::default();
        self.check(&mut problems);
        let digests = self.digests(places, &mut problems);
        problems.finish()?;
        self.plan(places, &digests, Vec::new())
    }

    /// As [`Spec::resolve`], for looking only: files that are not here, or not as they should be, are listed in the plan.
    ///
    /// # Errors
    /// Names that do not fit together, and too little room.
    pub fn outline(&self, places: &Places) -> Result<Plan> {
        let mut problems = Problems::default();
        self.check(&mut problems);
        problems.finish()?;
        let mut wanting = Problems::default();
        let digests = self.digests(places, &mut wanting);
        self.plan(places, &digests, wanting.into_lines())
    }

    fn plan(
        &self,
        places: &Places,
        digests: &BTreeMap<String, Digest>,
        wanting: Vec<String>,
    ) -> Result<Plan> {
        let folder = self.folder(&places.results);
        let mut cells = Vec::new();
        // A seed's methods stand together, so that a run that is stopped early has whole tables.
        for (index, &seed) in self.seeds.get().iter().enumerate() {
            for method in &self.methods {
                match &method.objective {
                    Some(_) => cells.push(self.cell(method, seed, digests, &folder)),
                    None if index == 0 => cells.push(self.cell(method, Seed::new(0), digests, &folder)),
                    None => {}
                }
            }
        }
        let mut problems = Problems::default();
        former_records(&folder, &cells, &mut problems);
        problems.finish()?;
        let plan = Plan { spec: self.clone(), places: places.clone(), folder, cells, wanting };
        let needed = plan.estimate(Cost::default())?.bytes;
        for place in [&places.results, &places.cache] {
            if let Some(free) = free_bytes(place).filter(|&free| free < needed) {
                return Err(Error::Spec(format!(
                    "{}: {} MiB free, about {} MiB needed; free some room, or choose another disk with --results DIR \
                     or --cache DIR",
                    place.display(),
                    free >> 20,
                    (needed >> 20) + 1
                )));
            }
        }
        Ok(plan)
    }

    /// Every score that rows may hold: users, their twins, measured statistics, drift from the base.
    pub fn scores(&self) -> Vec<String> {
        let users = self.rewards.users.iter();
        let twins = users.clone().filter(|_| self.rewards.twins).map(|reward| Profile::twin(reward));
        let measured = self.profile.measured.iter().cloned();
        users.clone().cloned().chain(twins).chain(measured).chain([record::DRIFT.to_owned()]).collect()
    }

    /// The digest of each weight and data file that the study needs.
    fn digests(&self, places: &Places, problems: &mut Problems) -> BTreeMap<String, Digest> {
        let labelled =
            self.methods.iter().filter_map(|method| method.labels.as_ref()).flat_map(Labels::rewards);
        let mut scored: BTreeSet<String> = self.rewards.users.iter().chain(labelled).cloned().collect();
        if self.rewards.twins {
            scored.extend(self.rewards.users.iter().map(|reward| Profile::twin(reward)));
        }
        scored.retain(|reward| !self.profile.measured.contains(reward));
        // What is no reward and no twin, every cell needs: the denoiser and what stands around it.
        let is_reward = |name: &str| {
            self.profile.rewards.iter().any(|reward| name == reward || name == Profile::twin(reward))
        };
        let artefacts = &self.profile.artefacts;
        let fetched = artefacts.iter().filter(|(_, artefact)| !artefact.data && !artefact.on_request);
        let names = self.profile.weights.keys().chain(fetched.map(|(name, _)| name));
        let common = names.filter(|name| !is_reward(name)).cloned();
        let needed: BTreeSet<String> = common.chain(scored).collect();

        let mut digests = BTreeMap::new();
        let profile = &self.profile.name;
        for name in needed {
            let Some(file) = self.profile.weights.get(&name) else {
                if artefacts.contains_key(&name) {
                    let located = Hub::from_env(hub::LOCK).and_then(|hub| self.profile.locate(&name, &hub));
                    let digest = problems.take(located).map(|located| located.digest());
                    digests.extend(digest.map(|digest| (format!("weights/{name}"), digest)));
                    continue;
                }
                problems.push(format!("profile {profile}: no weights for `{name}` in [weights]"));
                continue;
            };
            let digest = weights_digest(&places.assets.join(file), profile);
            digests.extend(problems.take(digest).map(|digest| (format!("weights/{name}"), digest)));
        }
        if let Some(users) = self.users.as_ref().filter(|_| self.methods.iter().any(Method::is_embedded)) {
            let digest = problems.take(self.profile.reader_digest(&places.assets, &users.model));
            digests.extend(digest.map(|digest| (format!("weights/{}", users.model.display()), digest)));
        }
        let (trains, own) =
            (self.methods.iter().any(|method| method.objective.is_some()), self.data.prompts == Prompts::Own);
        let needed = [(trains || own).then_some("pairs"), (!own).then_some(self.data.prompts.name())];
        for name in needed.into_iter().flatten() {
            let Some(path) = problems.take(self.profile.data_in(&places.assets, name)) else { continue };
            let digest = present(&path, profile).and_then(|()| match name {
                // What was fetched was checked against the lock: hundreds of gigabytes are not read again.
                "pairs" if artefacts.contains_key(name) => {
                    Ok(self.profile.locate(name, &Hub::from_env(hub::LOCK)?)?.digest())
                }
                "pairs" => pairs_digest(&path),
                _ => self.prompts_digest(&path),
            });
            digests.extend(problems.take(digest).map(|digest| (format!("data/{name}"), digest)));
        }
        if trains && let Ok(pairs) = self.profile.data_in(&places.assets, "pairs") {
            self.check_scores(&pairs, &digests, problems);
        }
        digests
    }

    /// Scores that came with the pairs must come from the rewards as they are now.
    fn check_scores(&self, pairs: &Path, digests: &BTreeMap<String, Digest>, problems: &mut Problems) {
        let labels = self.methods.iter().filter_map(|method| method.labels.as_ref());
        let labelling: BTreeSet<&String> = labels.flat_map(Labels::rewards).collect();
        let path = pairs.with_extension("scores.csv");
        if labelling.is_empty() || !pairs.exists() {
            return;
        }
        // Pairs that came without scores are scored by the first cell that learns from them.
        if !path.exists() {
            return;
        }
        let judges = problems.take(scores::read_judges(&path)).unwrap_or_default();
        for reward in labelling {
            if let (Some(then), Some(now)) = (judges.get(reward), digests.get(&format!("weights/{reward}")))
                && then != now
            {
                problems.push(format!(
                    "{}: `{reward}` scored the pairs by weights {}, and has {} now; score them again with `ppd data \
                     score`",
                    path.display(),
                    then.short(),
                    now.short()
                ));
            }
        }
    }

    /// The digest of a prompt set that has enough prompts.
    fn prompts_digest(&self, path: &Path) -> Result<Digest> {
        let set = prompts::read(path)?;
        if set.prompts.len() < self.data.num_prompts {
            let (has, asked) = (set.prompts.len(), self.data.num_prompts);
            return Err(Error::data(path, format!("holds {has} prompts, data.num_prompts asks for {asked}")));
        }
        Ok(set.digest)
    }

    fn cell(&self, method: &Method, seed: Seed, digests: &BTreeMap<String, Digest>, folder: &Path) -> Cell {
        let users = &self.rewards.users;
        let labels = method.labels.as_ref().map(Labels::rewards).unwrap_or_default();
        let is_model =
            |name: &str| !self.profile.rewards.iter().any(|r| name == r || name == Profile::twin(r));
        // What reads users' choices is nobody's but that of methods which ask for it.
        let reader = self.users.as_ref().map(|users| format!("weights/{}", users.model.display()));
        let is_reader = |name: &String| reader.as_ref() == Some(name);
        // Training sees the models around the denoiser, the pairs, and the rewards that label them; never the twins.
        let trained_on: BTreeMap<&String, &Digest> = digests
            .iter()
            .filter(|(name, _)| !is_reader(name) || method.conditioning == Conditioning::Embedding)
            .filter(|(name, _)| {
                let weights = name.strip_prefix("weights/");
                *name == "data/pairs"
                    || weights.is_some_and(|name| is_model(name) || labels.iter().any(|l| l == name))
            })
            .collect();
        let training = method.objective.as_ref().map(|objective| {
            json!({
                "schema": SCHEMA,
                "objective": objective,
                "conditioning": method.conditioning,
                "labels": method.labels,
                "users": matches!(method.conditioning, Conditioning::OneHot).then_some(users),
                "train": method.train,
                "adapter": method.adapter,
                "pairs": self.data.pairs,
                "seed": seed,
                "digests": trained_on,
            })
        });
        let of_people = method.labels == Some(Labels::Users);
        let training = training.map(|mut training| {
            if let Some(users) = self.users.as_ref().filter(|_| of_people) {
                training["people"] = json!(users.identity());
            }
            self.profile.complete(training)
        });
        let train_key = training.as_ref().map(|training| hash(training, 16));
        let prompts = self.data.prompts.name();
        let noise_seeds = self.noise_seeds(method);
        let cell_digests: BTreeMap<String, Digest> = digests
            .iter()
            .filter(|(name, _)| {
                let own = self.data.prompts == Prompts::Own;
                *name != "data/pairs" || training.is_some() || method.reads_choices() || own
            })
            .filter(|(name, _)| !is_reader(name) || method.is_embedded())
            .map(|(name, digest)| (name.clone(), digest.clone()))
            .collect();
        let config = json!({
            "schema": SCHEMA,
            "method": method.name,
            "train_seed": seed,
            "training": training,
            "conditions": method.conditions,
            "prompts": prompts,
            "num_prompts": self.data.num_prompts,
            "noise_seeds": noise_seeds,
            "sample": self.sample,
            "rewards": self.rewards,
            "digests": cell_digests,
        });
        let mut config = self.profile.complete(config);
        if let Some(own) = self.own_prompts() {
            config["own_prompts"] = own;
        }
        if let (Captions::WithProfile, Some(users)) = (method.captions, &self.users) {
            config["captions"] = json!({"kind": method.captions, "people": users.identity()});
        }
        let id = format!("{}-s{}-{}", slug(&method.name), seed.get(), hash(&config, 12));
        Cell {
            folder: folder.join("cells").join(&id),
            id,
            method: method.clone(),
            train_seed: seed,
            train_key,
            config,
            digests: cell_digests,
            rows: method.conditions.iter().map(|user| self.prompts_of(method, user).len()).sum::<usize>()
                * noise_seeds.len(),
        }
    }
}

/// Records of the same method and training seed under other settings, weights or data: one table cannot hold both.
fn former_records(folder: &Path, cells: &[Cell], problems: &mut Problems) {
    let entries = std::fs::read_dir(folder.join("cells")).into_iter().flatten().flatten();
    let standing: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| record::is_record(path)).collect();
    for cell in cells {
        let kin = cell.id.rsplit_once('-').map_or(cell.id.as_str(), |(kin, _)| kin);
        let is_former = |path: &&PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name != cell.id && name.rsplit_once('-').is_some_and(|(other, _)| other == kin)
        };
        for path in standing.iter().filter(is_former) {
            problems.push(format!(
                "{}: holds {} with training seed {} under other settings, weights or data; remove it, or keep the new \
                 records apart with --results DIR",
                path.display(),
                cell.method.name,
                cell.train_seed.get()
            ));
        }
    }
}

/// Whether a file of the profile is there, and how to get it where it is not.
fn present(path: &Path, profile: &str) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(|fault| {
        Error::weights(
            path,
            format!("cannot be read ({fault}); profile {profile} needs it: run in the checkout, or name its folder with --assets DIR"),
        )
    })?;
    if metadata.len() == 0 {
        return Err(Error::weights(path, "is empty; restore it, for example with `git checkout`"));
    }
    Ok(())
}

/// The digest of a model: of all files that its manifest names, checked; of the weights alone where there is none.
/// `profile` is the one that needs it.
///
/// # Errors
/// Where a file is missing, damaged, or not the one of the manifest.
pub fn weights_digest(path: &Path, profile: &str) -> Result<Digest> {
    present(path, profile)?;
    Weights::open(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    if !folder.join(MANIFEST).exists() {
        return file_digest(path);
    }
    let files = Manifest::read_checked(folder)?.files;
    if !path.file_name().is_some_and(|name| files.contains_key(&*name.to_string_lossy())) {
        return Err(Error::weights(path, format!("the {MANIFEST} beside it does not name it; restore both")));
    }
    Ok(Digest::of(serde_json::to_string(&files).expect("names and digests print as JSON").as_bytes()))
}

/// The digest of preference pairs: their files and, beside a single file, the rewards' scores.
fn pairs_digest(path: &Path) -> Result<Digest> {
    let store = Store::at(path, Split::Train)?;
    let mut files = store.files()?;
    if let Store::Parquet(shards) = &store {
        for shard in shards {
            pick_a_pic::Batches::open(shard, pick_a_pic::Columns::All)?;
        }
    }
    files.extend(Some(path.with_extension("scores.csv")).filter(|scores| scores.exists()));
    pick_a_pic::digest(&files)
}

fn hash(value: &serde_json::Value, digits: usize) -> String {
    let text = serde_json::to_string(value).expect("plain data prints as JSON");
    Digest::of(text.as_bytes()).hex()[..digits].to_owned()
}

/// A name as part of a folder's name.
fn slug(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '=') { c } else { '_' })
        .collect()
}
