//! The learning rate of each optimiser step.

use serde::{Deserialize, Serialize};

/// A linear warm-up to a peak, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// The rate after the warm-up.
    pub peak: f64,
    /// Steps of the warm-up; 0 starts at the peak.
    #[serde(default)]
    pub warmup_steps: usize,
    /// Where the warm-up starts.
    #[serde(default)]
    pub warmup: Warmup,
    /// What follows the warm-up.
    #[serde(default)]
    pub decay: Decay,
}

/// Where a warm-up of `W` steps starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warmup {
    /// Step `i` has `(i + 1)/W` of the peak: every step moves.
    #[default]
    FirstStepMoves,
    /// Step `i` has `i/W`, as diffusers' schedulers: the first step does nothing but gather moments.
    FromZero,
}

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decay {
    /// The peak for ever (diffusers `constant_with_warmup`).
    #[default]
    Constant,
    /// A straight line to 0 at the last step (diffusers `linear`).
    Linear {
        /// Steps in all, warm-up included.
        total_steps: usize,
    },
    /// Half a cosine to 0 at the last step (diffusers `cosine`).
    Cosine {
        /// Steps in all, warm-up included.
        total_steps: usize,
    },
}

impl LearningRate {
    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        let warmup_steps = self.warmup_steps.max(1) as f64;
        if step < self.warmup_steps {
            let done = match self.warmup {
                Warmup::FirstStepMoves => step + 1,
                Warmup::FromZero => step,
            };
            return self.peak * (done as f64 / warmup_steps);
        }
        let after = (step - self.warmup_steps) as f64;
        let progress =
            |total_steps: usize| after / total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let factor = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear { total_steps } => 1.0 - progress(total_steps).min(1.0),
            Decay::Cosine { total_steps } => {
                0.5 * (1.0 + (std::f64::consts::PI * progress(total_steps).min(1.0)).cos())
            }
        };
        self.peak * factor
    }
}
