//! Stability's previewer: a small network from Stage C's latents straight to pictures, for cheap looks.
//!
//! Keys are those of `previewer.safetensors`. Its pictures have eight pixels along a side for each latent position, where
//! Stages B and A make forty-two. Used frozen, in inference only.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::error::Result;
use crate::nn::{self, BatchNorm, Convolution, TensorResult, TransposedConvolution};

/// The numbers of a previewer. Its checkpoint comes without any config, so [`Config::of`] reads them off the shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Width of the coarsest level; halved twice on the way.
    pub hidden: usize,
    /// Channels of the pictures.
    pub out_channels: usize,
}

impl Config {
    /// The previewer of the published weights.
    ///
    /// # Source
    /// `Stability-AI/StableCascade`, `modules/previewer.py`.
    pub const fn stable_cascade() -> Self {
        Self { in_channels: 16, hidden: 512, out_channels: 3 }
    }

    /// The numbers of a checkpoint whose tensors have these shapes; `None` where it is no previewer.
    pub fn of(shape: impl Fn(&str) -> Option<Vec<usize>>) -> Option<Self> {
        let first = shape("blocks.0.weight")?;
        let last = shape(&format!("blocks.{}.weight", 3 * LAYERS.len()))?;
        match (&first[..], &last[..]) {
            ([hidden, inputs, ..], [outputs, ..]) => {
                Some(Self { in_channels: *inputs, hidden: *hidden, out_channels: *outputs })
            }
            _ => None,
        }
    }
}

/// A layer before its GELU and normalisation.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Pointwise,
    Dense,
    /// Twice the resolution.
    Finer,
}

/// Each layer with what the coarsest level's width is divided by in it.
const LAYERS: [(Kind, usize); 8] = [
    (Kind::Pointwise, 1),
    (Kind::Dense, 1),
    (Kind::Finer, 2),
    (Kind::Dense, 2),
    (Kind::Finer, 4),
    (Kind::Dense, 4),
    (Kind::Finer, 4),
    (Kind::Dense, 4),
];

#[derive(Debug, Clone)]
enum Layer {
    Same(Convolution),
    Finer(TransposedConvolution),
}

/// The previewer; see the module.
#[derive(Debug, Clone)]
pub struct Previewer {
    layers: Vec<(Layer, BatchNorm)>,
    head: Convolution,
}

impl Previewer {
    /// Builds the previewer from a checkpoint's tensors.
    ///
    /// # Errors
    /// Where a tensor is missing or misshapen.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("blocks");
        let mut from = config.in_channels;
        let mut layers = Vec::with_capacity(LAYERS.len());
        for (i, (kind, divisor)) in LAYERS.into_iter().enumerate() {
            let to = config.hidden / divisor;
            // Layer, GELU, normalisation: three numbers each.
            let (own, norm) = (vb.pp(3 * i), vb.pp(3 * i + 2));
            let bias = own.get(to, "bias")?;
            let layer = match kind {
                Kind::Pointwise => {
                    Layer::Same(Convolution::new(&own.get((to, from, 1, 1), "weight")?, Some(bias), 1, 0)?)
                }
                Kind::Dense => {
                    Layer::Same(Convolution::new(&own.get((to, from, 3, 3), "weight")?, Some(bias), 1, 1)?)
                }
                Kind::Finer => {
                    let weight = own.get((from, to, 2, 2), "weight")?;
                    Layer::Finer(TransposedConvolution::new(&weight, bias, 2, 0)?)
                }
            };
            layers.push((layer, BatchNorm::new(to, true, 1e-5, norm)?));
            from = to;
        }
        let head = vb.pp(3 * LAYERS.len());
        let weight = head.get((config.out_channels, from, 1, 1), "weight")?;
        let head = Convolution::new(&weight, Some(head.get(config.out_channels, "bias")?), 1, 0)?;
        Ok(Self { layers, head })
    }

    /// Latents to pictures.
    ///
    /// # Shapes
    /// (B, 16, h, w) to (B, 3, 8h, 8w), about [0, 1].
    ///
    /// # Errors
    /// Where the latents have another number of channels.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let xs = latents.permute((0, 2, 3, 1))?.contiguous()?;
        let xs = self.layers.iter().try_fold(xs, |xs, (layer, norm)| -> TensorResult {
            let ys = match layer {
                Layer::Same(convolution) => convolution.forward(&xs)?,
                Layer::Finer(convolution) => convolution.forward(&xs)?,
            };
            norm.forward(&nn::gelu_erf(&ys)?)
        })?;
        Ok(self.head.forward(&xs)?.permute((0, 3, 1, 2))?.contiguous()?)
    }
}
