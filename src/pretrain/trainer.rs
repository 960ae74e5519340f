//! What every pretraining loop does at each step: micro-batches over workers, clipped AdamW, a moving average of the
//! weights, and a state file from which the loop goes on as if it had never stopped.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Shape, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::workers::Workers;
use crate::nn::{AdamW, AdamWConfig, clip_gradients};
use crate::weights::{self, Trainable, Weights};

/// How long and how fast a model is pretrained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimisation {
    /// Optimiser steps in all.
    pub steps: usize,
    /// Micro-batches of each step; their gradients are averaged in order, whoever computes them.
    pub micro_batches: usize,
    /// Samples of each micro-batch.
    pub micro_batch: usize,
    /// The learning rate after warm-up, which a half cosine then takes to a fiftieth.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient.
    pub max_grad_norm: f64,
    /// Decay of the weights' moving average; 0 keeps none.
    pub ema_decay: f64,
    /// How long the run was planned to be before it was lengthened: earlier steps had the learning rates of that plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_plans: Vec<FormerPlan>,
    /// Steps before which the run begins anew from the weights that it ships: the moving averages rounded to bf16, an
    /// optimiser without memory, another warm-up. A run whose state was lost goes on from there, and a run from the
    /// very start does the same at that step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarts: Vec<usize>,
}

/// A plan that a run followed before it was lengthened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormerPlan {
    /// The first step that no longer followed it.
    pub until_step: usize,
    /// Its number of steps.
    pub steps: usize,
}

impl Optimisation {
    /// The learning rate of step `step`, counted from 0.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        let warmup = (self.since_restart(step) + 1) as f64 / self.warmup_steps.max(1) as f64;
        let former = self.former_plans.iter().find(|plan| step < plan.until_step);
        let steps = former.map_or(self.steps, |plan| plan.steps);
        let progress = (step as f64 / steps as f64).min(1.0);
        let cosine = 0.02 + 0.98 * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.learning_rate * warmup.min(1.0) * cosine
    }

    /// Steps since the start or the last restart before step `step`.
    fn since_restart(&self, step: usize) -> usize {
        step - self.restarts.iter().copied().filter(|&restart| restart <= step).max().unwrap_or(0)
    }
}

/// What one step measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Step {
    /// Steps done, this one included.
    pub step: usize,
    /// Mean loss of the micro-batches.
    pub loss: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
}

/// The state of one pretraining run.
pub struct Trainer {
    optimisation: Optimisation,
    variables: Vec<(String, Var)>,
    average: Vec<Tensor>,
    optimiser: AdamW,
    workers: Workers,
    step: usize,
}

impl Trainer {
    /// Starts at step 0 with the variables made so far.
    ///
    /// # Errors
    /// Where the system gives no threads.
    pub fn new(optimisation: &Optimisation, trainable: &Trainable, threads: usize) -> Result<Self> {
        let variables: Vec<(String, Var)> = trainable.vars().into_iter().collect();
        let average =
            variables.iter().map(|(_, v)| v.as_detached_tensor().copy()).collect::<Result<_, _>>()?;
        let optimiser = optimiser(optimisation, &variables)?;
        let workers = Workers::new(threads.min(optimisation.micro_batches))?;
        Ok(Self { optimisation: optimisation.clone(), variables, average, optimiser, workers, step: 0 })
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// True once all steps are done.
    pub fn is_done(&self) -> bool {
        self.step >= self.optimisation.steps
    }

    /// One step: `loss(index)` builds the loss of micro-batch `index`, counted over the whole run.
    ///
    /// # Errors
    /// Those of `loss`, and [`Error::NonFinite`] where the loss or the gradient is not finite.
    pub fn advance(&mut self, loss: impl Fn(u64) -> Result<Tensor> + Sync) -> Result<Step> {
        if self.optimisation.restarts.contains(&self.step) {
            let shipped = self.averaged();
            self.begin_anew(self.step, |name, _| {
                Ok(shipped[name].to_dtype(DType::BF16)?.to_dtype(DType::F32)?)
            })?;
        }
        let count = self.optimisation.micro_batches;
        let indices: Vec<u64> = (0..count).map(|i| (self.step * count + i) as u64).collect();
        let variables = &self.variables;
        let results = self.workers.map(&indices, |_, &index| -> Result<_> {
            let loss = loss(index)?;
            let mut grads = loss.backward()?;
            let grads: Vec<Option<Tensor>> = variables.iter().map(|(_, var)| grads.remove(var)).collect();
            Ok((f64::from(loss.to_scalar::<f32>()?), grads))
        });
        let mut sums: Vec<Option<Tensor>> = vec![None; variables.len()];
        let mut total = 0.0;
        for result in results {
            let (loss, grads) = result?;
            total += loss / count as f64;
            for (sum, grad) in sums.iter_mut().zip(grads) {
                *sum = match (sum.take(), grad) {
                    (Some(sum), Some(grad)) => Some((sum + grad)?),
                    (sum, grad) => sum.or(grad),
                };
            }
        }
        let mut grads = Vec::with_capacity(sums.len());
        for sum in sums {
            grads.push(sum.map(|sum| sum / count as f64).transpose()?);
        }
        let norm = clip_gradients(&mut grads, self.optimisation.max_grad_norm)?;
        for (what, value) in [("the pretraining loss", total), ("the gradient's norm", norm)] {
            if !value.is_finite() {
                return Err(Error::NonFinite {
                    what: what.into(),
                    value,
                    place: format!("step {}", self.step),
                });
            }
        }
        let learning_rate = self.optimisation.learning_rate_at(self.step);
        self.optimiser.step(&grads, learning_rate)?;
        self.step += 1;
        self.update_average()?;
        Ok(Step { step: self.step, loss: total, gradient_norm: norm, learning_rate })
    }

    /// Steps to the end, from the state in `path` where there is one; stores the state now and then. `progress` hears of
    /// each step and stops the loop by answering false: then the state is kept and the result is false.
    ///
    /// # Errors
    /// As [`Trainer::advance`], and where the disk refuses.
    pub fn run(
        &mut self,
        path: &Path,
        progress: &mut dyn FnMut(Step) -> bool,
        loss: impl Fn(u64) -> Result<Tensor> + Sync,
    ) -> Result<bool> {
        if path.exists() {
            self.resume(path)?;
        }
        while !self.is_done() {
            let step = self.advance(&loss)?;
            let go_on = progress(step);
            if step.step.is_multiple_of(200) || self.is_done() || !go_on {
                self.save(path)?;
            }
            if !go_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Goes on at `step` from weights alone: they become the moving average too, and the optimiser forgets.
    /// `get` finds a variable's weights by its name and shape.
    ///
    /// # Errors
    /// Those of `get`.
    pub fn begin_anew(&mut self, step: usize, get: impl Fn(&str, &Shape) -> Result<Tensor>) -> Result<()> {
        for ((name, var), mean) in self.variables.iter().zip(&mut self.average) {
            let weights = get(name, var.shape())?;
            var.set(&weights)?;
            *mean = weights;
        }
        self.optimiser = optimiser(&self.optimisation, &self.variables)?;
        self.step = step;
        Ok(())
    }

    fn update_average(&mut self) -> Result<()> {
        // Early on the average follows quickly: it would otherwise remember the random start for ever.
        let decay = self.optimisation.ema_decay.min((1.0 + self.step as f64) / (10.0 + self.step as f64));
        for (average, (_, var)) in self.average.iter_mut().zip(&self.variables) {
            *average = ((&*average * decay)? + (var.as_detached_tensor() * (1.0 - decay))?)?;
        }
        Ok(())
    }

    /// The moving average of every variable, or the variables themselves where no average is kept.
    pub fn averaged(&self) -> BTreeMap<String, Tensor> {
        let keeps = self.optimisation.ema_decay > 0.0;
        let named = self.variables.iter().zip(&self.average);
        named
            .map(|((name, var), mean)| {
                (name.clone(), if keeps { mean.clone() } else { var.as_detached_tensor() })
            })
            .collect()
    }

    /// Stores everything that the next step depends on.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = self.optimiser.state("optimiser.");
        for ((name, var), mean) in self.variables.iter().zip(&self.average) {
            tensors.insert(format!("weights.{name}"), var.as_detached_tensor());
            tensors.insert(format!("average.{name}"), mean.clone());
        }
        let metadata = BTreeMap::from([("step".to_owned(), self.step.to_string())]);
        weights::save(path, &tensors, DType::F32, &metadata)?;
        Ok(())
    }

    /// Goes on from a stored state; the schedule may have been lengthened meanwhile.
    ///
    /// # Errors
    /// Where the file is damaged or belongs to another model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let state = Weights::open(path)?;
        let step = state.metadata().get("step").and_then(|step| step.parse().ok());
        self.step =
            step.ok_or_else(|| Error::weights(path, "holds no training state; delete it to start anew"))?;
        for ((name, var), mean) in self.variables.iter().zip(&mut self.average) {
            let get =
                |prefix: &str| state.get(var.shape(), &format!("{prefix}.{name}"), DType::F32, &Device::Cpu);
            var.set(&get("weights")?)?;
            *mean = get("average")?;
        }
        let updates = self.optimisation.since_restart(self.step);
        self.optimiser.restore("optimiser.", updates, |name| state.read(name, DType::F32, &Device::Cpu))
    }
}

fn optimiser(optimisation: &Optimisation, variables: &[(String, Var)]) -> Result<AdamW> {
    let config = AdamWConfig { weight_decay: optimisation.weight_decay, ..AdamWConfig::default() };
    AdamW::new(variables.to_vec(), config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lengthened_run_keeps_the_learning_rates_that_it_had() {
        let short = Optimisation {
            steps: 100,
            micro_batches: 1,
            micro_batch: 1,
            learning_rate: 1e-3,
            warmup_steps: 10,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            ema_decay: 0.0,
            former_plans: Vec::new(),
            restarts: Vec::new(),
        };
        let former_plans = vec![FormerPlan { until_step: 60, steps: 100 }];
        let long = Optimisation { steps: 200, former_plans, ..short.clone() };
        assert_eq!(short.learning_rate_at(0), 1e-4);
        for step in 0..60 {
            assert_eq!(long.learning_rate_at(step), short.learning_rate_at(step));
        }
        assert!(long.learning_rate_at(60) > 1.5 * long.learning_rate_at(59));
        assert!((long.learning_rate_at(200) - 2e-5).abs() < 1e-12);
    }
}
