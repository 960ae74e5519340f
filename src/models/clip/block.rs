//! The transformer block that both towers share, in both layouts; SigLIP's tower is made of it too.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use super::super::blocks::SideBySide;
use super::config::Activation;
use crate::error::Result;
use crate::nn::{self, Mask};

pub fn normal(deviation: f64) -> Init {
    Init::Randn { mean: 0.0, stdev: deviation }
}

#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(width, "weight", Init::Const(1.0))?;
        let bias = vb.get_with_hints(width, "bias", Init::Const(0.0))?;
        Ok(Self { weight, bias, eps })
    }

    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(nn::layer_norm(xs, Some((&self.weight, &self.bias)), self.eps)?)
    }
}

#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub fn new(from: usize, to: usize, deviation: f64, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((to, from), "weight", normal(deviation))?;
        let bias = vb.get_with_hints(to, "bias", Init::Const(0.0))?;
        Ok(Self { weight, bias: Some(bias) })
    }

    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(nn::linear(xs, &self.weight, self.bias.as_ref())?)
    }
}

/// The two spellings of the same weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    HuggingFace,
    OpenClip,
}

/// What the blocks of both towers share.
pub struct BlockConfig {
    pub width: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub act: Activation,
    pub eps: f64,
}

#[derive(Debug, Clone)]
pub struct Block {
    layer_norm1: LayerNorm,
    /// Queries, keys and values in one product.
    qkv_proj: SideBySide,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    act: Activation,
}

impl Block {
    pub fn new(cfg: &BlockConfig, layout: Layout, vb: VarBuilder) -> Result<Self> {
        let (width, inner) = (cfg.width, cfg.inner);
        // Hugging Face's initialisation, which keeps the residual stream's variance whatever the depth.
        let narrow = (width as f64).powf(-0.5) * (2.0 * cfg.layers as f64).powf(-0.5);
        let wide = (width as f64).powf(-0.5);
        let [norm1, norm2, attention, first, second] = match layout {
            Layout::HuggingFace => ["layer_norm1", "layer_norm2", "self_attn", "mlp.fc1", "mlp.fc2"],
            Layout::OpenClip => ["ln_1", "ln_2", "attn", "mlp.c_fc", "mlp.c_proj"],
        };
        let attention = vb.pp(attention);
        let qkv_proj = match layout {
            Layout::HuggingFace => ["q_proj", "k_proj", "v_proj"]
                .into_iter()
                .map(|name| {
                    let vb = attention.pp(name);
                    Ok((
                        vb.get_with_hints((width, width), "weight", normal(narrow))?,
                        vb.get_with_hints(width, "bias", Init::Const(0.0))?,
                    ))
                })
                .collect::<Result<_>>()?,
            Layout::OpenClip => vec![(
                attention.get_with_hints((3 * width, width), "in_proj_weight", normal(narrow))?,
                attention.get_with_hints(3 * width, "in_proj_bias", Init::Const(0.0))?,
            )],
        };
        Ok(Self {
            layer_norm1: LayerNorm::new(width, cfg.eps, vb.pp(norm1))?,
            qkv_proj: SideBySide::new(qkv_proj)?,
            out_proj: Linear::new(width, width, wide, attention.pp("out_proj"))?,
            layer_norm2: LayerNorm::new(width, cfg.eps, vb.pp(norm2))?,
            fc1: Linear::new(width, inner, (2.0 * width as f64).powf(-0.5), vb.pp(first))?,
            fc2: Linear::new(inner, width, narrow, vb.pp(second))?,
            heads: cfg.heads,
            act: cfg.act,
        })
    }

    pub fn stack(cfg: &BlockConfig, layout: Layout, vb: VarBuilder) -> Result<Vec<Self>> {
        let vb = match layout {
            Layout::HuggingFace => vb.pp("encoder.layers"),
            Layout::OpenClip => vb.pp("transformer.resblocks"),
        };
        (0..cfg.layers).map(|i| Self::new(cfg, layout, vb.pp(i))).collect()
    }

    pub fn forward(&self, xs: &Tensor, mask: &Mask) -> Result<Tensor> {
        let normed = self.layer_norm1.forward(xs)?;
        let mixed = nn::self_attention(&self.qkv_proj.forward(&normed)?, self.heads, mask)?;
        let xs = (xs + self.out_proj.forward(&mixed)?)?;
        let inner = self.fc1.forward(&self.layer_norm2.forward(&xs)?)?;
        Ok((&xs + self.fc2.forward(&self.act.forward(&inner)?)?)?)
    }
}
