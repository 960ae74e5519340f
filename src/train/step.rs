//! One optimiser step over micro-batches: errors, loss, gradients, AdamW.
//!
//! A worker predicts a micro-batch, the objective turns its errors into one coefficient each, and the worker goes back
//! through the denoiser at once, so that a graph lives no longer than its micro-batch; only an objective that reads the
//! whole batch lets them all wait. Gradients are summed as they come, in the order of the micro-batches, so the result
//! does not depend on the number of workers. The policy with the user branch off *is* the reference.

use candle_core::{DType, Tensor, Var};

use super::Step;
use crate::collective::{self, Collective};
use crate::error::{Error, Result};
use crate::models::stage_c::StageC;
use crate::nn::workers::Workers;
use crate::nn::{self, AdamW, AdamWConfig, KeyValue, clip_gradients};
use crate::objective::{self, BatchErrors, Coefficients, Loss, Needs};
use crate::weights::Trainable;

/// What a step needs to know beside its micro-batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// What is descended.
    pub objective: objective::Config,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient.
    pub max_grad_norm: f64,
}

/// Some images of a step as the denoiser takes them: all chosen ones, then, where the objective reads them, all
/// rejected ones in the same order.
#[derive(Debug)]
pub struct MicroBatch {
    /// Noised latents, (images, C, h, w).
    pub noised: Tensor,
    /// The noise in them, (images, C, h, w).
    pub noise: Tensor,
    /// Timesteps in [0, 1], (images).
    pub timestep: Tensor,
    /// Keys and values of the captions.
    pub text: Vec<KeyValue>,
    /// Keys and values of the users; what trains is behind them.
    pub user: Vec<KeyValue>,
    /// The reference's errors on (chosen, rejected) of each pair, where they are known; empty: of none.
    pub reference: Vec<Option<[f64; 2]>>,
}

/// What a step did.
#[derive(Debug)]
pub struct Taken {
    /// The loss before the update.
    pub loss: Loss,
    /// The errors behind it.
    pub errors: BatchErrors,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
}

impl Taken {
    /// As a training's trace holds it.
    pub fn measured(&self, step: usize, learning_rate: f64) -> Step {
        let Self { loss, errors, gradient_norm } = self;
        let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len().max(1) as f64;
        Step {
            step: step as u64,
            loss: loss.value,
            margin: loss.preference.map(|p| p.margin),
            implicit_accuracy: loss.preference.map(|p| p.implicit_accuracy),
            saturation: loss.preference.map(|p| p.saturation),
            error_chosen: Some(mean(&errors.policy_chosen) - mean(&errors.reference_chosen)),
            error_rejected: (!errors.policy_rejected.is_empty())
                .then(|| mean(&errors.policy_rejected) - mean(&errors.reference_rejected)),
            gradient_norm: *gradient_norm,
            learning_rate,
        }
    }
}

/// Takes optimiser steps on the variables behind the users' keys and values.
pub struct Stepper<'a> {
    denoiser: &'a StageC,
    settings: StepSettings,
    workers: &'a Workers,
    collective: &'a dyn Collective,
    variables: Vec<(String, Var)>,
    /// The optimiser, whose state checkpoints hold.
    pub optimiser: AdamW,
}

impl<'a> Stepper<'a> {
    /// Trains the variables made so far.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    pub fn new(
        denoiser: &'a StageC,
        trainable: &Trainable,
        settings: StepSettings,
        workers: &'a Workers,
        collective: &'a dyn Collective,
    ) -> Result<Self> {
        let variables: Vec<(String, Var)> = trainable.vars().into_iter().collect();
        let config = AdamWConfig { weight_decay: settings.weight_decay, ..AdamWConfig::default() };
        let optimiser = AdamW::new(variables.clone(), config)?;
        Ok(Self { denoiser, settings, workers, collective, variables, optimiser })
    }

    /// One step on `items`, each of which `micro_batch` makes into a micro-batch on the worker that takes it. `learned`
    /// hears the reference's errors where they had to be computed. Where there are several ranks, `items` are this rank's
    /// share, `pairs` those of all, and every rank makes the same update.
    ///
    /// # Errors
    /// [`Error::NonFinite`] where the loss or the gradient is not finite; those of `micro_batch`.
    pub fn step<T: Sync>(
        &mut self,
        (step, learning_rate): (usize, f64),
        pairs: usize,
        items: &[T],
        micro_batch: impl Fn(&T) -> Result<MicroBatch> + Sync,
        learned: impl Fn(&T, &[[f64; 2]]) + Sync,
    ) -> Result<Taken> {
        let (objective, denoiser) = (self.settings.objective, self.denoiser);
        let needs = objective.needs();
        let mut mine = BatchErrors::default();
        let mut waiting = Vec::new();
        let mut grads = Gradients::default();
        let predicted = self.workers.fold(
            items,
            |item| {
                let batch = micro_batch(item)?;
                let predicted = batch.predict(denoiser, needs)?;
                let errors = predicted.numbers(needs)?;
                if predicted.computed {
                    learned(item, &predicted.reference);
                }
                if needs.batch {
                    return Ok((errors, Way::Waiting(predicted)));
                }
                // Each sample's coefficient is its own affair: no graph waits for the others.
                let share = errors.len() as f64 / pairs as f64;
                let coefficients = objective.loss(&errors)?.coefficients.scaled(share);
                Ok((errors, Way::Back(self.back(&predicted, &coefficients)?)))
            },
            |(errors, way)| {
                match way {
                    Way::Waiting(predicted) => waiting.push((mine.len(), predicted)),
                    Way::Back(of_part) => grads.add(of_part)?,
                }
                mine.extend(&errors);
                Ok(())
            },
        );
        // A rank that failed must not leave the others waiting for its errors.
        collective::agree(predicted, self.collective)?;

        let first = self.collective.rank() * mine.len();
        let errors = of_all_ranks(mine, self.collective)?;
        let loss = objective.loss(&errors)?;
        finite("the loss", loss.value, step)?;
        let waited = self.workers.fold(
            &waiting,
            |(start, predicted)| {
                self.back(predicted, &loss.coefficients.part(first + start, predicted.pairs))
            },
            |of_part| grads.add(of_part),
        );
        collective::agree(waited, self.collective)?;
        drop(waiting);
        let Gradients(mut grads) = grads;
        if self.collective.world_size() > 1 {
            // Variables are in the order of their names on every rank.
            for grad in grads.iter_mut().flatten() {
                *grad = self.collective.all_reduce(grad)?;
            }
        }
        let gradient_norm = clip_gradients(&mut grads, self.settings.max_grad_norm)?;
        finite("the gradient's norm", gradient_norm, step)?;
        self.optimiser.step(&grads, learning_rate)?;
        Ok(Taken { loss, errors, gradient_norm })
    }

    /// The gradients of `Σ coefficient · error` for each variable.
    fn back(&self, predicted: &Predicted, coefficients: &Coefficients) -> Result<Vec<Option<Tensor>>> {
        let Coefficients { chosen, rejected } = coefficients;
        let weights: Vec<f32> = chosen.iter().chain(rejected).map(|&c| c as f32).collect();
        let weights = Tensor::from_slice(&weights, weights.len(), predicted.errors.device())?;
        let mut grads = (&predicted.errors * weights)?.sum_all()?.backward()?;
        Ok(self.variables.iter().map(|(_, var)| grads.remove(var)).collect())
    }
}

/// How far a micro-batch has come on its way when its errors are known.
enum Way {
    /// Its graph waits for coefficients that need the whole batch.
    Waiting(Predicted),
    /// Its gradients are there.
    Back(Vec<Option<Tensor>>),
}

/// Sums of gradients, always added in the order of the micro-batches.
#[derive(Default)]
struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    fn add(&mut self, part: Vec<Option<Tensor>>) -> Result<()> {
        if self.0.is_empty() {
            self.0 = part;
            return Ok(());
        }
        for (sum, grad) in self.0.iter_mut().zip(part) {
            *sum = match (sum.take(), grad) {
                (Some(sum), Some(grad)) => Some((sum + grad)?),
                (sum, grad) => sum.or(grad),
            };
        }
        Ok(())
    }
}

/// A micro-batch after its forward pass: the graph is kept for the way back.
struct Predicted {
    /// The policy's errors, chosen images first, (images).
    errors: Tensor,
    /// The reference's, by pair; empty where the objective does not read them.
    reference: Vec<[f64; 2]>,
    /// Whether any of these had to be computed.
    computed: bool,
    pairs: usize,
}

impl Predicted {
    /// The errors as the objective reads them.
    fn numbers(&self, needs: Needs) -> Result<BatchErrors> {
        let policy = host(&self.errors)?;
        let rejected = needs.rejected && needs.reference;
        Ok(BatchErrors {
            policy_chosen: policy[..self.pairs].to_vec(),
            policy_rejected: policy[self.pairs..].to_vec(),
            reference_chosen: self.reference.iter().map(|pair| pair[0]).collect(),
            reference_rejected: self.reference.iter().filter(|_| rejected).map(|pair| pair[1]).collect(),
        })
    }
}

impl MicroBatch {
    /// Errors under the policy, and under the reference where they are not known.
    fn predict(&self, denoiser: &StageC, needs: Needs) -> Result<Predicted> {
        let Self { noised, noise, timestep, text, user, reference } = self;
        let pairs = noised.dim(0)? / if needs.rejected { 2 } else { 1 };
        let errors = nn::squared_error(&denoiser.forward(noised, timestep, text, Some(user))?, noise)?;
        let mut known = reference.clone();
        known.resize(if needs.reference { pairs } else { 0 }, None);
        let unknown: Vec<usize> = (0..known.len()).filter(|&pair| known[pair].is_none()).collect();
        if !unknown.is_empty() {
            for (&pair, errors) in unknown.iter().zip(self.of_reference(denoiser, &unknown, pairs)?) {
                known[pair] = Some(errors);
            }
        }
        let reference = known.into_iter().flatten().collect();
        Ok(Predicted { errors, reference, computed: !unknown.is_empty(), pairs })
    }

    /// The reference's errors on (chosen, rejected) of some of the pairs.
    fn of_reference(&self, denoiser: &StageC, wanted: &[usize], pairs: usize) -> Result<Vec<[f64; 2]>> {
        let Self { noised, noise, timestep, text, .. } = self;
        let images = noised.dim(0)?;
        let errors = if wanted.len() == pairs {
            nn::squared_error(&denoiser.forward(noised, timestep, text, None)?, noise)?
        } else {
            let rows =
                (0..images / pairs).flat_map(|side| wanted.iter().map(move |pair| side * pairs + pair));
            let rows: Vec<u32> = rows.map(|row| row as u32).collect();
            let rows = Tensor::from_slice(&rows, rows.len(), noised.device())?;
            let of = |xs: &Tensor| xs.index_select(&rows, 0);
            let text = text.iter().map(|kv| kv.select(&rows)).collect::<nn::TensorResult<Vec<_>>>()?;
            nn::squared_error(&denoiser.forward(&of(noised)?, &of(timestep)?, &text, None)?, &of(noise)?)?
        };
        let errors = host(&errors)?;
        let rejected = |i: usize| errors.get(wanted.len() + i).copied().unwrap_or(f64::NAN);
        Ok((0..wanted.len()).map(|i| [errors[i], rejected(i)]).collect())
    }
}

fn finite(what: &str, value: f64, step: usize) -> Result<()> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(Error::NonFinite { what: what.into(), value, place: format!("step {step}") })
    }
}

fn host(errors: &Tensor) -> Result<Vec<f64>> {
    Ok(errors.to_dtype(DType::F64)?.to_vec1()?)
}

/// The errors of the whole batch, in the order of the ranks.
fn of_all_ranks(mine: BatchErrors, collective: &dyn Collective) -> Result<BatchErrors> {
    let all = |numbers: &[f64]| collective::all_gather(numbers, collective);
    Ok(BatchErrors {
        policy_chosen: all(&mine.policy_chosen)?,
        policy_rejected: all(&mine.policy_rejected)?,
        reference_chosen: all(&mine.reference_chosen)?,
        reference_rejected: all(&mine.reference_rejected)?,
    })
}
