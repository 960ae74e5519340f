//! The CLIP score: how well an image fits its prompt.
//!
//! # Source
//! `laion/CLIP-ViT-H-14-laion2B-s32B-b79K` in open_clip; the paper prints 100·cosine.

use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::{Pixels, Scorer};
use crate::error::Result;
use crate::models::clip as model;
use crate::models::tokenizer::Tokenizer;
use crate::pixels::Image;

/// The CLIP and its pixel constants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The two towers.
    pub clip: model::Config,
    /// What the image tower was trained on.
    #[serde(default)]
    pub pixels: Pixels,
}

/// 100·cosine of image and prompt.
#[derive(Debug)]
pub struct Clip {
    scorer: Scorer,
}

impl Clip {
    /// Opens the towers over the weights of `vb`.
    ///
    /// # Errors
    /// Where weights are missing or have other shapes.
    pub fn new(config: &Config, vb: VarBuilder, tokenizer: Tokenizer) -> Result<Self> {
        Ok(Self { scorer: Scorer::new(&config.clip, &config.pixels, vb, tokenizer)? })
    }

    /// 100·cosine of each image and its prompt.
    ///
    /// # Errors
    /// Where an image has another size than the image tower takes.
    pub fn score(&self, images: &[Image], prompts: &[String]) -> Result<Vec<f64>> {
        Ok(self.scorer.cosines(images, prompts)?.into_iter().map(|cosine| 100.0 * cosine).collect())
    }

    /// The towers themselves, for embeddings and retrieval.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }
}
