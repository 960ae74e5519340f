//! Prompts, users and seeds to images: guided sampling with a frozen denoiser and, where there is one, an adapter.
//!
//! Every image draws its own noise from (seed, prompt), so it does not depend on the batch it falls into, on the number
//! of workers, or on the method: all methods start from the same noise. Text and user keys and values are computed once
//! for each image, not once for each step, and the two halves of classifier-free guidance run as one batch.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::diffusion::{Sampler, SamplerConfig, Schedule, UnconditionalUser, guide_batch};
use crate::error::{Error, Result};
use crate::models::clip::{TextConfig, TextTower};
use crate::models::latent_codec::{self, LatentCodec};
use crate::models::stage_c::{self, StageC};
use crate::models::tokenizer::Tokenizer;
use crate::nn::KeyValue;
use crate::nn::workers::Workers;
use crate::pixels::Image;
use crate::rng::stream;
use crate::scenes::words;
use crate::units::{GuidanceScale, Seed};
use crate::weights::Weights;

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

/// The networks of a base model, each as its `config.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseConfig {
    /// The denoiser.
    pub prior: stage_c::Config,
    /// Its text encoder.
    pub text_encoder: TextConfig,
    /// Latents to pictures and back.
    pub codec: latent_codec::Config,
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

/// A frozen base model, ready to sample from and to be fine-tuned.
pub struct Base {
    /// The denoiser.
    pub denoiser: StageC,
    /// Its text encoder.
    pub text: TextTower,
    /// The text encoder's tokenizer.
    pub tokenizer: Tokenizer,
    /// Latents to pictures and back.
    pub codec: LatentCodec,
    /// The noise schedule.
    pub schedule: Schedule,
}

impl Base {
    /// Opens `base.json` and the weights beside it: `prior`, `text_encoder` and `codec`, each `.safetensors`.
    ///
    /// # Errors
    /// Where a file is missing, damaged, or belongs to another config.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("base.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let config: BaseConfig = serde_json::from_str(&text)
            .map_err(|e| Error::weights(&path, format!("is no base model's config: {e}")))?;
        let open = |name: &str| {
            Weights::open(folder.join(format!("{name}.safetensors")))
                .map(|w| w.builder(DType::F32, &Device::Cpu))
        };
        Ok(Self {
            denoiser: StageC::new(&config.prior, open("prior")?)?,
            text: TextTower::new(&config.text_encoder, open("text_encoder")?)?,
            tokenizer: Tokenizer::desk(&words())?,
            codec: LatentCodec::new(&config.codec, open("codec")?)?,
            schedule: Schedule::default(),
        })
    }

    /// The conditioning tokens of prompts: (B, N, D).
    ///
    /// # Errors
    /// Where a prompt does not fit the text encoder.
    pub fn conditioning_tokens(&self, prompts: &[String]) -> Result<Tensor> {
        conditioning_tokens(&self.denoiser, &self.text, &self.tokenizer, prompts)
    }

    /// Pictures to the latents that the denoiser is trained on: (B, 16, h, w).
    ///
    /// # Errors
    /// Where the pictures differ in size, or the codec does not take it.
    pub fn encode(&self, pictures: &[Image]) -> Result<Tensor> {
        self.codec.encode(&picture_tensor(pictures)?)
    }

    /// Samples every request, in their order. `user` is the adapter and the user's vector; `done` hears of each
    /// finished batch and stops the work by answering false (then fewer images come back).
    ///
    /// # Errors
    /// Where a prompt does not fit the text encoder, or the vector the adapter.
    pub fn sample(
        &self,
        requests: &[Request],
        sampling: &Sampling,
        user: Option<(&Adapter, &[f32])>,
        workers: &Workers,
        done: &(dyn Fn(usize) -> bool + Sync),
    ) -> Result<Vec<Image>> {
        let branch = user.map(|(adapter, vector)| UserBranch::new(adapter, vector, sampling)).transpose()?;
        let batches: Vec<&[Request]> = requests.chunks(BATCH).collect();
        let stopped = std::sync::atomic::AtomicBool::new(false);
        let images = workers.map(&batches, |_, batch| {
            if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                return Ok(Vec::new());
            }
            let images = self.sample_batch(batch, sampling, branch.as_ref());
            if !done(batch.len()) {
                stopped.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            images
        });
        Ok(images.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn sample_batch(
        &self,
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
        let text = self.denoiser.key_values(&self.conditioning_tokens(&prompts)?)?;
        let user = branch.map(|branch| branch.expand(count, guided)).transpose()?;

        let config = self.denoiser.config();
        let side = PICTURE / self.codec.config().factor();
        let shape = (count, config.in_channels, side, side);
        let mut draws: Vec<_> = requests.iter().map(|r| stream(r.seed, "image noise", r.index)).collect();
        let mut normals = || {
            let each = config.in_channels * side * side;
            let data: Vec<f32> = draws.iter_mut().flat_map(|draw| draw.normals(each)).collect();
            Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
        };
        let start: Tensor = normals()?;
        let sampler = Sampler::new(self.schedule, sampling.sampler)?;
        let latents = sampler.sample(
            &start,
            |latents, timestep| {
                let noised = if guided { Tensor::cat(&[latents, latents], 0)? } else { latents.clone() };
                let r = Tensor::full(timestep.get() as f32, noised.dim(0)?, &Device::Cpu)?;
                let pred = self.denoiser.forward(&noised, &r, &text, user.as_deref())?;
                if guided { guide_batch(&pred, sampling.guidance_scale) } else { Ok(pred) }
            },
            |_| normals(),
        )?;
        pictures(&self.codec.decode(&latents)?)
    }
}

/// Images sampled at once by one worker.
const BATCH: usize = 8;

/// Pixels across the desk's pictures.
const PICTURE: usize = 64;

/// One user's keys and values, and those that the unconditional half gets.
struct UserBranch {
    conditional: Vec<KeyValue>,
    unconditional: Vec<KeyValue>,
}

impl UserBranch {
    fn new(adapter: &Adapter, vector: &[f32], sampling: &Sampling) -> Result<Self> {
        let branch = |vector: &[f32]| {
            let vector = Tensor::from_slice(vector, (1, vector.len()), &Device::Cpu)?;
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

/// The conditioning tokens of prompts, (B, N, D); there is no image, so its embedding is zero.
///
/// # Errors
/// Where a prompt does not fit the text encoder.
pub fn conditioning_tokens(
    denoiser: &StageC,
    text: &TextTower,
    tokenizer: &Tokenizer,
    prompts: &[String],
) -> Result<Tensor> {
    let states = text.forward(&tokenizer.encode(prompts)?, true)?;
    let last = states.hidden_states.last().expect("a tower has at least its embeddings");
    let width = denoiser.config().clip_image_in_channels;
    let image = Tensor::zeros((prompts.len(), 1, width), DType::F32, last.device())?;
    denoiser.conditioning_tokens(last, &states.text_embeds.unsqueeze(1)?, &image)
}

/// Pictures as the codec takes them.
///
/// # Shapes
/// (B, H, W, 3) in [−1, 1]; all pictures must have the first one's size.
///
/// # Errors
/// Where the sizes differ.
pub fn picture_tensor(pictures: &[Image]) -> Result<Tensor> {
    let (width, height) = pictures.first().map_or((0, 0), |p| (p.width(), p.height()));
    let data: Vec<f32> = pictures.iter().flat_map(|p| p.rgb()).map(|&v| f32::from(v) / 127.5 - 1.0).collect();
    Ok(Tensor::from_vec(data, (pictures.len(), height, width, 3), &Device::Cpu)?)
}

/// Decoded pictures, (B, H, W, 3) in about [−1, 1], to bytes.
fn pictures(decoded: &Tensor) -> Result<Vec<Image>> {
    let (_, height, width, _) = decoded.dims4()?;
    let data = decoded.flatten_all()?.to_vec1::<f32>()?;
    Ok(data
        .chunks_exact(3 * height * width)
        .map(|picture| {
            let bytes = picture.iter().map(|v| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8).collect();
            Image::new(width, height, bytes)
        })
        .collect())
}
