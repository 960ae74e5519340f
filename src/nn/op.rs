//! What all fused operations share: one custom operation of the tensor library over up to three contiguous arguments.
//!
//! An operation says what shape it gives, how to compute it from slices, and which operations its gradients are; this
//! module does the rest. Arithmetic is in single precision: half-precision (bf16) arguments are widened before and the
//! result is rounded once after, so the sums of norms, softmaxes and products are in single precision either way.

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Shape, Tensor};
use half::bf16;

use super::TensorResult;

/// The most arguments that an operation takes.
pub const ARGUMENTS: usize = 3;

/// Gradients with respect to the arguments; none where an argument does not ask for one.
pub type Gradients = [Option<Tensor>; ARGUMENTS];

/// One argument on the CPU: its elements and its axes. An absent one has neither.
pub struct Argument<'a> {
    pub data: Cow<'a, [f32]>,
    pub dims: &'a [usize],
}

/// A fused operation.
pub trait Fused: Send + Sync + 'static {
    /// How errors name it.
    const NAME: &'static str;

    /// The shape of the result.
    ///
    /// # Errors
    /// Where the arguments do not fit each other.
    fn shape(&self, dims: [&[usize]; ARGUMENTS]) -> TensorResult<Shape>;

    /// Computes the result, which starts as zeros.
    fn cpu(&self, arguments: [Argument; ARGUMENTS], out: &mut [f32]);

    /// The gradients, from the arguments and the gradient of the result. An operation that is itself part of a backward
    /// pass has none.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    fn gradients(&self, arguments: [&Tensor; ARGUMENTS], grad: &Tensor) -> TensorResult<Gradients> {
        let _ = (arguments, grad);
        Err(candle_core::Error::BackwardNotSupported { op: Self::NAME })
    }
}

/// True where fused operations run on this tensor: single precision and bf16 on the CPU.
pub fn is_fused(xs: &Tensor) -> bool {
    xs.device().is_cpu() && matches!(xs.dtype(), DType::F32 | DType::BF16)
}

/// Applies a differentiable operation.
///
/// # Errors
/// Those of [`Fused::shape`].
pub fn apply(op: impl Fused, arguments: &[&Tensor]) -> TensorResult {
    let [a, b, c] = gather(arguments)?;
    a.apply_op3(&b, &c, Custom(op))
}

/// Applies a step of a backward pass, which keeps no graph.
///
/// # Errors
/// Those of [`Fused::shape`].
pub fn backward(op: impl Fused, arguments: &[&Tensor]) -> TensorResult {
    let [a, b, c] = gather(arguments)?;
    a.apply_op3_no_bwd(&b, &c, &Custom(op))
}

/// All arguments contiguous and in the first one's precision; empty tensors stand for absent ones.
fn gather(arguments: &[&Tensor]) -> TensorResult<[Tensor; ARGUMENTS]> {
    let first = arguments[0];
    let of = |i: usize| match arguments.get(i) {
        Some(tensor) => tensor.to_dtype(first.dtype())?.contiguous(),
        None => Tensor::zeros(0, first.dtype(), first.device()),
    };
    Ok([of(0)?, of(1)?, of(2)?])
}

/// Gives an operation to the tensor library.
struct Custom<O>(O);

impl<O: Fused> CustomOp3 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        c: &CpuStorage,
        c_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let shape = self.0.shape([a_layout.dims(), b_layout.dims(), c_layout.dims()])?;
        let mut out = vec![0f32; shape.elem_count()];
        let arguments = [read(a, a_layout)?, read(b, b_layout)?, read(c, c_layout)?];
        self.0.cpu(arguments, &mut out);
        let out = match a {
            CpuStorage::BF16(_) => CpuStorage::BF16(out.into_iter().map(bf16::from_f32).collect()),
            _ => CpuStorage::F32(out),
        };
        Ok((out, shape))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.0.gradients([a, b, c], grad)?;
        Ok((a, b, c))
    }
}

fn read<'a>(storage: &'a CpuStorage, layout: &'a Layout) -> TensorResult<Argument<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused operation needs contiguous arguments");
    };
    let data = match storage {
        CpuStorage::BF16(all) => Cow::Owned(all[start..end].iter().map(|x| x.to_f32()).collect()),
        _ => Cow::Borrowed(&storage.as_slice::<f32>()?[start..end]),
    };
    Ok(Argument { data, dims: layout.dims() })
}

/// `op` where the tensor asks for a gradient.
///
/// # Errors
/// Those of `op`.
pub fn wanted(tensor: &Tensor, op: impl FnOnce() -> TensorResult) -> TensorResult<Option<Tensor>> {
    tensor.track_op().then(op).transpose()
}
