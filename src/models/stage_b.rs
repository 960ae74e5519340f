//! Stable Cascade's Stage B: the denoiser of the four-channel latents that Stage A turns into pictures, conditioned by
//! Stage C's latents.
//!
//! Stage C's blocks in a U-Net that does halve its resolution; on the way up each level's layers run several times, with a
//! linear map in between and the level's skip in every time. Keys of a checkpoint are diffusers' (`StableCascadeUNet`
//! with `switch_level` null); `layout::stability_stage_b` finds them in Stability's own files. Used frozen, in inference only.
//!
//! Deliberately absent: text tokens (Stage B gets the pooled embedding alone), the small picture that could condition it
//! (black in all uses), dropout.

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::blocks::{
    AttnBlock, Linear, ResBlock, TimestepBlock, fan_in, norm, pixel_shuffle_to_nchw, pixel_unshuffle_to_nhwc,
    timestep_embedding,
};
use crate::error::{Error, Result};
use crate::nn::{self, KeyValue, TensorResult};

mod config;

pub use config::{BlockType, Config};

/// (residual, timestep) or (residual, timestep, attention).
#[derive(Debug, Clone)]
struct Layer {
    residual: ResBlock,
    timestep: TimestepBlock,
    attention: Option<AttnBlock>,
}

/// The layers of one level on one side of the U-Net, and the maps between their repeats.
#[derive(Debug, Clone)]
struct Level {
    layers: Vec<Layer>,
    repeats: Vec<Linear>,
}

impl Level {
    /// All repeats of the layers; the first layer takes the skip each time.
    fn forward(
        &self,
        xs: Tensor,
        size: (usize, usize),
        skip: Option<&Tensor>,
        embeddings: &[Tensor],
        text: &[KeyValue],
    ) -> TensorResult {
        let mut xs = xs;
        for repeat in 0..=self.repeats.len() {
            for (i, layer) in self.layers.iter().enumerate() {
                xs = layer.residual.forward(&xs, size, skip.filter(|_| i == 0))?;
                xs = layer.timestep.forward(&xs, embeddings)?;
                if let Some(attention) = &layer.attention {
                    xs = attention.forward(&xs, &text[i], None)?;
                }
            }
            if let Some(map) = self.repeats.get(repeat) {
                xs = map.forward(&xs)?;
            }
        }
        Ok(xs)
    }

    fn attention_blocks(&self) -> impl Iterator<Item = &AttnBlock> {
        self.layers.iter().filter_map(|layer| layer.attention.as_ref())
    }
}

/// A pointwise MLP and a norm, from a picture's channels to the width of the first level.
#[derive(Debug, Clone)]
struct Mapper {
    widen: Linear,
    narrow: Linear,
}

impl Mapper {
    fn new(inputs: usize, width: usize, vb: VarBuilder) -> TensorResult<Self> {
        let small = Init::Randn { mean: 0.0, stdev: 0.02 };
        Ok(Self {
            widen: Linear::pointwise(inputs, 4 * width, small, vb.pp(0))?,
            narrow: Linear::pointwise(4 * width, width, small, vb.pp(2))?,
        })
    }

    /// (…, inputs) to (…, width).
    fn forward(&self, xs: &Tensor) -> TensorResult {
        norm(&self.narrow.forward(&nn::gelu_erf(&self.widen.forward(xs)?)?)?)
    }
}

/// What a batch is conditioned by, made once and used in every step.
#[derive(Debug, Clone)]
pub struct Condition {
    /// What is added to the embedded latents: (B, N, C).
    pixels: Tensor,
    /// The embedded latents' height and width.
    size: (usize, usize),
    /// One entry for each attention block, in the order in which they run.
    text: Vec<KeyValue>,
}

/// The denoiser; see the module.
#[derive(Debug, Clone)]
pub struct StageB {
    config: Config,
    pooled_mapper: Linear,
    effnet_mapper: Mapper,
    pixels_mapper: Option<Mapper>,
    embedding: Linear,
    downscalers: Vec<nn::Convolution>,
    down: Vec<Level>,
    up: Vec<Level>,
    upscalers: Vec<nn::TransposedConvolution>,
    head: Linear,
}

impl StageB {
    /// Builds the model from a checkpoint's tensors.
    ///
    /// # Errors
    /// [`Error::Spec`] for a config that is not Stage B's, [`Error::Weights`] for its tensors.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        if vb.dtype() == DType::F16 {
            return Err(Error::Spec(
                "Stage B in f16: its activations overflow half precision; choose f32 or bf16".into(),
            ));
        }
        let levels = config.block_out_channels.len();
        let width = |level: usize| config.block_out_channels[level];
        let pointwise = |from, to, name: String| Linear::pointwise(from, to, fan_in(from), vb.pp(name));
        let layers = |count, level, skip, name: String| layers(config, count, level, skip, vb.pp(name));
        let repeats = |count: usize, level: usize, name: String| {
            (1..count)
                .map(|i| pointwise(width(level), width(level), format!("{name}.{}", i - 1)))
                .collect::<TensorResult<Vec<_>>>()
        };
        let (mut down, mut up) = (Vec::with_capacity(levels), Vec::with_capacity(levels));
        let (mut downscalers, mut upscalers) = (Vec::new(), Vec::new());
        for level in 0..levels {
            if level > 0 {
                let vb = vb.pp(format!("down_downscalers.{level}.1"));
                let weight = vb.get((width(level), width(level - 1), 2, 2), "weight")?;
                let bias = vb.get(width(level), "bias")?;
                downscalers.push(nn::Convolution::new(&weight, Some(bias), 2, 0)?);
            }
            let count = config.down_num_layers_per_block[level];
            let repeated = config.down_blocks_repeat_mappers[level];
            down.push(Level {
                layers: layers(count, level, 0, format!("down_blocks.{level}"))?,
                repeats: repeats(repeated, level, format!("down_repeat_mappers.{level}"))?,
            });
        }
        for i in 0..levels {
            let level = config.up(i);
            let skip = if i > 0 { width(level) } else { 0 };
            let (count, repeated) = (config.up_num_layers_per_block[i], config.up_blocks_repeat_mappers[i]);
            up.push(Level {
                layers: layers(count, level, skip, format!("up_blocks.{i}"))?,
                repeats: repeats(repeated, level, format!("up_repeat_mappers.{i}"))?,
            });
            if level > 0 {
                let vb = vb.pp(format!("up_upscalers.{i}.1"));
                let weight = vb.get((width(level), width(level - 1), 2, 2), "weight")?;
                let bias = vb.get(width(level - 1), "bias")?;
                upscalers.push(nn::TransposedConvolution::new(&weight, bias, 2, 0)?);
            }
        }
        let small = Init::Randn { mean: 0.0, stdev: 0.02 };
        let patch = config.patch_size * config.patch_size;
        Ok(Self {
            pooled_mapper: Linear::new(
                config.clip_text_pooled_in_channels,
                config.conditioning_dim * config.clip_seq,
                small,
                vb.pp("clip_txt_pooled_mapper"),
            )?,
            effnet_mapper: Mapper::new(config.effnet_in_channels, width(0), vb.pp("effnet_mapper"))?,
            pixels_mapper: config
                .pixel_mapper_in_channels
                .map(|channels| Mapper::new(channels, width(0), vb.pp("pixels_mapper")))
                .transpose()?,
            embedding: pointwise(config.in_channels * patch, width(0), "embedding.1".into())?,
            downscalers,
            down,
            up,
            upscalers,
            head: pointwise(width(0), config.out_channels * patch, "clf.1".into())?,
            config: config.clone(),
        })
    }

    /// The precision of its weights and activations.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// The model's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What a batch of latents of a height and width is conditioned by.
    ///
    /// # Shapes
    /// `pooled` (B, 1, pooled width), the text's; `effnet` (B, 16, h', w'), Stage C's latents.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn condition(
        &self,
        pooled: &Tensor,
        effnet: &Tensor,
        (height, width): (usize, usize),
    ) -> Result<Condition> {
        let (batch, count, _) = pooled.dims3()?;
        let patch = self.config.patch_size;
        let size = (height / patch, width / patch);
        let tokens = self.pooled_mapper.forward(&pooled.to_dtype(self.dtype())?)?;
        let tokens =
            norm(&tokens.reshape((batch, count * self.config.clip_seq, self.config.conditioning_dim))?)?;
        let text = self.down.iter().chain(&self.up).flat_map(Level::attention_blocks);
        let text = text.map(|block| block.key_value(&tokens)).collect::<TensorResult<_>>()?;

        let effnet = effnet.permute((0, 2, 3, 1))?.contiguous()?;
        let effnet = nn::resize_corners(&effnet, size)?.to_dtype(self.dtype())?;
        let mut pixels = self.effnet_mapper.forward(&effnet.flatten(1, 2)?)?;
        if let Some(mapper) = &self.pixels_mapper {
            // Every pixel of the black picture is the same, before and after it is enlarged.
            let channels = self.config.pixel_mapper_in_channels.unwrap_or_default();
            let black = Tensor::zeros((1, 1, channels), self.dtype(), pixels.device())?;
            pixels = pixels.broadcast_add(&mapper.forward(&black)?)?;
        }
        Ok(Condition { pixels, size, text })
    }

    /// Predicts the noise ε in `noised` latents.
    ///
    /// # Shapes
    /// `noised` (B, 4, H, W), `timestep` (B) in [0, 1]; the result has the latents' shape and precision.
    ///
    /// # Errors
    /// Where the shapes do not fit each other or do not divide into patches.
    pub fn forward(&self, noised: &Tensor, timestep: &Tensor, condition: &Condition) -> Result<Tensor> {
        let xs = pixel_unshuffle_to_nhwc(&noised.to_dtype(self.dtype())?, self.config.patch_size)?;
        let (batch, height, width, _) = xs.dims4()?;
        if condition.pixels.dim(0)? != batch || condition.size != (height, width) {
            return Err(Error::Shape(format!(
                "{batch} latents of {height}×{width} patches, the condition is that of {} of {:?}",
                condition.pixels.dim(0)?,
                condition.size
            )));
        }
        let zero = timestep.zeros_like()?;
        let scalars = self.config.timestep_conditioning_type.iter().map(|_| &zero);
        let embeddings = std::iter::once(timestep)
            .chain(scalars)
            .map(|t| timestep_embedding(t, self.config.timestep_ratio_embedding_dim)?.to_dtype(self.dtype()))
            .collect::<TensorResult<Vec<_>>>()?;
        let mut done = 0;
        let mut run = |level: &Level, xs: Tensor, size, skip: Option<&Tensor>| {
            let blocks = done..done + level.attention_blocks().count();
            done = blocks.end;
            level.forward(xs, size, skip, &embeddings, &condition.text[blocks])
        };

        let mut size = (height, width);
        let mut xs = (norm(&self.embedding.forward(&xs.flatten(1, 2)?)?)? + &condition.pixels)?;
        let mut outputs = Vec::with_capacity(self.down.len());
        for (i, level) in self.down.iter().enumerate() {
            if i > 0 {
                (xs, size) = rescale(&xs, size, |xs| self.downscalers[i - 1].forward(xs))?;
            }
            xs = run(level, xs, size, None)?;
            outputs.push((xs.clone(), size));
        }
        for (i, level) in self.up.iter().enumerate() {
            let skip = (i > 0).then(|| &outputs[outputs.len() - 1 - i]);
            if let Some((_, wanted)) = skip.filter(|(_, wanted)| *wanted != size) {
                let resized = nn::resize_corners(&pictures(&xs, size)?, *wanted)?;
                (xs, size) = (resized.flatten(1, 2)?, *wanted);
            }
            xs = run(level, xs, size, skip.map(|(skip, _)| skip))?;
            if let Some(upscaler) = self.upscalers.get(i) {
                (xs, size) = rescale(&xs, size, |xs| upscaler.forward(xs))?;
            }
        }
        let xs = self.head.forward(&norm(&xs)?)?.reshape((batch, height, width, ()))?;
        Ok(pixel_shuffle_to_nchw(&xs, self.config.patch_size)?.to_dtype(noised.dtype())?)
    }
}

/// The layers of one level.
fn layers(
    config: &Config,
    count: usize,
    level: usize,
    first_skip: usize,
    vb: VarBuilder,
) -> TensorResult<Vec<Layer>> {
    let depth = config.down_num_layers_per_block.iter().chain(&config.up_num_layers_per_block).sum();
    let (width, parts) = (config.block_out_channels[level], config.block_types_per_layer[level].len());
    let layer = |i: usize| {
        let at = |part: usize| vb.pp(parts * i + part);
        let attention = config.attends(level).then(|| {
            let heads = config.num_attention_heads[level] as usize;
            AttnBlock::new(width, config.conditioning_dim, heads, at(2))
        });
        Ok(Layer {
            residual: ResBlock::new(width, if i == 0 { first_skip } else { 0 }, depth, at(0))?,
            timestep: TimestepBlock::new(
                width,
                config.timestep_ratio_embedding_dim,
                &config.timestep_conditioning_type,
                at(1),
            )?,
            attention: attention.transpose()?,
        })
    };
    (0..count).map(layer).collect()
}

/// (B, N, C) of a height and width as pictures, (B, H, W, C).
fn pictures(xs: &Tensor, (height, width): (usize, usize)) -> TensorResult {
    let (batch, _, channels) = xs.dims3()?;
    xs.reshape((batch, height, width, channels))
}

/// A norm and a convolution to another resolution: (B, N, C) of a size to (B, N', C') of another.
fn rescale(
    xs: &Tensor,
    size: (usize, usize),
    convolve: impl Fn(&Tensor) -> TensorResult,
) -> TensorResult<(Tensor, (usize, usize))> {
    let scaled = convolve(&pictures(&norm(xs)?, size)?)?;
    let (_, height, width, _) = scaled.dims4()?;
    Ok((scaled.flatten(1, 2)?, (height, width)))
}
