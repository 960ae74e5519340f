//! Classifier-free guidance (Ho and Salimans 2022).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::same_shape;
use crate::error::{Error, Result};
use crate::units::GuidanceScale;

/// Whether the branch of guidance without text keeps the user.
///
/// The paper does not say. Dropping the user multiplies the user's effect by the guidance scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnconditionalUser {
    /// Both branches see the user: guidance acts on the text alone.
    #[default]
    Keep,
    /// The branch without text sees no user either.
    Drop,
}

/// Moves from the unconditional prediction through the conditional one.
///
/// # Equation
/// `unconditional + scale · (conditional − unconditional)`; at scale 1 the conditional prediction itself.
///
/// # Errors
/// Where the shapes differ.
pub fn guide(conditional: &Tensor, unconditional: &Tensor, scale: GuidanceScale) -> Result<Tensor> {
    same_shape("unconditional prediction", conditional, unconditional)?;
    if scale.get() <= 1.0 {
        return Ok(conditional.clone());
    }
    Ok((unconditional + ((conditional - unconditional)? * scale.get())?)?)
}

/// [`guide`] for one pass over both branches.
///
/// # Shapes
/// `pred` `(2B, …)`: the conditional half first, as diffusers orders it; the result is `(B, …)`.
///
/// # Errors
/// Where the batch is odd.
pub fn guide_batch(pred: &Tensor, scale: GuidanceScale) -> Result<Tensor> {
    let (conditional, unconditional) = halves(pred)?;
    guide(&conditional, &unconditional, scale)
}

/// The conditional and the unconditional half of a guided batch.
pub(super) fn halves(pred: &Tensor) -> Result<(Tensor, Tensor)> {
    let both = pred.dim(0)?;
    if both % 2 != 0 {
        return Err(Error::Shape(format!(
            "a guided batch holds a conditional and an unconditional half, got {both} samples"
        )));
    }
    Ok((pred.narrow(0, 0, both / 2)?, pred.narrow(0, both / 2, both / 2)?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn scale_one_is_the_conditional_prediction_and_two_overshoots_as_far_again() {
        let pred = Tensor::from_vec(vec![1f32, 2.0, 0.0, 4.0], (2, 2), &Device::Cpu).unwrap();
        let guided = |scale| {
            let guided = guide_batch(&pred, GuidanceScale::new(scale).unwrap()).unwrap();
            guided.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(guided(1.0), [1.0, 2.0]);
        assert_eq!(guided(2.0), [2.0, 0.0]);
        let odd = Tensor::zeros((3, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(guide_batch(&odd, GuidanceScale::new(2.0).unwrap()).is_err());
    }
}
