//! A base model, opened from its files: the prior that is fine-tuned, and the image codec.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::adapter;
use crate::decoder::{self, Decoder, Decoding, Files};
use crate::encoder::Encoder;
use crate::error::{Error, Result};
use crate::models::latent_codec::{self, LatentCodec};
use crate::pixels::Image;
use crate::prior::{self, Prior, latent_side, read_config};
use crate::scenes::SIDE;
use crate::units::Seed;
use crate::weights::Weights;

mod room;

use self::room::Load;

/// A frozen base model, ready to sample from and to be fine-tuned.
pub struct Base {
    /// Captions and noise to latents.
    pub prior: Prior,
    /// Latents to pictures and back.
    pub codec: Codec,
}

/// Latents to pictures and back.
pub enum Codec {
    /// The desk's: one small autoencoder.
    Desk(LatentCodec),
    /// Stable Cascade's: one network encodes, and a diffusion model of its own decodes.
    Cascade(Box<Cascade>),
}

/// Stable Cascade's way from pictures to latents and back.
pub struct Cascade {
    /// From pictures.
    pub encoder: Encoder,
    /// To pictures.
    pub decoder: Decoder,
    /// Of which size.
    pub pictures: Pictures,
}

/// The sizes of pictures around Stable Cascade, and how latents are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pictures {
    /// Height and width of the images that are made, in pixels.
    pub side: usize,
    /// Height and width that training pictures are shrunk to before they are encoded.
    pub encoded_side: usize,
    /// How latents are decoded.
    #[serde(default)]
    pub decoding: Decoding,
}

/// Where the parts of Stable Cascade lie.
#[derive(Debug, Clone)]
pub struct CascadeFiles {
    /// The prior's repository, or one of Stability's files.
    pub prior: PathBuf,
    /// The decoder's repository; its text encoder is the prior's.
    pub decoder: PathBuf,
    /// `effnet_encoder.safetensors`.
    pub encoder: PathBuf,
}

impl Base {
    /// Opens the desk's denoiser, its text encoder (`text_encoder.safetensors` beside it) and a codec; each folder has
    /// its `config.json`. The denoiser computes in `dtype`, all else in single precision. Where an adapter is to be trained
    /// beside it, `trained` is the width of its tokens.
    ///
    /// # Errors
    /// Where a file is missing, damaged, or belongs to another config; before any is read, where the device has no room for
    /// all of it.
    pub fn open_desk(
        denoiser: &Path,
        codec: &Path,
        dtype: DType,
        device: &Device,
        trained: Option<usize>,
    ) -> Result<Self> {
        let ([weights, text], config) = prior::Files::desk(denoiser).load(true)?;
        let files = vec![
            ("the denoiser", weights, dtype),
            ("its text encoder", text, DType::F32),
            ("the codec", Weights::open(codec)?, DType::F32),
        ];
        let training = trained.map(|width| adapter::training_bytes(width, &config.attention_blocks()));
        Load { files, training }.check(device)?;
        let codec = Codec::Desk(open_codec(codec, device)?);
        Ok(Self { prior: Prior::open_desk(denoiser, dtype, device)?, codec })
    }

    /// Opens Stable Cascade. Both denoisers compute in `dtype`, all else in single precision. Where an adapter is to be
    /// trained beside it, `trained` is the width of its tokens.
    ///
    /// # Errors
    /// Where a file is missing, damaged, or belongs to another config; before any is read, where the device has no room for
    /// all of it.
    pub fn open_cascade(
        files: &CascadeFiles,
        pictures: Pictures,
        dtype: DType,
        device: &Device,
        trained: Option<usize>,
    ) -> Result<Self> {
        let decoder = Files::find_without_text(&files.decoder)?;
        let ([weights, text], config) = prior::Files::of_repository(&files.prior)?.load(false)?;
        let [stage_b, autoencoder] = decoder.weights()?;
        let load = vec![
            ("the prior", weights, dtype),
            ("its text encoder", text, DType::F32),
            (stage_b.0, stage_b.1, dtype),
            (autoencoder.0, autoencoder.1, DType::F32),
            ("the image encoder", Encoder::weights(&files.encoder)?, DType::F32),
        ];
        let training = trained.map(|width| adapter::training_bytes(width, &config.attention_blocks()));
        Load { files: load, training }.check(device)?;
        let encoder = Encoder::open(&files.encoder, device)?;
        let prior = Prior::open_repository(&files.prior, dtype, device)?;
        // Both stages are conditioned by one text encoder.
        let (text, tokenizer) = (prior.text.clone(), prior.tokenizer.clone());
        let decoder = decoder.open_with(text, tokenizer, dtype, device)?;
        Ok(Self { prior, codec: Codec::Cascade(Box::new(Cascade { encoder, decoder, pictures })) })
    }

    /// Height and width of the latents of the images that are made.
    pub fn latent_size(&self) -> (usize, usize) {
        let side = match &self.codec {
            Codec::Desk(codec) => SIDE / codec.config().factor(),
            Codec::Cascade(cascade) => latent_side(cascade.pictures.side),
        };
        (side, side)
    }

    /// Pictures to the latents that the denoiser is trained on: (B, 16, h, w).
    ///
    /// # Errors
    /// Where the desk's pictures differ in size, or the codec does not take them.
    pub fn encode(&self, pictures: &[Image]) -> Result<Tensor> {
        match &self.codec {
            Codec::Desk(codec) => codec.encode(&picture_tensor(pictures, &self.prior.device)?),
            Codec::Cascade(cascade) => cascade.encoder.encode(pictures, cascade.pictures.encoded_side),
        }
    }

    /// Latents to pictures; the decoder is told their prompts, and draws its noise from each one's (seed, index).
    ///
    /// # Errors
    /// Where the latents do not fit the codec.
    pub fn decode(&self, latents: &Tensor, prompts: &[String], seeds: &[(Seed, u64)]) -> Result<Vec<Image>> {
        match &self.codec {
            Codec::Desk(codec) => pictures(&codec.decode(latents)?),
            Codec::Cascade(cascade) => {
                let task = decoder::Task { embeddings: latents, prompts, negative: &[] };
                cascade.decoder.images(&task, &cascade.pictures.decoding, seeds, || Ok(()))
            }
        }
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
    #[test]
    fn room_is_asked_for_before_the_first_file_is_read() {
        let denoiser = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/desk/denoiser/prior.safetensors");
        let folder = tempfile::tempdir().unwrap();
        // A codec without tensors or config: whoever loads it first speaks of it.
        let codec = folder.path().join("codec.safetensors");
        std::fs::write(&codec, [&8u64.to_le_bytes()[..], b"{}      "].concat()).unwrap();
        let open = |trained| Base::open_desk(&denoiser, &codec, DType::F32, &Device::Cpu, trained);
        let message = |trained| open(trained).err().unwrap().to_string();
        assert!(
            message(None).contains("codec") || message(None).contains("config.json"),
            "{}",
            message(None)
        );
        if cfg!(target_os = "linux") {
            let message = message(Some(1 << 40));
            for part in ["prior.safetensors", "an adapter's training", "together", "are free"] {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
    }
}
