//! Supervised fine-tuning: plain denoising of the chosen images.
//!
//! No timestep weight, as in the public Diffusion-DPO code's SFT; pretraining's P2 weight is
//! [`crate::diffusion::Schedule::p2_weight`].

use serde::{Deserialize, Serialize};

use super::{BatchErrors, Coefficients, Loss, Needs, mean};
use crate::error::Result;

/// Supervised fine-tuning has no setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// What the objective reads.
pub const NEEDS: Needs = Needs { rejected: false, reference: false, shared_noise: false, batch: false };

/// The mean of the policy's errors on the chosen images.
///
/// # Errors
/// None of its own: [`super::Config::loss`] has checked the batch.
pub fn loss(_: &Config, errors: &BatchErrors) -> Result<Loss> {
    let share = 1.0 / errors.len() as f64;
    Ok(Loss {
        value: mean(&errors.policy_chosen),
        per_sample: errors.policy_chosen.clone(),
        coefficients: Coefficients { chosen: vec![share; errors.len()], rejected: Vec::new() },
        preference: None,
    })
}
