//! From Stage C's latents to pictures: Stable Cascade's decoder, opened from the files of any layout it comes in, and the
//! previewer.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::diffusion::{Process, Sampler, SamplerConfig, Schedule};
use crate::error::{Error, Result};
use crate::models::clip::{TextConfig, TextTower};
use crate::models::previewer::{self, Previewer};
use crate::models::stage_a::{self, StageA};
use crate::models::stage_b::{self, StageB};
use crate::models::tokenizer::Tokenizer;
use crate::pixels::Image;
use crate::rng::{Stream, stream};
use crate::units::{GuidanceScale, Seed};
use crate::weights::Weights;

mod files;

pub use files::Files;

/// A frozen Stage B with what it is conditioned by, and the autoencoder that ends it.
pub struct Decoder {
    /// The denoiser.
    pub denoiser: StageB,
    /// Its text encoder.
    pub text: TextTower,
    /// The text encoder's tokenizer.
    pub tokenizer: Tokenizer,
    /// From the denoiser's latents to pictures.
    pub autoencoder: StageA,
    /// The noise schedule.
    pub schedule: Schedule,
    /// Positions along a side of the denoiser's latents for each of Stage C's.
    pub latent_dim_scale: f64,
    /// Where all of it is.
    pub device: Device,
}

/// How latents are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// Sampler steps.
    pub num_steps: usize,
    /// Classifier-free guidance; 1 is none.
    pub guidance_scale: GuidanceScale,
}

impl Default for Decoding {
    /// diffusers' defaults.
    fn default() -> Self {
        Self { num_steps: 10, guidance_scale: GuidanceScale::new(1.0).expect("no guidance") }
    }
}

/// What a batch of latents of Stage C shows.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The latents: (B, 16, h, w).
    pub embeddings: &'a Tensor,
    /// Each one's prompt.
    pub prompts: &'a [String],
    /// What each should not show, where guidance leads away from it; empty captions where there is nothing.
    pub negative: &'a [String],
}

impl Decoder {
    /// Opens Stable Cascade's decoder: a folder in diffusers' layout (`decoder`, `vqgan`, `text_encoder`, `tokenizer`), or
    /// one in which one of Stability's `stage_b*.safetensors` and `stage_a.safetensors` stand beside `text_encoder` and
    /// `tokenizer`; or the file, or the folder, of one such denoiser within it. The denoiser computes in `dtype`, the
    /// rest in single precision.
    ///
    /// # Errors
    /// Where a file is missing (naming those that were looked for), damaged, or belongs to another config.
    pub fn open_repository(path: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Files::find(path)?.open(dtype, device)
    }

    /// Height and width of the denoiser's latents for those of Stage C.
    ///
    /// Where diffusers' product is no multiple of the denoiser's patch, on which it fails, the next larger one is taken.
    pub fn latent_size(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let patch = self.denoiser.config().patch_size;
        let side = |side: usize| ((side as f64 * self.latent_dim_scale) as usize).next_multiple_of(patch);
        (side(height), side(width))
    }

    /// The pooled embeddings of prompts: (B, 1, D).
    ///
    /// # Errors
    /// Where a prompt does not fit the text encoder.
    pub fn pooled(&self, prompts: &[String]) -> Result<Tensor> {
        Ok(self.text.forward(&self.tokenizer.encode(prompts)?, true)?.text_embeds.unsqueeze(1)?)
    }

    /// Samples the denoiser's latents from `start` with the noise that `draw` gives each step; `seen` hears of the latents
    /// after each step.
    ///
    /// # Shapes
    /// `start` (B, 4, H, W) of [`Decoder::latent_size`]; the result has its shape.
    ///
    /// # Errors
    /// Where a prompt does not fit the text encoder, the shapes do not fit, and those of `draw` and `seen`.
    pub fn sample(
        &self,
        task: &Task,
        decoding: &Decoding,
        start: &Tensor,
        mut draw: impl FnMut(usize) -> Result<Tensor>,
        mut seen: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let count = self.check(task, start)?;
        let guided = decoding.guidance_scale.get() > 1.0;
        let embeddings = task.embeddings.to_device(&self.device)?;
        let (_, _, height, width) = start.dims4()?;
        // [conditional; unconditional], the order of diffusers; the latter is conditioned by latents that are all zero.
        let (pooled, effnet) = if guided {
            let empty = vec![String::new(); count];
            let negative = if task.negative.is_empty() { &empty } else { task.negative };
            let pooled = self.pooled(&[task.prompts, negative].concat())?;
            (pooled, Tensor::cat(&[&embeddings, &embeddings.zeros_like()?], 0)?)
        } else {
            (self.pooled(task.prompts)?, embeddings)
        };
        let condition = self.denoiser.condition(&pooled, &effnet, (height, width))?;
        let config = SamplerConfig { num_steps: decoding.num_steps, x0_clamp: None };
        let process = Process::Ddpm(Sampler::new(self.schedule, config)?);
        let mut latents = start.clone();
        for (index, &timestep) in process.timesteps().iter().enumerate() {
            let noised = if guided { Tensor::cat(&[&latents, &latents], 0)? } else { latents.clone() };
            let r = Tensor::full(timestep.get() as f32, noised.dim(0)?, &self.device)?;
            let mut pred = self.denoiser.forward(&noised, &r, &condition)?;
            if guided {
                pred = process.guide(&pred, decoding.guidance_scale)?;
            }
            let noise = process.takes_noise(index).then(|| draw(index)).transpose()?;
            latents = process.step(index, &latents, &pred, noise.as_ref())?;
            seen(&latents)?;
        }
        Ok(latents)
    }

    /// How many latents there are, if all that belongs to them fits.
    fn check(&self, task: &Task, start: &Tensor) -> Result<usize> {
        let (count, _, height, width) = task.embeddings.dims4()?;
        let (height, width) = self.latent_size((height, width));
        let expected = [count, self.denoiser.config().in_channels, height, width];
        let negative = task.negative.len();
        if task.prompts.len() != count || (negative != 0 && negative != count) || start.dims() != expected {
            return Err(Error::Shape(format!(
                "{} prompts and {negative} negative ones for {count} latents of Stage C, which begin with noise of \
                 {expected:?}, got {:?}",
                task.prompts.len(),
                start.dims()
            )));
        }
        Ok(count)
    }

    /// The denoiser's latents as pictures.
    ///
    /// # Shapes
    /// (B, 4, H, W) to (B, 3, H·f, W·f) in [0, 1].
    ///
    /// # Errors
    /// Where the latents have another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let scaled = (latents * self.autoencoder.config().scale_factor)?;
        Ok(self.autoencoder.decode(&scaled)?.clamp(0.0, 1.0)?)
    }

    /// Decodes latents one after another, each with the noise of its (seed, index), so that a picture does not depend on
    /// what is decoded beside it; `done` hears of each.
    ///
    /// # Errors
    /// Where a prompt does not fit the text encoder, there are not as many of everything as latents, and those of `done`.
    pub fn images(
        &self,
        task: &Task,
        decoding: &Decoding,
        seeds: &[(Seed, u64)],
        mut done: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Image>> {
        let (count, _, height, width) = task.embeddings.dims4()?;
        if seeds.len() != count || task.prompts.len() != count {
            return Err(Error::Shape(format!(
                "{count} latents of Stage C, {} prompts, {} seeds",
                task.prompts.len(),
                seeds.len()
            )));
        }
        let size = self.latent_size((height, width));
        let mut images = Vec::with_capacity(count);
        for (i, &(seed, index)) in seeds.iter().enumerate() {
            let one = Task {
                embeddings: &task.embeddings.narrow(0, i, 1)?,
                prompts: &task.prompts[i..=i],
                negative: if task.negative.is_empty() { &[] } else { &task.negative[i..=i] },
            };
            let mut noise = self.noise(seed, index, size);
            let start = noise.draw()?;
            let latents = self.sample(&one, decoding, &start, |_| noise.draw(), |_| Ok(()))?;
            images.extend(pictures(&self.decode(&latents)?, i)?);
            done()?;
        }
        Ok(images)
    }

    /// The noise of one picture's latents.
    pub fn noise(&self, seed: Seed, index: u64, (height, width): (usize, usize)) -> Noise {
        let shape = (1, self.denoiser.config().in_channels, height, width);
        Noise { stream: stream(seed, "decoder noise", index), shape, device: self.device.clone() }
    }
}

/// Standard normal noise for one picture's latents, from its own stream.
pub struct Noise {
    stream: Stream,
    shape: (usize, usize, usize, usize),
    device: Device,
}

impl Noise {
    /// The next draw: (1, 4, H, W).
    ///
    /// # Errors
    /// Where the tensor library refuses.
    pub fn draw(&mut self) -> Result<Tensor> {
        let (_, channels, height, width) = self.shape;
        let data = self.stream.normals(channels * height * width);
        Ok(Tensor::from_vec(data, self.shape, &self.device)?)
    }
}

/// Opens Stability's previewer.
///
/// # Errors
/// Where the file is missing, damaged, or no previewer.
pub fn open_previewer(path: &Path, device: &Device) -> Result<Previewer> {
    let weights = Weights::open(path)?;
    let config = previewer::Config::of(|name| weights.shape(name)).ok_or_else(|| {
        Error::weights(path, "has no `blocks.0.weight` to `blocks.24.weight`: is this previewer.safetensors?")
    })?;
    Previewer::new(&config, weights.builder(DType::F32, device))
}

/// Small pictures of Stage C's latents, (B, 16, h, w).
///
/// # Errors
/// Where the latents do not fit the previewer.
pub fn preview(previewer: &Previewer, latents: &Tensor) -> Result<Vec<Image>> {
    pictures(&previewer.forward(latents)?.clamp(0.0, 1.0)?, 0)
}

/// Pictures in [0, 1], (B, 3, H, W), as bytes; the first one is number `first`.
fn pictures(decoded: &Tensor, first: usize) -> Result<Vec<Image>> {
    let (_, channels, height, width) = decoded.dims4()?;
    let data = decoded.permute((0, 2, 3, 1))?.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    data.chunks_exact(channels * height * width)
        .enumerate()
        .map(|(index, picture)| {
            // As a byte, what is no number would be a black pixel like any other.
            if let Some(value) = picture.iter().find(|value| !value.is_finite()) {
                return Err(Error::NonFinite {
                    what: "a decoded pixel".to_owned(),
                    value: (*value).into(),
                    place: format!("image {}", first + index),
                });
            }
            // To the nearest byte, halves to the even one, as diffusers does.
            let bytes =
                picture.iter().map(|v| (v * 255.0).round_ties_even().clamp(0.0, 255.0) as u8).collect();
            Ok(Image::new(width, height, bytes))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_that_is_no_number_is_refused_by_its_number() {
        let decode =
            |data: Vec<f32>| pictures(&Tensor::from_vec(data, (2, 3, 1, 1), &Device::Cpu).unwrap(), 4);
        let shown = decode(vec![0.0, 0.5, 1.0, 0.1, 0.2, 0.3]).unwrap();
        assert_eq!((shown[0].rgb(), shown[1].rgb()), (&[0, 128, 255][..], &[26, 51, 76][..]));
        let message = decode(vec![0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0]).unwrap_err().to_string();
        assert!(message.contains("not finite") && message.contains("image 5"), "{message}");
    }
}
