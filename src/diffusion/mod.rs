//! Diffusion as its mathematics: noise schedule, prediction target, sampler, guidance (the paper's section 3).
//!
//! The signal-to-noise ratio is the currency: a schedule maps a [`Timestep`](crate::units::Timestep) to a
//! [`LogSnr`](crate::units::LogSnr), and everything else follows from that number. Noise always comes from the caller,
//! so an image or a training pair owns its own. Nothing here knows a network, a user or a file.

mod gdf;
mod guidance;
mod process;
mod sampler;
mod schedule;
mod target;

pub use gdf::{Gdf, GdfConfig};
pub use guidance::{GuidanceSteps, UnconditionalHalf, UnconditionalUser, guide, guide_batch};
pub use process::Process;
pub use sampler::{Sampler, SamplerConfig};
pub use schedule::{Schedule, TimestepRange};
pub use target::Target;

use candle_core::Tensor;

use crate::error::{Error, Result};

/// One number for each sample, shaped `(B, 1, …)` so that it broadcasts over `like`'s other dimensions.
fn per_sample(numbers: impl ExactSizeIterator<Item = f64>, like: &Tensor) -> Result<Tensor> {
    let batch = like.dims().first().copied().unwrap_or(0);
    if numbers.len() != batch {
        return Err(Error::Shape(format!(
            "expected one timestep for each of {batch} samples of shape {:?}, got {}",
            like.dims(),
            numbers.len()
        )));
    }
    let mut shape = vec![1; like.rank()];
    shape[0] = batch;
    let column = Tensor::from_vec(numbers.collect::<Vec<f64>>(), shape, &candle_core::Device::Cpu)?;
    Ok(column.to_dtype(like.dtype())?.to_device(like.device())?)
}

/// Refuses two tensors that should have one shape and have not.
fn same_shape(what: &str, expected: &Tensor, got: &Tensor) -> Result<()> {
    if expected.dims() == got.dims() {
        return Ok(());
    }
    Err(Error::Shape(format!("{what} should have shape {:?}, got {:?}", expected.dims(), got.dims())))
}
