//! Runs the kernels of `kernels.cu`, which the build compiles to PTX.

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg, ValidAsZeroBits,
};
use candle_core::cuda::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Layout};
use half::bf16;

use super::{ARGUMENTS, TensorResult};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
const MODULE: &str = "ppd";

/// Threads of a block that goes through elements.
const THREADS: u32 = 256;

/// The element types that kernels are made for.
pub trait Element: CudaDType + DeviceRepr + ValidAsZeroBits + 'static {
    /// What the names of its kernels end in.
    const SUFFIX: &'static str;
}

impl Element for f32 {
    const SUFFIX: &'static str = "float";
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
}

/// One call of an operation: its arguments and its result on the device.
pub struct Call<'a, T> {
    device: &'a CudaDevice,
    storages: [(&'a CudaStorage, &'a Layout); ARGUMENTS],
    views: [CudaView<'a, T>; ARGUMENTS],
    count: usize,
    /// Made by what writes it first, which writes all of it.
    out: Option<CudaStorage>,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub enum Parameter<'p> {
    /// The operation's argument of that index.
    Input(usize),
    /// The operation's result.
    Output,
    /// A workspace between two kernels.
    Workspace(&'p CudaSlice<f32>),
    /// A size that fits 32 bits.
    U32(u32),
    /// A number of elements.
    U64(u64),
    /// A switch.
    I32(i32),
    /// A constant.
    F32(f32),
}

/// The result, of so many elements, that `op` computes from arguments of one element type.
///
/// # Errors
/// Those of the driver, and where an argument is not contiguous.
pub fn run<T: Element>(
    storages: [(&CudaStorage, &Layout); ARGUMENTS],
    count: usize,
    op: impl FnOnce(&mut Call<T>) -> TensorResult<()>,
) -> TensorResult<CudaStorage> {
    let device = storages[0].0.device();
    let views = [view(storages[0])?, view(storages[1])?, view(storages[2])?];
    let mut call = Call { device, storages, views, count, out: None };
    op(&mut call)?;
    match call.out {
        Some(out) => Ok(out),
        // Nothing to compute, as in an empty batch.
        None => Ok(CudaStorage::wrap_cuda_slice(device.alloc_zeros::<T>(count)?, device.clone())),
    }
}

fn view<'a, T: Element>((storage, layout): (&'a CudaStorage, &Layout)) -> TensorResult<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused operation needs contiguous arguments");
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

impl<T: Element> Call<'_, T> {
    /// The axes of an argument.
    pub fn dims(&self, index: usize) -> &[usize] {
        self.storages[index].1.dims()
    }

    /// The last axis of an argument.
    pub fn width(&self, index: usize) -> usize {
        self.dims(index).last().copied().unwrap_or(0)
    }

    /// True where the argument is there.
    pub fn has(&self, index: usize) -> bool {
        self.storages[index].1.shape().elem_count() > 0
    }

    /// How many elements the result has.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A single-precision workspace between two kernels.
    ///
    /// # Errors
    /// Where memory runs out.
    pub fn workspace(&self, count: usize) -> TensorResult<CudaSlice<f32>> {
        self.device.cuda_stream().alloc_zeros::<f32>(count).w()
    }

    /// Starts a kernel.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn launch(&mut self, kernel: &str, grid: LaunchConfig, parameters: &[Parameter]) -> TensorResult<()> {
        if grid.grid_dim.0 == 0 || grid.grid_dim.1 == 0 {
            return Ok(());
        }
        let name = format!("{kernel}_{}", T::SUFFIX);
        let function = self.device.get_or_load_custom_func(&name, MODULE, PTX)?;
        if self.out.is_none() && parameters.iter().any(|parameter| matches!(parameter, Parameter::Output)) {
            // SAFETY: every kernel writes each element of its result before anything reads it.
            let slice = unsafe { self.device.alloc::<T>(self.count) }?;
            self.out = Some(CudaStorage::wrap_cuda_slice(slice, self.device.clone()));
        }
        let mut builder = function.builder();
        let mut out = self.out.as_mut().map(T::as_cuda_slice_mut).transpose()?;
        for parameter in parameters {
            match parameter {
                Parameter::Input(index) => builder.arg(&self.views[*index]),
                Parameter::Output => match out.take() {
                    Some(out) => builder.arg(out),
                    None => candle_core::bail!("{kernel}: the result is given twice"),
                },
                Parameter::Workspace(numbers) => builder.arg(*numbers),
                Parameter::U32(value) => builder.arg(value),
                Parameter::U64(value) => builder.arg(value),
                Parameter::I32(value) => builder.arg(value),
                Parameter::F32(value) => builder.arg(value),
            };
        }
        // SAFETY: the kernel is ours; the parameters are those of its declaration, and every index that it forms lies
        // within the arguments, whose shapes the operation has checked.
        unsafe { builder.launch(grid) }.w()?;
        Ok(())
    }

    /// The first argument (rows, k) times the second, which lies as (k, n) or, `transposed`, as (n, k): the result. Sums are in single precision.
    ///
    /// # Errors
    /// Those of cuBLAS.
    pub fn matmul(&mut self, (rows, n, k): (usize, usize, usize), transposed: bool) -> TensorResult<()> {
        let [(lhs, lhs_layout), (rhs, rhs_layout), _] = self.storages;
        let flat = |layout: &Layout, shape: (usize, usize)| {
            Layout::contiguous_with_offset(shape, layout.start_offset())
        };
        let lhs_layout = flat(lhs_layout, (rows, k));
        let rhs_layout = match transposed {
            true => flat(rhs_layout, (n, k)).transpose(0, 1)?,
            false => flat(rhs_layout, (k, n)),
        };
        self.out = Some(lhs.matmul(rhs, (1, rows, n, k), &lhs_layout, &rhs_layout)?);
        Ok(())
    }
}

/// Enough blocks for a thread to each element, or to every so many of very many.
pub fn elements(count: usize) -> LaunchConfig {
    let blocks = count.div_ceil(THREADS as usize).min(1 << 20) as u32;
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

/// One block for each row of `width` elements.
pub fn rows(count: usize, width: usize) -> LaunchConfig {
    let threads = (width.div_ceil(32) * 32).clamp(32, 512) as u32;
    LaunchConfig { grid_dim: (count as u32, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// Blocks of 32 channels × 8 positions for each sample.
pub fn columns(samples: usize, width: usize) -> LaunchConfig {
    let grid_dim = (width.div_ceil(32) as u32, samples as u32, 1);
    LaunchConfig { grid_dim, block_dim: (32, 8, 1), shared_mem_bytes: 0 }
}
