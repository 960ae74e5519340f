//! AdamW whose whole state can be stored and restored, and torch's clipping by the global norm.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::slice;
use crate::error::{Error, Result};

/// The constants of AdamW; the learning rate is given at each step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 }
    }
}

/// The optimiser of Loshchilov and Hutter (2019), step for step as torch computes it.
///
/// # Equation
/// `θ ← θ(1 − ηλ)`, then `θ ← θ − η/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    entries: Vec<Entry>,
    step: usize,
}

#[derive(Debug)]
struct Entry {
    name: String,
    var: Var,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl AdamW {
    /// Starts with zero moments. Variables are kept in the order of their names.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    pub fn new(mut variables: Vec<(String, Var)>, config: AdamWConfig) -> Result<Self> {
        variables.sort_by(|(a, _), (b, _)| a.cmp(b));
        let entries = variables
            .into_iter()
            .map(|(name, var)| {
                let (exp_avg, exp_avg_sq) = (var.zeros_like()?, var.zeros_like()?);
                Ok(Entry { name, exp_avg, exp_avg_sq, var })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config, entries, step: 0 })
    }

    /// The variables in the order in which [`AdamW::step`] takes gradients.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), &entry.var))
    }

    /// One update. A variable without a gradient stays as it is, decay included.
    ///
    /// # Errors
    /// Where the number or the shapes of the gradients do not fit.
    pub fn step(&mut self, grads: &[Option<Tensor>], learning_rate: f64) -> Result<()> {
        if grads.len() != self.entries.len() {
            let (expected, got) = (self.entries.len(), grads.len());
            return Err(Error::Shape(format!("AdamW holds {expected} variables, got {got} gradients")));
        }
        self.step += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let correction1 = 1.0 - beta1.powi(self.step as i32);
        let correction2 = (1.0 - beta2.powi(self.step as i32)).sqrt();
        let rate = learning_rate / correction1;
        for (entry, grad) in self.entries.iter_mut().zip(grads) {
            let Some(grad) = grad else { continue };
            let theta = entry.var.as_detached_tensor();
            if theta.device().is_cpu() && theta.dtype() == candle_core::DType::F32 {
                let updated = slice::with(&[&theta, grad, &entry.exp_avg, &entry.exp_avg_sq], |slices| {
                    let [theta, grad, m, v] = slices else { unreachable!("four tensors give four slices") };
                    let (mut theta, mut m, mut v) = (theta.to_vec(), m.to_vec(), v.to_vec());
                    let keep = (1.0 - learning_rate * weight_decay) as f32;
                    let b2 = beta2 as f32;
                    let (a1, a2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
                    let (rate, root, eps) = (rate as f32, correction2 as f32, eps as f32);
                    let constants = [keep, a1, b2, a2, rate, root, eps];
                    update(&mut theta, &mut m, &mut v, grad, constants);
                    [theta, m, v]
                })?;
                let [theta, m, v] =
                    updated.map(|data| Tensor::from_vec(data, entry.var.shape(), entry.var.device()));
                entry.var.set(&theta?)?;
                (entry.exp_avg, entry.exp_avg_sq) = (m?, v?);
            } else {
                let m = ((&entry.exp_avg * beta1)? + (grad * (1.0 - beta1))?)?;
                let v = ((&entry.exp_avg_sq * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
                let direction = m.div(&((v.sqrt()? / correction2)? + eps)?)?;
                entry.var.set(&((theta * (1.0 - learning_rate * weight_decay))? - (direction * rate)?)?)?;
                (entry.exp_avg, entry.exp_avg_sq) = (m, v);
            }
        }
        Ok(())
    }

    /// Updates done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Both moments of every variable, as `<prefix><name>.exp_avg` and `….exp_avg_sq`.
    pub fn state(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let moments = |entry: &Entry| {
            [
                (format!("{prefix}{}.exp_avg", entry.name), entry.exp_avg.clone()),
                (format!("{prefix}{}.exp_avg_sq", entry.name), entry.exp_avg_sq.clone()),
            ]
        };
        self.entries.iter().flat_map(moments).collect()
    }

    /// Goes on from stored moments after `step` updates; `get` finds a tensor by the name that [`AdamW::state`] gave it.
    ///
    /// # Errors
    /// Those of `get`, and [`Error::Shape`] where a moment does not fit its variable.
    pub fn restore(&mut self, prefix: &str, step: usize, get: impl Fn(&str) -> Result<Tensor>) -> Result<()> {
        for entry in &mut self.entries {
            let moment = |kind: &str| {
                let name = format!("{prefix}{}.{kind}", entry.name);
                let moment = get(&name)?;
                if moment.shape() != entry.var.shape() {
                    return Err(Error::Shape(format!(
                        "{name} has shape {:?}, its variable {:?}",
                        moment.shape(),
                        entry.var.shape()
                    )));
                }
                Ok(moment)
            };
            (entry.exp_avg, entry.exp_avg_sq) = (moment("exp_avg")?, moment("exp_avg_sq")?);
        }
        self.step = step;
        Ok(())
    }
}

#[multiversion(targets = "simd")]
fn update(theta: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], constants: [f32; 7]) {
    let [keep, a1, b2, a2, rate, root, eps] = constants;
    for (((theta, m), v), g) in theta.iter_mut().zip(m).zip(v).zip(grad) {
        // torch: exp_avg.lerp_(grad, 1 − β₁).
        *m += a1 * (g - *m);
        *v = *v * b2 + a2 * g * g;
        *theta = *theta * keep - rate * *m / (v.sqrt() / root + eps);
    }
}

/// Scales all gradients by `min(1, max_norm / (norm + 1e-6))`, as torch's `clip_grad_norm_`, and returns their norm.
///
/// # Errors
/// Where the tensor library refuses.
pub fn clip_gradients(grads: &mut [Option<Tensor>], max_norm: f64) -> Result<f64> {
    let mut total = 0.0;
    for grad in grads.iter().flatten() {
        total += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = total.sqrt();
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        for grad in grads.iter_mut().flatten() {
            *grad = (&*grad * scale)?;
        }
    }
    Ok(norm)
}
