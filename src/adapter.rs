//! The user branch: decoupled cross-attention's parameters (the paper's Eq. 7), the user projector, user dropout.
//!
//! A user vector becomes a few tokens; each attention block of the denoiser attends to them with keys and values of its
//! own and the denoiser's queries, and adds the result. These are the only parameters that fine-tuning trains. The
//! denoiser takes keys and values and never learns where they come from; what a user vector means (a one-hot reward, a
//! mixture, an embedding) is no business of this module either.

use candle_core::{D, Tensor};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{self, KeyValue, TensorResult};
use crate::rng::Stream;

/// The sizes of a user branch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Width of a user vector: three for a one-hot choice among three rewards.
    pub user_width: usize,
    /// Tokens made of one user. A single one leaves the softmax no choice: it adds a constant, and K′ never learns.
    pub num_tokens: usize,
    /// Width of a token.
    pub token_width: usize,
    /// Whether the projector has a bias: then the absent user, all zeros, is learned; else it is the base exactly.
    #[serde(default)]
    pub projector_bias: bool,
    /// Standard deviation of the projector's initial weights.
    #[serde(default = "default_projector_std")]
    pub projector_std: f64,
}

const fn default_projector_std() -> f64 {
    1.0
}

impl Config {
    /// Refuses sizes that make no branch.
    ///
    /// # Errors
    /// [`Error::Spec`] naming the field.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("user_width", self.user_width),
            ("num_tokens", self.num_tokens),
            ("token_width", self.token_width),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::Spec(format!("adapter.{name} must be at least 1, got 0")));
        }
        if !(self.projector_std.is_finite() && self.projector_std > 0.0) {
            let got = self.projector_std;
            return Err(Error::Spec(format!(
                "adapter.projector_std must be a finite number above 0, got {got}"
            )));
        }
        Ok(())
    }
}

/// The bytes that training a branch over attention blocks of these widths takes beside the model: parameters, gradients and
/// AdamW's two moments, each in single precision. The user projector, small beside the blocks, is not counted.
pub fn training_bytes(token_width: usize, blocks: &[(String, usize)]) -> u64 {
    const COPIES: u64 = 4;
    let maps: u64 = blocks.iter().map(|(_, width)| 2 * (width * token_width) as u64).sum();
    COPIES * size_of::<f32>() as u64 * maps
}

/// The parameters of a user branch, under IP-Adapter's keys: `<block>.to_k_ip.weight`, `<block>.to_v_ip.weight`, and
/// `user_projector.weight` (and `.bias`).
#[derive(Debug, Clone)]
pub struct Adapter {
    config: Config,
    projector: Tensor,
    projector_bias: Option<Tensor>,
    blocks: Vec<Block>,
}

/// One attention block's W′k and W′v, `(C, D)` each.
#[derive(Debug, Clone)]
struct Block {
    name: String,
    to_k: Tensor,
    to_v: Tensor,
}

impl Adapter {
    /// The branch for a denoiser's attention blocks, each a name and a width, in the denoiser's order.
    ///
    /// New variables start so that the branch adds exactly nothing: W′v is zero, W′k and the projector are random.
    ///
    /// # Errors
    /// Where a size is zero, or a stored tensor is missing or of another shape.
    pub fn new(config: Config, blocks: &[(String, usize)], vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let Config { user_width, num_tokens, token_width, projector_bias, projector_std } = config;
        let random = |stdev| Init::Randn { mean: 0.0, stdev };
        let outputs = num_tokens * token_width;
        let projector_vb = vb.pp("user_projector");
        let projector =
            projector_vb.get_with_hints((outputs, user_width), "weight", random(projector_std))?;
        let projector_bias = match projector_bias {
            true => Some(projector_vb.get_with_hints(outputs, "bias", Init::Const(0.0))?),
            false => None,
        };
        let blocks = blocks
            .iter()
            .map(|(name, width)| {
                let shape = (*width, token_width);
                let weight = |leaf: &str, init| vb.pp(name).pp(leaf).get_with_hints(shape, "weight", init);
                let to_k = weight("to_k_ip", random(1.0 / (token_width as f64).sqrt()))?;
                Ok(Block { name: name.clone(), to_k, to_v: weight("to_v_ip", Init::Const(0.0))? })
            })
            .collect::<TensorResult<_>>()?;
        Ok(Self { config, projector, projector_bias, blocks })
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The attention blocks, each a name and a width, in the denoiser's order.
    pub fn blocks(&self) -> Vec<(String, usize)> {
        let width = |block: &Block| block.to_k.dims().first().copied().unwrap_or(0);
        self.blocks.iter().map(|block| (block.name.clone(), width(block))).collect()
    }

    /// User tokens.
    ///
    /// # Shapes
    /// `users` `(B, U)`; the result is `(B, num_tokens, D)`.
    ///
    /// # Errors
    /// Where the width of a user vector is another one.
    pub fn tokens(&self, users: &Tensor) -> Result<Tensor> {
        let Config { user_width, num_tokens, token_width, .. } = self.config;
        match users.dims() {
            &[batch, width] if width == user_width => {
                let flat = nn::linear(users, &self.projector, self.projector_bias.as_ref())?; // (B, num_tokens·D)
                Ok(flat.reshape((batch, num_tokens, token_width))?) // (B, num_tokens, D)
            }
            got => {
                Err(Error::Shape(format!("user vectors should have shape (B, {user_width}), got {got:?}")))
            }
        }
    }

    /// Each block's keys and values for user tokens: once for each user, whatever the number of images or steps.
    ///
    /// # Equation
    /// `K′ = u·W′k`, `V′ = u·W′v` (PPD, Eq. 7), without bias, so that all-zero tokens add exactly nothing.
    ///
    /// # Shapes
    /// `tokens` `(B, num_tokens, D)`; keys and values `(B, num_tokens, C)`, in the blocks' order.
    ///
    /// # Errors
    /// Where the width of a token is another one.
    pub fn key_values(&self, tokens: &Tensor) -> Result<Vec<KeyValue>> {
        match tokens.dims() {
            &[_, _, width] if width == self.config.token_width => {}
            got => {
                let expected = self.config.token_width;
                return Err(Error::Shape(format!(
                    "user tokens should have shape (B, N, {expected}), got {got:?}"
                )));
            }
        }
        let blocks = self.blocks.iter();
        Ok(blocks
            .map(|block| {
                let [keys, values] =
                    [&block.to_k, &block.to_v].map(|weight| nn::linear(tokens, weight, None));
                Ok(KeyValue::new(Tensor::cat(&[keys?, values?], D::Minus1)?)) // (B, num_tokens, 2C)
            })
            .collect::<TensorResult<_>>()?)
    }
}

/// Replaces a user vector by the absent user, all zeros, with some probability, and tells whether it did.
///
/// The paper drops users at a rate that it does not give. One number is drawn whatever the probability, so that what
/// else comes from the stream does not depend on it. Without a projector bias a dropped sample trains nothing.
pub fn drop_user(user: &mut [f32], probability: f64, stream: &mut Stream) -> bool {
    let dropped = stream.chance(probability);
    if dropped {
        user.fill(0.0);
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    #[test]
    fn users_are_dropped_at_the_rate_and_shift_nothing() {
        let count = 10_000;
        let dropped = |probability: f64| -> (usize, u64) {
            let mut s = stream(Seed::new(5), "drop", 0);
            let mut number = 0;
            for _ in 0..count {
                let mut user = [0.25, 0.75];
                let was_dropped = drop_user(&mut user, probability, &mut s);
                assert_eq!(user, if was_dropped { [0.0, 0.0] } else { [0.25, 0.75] });
                number += usize::from(was_dropped);
            }
            (number, s.bits())
        };
        let (tenth, next) = dropped(0.1);
        // Four standard errors of a share of one tenth.
        assert!((tenth as f64 - 1000.0).abs() < 4.0 * 30.0, "{tenth}");
        assert_eq!(dropped(0.0), (0, next));
        assert_eq!(dropped(1.0), (count, next));
    }

    #[test]
    fn configuration_is_closed_and_checked() {
        let read: Config =
            serde_json::from_str(r#"{"user_width":3,"num_tokens":4,"token_width":64}"#).unwrap();
        assert_eq!((read.projector_bias, read.projector_std), (false, 1.0));
        read.check().unwrap();
        let message = Config { num_tokens: 0, ..read }.check().unwrap_err().to_string();
        assert!(message.contains("num_tokens"), "{message}");
        assert!(serde_json::from_str::<Config>(r#"{"user_width":3,"num_tokens":4,"width":64}"#).is_err());
    }
}
