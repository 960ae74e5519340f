//! The one loop that fine-tunes a frozen denoiser's adapter, for every objective.
//!
//! A step visits pairs. Each visit draws its timestep, noise and dropouts from (seed, pair, visits of that pair so far),
//! so two methods that visit the same pair for the n-th time see the same draw, whatever their labels say: the
//! reference's errors on it are computed once and shared ([`ReferenceErrors`]). The policy with the user branch off *is*
//! the reference; there is no second copy of the weights.
//!
//! Visits are cut into micro-batches of fixed size, of which a [`Stepper`] takes one optimiser step. No branch here asks
//! which method it is.

mod reference;
mod step;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::adapter::{self, Adapter, drop_user};
use crate::base::Base;
use crate::cache::Shards;
use crate::checkpoint;
use crate::collective::{self, Collective};
use crate::diffusion::TimestepRange;
use crate::error::{Error, Result};
use crate::nn::workers::Workers;
use crate::nn::{KeyValue, LearningRate};
use crate::objective;
pub use crate::record::Step;
use crate::rng::stream;
use crate::units::{Digest, Seed};
use crate::weights::Trainable;

pub use reference::ReferenceErrors;
pub use step::{MicroBatch, StepSettings, Stepper, Taken};

/// How an adapter is fine-tuned.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What is descended.
    pub objective: objective::Config,
    /// The user branch.
    pub adapter: adapter::Config,
    /// Optimiser steps.
    pub steps: usize,
    /// Visits of pairs in each step.
    pub pairs_per_step: usize,
    /// AdamW's learning rate at each step.
    pub learning_rate: LearningRate,
    /// The timesteps that visits draw from.
    pub timesteps: TimestepRange,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient.
    pub max_grad_norm: f64,
    /// The share of visits without their caption.
    pub text_dropout: f64,
    /// The share of visits without their user.
    pub user_dropout: f64,
}

impl Settings {
    fn step(&self) -> StepSettings {
        let Self { objective, weight_decay, max_grad_norm, .. } = *self;
        StepSettings { objective, weight_decay, max_grad_norm }
    }
}

/// One pair as one user sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The pair: names its draws, whoever prefers what.
    pub pair: usize,
    /// Whether the second image is the chosen one.
    pub second_chosen: bool,
    /// The user's vector.
    pub user: Vec<f32>,
}

/// Preference pairs as the denoiser sees them.
#[derive(Debug)]
pub struct Pairs {
    /// Clean latents of both images, (2, C, h, w) a pair.
    pub latents: Rows,
    /// Conditioning tokens of the captions, (N, D) each; pairs may share one.
    pub tokens: Rows,
    /// The row of each pair's caption in `tokens`.
    pub caption: Vec<usize>,
    /// Conditioning tokens of the empty caption, (1, N, D).
    pub empty: Tensor,
    /// Pairs of which a picture cannot be decoded: they have no latents, and no example may name them.
    pub broken: BTreeSet<usize>,
    /// How many captions are longer than the text encoder reads, and were cut.
    pub cut_captions: usize,
}

/// Rows of tensors, wherever they are.
#[derive(Debug)]
pub enum Rows {
    /// All in memory: (rows, …).
    Memory(Tensor),
    /// Under a name in a store on the disk, which is read row by row.
    Kept(Shards, &'static str),
}

impl Rows {
    fn get(&self, index: usize, device: &Device) -> Result<Tensor> {
        Ok(match self {
            Self::Memory(tensor) => tensor.get(index)?,
            Self::Kept(shards, name) => shards.read(name, &[index], DType::F32, device)?.squeeze(0)?,
        })
    }
}

impl Pairs {
    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.caption.len()
    }

    /// True where there is no pair.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a training works on and with, shared with others.
pub struct Bench<'a> {
    /// The frozen base model.
    pub base: &'a Base,
    /// The pairs.
    pub pairs: &'a Pairs,
    /// What the base itself makes of them, for this seed, range of timesteps and text dropout.
    pub reference: &'a ReferenceErrors,
    /// The threads that take micro-batches.
    pub workers: &'a Workers,
    /// The processes that share each batch.
    pub collective: &'a dyn Collective,
}

/// Where a training keeps its state.
pub struct Keep<'a> {
    /// The file.
    pub path: &'a Path,
    /// The digest of everything that decides the training's course: a file of another is refused.
    pub config: &'a Digest,
    /// Steps between two saves.
    pub every: usize,
    /// Another rank writes and removes the file.
    pub read_only: bool,
}

impl Keep<'_> {
    fn save(&self, position: &Position, tensors: impl FnOnce() -> BTreeMap<String, Tensor>) -> Result<()> {
        if self.read_only { Ok(()) } else { checkpoint::save(self.path, self.config, position, &tensors()) }
    }
}

/// A finished training.
pub struct Trained {
    /// The adapter; its parameters are variables still.
    pub adapter: Adapter,
    /// Those parameters by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// What each step measured, those before an interruption included.
    pub trace: Vec<Step>,
}

/// A training's place in its run, as a checkpoint holds it; visits and draws follow from it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Position {
    trace: Vec<Step>,
}

/// One pair visited in one step.
struct Visit<'a> {
    example: &'a Example,
    occurrence: usize,
}

/// Visits in epochs: each epoch goes through all examples in an order of its own.
struct Visits<'a> {
    examples: &'a [Example],
    seed: Seed,
    epoch: u64,
    order: Vec<usize>,
    seen: HashMap<usize, usize>,
}

impl<'a> Visits<'a> {
    fn new(examples: &'a [Example], seed: Seed) -> Self {
        Self { examples, seed, epoch: 0, order: Vec::new(), seen: HashMap::new() }
    }

    fn next(&mut self) -> Visit<'a> {
        if self.order.is_empty() {
            self.order = (0..self.examples.len()).collect();
            stream(self.seed, "visiting order", self.epoch).shuffle(&mut self.order);
            self.epoch += 1;
        }
        let example = &self.examples[self.order.pop().expect("there is at least one example")];
        let occurrence = self.seen.entry(example.pair).or_insert(0);
        *occurrence += 1;
        Visit { example, occurrence: *occurrence - 1 }
    }
}

/// Pairs of one micro-batch. Fixed: the sums' order is part of the result.
const MICRO_BATCH: usize = 4;

/// Fine-tunes an adapter; `observe` hears of each step and stops the work by answering false.
///
/// With `keep`, the state is stored now and then, at a stop too, and a later call goes on from there to the same bytes;
/// the file is removed at the end.
///
/// # Errors
/// [`Error::Stopped`] where `observe` asked for it, [`Error::NonFinite`] where the loss or the gradient is not finite,
/// [`Error::Spec`] where there is nothing to train on, and those of the disk.
pub fn fine_tune(
    bench: &Bench,
    examples: &[Example],
    settings: &Settings,
    seed: Seed,
    keep: Option<&Keep>,
    observe: &mut dyn FnMut(&Step) -> bool,
) -> Result<Trained> {
    let Bench { base, pairs, workers, collective, .. } = bench;
    let collective = *collective;
    if let Some(example) = examples.iter().find(|example| example.pair >= pairs.len()) {
        let count = pairs.len();
        return Err(Error::Shape(format!(
            "an example is of pair {}, but there are {count} pairs",
            example.pair
        )));
    }
    collective::check(settings.pairs_per_step, collective.world_size())?;
    if examples.is_empty() {
        return Err(Error::Spec("no pair is left to train on; lower train.gap_filter or add pairs".into()));
    }
    let trainable = Trainable::new(seed);
    let blocks = base.prior.denoiser.config().attention_blocks();
    let adapter = Adapter::new(settings.adapter, &blocks, trainable.builder(&base.prior.device))?;
    let mut stepper = Stepper::new(&base.prior.denoiser, &trainable, settings.step(), workers, collective)?;
    let mut position = Position::default();
    if let Some(keep) = keep
        && let Some(stored) = checkpoint::load::<Position>(keep.path, keep.config)?
    {
        position = stored.position;
        trainable.load(&stored.weights)?;
        let read = |name: &str| stored.weights.read(name, DType::F32, &base.prior.device);
        stepper.optimiser.restore(OPTIMISER, position.trace.len(), read)?;
    }
    same_step(position.trace.len(), collective)?;
    let mut visits = Visits::new(examples, seed);
    for _ in 0..position.trace.len() * settings.pairs_per_step {
        visits.next();
    }
    for step in position.trace.len()..settings.steps {
        let batch: Vec<Visit> = (0..settings.pairs_per_step).map(|_| visits.next()).collect();
        let micro_batches: Vec<&[Visit]> =
            collective::share(&batch, collective)?.chunks(MICRO_BATCH).collect();
        let learning_rate = settings.learning_rate.at(step);
        let taken = stepper.step(
            (step, learning_rate),
            batch.len(),
            &micro_batches,
            |visits| micro_batch(bench, &adapter, visits, settings, seed),
            |visits, errors| {
                for (visit, errors) in visits.iter().zip(errors) {
                    let errors = oriented(*errors, visit);
                    bench.reference.set(visit.example.pair, visit.occurrence, errors);
                }
            },
        );
        let measured = collective::agree(taken, collective)?.measured(step, learning_rate);
        let go_on = !collective::any(!observe(&measured), collective)?;
        position.trace.push(measured);
        if let Some(keep) = keep
            && (!go_on || (step + 1).is_multiple_of(keep.every))
        {
            let saved = keep.save(&position, || {
                let mut tensors = trainable.tensors();
                tensors.extend(stepper.optimiser.state(OPTIMISER));
                tensors
            });
            collective::agree(saved, collective)?;
        }
        if !go_on {
            return Err(Error::Stopped);
        }
    }
    if let Some(keep) = keep.filter(|keep| !keep.read_only && keep.path.exists()) {
        std::fs::remove_file(keep.path).map_err(Error::io("remove", keep.path))?;
    }
    Ok(Trained { adapter, tensors: trainable.tensors(), trace: position.trace })
}

/// Refuses ranks that would go on from different steps.
fn same_step(own: usize, collective: &dyn Collective) -> Result<()> {
    let all = collective::all_gather(&[own as f64], collective)?;
    if all.iter().any(|&step| step != all[0]) {
        let steps: Vec<String> = all.iter().map(f64::to_string).collect();
        return Err(Error::Spec(format!(
            "the ranks would go on from different steps ({}, in their order); give all of them one --cache that every \
             machine sees",
            steps.join(", ")
        )));
    }
    Ok(())
}

/// Before the names of an optimiser's moments in a checkpoint.
const OPTIMISER: &str = "optimiser.";

/// The images of some visits, noised as the visits' own draws say.
fn micro_batch(
    bench: &Bench,
    adapter: &Adapter,
    visits: &[Visit],
    settings: &Settings,
    seed: Seed,
) -> Result<MicroBatch> {
    let Bench { base, pairs, reference, .. } = bench;
    let images = if settings.objective.needs().rejected { 2 } else { 1 };
    let count = visits.len();
    let device = &base.prior.device;
    let both = visits.iter().map(|visit| pairs.latents.get(visit.example.pair, device));
    let both = both.collect::<Result<Vec<_>>>()?;
    // Image-major: all chosen, then all rejected.
    let mut latents = Vec::with_capacity(images * count);
    for rejected in 0..images {
        for (visit, both) in visits.iter().zip(&both) {
            let second = visit.example.second_chosen != (rejected == 1);
            latents.push(both.get(usize::from(second))?);
        }
    }
    let latents = Tensor::stack(&latents, 0)?; // (images·B, C, h, w)
    let (_, channels, height, width) = latents.dims4()?;
    let each = channels * height * width;
    let (mut timesteps, mut noise, mut tokens, mut users) = (vec![], vec![], vec![], vec![]);
    for visit in visits {
        let mut draw = stream(seed, &format!("train draw {}", visit.occurrence), visit.example.pair as u64);
        timesteps.push(settings.timesteps.draw(&base.prior.schedule, draw.uniform()));
        noise.extend(draw.normals(each));
        let captionless = draw.chance(settings.text_dropout);
        tokens.push(match captionless {
            true => pairs.empty.get(0)?,
            false => pairs.tokens.get(pairs.caption[visit.example.pair], device)?,
        });
        let mut user = visit.example.user.clone();
        drop_user(&mut user, settings.user_dropout, &mut draw);
        users.extend(user);
    }
    let twice = |xs: Tensor| if images == 2 { Tensor::cat(&[&xs, &xs], 0) } else { Ok(xs) };
    let noise = twice(Tensor::from_vec(noise, (count, channels, height, width), device)?)?;
    let timesteps: Vec<_> = timesteps.iter().copied().cycle().take(images * count).collect();
    let noised = base.prior.schedule.add_noise(&latents, &noise, &timesteps)?;
    let r: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
    let double = |kv: Vec<KeyValue>| -> Result<Vec<KeyValue>> {
        Ok(kv.iter().map(|kv| kv.map(|t| twice(t.clone()))).collect::<candle_core::Result<_>>()?)
    };
    let text = double(base.prior.denoiser.key_values(&Tensor::stack(&tokens, 0)?)?)?;
    let users = Tensor::from_vec(users, (count, settings.adapter.user_width), device)?;
    let user = double(adapter.key_values(&adapter.tokens(&users)?)?)?;
    // Stored as (first, second) image of the pair; wanted as (chosen, rejected).
    let known = visits.iter().map(|visit| {
        reference.get(visit.example.pair, visit.occurrence).map(|errors| oriented(errors, visit))
    });
    Ok(MicroBatch {
        noised,
        noise,
        timestep: Tensor::from_vec(r, images * count, device)?,
        text,
        user,
        reference: known.collect(),
    })
}

/// Between (chosen, rejected) and (first, second): its own inverse.
fn oriented([a, b]: [f64; 2], visit: &Visit) -> [f64; 2] {
    if visit.example.second_chosen { [b, a] } else { [a, b] }
}
