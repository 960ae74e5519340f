//! The language model: Qwen2, with a cache of keys and values, and the hidden states of every layer where they are asked for.
//!
//! Samples of a batch may have different lengths: they end at the same column, and the columns before a sample's start are
//! padding, which nothing else sees. Positions count from the start, so a sample's result does not depend on the others.

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};

use super::super::blocks::{SideBySide, fan_in};
use super::config::TextConfig;
use crate::error::{Error, Result};
use crate::nn::{self, Keys};

/// Which positions' hidden states are kept of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Those of all positions given.
    All,
    /// Those of the last position.
    Last,
    /// None: only the final states are wanted.
    None,
}

/// What the language model makes of a batch.
#[derive(Debug, Clone)]
pub struct States {
    /// The merged embeddings, then each block's output, the last one after the final norm: layers + 1 of (B, N, D), with
    /// N = 1 under [`Keep::Last`]; empty under [`Keep::None`].
    pub hidden_states: Vec<Tensor>,
    /// The last position's state after the final norm: (B, D).
    pub last: Tensor,
}

/// The keys and values of the positions that a batch has seen.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Each layer's keys and values, (B, capacity, kv heads·d).
    layers: Vec<(Tensor, Tensor)>,
    starts: Vec<usize>,
    filled: usize,
}

impl KvCache {
    /// How many columns are filled.
    pub fn filled(&self) -> usize {
        self.filled
    }
}

#[derive(Debug, Clone)]
struct Layer {
    input_layernorm: Tensor,
    /// Queries, keys and values in one product.
    qkv_proj: SideBySide,
    o_proj: Tensor,
    post_attention_layernorm: Tensor,
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
}

/// Qwen2 for causal language modelling.
#[derive(Debug, Clone)]
pub struct Qwen2 {
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// Absent where the logits reuse the embeddings.
    lm_head: Option<Tensor>,
    config: TextConfig,
}

fn matrix(from: usize, to: usize, scale: f64, vb: VarBuilder) -> Result<Tensor> {
    let init = Init::Randn { mean: 0.0, stdev: scale / (from as f64).sqrt() };
    let weight = vb.get_with_hints((to, from), "weight", init)?;
    Ok(nn::frozen_weight(&weight)?)
}

fn norm(width: usize, vb: VarBuilder) -> Result<Tensor> {
    Ok(vb.get_with_hints(width, "weight", Init::Const(1.0))?)
}

impl Layer {
    fn new(cfg: &TextConfig, vb: VarBuilder) -> Result<Self> {
        let (width, inner, head) = (cfg.hidden_size, cfg.intermediate_size, cfg.head_width());
        let (attention, mlp) = (vb.pp("self_attn"), vb.pp("mlp"));
        let shared = cfg.num_key_value_heads * head;
        let part = |name: &str, to: usize| -> Result<(Tensor, Tensor)> {
            let vb = attention.pp(name);
            Ok((
                vb.get_with_hints((to, width), "weight", fan_in(width))?,
                vb.get_with_hints(to, "bias", Init::Const(0.0))?,
            ))
        };
        let qkv = vec![part("q_proj", width)?, part("k_proj", shared)?, part("v_proj", shared)?];
        // What a block adds starts small, so that the residual stream's variance does not grow with the depth.
        let narrow = (2.0 * cfg.num_hidden_layers as f64).powf(-0.5);
        Ok(Self {
            input_layernorm: norm(width, vb.pp("input_layernorm"))?,
            qkv_proj: SideBySide::new(qkv)?,
            o_proj: matrix(width, width, narrow, attention.pp("o_proj"))?,
            post_attention_layernorm: norm(width, vb.pp("post_attention_layernorm"))?,
            gate_proj: matrix(width, inner, 1.0, mlp.pp("gate_proj"))?,
            up_proj: matrix(width, inner, 1.0, mlp.pp("up_proj"))?,
            down_proj: matrix(inner, width, narrow, mlp.pp("down_proj"))?,
        })
    }

    /// Without a cache the keys are the batch's own.
    fn forward(
        &self,
        xs: &Tensor,
        cfg: &TextConfig,
        angles: &Tensor,
        layout: &Keys,
        cache: Option<&(Tensor, Tensor)>,
    ) -> Result<Tensor> {
        let (width, shared) = (cfg.hidden_size, cfg.num_key_value_heads * cfg.head_width());
        let qkv = self.qkv_proj.forward(&nn::rms_norm(xs, &self.input_layernorm, cfg.rms_norm_eps)?)?;
        let part =
            |from: usize, count: usize| -> Result<Tensor> { Ok(qkv.narrow(2, from, count)?.contiguous()?) };
        let q = nn::rotary(&part(0, width)?, angles)?;
        let k = nn::rotary(&part(width, shared)?, angles)?;
        let v = part(width + shared, shared)?;
        let mixed = match cache {
            Some((keys, values)) => {
                let before = layout.filled - q.dim(1)?;
                keys.slice_set(&k, 1, before)?;
                values.slice_set(&v, 1, before)?;
                nn::grouped_attention(&q, keys, values, layout)?
            }
            None => nn::grouped_attention(&q, &k, &v, layout)?,
        };
        let xs = (xs + nn::linear(&mixed, &self.o_proj, None)?)?;
        let ys = nn::rms_norm(&xs, &self.post_attention_layernorm, cfg.rms_norm_eps)?;
        let gate = nn::silu(&nn::linear(&ys, &self.gate_proj, None)?)?;
        let ys = (gate * nn::linear(&ys, &self.up_proj, None)?)?;
        Ok((xs + nn::linear(&ys, &self.down_proj, None)?)?)
    }
}

impl Qwen2 {
    /// Opens the model; with `tied` the logits reuse the token embeddings.
    ///
    /// # Errors
    /// Where a weight is missing or has another shape.
    pub fn new(cfg: &TextConfig, tied: bool, vb: VarBuilder) -> Result<Self> {
        let (width, model) = (cfg.hidden_size, vb.pp("model"));
        let vocabulary =
            |vb: VarBuilder, init: Init| vb.get_with_hints((cfg.vocab_size, width), "weight", init);
        // Tied to the logits, which shall start near one in size.
        let stdev = (width as f64).powf(-0.5);
        let embed_tokens = vocabulary(model.pp("embed_tokens"), Init::Randn { mean: 0.0, stdev })?;
        let lm_head = match tied {
            true => None,
            false => Some(nn::frozen_weight(&vocabulary(vb.pp("lm_head"), fan_in(width))?)?),
        };
        let layers = (0..cfg.num_hidden_layers).map(|i| Layer::new(cfg, model.pp("layers").pp(i)));
        Ok(Self {
            embed_tokens,
            layers: layers.collect::<Result<_>>()?,
            norm: norm(width, model.pp("norm"))?,
            lm_head,
            config: cfg.clone(),
        })
    }

    /// The configuration that it was opened with.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The embeddings of token ids: (N, D).
    ///
    /// # Errors
    /// Where an id is none of the vocabulary's.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.known(ids)?;
        let ids = Tensor::from_slice(ids, ids.len(), self.embed_tokens.device())?;
        Ok(self.embed_tokens.index_select(&ids, 0)?)
    }

    fn known(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            None => Ok(()),
            Some(id) => Err(Error::Shape(format!(
                "token id {id}: the language model knows ids below {}; is this its tokenizer?",
                self.config.vocab_size
            ))),
        }
    }

    /// An empty cache for samples that begin at `starts`, with room for `capacity` columns.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn cache(&self, starts: &[usize], capacity: usize) -> Result<KvCache> {
        let shared = self.config.num_key_value_heads * self.config.head_width();
        let (dtype, device) = (self.embed_tokens.dtype(), self.embed_tokens.device());
        let room = || Tensor::zeros((starts.len(), capacity, shared), dtype, device);
        let layers = self.layers.iter().map(|_| Ok((room()?, room()?)));
        Ok(KvCache { layers: layers.collect::<Result<_>>()?, starts: starts.to_vec(), filled: 0 })
    }

    /// The states of the next positions after those in `cache`, which it then holds too; without a cache, of whole
    /// samples that begin at `starts`, with gradients where something trains.
    ///
    /// # Shapes
    /// `embeddings` (B, N, D).
    ///
    /// # Errors
    /// Where the batch or the number of positions does not fit the cache or the model's context.
    pub fn forward(&self, embeddings: &Tensor, from: Past, keep: Keep) -> Result<States> {
        let (batch, tokens, _) = embeddings.dims3()?;
        let (starts, before) = match &from {
            Past::Cache(cache) => (cache.starts.clone(), cache.filled),
            Past::None { starts } => (starts.to_vec(), 0),
        };
        let longest = self.config.max_position_embeddings;
        let filled = before + tokens;
        let positions = filled - starts.iter().copied().min().unwrap_or(0).min(filled);
        if starts.len() != batch || tokens == 0 || positions > longest {
            return Err(Error::Shape(format!(
                "{batch} sequences of {positions} positions, {} with a start: the language model takes sequences of 1 to \
                 {longest} positions (max_position_embeddings); give fewer or smaller images, or a shorter text",
                starts.len()
            )));
        }
        let angles = self.angles(&starts, before, tokens)?;
        let layout = Keys {
            num_heads: self.config.num_attention_heads,
            num_key_value_heads: self.config.num_key_value_heads,
            starts,
            filled,
        };
        let kept = |xs: &Tensor| -> Result<Option<Tensor>> {
            Ok(match keep {
                Keep::All => Some(xs.clone()),
                Keep::Last => Some(xs.narrow(1, tokens - 1, 1)?.contiguous()?),
                Keep::None => None,
            })
        };
        let mut hidden_states = Vec::new();
        let mut xs = embeddings.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            hidden_states.extend(kept(&xs)?);
            let cache = match &from {
                Past::Cache(cache) => Some(&cache.layers[i]),
                Past::None { .. } => None,
            };
            xs = layer.forward(&xs, &self.config, &angles, &layout, cache)?;
        }
        if keep != Keep::All {
            xs = xs.narrow(1, tokens - 1, 1)?.contiguous()?;
        }
        let xs = nn::rms_norm(&xs, &self.norm, self.config.rms_norm_eps)?;
        let last = xs.narrow(1, xs.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?; // (B, D)
        if keep != Keep::None {
            hidden_states.push(xs);
        }
        if let Past::Cache(cache) = from {
            cache.filled = filled;
        }
        Ok(States { hidden_states, last })
    }

    /// Cosines and sines of each position's angles, (B, N, d), in single precision and the reference's order of operations.
    fn angles(&self, starts: &[usize], before: usize, tokens: usize) -> Result<Tensor> {
        let depth = self.config.head_width();
        let base = self.config.rope_base();
        let frequencies: Vec<f32> = (0..depth / 2)
            .map(|i| 1.0 / base.powf(f64::from((2 * i) as f32 / depth as f32)) as f32)
            .collect();
        let mut angles = Vec::with_capacity(starts.len() * tokens * depth);
        for start in starts {
            for column in before..before + tokens {
                // Padding has no position; any will do.
                let position = column.saturating_sub(*start) as f32;
                angles.extend(frequencies.iter().map(|frequency| (position * frequency).cos()));
                angles.extend(frequencies.iter().map(|frequency| (position * frequency).sin()));
            }
        }
        Ok(Tensor::from_vec(angles, (starts.len(), tokens, depth), self.embed_tokens.device())?)
    }

    /// The logits of all tokens, in single precision: (…, D) to (…, vocabulary).
    ///
    /// # Errors
    /// Where the width is another one.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let weight = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        Ok(nn::linear(states, weight, None)?.to_dtype(DType::F32)?)
    }

    /// The logits of `ids` alone, in single precision: (B, D) to (B, ids). What a judge or a classifier reads costs no
    /// product with the whole vocabulary.
    ///
    /// # Errors
    /// Where an id is none of the vocabulary's.
    pub fn logits_of(&self, states: &Tensor, ids: &[u32]) -> Result<Tensor> {
        self.known(ids)?;
        let weight = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        let ids = Tensor::from_slice(ids, ids.len(), weight.device())?;
        let rows = match weight.is_contiguous() {
            true => weight.index_select(&ids, 0)?,
            // A frozen weight lies column by column.
            false => weight.t()?.index_select(&ids, 1)?.t()?.contiguous()?,
        };
        Ok(nn::linear(states, &rows, None)?.to_dtype(DType::F32)?)
    }
}

/// What the positions of a call come after.
pub enum Past<'a> {
    /// The positions in a cache.
    Cache(&'a mut KvCache),
    /// Nothing: the call has whole samples.
    None {
        /// The first column of each sample.
        starts: &'a [usize],
    },
}
