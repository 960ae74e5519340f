//! From pictures to the latents that Stage C denoises: Stable Cascade's EfficientNet encoder, and what its training does
//! to pictures first.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::models::effnet::{self, EffnetEncoder, IMAGENET};
use crate::pixels::{Filter, Image};
use crate::weights::Weights;

/// A frozen encoder.
pub struct Encoder {
    network: EffnetEncoder,
    device: Device,
}

/// The file's name in `stabilityai/stable-cascade`.
const FILE: &str = "effnet_encoder.safetensors";

impl Encoder {
    /// Opens `effnet_encoder.safetensors`, or the folder that holds it, in single precision.
    ///
    /// # Errors
    /// Where the file is missing, damaged, or no encoder.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let weights = Self::weights(path)?;
        let path = weights.path();
        let config = effnet::Config::of(|name| weights.shape(name)).ok_or_else(|| {
            Error::weights(path, format!("lacks tensors of `backbone` or `mapper`: is this {FILE}?"))
        })?;
        Ok(Self {
            network: EffnetEncoder::new(&config, weights.builder(DType::F32, device))?,
            device: device.clone(),
        })
    }

    /// What [`Encoder::open`] loads, not read yet.
    ///
    /// # Errors
    /// Where the file is missing or damaged.
    pub(crate) fn weights(path: &Path) -> Result<Weights> {
        Weights::open(if path.is_dir() { path.join(FILE) } else { path.to_path_buf() })
    }

    /// Pictures to latents: each shrunk or enlarged to a shorter side of `size` pixels, its middle cut out, normalised by
    /// ImageNet's colours, encoded.
    ///
    /// # Shapes
    /// (B, 16, ⌈size/32⌉, ⌈size/32⌉); Stable Cascade trains at 768, which gives 24×24.
    ///
    /// # Errors
    /// Where a picture has no pixels.
    pub fn encode(&self, pictures: &[Image], size: usize) -> Result<Tensor> {
        self.network.forward(&prepared(pictures, size, &self.device)?)
    }

    /// Prepared pictures, (B, H, W, 3), to latents, (B, 16, h, w).
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn encode_prepared(&self, pictures: &Tensor) -> Result<Tensor> {
        self.network.forward(pictures)
    }
}

/// What Stable Cascade's training does to pictures before they are encoded, but for the place where it cuts: in the middle.
///
/// # Shapes
/// (B, size, size, 3).
///
/// # Errors
/// Where a picture has no pixels.
///
/// # Source
/// `Stability-AI/StableCascade`, `train/train_c.py`: ToTensor, Resize (bilinear, antialias), a crop, Normalize.
pub fn prepared(pictures: &[Image], size: usize, device: &Device) -> Result<Tensor> {
    let (mean, std) = IMAGENET;
    let mut data = Vec::with_capacity(pictures.len() * size * size * 3);
    for picture in pictures {
        let cut = picture.planes().resized_shortest(size, Filter::Bilinear)?.centre(size)?;
        let plane = size * size;
        // Channels last.
        let values = (0..3 * plane).map(|i| (cut.values()[i % 3 * plane + i / 3] - mean[i % 3]) / std[i % 3]);
        data.extend(values);
    }
    Ok(Tensor::from_vec(data, (pictures.len(), size, size, 3), device)?)
}
