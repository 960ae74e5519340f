//! Runs the kernels of `kernels.cu`, which the build compiles to PTX.

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::cublas::result::gemm_strided_batched_ex;
use candle_core::cuda::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
};
use candle_core::cuda::cudarc::driver::{
    CudaSlice, CudaView, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, ValidAsZeroBits,
};
use candle_core::cuda::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Layout};
use half::bf16;

use super::product::Product;
use super::{ARGUMENTS, TensorResult};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
const MODULE: &str = "ppd";

/// Threads of a block that goes through elements.
const THREADS: u32 = 256;

/// The element types that kernels are made for.
pub trait Element: CudaDType + DeviceRepr + ValidAsZeroBits + 'static {
    /// What the names of its kernels end in.
    const SUFFIX: &'static str;
    /// cuBLAS's word for it.
    const BLAS: cudaDataType_t;
}

impl Element for f32 {
    const SUFFIX: &'static str = "float";
    const BLAS: cudaDataType_t = cudaDataType_t::CUDA_R_32F;
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
    const BLAS: cudaDataType_t = cudaDataType_t::CUDA_R_16BF;
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
    /// A workspace whose bytes are of the operation's element type.
    Own(&'p CudaSlice<u8>),
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

    /// A workspace that is written before it is read.
    ///
    /// # Errors
    /// Where memory runs out.
    pub fn unwritten<E: DeviceRepr>(&self, count: usize) -> TensorResult<CudaSlice<E>> {
        // SAFETY: any bits make an E, as those types are numbers; who asks for them writes each before reading it.
        unsafe { self.device.alloc::<E>(count) }
    }

    /// Makes the result where it is among the parameters and is not there yet.
    fn make_result(&mut self, parameters: &[Parameter]) -> TensorResult<()> {
        if self.out.is_none() && parameters.iter().any(|parameter| matches!(parameter, Parameter::Output)) {
            let slice = self.unwritten::<T>(self.count)?;
            self.out = Some(CudaStorage::wrap_cuda_slice(slice, self.device.clone()));
        }
        Ok(())
    }

    /// Sets the result to zero from an element on.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn zero(&mut self, from: usize) -> TensorResult<()> {
        self.make_result(&[Parameter::Output])?;
        let Some(out) = &mut self.out else { return Ok(()) };
        let mut rest = T::as_cuda_slice_mut(out)?.slice_mut(from..);
        self.device.cuda_stream().memset_zeros(&mut rest).w()
    }

    /// One product for each head, by cuBLAS; the buffers are those of the left argument, the right one and the result, and
    /// the product says how it is read column by column. Sums are in single precision.
    ///
    /// # Errors
    /// Those of cuBLAS.
    pub fn multiply(&mut self, product: Product, buffers: [Parameter; 3]) -> TensorResult<()> {
        self.make_result(&buffers)?;
        let (stream, blas) = (self.device.cuda_stream(), self.device.cublas_handle());
        let out = self.out.as_ref().map(T::as_cuda_slice).transpose()?;
        // All work of a device is in one stream, in the order in which it is asked for: to write waits for no more than to
        // read does.
        let stacks = [product.lhs, product.rhs, product.out];
        let address = |at: usize| {
            let ((start, guard), kind) = match (&buffers[at], out) {
                (Parameter::Input(index), _) => (self.views[*index].device_ptr(&stream), T::BLAS),
                (Parameter::Own(bytes), _) => (bytes.device_ptr(&stream), T::BLAS),
                (Parameter::Workspace(numbers), _) => (numbers.device_ptr(&stream), f32::BLAS),
                (Parameter::Output, Some(out)) => (out.device_ptr(&stream), T::BLAS),
                _ => candle_core::bail!("a product of something that is no matrix"),
            };
            let size = if kind == T::BLAS { size_of::<T>() } else { size_of::<f32>() };
            Ok((start + (stacks[at].first * size) as u64, kind, guard))
        };
        let [(lhs, lhs_kind, _lhs), (rhs, rhs_kind, _rhs), (out, out_kind, _out)] =
            [address(0)?, address(1)?, address(2)?];
        let [transposed_lhs, transposed_rhs, _] = stacks.map(|stack| match stack.transposed {
            true => cublasOperation_t::CUBLAS_OP_T,
            false => cublasOperation_t::CUBLAS_OP_N,
        });
        let [lhs_row, rhs_row, out_row] = stacks.map(|stack| stack.row as i32);
        let [lhs_head, rhs_head, out_head] = stacks.map(|stack| stack.head as i64);
        let (m, n, k) = product.shape;
        let (scale, keep) = (product.scale, if product.add { 1f32 } else { 0.0 });
        // SAFETY: the addresses are of this device and alive until the guards go; the plan of the operation keeps every
        // matrix within its buffer, which a test on the processor checks; sums, and with them both factors, are f32.
        unsafe {
            gemm_strided_batched_ex(
                *blas.handle(),
                transposed_lhs,
                transposed_rhs,
                m as i32,
                n as i32,
                k as i32,
                (&raw const scale).cast(),
                lhs as *const _,
                lhs_kind,
                lhs_row,
                lhs_head,
                rhs as *const _,
                rhs_kind,
                rhs_row,
                rhs_head,
                (&raw const keep).cast(),
                out as *mut _,
                out_kind,
                out_row,
                out_head,
                product.heads as i32,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .w()
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
        self.make_result(parameters)?;
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
                Parameter::Own(bytes) => builder.arg(*bytes),
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

/// One warp for each row.
pub fn warps(rows: usize) -> LaunchConfig {
    let blocks = rows.div_ceil(THREADS as usize / 32) as u32;
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
