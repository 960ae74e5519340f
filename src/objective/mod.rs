//! Preference objectives: pure functions of per-sample denoising errors (the paper's Eq. 6 and its baselines).
//!
//! An objective sees plain numbers: how wrong the policy and the reference are about the noise in each image. It answers
//! with the loss and the loss's derivative with respect to each of the policy's errors, in closed form. A training loop
//! then back-propagates `Σ coefficient · error` through the denoiser; no objective knows a tensor, a user or a network.
//! PPD has no file here: it is [`dpo`] under user conditioning.

pub mod dpo;
pub mod sft;

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which objective, with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Config {
    /// Supervised fine-tuning on the chosen images.
    Sft(sft::Config),
    /// Diffusion-DPO, and PPD where a user conditions the policy.
    Dpo(dpo::Config),
}

/// One of each objective: what family tests walk.
pub static ALL: LazyLock<Vec<Config>> =
    LazyLock::new(|| vec![Config::Sft(sft::Config {}), Config::Dpo(dpo::Config::example())]);

/// What an objective reads of a batch; a training loop computes nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The policy's errors on rejected images.
    pub rejected: bool,
    /// The reference's errors on every image whose policy error is needed.
    pub reference: bool,
    /// The two images of a pair share their timestep and noise.
    pub shared_noise: bool,
    /// A sample's coefficient depends on the other samples: nothing can go back before all errors are known.
    pub batch: bool,
}

/// Squared errors of the noise predicted for each image: means over C, H, W.
///
/// Entry `i` of each list belongs to pair `i`. Lists that [`Config::needs`] does not ask for stay empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BatchErrors {
    /// The policy on chosen images.
    pub policy_chosen: Vec<f64>,
    /// The policy on rejected images.
    pub policy_rejected: Vec<f64>,
    /// The reference on chosen images.
    pub reference_chosen: Vec<f64>,
    /// The reference on rejected images.
    pub reference_rejected: Vec<f64>,
}

/// A loss, and how to descend it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// The mean over the batch.
    pub value: f64,
    /// The loss of each sample; their mean is the value.
    pub per_sample: Vec<f64>,
    /// The derivative of the value with respect to each of the policy's errors.
    pub coefficients: Coefficients,
    /// What preference objectives report besides; absent where there is no preference in the objective.
    pub preference: Option<PreferenceTrace>,
}

/// Derivatives of the mean loss with respect to the policy's errors, in the order of the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Coefficients {
    /// For each chosen image.
    pub chosen: Vec<f64>,
    /// For each rejected image; empty where the objective does not read them.
    pub rejected: Vec<f64>,
}

impl Coefficients {
    /// Those of `count` pairs from `start` on.
    pub fn part(&self, start: usize, count: usize) -> Self {
        let of = |all: &[f64]| all.get(start..start + count).unwrap_or_default().to_vec();
        Self { chosen: of(&self.chosen), rejected: of(&self.rejected) }
    }

    /// Each times a factor: what a part's mean is worth in that of the whole.
    pub fn scaled(self, factor: f64) -> Self {
        let of = |all: Vec<f64>| all.into_iter().map(|c| c * factor).collect();
        Self { chosen: of(self.chosen), rejected: of(self.rejected) }
    }
}

/// How a preference objective stands with a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferenceTrace {
    /// The mean of the scaled implicit reward difference: above 0, the policy prefers the chosen images.
    pub margin: f64,
    /// The share of pairs with a margin above 0; exactly 0 counts one half.
    pub implicit_accuracy: f64,
    /// The share of pairs whose sigmoid lies outside [0.01, 0.99]: they teach nothing more, or teach at full strength.
    pub saturation: f64,
}

impl Config {
    /// What the objective reads of a batch.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Sft(_) => sft::NEEDS,
            Self::Dpo(_) => dpo::NEEDS,
        }
    }

    /// The loss of a batch and its derivatives.
    ///
    /// A number that is not finite goes in and comes out: whoever counts the steps refuses it and names the step.
    ///
    /// # Errors
    /// Where the batch is empty or its lists do not fit what the objective reads.
    pub fn loss(&self, errors: &BatchErrors) -> Result<Loss> {
        errors.check(self.needs())?;
        match self {
            Self::Sft(config) => sft::loss(config, errors),
            Self::Dpo(config) => dpo::loss(config, errors),
        }
    }
}

impl BatchErrors {
    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.policy_chosen.len()
    }

    /// True where there is no pair.
    pub fn is_empty(&self) -> bool {
        self.policy_chosen.is_empty()
    }

    /// Appends another batch's.
    pub fn extend(&mut self, other: &Self) {
        self.policy_chosen.extend(&other.policy_chosen);
        self.policy_rejected.extend(&other.policy_rejected);
        self.reference_chosen.extend(&other.reference_chosen);
        self.reference_rejected.extend(&other.reference_rejected);
    }

    /// Refuses an empty batch, and lists that are not as long as the chosen images' or should be empty.
    fn check(&self, needs: Needs) -> Result<()> {
        if self.is_empty() {
            return Err(Error::Shape("a loss needs at least one sample, got an empty batch".into()));
        }
        let lists = [
            ("policy_rejected", &self.policy_rejected, needs.rejected),
            ("reference_chosen", &self.reference_chosen, needs.reference),
            ("reference_rejected", &self.reference_rejected, needs.reference && needs.rejected),
        ];
        for (name, list, needed) in lists {
            let expected = if needed { self.len() } else { 0 };
            if list.len() != expected {
                return Err(Error::Shape(format!(
                    "{name} should hold {expected} errors for a batch of {}, got {}",
                    self.len(),
                    list.len()
                )));
            }
        }
        Ok(())
    }
}

/// The mean of some numbers; the caller has refused an empty batch.
fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// `−ln σ(x)`, without overflow: for large negative `x` it is `−x`, for large positive `e^{−x}`.
fn neg_log_sigmoid(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `σ(x)`, without overflow.
fn sigmoid(x: f64) -> f64 {
    let small = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

impl PreferenceTrace {
    /// The trace of scaled reward differences.
    fn of(margins: &[f64]) -> Self {
        let share = |count: f64| count / margins.len() as f64;
        let right = margins
            .iter()
            .map(|&m| {
                if m > 0.0 {
                    1.0
                } else if m == 0.0 {
                    0.5
                } else {
                    0.0
                }
            })
            .sum();
        // σ(ln 99) = 0.99.
        let saturated = margins.iter().filter(|m| m.abs() > 99f64.ln()).count();
        Self { margin: mean(margins), implicit_accuracy: share(right), saturation: share(saturated as f64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    /// Random errors with what an objective needs, and nothing else.
    fn batch(needs: Needs, size: usize) -> BatchErrors {
        let mut s = stream(Seed::new(11), "objective", 0);
        let mut draw = |wanted: bool| -> Vec<f64> {
            (0..if wanted { size } else { 0 }).map(|_| 0.5 + 1e-3 * s.normal()).collect()
        };
        BatchErrors {
            policy_chosen: draw(true),
            policy_rejected: draw(needs.rejected),
            reference_chosen: draw(needs.reference),
            reference_rejected: draw(needs.reference && needs.rejected),
        }
    }

    #[test]
    fn coefficients_are_the_derivatives() {
        for config in ALL.iter() {
            let errors = batch(config.needs(), 5);
            let loss = config.loss(&errors).unwrap();
            assert!((mean(&loss.per_sample) - loss.value).abs() < 1e-15);
            let step = 1e-7;
            let slope = |nudge: &dyn Fn(&mut BatchErrors, f64)| {
                let at = |by: f64| {
                    let mut nudged = errors.clone();
                    nudge(&mut nudged, by);
                    config.loss(&nudged).unwrap().value
                };
                (at(step) - at(-step)) / (2.0 * step)
            };
            for i in 0..5 {
                let chosen = slope(&|e, by| e.policy_chosen[i] += by);
                let scale = chosen.abs().max(1.0);
                assert!((chosen - loss.coefficients.chosen[i]).abs() < 1e-6 * scale, "{config:?} chosen {i}");
                if config.needs().rejected {
                    let rejected = slope(&|e, by| e.policy_rejected[i] += by);
                    assert!(
                        (rejected - loss.coefficients.rejected[i]).abs() < 1e-6 * scale,
                        "{config:?} {i}"
                    );
                } else {
                    assert!(loss.coefficients.rejected.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_batch_tells_its_own_coefficients_unless_the_objective_says_otherwise() {
        for config in ALL.iter().filter(|config| !config.needs().batch) {
            let all = batch(config.needs(), 6);
            let whole = config.loss(&all).unwrap().coefficients;
            let part = |errors: &[f64]| errors.get(2..5).unwrap_or_default().to_vec();
            let some = BatchErrors {
                policy_chosen: part(&all.policy_chosen),
                policy_rejected: part(&all.policy_rejected),
                reference_chosen: part(&all.reference_chosen),
                reference_rejected: part(&all.reference_rejected),
            };
            let own = config.loss(&some).unwrap().coefficients.scaled(3.0 / 6.0);
            let expected = whole.part(2, 3);
            let close = |a: &[f64], b: &[f64]| {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-15 * b.abs().max(1.0))
            };
            assert!(
                close(&own.chosen, &expected.chosen) && close(&own.rejected, &expected.rejected),
                "{config:?}"
            );
        }
    }

    #[test]
    fn preference_objectives_start_at_ln_2_and_swapping_negates_the_margin() {
        let mut walked = 0;
        for config in ALL.iter() {
            let mut errors = batch(config.needs(), 7);
            let Some(trace) = config.loss(&errors).unwrap().preference else { continue };
            walked += 1;
            let swapped = BatchErrors {
                policy_chosen: errors.policy_rejected.clone(),
                policy_rejected: errors.policy_chosen.clone(),
                reference_chosen: errors.reference_rejected.clone(),
                reference_rejected: errors.reference_chosen.clone(),
            };
            let other = config.loss(&swapped).unwrap().preference.unwrap();
            assert!((trace.margin + other.margin).abs() < 1e-12 && trace.margin != 0.0);
            assert!((trace.implicit_accuracy + other.implicit_accuracy - 1.0).abs() < 1e-12);
            assert_eq!(trace.saturation, other.saturation);

            errors.policy_chosen.clone_from(&errors.reference_chosen);
            errors.policy_rejected.clone_from(&errors.reference_rejected);
            let start = config.loss(&errors).unwrap();
            assert!((start.value - std::f64::consts::LN_2).abs() < 1e-15);
            let trace = start.preference.unwrap();
            assert_eq!((trace.margin, trace.implicit_accuracy, trace.saturation), (0.0, 0.5, 0.0));
        }
        assert!(walked > 0);
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        for config in ALL.iter() {
            let fits = batch(config.needs(), 3);
            assert!(config.loss(&BatchErrors::default()).is_err());
            let mut short = fits.clone();
            short.policy_chosen.pop();
            assert_eq!(config.loss(&short).is_err(), config.needs().rejected || config.needs().reference);
            let mut extra = fits;
            extra.policy_rejected.push(0.5);
            let message = config.loss(&extra).unwrap_err().to_string();
            assert!(message.contains("policy_rejected"), "{message}");
        }
    }

    #[test]
    fn log_sigmoid_does_not_overflow() {
        assert_eq!(neg_log_sigmoid(-1e4), 1e4);
        assert_eq!(neg_log_sigmoid(1e4), 0.0);
        assert!((neg_log_sigmoid(40.0) - (-40f64).exp()).abs() < 1e-30);
        assert_eq!(sigmoid(-1e4), 0.0);
        assert_eq!(sigmoid(1e4), 1.0);
        assert!(neg_log_sigmoid(f64::NAN).is_nan());
    }

    #[test]
    fn configuration_is_closed() {
        let read: Config = serde_json::from_str(r#"{"kind":"dpo","beta":0.5}"#).unwrap();
        let Config::Dpo(dpo) = read else { panic!("{read:?}") };
        assert_eq!((dpo.beta.get(), dpo.half_factor, dpo.timesteps.get()), (0.5, false, 1000.0));
        for bad in [
            r#"{"kind":"dpo","beta":0}"#,
            r#"{"kind":"dpo","beta":0.5,"betta":1}"#,
            r#"{"kind":"dpo"}"#,
            r#"{"kind":"sft","beta":1}"#,
            r#"{"kind":"ppo"}"#,
        ] {
            assert!(serde_json::from_str::<Config>(bad).is_err(), "{bad}");
        }
        for config in ALL.iter() {
            let text = serde_json::to_string(config).unwrap();
            assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), *config);
        }
    }
}
