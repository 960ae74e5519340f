//! PickScore: a CLIP tuned on Pick-a-Pic's choices.
//!
//! # Source
//! `yuvalkirstain/PickScore_v1`: exp(logit scale)·cosine; the softmax over two images is the probability of a choice.

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

/// exp(logit scale)·cosine of image and prompt.
#[derive(Debug)]
pub struct PickScore {
    scorer: Scorer,
    inverse_temperature: f64,
}

impl PickScore {
    /// Opens the towers over the weights of `vb`.
    ///
    /// # Errors
    /// Where weights are missing or have other shapes.
    pub fn new(config: &Config, vb: VarBuilder, tokenizer: Tokenizer) -> Result<Self> {
        let scorer = Scorer::new(&config.clip, &config.pixels, vb, tokenizer)?;
        Ok(Self { inverse_temperature: scorer.inverse_temperature()?, scorer })
    }

    /// exp(logit scale)·cosine of each image and its prompt.
    ///
    /// # Errors
    /// Where an image has another size than the image tower takes.
    pub fn score(&self, images: &[Image], prompts: &[String]) -> Result<Vec<f64>> {
        Ok(self
            .scorer
            .cosines(images, prompts)?
            .into_iter()
            .map(|cosine| self.inverse_temperature * cosine)
            .collect())
    }

    /// The towers themselves, for embeddings and retrieval.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }
}
