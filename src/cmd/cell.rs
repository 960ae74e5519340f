//! One cell from its plan to its record: train the adapter or find it, sample, score, append.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

mod material;
mod probe;

use super::device::Compute;
use super::image_store::ImageStore;
use super::people;
use crate::adapter::{self, Adapter};
use crate::base::Base;
use crate::checkpoint::{open_adapter, save_adapter};
use crate::collective;
use crate::data::labels::comparisons;
use crate::data::prompts;
use crate::data::{Preference, scores};
use crate::diffusion::SamplerConfig;
use crate::embed::choices::Choices;
use crate::embed::people::{Learned, People};
use crate::error::{Error, Result};
use crate::evaluate::Scorers;
use crate::generate::{Request, Sampling, sample};
use crate::image::{self, Format};
use crate::launch::Session;
use crate::nn::{LearningRate, Warmup};
use crate::pixels::Image;
use crate::progress::Progress;
use crate::record::{DRIFT, Key, Recorder, Row, Step, read_trace, write_trace};
use crate::spec::{self, Captions, Cell, Condition, Conditioning, Labels, Plan, Profile, Prompts};
use crate::train::{self, Bench, Example, Keep, Pairs, ReferenceErrors, Trained};
use crate::units::Digest;

/// What the cells of one run share, each opened when the first cell needs it.
pub(super) struct Laboratory<'a> {
    plan: &'a Plan,
    compute: &'a Compute,
    base: OnceCell<Base>,
    base_images: ImageStore,
    scorers: OnceCell<Scorers>,
    prompts: OnceCell<Vec<String>>,
    preferences: OnceCell<(Vec<Preference>, scores::Scores)>,
    pairs: OnceCell<Pairs>,
    choices: OnceCell<Choices>,
    people: OnceCell<People>,
    reference: RefCell<BTreeMap<Digest, Rc<ReferenceErrors>>>,
}

/// Images between two writes to the record: what a kill loses at most.
const CHUNK: usize = 64;
/// The file of a trained adapter, in the folder of its training.
const ADAPTER: &str = "adapter.safetensors";
/// Steps between two saves of a training's state.
const KEPT_EVERY: usize = 50;

impl<'a> Laboratory<'a> {
    pub(super) fn new(plan: &'a Plan, compute: &'a Compute) -> Self {
        Self {
            plan,
            compute,
            base: OnceCell::new(),
            base_images: ImageStore::of_base(plan),
            scorers: OnceCell::new(),
            prompts: OnceCell::new(),
            preferences: OnceCell::new(),
            pairs: OnceCell::new(),
            choices: OnceCell::new(),
            people: OnceCell::new(),
            reference: RefCell::default(),
        }
    }

    /// What every rank but the first does: takes its share of each training that the first announces, until that one
    /// says that there are no more. A training that fails is the first rank's to report.
    ///
    /// # Errors
    /// Those of the network.
    pub(super) fn follow(&self, progress: &Progress) -> Result<()> {
        while let Some(cell) = self.hear()? {
            let Some(key) = &cell.train_key else { continue };
            if let Err(reason) = self.train(cell, key, &self.plan.places.training(key), progress) {
                progress.note(&format!("{}: {reason}", cell.id));
            }
        }
        Ok(())
    }

    /// Tells the other ranks which cell's training comes next; none: that they are done.
    ///
    /// # Errors
    /// Those of the network.
    pub(super) fn announce(&self, cell: Option<&Cell>) -> Result<()> {
        let place = cell.and_then(|cell| self.plan.cells.iter().position(|other| other.id == cell.id));
        let number = place.map_or(0, |place| place + 1);
        self.compute.collective.all_reduce_numbers(vec![number as f64]).map(drop)
    }

    /// What the first rank announces.
    fn hear(&self) -> Result<Option<&'a Cell>> {
        let number = self.compute.collective.all_reduce_numbers(vec![0.0])?[0] as usize;
        Ok(number.checked_sub(1).and_then(|place| self.plan.cells.get(place)))
    }

    /// Trains, samples and scores one cell; leaves its complete record.
    pub(super) fn run(&self, cell: &Cell, session: &Session, progress: &Progress) -> anyhow::Result<()> {
        let Session { provenance, binary, .. } = session;
        let header = cell.header(self.plan, provenance, binary.as_ref(), &self.plan.spec.scores());
        let mut recorder = Recorder::open(&cell.folder, header)?;
        let adapter = match &cell.train_key {
            None => None,
            Some(key) => {
                let (begun, evaluated) = (Instant::now(), self.evaluations());
                let (adapter, trace) = self.adapter(cell, key, progress)?;
                recorder.write_trace(&trace)?;
                recorder.add_seconds("train", begun.elapsed().as_secs_f64());
                recorder.add_count("train_evaluations", self.evaluations() - evaluated);
                Some(adapter)
            }
        };
        let evaluated = self.evaluations();
        for condition in &cell.method.conditions {
            self.evaluate(cell, condition, adapter.as_ref(), &mut recorder, progress)?;
        }
        recorder.add_count("sample_evaluations", self.evaluations() - evaluated);
        recorder.finish()?;
        Ok(())
    }

    /// The cell's adapter, from the cache or trained now, with its trace.
    fn adapter(&self, cell: &Cell, key: &str, progress: &Progress) -> Result<(Adapter, Vec<Step>)> {
        let folder = self.plan.places.training(key);
        let path = folder.join(ADAPTER);
        let blocks = self.base()?.prior.denoiser.config().attention_blocks();
        if !path.exists() {
            std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
            self.announce(Some(cell))?;
            let trained = self.train(cell, key, &folder, progress)?;
            write_trace(&folder, &trained.trace)?;
            let notes = BTreeMap::from([("training".to_owned(), cell.config["training"].to_string())]);
            save_adapter(&path, &trained.adapter, &trained.tensors, &notes)?;
        }
        Ok((open_adapter(&path, &blocks, &self.compute.device)?, read_trace(&folder)?))
    }

    fn train(&self, cell: &Cell, key: &str, folder: &Path, progress: &Progress) -> Result<Trained> {
        let collective = &*self.compute.collective;
        let prepare = || {
            let settings = self.settings(cell, self.user_width(cell, progress)?)?;
            let mut examples = self.examples(cell, progress)?;
            let pairs = self.pairs()?;
            examples.retain(|example| !pairs.broken.contains(&example.pair));
            if !pairs.broken.is_empty() {
                let (broken, all) = (pairs.broken.len(), pairs.len());
                progress.note(&format!(
                    "{broken} of {all} pairs have a picture that cannot be decoded, and are left out (the first is pair {}); \
                     `ppd data inspect` says more",
                    pairs.broken.first().copied().unwrap_or_default()
                ));
            }
            if pairs.cut_captions > 0 {
                progress.note(&format!(
                    "{} captions are longer than the text encoder reads, and were cut",
                    pairs.cut_captions
                ));
            }
            Ok((settings, examples, self.reference(cell)?, self.base()?, pairs))
        };
        let (settings, examples, reference, base, pairs) = collective::agree(prepare(), collective)?;
        let workers = &self.compute.workers;
        let bench = Bench { base, pairs, reference: &reference, workers, collective };
        let (state, config) = (folder.join("state.safetensors"), Digest::of(key.as_bytes()));
        let first = collective.rank() == 0;
        let keep = Keep { path: &state, config: &config, every: KEPT_EVERY, read_only: !first };
        progress.begin("train", settings.steps);
        let mut begun = false;
        let trained =
            train::fine_tune(&bench, &examples, &settings, cell.train_seed, Some(&keep), &mut |step| {
                // What an interrupted training had done counts as done.
                progress.advance(if begun { 1 } else { step.step as usize + 1 });
                begun = true;
                !progress.stopping()
            });
        reference.store()?;
        trained
    }

    /// What the base makes of the pairs under a cell's seed, timesteps and text dropout, shared by all cells that have
    /// the same.
    fn reference(&self, cell: &Cell) -> Result<Rc<ReferenceErrors>> {
        let encoders = Profile::ENCODERS.iter().filter(|name| cell.digests.contains_key(**name));
        let inputs =
            ["weights/denoiser", "weights/text-encoder"].iter().chain(encoders).chain(&["data/pairs"]);
        let inputs: Vec<Option<&Digest>> = inputs.map(|name| cell.digests.get(*name)).collect();
        let belongs_to = serde_json::json!({
            "schema": 1,
            "inputs": inputs,
            "seed": cell.train_seed,
            "text_dropout": cell.method.train.text_dropout,
            "timesteps": cell.method.train.timesteps,
        });
        let belongs_to = self.plan.spec.profile.complete(belongs_to);
        let digest = Digest::of(belongs_to.to_string().as_bytes());
        let mut stores = self.reference.borrow_mut();
        if let Some(store) = stores.get(&digest) {
            return Ok(store.clone());
        }
        // Each rank computes, and keeps, the errors of its own share.
        let rank = match self.compute.collective.rank() {
            0 => String::new(),
            rank => format!("-rank{rank}"),
        };
        let path = self.plan.places.cache.join("reference").join(format!("{}{rank}.csv", digest.short()));
        let store = Rc::new(ReferenceErrors::open(path)?);
        stores.insert(digest, store.clone());
        Ok(store)
    }

    /// The width of the vector that a method's user branch is told.
    fn user_width(&self, cell: &Cell, progress: &Progress) -> Result<usize> {
        Ok(match cell.method.conditioning {
            Conditioning::OneHot => self.plan.spec.rewards.users.len(),
            Conditioning::None | Conditioning::Constant => 1,
            people => self.people(progress)?.width(people),
        })
    }

    fn settings(&self, cell: &Cell, user_width: usize) -> Result<train::Settings> {
        let method = &cell.method;
        let objective = method.objective.ok_or_else(|| {
            Error::Spec(format!("methods.{}: has a training but no objective", method.name))
        })?;
        let train = &method.train;
        Ok(train::Settings {
            objective,
            adapter: adapter::Config {
                user_width,
                num_tokens: method.adapter.user_tokens,
                token_width: method.adapter.token_width,
                projector_bias: method.adapter.projector_bias,
                projector_std: 1.0,
            },
            steps: train.steps,
            pairs_per_step: train.pairs_per_step,
            learning_rate: LearningRate {
                peak: train.learning_rate,
                warmup_steps: train.warmup_steps,
                warmup: Warmup::default(),
                decay: train.after_warmup.decay(train.steps),
            },
            timesteps: train.timesteps,
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            text_dropout: train.text_dropout,
            user_dropout: train.user_dropout,
        })
    }

    /// Who prefers what, with the vector that the user branch is told.
    fn examples(&self, cell: &Cell, progress: &Progress) -> Result<Vec<Example>> {
        let (preferences, scores) = self.preferences()?;
        let method = &cell.method;
        let labels = method
            .labels
            .as_ref()
            .ok_or_else(|| Error::Spec(format!("methods.{}: has an objective but no labels", method.name)))?;
        if *labels == Labels::Users {
            let learned = self.people(progress)?.learned(method.conditioning)?;
            let example = |one: Learned| Example {
                pair: one.pair,
                second_chosen: one.chosen == 1,
                user: if method.conditioning.is_of_people() { one.user } else { CONSTANT_USER.to_vec() },
            };
            // Where fewer pairs are asked for, choices between the others are left out.
            let there = |one: &Learned| one.pair < preferences.len();
            return Ok(learned.into_iter().filter(there).map(example).collect());
        }
        let chosen = comparisons(labels, preferences, scores, method.train.gap_filter, cell.train_seed)?;
        let users = &self.plan.spec.rewards.users;
        chosen
            .items
            .iter()
            .map(|item| {
                let user = match (method.conditioning, item.user) {
                    (Conditioning::OneHot, Some(user)) => {
                        let condition = Condition::user(labels.rewards()[user].clone());
                        condition.weights(users)?.iter().map(|&w| w as f32).collect()
                    }
                    _ => CONSTANT_USER.to_vec(),
                };
                Ok(Example { pair: item.pair, second_chosen: item.chosen == 1, user })
            })
            .collect()
    }

    /// Makes and scores what the record lacks of one condition.
    fn evaluate(
        &self,
        cell: &Cell,
        condition: &Condition,
        adapter: Option<&Adapter>,
        recorder: &mut Recorder,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let spec = &self.plan.spec;
        let (method, name) = (&cell.method, condition.to_string());
        let vector: Vec<f32> = match method.conditioning {
            Conditioning::OneHot => {
                condition.weights(&spec.rewards.users)?.iter().map(|&w| w as f32).collect()
            }
            Conditioning::None | Conditioning::Constant => CONSTANT_USER.to_vec(),
            people if condition.is_none() => vec![0.0; self.people(progress)?.width(people)],
            people => self.people(progress)?.vector(people, condition)?,
        };
        let sampling = sampling(&spec.sample);
        let key = |request: &Request| {
            let (prompt, seed) = (request.index as u32, request.seed.get());
            Key::new(&method.name, &name, cell.train_seed.get(), prompt, seed)
        };
        let prompts = self.prompts(progress)?;
        let asked: Vec<(u32, &str)> = spec
            .prompts_of(method, condition)
            .into_iter()
            .filter_map(|number| Some((number, prompts.get(number as usize)?.as_str())))
            .collect();
        let missing: Vec<Request> = spec
            .noise_seeds(method)
            .into_iter()
            .flat_map(|seed| {
                asked.iter().map(move |(number, prompt)| Request {
                    prompt: (*prompt).to_owned(),
                    index: u64::from(*number),
                    seed,
                })
            })
            .filter(|request| !recorder.has(&key(request)))
            .collect();
        let written = match method.is_embedded() {
            true => self.people(progress)?.profile(condition)?,
            false => None,
        };
        if let Some(written) = written {
            recorder.keep_profile(&name, written);
        }
        // Words behind the prompt, for a method that knows people by these alone.
        let profile = written.filter(|_| method.captions == Captions::WithProfile);
        let make = |requests: &[Request], user: Option<(&Adapter, &[f32])>| -> Result<Vec<Image>> {
            let images = sample(self.base()?, requests, &sampling, user, &self.compute.workers, &|_| {
                !progress.stopping()
            })?;
            progress.check()?;
            Ok(images)
        };
        progress.begin(&format!("sample {name}"), missing.len());
        for chunk in missing.chunks(CHUNK) {
            let begun = Instant::now();
            let of_base =
                one_by_one(chunk, |chunk| self.base_images.get(chunk, |missing| make(missing, None)))?;
            let told = told(chunk, profile);
            let user = adapter.map(|adapter| (adapter, vector.as_slice()));
            let images = match (user, profile) {
                (None, None) => of_base.clone(),
                _ => one_by_one(&told, |told| make(told, user))?,
            };
            progress.advance(chunk.len());
            recorder.add_seconds("sample", begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            let scored = self.score(chunk, &images, &of_base)?;
            for (((request, told), image), scores) in chunk.iter().zip(&told).zip(&images).zip(scored) {
                let failure = scores.as_ref().err().cloned();
                let row = Row {
                    method: method.name.clone(),
                    condition: name.clone(),
                    train_seed: cell.train_seed.get(),
                    prompt: request.index as u32,
                    noise_seed: request.seed.get(),
                    scores: scores.unwrap_or_default(),
                    failure,
                };
                let first = spec.data.noise_seeds.get().first() == Some(&request.seed)
                    && (cell.train_key.is_none() || spec.seeds.get().first() == Some(&cell.train_seed));
                if let Ok(image) = image
                    && first
                    && spec.keeps_image_of(request.index)
                {
                    recorder.keep_image(&row, &told.prompt, &image::encode(image, Format::Png)?)?;
                }
                recorder.append(&row)?;
            }
            recorder.add_seconds("score", begun.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// What is said of each image that was made, its drift from the base's image of the same noise included.
    fn score(
        &self,
        requests: &[Request],
        images: &[Outcome<Image>],
        of_base: &[Outcome<Image>],
    ) -> Result<Vec<Outcome<BTreeMap<String, f64>>>> {
        let made = images.iter().zip(requests);
        let made = made.filter_map(|(image, request)| Some((image.clone().ok()?, request.prompt.clone())));
        let (made, asked): (Vec<Image>, Vec<String>) = made.unzip();
        let mut scored = self.scorers()?.score(&made, &asked, &self.compute.workers)?.into_iter();
        let of_each = images.iter().zip(of_base).map(|(image, base)| {
            let image = image.as_ref().map_err(Clone::clone)?;
            let mut scores = scored.next().expect("every image that was made is scored");
            let base = base.as_ref().map_err(|reason| format!("the base's image of this noise: {reason}"))?;
            scores.insert(DRIFT.to_owned(), image.difference(base));
            match scores.iter().find(|(_, score)| !score.is_finite()) {
                Some((name, score)) => Err(format!("the score {name} is {score}")),
                None => Ok(scores),
            }
        });
        Ok(of_each.collect())
    }

    /// Who chose what.
    pub(super) fn choices(&self, progress: &Progress) -> Result<&Choices> {
        get_or_open(&self.choices, || people::choices(self.plan, progress))
    }

    /// The people of the study's `[users]`.
    fn people(&self, progress: &Progress) -> Result<&People> {
        get_or_open(&self.people, || {
            people::people(self.plan, self.choices(progress)?, self.compute, progress)
        })
    }

    fn base(&self) -> Result<&Base> {
        get_or_open(&self.base, || {
            let pending = self.plan.pending();
            let trained = pending.iter().filter(|cell| cell.train_key.is_some());
            let trained = trained.map(|cell| cell.method.adapter.token_width).max();
            self.compute.base(&self.plan.spec.profile, &self.plan.places.assets, trained)
        })
    }

    /// How many samples the denoiser has evaluated so far.
    fn evaluations(&self) -> u64 {
        self.base.get().map_or(0, |base| base.prior.denoiser.evaluations())
    }

    fn scorers(&self) -> Result<&Scorers> {
        get_or_open(&self.scorers, || {
            let spec = &self.plan.spec;
            let measured = &spec.profile.measured;
            let is_model = |name: &String| !measured.contains(name) && name != DRIFT;
            let rewards = spec.scores().into_iter().filter(is_model);
            let rewards = rewards
                .map(|name| {
                    let files = spec.profile.reward_in(&self.plan.places.assets, &name)?;
                    Ok((name, files))
                })
                .collect::<Result<Vec<_>>>()?;
            Scorers::open(&rewards, measured, &self.compute.device)
        })
    }

    /// The texts of all prompts, by their numbers.
    fn prompts(&self, progress: &Progress) -> Result<&Vec<String>> {
        get_or_open(&self.prompts, || {
            let data = &self.plan.spec.data;
            if let (Prompts::Own, Some(users)) = (data.prompts, &self.plan.spec.users) {
                return self.choices(progress)?.own_prompts(users, data.num_prompts);
            }
            let path = self.plan.data(data.prompts.name())?;
            let prompts = prompts::read(&path)?.prompts;
            if prompts.len() < data.num_prompts {
                return Err(Error::data(
                    &path,
                    format!(
                        "holds {} prompts, data.num_prompts asks for {}",
                        prompts.len(),
                        data.num_prompts
                    ),
                ));
            }
            Ok(prompts.into_iter().map(|prompt| prompt.text).collect())
        })
    }
}

/// The requests with a profile behind each prompt. Scores are of the prompt alone: what it says is what is asked for.
fn told(requests: &[Request], profile: Option<&str>) -> Vec<Request> {
    let mut told = requests.to_vec();
    for request in &mut told {
        request.prompt.extend(profile.map(|profile| format!(" {profile}")));
    }
    told
}

/// One image, or what one image gave; else why there is nothing, which its row will say.
type Outcome<T> = std::result::Result<T, String>;

/// What `make` gives for all items at once, or, where that meets a number that is not finite, for each by itself: an image
/// is the same alone, and one that fails takes no other with it.
///
/// # Errors
/// Those that are no single item's.
fn one_by_one<T, R>(items: &[T], make: impl Fn(&[T]) -> Result<Vec<R>>) -> Result<Vec<Outcome<R>>> {
    match make(items) {
        Ok(made) => Ok(made.into_iter().map(Ok).collect()),
        Err(Error::NonFinite { .. }) => items
            .iter()
            .map(|item| match make(std::slice::from_ref(item)) {
                Ok(made) => Ok(made.into_iter().next().ok_or_else(|| "nothing was made".to_owned())),
                Err(fault @ Error::NonFinite { .. }) => Ok(Err(fault.to_string())),
                Err(fault) => Err(fault),
            })
            .collect(),
        Err(fault) => Err(fault),
    }
}

/// The user of methods without users: one constant that is not zero, for a zero user is the base and trains nothing.
pub(super) const CONSTANT_USER: [f32; 1] = [1.0];

/// `[sample]` as the sampler takes it.
pub(super) fn sampling(sample: &spec::Sample) -> Sampling {
    Sampling {
        sampler: SamplerConfig { num_steps: sample.num_steps, x0_clamp: sample.x0_clamp },
        guidance_scale: sample.guidance_scale,
        unconditional_user: sample.unconditional_user,
        guidance_steps: sample.guidance_steps(),
    }
}

/// The value of a cell, opened where this is the first call.
fn get_or_open<T>(cell: &OnceCell<T>, open: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = open()?;
    Ok(cell.get_or_init(|| value))
}

#[cfg(test)]
mod tests;
