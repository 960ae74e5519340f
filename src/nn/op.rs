//! What all fused operations share: one custom operation of the tensor library over up to three contiguous arguments.
//!
//! An operation says what shape it gives, how to compute it from slices on the CPU and by which kernels on CUDA, how the
//! tensor library's own operations would compose it, and which operations its gradients are; this module does the rest.
//! Arithmetic is in single precision: half-precision (bf16) arguments are widened before and what is stored is rounded,
//! so the sums of norms, softmaxes and products are in single precision either way. The CPU rounds the result once; on
//! CUDA, what passes from one kernel to the next (a product before its bias, the weights of attention) is rounded too.

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Shape, Tensor};
use half::bf16;

#[cfg(feature = "cuda")]
use super::cuda;
use super::{ARGUMENTS, TensorResult};

/// Gradients with respect to the arguments; none where an argument does not ask for one.
pub type Gradients = [Option<Tensor>; ARGUMENTS];

/// One argument on the CPU: its elements and its axes. An absent one has neither.
pub struct Argument<'a> {
    pub data: Cow<'a, [f32]>,
    pub dims: &'a [usize],
    /// Of a matrix that lies there column by column, where the operation takes such ([`Fused::BY_COLUMN`]): the elements
    /// from one column to the next.
    pub column: Option<usize>,
}

impl Argument<'_> {
    /// Sample `b` of the first axis; nothing where the argument is absent.
    pub fn sample(&self, b: usize) -> &[f32] {
        let width = self.data.len() / self.dims[0].max(1);
        &self.data[b * width..][..width]
    }
}

/// `count` numbers that are all written before any is read. With debug assertions, as in tests, they are NaN: one that
/// is read shows.
#[expect(
    clippy::uninit_vec,
    reason = "zeroing what is written over anyway is a twentieth of a training step"
)]
pub fn unwritten(count: usize) -> Vec<f32> {
    if cfg!(debug_assertions) {
        return vec![f32::NAN; count];
    }
    let mut numbers = Vec::with_capacity(count);
    // SAFETY: the capacity is `count`, any bits make an f32, and who asks for these numbers writes each before reading it.
    unsafe { numbers.set_len(count) };
    numbers
}

/// A fused operation.
pub trait Fused: Send + Sync + 'static {
    /// How errors name it.
    const NAME: &'static str;

    /// Whether [`Fused::cpu`] writes every number of its result before it reads one.
    const OVERWRITES: bool = false;

    /// Whether its second argument may lie column by column on the CPU.
    const BY_COLUMN: bool = false;

    /// Whether it has kernels; where it has none, CUDA runs the composition.
    const KERNEL: bool = false;

    /// The shape of the result. An absent argument has shape `[0]`.
    ///
    /// # Errors
    /// Where the arguments do not fit each other.
    fn shape(&self, dims: [&[usize]; ARGUMENTS]) -> TensorResult<Shape>;

    /// What the result on the CPU starts from, `count` numbers: zeros, unless something is to be added to or they are
    /// written over.
    fn start(&self, arguments: &[Argument; ARGUMENTS], count: usize) -> Vec<f32> {
        let _ = arguments;
        if Self::OVERWRITES { unwritten(count) } else { vec![0.0; count] }
    }

    /// Computes the result on the CPU, in what [`Fused::start`] gave.
    fn cpu(&self, arguments: [Argument; ARGUMENTS], out: &mut [f32]);

    /// Computes the result on CUDA.
    ///
    /// # Errors
    /// Those of the driver.
    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let _ = call;
        candle_core::bail!("{} has no kernel", Self::NAME)
    }

    /// The same formula in the tensor library's own differentiable operations: for other devices and precisions, and what
    /// tests hold the rest against.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let dtype = arguments[0].dtype();
        candle_core::bail!("{} computes in single precision or bf16, not in {dtype:?}", Self::NAME)
    }

    /// The gradients, from the arguments, the result and its gradient. A step of a backward pass has none itself.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    fn gradients(
        &self,
        arguments: [&Tensor; ARGUMENTS],
        result: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let _ = (arguments, result, grad);
        Err(candle_core::Error::BackwardNotSupported { op: Self::NAME })
    }
}

/// True where the operation itself runs on this tensor, not its composition.
fn is_fused<O: Fused>(xs: &Tensor) -> bool {
    let device = match xs.device() {
        Device::Cpu => true,
        Device::Cuda(_) => O::KERNEL,
        Device::Metal(_) => false,
    };
    device && matches!(xs.dtype(), DType::F32 | DType::BF16)
}

/// Applies a differentiable operation.
///
/// # Errors
/// Those of [`Fused::shape`] and of the device.
pub fn apply<O: Fused>(op: O, arguments: &[&Tensor]) -> TensorResult {
    if !is_fused::<O>(arguments[0]) {
        return op.compose(arguments);
    }
    let [a, b, c] = gather::<O>(arguments)?;
    a.apply_op3(&b, &c, Custom(op))
}

/// Applies a step of a backward pass, which keeps no graph.
///
/// # Errors
/// Those of [`Fused::shape`] and of the device.
pub fn backward<O: Fused>(op: O, arguments: &[&Tensor]) -> TensorResult {
    if !is_fused::<O>(arguments[0]) {
        return op.compose(arguments);
    }
    let [a, b, c] = gather::<O>(arguments)?;
    a.apply_op3_no_bwd(&b, &c, &Custom(op))
}

/// All arguments contiguous and in the first one's precision; empty tensors stand for absent ones.
fn gather<O: Fused>(arguments: &[&Tensor]) -> TensorResult<[Tensor; ARGUMENTS]> {
    let first = arguments[0];
    let stays = |i: usize, tensor: &Tensor| {
        i == 1 && O::BY_COLUMN && tensor.device().is_cpu() && column(tensor.layout()).is_some()
    };
    let of = |i: usize| match arguments.get(i) {
        Some(tensor) if stays(i, tensor) && tensor.dtype() == first.dtype() => Ok((*tensor).clone()),
        Some(tensor) => tensor.to_dtype(first.dtype())?.contiguous(),
        None => Tensor::zeros(0, first.dtype(), first.device()),
    };
    Ok([of(0)?, of(1)?, of(2)?])
}

/// The elements from column to column of a matrix that lies there column by column.
fn column(layout: &Layout) -> Option<usize> {
    match *layout.stride() {
        [1, column] if !layout.is_contiguous() && column >= layout.dims()[0] => Some(column),
        _ => None,
    }
}

/// The argument, or nothing where an empty tensor stands for an absent one.
pub fn present<'a>(arguments: &[&'a Tensor], index: usize) -> Option<&'a Tensor> {
    arguments.get(index).copied().filter(|tensor| tensor.elem_count() > 0)
}

/// `op` where the tensor asks for a gradient.
///
/// # Errors
/// Those of `op`.
pub fn wanted(tensor: &Tensor, op: impl FnOnce() -> TensorResult) -> TensorResult<Option<Tensor>> {
    tensor.track_op().then(op).transpose()
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
        let arguments = [read(a, a_layout)?, read(b, b_layout)?, read(c, c_layout)?];
        let mut out = self.0.start(&arguments, shape.elem_count());
        self.0.cpu(arguments, &mut out);
        let out = match a {
            CpuStorage::BF16(_) => CpuStorage::BF16(out.into_iter().map(bf16::from_f32).collect()),
            _ => CpuStorage::F32(out),
        };
        Ok((out, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        a_layout: &Layout,
        b: &candle_core::CudaStorage,
        b_layout: &Layout,
        c: &candle_core::CudaStorage,
        c_layout: &Layout,
    ) -> TensorResult<(candle_core::CudaStorage, Shape)> {
        let shape = self.0.shape([a_layout.dims(), b_layout.dims(), c_layout.dims()])?;
        let (storages, count) = ([(a, a_layout), (b, b_layout), (c, c_layout)], shape.elem_count());
        let out = match &a.slice {
            candle_core::cuda::CudaStorageSlice::BF16(_) => {
                cuda::run::<bf16>(storages, count, |call| self.0.cuda(call))?
            }
            _ => cuda::run::<f32>(storages, count, |call| self.0.cuda(call))?,
        };
        Ok((out, shape))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.0.gradients([a, b, c], result, grad)?;
        Ok((a, b, c))
    }
}

fn read<'a>(storage: &'a CpuStorage, layout: &'a Layout) -> TensorResult<Argument<'a>> {
    let (dims, column) = (layout.dims(), column(layout));
    let range = match (layout.contiguous_offsets(), column) {
        (Some((start, end)), _) => start..end,
        (None, Some(column)) => {
            let start = layout.start_offset();
            start..start + (dims[1] - 1) * column + dims[0]
        }
        (None, None) => candle_core::bail!("a fused operation needs contiguous arguments"),
    };
    let data = match storage {
        CpuStorage::BF16(all) => Cow::Owned(all[range].iter().map(|x| x.to_f32()).collect()),
        _ => Cow::Borrowed(&storage.as_slice::<f32>()?[range]),
    };
    Ok(Argument { data, dims, column })
}
