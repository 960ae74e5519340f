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
    /// Width of each decoder level, where it is another than the encoder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder_widths: Option<Vec<usize>>,
}

impl Config {
    /// Pixels across for each latent position.
    pub fn factor(&self) -> usize {
        1 << self.widths.len()
    }

    fn decoder_widths(&self) -> &[usize] {
        self.decoder_widths.as_ref().unwrap_or(&self.widths)
    }

    /// Residual blocks in all; deeper networks start their blocks smaller.
    fn depth(&self) -> usize {
        self.encoder_blocks.iter().chain(&self.decoder_blocks).sum()
    }

    fn blocks(&self, count: usize, width: usize, vb: VarBuilder) -> TensorResult<Vec<ResBlock>> {
        (0..count).map(|i| ResBlock::new(width, 0, self.depth(), vb.pp(i))).collect()
    }
}

#[derive(Debug, Clone)]
struct Level {
    resample: Linear,
    blocks: Vec<ResBlock>,
}

impl Level {
    /// Its residual blocks in turn, (B, H, W, C) to the same.
    fn refine(&self, xs: &Tensor) -> TensorResult {
        let (_, height, width, _) = xs.dims4()?;
        let flat = xs.flatten(1, 2)?;
        let refined =
            self.blocks.iter().try_fold(flat, |xs, block| block.forward(&xs, (height, width), None))?;
        refined.reshape(xs.shape())
    }
}

/// The half that makes pictures; it can be trained anew under latents that stay as they are.
#[derive(Debug, Clone)]
pub struct Decoder {
    from_latents: Linear,
    levels: Vec<Level>,
}

impl Decoder {
    /// Builds the decoder of a codec from the codec's tensors, or from variables.
    ///
    /// # Errors
    /// Where a tensor is missing or misshapen.
    pub fn new(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let widths = config.decoder_widths();
        let mut levels = Vec::with_capacity(widths.len());
        for (level, &width) in widths.iter().enumerate() {
            let finer = if level == 0 { 3 } else { widths[level - 1] };
            let vb = vb.pp(format!("{DECODER}{level}"));
            levels.push(Level {
                resample: Linear::new(width, 4 * finer, fan_in(width), vb.pp("resample"))?,
                blocks: config.blocks(config.decoder_blocks[level], width, vb.pp("blocks"))?,
            });
        }
        let (channels, inner) = (config.latent_channels, widths[widths.len() - 1]);
        let from_latents = Linear::new(channels, inner, fan_in(channels), vb.pp(FROM_LATENTS))?;
        Ok(Self { from_latents, levels })
    }

    /// Whether a tensor of the codec belongs to its decoder.
    pub fn owns(name: &str) -> bool {
        name.starts_with(DECODER) || name.starts_with(FROM_LATENTS)
    }

    /// Normalised latents, channels last, to pictures.
    ///
    /// # Shapes
    /// (B, h, w, latent channels) to (B, h·f, w·f, 3), about [−1, 1].
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut xs = self.from_latents.forward(latents)?;
        for level in self.levels.iter().rev() {
            xs = nn::depth_to_space(&level.resample.forward(&norm(&level.refine(&xs)?)?)?, 2)?;
        }
        Ok(xs)
    }
}

const DECODER: &str = "decoder.";
const FROM_LATENTS: &str = "from_latents";

/// Encoder and decoder; see the module.
#[derive(Debug, Clone)]
pub struct LatentCodec {
    config: Config,
    encoder: Vec<Level>,
    to_latents: Linear,
    decoder: Decoder,
    mean: Tensor,
    std: Tensor,
}

impl LatentCodec {
    /// Builds the codec from its file's tensors, or from variables.
    ///
    /// # Errors
    /// Where a tensor is missing or misshapen.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let mut encoder = Vec::with_capacity(config.widths.len());
        for (level, &width) in config.widths.iter().enumerate() {
            let finer = if level == 0 { 3 } else { config.widths[level - 1] };
            let vb = vb.pp(format!("encoder.{level}"));
            encoder.push(Level {
                resample: Linear::new(4 * finer, width, fan_in(4 * finer), vb.pp("resample"))?,
                blocks: config.blocks(config.encoder_blocks[level], width, vb.pp("blocks"))?,
            });
        }
        let (inner, channels) = (config.widths[config.widths.len() - 1], config.latent_channels);
        Ok(Self {
            to_latents: Linear::new(inner, channels, fan_in(inner), vb.pp("to_latents"))?,
            decoder: Decoder::new(config, &vb)?,
            mean: vb.get_with_hints(channels, "latents.running_mean", Init::Const(0.0))?.detach(),
            std: vb.get_with_hints(channels, "latents.running_std", Init::Const(1.0))?.detach(),
            config: config.clone(),
            encoder,
        })
    }

    /// Its decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
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
            xs = level.refine(&level.resample.forward(&nn::space_to_depth(&xs, 2)?)?)?;
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

    /// Normalised latents to pictures.
    ///
    /// # Shapes
    /// (B, latent channels, h, w) to (B, h·f, w·f, 3), about [−1, 1].
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&latents.permute((0, 2, 3, 1))?.contiguous()?)
    }
}
