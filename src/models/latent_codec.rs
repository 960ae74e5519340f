//! The desk profile's image codec: 64×64 pictures to 16-channel 8×8 latents and back.
//!
//! It stands where Stable Cascade has its EfficientNet encoder (whose last layer, too, is a batch normalisation
//! without affine part over 16 channels) and Stages B and A (decoder). Both halves are residual blocks of Stage C's
//! kind between rearrangements of pixels. Trained by `ppd pretrain codec`; nothing of it is Stable Cascade's own.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use super::blocks::{Linear, ResBlock, fan_in, norm};
use crate::error::Result;
use crate::nn::{self, TensorResult};

/// The numbers of a codec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each level, finest first; each level halves the resolution.
    pub widths: Vec<usize>,
    /// Residual blocks of each encoder level.
    pub encoder_blocks: Vec<usize>,
    /// Residual blocks of each decoder level, finest first as well.
    pub decoder_blocks: Vec<usize>,
}

impl Config {
    /// Pixels across for each latent position.
    pub fn factor(&self) -> usize {
        1 << self.widths.len()
    }
}

#[derive(Debug, Clone)]
struct Level {
    resample: Linear,
    blocks: Vec<ResBlock>,
}

/// Encoder and decoder; see the module.
#[derive(Debug, Clone)]
pub struct LatentCodec {
    config: Config,
    encoder: Vec<Level>,
    to_latents: Linear,
    from_latents: Linear,
    decoder: Vec<Level>,
    mean: Tensor,
    std: Tensor,
}

impl LatentCodec {
    /// Builds the codec from its file's tensors, or from variables.
    ///
    /// # Errors
    /// Where a tensor is missing or misshapen.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let levels = config.widths.len();
        let depth = config.encoder_blocks.iter().chain(&config.decoder_blocks).sum();
        let blocks = |count: usize, width: usize, vb: VarBuilder| {
            (0..count).map(|i| ResBlock::new(width, 0, depth, vb.pp(i))).collect::<TensorResult<Vec<_>>>()
        };
        let mut encoder = Vec::with_capacity(levels);
        let mut decoder = Vec::with_capacity(levels);
        for level in 0..levels {
            let width = config.widths[level];
            let finer = if level == 0 { 3 } else { config.widths[level - 1] };
            let (down, up) = (vb.pp(format!("encoder.{level}")), vb.pp(format!("decoder.{level}")));
            encoder.push(Level {
                resample: Linear::new(4 * finer, width, fan_in(4 * finer), down.pp("resample"))?,
                blocks: blocks(config.encoder_blocks[level], width, down.pp("blocks"))?,
            });
            decoder.push(Level {
                resample: Linear::new(width, 4 * finer, fan_in(width), up.pp("resample"))?,
                blocks: blocks(config.decoder_blocks[level], width, up.pp("blocks"))?,
            });
        }
        let (inner, channels) = (config.widths[levels - 1], config.latent_channels);
        Ok(Self {
            to_latents: Linear::new(inner, channels, fan_in(inner), vb.pp("to_latents"))?,
            from_latents: Linear::new(channels, inner, fan_in(channels), vb.pp("from_latents"))?,
            mean: vb.get_with_hints(channels, "latents.running_mean", Init::Const(0.0))?.detach(),
            std: vb.get_with_hints(channels, "latents.running_std", Init::Const(1.0))?.detach(),
            config: config.clone(),
            encoder,
            decoder,
        })
    }

    /// The codec's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Pictures to latents before normalisation.
    ///
    /// # Shapes
    /// (B, H, W, 3) in [−1, 1] to (B, H/f, W/f, latent channels).
    ///
    /// # Errors
    /// Where the sides do not divide by the factor.
    pub fn encode_raw(&self, pictures: &Tensor) -> Result<Tensor> {
        let mut xs = pictures.clone();
        for level in &self.encoder {
            xs = level.resample.forward(&nn::space_to_depth(&xs, 2)?)?;
            for block in &level.blocks {
                xs = block.forward(&xs, None)?;
            }
        }
        Ok(self.to_latents.forward(&norm(&xs)?)?)
    }

    /// Pictures to normalised latents, channels first as denoisers take them.
    ///
    /// # Shapes
    /// (B, H, W, 3) in [−1, 1] to (B, latent channels, H/f, W/f).
    ///
    /// # Errors
    /// Where the sides do not divide by the factor.
    pub fn encode(&self, pictures: &Tensor) -> Result<Tensor> {
        let raw = self.encode_raw(pictures)?;
        let latents = raw.broadcast_sub(&self.mean)?.broadcast_div(&self.std)?;
        Ok(latents.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// Normalised latents, channels last, to pictures.
    ///
    /// # Shapes
    /// (B, h, w, latent channels) to (B, h·f, w·f, 3), about [−1, 1].
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn decode_channels_last(&self, latents: &Tensor) -> Result<Tensor> {
        let mut xs = self.from_latents.forward(latents)?;
        for level in self.decoder.iter().rev() {
            for block in &level.blocks {
                xs = block.forward(&xs, None)?;
            }
            xs = nn::depth_to_space(&level.resample.forward(&norm(&xs)?)?, 2)?;
        }
        Ok(xs)
    }

    /// Normalised latents to pictures.
    ///
    /// # Shapes
    /// (B, latent channels, h, w) to (B, h·f, w·f, 3), about [−1, 1].
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_channels_last(&latents.permute((0, 2, 3, 1))?.contiguous()?)
    }
}
