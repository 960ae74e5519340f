//! ImageReward: a BLIP that reads prompt and picture together, under a head that was trained on people's rankings.
//!
//! The head is a chain of linear maps without a non-linearity, as the aesthetic one's, and is folded the same way.
//!
//! # Source
//! `THUDM/ImageReward`, `ImageReward/ImageReward.py`: the score is the head's value, standardised by its mean and standard
//! deviation over the training set.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::aesthetic::{Head, HeadConfig};
use super::{BATCH, Pixels};
use crate::error::Result;
use crate::models::blip;
use crate::models::tokenizer::{Tokenizer, Tokens};
use crate::pixels::Image;

/// How many tokens of a prompt ImageReward reads, its start and end included.
pub const CONTEXT: usize = 35;
/// The head's mean over the training set.
const MEAN: f64 = 0.167_173_628_300_524_26;
/// The head's standard deviation over the training set.
const DEVIATION: f64 = 1.033_339_496_605_407_2;

/// The two encoders, the pixel constants, and the head's widths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The image encoder.
    pub vision: blip::VisionConfig,
    /// The text encoder.
    pub text: blip::TextConfig,
    /// What the image encoder was trained on.
    #[serde(default)]
    pub pixels: Pixels,
    /// The head.
    #[serde(default)]
    pub head: HeadConfig,
}

/// The standardised value of ImageReward's head.
#[derive(Debug)]
pub struct ImageReward {
    vision: blip::VisionEncoder,
    text: blip::TextEncoder,
    tokenizer: Tokenizer,
    pixels: Pixels,
    weight: Vec<f64>,
    bias: f64,
    device: Device,
}

impl ImageReward {
    /// Opens the model over the weights of `vb`; its `tokenizer` cuts and fills to [`CONTEXT`] tokens.
    ///
    /// # Errors
    /// Where weights are missing or have other shapes.
    pub fn new(config: &Config, vb: VarBuilder, tokenizer: Tokenizer) -> Result<Self> {
        let encoders = vb.pp("blip");
        let head = Head::new(&config.head, config.text.hidden_size, vb.pp("mlp.layers"))?;
        let (weight, bias) = head.folded()?;
        Ok(Self {
            vision: blip::VisionEncoder::new(&config.vision, encoders.pp("visual_encoder"))?,
            text: blip::TextEncoder::new(
                &config.text,
                config.vision.hidden_size,
                encoders.pp("text_encoder"),
            )?,
            tokenizer,
            pixels: config.pixels.clone(),
            weight,
            bias,
            device: vb.device().clone(),
        })
    }

    /// The head's standardised value for each image and its prompt.
    ///
    /// # Errors
    /// Where an image cannot be preprocessed, or the tokenizer refuses a prompt.
    pub fn score(&self, images: &[Image], prompts: &[String]) -> Result<Vec<f64>> {
        let mut scores = Vec::with_capacity(images.len());
        for (images, prompts) in images.chunks(BATCH).zip(prompts.chunks(BATCH)) {
            let images: Vec<&Image> = images.iter().collect();
            let pixels = self.pixels.tensor(&images, self.vision.image_size(), &self.device)?;
            scores.extend(self.score_inputs(&pixels, &self.tokenizer.encode(prompts)?)?);
        }
        Ok(scores)
    }

    /// As [`ImageReward::score`], of pixels (B, 3, S, S) and tokens that are made already.
    ///
    /// # Errors
    /// Where shapes do not fit.
    pub fn score_inputs(&self, pixels: &Tensor, tokens: &Tokens) -> Result<Vec<f64>> {
        let states = self.text.hidden_states(tokens, &self.vision.forward(pixels)?)?;
        let last = &states[states.len() - 1];
        let class = last.narrow(1, 0, 1)?.squeeze(1)?; // (B, D)
        let affine = |row: &Vec<f32>| {
            let raw = self.bias + row.iter().zip(&self.weight).map(|(x, w)| f64::from(*x) * w).sum::<f64>();
            (raw - MEAN) / DEVIATION
        };
        Ok(class.to_vec2::<f32>()?.iter().map(affine).collect())
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}
