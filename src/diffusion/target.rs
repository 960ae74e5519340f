//! What a denoiser predicts, and how each prediction turns into the others.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{per_sample, same_shape};
use crate::error::Result;

/// What a denoiser's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The noise that was mixed in (Stage C of Stable Cascade).
    #[default]
    Epsilon,
    /// The velocity `√ᾱ · noise − √(1 − ᾱ) · latents` (Salimans and Ho 2022).
    Velocity,
    /// The clean latents.
    Sample,
}

impl Target {
    /// What family tests walk.
    pub const ALL: &[Self] = &[Self::Epsilon, Self::Velocity, Self::Sample];

    /// What a perfect denoiser would have predicted.
    ///
    /// # Shapes
    /// `latents` and `noise` `(B, …)`, one ᾱ for each sample.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn of(self, latents: &Tensor, noise: &Tensor, alpha_cumprod: &[f64]) -> Result<Tensor> {
        same_shape("noise", latents, noise)?;
        match self {
            Self::Epsilon => Ok(noise.clone()),
            Self::Velocity => mix(noise, latents, alpha_cumprod, |a| (a.sqrt(), -(1.0 - a).sqrt())),
            Self::Sample => Ok(latents.clone()),
        }
    }

    /// The clean latents that a prediction implies.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn x0_pred(self, pred: &Tensor, noised: &Tensor, alpha_cumprod: &[f64]) -> Result<Tensor> {
        same_shape("prediction", noised, pred)?;
        match self {
            Self::Epsilon => mix(noised, pred, alpha_cumprod, |a| (1.0 / a.sqrt(), -(1.0 / a - 1.0).sqrt())),
            Self::Velocity => mix(noised, pred, alpha_cumprod, |a| (a.sqrt(), -(1.0 - a).sqrt())),
            Self::Sample => Ok(pred.clone()),
        }
    }

    /// The noise that a prediction implies.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn epsilon_pred(self, pred: &Tensor, noised: &Tensor, alpha_cumprod: &[f64]) -> Result<Tensor> {
        same_shape("prediction", noised, pred)?;
        match self {
            Self::Epsilon => Ok(pred.clone()),
            Self::Velocity => mix(noised, pred, alpha_cumprod, |a| ((1.0 - a).sqrt(), a.sqrt())),
            Self::Sample => {
                mix(noised, pred, alpha_cumprod, |a| (1.0 / (1.0 - a).sqrt(), -(a / (1.0 - a)).sqrt()))
            }
        }
    }
}

/// `first(ᾱ) · left + second(ᾱ) · right`, with the two factors that `factors` makes of each sample's ᾱ.
fn mix(left: &Tensor, right: &Tensor, alphas: &[f64], factors: impl Fn(f64) -> (f64, f64)) -> Result<Tensor> {
    let first = per_sample(alphas.iter().map(|&a| factors(a).0), left)?; // (B, 1, …)
    let second = per_sample(alphas.iter().map(|&a| factors(a).1), right)?; // (B, 1, …)
    Ok((left.broadcast_mul(&first)? + right.broadcast_mul(&second)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    #[test]
    fn every_target_gives_back_latents_and_noise() {
        let mut s = stream(Seed::new(3), "target", 0);
        let mut draw = || {
            let numbers: Vec<f64> = (0..3 * 2 * 2 * 2).map(|_| s.normal()).collect();
            Tensor::from_vec(numbers, (3, 2, 2, 2), &Device::Cpu).unwrap()
        };
        let (latents, noise, alphas) = (draw(), draw(), [1e-4, 0.37, 0.9999]);
        let noised = mix(&latents, &noise, &alphas, |a| (a.sqrt(), (1.0 - a).sqrt())).unwrap();
        let distance = |a: &Tensor, b: &Tensor| {
            (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap()
        };
        for target in Target::ALL {
            let pred = target.of(&latents, &noise, &alphas).unwrap();
            // 1/√ᾱ = 100 multiplies the rounding of f64.
            assert!(
                distance(&target.x0_pred(&pred, &noised, &alphas).unwrap(), &latents) < 1e-12,
                "{target:?}"
            );
            assert!(
                distance(&target.epsilon_pred(&pred, &noised, &alphas).unwrap(), &noise) < 1e-12,
                "{target:?}"
            );
        }
    }
}
