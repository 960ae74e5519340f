//! What candle lacks, forward and backward: fused, vectorised operations that skip the gradients of frozen weights.
//!
//! Every function takes and returns candle tensors and is differentiable. On the CPU each is a custom operation over
//! contiguous `f32` slices, vectorised at run time, on CUDA a kernel of `kernels.cu`; beside both stands the same formula
//! composed of candle's own differentiable primitives (candle's fused ones silently drop gradients), and tests hold them
//! against each other.
//!
//! On the CPU a result never depends on the batch around a sample, nor on the number of threads: each row of an output is
//! made by the same instructions in the same order. What this module does not do: choose an architecture, own a
//! parameter, or touch a file.

use candle_core::{Shape, Tensor};

use crate::error::Error;
#[cfg(feature = "cuda")]
use cuda::Parameter::{self, F32, I32, Input, Output, Own, U32, U64, Workspace};
use op::{Argument, Fused, Gradients, wanted};

mod activation;
mod adamw;
mod attention;
mod batch_norm;
mod bilinear;
mod conv;
mod convolution;
pub mod counting;
mod cross_attention;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod grn;
mod grouped_attention;
mod learning_rate;
mod linear;
mod modulate;
mod norm;
mod op;
mod packed;
#[cfg(any(test, feature = "cuda"))]
mod product;
mod recompute;
mod rms_norm;
mod rotary;
mod slice;
mod softmax;
pub mod workers;

pub use activation::{gelu_erf, gelu_tanh, quick_gelu, silu};
pub use adamw::{AdamW, AdamWConfig, clip_gradients};
pub use attention::{KeyValue, decoupled_attention, self_attention};
pub use batch_norm::{BatchNorm, Folded};
pub use bilinear::resize_corners;
pub use conv::{depth_to_space, depthwise_conv3x3, space_to_depth};
pub use convolution::{Convolution, TransposedConvolution};
pub use cross_attention::cross_attention;
pub use error::squared_error;
pub use grn::{gelu_grn, grn};
pub use grouped_attention::{Keys, grouped_attention};
pub use learning_rate::{Decay, LearningRate, Warmup};
pub use linear::{frozen_weight, linear};
pub use modulate::modulate;
pub use norm::layer_norm;
pub use packed::{PackedAttention, PackedResidual, ResidualWeights};
pub use recompute::recompute;
pub use rms_norm::rms_norm;
pub use rotary::rotary;
pub use softmax::Mask;

impl From<candle_core::Error> for Error {
    /// An error of this crate that travelled through the tensor library comes out as itself.
    fn from(error: candle_core::Error) -> Self {
        match error {
            candle_core::Error::WrappedContext { wrapped, context } => match wrapped.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => Self::Tensor(format!("{context}: {other}")),
            },
            // Backtraces that candle attaches where RUST_BACKTRACE is set would hide the sentence a person needs.
            other => Self::Tensor(other.to_string().lines().next().unwrap_or_default().to_owned()),
        }
    }
}

impl From<Error> for candle_core::Error {
    /// Carries an error of this crate through the tensor library's own results.
    fn from(error: Error) -> Self {
        let context = error.to_string();
        Self::WrappedContext { wrapped: Box::new(error), context }
    }
}

/// The most arguments that a fused operation takes.
const ARGUMENTS: usize = 3;

/// The result of an operation on tensors.
pub type TensorResult<T = Tensor> = candle_core::Result<T>;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
