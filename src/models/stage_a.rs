//! Stable Cascade's Stage A: the autoencoder between pictures and the four-channel latents that Stage B makes.
//!
//! Paella's quantising autoencoder, whose codebook Stable Cascade does not use: latents go into the decoder as they are.
//! Keys are those of diffusers' `PaellaVQModel`, which are also those of Stability's `stage_a.safetensors` but for the
//! codebook's name. Used frozen, in inference only.

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use super::blocks::{Linear, fan_in, norm, pixel_shuffle_to_nchw, pixel_unshuffle_to_nhwc};
use crate::error::{Error, Result};
use crate::nn::{self, TensorResult};

/// The numbers of a Stage A, named as in the checkpoint's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Channels of the pictures that are encoded.
    pub in_channels: usize,
    /// Channels of the pictures that are decoded.
    pub out_channels: usize,
    /// Side of the patches that pictures are gathered into.
    pub up_down_scale_factor: usize,
    /// Levels of resolution.
    pub levels: usize,
    /// Blocks of the decoder's coarsest level; every other level has one.
    pub bottleneck_blocks: usize,
    /// Width of the coarsest level; each finer one has half the width of the next.
    pub embed_dim: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Vectors of the codebook.
    pub num_vq_embeddings: usize,
    /// What Stage B's latents are multiplied by before they are decoded.
    pub scale_factor: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self::stable_cascade()
    }
}

impl Config {
    /// The numbers in diffusers' repository, which are its class's defaults.
    ///
    /// # Source
    /// `stabilityai/stable-cascade`, `vqgan/config.json`; diffusers `PaellaVQModel`.
    pub const fn stable_cascade() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            up_down_scale_factor: 2,
            levels: 2,
            bottleneck_blocks: 12,
            embed_dim: 384,
            latent_channels: 4,
            num_vq_embeddings: 8192,
            scale_factor: 0.3764,
        }
    }

    /// The numbers that Stability's own code uses with `stage_a.safetensors`: another scale factor.
    ///
    /// # Source
    /// `Stability-AI/StableCascade`, `modules/stage_a.py`.
    pub const fn stability() -> Self {
        Self { scale_factor: 0.43, ..Self::stable_cascade() }
    }

    /// As [`Config::stability`], with the sizes of a checkpoint whose tensors have these shapes: its files come without a
    /// config. `None` where it is no Stage A.
    pub fn of_stability(shape: impl Fn(&str) -> Option<Vec<usize>>) -> Option<Self> {
        let first = shape("up_blocks.0.0.weight")?;
        let [embed_dim, latent_channels, ..] = first[..] else { return None };
        let codebook = CODEBOOKS.iter().find_map(|name| shape(&format!("{name}.weight")));
        let block = |index: usize| shape(&format!("up_blocks.{}.gammas", index + 1)).is_some();
        Some(Self {
            embed_dim,
            latent_channels,
            num_vq_embeddings: codebook.and_then(|shape| shape.first().copied()).unwrap_or(0),
            bottleneck_blocks: (0..).take_while(|&index| block(index)).count(),
            ..Self::stability()
        })
    }

    /// Pixels along a side for each latent position.
    pub fn factor(&self) -> usize {
        self.up_down_scale_factor << (self.levels - 1)
    }

    /// Width of each level, finest first.
    fn widths(&self) -> Vec<usize> {
        (0..self.levels).rev().map(|i| self.embed_dim >> i).collect()
    }

    fn check(&self) -> Result<()> {
        let sizes = [
            ("levels", self.levels),
            ("up_down_scale_factor", self.up_down_scale_factor),
            ("latent_channels", self.latent_channels),
            ("embed_dim", self.embed_dim >> self.levels.saturating_sub(1)),
        ];
        match sizes.iter().find(|(_, size)| *size == 0) {
            Some((name, _)) => {
                Err(Error::Spec(format!("Stage A config: {name} is too small for its levels")))
            }
            None => Ok(()),
        }
    }
}

/// What the codebook is called: by diffusers, and by Stability.
const CODEBOOKS: [&str; 2] = ["vquantizer.embedding", "vquantizer.codebook"];

/// The most numbers of an MLP's middle that are held at once.
const WIDENED: usize = 1 << 24;

/// A residual block: a depthwise convolution whose border pixels are repeated outward, then an MLP, each modulated.
#[derive(Debug, Clone)]
struct MixingBlock {
    depthwise: (Tensor, Tensor),
    expand: Linear,
    contract: Linear,
    gammas: [f64; 6],
}

impl MixingBlock {
    fn new(width: usize, vb: VarBuilder) -> TensorResult<Self> {
        let hidden = 4 * width;
        let depthwise = vb.pp("depthwise.1");
        let gammas =
            vb.get_with_hints(6, "gammas", Init::Const(0.0))?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Ok(Self {
            depthwise: (
                depthwise.get_with_hints((width, 1, 3, 3), "weight", fan_in(9))?,
                depthwise.get_with_hints(width, "bias", Init::Const(0.0))?,
            ),
            expand: Linear::new(width, hidden, fan_in(width), vb.pp("channelwise.0"))?,
            contract: Linear::new(hidden, width, fan_in(hidden), vb.pp("channelwise.2"))?,
            gammas: std::array::from_fn(|i| f64::from(gammas[i])),
        })
    }

    /// (B, H, W, C) to the same.
    fn forward(&self, xs: &Tensor) -> TensorResult {
        let g = &self.gammas;
        let ys = norm(xs)?.affine(1.0 + g[0], g[1])?;
        let xs = (xs + (self.convolve(&ys)? * g[2])?)?;
        let ys = norm(&xs)?.affine(1.0 + g[3], g[4])?;
        &xs + (self.channelwise(&ys)? * g[5])?
    }

    /// The MLP, a band of rows at a time: what it widens to stays small whatever the picture's size.
    fn channelwise(&self, xs: &Tensor) -> TensorResult {
        let (batch, height, width, channels) = xs.dims4()?;
        let rows = (WIDENED / (4 * batch * width * channels).max(1)).clamp(1, height.max(1));
        let bands = (0..height).step_by(rows).map(|first| {
            let band = xs.narrow(1, first, rows.min(height - first))?;
            self.contract.forward(&nn::gelu_erf(&self.expand.forward(&band)?)?)
        });
        Tensor::cat(&bands.collect::<TensorResult<Vec<_>>>()?, 1)
    }

    fn convolve(&self, xs: &Tensor) -> TensorResult {
        let (batch, height, width, channels) = xs.dims4()?;
        let (tall, wide) = (height + 2, width + 2);
        let padded = xs.pad_with_same(1, 1, 1)?.pad_with_same(2, 1, 1)?;
        let flat = padded.reshape((batch, tall * wide, channels))?; // (B, N, C)
        let (weight, bias) = &self.depthwise;
        nn::depthwise_conv3x3(&flat, (tall, wide), weight, bias)?
            .reshape((batch, tall, wide, channels))?
            .narrow(1, 1, height)?
            .narrow(2, 1, width)?
            .contiguous()
    }
}

/// One step of either half, in the order of the checkpoint's numbers.
#[derive(Debug, Clone)]
enum Step {
    Block(MixingBlock),
    Finer(nn::TransposedConvolution),
    Coarser(nn::Convolution),
}

impl Step {
    fn forward(&self, xs: &Tensor) -> TensorResult {
        match self {
            Self::Block(block) => block.forward(xs),
            Self::Finer(convolution) => convolution.forward(xs),
            Self::Coarser(convolution) => convolution.forward(xs),
        }
    }
}

/// The autoencoder; see the module.
#[derive(Debug, Clone)]
pub struct StageA {
    config: Config,
    in_block: Linear,
    down: Vec<Step>,
    to_latents: nn::Convolution,
    codebook: Option<Tensor>,
    from_latents: Linear,
    up: Vec<Step>,
    out_block: Linear,
}

/// Kernel, stride and padding between levels.
const BETWEEN_LEVELS: (usize, usize, usize) = (4, 2, 1);

impl StageA {
    /// Builds the autoencoder from a checkpoint's tensors.
    ///
    /// # Errors
    /// [`Error::Spec`] for a config without levels, [`Error::Weights`] for its tensors.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let widths = config.widths();
        let (finest, coarsest) = (widths[0], widths[config.levels - 1]);
        let patch = config.up_down_scale_factor * config.up_down_scale_factor;
        let (kernel, stride, padding) = BETWEEN_LEVELS;
        let pointwise = |from, to, name: String| Linear::pointwise(from, to, fan_in(from), vb.pp(name));

        let mut down = Vec::new();
        for (level, &width) in widths.iter().enumerate() {
            if level > 0 {
                let vb = vb.pp(format!("down_blocks.{}", down.len()));
                let weight = vb.get((width, widths[level - 1], kernel, kernel), "weight")?;
                let bias = vb.get(width, "bias")?;
                down.push(Step::Coarser(nn::Convolution::new(&weight, Some(bias), stride, padding)?));
            }
            let block = MixingBlock::new(width, vb.pp(format!("down_blocks.{}", down.len())))?;
            down.push(Step::Block(block));
        }
        let mut up = Vec::new();
        for (i, &width) in widths.iter().rev().enumerate() {
            for _ in 0..if i == 0 { config.bottleneck_blocks } else { 1 } {
                up.push(Step::Block(MixingBlock::new(width, vb.pp(format!("up_blocks.{}", up.len() + 1)))?));
            }
            if i + 1 < config.levels {
                let vb = vb.pp(format!("up_blocks.{}", up.len() + 1));
                let finer = widths[config.levels - 2 - i];
                let weight = vb.get((width, finer, kernel, kernel), "weight")?;
                let bias = vb.get(finer, "bias")?;
                up.push(Step::Finer(nn::TransposedConvolution::new(&weight, bias, stride, padding)?));
            }
        }
        let codebook = CODEBOOKS
            .into_iter()
            .find(|name| vb.contains_tensor(&format!("{name}.weight")))
            .map(|name| vb.pp(name).get((config.num_vq_embeddings, config.latent_channels), "weight"))
            .transpose()?;
        let last = vb.pp(format!("down_blocks.{}", down.len()));
        let weight = last.get((config.latent_channels, coarsest, 1, 1), "0.weight")?;
        let normalised = nn::BatchNorm::new(config.latent_channels, true, 1e-5, last.pp(1))?;
        Ok(Self {
            in_block: pointwise(config.in_channels * patch, finest, "in_block.1".into())?,
            to_latents: normalised.after(&weight)?.convolution(1, 0)?,
            down,
            codebook,
            from_latents: pointwise(config.latent_channels, coarsest, "up_blocks.0.0".into())?,
            up,
            out_block: pointwise(finest, config.out_channels * patch, "out_block.0".into())?,
            config: config.clone(),
        })
    }

    /// The autoencoder's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Pictures to latents, not yet divided by the scale factor.
    ///
    /// # Shapes
    /// (B, 3, H, W) in [0, 1] to (B, 4, H/f, W/f), in the pictures' own precision.
    ///
    /// # Errors
    /// Where a side is no multiple of the factor.
    pub fn encode(&self, pictures: &Tensor) -> Result<Tensor> {
        let xs = self.cast(pictures)?;
        let xs = self.in_block.forward(&pixel_unshuffle_to_nhwc(&xs, self.config.up_down_scale_factor)?)?;
        let xs = self.down.iter().try_fold(xs, |xs, step| step.forward(&xs))?;
        let latents = self.to_latents.forward(&xs)?.permute((0, 3, 1, 2))?;
        Ok(latents.contiguous()?.to_dtype(pictures.dtype())?)
    }

    /// Latents, already multiplied by the scale factor, to pictures.
    ///
    /// # Shapes
    /// (B, 4, h, w) to (B, 3, h·f, w·f), about [0, 1], in the latents' own precision.
    ///
    /// # Errors
    /// Where the latents have another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let xs = self.cast(latents)?.permute((0, 2, 3, 1))?.contiguous()?;
        let xs = self.from_latents.forward(&xs)?;
        let xs = self.up.iter().try_fold(xs, |xs, step| step.forward(&xs))?;
        let xs = self.out_block.forward(&xs)?;
        Ok(pixel_shuffle_to_nchw(&xs, self.config.up_down_scale_factor)?.to_dtype(latents.dtype())?)
    }

    /// Each latent position's nearest vector of the codebook in its place.
    ///
    /// # Shapes
    /// (B, 4, h, w) to the same.
    ///
    /// # Errors
    /// [`Error::Spec`] where the checkpoint came without a codebook.
    pub fn quantize(&self, latents: &Tensor) -> Result<Tensor> {
        let Some(codebook) = &self.codebook else {
            return Err(Error::Spec(
                "these weights of Stage A have no codebook to quantize latents with".into(),
            ));
        };
        let (batch, channels, height, width) = latents.dims4()?;
        let rows = latents.permute((0, 2, 3, 1))?.contiguous()?;
        let rows = rows.reshape(((), channels))?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let vectors = codebook.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let distance = |row: &[f32], vector: &[f32]| -> f32 {
            row.iter().zip(vector).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        let nearest = rows.iter().map(|row| {
            let (mut best, mut least) = (0, f32::INFINITY);
            for (i, vector) in vectors.iter().enumerate() {
                let distance = distance(row, vector);
                if distance < least {
                    (best, least) = (i, distance);
                }
            }
            best as u32
        });
        let nearest = Tensor::from_vec(nearest.collect::<Vec<_>>(), rows.len(), codebook.device())?;
        let quantized = codebook.index_select(&nearest, 0)?.reshape((batch, height, width, channels))?;
        Ok(quantized.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(latents.dtype())?)
    }

    fn cast(&self, xs: &Tensor) -> TensorResult {
        xs.to_dtype(self.in_block.dtype())
    }
}
