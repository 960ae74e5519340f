//! Ranks that are processes with a GPU each, summed by NCCL.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::nccl::safe::{Comm, Id, ReduceOp};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::Collective;
use crate::error::{Error, Result};

/// How long a rank waits for the first one to say where they meet.
const PATIENCE: Duration = Duration::from_secs(300);

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
    /// Joins the other ranks. The first writes NCCL's identifier to the file `meeting`, which all must see; the others
    /// wait for it.
    ///
    /// # Errors
    /// Where the file cannot be written or does not come, or NCCL refuses.
    pub fn join(device: &CudaDevice, rank: usize, ranks: usize, meeting: &Path) -> Result<Self> {
        let id = if rank == 0 { announce(meeting)? } else { wait(meeting, rank)? };
        let comm = Comm::from_rank(device.cuda_stream(), rank, ranks, id).map_err(|fault| refused(&fault))?;
        if rank == 0 {
            // All have joined: the next run meets anew.
            std::fs::remove_file(meeting).map_err(Error::io("remove", meeting))?;
        }
        Ok(Self { comm, device: device.clone() })
    }
}

fn refused(fault: &impl std::fmt::Debug) -> Error {
    Error::Tensor(format!("NCCL refused ({fault:?}); NCCL_DEBUG=INFO says why"))
}

fn announce(meeting: &Path) -> Result<Id> {
    let id = Id::new().map_err(|fault| refused(&fault))?;
    if let Some(folder) = meeting.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let bytes: Vec<u8> = id.internal().iter().map(|&byte| byte as u8).collect();
    crate::record::replace_file(meeting, &bytes)?;
    Ok(id)
}

fn wait(meeting: &Path, rank: usize) -> Result<Id> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Ok(bytes) = std::fs::read(meeting)
            && let Ok(internal) = <[u8; 128]>::try_from(bytes.as_slice())
        {
            return Ok(Id::uninit(internal.map(|byte| byte as std::ffi::c_char)));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(Error::data(
        meeting,
        format!(
            "rank {rank} waited {} s for the first rank to write this file; all ranks must see the cache folder",
            PATIENCE.as_secs()
        ),
    ))
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn ranks(&self) -> usize {
        self.comm.world_size()
    }

    fn sum_numbers(&self, numbers: Vec<f64>) -> Result<Vec<f64>> {
        if numbers.is_empty() {
            return Ok(numbers);
        }
        let device = candle_core::Device::Cuda(self.device.clone());
        let count = numbers.len();
        let sum = self.sum(&Tensor::from_vec(numbers, count, &device)?)?;
        Ok(sum.to_vec1()?)
    }

    fn sum_tensor(&self, tensor: &Tensor) -> Result<Tensor> {
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
