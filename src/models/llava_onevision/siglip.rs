//! SigLIP's image tower up to the hidden state that the features are read from, before the tower's last norm.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::super::clip::block::{Block, BlockConfig, Layout, normal};
use super::config::VisionConfig;
use crate::error::{Error, Result};
use crate::nn::{self, Mask};

/// Numbers of one hidden state that go through the blocks at once: eight tiles at the true size, where each takes about 40
/// MB there.
const AT_ONCE: usize = 8 * 729 * 1152;

/// The image tower.
#[derive(Debug, Clone)]
pub struct SiglipTower {
    patch_embedding: (Tensor, Tensor),
    position_embedding: Tensor,
    blocks: Vec<Block>,
    config: VisionConfig,
}

impl SiglipTower {
    /// Opens the tower's first `layers` blocks; `post_layernorm`, which comes after them, is not asked for.
    ///
    /// # Errors
    /// Where a weight is missing or has another shape.
    pub fn new(cfg: &VisionConfig, layers: usize, vb: VarBuilder) -> Result<Self> {
        let (width, patch, side) = (cfg.hidden_size, cfg.patch_size, cfg.patches());
        let blocks = BlockConfig {
            width,
            inner: cfg.intermediate_size,
            layers,
            heads: cfg.num_attention_heads,
            act: cfg.hidden_act,
            eps: cfg.layer_norm_eps,
        };
        let tower = vb.pp("vision_model");
        let embeddings = tower.pp("embeddings");
        let deviation = (width as f64).powf(-0.5);
        Ok(Self {
            patch_embedding: (
                embeddings.get_with_hints(
                    (width, 3, patch, patch),
                    "patch_embedding.weight",
                    normal((3.0 * (patch * patch) as f64).powf(-0.5)),
                )?,
                embeddings.get_with_hints(width, "patch_embedding.bias", candle_nn::Init::Const(0.0))?,
            ),
            position_embedding: embeddings.get_with_hints(
                (side * side, width),
                "position_embedding.weight",
                normal(deviation),
            )?,
            blocks: Block::stack(&blocks, Layout::HuggingFace, tower)?,
            config: cfg.clone(),
        })
    }

    /// How many pictures go through the blocks at once.
    pub fn at_once(&self) -> usize {
        let side = self.config.patches();
        (AT_ONCE / (side * side * self.config.hidden_size).max(1)).max(1)
    }

    /// The hidden state after the last block that was opened: (B, 3, S, S) to (B, patches, D).
    ///
    /// # Errors
    /// Where the pixels have another size.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, across) = pixels.dims4()?;
        let (size, patch, side) = (self.config.image_size, self.config.patch_size, self.config.patches());
        if (channels, height, across) != (3, size, size) {
            return Err(Error::Shape(format!(
                "pixels {:?}: the image tower takes (B, 3, {size}, {size}); preprocess the images for it first",
                pixels.dims()
            )));
        }
        let most = self.at_once();
        let parts = (0..batch).step_by(most).map(|first| {
            let count = most.min(batch - first);
            let patches = pixels
                .narrow(0, first, count)?
                .narrow(2, 0, side * patch)?
                .narrow(3, 0, side * patch)?
                .reshape((count, 3, side, patch, side, patch))? // (B, 3, h, p, w, p)
                .permute((0, 2, 4, 1, 3, 5))?
                .reshape((count, side * side, 3 * patch * patch))?; // (B, h·w, 3·p·p)
            // A convolution whose stride is its size is a linear map of patches.
            let (weight, bias) = &self.patch_embedding;
            let xs = nn::linear(&patches, &weight.flatten_from(1)?, Some(bias))?; // (B, h·w, D)
            let mut xs = xs.broadcast_add(&self.position_embedding)?;
            for block in &self.blocks {
                xs = block.forward(&xs, &Mask::None)?;
            }
            Ok(xs)
        });
        let parts = parts.collect::<Result<Vec<Tensor>>>()?;
        match &parts[..] {
            [one] => Ok(one.clone()),
            all => Ok(Tensor::cat(all, 0)?),
        }
    }
}
