//! Prompts, users and seeds to images: guided sampling with a frozen denoiser and, where there is one, an adapter.
//!
//! Every image draws its own noise from (seed, prompt), so it does not depend on the batch it falls into, on the number
//! of workers, or on the method: all methods start from the same noise. Text and user keys and values are computed once
//! for each text and user of a batch, not once for each image or step, and the two halves of classifier-free guidance run
//! as one batch.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::base::Base;
use crate::diffusion::{
    GuidanceSteps, Process, Sampler, SamplerConfig, UnconditionalHalf, UnconditionalUser,
};
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
    /// At which steps guidance's other half is evaluated.
    #[serde(default, skip_serializing_if = "GuidanceSteps::is_all")]
    pub guidance_steps: GuidanceSteps,
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
        guidance_steps: sampling.guidance_steps,
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
    /// At which steps the other half is evaluated.
    pub guidance_steps: GuidanceSteps,
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
    let text = text_key_values(prior, task.prompts, task.unconditional, guided)?;
    let user = task.user.map(|branch| branch.expand(count, guided)).transpose()?;
    let mut steps = match guided {
        true => task.guidance_steps.halves(process.timesteps()).into_iter(),
        false => vec![UnconditionalHalf::Absent; process.timesteps().len()].into_iter(),
    };
    // Where a step evaluates the conditional half alone.
    let half = |kvs: &[KeyValue]| -> Result<Vec<KeyValue>> {
        Ok(kvs.iter().map(|kv| kv.map(|t| t.narrow(0, 0, count))).collect::<candle_core::Result<_>>()?)
    };
    let (conditional_text, conditional_user) = match guided && !task.guidance_steps.is_all() {
        true => (half(&text)?, user.as_deref().map(half).transpose()?),
        false => (text.clone(), user.clone()),
    };
    let mut kept = None;
    process.sample(
        start,
        |latents, timestep| {
            let step = steps.next().unwrap_or(UnconditionalHalf::Evaluated);
            let (noised, text, user) = match step {
                UnconditionalHalf::Evaluated => (Tensor::cat(&[latents, latents], 0)?, &text, &user),
                _ => (latents.clone(), &conditional_text, &conditional_user),
            };
            let r = Tensor::full(timestep.get() as f32, noised.dim(0)?, device)?;
            let pred = denoiser.forward(&noised, &r, text, user.as_deref())?;
            let pred = match (step, &kept) {
                (UnconditionalHalf::Absent, _) => pred,
                (UnconditionalHalf::Kept, Some(kept)) => {
                    process.guide(&Tensor::cat(&[&pred, kept], 0)?, task.guidance_scale)?
                }
                _ => {
                    if task.guidance_steps.unconditional_every.get() > 1 {
                        kept = Some(pred.narrow(0, count, count)?);
                    }
                    process.guide(&pred, task.guidance_scale)?
                }
            };
            seen(latents, &pred)?;
            Ok(pred)
        },
        draw,
    )
}

/// Keys and values of each prompt, behind them, where there is guidance, those of what it leads away from (the order of
/// diffusers). A text that several images have in common is encoded and projected once.
fn text_key_values(
    prior: &Prior,
    prompts: &[String],
    unconditional: &Unconditional,
    guided: bool,
) -> Result<Vec<KeyValue>> {
    let captions: &[String] = match unconditional {
        Unconditional::Captions(captions) if guided => captions,
        _ => &[],
    };
    let mut texts: Vec<String> = Vec::new();
    let mut rows: Vec<u32> = Vec::with_capacity(2 * prompts.len());
    for text in prompts.iter().chain(captions) {
        let row = texts.iter().position(|other| other == text).unwrap_or(texts.len());
        if row == texts.len() {
            texts.push(text.clone());
        }
        rows.push(row as u32);
    }
    let mut tokens = prior.conditioning_tokens(&texts)?;
    if guided && *unconditional == Unconditional::Zeros {
        tokens = Tensor::cat(&[tokens, prior.zero_conditioning_tokens(1)?], 0)?;
        rows.extend(prompts.iter().map(|_| texts.len() as u32));
    }
    let rows = Tensor::from_slice(&rows, rows.len(), &prior.device)?;
    let of_texts = prior.denoiser.key_values(&tokens)?;
    Ok(of_texts.iter().map(|kv| kv.select(&rows)).collect::<candle_core::Result<_>>()?)
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::DType;

    use super::*;

    #[test]
    fn a_text_that_images_share_is_encoded_and_projected_once_to_the_same_bits() {
        let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/desk/denoiser/prior.safetensors");
        let prior = Prior::open_desk(&weights, DType::F32, &Device::Cpu).unwrap();
        let of = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<String>>();
        let red = "a small red star";
        let prompts = of(&[red, "a blue circle left of a green square", red, red, "", red]);
        let captions = Unconditional::Captions(vec![String::new(); 6]);
        let caption = Unconditional::Captions(vec![String::new()]);
        let counts = || (prior.text.encoded(), prior.denoiser.projections());
        let values = |kvs: &[KeyValue]| -> Vec<Vec<f32>> {
            kvs.iter().map(|kv| kv.tensor().flatten_all().unwrap().to_vec1().unwrap()).collect()
        };
        // Images, what guidance leads away from, whether there is any, texts that are encoded, and that are projected.
        for (count, unconditional, guided, encoded, projected) in [
            (6, &captions, true, 3, 3),
            (6, &captions, false, 3, 3),
            (6, &Unconditional::Zeros, true, 3, 4),
            (1, &caption, true, 2, 2),
            (1, &caption, false, 1, 1),
        ] {
            let before = counts();
            let shared = text_key_values(&prior, &prompts[..count], unconditional, guided).unwrap();
            let after = counts();
            assert_eq!((after.0 - before.0, after.1 - before.1), (encoded, projected));
            let mut tokens = vec![prior.conditioning_tokens(&prompts[..count]).unwrap()];
            if guided {
                tokens.push(match unconditional {
                    Unconditional::Captions(captions) => prior.conditioning_tokens(captions).unwrap(),
                    Unconditional::Zeros => prior.zero_conditioning_tokens(count).unwrap(),
                });
            }
            let each = prior.denoiser.key_values(&Tensor::cat(&tokens, 0).unwrap()).unwrap();
            assert!(values(&shared) == values(&each), "{count} images, guided {guided}");
        }
    }

    #[test]
    fn sampling_that_saves_nothing_is_written_as_before() {
        let mut sampling = Sampling {
            sampler: SamplerConfig { num_steps: 30, x0_clamp: None },
            guidance_scale: GuidanceScale::new(4.0).unwrap(),
            unconditional_user: UnconditionalUser::Keep,
            guidance_steps: GuidanceSteps::ALL,
        };
        let written = r#"{"sampler":{"num_steps":30,"x0_clamp":null},"guidance_scale":4.0,"unconditional_user":"keep"}"#;
        assert_eq!(serde_json::to_string(&sampling).unwrap(), written);
        assert_eq!(serde_json::from_str::<Sampling>(written).unwrap(), sampling);
        sampling.guidance_steps.unconditional_every = 2.try_into().unwrap();
        let other = serde_json::to_string(&sampling).unwrap();
        assert_ne!(other, written);
        assert_eq!(serde_json::from_str::<Sampling>(&other).unwrap(), sampling);
    }
}
