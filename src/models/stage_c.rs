//! Stable Cascade's Stage C: the denoiser of 16-channel image latents that PPD fine-tunes.
//!
//! A U-Net without down-sampling: levels of ConvNeXt-like residual blocks, timestep modulation, and attention whose
//! keys are the picture's own positions *and* the text tokens under one softmax. Keys of a checkpoint are diffusers'
//! (`StableCascadeUNet`). A user reaches the model as extra keys and values for each attention block (Eq. 7 of the
//! PPD paper); where they come from is no business of this module.
//!
//! Deliberately absent: Stage B's pixel and EfficientNet mappers, block repeats, and dropout (0 in all uses here).

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::blocks::{
    AttnBlock, Linear, ResBlock, TimestepBlock, fan_in, norm, pixel_shuffle_to_nchw, pixel_unshuffle_to_nhwc,
    timestep_embedding,
};
use crate::error::{Error, Result};
pub use crate::nn::KeyValue;
use crate::nn::{self, TensorResult};

mod config;

pub use config::Config;

/// One (residual, timestep, attention) triple.
#[derive(Debug, Clone)]
struct Layer {
    residual: ResBlock,
    timestep: TimestepBlock,
    attention: AttnBlock,
}

/// The layers of one level on one side of the U-Net.
#[derive(Debug, Clone)]
struct Level {
    /// Comes before the layers on the way down, after them on the way up.
    scaler: Option<Linear>,
    layers: Vec<Layer>,
}

/// The denoiser; see the module.
#[derive(Debug, Clone)]
pub struct StageC {
    config: Config,
    /// How many layers of a level at a time make their activations again on the way back instead of keeping them.
    recomputed: Option<NonZeroUsize>,
    text_mapper: Linear,
    pooled_mapper: Linear,
    image_mapper: Linear,
    embedding: Linear,
    down: Vec<Level>,
    up: Vec<Level>,
    head: Linear,
    evaluated: Arc<AtomicU64>,
    projected: Arc<AtomicU64>,
}

impl StageC {
    /// Builds the model from a checkpoint's tensors, or, where `vb` makes variables, with Stable Cascade's own
    /// initialisation (zero output head, zero timestep modulation, residual branches scaled by depth).
    ///
    /// # Errors
    /// [`Error::Spec`] for a config that is not Stage C's, [`Error::Weights`] or [`Error::Tensor`] for its tensors.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        if vb.dtype() == DType::F16 {
            return Err(Error::Spec(
                "Stage C in f16: its activations overflow half precision; choose f32 or bf16".into(),
            ));
        }
        let levels = config.block_out_channels.len();
        let width = |level: usize| config.block_out_channels[level];
        let depth =
            config.down_num_layers_per_block.iter().chain(&config.up_num_layers_per_block).sum::<usize>();
        let layers = |count: usize, level: usize, first_skip: usize, vb: VarBuilder| {
            (0..count)
                .map(|i| {
                    let skip = if i == 0 { first_skip } else { 0 };
                    let heads = config.num_attention_heads[level];
                    Ok(Layer {
                        residual: ResBlock::new(width(level), skip, depth, vb.pp(3 * i))?,
                        timestep: TimestepBlock::new(
                            width(level),
                            config.timestep_ratio_embedding_dim,
                            &config.timestep_conditioning_type,
                            vb.pp(3 * i + 1),
                        )?,
                        attention: AttnBlock::new(
                            width(level),
                            config.conditioning_dim,
                            heads,
                            vb.pp(3 * i + 2),
                        )?,
                    })
                })
                .collect::<TensorResult<Vec<_>>>()
        };
        let pointwise = |from, to, name: String| Linear::pointwise(from, to, fan_in(from), vb.pp(name));
        let mut down = Vec::with_capacity(levels);
        let mut up = Vec::with_capacity(levels);
        for level in 0..levels {
            let scaler = (level > 0)
                .then(|| {
                    pointwise(width(level - 1), width(level), format!("down_downscalers.{level}.1.blocks.0"))
                })
                .transpose()?;
            let count = config.down_num_layers_per_block[level];
            down.push(Level {
                scaler,
                layers: layers(count, level, 0, vb.pp(format!("down_blocks.{level}")))?,
            });
        }
        for i in 0..levels {
            let level = levels - 1 - i;
            let scaler = (level > 0)
                .then(|| pointwise(width(level), width(level - 1), format!("up_upscalers.{i}.1.blocks.1")))
                .transpose()?;
            let skip = if i > 0 { width(level) } else { 0 };
            let count = config.up_num_layers_per_block[i];
            up.push(Level { scaler, layers: layers(count, level, skip, vb.pp(format!("up_blocks.{i}")))? });
        }
        let small = Init::Randn { mean: 0.0, stdev: 0.02 };
        let patch = config.patch_size * config.patch_size;
        let token = config.conditioning_dim;
        let tokens = token * config.clip_seq;
        Ok(Self {
            text_mapper: Linear::new(config.clip_text_in_channels, token, small, vb.pp("clip_txt_mapper"))?,
            pooled_mapper: Linear::new(
                config.clip_text_pooled_in_channels,
                tokens,
                small,
                vb.pp("clip_txt_pooled_mapper"),
            )?,
            image_mapper: Linear::new(
                config.clip_image_in_channels,
                tokens,
                small,
                vb.pp("clip_img_mapper"),
            )?,
            embedding: Linear::pointwise(
                config.in_channels * patch,
                width(0),
                fan_in(config.in_channels * patch),
                vb.pp("embedding.1"),
            )?,
            down,
            up,
            head: Linear::pointwise(width(0), config.out_channels * patch, Init::Const(0.0), vb.pp("clf.1"))?,
            recomputed: None,
            evaluated: Arc::default(),
            projected: Arc::default(),
            config: config.clone(),
        })
    }

    /// The same model, which where a user trains keeps only every so many layers' input within a level, and makes what lies
    /// between again on the way back: less memory for one more forward pass.
    pub fn recomputing(self, layers: NonZeroUsize) -> Self {
        Self { recomputed: Some(layers), ..self }
    }

    /// The precision of its weights and activations.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// The model's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How many samples it has evaluated so far, all its clones together: what a run costs, whatever the machine.
    pub fn evaluations(&self) -> u64 {
        self.evaluated.load(Ordering::Relaxed)
    }

    /// How many texts' keys and values it has made so far, all its clones together.
    pub fn projections(&self) -> u64 {
        self.projected.load(Ordering::Relaxed)
    }

    fn attention_blocks(&self) -> impl Iterator<Item = &AttnBlock> {
        self.down.iter().chain(&self.up).flat_map(|level| &level.layers).map(|layer| &layer.attention)
    }

    /// Text and image embeddings to normalised conditioning tokens, in the order text, pooled text, image.
    ///
    /// # Shapes
    /// `text` (B, N, text width), `pooled` (B, 1, pooled width), `image` (B, 1, image width);
    /// result (B, N + 2·clip_seq, conditioning_dim).
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn conditioning_tokens(&self, text: &Tensor, pooled: &Tensor, image: &Tensor) -> Result<Tensor> {
        let split = |xs: Tensor| {
            let (batch, count, _) = xs.dims3()?;
            xs.reshape((batch, count * self.config.clip_seq, self.config.conditioning_dim))
        };
        let cast = |xs: &Tensor| xs.to_dtype(self.dtype());
        let text = self.text_mapper.forward(&cast(text)?)?;
        let pooled = split(self.pooled_mapper.forward(&cast(pooled)?)?)?;
        let image = split(self.image_mapper.forward(&cast(image)?)?)?;
        Ok(norm(&Tensor::cat(&[text, pooled, image], 1)?)?)
    }

    /// The keys and values of conditioning tokens for each attention block: once per prompt, not once per step.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn key_values(&self, tokens: &Tensor) -> Result<Vec<KeyValue>> {
        self.projected.fetch_add(tokens.dim(0)? as u64, Ordering::Relaxed);
        Ok(self.attention_blocks().map(|block| block.key_value(tokens)).collect::<TensorResult<_>>()?)
    }

    /// Predicts the noise ε in `noised` latents.
    ///
    /// # Shapes
    /// `noised` (B, 16, h, w), `timestep` (B) in [0, 1]; `text` and `user` hold one entry for each attention block,
    /// keys and values (B, M, C). Result (B, 16, h, w), in the latents' own precision whatever the model's.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn forward(
        &self,
        noised: &Tensor,
        timestep: &Tensor,
        text: &[KeyValue],
        user: Option<&[KeyValue]>,
    ) -> Result<Tensor> {
        let zero = timestep.zeros_like()?;
        self.forward_with(
            noised,
            timestep,
            &vec![zero; self.config.timestep_conditioning_type.len()],
            text,
            user,
        )
    }

    /// As [`StageC::forward`], with values for the further scalars (`sca`, `crp`), each (B).
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn forward_with(
        &self,
        noised: &Tensor,
        timestep: &Tensor,
        scalars: &[Tensor],
        text: &[KeyValue],
        user: Option<&[KeyValue]>,
    ) -> Result<Tensor> {
        let blocks = self.attention_blocks().count();
        for (name, given) in [("text", Some(text.len())), ("user", user.map(<[_]>::len))] {
            if let Some(given) = given.filter(|given| *given != blocks) {
                return Err(Error::Shape(format!(
                    "Stage C has {blocks} attention blocks, got {given} {name} entries"
                )));
            }
        }
        let xs = pixel_unshuffle_to_nhwc(&noised.to_dtype(self.dtype())?, self.config.patch_size)?;
        let (batch, height, width, _) = xs.dims4()?;
        self.evaluated.fetch_add(batch as u64, Ordering::Relaxed);
        let embedding = self.config.timestep_ratio_embedding_dim;
        let embeddings = std::iter::once(timestep)
            .chain(scalars)
            .map(|t| timestep_embedding(t, embedding)?.to_dtype(self.dtype()))
            .collect::<TensorResult<Vec<_>>>()?;
        let mut done = 0;
        let mut run = |xs: Tensor, layers: &[Layer], skip: Option<&Tensor>| -> TensorResult {
            let blocks = done..done + layers.len();
            done = blocks.end;
            let (text, user) = (&text[blocks.clone()], user.map(|user| &user[blocks]));
            let (Some(user), Some(each)) = (user, self.recomputed) else {
                return run_layers(&xs, (height, width), layers, skip, &embeddings, text, user);
            };
            let each = each.get();
            let parts = layers.chunks(each).zip(text.chunks(each)).zip(user.chunks(each)).enumerate();
            parts.into_iter().try_fold(xs, |xs, (i, ((layers, text), user))| {
                run_again(&xs, (height, width), layers, skip.filter(|_| i == 0), &embeddings, text, user)
            })
        };

        // (B, N, C) from here to the head: no level changes the picture's size.
        let mut xs = norm(&self.embedding.forward(&xs.flatten(1, 2)?)?)?;
        let mut outputs = Vec::with_capacity(self.down.len());
        for level in &self.down {
            if let Some(scaler) = &level.scaler {
                xs = scaler.forward(&norm(&xs)?)?;
            }
            xs = run(xs, &level.layers, None)?;
            outputs.push(xs.clone());
        }
        for (i, level) in self.up.iter().enumerate() {
            let skip = (i > 0).then(|| &outputs[outputs.len() - 1 - i]);
            xs = run(xs, &level.layers, skip)?;
            if let Some(scaler) = &level.scaler {
                xs = scaler.forward(&norm(&xs)?)?;
            }
        }
        let xs = self.head.forward(&norm(&xs)?)?.reshape((batch, height, width, ()))?;
        Ok(pixel_shuffle_to_nchw(&xs, self.config.patch_size)?.to_dtype(noised.dtype())?)
    }
}

/// The layers of a level in turn, over pictures of `size`; `skip` goes into the first.
fn run_layers(
    xs: &Tensor,
    size: (usize, usize),
    layers: &[Layer],
    skip: Option<&Tensor>,
    embeddings: &[Tensor],
    text: &[KeyValue],
    user: Option<&[KeyValue]>,
) -> TensorResult {
    let mut xs = xs.clone();
    for (i, layer) in layers.iter().enumerate() {
        xs = layer.residual.forward(&xs, size, skip.filter(|_| i == 0))?;
        xs = layer.timestep.forward(&xs, embeddings)?;
        xs = layer.attention.forward(&xs, &text[i], user.map(|user| &user[i]))?;
    }
    Ok(xs)
}

/// As [`run_layers`], without keeping the activations in between: they are made again on the way back. All blocks' keys
/// and values of the users go in as one tensor.
fn run_again(
    xs: &Tensor,
    size: (usize, usize),
    layers: &[Layer],
    skip: Option<&Tensor>,
    embeddings: &[Tensor],
    text: &[KeyValue],
    user: &[KeyValue],
) -> TensorResult {
    let users = Tensor::cat(&user.iter().map(KeyValue::tensor).collect::<Vec<_>>(), 2)?;
    let none = Tensor::zeros(0, xs.dtype(), xs.device())?;
    let inputs = [xs, skip.unwrap_or(&none), &users];
    let (layers, embeddings, text) = (layers.to_vec(), embeddings.to_vec(), text.to_vec());
    nn::recompute(inputs, move |[xs, skip, users]| {
        let width = users.dim(2)? / layers.len();
        let user = (0..layers.len())
            .map(|i| Ok(KeyValue::new(users.narrow(2, i * width, width)?)))
            .collect::<TensorResult<Vec<_>>>()?;
        let skip = Some(skip).filter(|skip| skip.elem_count() > 0);
        run_layers(xs, size, &layers, skip, &embeddings, &text, Some(&user))
    })
}
