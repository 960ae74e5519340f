//! Ranks that are processes with a GPU each, summed by NCCL.

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::nccl::safe::{Comm, Id, ReduceOp};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::Collective;
use crate::error::{Error, Result};

/// One rank of a run over several GPUs.
pub struct Nccl {
    comm: Comm,
    device: CudaDevice,
}

// SAFETY: NCCL wants one call at a time on a communicator; the training's own thread is the only one that makes any.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Joins the other ranks under the identifier that [`identifier`] gave one of them.
    ///
    /// # Errors
    /// Where NCCL refuses, or `id` is no identifier of its.
    pub fn join(device: &CudaDevice, rank: usize, world_size: usize, id: &[u8]) -> Result<Self> {
        let id = <[u8; 128]>::try_from(id).map_err(|_| {
            Error::Tensor(format!("an identifier of NCCL has 128 bytes, and this has {}", id.len()))
        })?;
        let id = Id::uninit(id.map(|byte| byte as std::ffi::c_char));
        let comm =
            Comm::from_rank(device.cuda_stream(), rank, world_size, id).map_err(|fault| refused(&fault))?;
        Ok(Self { comm, device: device.clone() })
    }
}

/// What names one meeting of ranks to NCCL; one rank makes it, all must know it.
///
/// # Errors
/// Where NCCL refuses.
pub fn identifier() -> Result<Vec<u8>> {
    let id = Id::new().map_err(|fault| refused(&fault))?;
    Ok(id.internal().iter().map(|&byte| byte as u8).collect())
}

fn refused(fault: &impl std::fmt::Debug) -> Error {
    Error::Tensor(format!("NCCL refused ({fault:?}); NCCL_DEBUG=INFO says why"))
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn world_size(&self) -> usize {
        self.comm.world_size()
    }

    fn all_reduce_numbers(&self, numbers: Vec<f64>) -> Result<Vec<f64>> {
        if numbers.is_empty() {
            return Ok(numbers);
        }
        let device = candle_core::Device::Cuda(self.device.clone());
        let count = numbers.len();
        let sum = self.sum(&Tensor::from_vec(numbers, count, &device)?)?;
        Ok(sum.to_vec1()?)
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<Tensor> {
        self.sum(&tensor.to_dtype(DType::F32)?)
    }
}

impl Nccl {
    fn sum(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.contiguous()?.apply_op1_no_bwd(&AllReduce(&self.comm))?)
    }
}

struct AllReduce<'a>(&'a Comm);

impl CustomOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "all-reduce"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("NCCL sums what is on GPUs, and this tensor is not")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("all-reduce needs a contiguous tensor");
        };
        let device = storage.device();
        let refused =
            |fault: &dyn std::fmt::Debug| candle_core::Error::Msg(format!("NCCL refused ({fault:?})"));
        macro_rules! reduce {
            ($element:ty) => {{
                let own = storage.as_cuda_slice::<$element>()?.slice(start..end);
                let mut sum = device
                    .cuda_stream()
                    .alloc_zeros::<$element>(end - start)
                    .map_err(|fault| refused(&fault))?;
                self.0.all_reduce(&own, &mut sum, &ReduceOp::Sum).map_err(|fault| refused(&fault))?;
                CudaStorage::wrap_cuda_slice(sum, device.clone())
            }};
        }
        let sum = match storage.dtype() {
            DType::F64 => reduce!(f64),
            _ => reduce!(f32),
        };
        Ok((sum, layout.shape().clone()))
    }
}
