//! A base model, opened from its files: the prior that is fine-tuned, and the image codec.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::models::latent_codec::{self, LatentCodec};
use crate::pixels::Image;
use crate::prior::{Prior, read_config};
use crate::weights::Weights;

/// A frozen base model, ready to sample from and to be fine-tuned.
pub struct Base {
    /// Captions and noise to latents.
    pub prior: Prior,
    /// Latents to pictures and back.
    pub codec: LatentCodec,
}

impl Base {
    /// Opens a denoiser, its text encoder (`text_encoder.safetensors` beside it) and a codec; each folder has its
    /// `config.json`. The denoiser computes in `dtype`, all else in single precision.
    ///
    /// # Errors
    /// Where a file is missing, damaged, or belongs to another config.
    pub fn open(denoiser: &Path, codec: &Path, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self { prior: Prior::open_desk(denoiser, dtype, device)?, codec: open_codec(codec, device)? })
    }

    /// Pictures to the latents that the denoiser is trained on: (B, 16, h, w).
    ///
    /// # Errors
    /// Where the pictures differ in size, or the codec does not take it.
    pub fn encode(&self, pictures: &[Image]) -> Result<Tensor> {
        self.codec.encode(&picture_tensor(pictures, &self.prior.device)?)
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
    let config: latent_codec::Config = read_config(&path.with_file_name("config.json"))?;
    LatentCodec::new(&config, Weights::open(path)?.builder(DType::F32, device))
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
    data.chunks_exact(3 * height * width)
        .enumerate()
        .map(|(index, picture)| {
            // As a byte, what is no number would be a black pixel like any other.
            if let Some(value) = picture.iter().find(|value| !value.is_finite()) {
                let what = "a decoded pixel".to_owned();
                return Err(Error::NonFinite {
                    what,
                    value: (*value).into(),
                    place: format!("image {index}"),
                });
            }
            let bytes = picture.iter().map(|v| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8).collect();
            Ok(Image::new(width, height, bytes))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_that_is_no_number_is_refused() {
        let decode = |data: Vec<f32>| pictures(&Tensor::from_vec(data, (2, 1, 1, 3), &Device::Cpu).unwrap());
        let shown = decode(vec![-1.0, 0.0, 1.0, -7.0, 0.5, 7.0]).unwrap();
        assert_eq!((shown[0].rgb(), shown[1].rgb()), (&[0, 128, 255][..], &[0, 191, 255][..]));
        let message = decode(vec![0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0]).unwrap_err().to_string();
        assert!(message.contains("not finite") && message.contains("image 1"), "{message}");
    }
}
