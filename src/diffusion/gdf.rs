//! Stability's own sampler for Stable Cascade, `gdf`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::schedule::sigmoid;
use super::{Schedule, Target, same_shape};
use crate::error::{Error, Result};
use crate::units::{GuidanceScale, LogSnr, Timestep};

/// How `gdf` samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GdfConfig {
    /// How many times the denoiser is evaluated (Stability's notebooks: 20).
    pub num_steps: usize,
    /// Moves the log-SNR of every timestep by `2 ln(1/shift)`; 1 leaves it (Stability's notebooks: 2).
    #[serde(default = "one")]
    pub shift: f64,
    /// How far the guided prediction is brought back to the conditional one's standard deviation, in [0, 1]; 0 leaves it.
    /// Upstream's hidden default is 0.7 (`cfg_rho`).
    #[serde(default)]
    pub guidance_rescale: f64,
}

const fn one() -> f64 {
    1.0
}

/// Takes latents from noise to image as upstream does, which differs from diffusers' [`Sampler`](super::Sampler) in the
/// timestep that the denoiser is told (0.99358 first, not 1), in noise at the last step too, and in guidance.
///
/// # Equation
/// With `σ² = (1 − ᾱ')/(1 − ᾱ) · (1 − ᾱ/ᾱ')`: `x' = √ᾱ' · x₀ + √(1 − ᾱ' − σ²) · ε + σ · noise` (Song et al. 2021,
/// equation 12, with η = 1).
///
/// # Source
/// StableCascade `gdf.GDF.sample` with `DDPMSampler` and `VPScaler`.
#[derive(Debug, Clone)]
pub struct Gdf {
    config: GdfConfig,
    /// ᾱ at each step, and at the end.
    alpha_cumprod: Vec<f64>,
    /// What the denoiser is told at each step.
    timesteps: Vec<Timestep>,
}

impl Gdf {
    /// A sampler over a schedule.
    ///
    /// # Errors
    /// Where there is no step, the shift is not above zero, or the rescale lies outside [0, 1].
    pub fn new(schedule: Schedule, config: GdfConfig) -> Result<Self> {
        let GdfConfig { num_steps, shift, guidance_rescale } = config;
        if num_steps == 0 {
            return Err(Error::Spec("num_steps must be at least 1, got 0".into()));
        }
        if !(shift.is_finite() && shift > 0.0) {
            return Err(Error::Spec(format!("shift must be a finite number above 0, got {shift}")));
        }
        if !(0.0..=1.0).contains(&guidance_rescale) {
            return Err(Error::Spec(format!("guidance_rescale must lie in [0, 1], got {guidance_rescale}")));
        }
        let at = |t: f64| -> Result<f64> { Ok(schedule.log_snr(Timestep::new(t)?).get()) };
        let (least, most) = (at(1.0)?, at(0.0)?);
        let log_snr = |index: usize| -> Result<LogSnr> {
            let shifted = at(1.0 - index as f64 / num_steps as f64)? - 2.0 * shift.ln();
            LogSnr::new(shifted.clamp(least, most))
        };
        let log_snrs = (0..=num_steps).map(log_snr).collect::<Result<Vec<_>>>()?;
        let timesteps = log_snrs[..num_steps].iter().map(|&log_snr| schedule.timestep(log_snr)).collect();
        let alpha_cumprod = log_snrs.iter().map(|log_snr| sigmoid(log_snr.get())).collect();
        Ok(Self { config, alpha_cumprod, timesteps })
    }

    /// What the denoiser is told at each step.
    pub fn timesteps(&self) -> &[Timestep] {
        &self.timesteps
    }

    /// The guided prediction: as [`guide`](super::guide), then brought back towards the conditional one's deviation.
    ///
    /// # Equation
    /// `ρ · guided · std(conditional)/std(guided) + (1 − ρ) · guided`, each deviation over the whole batch.
    ///
    /// # Errors
    /// Where the shapes differ.
    pub fn guide(
        &self,
        conditional: &Tensor,
        unconditional: &Tensor,
        scale: GuidanceScale,
    ) -> Result<Tensor> {
        let guided = super::guide(conditional, unconditional, scale)?;
        let rho = self.config.guidance_rescale;
        if rho == 0.0 {
            return Ok(guided);
        }
        let ratio = deviation(conditional)? / (deviation(&guided)? + 1e-9);
        Ok((guided * (rho * ratio + 1.0 - rho))?)
    }

    /// Latents after step number `index`, from those before it; every step takes noise.
    ///
    /// # Shapes
    /// `latents`, `epsilon_pred` and `noise` `(B, …)`.
    ///
    /// # Errors
    /// Where the shapes differ or there is no step `index`.
    pub fn step(
        &self,
        index: usize,
        latents: &Tensor,
        epsilon_pred: &Tensor,
        noise: &Tensor,
    ) -> Result<Tensor> {
        same_shape("prediction", latents, epsilon_pred)?;
        same_shape("noise", latents, noise)?;
        let Some(&[alpha, next]) = self.alpha_cumprod.get(index..index + 2) else {
            let steps = self.config.num_steps;
            return Err(Error::Shape(format!("step {index} does not exist: there are {steps}")));
        };
        let x0 = Target::Epsilon.x0_pred(epsilon_pred, latents, &vec![alpha; latents.dim(0)?])?;
        let variance = (1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next);
        let of_epsilon = (1.0 - next - variance).max(0.0).sqrt();
        let mean = ((x0 * next.sqrt())? + (epsilon_pred * of_epsilon)?)?;
        Ok((mean + (noise * variance.sqrt())?)?)
    }
}

/// The standard deviation of all elements, with one degree of freedom less, as torch has it.
fn deviation(xs: &Tensor) -> Result<f64> {
    let xs: Vec<f64> = xs.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1()?;
    let mean = xs.iter().sum::<f64>() / xs.len() as f64;
    let squares: f64 = xs.iter().map(|x| (x - mean).powi(2)).sum();
    Ok((squares / (xs.len() as f64 - 1.0)).sqrt())
}
