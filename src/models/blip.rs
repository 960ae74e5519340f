//! BLIP's image and text encoders, as ImageReward uses them: a ViT, and a BERT whose every layer also attends to the image.
//!
//! Only frozen inference, in the layout of `ImageReward.pt`. What this module does not do: read files, tokenize, or resize
//! images.
//!
//! # Source
//! `THUDM/ImageReward`, `ImageReward/models/BLIP/{vit,med,blip_pretrain}.py`.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::blocks::patches;
use super::clip::block::{LayerNorm, Linear, normal};
use crate::error::{Error, Result};
use crate::models::tokenizer::Tokens;
use crate::nn::{self, KeyValue, Mask};

/// The image encoder; BLIP keeps it in code, not in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Token width.
    pub hidden_size: usize,
    /// Width inside a block's two linear maps.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads in each block.
    pub num_attention_heads: usize,
    /// Pixels across and down.
    pub image_size: usize,
    /// Pixels across and down one patch.
    pub patch_size: usize,
}

/// The text encoder, as in `med_config.json`; what a file leaves out has BERT's default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Token width.
    pub hidden_size: usize,
    /// Width inside a layer's two linear maps.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads in each layer.
    pub num_attention_heads: usize,
    /// The longest text in tokens.
    pub max_position_embeddings: usize,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// The id that rows are filled with.
    pub pad_token_id: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30524,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 512,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
        }
    }
}

/// Added to variances in the image encoder.
const VISION_EPS: f64 = 1e-6;

fn linear(from: usize, to: usize, vb: VarBuilder) -> Result<Linear> {
    Linear::new(from, to, (from as f64).powf(-0.5), vb)
}

#[derive(Debug, Clone)]
struct VisionBlock {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
}

impl VisionBlock {
    fn new(cfg: &VisionConfig, vb: VarBuilder) -> Result<Self> {
        let (width, inner) = (cfg.hidden_size, cfg.intermediate_size);
        Ok(Self {
            norm1: LayerNorm::new(width, VISION_EPS, vb.pp("norm1"))?,
            qkv: linear(width, 3 * width, vb.pp("attn.qkv"))?,
            proj: linear(width, width, vb.pp("attn.proj"))?,
            norm2: LayerNorm::new(width, VISION_EPS, vb.pp("norm2"))?,
            fc1: linear(width, inner, vb.pp("mlp.fc1"))?,
            fc2: linear(inner, width, vb.pp("mlp.fc2"))?,
            heads: cfg.num_attention_heads,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(xs)?)?;
        let xs = (xs + self.proj.forward(&nn::self_attention(&qkv, self.heads, &Mask::None)?)?)?;
        let inner = nn::gelu_erf(&self.fc1.forward(&self.norm2.forward(&xs)?)?)?;
        Ok((&xs + self.fc2.forward(&inner)?)?)
    }
}

/// The image encoder, `blip.visual_encoder`.
#[derive(Debug, Clone)]
pub struct VisionEncoder {
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    blocks: Vec<VisionBlock>,
    norm: LayerNorm,
    image_size: usize,
    patch_size: usize,
}

impl VisionEncoder {
    /// Opens the encoder; `vb` stands at `blip.visual_encoder`.
    ///
    /// # Errors
    /// Where a weight is missing or has another shape.
    pub fn new(cfg: &VisionConfig, vb: VarBuilder) -> Result<Self> {
        let (width, patch) = (cfg.hidden_size, cfg.patch_size);
        let side = cfg.image_size / patch.max(1);
        let projection = vb.pp("patch_embed.proj");
        let weight = projection.get_with_hints(
            (width, 3, patch, patch),
            "weight",
            super::blocks::fan_in(3 * patch * patch),
        )?;
        Ok(Self {
            cls_token: vb.get_with_hints((1, 1, width), "cls_token", normal(0.3))?,
            pos_embed: vb.get_with_hints((1, side * side + 1, width), "pos_embed", normal(0.3))?,
            patch_weight: weight.flatten_from(1)?,
            patch_bias: projection.get(width, "bias")?,
            blocks: (0..cfg.num_hidden_layers)
                .map(|i| VisionBlock::new(cfg, vb.pp("blocks").pp(i)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::new(width, VISION_EPS, vb.pp("norm"))?,
            image_size: cfg.image_size,
            patch_size: patch,
        })
    }

    /// The states of all positions: (B, 1 + patches, D).
    ///
    /// # Errors
    /// Where the pixels have another size.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (size, (batch, channels, height, across)) = (self.image_size, pixels.dims4()?);
        if (channels, height, across) != (3, size, size) {
            return Err(Error::Shape(format!(
                "pixels {:?}: the image encoder takes (B, 3, {size}, {size}); preprocess the images for it first",
                pixels.dims()
            )));
        }
        let patches =
            nn::linear(&patches(pixels, self.patch_size)?, &self.patch_weight, Some(&self.patch_bias))?;
        let class = self.cls_token.broadcast_as((batch, 1, self.cls_token.dim(D::Minus1)?))?;
        let mut xs = Tensor::cat(&[&class.contiguous()?, &patches], 1)?.broadcast_add(&self.pos_embed)?;
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        self.norm.forward(&xs)
    }

    /// Pixels across and down.
    pub fn image_size(&self) -> usize {
        self.image_size
    }
}

/// Attention with its output map, residual and norm: to the text itself, or to the image.
#[derive(Debug, Clone)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    heads: usize,
}

impl Attention {
    fn new(cfg: &TextConfig, source: usize, vb: VarBuilder) -> Result<Self> {
        let width = cfg.hidden_size;
        Ok(Self {
            query: linear(width, width, vb.pp("self.query"))?,
            key: linear(source, width, vb.pp("self.key"))?,
            value: linear(source, width, vb.pp("self.value"))?,
            dense: linear(width, width, vb.pp("output.dense"))?,
            norm: LayerNorm::new(width, cfg.layer_norm_eps, vb.pp("output.LayerNorm"))?,
            heads: cfg.num_attention_heads,
        })
    }

    fn forward(&self, xs: &Tensor, source: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        let both = Tensor::cat(&[&self.key.forward(source)?, &self.value.forward(source)?], D::Minus1)?;
        let query = self.query.forward(xs)?;
        let mixed = nn::cross_attention(&query, &KeyValue::new(both), self.heads, lengths)?;
        self.norm.forward(&(self.dense.forward(&mixed)? + xs)?)
    }
}

#[derive(Debug, Clone)]
struct TextLayer {
    attention: Attention,
    crossattention: Attention,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

/// The text encoder, `blip.text_encoder`.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    norm: LayerNorm,
    layers: Vec<TextLayer>,
}

impl TextEncoder {
    /// Opens the encoder over images of `image_width`; `vb` stands at `blip.text_encoder`.
    ///
    /// # Errors
    /// Where a weight is missing or has another shape.
    pub fn new(cfg: &TextConfig, image_width: usize, vb: VarBuilder) -> Result<Self> {
        let (width, inner, eps) = (cfg.hidden_size, cfg.intermediate_size, cfg.layer_norm_eps);
        let embeddings = vb.pp("embeddings");
        let layer = |i: usize| {
            let vb = vb.pp("encoder.layer").pp(i);
            Ok(TextLayer {
                attention: Attention::new(cfg, width, vb.pp("attention"))?,
                crossattention: Attention::new(cfg, image_width, vb.pp("crossattention"))?,
                intermediate: linear(width, inner, vb.pp("intermediate.dense"))?,
                output: linear(inner, width, vb.pp("output.dense"))?,
                norm: LayerNorm::new(width, eps, vb.pp("output.LayerNorm"))?,
            })
        };
        Ok(Self {
            word_embeddings: embeddings.get_with_hints(
                (cfg.vocab_size, width),
                "word_embeddings.weight",
                normal(0.3),
            )?,
            position_embeddings: embeddings.get_with_hints(
                (cfg.max_position_embeddings, width),
                "position_embeddings.weight",
                normal(0.3),
            )?,
            norm: LayerNorm::new(width, eps, embeddings.pp("LayerNorm"))?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// The embedded tokens, then each layer's output, of texts beside their images' states: (B, N, D). No token attends to
    /// padding, which the reference has by adding −10000 to its scores: nothing is left of it in single precision.
    ///
    /// # Errors
    /// Where texts are longer than the encoder's context, hold unknown ids, or are not as many as the images.
    pub fn hidden_states(&self, tokens: &Tokens, image: &Tensor) -> Result<Vec<Tensor>> {
        let (batch, columns) = (tokens.len(), tokens.ids.first().map_or(0, Vec::len));
        let (vocab, longest) = (self.word_embeddings.dim(0)?, self.position_embeddings.dim(0)?);
        if columns == 0 || columns > longest {
            return Err(Error::Shape(format!(
                "texts of {columns} tokens: the text encoder takes 1 to {longest}"
            )));
        }
        let ids = tokens.ids.concat();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Shape(format!(
                "token id {id}: the text encoder knows ids below {vocab}; is this its tokenizer?"
            )));
        }
        let ids = Tensor::from_vec(ids, batch * columns, self.word_embeddings.device())?;
        let words = self.word_embeddings.index_select(&ids, 0)?.reshape((batch, columns, ()))?; // (B, N, D)
        let xs = words.broadcast_add(&self.position_embeddings.narrow(0, 0, columns)?)?;
        let mut states = vec![self.norm.forward(&xs)?];
        for layer in &self.layers {
            let xs = &states[states.len() - 1];
            let xs = layer.attention.forward(xs, xs, Some(&tokens.lengths))?;
            let xs = layer.crossattention.forward(&xs, image, None)?;
            let inner = nn::gelu_erf(&layer.intermediate.forward(&xs)?)?;
            states.push(layer.norm.forward(&(layer.output.forward(&inner)? + xs)?)?);
        }
        Ok(states)
    }
}
