//! Trains the desk's latent codec on rendered scenes, and afterwards a better decoder for the same latents.
//!
//! The encoder decides what latents are, and every base model is trained on them: it must not change. A decoder may, as
//! Stable Cascade's later stages are trained apart from the encoder whose latents they read.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, write_config};
use super::trainer::{Optimisation, Step, Trainer};
use crate::base::{open_codec, picture_tensor};
use crate::error::Result;
use crate::models::latent_codec::{self, Decoder, LatentCodec};
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
                decoder_widths: None,
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
                former_plans: Vec::new(),
                restarts: Vec::new(),
            },
        }
    }

    /// A codec of a few numbers and two steps, for tests; its latents have the desk's shape.
    pub fn smoke() -> Self {
        let desk = Self::desk();
        let model = latent_codec::Config {
            latent_channels: 16,
            widths: vec![8, 8, 16],
            encoder_blocks: vec![0, 0, 1],
            decoder_blocks: vec![0, 0, 1],
            decoder_widths: None,
        };
        Self {
            model,
            optimisation: Optimisation { steps: 2, micro_batch: 4, ..desk.optimisation.clone() },
            ..desk
        }
    }
}

/// The recipe of a new decoder for the latents of a codec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Width of each level, finest first.
    pub widths: Vec<usize>,
    /// Residual blocks of each level.
    pub blocks: Vec<usize>,
    /// Initialisation and data.
    pub seed: Seed,
    /// Standard deviation of the largest noise added to latents.
    pub latent_noise: f64,
    /// The weight of differences between neighbouring pixels: edges, of which pictures have little and eyes see much.
    pub edges: f64,
    /// Length and speed.
    pub optimisation: Optimisation,
}

impl DecoderConfig {
    /// The desk's decoder: wider where pixels are fine, which costs sampling nothing.
    pub fn desk() -> Self {
        Self {
            widths: vec![48, 64, 96],
            blocks: vec![2, 2, 2],
            seed: Seed::new(22),
            latent_noise: 0.1,
            edges: 1.0,
            optimisation: Optimisation { steps: 4000, ..CodecConfig::desk().optimisation },
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

/// The pictures of micro-batch `index`.
fn batch(seed: Seed, count: usize, index: u64) -> Result<Tensor> {
    let pictures: Vec<Image> = (0..count as u64)
        .map(|i| training_picture(seed, "codec scene", index * count as u64 + i, OBJECTS).1)
        .collect();
    picture_tensor(&pictures, &Device::Cpu)
}

/// Latents with noise of a strength drawn for the whole micro-batch.
fn noised(latents: &Tensor, most: f64, seed: Seed, index: u64) -> Result<Tensor> {
    let mut draw = stream(seed, "codec noise", index);
    let noise = Tensor::from_vec(draw.normals(latents.elem_count()), latents.shape(), latents.device())?;
    Ok((latents + (noise * (most * draw.uniform()))?)?)
}

fn loss(codec: &LatentCodec, config: &CodecConfig, index: u64) -> Result<Tensor> {
    let target = batch(config.seed, config.optimisation.micro_batch, index)?;
    let raw = codec.encode_raw(&target)?;
    let (mean, std) = moments(&raw)?;
    let latents = raw.broadcast_sub(&mean)?.broadcast_div(&std)?;
    let latents = noised(&latents, config.latent_noise, config.seed, index)?;
    let difference = (codec.decoder().forward(&latents)? - target)?;
    Ok((difference.abs()?.mean_all()? + difference.sqr()?.mean_all()?)?)
}

fn decoder_loss(
    codec: &LatentCodec,
    decoder: &Decoder,
    config: &DecoderConfig,
    index: u64,
) -> Result<Tensor> {
    let target = batch(config.seed, config.optimisation.micro_batch, index)?;
    let latents = codec.encode(&target)?.permute((0, 2, 3, 1))?.contiguous()?;
    let latents = noised(&latents, config.latent_noise, config.seed, index)?;
    let difference = (decoder.forward(&latents)? - target)?; // (B, H, W, 3)
    let mut loss = difference.abs()?.mean_all()?;
    for axis in [1, 2] {
        let last = difference.dim(axis)? - 1;
        let edges = (difference.narrow(axis, 1, last)? - difference.narrow(axis, 0, last)?)?;
        loss = (loss + (edges.abs()?.mean_all()? * (0.5 * config.edges))?)?;
    }
    Ok(loss)
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
    if !trainer.run(&folder.join("codec-state.safetensors"), progress, |index| loss(&codec, config, index))? {
        return Ok(());
    }
    let mut tensors = trainer.averaged();
    let path = folder.join(FILE);
    crate::weights::save(&path, &tensors, DType::F32, &Default::default())?;
    let (mean, std) = calibrate(&config.model, &path, config.seed)?;
    tensors.insert("latents.running_mean".into(), mean);
    tensors.insert("latents.running_std".into(), std);
    finish(folder, &tensors, &config.model, config, trainer.step(), config.seed)
}

/// Trains, or goes on training, a new decoder for the codec in folder `from`; leaves in `folder` what [`run`] leaves,
/// with the codec's own encoder. The latents are the same to the last bit.
///
/// # Errors
/// Where the codec is missing, the disk refuses, or the loss stops being finite.
pub fn run_decoder(
    config: &DecoderConfig,
    from: &Path,
    folder: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<()> {
    let former = Manifest::read_checked(from)?;
    let codec = open_codec(&from.join(FILE), &Device::Cpu)?;
    let model = latent_codec::Config {
        decoder_blocks: config.blocks.clone(),
        decoder_widths: Some(config.widths.clone()),
        ..codec.config().clone()
    };
    let trainable = Trainable::new(config.seed);
    let decoder = Decoder::new(&model, &trainable.builder(&Device::Cpu))?;
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    let state = folder.join("decoder-state.safetensors");
    if !trainer.run(&state, progress, |index| decoder_loss(&codec, &decoder, config, index))? {
        return Ok(());
    }
    let mut tensors = trainer.averaged();
    let weights = Weights::open(from.join(FILE))?;
    for name in weights.names().into_iter().filter(|name| !Decoder::owns(name)) {
        tensors.insert(name.to_owned(), weights.read(name, DType::F32, &Device::Cpu)?);
    }
    // A decoder that replaces a former one leaves the codec's own recipe in its place.
    let of_codec = former.recipe.get("codec").unwrap_or(&former.recipe);
    let recipe = serde_json::json!({ "codec": of_codec, "decoder": config });
    finish(folder, &tensors, &model, &recipe, trainer.step(), config.seed)
}

/// Stores a codec with its config and manifest.
fn finish(
    folder: &Path,
    tensors: &BTreeMap<String, Tensor>,
    model: &latent_codec::Config,
    recipe: &impl Serialize,
    steps: usize,
    seed: Seed,
) -> Result<()> {
    let path = folder.join(FILE);
    crate::weights::save(&path, tensors, DType::BF16, &Default::default())?;
    write_config(folder, model)?;
    let measured = BTreeMap::from([("mean absolute error".to_owned(), reconstruction_error(&path, seed)?)]);
    Manifest::write(folder, "codec", recipe, steps, &[FILE, "config.json"], measured)?;
    Ok(())
}

const FILE: &str = "codec.safetensors";

/// Mean absolute error, of 255 grey levels, over 256 scenes that training never saw.
fn reconstruction_error(path: &Path, seed: Seed) -> Result<f64> {
    let codec = open_codec(path, &Device::Cpu)?;
    let mut total = 0.0;
    for batch in 0..8u64 {
        let pictures: Vec<Image> =
            (0..32).map(|i| training_picture(seed, "codec evaluation", batch * 32 + i, OBJECTS).1).collect();
        let target = picture_tensor(&pictures, &Device::Cpu)?;
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
        raw.push(codec.encode_raw(&picture_tensor(&pictures, &Device::Cpu)?)?);
    }
    let (mean, std) = moments(&Tensor::cat(&raw, 0)?)?;
    Ok((mean.flatten_all()?, std.flatten_all()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_decoder_leaves_the_latents_as_they_are() {
        let short = |optimisation: Optimisation| Optimisation { steps: 3, micro_batch: 4, ..optimisation };
        let model = latent_codec::Config {
            latent_channels: 4,
            widths: vec![8, 8, 8],
            encoder_blocks: vec![0, 0, 1],
            decoder_blocks: vec![0, 0, 1],
            decoder_widths: None,
        };
        let recipe = CodecConfig::desk();
        let recipe = CodecConfig { model, optimisation: short(recipe.optimisation.clone()), ..recipe };
        let root = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| root.path().join(name));
        for folder in [&first, &second] {
            std::fs::create_dir_all(folder).unwrap();
        }
        run(&recipe, &first, 1, &mut |_| true).unwrap();
        let decoder = DecoderConfig::desk();
        let decoder = DecoderConfig {
            widths: vec![12, 8, 8],
            optimisation: short(decoder.optimisation.clone()),
            ..decoder
        };
        run_decoder(&decoder, &first, &second, 1, &mut |_| true).unwrap();
        let [before, after] =
            [&first, &second].map(|folder| open_codec(&folder.join(FILE), &Device::Cpu).unwrap());
        let pictures = batch(Seed::new(1), 2, 0).unwrap();
        let latents = [&before, &after].map(|codec| codec.encode(&pictures).unwrap().flatten_all().unwrap());
        let [one, two] = latents.map(|latents| latents.to_vec1::<f32>().unwrap());
        assert_eq!(one, two);
        assert_eq!(after.config().decoder_widths, Some(vec![12, 8, 8]));
        let manifest = Manifest::read_checked(&second).unwrap();
        assert_eq!(manifest.recipe["codec"], serde_json::to_value(&recipe).unwrap());
    }
}
