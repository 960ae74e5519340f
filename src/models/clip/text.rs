//! The text tower.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::block::{Block, BlockConfig, LayerNorm, Layout, normal};
use super::config::TextConfig;
use crate::error::{Error, Result};
use crate::models::tokenizer::Tokens;
use crate::nn::{self, Mask};

/// What the text tower makes of captions.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// The token embeddings, then each block's output, all without the final norm: (B, N, D).
    pub hidden_states: Vec<Tensor>,
    /// The projected embedding (B, P), or where the checkpoint has no projection the pooled state (B, D).
    pub text_embeds: Tensor,
}

/// CLIP's text tower.
#[derive(Debug, Clone)]
pub struct TextTower {
    token_embedding: Tensor,
    position_embedding: Tensor,
    blocks: Vec<Block>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Tensor>,
    eos_token_id: u32,
    encoded: Arc<AtomicU64>,
}

impl TextTower {
    /// Opens the tower of a `CLIPModel`, a `CLIPTextModel[WithProjection]`, or an open_clip checkpoint.
    ///
    /// # Errors
    /// Where a weight is missing or has another shape.
    pub fn new(cfg: &TextConfig, vb: VarBuilder) -> Result<Self> {
        let layout = match vb.contains_tensor("text_model.embeddings.token_embedding.weight") {
            true => Layout::HuggingFace,
            false if vb.contains_tensor("token_embedding.weight") => Layout::OpenClip,
            false => Layout::HuggingFace,
        };
        let width = cfg.hidden_size;
        let blocks = BlockConfig {
            width,
            inner: cfg.intermediate_size,
            layers: cfg.num_hidden_layers,
            heads: cfg.num_attention_heads,
            act: cfg.hidden_act,
            eps: cfg.layer_norm_eps,
        };
        let tower = match layout {
            Layout::HuggingFace => vb.pp("text_model"),
            Layout::OpenClip => vb.clone(),
        };
        let [tokens, positions, norm] = match layout {
            Layout::HuggingFace => [
                "embeddings.token_embedding.weight",
                "embeddings.position_embedding.weight",
                "final_layer_norm",
            ],
            Layout::OpenClip => ["token_embedding.weight", "positional_embedding", "ln_final"],
        };
        let deviation = normal((width as f64).powf(-0.5));
        let text_projection = match layout {
            Layout::HuggingFace if vb.contains_tensor("text_projection.weight") => {
                Some(vb.get_with_hints((cfg.projection_dim, width), "text_projection.weight", deviation)?)
            }
            Layout::HuggingFace => None,
            // open_clip multiplies from the right; the transposed view stays tied to the variable.
            Layout::OpenClip => Some(vb.get((width, cfg.projection_dim), "text_projection")?.t()?),
        };
        Ok(Self {
            token_embedding: tower.get_with_hints((cfg.vocab_size, width), tokens, normal(0.02))?,
            position_embedding: tower.get_with_hints(
                (cfg.max_position_embeddings, width),
                positions,
                normal(0.02),
            )?,
            blocks: Block::stack(&blocks, layout, tower.clone())?,
            final_layer_norm: LayerNorm::new(width, cfg.layer_norm_eps, tower.pp(norm))?,
            text_projection,
            eos_token_id: cfg.eos_token_id,
            encoded: Arc::default(),
        })
    }

    /// How many captions it has encoded so far, all its clones together.
    pub fn encoded(&self) -> u64 {
        self.encoded.load(Ordering::Relaxed)
    }

    fn embed(&self, tokens: &Tokens) -> Result<Tensor> {
        let (batch, columns) = (tokens.len(), tokens.ids.first().map_or(0, Vec::len));
        let (vocab, longest) = (self.token_embedding.dim(0)?, self.position_embedding.dim(0)?);
        if columns == 0 || columns > longest {
            return Err(Error::Shape(format!(
                "captions of {columns} tokens: the text tower takes 1 to {longest}"
            )));
        }
        let ids = tokens.ids.concat();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Shape(format!(
                "token id {id}: the text tower knows ids below {vocab}; is this its tokenizer?"
            )));
        }
        self.encoded.fetch_add(batch as u64, Ordering::Relaxed);
        let ids = Tensor::from_vec(ids, batch * columns, self.token_embedding.device())?;
        let rows = self.token_embedding.index_select(&ids, 0)?.reshape((batch, columns, ()))?; // (B, N, D)
        Ok(rows.broadcast_add(&self.position_embedding.narrow(0, 0, columns)?)?)
    }

    /// The position that is pooled: the first end token, or in old files and open_clip the highest id.
    fn pooled_position(&self, row: &[u32]) -> usize {
        let found = match self.eos_token_id {
            2 => row.iter().enumerate().rev().max_by_key(|(_, id)| **id).map(|(i, _)| i),
            eos => row.iter().position(|&id| id == eos),
        };
        // As in the reference, a row without an end token is pooled at its first position.
        found.unwrap_or(0)
    }

    fn project(&self, hidden: &Tensor, tokens: &Tokens) -> Result<Tensor> {
        let (batch, columns, _) = hidden.dims3()?;
        let rows: Vec<u32> = tokens
            .ids
            .iter()
            .enumerate()
            .map(|(b, row)| (b * columns + self.pooled_position(row)) as u32)
            .collect();
        let rows = Tensor::from_vec(rows, batch, hidden.device())?;
        let pooled = hidden.flatten_to(1)?.index_select(&rows, 0)?; // (B, D)
        // The norm works on each token alone, so it is spent only on the pooled ones.
        let pooled = self.final_layer_norm.forward(&pooled)?;
        match &self.text_projection {
            Some(weight) => Ok(nn::linear(&pooled, weight, None)?),
            None => Ok(pooled),
        }
    }

    /// All hidden states and the projected embedding. With `padding_masked` no token attends to padding, as Stable
    /// Cascade's pipeline has it; open_clip and HPS leave padding visible to what comes after it.
    ///
    /// # Errors
    /// Where captions are longer than the tower's context or hold unknown ids.
    pub fn forward(&self, tokens: &Tokens, padding_masked: bool) -> Result<TextStates> {
        let mask = match padding_masked {
            true => Mask::CausalPadded(tokens.lengths.clone()),
            false => Mask::Causal,
        };
        let mut hidden_states = vec![self.embed(tokens)?];
        for block in &self.blocks {
            let next = block.forward(&hidden_states[hidden_states.len() - 1], &mask)?;
            hidden_states.push(next);
        }
        let text_embeds = self.project(&hidden_states[hidden_states.len() - 1], tokens)?;
        Ok(TextStates { hidden_states, text_embeds })
    }

    /// The projected embeddings alone: (B, P). Padding behind the end token cannot reach it, so captions may be
    /// [`Tokens::trimmed`] first where the last bit may depend on the batch, as in training.
    ///
    /// # Errors
    /// As [`TextTower::forward`].
    pub fn embeddings(&self, tokens: &Tokens) -> Result<Tensor> {
        let mut xs = self.embed(tokens)?;
        for block in &self.blocks {
            xs = block.forward(&xs, &Mask::Causal)?;
        }
        self.project(&xs, tokens)
    }
}
