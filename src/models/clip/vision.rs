//! The image tower.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::super::blocks;
use super::block::{Block, BlockConfig, LayerNorm, Layout, normal};
use super::config::VisionConfig;
use crate::error::{Error, Result};
use crate::nn::{self, Mask};

/// CLIP's image tower.
#[derive(Debug, Clone)]
pub struct VisionTower {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    pre_layernorm: LayerNorm,
    blocks: Vec<Block>,
    post_layernorm: LayerNorm,
    visual_projection: Option<Tensor>,
    image_size: usize,
    patch_size: usize,
}

impl VisionTower {
    /// Opens the tower of a `CLIPModel`, a `CLIPVisionModel[WithProjection]`, or an open_clip checkpoint.
    ///
    /// # Errors
    /// Where a weight is missing or has another shape.
    pub fn new(cfg: &VisionConfig, vb: VarBuilder) -> Result<Self> {
        let layout = match vb.contains_tensor("vision_model.embeddings.class_embedding") {
            true => Layout::HuggingFace,
            false if vb.contains_tensor("visual.class_embedding") => Layout::OpenClip,
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
        // The misspelt `pre_layrnorm` is the checkpoints' own key.
        let [root, class, patch, position, pre, post] = match layout {
            Layout::HuggingFace => [
                "vision_model",
                "embeddings.class_embedding",
                "embeddings.patch_embedding.weight",
                "embeddings.position_embedding.weight",
                "pre_layrnorm",
                "post_layernorm",
            ],
            Layout::OpenClip => {
                ["visual", "class_embedding", "conv1.weight", "positional_embedding", "ln_pre", "ln_post"]
            }
        };
        let tower = vb.pp(root);
        let deviation = normal((width as f64).powf(-0.5));
        let visual_projection = match layout {
            Layout::HuggingFace if vb.contains_tensor("visual_projection.weight") => {
                Some(vb.get_with_hints((cfg.projection_dim, width), "visual_projection.weight", deviation)?)
            }
            Layout::HuggingFace => None,
            Layout::OpenClip => Some(tower.get((width, cfg.projection_dim), "proj")?.t()?),
        };
        let side = cfg.image_size / cfg.patch_size;
        Ok(Self {
            class_embedding: tower.get_with_hints(width, class, deviation)?,
            patch_embedding: tower.get_with_hints(
                (width, 3, cfg.patch_size, cfg.patch_size),
                patch,
                normal(0.02),
            )?,
            // As loud as the patches at the start: quieter, the first norm would nearly hide where a patch stands, and
            // shapes and relations, which are arrangements of patches, would be learned late.
            position_embedding: tower.get_with_hints((side * side + 1, width), position, normal(0.3))?,
            pre_layernorm: LayerNorm::new(width, cfg.layer_norm_eps, tower.pp(pre))?,
            blocks: Block::stack(&blocks, layout, tower.clone())?,
            post_layernorm: LayerNorm::new(width, cfg.layer_norm_eps, tower.pp(post))?,
            visual_projection,
            image_size: cfg.image_size,
            patch_size: cfg.patch_size,
        })
    }

    /// The states after the tower's first norm and after each block: (B, 1 + patches, D).
    ///
    /// # Errors
    /// Where the pixels have another size.
    pub fn hidden_states(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = vec![self.embed(pixels)?];
        for block in &self.blocks {
            let next = block.forward(&states[states.len() - 1], &Mask::None)?;
            states.push(next);
        }
        Ok(states)
    }

    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, across) = pixels.dims4()?;
        let (size, patch) = (self.image_size, self.patch_size);
        if (channels, height, across) != (3, size, size) {
            return Err(Error::Shape(format!(
                "pixels {:?}: the image tower takes (B, 3, {size}, {size}); preprocess the images for it first",
                pixels.dims()
            )));
        }
        let width = self.class_embedding.dim(0)?;
        let patches = blocks::patches(pixels, patch)?; // (B, h·w, 3·p·p)
        let patches = nn::linear(&patches, &self.patch_embedding.flatten_from(1)?, None)?; // (B, h·w, D)
        let class = self.class_embedding.reshape((1, 1, width))?.broadcast_as((batch, 1, width))?;
        let xs = Tensor::cat(&[&class.contiguous()?, &patches], 1)?; // (B, 1 + h·w, D)
        self.pre_layernorm.forward(&xs.broadcast_add(&self.position_embedding)?)
    }

    /// The projected image embeddings: (B, P).
    ///
    /// # Errors
    /// Where the pixels have another size.
    pub fn embeddings(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut xs = self.embed(pixels)?;
        for block in &self.blocks {
            xs = block.forward(&xs, &Mask::None)?;
        }
        let pooled = self.post_layernorm.forward(&xs.narrow(1, 0, 1)?.squeeze(1)?)?; // (B, D)
        match &self.visual_projection {
            Some(weight) => Ok(nn::linear(&pooled, weight, None)?),
            None => Ok(pooled),
        }
    }

    /// Pixels across and down.
    pub fn image_size(&self) -> usize {
        self.image_size
    }
}
