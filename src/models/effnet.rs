//! Stable Cascade's encoder: EfficientNetV2-S and a linear map to sixteen channels, the latents that Stage C denoises.
//!
//! Keys are those of Stability's `effnet_encoder.safetensors`: torchvision's features under `backbone`, then `mapper`.
//! Every normalisation uses stored statistics and is folded into the convolution before it. Used frozen, in inference only.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::error::{Error, Result};
use crate::nn::{self, BatchNorm, Convolution, TensorResult};

/// The numbers of an encoder. Its checkpoint comes without any config, so [`Config::of`] reads them off the shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Width of the stem, then of each stage.
    pub channels: [usize; 7],
    /// Blocks of each stage.
    pub depth: [usize; 6],
    /// Width of the last layer before the map.
    pub last_channel: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
}

/// How the blocks of a stage are made.
struct Stage {
    /// Whether expansion and depthwise convolution are one dense convolution.
    fused: bool,
    /// How much wider than its input a block is inside.
    expand: usize,
    /// The stride of the stage's first block.
    stride: usize,
}

/// The stages of EfficientNetV2-S.
///
/// # Source
/// torchvision `efficientnet_v2_s`.
const STAGES: [Stage; 6] = [
    Stage { fused: true, expand: 1, stride: 1 },
    Stage { fused: true, expand: 4, stride: 2 },
    Stage { fused: true, expand: 4, stride: 2 },
    Stage { fused: false, expand: 4, stride: 2 },
    Stage { fused: false, expand: 6, stride: 1 },
    Stage { fused: false, expand: 6, stride: 2 },
];

/// The epsilon of the backbone's normalisations, and of the map's.
const BACKBONE_EPSILON: f64 = 1e-3;
const MAPPER_EPSILON: f64 = 1e-5;

/// The mean and standard deviation of ImageNet's channels, by which pictures in [0, 1] are normalised.
pub const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// Pixels along a side for each latent position, rounded up.
pub const FACTOR: usize = 32;

impl Config {
    /// The encoder of the published weights.
    pub const fn stable_cascade() -> Self {
        Self {
            channels: [24, 24, 48, 64, 128, 160, 256],
            depth: [2, 4, 4, 6, 9, 15],
            last_channel: 1280,
            latent_channels: 16,
        }
    }

    /// The numbers of a checkpoint whose tensors have these shapes; `None` where it is no encoder.
    pub fn of(shape: impl Fn(&str) -> Option<Vec<usize>>) -> Option<Self> {
        let rows = |name: &str| shape(name).and_then(|shape| shape.first().copied());
        let mut config = Self::stable_cascade();
        config.channels[0] = rows("backbone.0.0.weight")?;
        for (i, stage) in STAGES.iter().enumerate() {
            let block = |index: usize| format!("backbone.{}.{index}.block", i + 1);
            let projection = match (stage.fused, stage.expand) {
                (true, 1) => "0.0.weight",
                (true, _) => "1.0.weight",
                (false, _) => "3.0.weight",
            };
            config.channels[i + 1] = rows(&format!("{}.{projection}", block(0)))?;
            config.depth[i] =
                (0..).take_while(|&j| rows(&format!("{}.0.0.weight", block(j))).is_some()).count();
        }
        config.last_channel = rows("backbone.7.0.weight")?;
        config.latent_channels = rows("mapper.0.weight")?;
        Some(config)
    }
}

/// A dense convolution with its normalisation, then SiLU where it is active.
#[derive(Debug, Clone)]
struct Dense {
    convolution: Convolution,
    active: bool,
}

impl Dense {
    fn new(
        (from, to): (usize, usize),
        kernel: usize,
        stride: usize,
        active: bool,
        vb: VarBuilder,
    ) -> TensorResult<Self> {
        let weight = vb.get((to, from, kernel, kernel), "0.weight")?;
        let folded = BatchNorm::new(to, true, BACKBONE_EPSILON, vb.pp(1))?.after(&weight)?;
        Ok(Self { convolution: folded.convolution(stride, kernel / 2)?, active })
    }

    fn forward(&self, xs: &Tensor) -> TensorResult {
        let ys = self.convolution.forward(xs)?;
        if self.active { nn::silu(&ys) } else { Ok(ys) }
    }
}

/// A depthwise 3×3 convolution with its normalisation and SiLU, then each channel weighed by all channels' means.
#[derive(Debug, Clone)]
struct Excited {
    depthwise: nn::Folded,
    stride: usize,
    squeeze: Convolution,
    excite: Convolution,
}

impl Excited {
    fn new(width: usize, squeezed: usize, stride: usize, vb: VarBuilder) -> TensorResult<Self> {
        let weight = vb.get((width, 1, 3, 3), "1.0.weight")?;
        let pointwise = |from: usize, to: usize, name: &str| {
            let vb = vb.pp("2").pp(name);
            Convolution::new(&vb.get((to, from, 1, 1), "weight")?, Some(vb.get(to, "bias")?), 1, 0)
        };
        Ok(Self {
            depthwise: BatchNorm::new(width, true, BACKBONE_EPSILON, vb.pp("1.1"))?.after(&weight)?,
            stride,
            squeeze: pointwise(width, squeezed, "fc1")?,
            excite: pointwise(squeezed, width, "fc2")?,
        })
    }

    /// (B, H, W, C) to (B, ⌈H/stride⌉, ⌈W/stride⌉, C).
    fn forward(&self, xs: &Tensor) -> TensorResult {
        let (batch, height, width, channels) = xs.dims4()?;
        let nn::Folded { weight, bias } = &self.depthwise;
        let ys = nn::depthwise_conv3x3(&xs.flatten(1, 2)?, (height, width), weight, bias)?;
        let mut ys = ys.reshape((batch, height, width, channels))?;
        if self.stride > 1 {
            // What lies between is computed and left out: two blocks of forty have a stride.
            for (dim, count) in [(1, height), (2, width)] {
                let index: Vec<u32> = (0..count as u32).step_by(self.stride).collect();
                ys = ys.index_select(&Tensor::new(index, xs.device())?, dim)?;
            }
        }
        let ys = nn::silu(&ys)?;
        let means = ys.mean_keepdim((1, 2))?; // (B, 1, 1, C)
        let weights = self.excite.forward(&nn::silu(&self.squeeze.forward(&means)?)?)?;
        let weights = (weights.neg()?.exp()? + 1.0)?.recip()?;
        ys.broadcast_mul(&weights)
    }
}

/// A block: what widens, what excites where the block has it, what narrows where it was widened; around all of it a way past, where
/// the shape stays.
#[derive(Debug, Clone)]
struct Block {
    first: Dense,
    excited: Option<Excited>,
    last: Option<Dense>,
    passes: bool,
}

impl Block {
    fn new(stage: &Stage, (from, to): (usize, usize), stride: usize, vb: VarBuilder) -> TensorResult<Self> {
        let inside = from * stage.expand;
        let passes = stride == 1 && from == to;
        if !stage.fused {
            return Ok(Self {
                first: Dense::new((from, inside), 1, 1, true, vb.pp(0))?,
                excited: Some(Excited::new(inside, (from / 4).max(1), stride, vb.clone())?),
                last: Some(Dense::new((inside, to), 1, 1, false, vb.pp(3))?),
                passes,
            });
        }
        let widened = stage.expand > 1;
        Ok(Self {
            first: Dense::new((from, if widened { inside } else { to }), 3, stride, true, vb.pp(0))?,
            excited: None,
            last: widened.then(|| Dense::new((inside, to), 1, 1, false, vb.pp(1))).transpose()?,
            passes,
        })
    }

    fn forward(&self, xs: &Tensor) -> TensorResult {
        let mut ys = self.first.forward(xs)?;
        if let Some(excited) = &self.excited {
            ys = excited.forward(&ys)?;
        }
        if let Some(last) = &self.last {
            ys = last.forward(&ys)?;
        }
        if self.passes { ys + xs } else { Ok(ys) }
    }
}

/// The encoder; see the module.
#[derive(Debug, Clone)]
pub struct EffnetEncoder {
    stem: Dense,
    stages: Vec<Vec<Block>>,
    last: Dense,
    mapper: Convolution,
}

impl EffnetEncoder {
    /// Builds the encoder from a checkpoint's tensors.
    ///
    /// # Errors
    /// Where a tensor is missing or misshapen.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let Config { channels, depth, last_channel, latent_channels } = *config;
        let backbone = vb.pp("backbone");
        let mut stages = Vec::with_capacity(STAGES.len());
        for (i, stage) in STAGES.iter().enumerate() {
            let blocks = (0..depth[i]).map(|j| {
                let (from, stride) = if j == 0 { (channels[i], stage.stride) } else { (channels[i + 1], 1) };
                let vb = backbone.pp(i + 1).pp(j).pp("block");
                Block::new(stage, (from, channels[i + 1]), stride, vb)
            });
            stages.push(blocks.collect::<TensorResult<_>>()?);
        }
        let weight = vb.get((latent_channels, last_channel, 1, 1), "mapper.0.weight")?;
        let mapper = BatchNorm::new(latent_channels, false, MAPPER_EPSILON, vb.pp("mapper.1"))?;
        Ok(Self {
            stem: Dense::new((3, channels[0]), 3, 2, true, backbone.pp(0))?,
            stages,
            last: Dense::new((channels[6], last_channel), 1, 1, true, backbone.pp(7))?,
            mapper: mapper.after(&weight)?.convolution(1, 0)?,
        })
    }

    /// Pictures to latents.
    ///
    /// # Shapes
    /// (B, H, W, 3), in [0, 1] normalised by [`IMAGENET`], to (B, 16, ⌈H/32⌉, ⌈W/32⌉).
    ///
    /// # Errors
    /// Where the pictures have other channels or no pixels.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let (_, height, width, channels) = pictures.dims4()?;
        if channels != 3 || height == 0 || width == 0 {
            return Err(Error::Shape(format!(
                "pictures of {height}×{width} with {channels} channels, expected three channels and a pixel at least"
            )));
        }
        let mut xs = self.stem.forward(pictures)?;
        for block in self.stages.iter().flatten() {
            xs = block.forward(&xs)?;
        }
        let latents = self.mapper.forward(&self.last.forward(&xs)?)?;
        Ok(latents.permute((0, 3, 1, 2))?.contiguous()?)
    }
}
