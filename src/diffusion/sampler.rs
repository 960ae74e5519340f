//! The ancestral DDPM sampler of Würstchen and Stable Cascade.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Schedule, Target, same_shape};
use crate::error::{Error, Result};
use crate::units::Timestep;

/// How latents are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerConfig {
    /// How many times the denoiser is evaluated (the paper: 30).
    pub num_steps: usize,
    /// Clamps the implied clean latents to ±this before each step; absent as published.
    ///
    /// ᾱ starts at 10⁻⁴, so an early error of the denoiser reaches the clean latents a hundredfold: small models need
    /// the clamp, and latents of known range allow it.
    #[serde(default)]
    pub x0_clamp: Option<f64>,
}

/// Takes latents from noise to image, one timestep after another.
///
/// # Equation
/// With `α = ᾱ/ᾱ'` between a timestep and the next: `mean = (x − (1 − α)/√(1 − ᾱ) · ε) / √α`, and noise of variance
/// `(1 − α)(1 − ᾱ')/(1 − ᾱ)`, none at the last step (Ho et al. 2020, equations 11 and 7).
///
/// # Source
/// diffusers `DDPMWuerstchenScheduler`.
#[derive(Debug, Clone)]
pub struct Sampler {
    schedule: Schedule,
    config: SamplerConfig,
    timesteps: Vec<Timestep>,
}

impl Sampler {
    /// A sampler over a schedule.
    ///
    /// # Errors
    /// Where the number of steps is zero or the clamp is not above zero.
    pub fn new(schedule: Schedule, config: SamplerConfig) -> Result<Self> {
        if config.num_steps == 0 {
            return Err(Error::Spec("num_steps must be at least 1, got 0".into()));
        }
        if let Some(bound) = config.x0_clamp.filter(|bound| !(bound.is_finite() && *bound > 0.0)) {
            return Err(Error::Spec(format!("x0_clamp must be a finite number above 0, got {bound}")));
        }
        Ok(Self { schedule, config, timesteps: timesteps(config.num_steps) })
    }

    /// The timesteps from 1 to 0: one for each step, and the end.
    pub fn timesteps(&self) -> &[Timestep] {
        &self.timesteps
    }

    /// How many times the denoiser is evaluated.
    pub fn num_steps(&self) -> usize {
        self.config.num_steps
    }

    /// Latents at the timestep after number `index`, from those at it.
    ///
    /// `noise` is standard normal, from the caller; the last step ignores it, so none need be drawn.
    ///
    /// # Shapes
    /// `latents`, `epsilon_pred` and `noise` `(B, …)`.
    ///
    /// # Errors
    /// Where the shapes differ, noise is missing before the last step, or there is no step `index`.
    pub fn step(
        &self,
        index: usize,
        latents: &Tensor,
        epsilon_pred: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        same_shape("prediction", latents, epsilon_pred)?;
        let Some(&[timestep, next]) = self.timesteps.get(index..index + 2) else {
            return Err(Error::Shape(format!("step {index} does not exist: there are {}", self.num_steps())));
        };
        let alpha_cumprod = self.schedule.alpha_cumprod(timestep);
        let alpha_cumprod_next = self.schedule.alpha_cumprod(next);
        let alpha = alpha_cumprod / alpha_cumprod_next;
        let mean = match self.config.x0_clamp {
            None => {
                let scale = (1.0 - alpha) / (1.0 - alpha_cumprod).sqrt();
                ((latents - (epsilon_pred * scale)?)? / alpha.sqrt())?
            }
            // The same mean, written with x₀ in place of ε so that x₀ can be clamped.
            Some(bound) => {
                let alphas = vec![alpha_cumprod; latents.dim(0)?];
                let x0 = Target::Epsilon.x0_pred(epsilon_pred, latents, &alphas)?.clamp(-bound, bound)?;
                let of_x0 = alpha_cumprod_next.sqrt() * (1.0 - alpha) / (1.0 - alpha_cumprod);
                let of_latents = alpha.sqrt() * (1.0 - alpha_cumprod_next) / (1.0 - alpha_cumprod);
                ((x0 * of_x0)? + (latents * of_latents)?)?
            }
        };
        if next.get() == 0.0 {
            return Ok(mean);
        }
        let Some(noise) = noise else {
            return Err(Error::Shape(format!("step {index} of {} needs noise", self.num_steps())));
        };
        same_shape("noise", latents, noise)?;
        let deviation = ((1.0 - alpha) * (1.0 - alpha_cumprod_next) / (1.0 - alpha_cumprod)).sqrt();
        Ok((mean + (noise * deviation)?)?)
    }
}

/// `linspace(1, 0, num_steps + 1)` in single precision and torch's order of operations: the denoiser's timestep embedding
/// magnifies a difference in the last bit ten thousandfold.
fn timesteps(num_steps: usize) -> Vec<Timestep> {
    let increment = -1.0f32 / num_steps as f32;
    let count = num_steps + 1;
    let at = |index: usize| {
        let from_end = (count - 1 - index) as f32;
        if index < count / 2 { increment.mul_add(index as f32, 1.0) } else { -increment * from_end }
    };
    let checked = |t: f32| Timestep::new(f64::from(t)).expect("linspace stays between its ends");
    (0..count).map(|index| checked(at(index))).collect()
}
