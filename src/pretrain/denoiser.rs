//! Trains the desk's base model: a small Stage C and its text encoder, from nothing, on latents of rendered scenes.
//!
//! Stable Cascade conditions on a frozen CLIP; a text encoder of CLIP's architecture trained with the denoiser is the
//! desk's stand-in, and shares nothing with the CLIPs that score images. Scenes of one object come first, then the
//! mixture moves to two and three. Every sample is rendered afresh.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::codec::training_picture;
use super::trainer::{Optimisation, Step, Trainer};
use crate::diffusion::{Schedule, per_sample_error};
use crate::error::Result;
use crate::generate::{conditioning_tokens, picture_tensor};
use crate::models::clip::{TextConfig, TextTower};
use crate::models::latent_codec::LatentCodec;
use crate::models::stage_c::{self, StageC};
use crate::models::tokenizer::Tokenizer;
use crate::rng::stream;
use crate::scenes::{ObjectWeights, words};
use crate::units::Seed;
use crate::weights::{Trainable, Weights, save};

/// The recipe of a base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserConfig {
    /// The denoiser.
    pub model: stage_c::Config,
    /// Its text encoder.
    pub text: TextConfig,
    /// Initialisation, scenes, timesteps and noise.
    pub seed: Seed,
    /// How often one, two and three objects are shown at the start.
    pub objects_at_start: ObjectWeights,
    /// How often from `objects_settle` of the steps on; linear between.
    pub objects_at_end: ObjectWeights,
    /// The share of all steps after which the mixture no longer changes.
    pub objects_settle: f64,
    /// How often a caption is replaced by the empty one, for classifier-free guidance.
    pub text_dropout: f64,
    /// Length and speed.
    pub optimisation: Optimisation,
}

impl DenoiserConfig {
    fn objects_at(&self, index: u64) -> ObjectWeights {
        let step = index as f64 / self.optimisation.micro_batches as f64;
        let progress = (step / (self.objects_settle * self.optimisation.steps as f64)).min(1.0);
        std::array::from_fn(|i| {
            self.objects_at_start[i] + progress * (self.objects_at_end[i] - self.objects_at_start[i])
        })
    }
}

struct Parts {
    codec: LatentCodec,
    denoiser: StageC,
    text: TextTower,
    tokenizer: Tokenizer,
    schedule: Schedule,
}

impl Parts {
    /// The P2-weighted denoising loss of micro-batch `index`.
    fn loss(&self, config: &DenoiserConfig, index: u64) -> Result<Tensor> {
        let count = config.optimisation.micro_batch;
        let objects = config.objects_at(index);
        let mut draw = stream(config.seed, "denoiser noise", index);
        let (mut captions, mut pictures, mut timesteps) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..count {
            let index = index * count as u64 + i as u64;
            let (caption, picture) = training_picture(config.seed, "denoiser scene", index, objects);
            captions.push(if draw.chance(config.text_dropout) { String::new() } else { caption });
            pictures.push(picture);
            timesteps.push(self.schedule.training_timestep(draw.uniform()));
        }
        let latents = self.codec.encode(&picture_tensor(&pictures)?)?;
        let noise = Tensor::from_vec(draw.normals(latents.elem_count()), latents.shape(), latents.device())?;
        let noised = self.schedule.add_noise(&latents, &noise, &timesteps)?;
        let tokens = conditioning_tokens(&self.denoiser, &self.text, &self.tokenizer, &captions)?;
        let key_values = self.denoiser.key_values(&tokens)?;
        let r: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
        let r = Tensor::from_vec(r, count, latents.device())?;
        let pred = self.denoiser.forward(&noised, &r, &key_values, None)?;
        let weights: Vec<f32> = timesteps.iter().map(|&t| self.schedule.p2_weight(t) as f32).collect();
        let weights = Tensor::from_vec(weights, count, latents.device())?;
        Ok((per_sample_error(&pred, &noise)? * weights)?.mean_all()?)
    }
}

/// Trains, or goes on training, a base model on the codec in `folder`; leaves `prior.safetensors`,
/// `text_encoder.safetensors` (moving averages) and the training state there, the weights at every save.
///
/// # Errors
/// Where the codec is missing, the disk refuses, or the loss stops being finite.
pub fn run(
    config: &DenoiserConfig,
    codec: LatentCodec,
    folder: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<()> {
    let trainable = Trainable::new(config.seed);
    let vb = trainable.builder(&Device::Cpu);
    let parts = Parts {
        codec,
        denoiser: StageC::new(&config.model, vb.pp(PRIOR))?,
        text: TextTower::new(&config.text, vb.pp(TEXT))?,
        tokenizer: Tokenizer::desk(&words())?,
        schedule: Schedule::default(),
    };
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    let state = folder.join("denoiser-state.safetensors");
    if state.exists() {
        trainer.resume(&state)?;
    }
    while !trainer.is_done() {
        let step = trainer.advance(|index| parts.loss(config, index))?;
        let go_on = progress(step);
        if step.step % 200 == 0 || trainer.is_done() || !go_on {
            trainer.save(&state)?;
            let averaged = trainer.averaged();
            for (prefix, name) in [(PRIOR, "prior"), (TEXT, "text_encoder")] {
                let prefix = format!("{prefix}.");
                let part = averaged
                    .iter()
                    .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value.clone())))
                    .collect();
                save(folder.join(format!("{name}.safetensors")), &part, DType::BF16, &Default::default())?;
            }
        }
        if !go_on {
            break;
        }
    }
    Ok(())
}

const PRIOR: &str = "prior";
const TEXT: &str = "text_encoder";

/// Opens a trained codec.
///
/// # Errors
/// Where its file is missing or does not fit the config.
pub fn open_codec(config: &crate::models::latent_codec::Config, path: &Path) -> Result<LatentCodec> {
    LatentCodec::new(config, Weights::open(path)?.builder(DType::F32, &Device::Cpu))
}
