//! Classifier-free guidance (Ho and Salimans 2022).

use std::num::NonZeroUsize;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{TimestepRange, same_shape};
use crate::error::{Error, Result};
use crate::units::{GuidanceScale, Timestep};

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

/// At which steps the unconditional half is evaluated; the default is every step.
///
/// # Source
/// The interval: Kynkäänniemi et al. 2024, "Applying guidance in a limited interval improves sample and distribution quality
/// in diffusion models", here in Stage C's timesteps instead of noise levels. That a half may be kept for some steps is an
/// approximation of this project.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuidanceSteps {
    /// The timesteps at which there is guidance; at the others the conditional prediction stands alone.
    #[serde(default, skip_serializing_if = "TimestepRange::is_all")]
    pub interval: TimestepRange,
    /// The unconditional half is evaluated at the first of so many guided steps, and kept for the others.
    #[serde(default = "GuidanceSteps::one")]
    pub unconditional_every: NonZeroUsize,
}

/// What one step does about the unconditional half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnconditionalHalf {
    /// No guidance here.
    Absent,
    /// Evaluated, in one batch with the conditional half.
    Evaluated,
    /// That of the last step that evaluated it.
    Kept,
}

impl GuidanceSteps {
    /// Guidance at every step, both halves evaluated.
    pub const ALL: Self = Self { interval: TimestepRange::ALL, unconditional_every: NonZeroUsize::MIN };

    const fn one() -> NonZeroUsize {
        Self::ALL.unconditional_every
    }

    /// Whether no evaluation is saved.
    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }

    /// What each step does, under a scale that guides.
    pub fn halves(self, timesteps: &[Timestep]) -> Vec<UnconditionalHalf> {
        let mut guided = 0;
        let of_step = |timestep: &Timestep| {
            if !self.interval.contains(*timestep) {
                return UnconditionalHalf::Absent;
            }
            guided += 1;
            match (guided - 1) % self.unconditional_every {
                0 => UnconditionalHalf::Evaluated,
                _ => UnconditionalHalf::Kept,
            }
        };
        timesteps.iter().map(of_step).collect()
    }
}

impl Default for GuidanceSteps {
    fn default() -> Self {
        Self::ALL
    }
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
    fn an_interval_and_kept_halves_leave_evaluations_out() {
        use UnconditionalHalf::{Absent, Evaluated, Kept};
        let timesteps = [1.0, 0.75, 0.5, 0.25].map(|t| Timestep::new(t).unwrap());
        let halves = |from, to, unconditional_every| {
            let interval = TimestepRange::new(from, to).unwrap();
            let unconditional_every = NonZeroUsize::new(unconditional_every).unwrap();
            GuidanceSteps { interval, unconditional_every }.halves(&timesteps)
        };
        assert_eq!(halves(0.0, 1.0, 1), [Evaluated; 4]);
        assert_eq!(GuidanceSteps::default().halves(&timesteps), [Evaluated; 4]);
        // Both ends belong to it.
        assert_eq!(halves(0.5, 0.75, 1), [Absent, Evaluated, Evaluated, Absent]);
        assert_eq!(halves(0.0, 1.0, 2), [Evaluated, Kept, Evaluated, Kept]);
        assert_eq!(halves(0.0, 0.8, 3), [Absent, Evaluated, Kept, Kept]);
        assert_eq!(halves(0.0, 1.0, 9), [Evaluated, Kept, Kept, Kept]);
    }

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
