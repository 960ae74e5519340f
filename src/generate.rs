//! Prompts, users and seeds to images: guided sampling with a frozen denoiser and, where there is one, an adapter.
//!
//! Every image draws its own noise from (seed, prompt), so it does not depend on the batch it falls into, on the number
//! of workers, or on the method: all methods start from the same noise. Text and user keys and values are computed once
//! for each image, not once for each step, and the two halves of classifier-free guidance run as one batch.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::diffusion::{Process, Sampler, SamplerConfig, UnconditionalUser};
use crate::error::Result;
use crate::nn::KeyValue;
use crate::nn::workers::Workers;
use crate::pixels::Image;
use crate::prior::Prior;
use crate::rng::{Stream, stream};
use crate::units::{GuidanceScale, Seed};

/// How images are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Steps and clamp.
    pub sampler: SamplerConfig,
    /// Classifier-free guidance.
    pub guidance_scale: GuidanceScale,
    /// The user in the unconditional half.
    pub unconditional_user: UnconditionalUser,
}

/// One image to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What it should show.
    pub prompt: String,
    /// The index of its noise under `seed`: the prompt's number.
    pub index: u64,
    /// The noise seed.
    pub seed: Seed,
}

/// Samples every request, in their order. `user` is the adapter and the user's vector; `done` hears of each
/// finished batch and stops the work by answering false (then fewer images come back).
///
/// # Errors
/// Where a prompt does not fit the text encoder, or the vector the adapter.
pub fn sample(
    base: &Base,
    requests: &[Request],
    sampling: &Sampling,
    user: Option<(&Adapter, &[f32])>,
    workers: &Workers,
    done: &(dyn Fn(usize) -> bool + Sync),
) -> Result<Vec<Image>> {
    let (device, unconditional) = (&base.prior.device, sampling.unconditional_user);
    let branch = user.map(|(adapter, vector)| UserBranch::new(adapter, vector, unconditional, device));
    let branch = branch.transpose()?;
    let batches: Vec<&[Request]> = requests.chunks(batch(requests.len(), workers.count())).collect();
    let stopped = std::sync::atomic::AtomicBool::new(false);
    let images = workers.map(&batches, |_, batch| {
        if stopped.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let images = sample_batch(base, batch, sampling, branch.as_ref());
        if !done(batch.len()) {
            stopped.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        images
    });
    Ok(images.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn sample_batch(
    base: &Base,
    requests: &[Request],
    sampling: &Sampling,
    branch: Option<&UserBranch>,
) -> Result<Vec<Image>> {
    let prior = &base.prior;
    let prompts: Vec<String> = requests.iter().map(|r| r.prompt.clone()).collect();
    let process = Process::Ddpm(Sampler::new(prior.schedule, sampling.sampler)?);
    let task = Task {
        prompts: &prompts,
        unconditional: &Unconditional::Captions(vec![String::new(); prompts.len()]),
        guidance_scale: sampling.guidance_scale,
        user: branch,
    };
    let seeds: Vec<(Seed, u64)> = requests.iter().map(|r| (r.seed, r.index)).collect();
    let mut noise = Noise::new(seeds.iter().copied(), prior, base.latent_size());
    let latents = sample_latents(prior, &process, &task, &noise.draw()?, |_| noise.draw(), |_, _| Ok(()))?;
    base.decode(&latents, &prompts, &seeds)
}

/// What a batch of latents is to show.
pub struct Task<'a> {
    /// Each one's prompt.
    pub prompts: &'a [String],
    /// What guidance leads away from.
    pub unconditional: &'a Unconditional,
    /// How far; 1 is no guidance.
    pub guidance_scale: GuidanceScale,
    /// The user that all of them are for.
    pub user: Option<&'a UserBranch>,
}

/// The condition of guidance's other half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unconditional {
    /// A caption for each image: empty, or what the image should not show (diffusers).
    Captions(Vec<String>),
    /// Inputs that are all zero (Stability's sampler).
    Zeros,
}

/// Samples a batch of latents from `start` with the noise that `draw` gives each step; `seen` hears of the latents before
/// each step and of the noise predicted in them.
///
/// # Shapes
/// `start` (B, C, h, w), a prompt for each; the result has its shape.
///
/// # Errors
/// Where a prompt does not fit the text encoder, the shapes do not fit, and those of `draw` and `seen`.
pub fn sample_latents(
    prior: &Prior,
    process: &Process,
    task: &Task,
    start: &Tensor,
    draw: impl FnMut(usize) -> Result<Tensor>,
    mut seen: impl FnMut(&Tensor, &Tensor) -> Result<()>,
) -> Result<Tensor> {
    let Prior { denoiser, device, .. } = prior;
    let guided = task.guidance_scale.get() > 1.0;
    let count = task.prompts.len();
    let tokens = match (guided, task.unconditional) {
        (false, _) => prior.conditioning_tokens(task.prompts)?,
        // [conditional; unconditional], the order of diffusers.
        (true, Unconditional::Captions(captions)) => {
            prior.conditioning_tokens(&[task.prompts, captions].concat())?
        }
        (true, Unconditional::Zeros) => {
            let zeros = prior.zero_conditioning_tokens(count)?;
            Tensor::cat(&[prior.conditioning_tokens(task.prompts)?, zeros], 0)?
        }
    };
    let text = denoiser.key_values(&tokens)?;
    let user = task.user.map(|branch| branch.expand(count, guided)).transpose()?;
    process.sample(
        start,
        |latents, timestep| {
            let noised = if guided { Tensor::cat(&[latents, latents], 0)? } else { latents.clone() };
            let r = Tensor::full(timestep.get() as f32, noised.dim(0)?, device)?;
            let pred = denoiser.forward(&noised, &r, &text, user.as_deref())?;
            let pred = if guided { process.guide(&pred, task.guidance_scale)? } else { pred };
            seen(latents, &pred)?;
            Ok(pred)
        },
        draw,
    )
}

/// Standard normal noise for a batch of latents, each from its own stream.
pub struct Noise {
    streams: Vec<Stream>,
    /// (B, C, h, w).
    shape: (usize, usize, usize, usize),
    device: Device,
}

impl Noise {
    /// The streams of (seed, index) pairs, for latents of a height and width.
    pub fn new(
        images: impl Iterator<Item = (Seed, u64)>,
        prior: &Prior,
        (height, width): (usize, usize),
    ) -> Self {
        let streams: Vec<Stream> = images.map(|(seed, index)| stream(seed, "image noise", index)).collect();
        let shape = (streams.len(), prior.denoiser.config().in_channels, height, width);
        Self { streams, shape, device: prior.device.clone() }
    }

    /// The next draw of each.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    pub fn draw(&mut self) -> Result<Tensor> {
        let (_, channels, height, width) = self.shape;
        let each = channels * height * width;
        let data: Vec<f32> = self.streams.iter_mut().flat_map(|stream| stream.normals(each)).collect();
        Ok(Tensor::from_vec(data, self.shape, &self.device)?)
    }
}

/// The most images that one worker samples at once.
const BATCH: usize = 8;

/// Images that one worker samples at once, so that all of them are busy to the end.
fn batch(images: usize, workers: usize) -> usize {
    let rounds = images.div_ceil(BATCH * workers).max(1);
    images.div_ceil(rounds * workers).max(1)
}

/// One user's keys and values, and those that the unconditional half gets.
pub struct UserBranch {
    conditional: Vec<KeyValue>,
    unconditional: Vec<KeyValue>,
}

impl UserBranch {
    /// The branch of one user of an adapter.
    ///
    /// # Errors
    /// Where the vector does not fit the adapter.
    pub fn new(
        adapter: &Adapter,
        vector: &[f32],
        unconditional: UnconditionalUser,
        device: &Device,
    ) -> Result<Self> {
        let branch = |vector: &[f32]| {
            let vector = Tensor::from_slice(vector, (1, vector.len()), device)?;
            let branch = adapter.key_values(&adapter.tokens(&vector)?)?;
            // Nothing goes back from here: what an adapter in training would keep for that grows with every step.
            branch.iter().map(|kv| Ok(kv.map(|t| Ok(t.detach()))?)).collect::<Result<Vec<_>>>()
        };
        let conditional = branch(vector)?;
        let unconditional = match unconditional {
            UnconditionalUser::Keep => conditional.clone(),
            UnconditionalUser::Drop => branch(&vec![0.0; vector.len()])?,
        };
        Ok(Self { conditional, unconditional })
    }

    /// The branch for `count` images, and as many unconditional ones where there is guidance.
    fn expand(&self, count: usize, guided: bool) -> Result<Vec<KeyValue>> {
        let repeat = |kv: &KeyValue| kv.map(|t| t.repeat((count, 1, 1)));
        self.conditional
            .iter()
            .zip(&self.unconditional)
            .map(|(conditional, unconditional)| {
                let conditional = repeat(conditional)?;
                Ok(if guided {
                    KeyValue::cat(&[&conditional, &repeat(unconditional)?])?
                } else {
                    conditional
                })
            })
            .collect()
    }
}
