//! A prior: the denoiser that is fine-tuned with its text encoder, opened from the files of any layout it comes in.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::diffusion::Schedule;
use crate::error::{Error, Result};
use crate::models::clip::{TextConfig, TextTower};
use crate::models::layout;
use crate::models::stage_c::{self, StageC};
use crate::models::tokenizer::Tokenizer;
use crate::provenance::available_memory_mib;
use crate::scenes::words;
use crate::weights::Weights;

/// The desk's denoiser and its text encoder, in `config.json` beside their weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserConfig {
    /// The denoiser.
    pub prior: stage_c::Config,
    /// Its text encoder.
    pub text_encoder: TextConfig,
}

impl DenoiserConfig {
    fn beside(denoiser: &Path) -> Result<Self> {
        read_config(&denoiser.with_file_name("config.json"))
    }
}

/// The files of a prior, found but not yet read.
pub(crate) struct Files {
    folder: PathBuf,
    denoiser: PathBuf,
    text_encoder: PathBuf,
}

impl Files {
    /// The desk's: the text encoder stands beside the denoiser.
    pub(crate) fn desk(denoiser: &Path) -> Self {
        Self {
            folder: denoiser.with_file_name(""),
            denoiser: denoiser.to_path_buf(),
            text_encoder: denoiser.with_file_name("text_encoder.safetensors"),
        }
    }

    /// Those that [`Prior::open_repository`] opens.
    pub(crate) fn of_repository(path: &Path) -> Result<Self> {
        let (folder, file) = match path.is_file() {
            true => (path.parent().unwrap_or(Path::new(".")), Some(path.to_path_buf())),
            false => (path, None),
        };
        let denoiser = file.map_or_else(|| weights_of_prior(folder), Ok)?;
        let names = ["model.safetensors", "model.bf16.safetensors"];
        let text_encoder = first_there(&folder.join("text_encoder"), &names)?;
        Ok(Self { folder: folder.to_path_buf(), denoiser, text_encoder })
    }

    /// The denoiser and its text encoder, not read yet, and the denoiser's config; `desk` tells whose that is.
    pub(crate) fn load(&self, desk: bool) -> Result<([Weights; 2], stage_c::Config)> {
        let (denoiser, config) = match desk {
            true => (Weights::open(&self.denoiser)?, DenoiserConfig::beside(&self.denoiser)?.prior),
            false => open_weights(&self.folder, &self.denoiser)?,
        };
        Ok(([denoiser, Weights::open(&self.text_encoder)?], config))
    }
}

/// A frozen denoiser and what it is conditioned by.
pub struct Prior {
    /// The denoiser.
    pub denoiser: StageC,
    /// Its text encoder.
    pub text: TextTower,
    /// The text encoder's tokenizer.
    pub tokenizer: Tokenizer,
    /// The noise schedule.
    pub schedule: Schedule,
    /// Where all of it is.
    pub device: Device,
}

impl Prior {
    /// Opens the desk's denoiser; `text_encoder.safetensors` and `config.json` stand beside it. The denoiser computes in
    /// `dtype`, the text encoder in single precision.
    ///
    /// # Errors
    /// Where a file is missing, damaged, or belongs to another config.
    pub fn open_desk(denoiser: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config = DenoiserConfig::beside(denoiser)?;
        let text = Weights::open(Files::desk(denoiser).text_encoder)?;
        Ok(Self {
            denoiser: open_denoiser(&config.prior, &Weights::open(denoiser)?, dtype, device)?,
            text: TextTower::new(&config.text_encoder, text.builder(DType::F32, device))?,
            tokenizer: Tokenizer::desk(&words())?,
            schedule: Schedule::default(),
            device: device.clone(),
        })
    }

    /// Opens Stable Cascade's prior: a folder in diffusers' layout (`prior`, `text_encoder`, `tokenizer`), or one in which
    /// one of Stability's `stage_c*.safetensors` stands beside `text_encoder` and `tokenizer`, or that file itself. The
    /// denoiser computes in `dtype`, the text encoder in single precision.
    ///
    /// # Errors
    /// Where a file is missing (naming those that were looked for), damaged, or belongs to another config.
    pub fn open_repository(path: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let Files { folder, denoiser, text_encoder } = Files::of_repository(path)?;
        let (weights, config) = open_weights(&folder, &denoiser)?;
        let builder = match layout::is_stability(weights.names().into_iter()) {
            true => weights.builder_in(layout::stability, dtype, device),
            false => weights.builder(dtype, device),
        };
        has_room(&weights, dtype, free_memory(device))?;
        let denoiser = StageC::new(&config, builder)?;
        let config: TextConfig = read_config(&text_encoder.with_file_name("config.json"))?;
        let text = Weights::open(text_encoder)?;
        let tokenizer = open_tokenizer(&folder.join("tokenizer"), config.max_position_embeddings)?;
        Ok(Self {
            denoiser,
            text: TextTower::new(&config, text.builder(DType::F32, device))?,
            tokenizer,
            schedule: Schedule::STABLE_CASCADE,
            device: device.clone(),
        })
    }

    /// The conditioning tokens of prompts, (B, N, D); there is no image, so its embedding is zero.
    ///
    /// # Errors
    /// Where a prompt does not fit the text encoder.
    pub fn conditioning_tokens(&self, prompts: &[String]) -> Result<Tensor> {
        conditioning_tokens(&self.denoiser, &self.text, &self.tokenizer, prompts)
    }

    /// The conditioning tokens of inputs that are all zero, (B, N, D): what Stability's sampler calls unconditional.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    pub fn zero_conditioning_tokens(&self, count: usize) -> Result<Tensor> {
        let config = self.denoiser.config();
        let zeros = |tokens: usize, width| Tensor::zeros((count, tokens, width), DType::F32, &self.device);
        self.denoiser.conditioning_tokens(
            &zeros(self.tokenizer.context(), config.clip_text_in_channels)?,
            &zeros(1, config.clip_text_pooled_in_channels)?,
            &zeros(1, config.clip_image_in_channels)?,
        )
    }
}

/// As [`Prior::conditioning_tokens`], of models that stand alone.
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

/// Pixels along a side of an image for one position of Stage C's latents (diffusers' `resolution_multiple`).
const RESOLUTION_MULTIPLE: f64 = 42.67;

/// Positions along a side of Stage C's latents for a side of an image in pixels.
pub fn latent_side(pixels: usize) -> usize {
    (pixels as f64 / RESOLUTION_MULTIPLE).ceil() as usize
}

/// A `config.json`.
///
/// # Errors
/// Where it cannot be read or does not fit.
pub fn read_config<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text)
        .map_err(|fault| Error::weights(path, format!("does not describe the weights beside it: {fault}")))
}

/// A tokenizer in Hugging Face's layout: `tokenizer.json`, and in `special_tokens_map.json` the token that rows are filled
/// with.
pub(crate) fn open_tokenizer(folder: &Path, context: usize) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let tokenizer = Tokenizer::from_json(&bytes, context, 0)?;
    let special: serde_json::Value = read_config(&folder.join("special_tokens_map.json"))?;
    let pad = &special["pad_token"];
    let pad = pad.as_str().or_else(|| pad["content"].as_str()).unwrap_or(END_OF_TEXT);
    let id = tokenizer.id(pad).ok_or_else(|| {
        Error::weights(&path, format!("has no token {pad:?}, which special_tokens_map.json fills rows with"))
    })?;
    Ok(tokenizer.padded_with(id))
}

/// What CLIP's text encoders fill rows with where nothing says otherwise.
const END_OF_TEXT: &str = "<|endoftext|>";

/// The names of diffusers' weights, in the order of preference, and of Stability's.
const DIFFUSERS: [&str; 2] =
    ["prior/diffusion_pytorch_model.safetensors", "prior/diffusion_pytorch_model.bf16.safetensors"];
const STABILITY: [&str; 4] = [
    "stage_c.safetensors",
    "stage_c_bf16.safetensors",
    "stage_c_lite.safetensors",
    "stage_c_lite_bf16.safetensors",
];

fn weights_of_prior(folder: &Path) -> Result<PathBuf> {
    first_there(folder, &[DIFFUSERS.as_slice(), &STABILITY].concat())
}

/// The first of these files that is there.
///
/// # Errors
/// Where none is.
pub(crate) fn first_there(folder: &Path, names: &[&str]) -> Result<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        Error::weights(
            folder,
            format!("holds none of {}: is this the folder of the model?", names.join(", ")),
        )
    })
}

/// Loads a denoiser, if the device can hold it.
fn open_denoiser(
    config: &stage_c::Config,
    weights: &Weights,
    dtype: DType,
    device: &Device,
) -> Result<StageC> {
    has_room(weights, dtype, free_memory(device))?;
    StageC::new(config, weights.builder(dtype, device))
}

/// Refuses weights that a device cannot hold in `dtype`, before minutes are spent on loading them.
///
/// # Errors
/// [`Error::Weights`] with what is needed and what is free.
pub fn check_room(weights: &Weights, dtype: DType, device: &Device) -> Result<()> {
    has_room(weights, dtype, free_memory(device))
}

/// The memory that tensors on a device may still take, in bytes; `None` where nobody says.
pub(crate) fn free_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => available_memory_mib().map(|mib| mib << 20),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            device.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free as u64)
        }
        _ => None,
    }
}

/// Refuses weights that do not fit into `free` bytes, before minutes are spent on loading them.
///
/// # Errors
/// [`Error::Weights`] with both sizes.
pub(crate) fn has_room(weights: &Weights, dtype: DType, free: Option<u64>) -> Result<()> {
    let needed = weights.bytes_in(dtype);
    match free {
        Some(free) if free < needed => {
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            let half = if dtype == DType::F32 { "bf16 halves what they take; or " } else { "" };
            Err(Error::weights(
                weights.path(),
                format!(
                    "the tensors take {:.2} GB of memory in {}, and {:.2} GB are free; {half}choose a smaller model or \
                     another --device, or end what else runs",
                    gigabytes(needed),
                    dtype.as_str(),
                    gigabytes(free)
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// A denoiser's weights, not read yet, and its config. Stability's files come without: their width tells which model it is.
fn open_weights(folder: &Path, file: &Path) -> Result<(Weights, stage_c::Config)> {
    let weights = Weights::open(file)?;
    let beside = file.with_file_name("config.json");
    if file.parent() == Some(&folder.join("prior")) || beside.is_file() {
        return Ok((weights, read_config(&beside)?));
    }
    let known = [stage_c::Config::stable_cascade(), stage_c::Config::stable_cascade_lite()];
    let shape = weights.shape("embedding.1.weight");
    let width = shape.as_deref().and_then(|shape| shape.first().copied());
    let config =
        known.into_iter().find(|config| Some(config.block_out_channels[0]) == width).ok_or_else(|| {
            Error::weights(
                file,
                format!(
                    "`embedding.1.weight` has shape {shape:?}, expected 2048 or 1536 rows (Stage C of 3.6 or 1 B \
                     parameters); for another model put its config.json beside it"
                ),
            )
        })?;
    Ok((weights, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_do_not_fit_are_refused_before_they_are_loaded() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stage_c/prior.safetensors");
        let weights = Weights::open(path).unwrap();
        let needed = weights.bytes_in(DType::F32);
        assert_eq!(needed, 2 * weights.bytes_in(DType::BF16));
        has_room(&weights, DType::F32, Some(needed)).unwrap();
        has_room(&weights, DType::F32, None).unwrap();
        let message = has_room(&weights, DType::F32, Some(needed - 1)).unwrap_err().to_string();
        for part in ["prior.safetensors", "GB are free", "bf16", "--device"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
