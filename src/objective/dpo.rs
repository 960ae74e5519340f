//! Diffusion-DPO (Wallace et al. 2024), and PPD's Eq. 6 where a user conditions the policy.
//!
//! The reference is never conditioned on the user. Both images of a pair share their timestep and noise, as the public
//! Diffusion-DPO code does; the weight ω of the paper's equation is constant.

use serde::{Deserialize, Serialize};

use super::{BatchErrors, Coefficients, Loss, Needs, PreferenceTrace, mean, neg_log_sigmoid, sigmoid};
use crate::error::Result;
use crate::units::{Beta, TimestepCount};

/// The strength of the objective, with its convention spelled out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// β of Eq. 6, over errors that are means (not sums) over C·H·W; multiplied by `timesteps` and, where asked for, ½.
    pub beta: Beta,
    /// Multiplies by the ½ of the public Diffusion-DPO code, which the paper's equation lacks.
    #[serde(default)]
    pub half_factor: bool,
    /// T of Eq. 6; 1 where β already contains it, as in the public Diffusion-DPO code.
    #[serde(default = "default_timesteps")]
    pub timesteps: TimestepCount,
}

fn default_timesteps() -> TimestepCount {
    TimestepCount::new(1000.0).expect("1000 is above 0")
}

/// What the objective reads.
pub const NEEDS: Needs = Needs { rejected: true, reference: true, shared_noise: true, batch: false };

impl Config {
    /// For family tests: a β of the published range.
    pub(super) fn example() -> Self {
        Self::new(Beta::new(0.5).expect("0.5 is above 0"))
    }

    /// β with the convention of Eq. 6: T = 1000, no ½.
    pub fn new(beta: Beta) -> Self {
        Self { beta, half_factor: false, timesteps: default_timesteps() }
    }

    /// What multiplies the difference of mean squared errors.
    pub fn coefficient(&self) -> f64 {
        self.beta.get() * self.timesteps.get() * if self.half_factor { 0.5 } else { 1.0 }
    }
}

/// `−ln σ` of each pair's scaled implicit reward difference, averaged.
///
/// # Equation
/// `inside = −βT·((L⁺ − L⁻) − (R⁺ − R⁻))`, `loss = −ln σ(inside)` (PPD, Eq. 6), `L` the policy's and `R` the reference's
/// errors on the chosen (⁺) and rejected (⁻) images; `∂loss/∂L⁺ = βT·σ(−inside)`, and its negative for `L⁻`.
///
/// # Errors
/// None of its own: [`super::Config::loss`] has checked the batch.
pub fn loss(config: &Config, errors: &BatchErrors) -> Result<Loss> {
    let coefficient = config.coefficient();
    let margins: Vec<f64> = (0..errors.len())
        .map(|i| {
            let policy = errors.policy_chosen[i] - errors.policy_rejected[i];
            let reference = errors.reference_chosen[i] - errors.reference_rejected[i];
            -coefficient * (policy - reference)
        })
        .collect();
    let per_sample: Vec<f64> = margins.iter().map(|&m| neg_log_sigmoid(m)).collect();
    let share = coefficient / errors.len() as f64;
    let chosen: Vec<f64> = margins.iter().map(|&m| share * sigmoid(-m)).collect();
    let rejected = chosen.iter().map(|c| -c).collect();
    Ok(Loss {
        value: mean(&per_sample),
        per_sample,
        coefficients: Coefficients { chosen, rejected },
        preference: Some(PreferenceTrace::of(&margins)),
    })
}
