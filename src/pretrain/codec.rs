//! Trains the desk's latent codec on rendered scenes.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, write_config};
use super::trainer::{Optimisation, Step, Trainer};
use crate::base::{open_codec, picture_tensor};
use crate::error::Result;
use crate::models::latent_codec::{self, LatentCodec};
use crate::pixels::Image;
use crate::rng::stream;
use crate::scenes::{ObjectWeights, Split, Style, render, sample_scene};
use crate::units::Seed;
use crate::weights::{Trainable, Weights};

/// The recipe of a codec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecConfig {
    /// The network.
    pub model: latent_codec::Config,
    /// Initialisation and data.
    pub seed: Seed,
    /// Standard deviation of the largest noise added to latents before decoding, so that a denoiser's errors decode well.
    pub latent_noise: f64,
    /// Length and speed.
    pub optimisation: Optimisation,
}

impl CodecConfig {
    /// The desk's codec.
    pub fn desk() -> Self {
        Self {
            model: latent_codec::Config {
                latent_channels: 16,
                widths: vec![24, 48, 96],
                encoder_blocks: vec![1, 1, 2],
                decoder_blocks: vec![1, 2, 2],
            },
            seed: Seed::new(20),
            latent_noise: 0.1,
            optimisation: Optimisation {
                steps: 4000,
                micro_batches: 2,
                micro_batch: 16,
                learning_rate: 2e-3,
                warmup_steps: 50,
                weight_decay: 1e-3,
                max_grad_norm: 1.0,
                ema_decay: 0.995,
            },
        }
    }
}

/// How often the codec sees one, two and three objects.
const OBJECTS: ObjectWeights = [0.4, 0.3, 0.3];

/// A rendered training scene; `index` chooses it.
pub(super) fn training_picture(
    seed: Seed,
    purpose: &str,
    index: u64,
    weights: ObjectWeights,
) -> (String, Image) {
    let mut draw = stream(seed, purpose, index);
    let scene = sample_scene(&mut draw, weights, Split::Train);
    let style = Style::sample(&mut draw);
    let picture = render(&scene, &style, &mut draw);
    (scene.caption(), picture)
}

/// Each channel's mean and standard deviation over all but the last axis, as (1, …, C) tensors.
fn moments(raw: &Tensor) -> Result<(Tensor, Tensor)> {
    let flat = raw.flatten(0, 2)?; // (B·h·w, C)
    let mean = flat.mean_keepdim(0)?;
    let variance = flat.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?;
    Ok((mean, (variance + 1e-5)?.sqrt()?))
}

fn loss(codec: &LatentCodec, config: &CodecConfig, index: u64) -> Result<Tensor> {
    let count = config.optimisation.micro_batch;
    let pictures: Vec<Image> = (0..count)
        .map(|i| {
            let index = index * count as u64 + i as u64;
            training_picture(config.seed, "codec scene", index, OBJECTS).1
        })
        .collect();
    let target = picture_tensor(&pictures)?;
    let raw = codec.encode_raw(&target)?;
    let (mean, std) = moments(&raw)?;
    let latents = raw.broadcast_sub(&mean)?.broadcast_div(&std)?;
    let mut draw = stream(config.seed, "codec noise", index);
    let noise = Tensor::from_vec(draw.normals(latents.elem_count()), latents.shape(), latents.device())?;
    let noise = (noise * (config.latent_noise * draw.uniform()))?;
    let difference = (codec.decode_channels_last(&(latents + noise)?)? - target)?;
    Ok((difference.abs()?.mean_all()? + difference.sqr()?.mean_all()?)?)
}

/// Trains, or goes on training, a codec; leaves `codec.safetensors`, `config.json` and `manifest.json` in `folder`,
/// beside the training state.
///
/// # Errors
/// Where the disk refuses or the loss stops being finite.
pub fn run(
    config: &CodecConfig,
    folder: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<()> {
    let trainable = Trainable::new(config.seed);
    let codec = LatentCodec::new(&config.model, trainable.builder(&Device::Cpu))?;
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    let state = folder.join("codec-state.safetensors");
    if state.exists() {
        trainer.resume(&state)?;
    }
    while !trainer.is_done() {
        let step = trainer.advance(|index| loss(&codec, config, index))?;
        let go_on = progress(step);
        if step.step.is_multiple_of(200) || trainer.is_done() || !go_on {
            trainer.save(&state)?;
        }
        if !go_on {
            return Ok(());
        }
    }
    let mut tensors = trainer.averaged();
    let path = folder.join("codec.safetensors");
    crate::weights::save(&path, &tensors, DType::F32, &Default::default())?;
    let (mean, std) = calibrate(&config.model, &path, config.seed)?;
    tensors.insert("latents.running_mean".into(), mean);
    tensors.insert("latents.running_std".into(), std);
    crate::weights::save(&path, &tensors, DType::BF16, &Default::default())?;
    write_config(folder, &config.model)?;
    let measured =
        BTreeMap::from([("mean absolute error".to_owned(), reconstruction_error(&path, config.seed)?)]);
    Manifest::write(
        folder,
        "codec",
        config,
        trainer.step(),
        &["codec.safetensors", "config.json"],
        measured,
    )?;
    Ok(())
}

/// Mean absolute error, of 255 grey levels, over 256 scenes that training never saw.
fn reconstruction_error(path: &Path, seed: Seed) -> Result<f64> {
    let codec = open_codec(path)?;
    let mut total = 0.0;
    for batch in 0..8u64 {
        let pictures: Vec<Image> =
            (0..32).map(|i| training_picture(seed, "codec evaluation", batch * 32 + i, OBJECTS).1).collect();
        let target = picture_tensor(&pictures)?;
        let difference = (codec.decode(&codec.encode(&target)?)? - target)?;
        total += f64::from(difference.abs()?.mean_all()?.to_scalar::<f32>()?) * 127.5 / 8.0;
    }
    Ok(total)
}

/// The latents' mean and standard deviation over 2,048 scenes under the averaged weights.
fn calibrate(model: &latent_codec::Config, path: &Path, seed: Seed) -> Result<(Tensor, Tensor)> {
    let codec = LatentCodec::new(model, Weights::open(path)?.builder(DType::F32, &Device::Cpu))?;
    let mut raw = Vec::new();
    for batch in 0..64u64 {
        let pictures: Vec<Image> =
            (0..32).map(|i| training_picture(seed, "codec calibration", batch * 32 + i, OBJECTS).1).collect();
        raw.push(codec.encode_raw(&picture_tensor(&pictures)?)?);
    }
    let (mean, std) = moments(&Tensor::cat(&raw, 0)?)?;
    Ok((mean.flatten_all()?, std.flatten_all()?))
}
