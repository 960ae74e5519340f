//! CLIP's text and image towers, in Hugging Face's layout and in open_clip's, trainable and frozen.
//!
//! The text tower gives the hidden states of every layer, since Stable Cascade's Stage C is conditioned on the last one
//! *without* the final norm; the scorers read only the two projected embeddings. What this module does not do: read
//! files, tokenize, or resize images.

use candle_core::{D, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::error::Result;
use crate::models::tokenizer::Tokens;

pub(super) mod block;
mod config;
mod text;
mod vision;

pub use config::{Activation, Config, OpenClipConfig, TextConfig, VisionConfig};
pub use text::{TextStates, TextTower};
pub use vision::VisionTower;

/// Both towers and the temperature.
#[derive(Debug, Clone)]
pub struct Clip {
    /// The text tower.
    pub text: TextTower,
    /// The image tower.
    pub vision: VisionTower,
    /// The logarithm of the temperature's inverse.
    pub logit_scale: Tensor,
}

impl Clip {
    /// Opens a `CLIPModel` or an open_clip checkpoint.
    ///
    /// # Errors
    /// Where a weight is missing or has another shape.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let text = TextConfig { projection_dim: cfg.projection_dim, ..cfg.text_config.clone() };
        let vision = VisionConfig { projection_dim: cfg.projection_dim, ..cfg.vision_config.clone() };
        Ok(Self {
            text: TextTower::new(&text, vb.clone())?,
            vision: VisionTower::new(&vision, vb.clone())?,
            logit_scale: vb.get_with_hints((), "logit_scale", Init::Const(cfg.logit_scale_init_value))?,
        })
    }

    /// Image embeddings of unit length: (B, P).
    ///
    /// # Errors
    /// Where the pixels have another size.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        unit(&self.vision.embeddings(pixels)?)
    }

    /// Text embeddings of unit length: (B, P).
    ///
    /// # Errors
    /// Where the captions are too long or hold unknown ids.
    pub fn text_features(&self, tokens: &Tokens) -> Result<Tensor> {
        unit(&self.text.embeddings(tokens)?)
    }
}

/// Rows scaled to unit length.
///
/// # Errors
/// Where the tensor library refuses.
pub fn unit(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.broadcast_div(&xs.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
}
