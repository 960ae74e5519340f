//! The ways from noise to image, behind one face.

use candle_core::Tensor;

use super::guidance::halves;
use super::{Gdf, Sampler, guide_batch};
use crate::error::{Error, Result};
use crate::units::{GuidanceScale, Timestep};

/// A sampler, whichever it is.
#[derive(Debug, Clone)]
pub enum Process {
    /// diffusers' ancestral sampler.
    Ddpm(Sampler),
    /// Stability's own.
    Gdf(Gdf),
}

impl Process {
    /// What the denoiser is told at each step.
    pub fn timesteps(&self) -> &[Timestep] {
        match self {
            Self::Ddpm(sampler) => &sampler.timesteps()[..sampler.num_steps()],
            Self::Gdf(sampler) => sampler.timesteps(),
        }
    }

    /// Whether a step takes noise: the last one of diffusers' sampler does not.
    pub fn takes_noise(&self, index: usize) -> bool {
        match self {
            Self::Ddpm(sampler) => index + 1 < sampler.num_steps(),
            Self::Gdf(_) => true,
        }
    }

    /// The guided prediction of one pass over both branches.
    ///
    /// # Shapes
    /// `pred` `(2B, …)`: the conditional half first; the result is `(B, …)`.
    ///
    /// # Errors
    /// Where the batch is odd.
    pub fn guide(&self, pred: &Tensor, scale: GuidanceScale) -> Result<Tensor> {
        match self {
            Self::Ddpm(_) => guide_batch(pred, scale),
            Self::Gdf(sampler) => {
                let (conditional, unconditional) = halves(pred)?;
                sampler.guide(&conditional, &unconditional, scale)
            }
        }
    }

    /// Latents after step number `index`, from those before it.
    ///
    /// # Errors
    /// Where the shapes differ, noise is missing that the step takes, or there is no such step.
    pub fn step(
        &self,
        index: usize,
        latents: &Tensor,
        epsilon_pred: &Tensor,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        match (self, noise) {
            (Self::Ddpm(sampler), noise) => sampler.step(index, latents, epsilon_pred, noise),
            (Self::Gdf(sampler), Some(noise)) => sampler.step(index, latents, epsilon_pred, noise),
            (Self::Gdf(_), None) => Err(Error::Shape(format!("step {index} needs noise"))),
        }
    }

    /// Runs every step: `denoise` predicts the noise at a timestep, `draw` makes the noise of step number `index`, where
    /// that step takes any.
    ///
    /// # Shapes
    /// `start` `(B, …)`, standard normal noise; the result has its shape.
    ///
    /// # Errors
    /// Those of the two functions, and where their shapes do not fit.
    pub fn sample(
        &self,
        start: &Tensor,
        mut denoise: impl FnMut(&Tensor, Timestep) -> Result<Tensor>,
        mut draw: impl FnMut(usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut latents = start.clone();
        for (index, &timestep) in self.timesteps().iter().enumerate() {
            let epsilon_pred = denoise(&latents, timestep)?;
            let noise = self.takes_noise(index).then(|| draw(index)).transpose()?;
            latents = self.step(index, &latents, &epsilon_pred, noise.as_ref())?;
        }
        Ok(latents)
    }
}
