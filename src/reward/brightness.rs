//! The planted reward: the mean pixel. A method that learns anything learns this one.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::pixels::Image;

/// Nothing to choose.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The mean of all bytes, in [0, 1].
#[derive(Debug)]
pub struct Brightness(());

impl Brightness {
    /// Opens the reward, which has no weights.
    pub fn new(_config: &Config) -> Self {
        Self(())
    }

    /// The mean of each image's bytes, in [0, 1]; prompts are not read.
    ///
    /// # Errors
    /// Never; the signature is every reward's.
    pub fn score(&self, images: &[Image], _prompts: &[String]) -> Result<Vec<f64>> {
        let mean = |image: &Image| {
            let sum: u64 = image.rgb().iter().map(|&byte| u64::from(byte)).sum();
            sum as f64 / (255 * image.rgb().len().max(1)) as f64
        };
        Ok(images.iter().map(mean).collect())
    }
}
