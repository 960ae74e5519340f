//! Prompts, users and seeds to images: guided sampling with a frozen denoiser and, where there is one, an adapter.
//!
//! Every image draws its own noise from (seed, prompt), so it does not depend on the batch it falls into, on the number
//! of workers, or on the method: all methods start from the same noise. Text and user keys and values are computed once
//! for each image, not once for each step, and the two halves of classifier-free guidance run as one batch.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::diffusion::{Sampler, SamplerConfig, UnconditionalUser, guide_batch};
use crate::error::Result;
use crate::nn::KeyValue;
use crate::nn::workers::Workers;
use crate::pixels::Image;
use crate::rng::stream;
use crate::scenes::SIDE;
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
    let branch =
        user.map(|(adapter, vector)| UserBranch::new(adapter, vector, sampling, &base.device)).transpose()?;
    let batches: Vec<&[Request]> = requests.chunks(BATCH).collect();
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
    let count = requests.len();
    let guided = sampling.guidance_scale.get() > 1.0;
    let mut prompts: Vec<String> = requests.iter().map(|r| r.prompt.clone()).collect();
    if guided {
        // [conditional; unconditional], the order of diffusers.
        prompts.resize(2 * count, String::new());
    }
    let text = base.denoiser.key_values(&base.conditioning_tokens(&prompts)?)?;
    let user = branch.map(|branch| branch.expand(count, guided)).transpose()?;

    let config = base.denoiser.config();
    let side = SIDE / base.codec.config().factor();
    let shape = (count, config.in_channels, side, side);
    let mut draws: Vec<_> = requests.iter().map(|r| stream(r.seed, "image noise", r.index)).collect();
    let mut normals = || {
        let each = config.in_channels * side * side;
        let data: Vec<f32> = draws.iter_mut().flat_map(|draw| draw.normals(each)).collect();
        Ok(Tensor::from_vec(data, shape, &base.device)?)
    };
    let start: Tensor = normals()?;
    let sampler = Sampler::new(base.schedule, sampling.sampler)?;
    let latents = sampler.sample(
        &start,
        |latents, timestep| {
            let noised = if guided { Tensor::cat(&[latents, latents], 0)? } else { latents.clone() };
            let r = Tensor::full(timestep.get() as f32, noised.dim(0)?, &base.device)?;
            let pred = base.denoiser.forward(&noised, &r, &text, user.as_deref())?;
            if guided { guide_batch(&pred, sampling.guidance_scale) } else { Ok(pred) }
        },
        |_| normals(),
    )?;
    base.decode(&latents)
}

/// Images sampled at once by one worker.
const BATCH: usize = 8;

/// One user's keys and values, and those that the unconditional half gets.
struct UserBranch {
    conditional: Vec<KeyValue>,
    unconditional: Vec<KeyValue>,
}

impl UserBranch {
    fn new(adapter: &Adapter, vector: &[f32], sampling: &Sampling, device: &Device) -> Result<Self> {
        let branch = |vector: &[f32]| {
            let vector = Tensor::from_slice(vector, (1, vector.len()), device)?;
            adapter.key_values(&adapter.tokens(&vector)?)
        };
        let conditional = branch(vector)?;
        let unconditional = match sampling.unconditional_user {
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
