//! Whole blocks of a frozen network, each as one operation in single precision on the CPU.
//!
//! A sample goes through a block from end to end while its numbers are in the cache. On the way back a block passes one
//! gradient to the next, where its parts, each an operation of its own, would pass seven, every one of which the tensor
//! library first adds to zeros. The weights are held as matrix products read them: column by column on the way forward,
//! and, made when first asked for, row by row on the way back.

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

/// A frozen affine map.
#[derive(Debug)]
struct Affine {
    inputs: usize,
    outputs: usize,
    by_column: Vec<f32>,
    by_row: OnceLock<Vec<f32>>,
    bias: Vec<f32>,
}

impl Affine {
    fn new(weight: &Tensor, bias: &Tensor) -> TensorResult<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let by_column = elements(&weight.t()?)?;
        Ok(Self { inputs, outputs, by_column, by_row: OnceLock::new(), bias: elements(bias)? })
    }

    /// `out (rows, outputs)` from `x (rows, inputs)`.
    fn forward(&self, out: &mut [f32], x: &[f32]) {
        let (n, k) = (self.outputs, self.inputs);
        out.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(&self.bias));
        let lhs = slice::Matrix { data: x, row: k, column: 1 };
        let rhs = slice::Matrix { data: &self.by_column, row: n, column: 1 };
        slice::gemm((x.len() / k, n, k), out, n, true, 1.0, lhs, rhs);
    }

    /// `dx (rows, inputs)` from `dy (rows, outputs)`.
    fn back(&self, dx: &mut [f32], dy: &[f32]) {
        let (n, k) = (self.outputs, self.inputs);
        let by_row =
            self.by_row.get_or_init(|| (0..n * k).map(|i| self.by_column[(i % k) * n + i / k]).collect());
        let lhs = slice::Matrix { data: dy, row: n, column: 1 };
        let rhs = slice::Matrix { data: by_row, row: k, column: 1 };
        slice::gemm((dy.len() / n, k, n), dx, k, false, 1.0, lhs, rhs);
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
