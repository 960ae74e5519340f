//! The two configuration files: `config.json` of Hugging Face and `open_clip_config.json`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::nn::{self, TensorResult};

/// The non-linearity between a block's two linear maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The exact GELU.
    Gelu,
    /// OpenAI's `x·σ(1.702x)`.
    QuickGelu,
    /// SigLIP's approximation with a hyperbolic tangent.
    GeluPytorchTanh,
}

impl Activation {
    /// Applies it.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    pub fn forward(self, xs: &Tensor) -> TensorResult {
        match self {
            Self::Gelu => nn::gelu_erf(xs),
            Self::QuickGelu => nn::quick_gelu(xs),
            Self::GeluPytorchTanh => nn::gelu_tanh(xs),
        }
    }
}

/// A whole CLIP, as in `config.json` of Hugging Face's layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Width of the two embeddings that are compared.
    pub projection_dim: usize,
    /// The logarithm of the temperature's inverse before training.
    pub logit_scale_init_value: f64,
    /// The text tower.
    pub text_config: TextConfig,
    /// The image tower.
    pub vision_config: VisionConfig,
}

/// The text tower, as in `config.json`; what a file leaves out has Hugging Face's default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Token width.
    pub hidden_size: usize,
    /// Width inside a block's two linear maps.
    pub intermediate_size: usize,
    /// Width of the projected embedding.
    pub projection_dim: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads in each block.
    pub num_attention_heads: usize,
    /// The longest caption in tokens.
    pub max_position_embeddings: usize,
    /// The non-linearity.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// The id whose first position is pooled; 2 marks an old file, which pools at the highest id.
    pub eos_token_id: u32,
}

/// The image tower, as in `config.json`; what a file leaves out has Hugging Face's default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Token width.
    pub hidden_size: usize,
    /// Width inside a block's two linear maps.
    pub intermediate_size: usize,
    /// Width of the projected embedding.
    pub projection_dim: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads in each block.
    pub num_attention_heads: usize,
    /// Pixels across and down.
    pub image_size: usize,
    /// Pixels across and down one patch.
    pub patch_size: usize,
    /// The non-linearity.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            projection_dim: 512,
            logit_scale_init_value: 2.6592,
            text_config: TextConfig::default(),
            vision_config: VisionConfig::default(),
        }
    }
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// `open_clip_config.json`, which spells the same architecture otherwise.
#[derive(Debug, Clone, Deserialize)]
pub struct OpenClipConfig {
    model_cfg: OpenClipModel,
}

#[derive(Debug, Clone, Deserialize)]
struct OpenClipModel {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: OpenClipVision,
    text_cfg: OpenClipText,
}

#[derive(Debug, Clone, Deserialize)]
struct OpenClipVision {
    image_size: usize,
    layers: usize,
    width: usize,
    /// ViT-H/14 has 80, so the number of heads is width / head_width, not width / 64.
    #[serde(default = "head_width")]
    head_width: usize,
    #[serde(default = "mlp_ratio")]
    mlp_ratio: f64,
    patch_size: usize,
}

#[derive(Debug, Clone, Deserialize)]
struct OpenClipText {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
    #[serde(default = "mlp_ratio")]
    mlp_ratio: f64,
}

fn head_width() -> usize {
    64
}

fn mlp_ratio() -> f64 {
    4.0
}

impl From<OpenClipConfig> for Config {
    fn from(file: OpenClipConfig) -> Self {
        let OpenClipModel { embed_dim, quick_gelu, vision_cfg: vision, text_cfg: text } = file.model_cfg;
        let hidden_act = if quick_gelu { Activation::QuickGelu } else { Activation::Gelu };
        Self {
            projection_dim: embed_dim,
            text_config: TextConfig {
                vocab_size: text.vocab_size,
                hidden_size: text.width,
                intermediate_size: (text.width as f64 * text.mlp_ratio) as usize,
                projection_dim: embed_dim,
                num_hidden_layers: text.layers,
                num_attention_heads: text.heads,
                max_position_embeddings: text.context_length,
                hidden_act,
                // open_clip pools at the highest id.
                eos_token_id: 2,
                ..TextConfig::default()
            },
            vision_config: VisionConfig {
                hidden_size: vision.width,
                intermediate_size: (vision.width as f64 * vision.mlp_ratio) as usize,
                projection_dim: embed_dim,
                num_hidden_layers: vision.layers,
                num_attention_heads: vision.width / vision.head_width,
                image_size: vision.image_size,
                patch_size: vision.patch_size,
                hidden_act,
                ..VisionConfig::default()
            },
            ..Self::default()
        }
    }
}
