//! A base model, opened from its files: the denoiser that is fine-tuned, its text encoder, and the image codec.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::diffusion::Schedule;
use crate::error::{Error, Result};
use crate::models::clip::{TextConfig, TextTower};
use crate::models::latent_codec::{self, LatentCodec};
use crate::models::stage_c::{self, StageC};
use crate::models::tokenizer::Tokenizer;
use crate::pixels::Image;
use crate::scenes::words;
use crate::weights::Weights;

/// The denoiser and its text encoder, in `config.json` beside their weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserConfig {
    /// The denoiser.
    pub prior: stage_c::Config,
    /// Its text encoder.
    pub text_encoder: TextConfig,
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
    /// Where all of it is.
    pub device: Device,
}

impl Base {
    /// Opens a denoiser, its text encoder (`text_encoder.safetensors` beside it) and a codec; each folder has its
    /// `config.json`. The denoiser computes in `dtype`, all else in single precision.
    ///
    /// # Errors
    /// Where a file is missing, damaged, or belongs to another config.
    pub fn open(denoiser: &Path, codec: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config: DenoiserConfig = config_beside(denoiser)?;
        let open = |path: &Path, dtype| Weights::open(path).map(|weights| weights.builder(dtype, device));
        Ok(Self {
            denoiser: StageC::new(&config.prior, open(denoiser, dtype)?)?,
            text: TextTower::new(
                &config.text_encoder,
                open(&denoiser.with_file_name("text_encoder.safetensors"), DType::F32)?,
            )?,
            tokenizer: Tokenizer::desk(&words())?,
            codec: open_codec(codec, device)?,
            device: device.clone(),
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
        self.codec.encode(&picture_tensor(pictures, &self.device)?)
    }

    /// Latents to pictures.
    ///
    /// # Errors
    /// Where the latents do not fit the codec.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<Image>> {
        pictures(&self.codec.decode(latents)?)
    }
}

/// Opens a codec; its `config.json` stands beside the weights.
///
/// # Errors
/// Where a file is missing, damaged, or belongs to another config.
pub fn open_codec(path: &Path, device: &Device) -> Result<LatentCodec> {
    let config: latent_codec::Config = config_beside(path)?;
    LatentCodec::new(&config, Weights::open(path)?.builder(DType::F32, device))
}

fn config_beside<T: serde::de::DeserializeOwned>(weights: &Path) -> Result<T> {
    let path = weights.with_file_name("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    serde_json::from_str(&text)
        .map_err(|fault| Error::weights(&path, format!("does not describe the weights beside it: {fault}")))
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
pub fn picture_tensor(pictures: &[Image], device: &Device) -> Result<Tensor> {
    let (width, height) = pictures.first().map_or((0, 0), |p| (p.width(), p.height()));
    let data: Vec<f32> = pictures.iter().flat_map(|p| p.rgb()).map(|&v| f32::from(v) / 127.5 - 1.0).collect();
    Ok(Tensor::from_vec(data, (pictures.len(), height, width, 3), device)?)
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
