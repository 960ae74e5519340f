//! AdamW whose whole state can be stored and restored, and torch's clipping by the global norm.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::*;
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
    /// Both moments, (2, …).
    moments: Tensor,
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
                let zeros = var.zeros_like()?.detach();
                Ok(Entry { name, moments: Tensor::stack(&[&zeros, &zeros], 0)?, var })
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
        let update = Update { config: self.config, learning_rate, step: self.step };
        for (entry, grad) in self.entries.iter_mut().zip(grads) {
            let Some(grad) = grad else { continue };
            let theta = entry.var.as_detached_tensor();
            let updated = op::backward(update, &[&theta, grad, &entry.moments])?;
            entry.var.set(&updated.get(0)?)?;
            // A copy: a view would keep the parameters beside the moments.
            entry.moments = updated.narrow(0, 1, 2)?.copy()?;
        }
        Ok(())
    }

    /// Updates done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Both moments of every variable, as `<prefix><name>.exp_avg` and `….exp_avg_sq`.
    pub fn state(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let moment = |entry: &Entry, i: usize| entry.moments.get(i).expect("there are two moments");
        let moments = |entry: &Entry| {
            [("exp_avg", 0), ("exp_avg_sq", 1)]
                .map(|(kind, i)| (format!("{prefix}{}.{kind}", entry.name), moment(entry, i)))
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
            entry.moments = Tensor::stack(&[moment("exp_avg")?, moment("exp_avg_sq")?], 0)?;
        }
        self.step = step;
        Ok(())
    }
}

/// (θ, gradient, moments) to the new θ and moments, (3, …).
#[derive(Clone, Copy)]
struct Update {
    config: AdamWConfig,
    learning_rate: f64,
    /// This update's number, from 1.
    step: usize,
}

impl Update {
    /// `1 − ηλ`, `1 − β₁`, `β₂`, `1 − β₂`, `η/(1 − β₁ᵗ)`, `√(1 − β₂ᵗ)`, `ε`.
    fn constants(self) -> [f64; 7] {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let correction1 = 1.0 - beta1.powi(self.step as i32);
        let correction2 = (1.0 - beta2.powi(self.step as i32)).sqrt();
        let keep = 1.0 - self.learning_rate * weight_decay;
        [keep, 1.0 - beta1, beta2, 1.0 - beta2, self.learning_rate / correction1, correction2, eps]
    }
}

impl Fused for Update {
    const NAME: &'static str = "adamw";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [theta, grad, moments]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        if theta != grad || moments != [&[2], theta].concat() {
            candle_core::bail!("adamw: variable {theta:?}, gradient {grad:?}, moments {moments:?}");
        }
        Ok([&[3], theta].concat().into())
    }

    fn cpu(&self, [theta, grad, moments]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let count = theta.data.len();
        out[..count].copy_from_slice(&theta.data);
        out[count..].copy_from_slice(&moments.data);
        let (theta, moments) = out.split_at_mut(count);
        let (m, v) = moments.split_at_mut(count);
        update(theta, m, v, &grad.data, self.constants().map(|x| x as f32));
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let count = call.count() / 3;
        let [keep, a1, b2, a2, rate, root, eps] = self.constants().map(|x| F32(x as f32));
        let parameters =
            [Input(0), Input(1), Input(2), Output, keep, a1, b2, a2, rate, root, eps, U64(count as u64)];
        call.launch("adamw", cuda::elements(count), &parameters)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (theta, grad, moments) = (arguments[0], arguments[1], arguments[2]);
        let [keep, a1, b2, a2, rate, root, eps] = self.constants();
        let (m, v) = (moments.get(0)?, moments.get(1)?);
        let m = ((&m * (1.0 - a1))? + (grad * a1)?)?;
        let v = ((&v * b2)? + (grad.sqr()? * a2)?)?;
        let direction = m.div(&((v.sqrt()? / root)? + eps)?)?;
        Tensor::stack(&[((theta * keep)? - (direction * rate)?)?, m, v], 0)
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

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::testing::{distance, double, on_each_device, var};
    use super::*;

    /// The parameters after five steps, and both moments.
    fn five_steps(start: &Tensor, grads: &[Tensor]) -> Vec<Tensor> {
        let var = Var::from_tensor(start).unwrap();
        let mut optimiser = AdamW::new(vec![("w".into(), var.clone())], AdamWConfig::default()).unwrap();
        for grad in grads {
            optimiser.step(&[Some(grad.clone())], 1e-2).unwrap();
        }
        let tensors = std::iter::once(var.as_detached_tensor()).chain(optimiser.state("").into_values());
        tensors.map(|tensor| tensor.to_dtype(DType::F32).unwrap()).collect()
    }

    #[test]
    fn five_steps_are_those_of_double_precision() {
        on_each_device(|device| {
            let start = var(device, &[7, 41], 0).detach();
            let grads: Vec<Tensor> = (1..6).map(|index| var(device, &[7, 41], index).detach()).collect();
            let theirs = five_steps(&double(&start), &grads.iter().map(double).collect::<Vec<_>>());
            for (ours, theirs) in five_steps(&start, &grads).iter().zip(&theirs) {
                assert!(distance(ours, theirs) < 1e-6);
                assert!(distance(ours, &start) > 1e-2);
            }
        });
    }
}
