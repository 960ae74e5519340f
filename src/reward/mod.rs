//! Rewards: what a picture is worth to one user, given its prompt.
//!
//! Each reward is one file with its `Config` and `score(&self, images, prompts) -> Result<Vec<f64>>`; the enum below is
//! the closed list of them. A score depends on its image and its prompt alone, never on the batch around them. Higher
//! is better for all. What this module does not do: read weight files (builders are handed in) or compare methods.
//!
//! The desk world's rewards `clip`, `aesthetic`, `hps` and their never-trained-on twins are instances of the same kinds
//! with other weights.

use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::tokenizer::{Cut, Tokenizer};
use crate::pixels::Image;

pub mod aesthetic;
pub mod brightness;
pub mod clip;
pub mod hps;
pub mod image_reward;
pub mod pick_score;
pub mod preprocess;
pub mod published;
mod scorer;

pub use preprocess::Preprocessing;
pub use published::Published;
pub use scorer::{Pixels, Scorer, cosine, retrieval};

/// What a reward is made of, without its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Config {
    /// 100·cosine of a CLIP.
    Clip(clip::Config),
    /// LAION's head on a CLIP's image embedding.
    Aesthetic(aesthetic::Config),
    /// 100·cosine of a CLIP tuned on human choices.
    Hps(hps::Config),
    /// exp(logit scale)·cosine of a CLIP tuned on human choices.
    PickScore(pick_score::Config),
    /// A head over BLIP, trained on human rankings.
    ImageReward(image_reward::Config),
    /// The mean pixel: the planted reward.
    Brightness(brightness::Config),
}

/// Images or prompts in one pass through a tower: enough to fill the cores, little enough for any memory.
const BATCH: usize = 64;

/// The kinds of reward, as configuration files spell them.
pub const ALL: &[&str] = &["clip", "aesthetic", "hps", "pick-score", "image-reward", "brightness"];

/// A reward that is ready to score.
#[derive(Debug)]
pub enum Reward {
    /// 100·cosine of a CLIP.
    Clip(clip::Clip),
    /// LAION's head on a CLIP's image embedding.
    Aesthetic(aesthetic::Aesthetic),
    /// 100·cosine of a CLIP tuned on human choices.
    Hps(hps::Hps),
    /// exp(logit scale)·cosine of a CLIP tuned on human choices.
    PickScore(pick_score::PickScore),
    /// A head over BLIP, trained on human rankings.
    ImageReward(image_reward::ImageReward),
    /// The mean pixel: the planted reward.
    Brightness(brightness::Brightness),
}

impl Config {
    /// The reward over the weights of `vb`. Whoever opens it hands in the tokenizer that came with the weights; the
    /// kinds that never read a prompt need none. An aesthetic head is looked for below `layers`, as in LAION's file.
    ///
    /// # Errors
    /// Where weights are missing or have other shapes, or the tokenizer is missing.
    pub fn open(&self, vb: VarBuilder, tokenizer: Option<Tokenizer>) -> Result<Reward> {
        let tokenizer = || {
            tokenizer
                .ok_or_else(|| Error::Spec("this reward reads prompts: it needs a tokenizer.json".to_owned()))
        };
        Ok(match self {
            Self::Clip(config) => Reward::Clip(clip::Clip::new(config, vb, tokenizer()?)?),
            Self::Aesthetic(config) => {
                Reward::Aesthetic(aesthetic::Aesthetic::new(config, vb.clone(), vb.pp("layers"))?)
            }
            Self::Hps(config) => Reward::Hps(hps::Hps::new(config, vb, tokenizer()?)?),
            Self::PickScore(config) => {
                Reward::PickScore(pick_score::PickScore::new(config, vb, tokenizer()?)?)
            }
            Self::ImageReward(config) => {
                Reward::ImageReward(image_reward::ImageReward::new(config, vb, tokenizer()?)?)
            }
            Self::Brightness(config) => Reward::Brightness(brightness::Brightness::new(config)),
        })
    }
}

impl Reward {
    /// The CLIP behind a reward that compares pictures with prompts.
    pub fn scorer(&self) -> Option<&Scorer> {
        match self {
            Self::Clip(reward) => Some(reward.scorer()),
            Self::Hps(reward) => Some(reward.scorer()),
            Self::PickScore(reward) => Some(reward.scorer()),
            Self::Aesthetic(_) | Self::ImageReward(_) | Self::Brightness(_) => None,
        }
    }

    /// What a reward that reads prompts leaves out of one that is longer than its context, as its reference does.
    ///
    /// # Errors
    /// Where the tokenizer refuses the prompt.
    pub fn cut(&self, prompt: &str) -> Result<Option<Cut>> {
        let tokenizer = match self {
            Self::ImageReward(reward) => Some(reward.tokenizer()),
            _ => self.scorer().map(Scorer::tokenizer),
        };
        tokenizer.map_or(Ok(None), |tokenizer| tokenizer.cut(prompt))
    }

    /// One score for each (image, prompt).
    ///
    /// # Errors
    /// Where there are not as many prompts as images, or an image has another size than the reward takes.
    pub fn score(&self, images: &[Image], prompts: &[String]) -> Result<Vec<f64>> {
        if images.len() != prompts.len() {
            return Err(Error::Shape(format!(
                "{} images but {} prompts to score",
                images.len(),
                prompts.len()
            )));
        }
        match self {
            Self::Clip(reward) => reward.score(images, prompts),
            Self::Aesthetic(reward) => reward.score(images, prompts),
            Self::Hps(reward) => reward.score(images, prompts),
            Self::PickScore(reward) => reward.score(images, prompts),
            Self::ImageReward(reward) => reward.score(images, prompts),
            Self::Brightness(reward) => reward.score(images, prompts),
        }
    }
}
