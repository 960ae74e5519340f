//! Whole blocks of a frozen network, each as one operation in single precision on the CPU.
//!
//! A sample goes through a block from end to end while its numbers are in the cache. On the way back a block passes one
//! gradient to the next, where its parts, each an operation of its own, would pass seven, every one of which the tensor
//! library first adds to zeros. The weights are held as matrix products read them, and, from the first gradient on, once
//! more transposed.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device};

use super::*;

mod attention;
mod residual;

pub use attention::PackedAttention;
pub use residual::{PackedResidual, ResidualWeights};

/// Stage C's norms.
const EPSILON: f32 = 1e-6;

/// Whether a network of these weights can be packed: all are frozen, in single precision, on the CPU.
fn fits(weights: &[&Tensor]) -> bool {
    weights.iter().all(|weight| {
        !weight.track_op() && weight.dtype() == DType::F32 && matches!(weight.device(), Device::Cpu)
    })
}

fn elements(tensor: &Tensor) -> TensorResult<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Columns of a panel, and rows that are multiplied at once: what gemm's widest kernel takes (64 × 6), and as many of its
/// strips as it takes without packing the panel again.
const PANEL: usize = 64;
const ROWS: usize = 48;

/// A matrix (depth, columns) in panels of neighbouring columns, each row by row, as matrix products read it.
#[derive(Debug)]
struct Panels {
    depth: usize,
    columns: usize,
    data: Vec<f32>,
}

impl Panels {
    fn new(depth: usize, columns: usize, element: impl Fn(usize, usize) -> f32) -> Self {
        let mut data = Vec::with_capacity(depth * columns);
        for first in (0..columns).step_by(PANEL) {
            let panel = first..columns.min(first + PANEL);
            data.extend(
                (0..depth)
                    .flat_map(|row| panel.clone().map(move |column| (row, column)))
                    .map(|(r, c)| element(r, c)),
            );
        }
        Self { depth, columns, data }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        let first = column - column % PANEL;
        self.data[first * self.depth + row * PANEL.min(self.columns - first) + column - first]
    }

    /// `out (rows, columns) = [out +] x (rows, depth) ·` this.
    fn multiply(&self, out: &mut [f32], x: &[f32], add: bool) {
        for first in (0..self.columns).step_by(PANEL) {
            let width = PANEL.min(self.columns - first);
            let rhs = slice::Matrix { data: &self.data[first * self.depth..], row: width, column: 1 };
            let rows = out.chunks_mut(ROWS * self.columns).zip(x.chunks(ROWS * self.depth));
            for (out, x) in rows {
                let lhs = slice::Matrix { data: x, row: self.depth, column: 1 };
                let sizes = (x.len() / self.depth, width, self.depth);
                slice::gemm(sizes, &mut out[first..], self.columns, add, 1.0, lhs, rhs);
            }
        }
    }
}

/// A frozen affine map.
#[derive(Debug)]
struct Affine {
    /// (inputs, outputs)
    forward: Panels,
    /// (outputs, inputs), made when the first gradient goes back.
    back: OnceLock<Panels>,
    bias: Vec<f32>,
}

impl Affine {
    fn new(weight: &Tensor, bias: &Tensor) -> TensorResult<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let weight = elements(weight)?;
        let forward = Panels::new(inputs, outputs, |input, output| weight[output * inputs + input]);
        Ok(Self { forward, back: OnceLock::new(), bias: elements(bias)? })
    }

    fn inputs(&self) -> usize {
        self.forward.depth
    }

    fn outputs(&self) -> usize {
        self.forward.columns
    }

    /// `out (rows, outputs)` from `x (rows, inputs)`.
    fn forward(&self, out: &mut [f32], x: &[f32]) {
        out.chunks_exact_mut(self.outputs()).for_each(|row| row.copy_from_slice(&self.bias));
        self.forward.multiply(out, x, true);
    }

    /// `out (rows, outputs) = residual +` this of `x (rows, inputs)`.
    fn forward_onto(&self, out: &mut [f32], x: &[f32], residual: &[f32]) {
        self.forward.multiply(out, x, false);
        slice::add_bias_and(out, &self.bias, residual);
    }

    /// `dx (rows, inputs)` from `dy (rows, outputs)`.
    fn back(&self, dx: &mut [f32], dy: &[f32]) {
        let transposed =
            || Panels::new(self.outputs(), self.inputs(), |output, input| self.forward.at(input, output));
        self.back.get_or_init(transposed).multiply(dx, dy, false);
    }
}

/// What one operation keeps from its way forward for its way back.
type Stash = OnceLock<Arc<Vec<f32>>>;

#[cfg(test)]
mod testing {
    pub use super::super::testing::*;
    use super::*;

    /// A frozen tensor.
    pub fn random(shape: &[usize], index: u64, scale: f64) -> Tensor {
        (var(&Device::Cpu, shape, index).as_tensor() * scale).unwrap().detach()
    }

    pub fn map(outputs: usize, inputs: usize, index: u64) -> (Tensor, Tensor) {
        let scale = 1.0 / (inputs as f64).sqrt();
        (random(&[outputs, inputs], index, scale), random(&[outputs], index + 1, 0.1))
    }

    pub fn single(xs: &Tensor) -> Tensor {
        xs.to_dtype(DType::F32).unwrap()
    }
}
