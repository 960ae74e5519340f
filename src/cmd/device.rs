//! Where to compute: `--device`.

use std::path::Path;

use candle_core::{DType, Device, DeviceLocation};

use crate::base::{Base, CascadeFiles};
use crate::collective::{Alone, Collective};
use crate::error::{Error, Result};
use crate::hub::{self, Hub};
use crate::launch::Ranks;
use crate::nn::workers::Workers;
use crate::spec::{Precision, Profile};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// The first GPU where this build and this machine have one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that number.
    Cuda(usize),
}

const EXPECTED: &str = "expected cpu, cuda, cuda:N or auto";

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Self::Cuda(ordinal)),
                _ => Err(EXPECTED.into()),
            },
        }
    }
}

impl Choice {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Spec`] where a GPU is asked for that this build or this machine does not have.
    pub(super) fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            // A GPU that is there but does not open is no reason to compute for days on the CPU unnoticed.
            Self::Auto if gpus() > 0 => cuda(0),
            Self::Auto => Ok(Device::Cpu),
            Self::Cuda(ordinal) => cuda(ordinal),
        }
    }
}

/// How many GPUs this build can use on this machine.
#[cfg(feature = "cuda")]
fn gpus() -> usize {
    candle_core::cuda::cudarc::driver::CudaContext::device_count().map_or(0, |count| count.max(0) as usize)
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> usize {
    0
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<Device> {
    Device::new_cuda_with_stream(ordinal).map_err(|fault| {
        let fault = Error::from(fault);
        Error::Spec(format!("--device cuda:{ordinal}: {fault}; `--device cpu` computes without a GPU"))
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(ordinal: usize) -> Result<Device> {
    Err(unavailable(ordinal, 0))
}

/// Why there is no GPU of that number among the `count` that this build can use.
fn unavailable(ordinal: usize, count: usize) -> Error {
    Error::Spec(if cfg!(feature = "cuda") {
        format!(
            "--device cuda:{ordinal}: this machine shows {count} GPUs, numbered from 0; `--device cpu` computes without one"
        )
    } else {
        format!(
            "--device cuda:{ordinal}: this build computes on the CPU only; build it with `--features cuda`, or leave the \
             option out"
        )
    })
}

/// Refuses a device that is not there, for one of several processes too, before any is opened.
///
/// # Errors
/// [`Error::Spec`] as [`Compute::together`] would give it.
pub(super) fn check(choice: Choice, ranks: Option<&Ranks>) -> Result<()> {
    check_among(choice, ranks, gpus())
}

fn check_among(choice: Choice, ranks: Option<&Ranks>, count: usize) -> Result<()> {
    match (ranks, choice) {
        (Some(ranks), _) if cfg!(feature = "nccl") => own_gpu(choice, ranks.local, count).map(drop),
        (Some(ranks), _) => Err(alone(ranks)),
        (None, Choice::Cuda(ordinal)) if ordinal >= count => Err(unavailable(ordinal, count)),
        (None, _) => Ok(()),
    }
}

/// Why one of several processes cannot take part.
fn alone(Ranks { rank, world_size, .. }: &Ranks) -> Error {
    Error::Spec(format!(
        "this is process {rank} of {world_size}, but this build computes alone: start one process, or build it with \
         `--features nccl`"
    ))
}

/// A device, the workers that feed it, and the processes that share the work.
pub(super) struct Compute {
    pub(super) device: Device,
    pub(super) workers: Workers,
    pub(super) collective: Box<dyn Collective>,
}

impl Compute {
    /// This process alone, whatever others do.
    ///
    /// # Errors
    /// Those of [`Choice::open`], and where threads cannot be started.
    pub(super) fn alone(choice: Choice, threads: usize) -> Result<Self> {
        Self::of(choice.open()?, threads, Box::new(Alone))
    }

    /// With the other processes that `torchrun` or `srun` started; they meet in the cache folder.
    ///
    /// # Errors
    /// As [`Compute::alone`], and where this build knows no other processes.
    pub(super) fn together(choice: Choice, threads: usize, cache: &Path) -> Result<Self> {
        let Some(ranks) = Ranks::from_environment()? else { return Self::alone(choice, threads) };
        let (device, collective) = join(&ranks, choice, cache)?;
        Self::of(device, threads, collective)
    }

    /// As many workers as threads on the CPU; a GPU is fed by one, for its kernels wait for each other anyway.
    fn of(device: Device, threads: usize, collective: Box<dyn Collective>) -> Result<Self> {
        let workers = Workers::new(if device.is_cpu() { threads } else { 1 })?;
        Ok(Self { device, workers, collective })
    }

    /// Opens a profile's denoiser with what stands around it; `trained` is the width of the tokens of an adapter that is to
    /// be trained beside it.
    ///
    /// # Errors
    /// Where a file is missing, damaged, or belongs to another config, or the device has no room for all of it.
    pub(super) fn base(&self, profile: &Profile, assets: &Path, trained: Option<usize>) -> Result<Base> {
        let weights = |model| profile.weights_in(assets, model);
        let dtype = match profile.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let mut base = match profile.pictures {
            None => {
                let (denoiser, codec) = (weights("denoiser")?, weights("codec")?);
                Base::open_desk(&denoiser, &codec, dtype, &self.device, trained)?
            }
            Some(pictures) => {
                let hub = Hub::from_env(hub::LOCK)?;
                let root = |name| profile.locate(name, &hub).map(|located| located.root);
                let files = CascadeFiles {
                    prior: root("denoiser")?,
                    decoder: root("decoder")?,
                    encoder: weights("effnet")?,
                };
                Base::open_cascade(&files, pictures, dtype, &self.device, trained)?
            }
        };
        if let Some(layers) = profile.recomputed_layers {
            base.prior.denoiser = base.prior.denoiser.recomputing(layers);
        }
        Ok(base)
    }

    /// The name that records carry: `cpu` or `cuda:0`.
    pub(super) fn name(&self) -> String {
        match self.device.location() {
            DeviceLocation::Cpu => "cpu".into(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }
}

/// The GPU of one of several processes, and its place among them.
#[cfg(feature = "nccl")]
fn join(ranks: &Ranks, choice: Choice, cache: &Path) -> Result<(Device, Box<dyn Collective>)> {
    use crate::collective::nccl::{Nccl, identifier};
    use crate::launch::meeting;

    let Ranks { rank, world_size, local, ref job } = *ranks;
    let ordinal = own_gpu(choice, local, gpus())?;
    let Device::Cuda(device) = cuda(ordinal)? else { unreachable!("a GPU was opened") };
    let folder = cache.join("ranks").join(job);
    let id = meeting::meet(&folder, (rank, world_size), meeting::PATIENCE, identifier)?;
    let nccl = Nccl::join(&device, rank, world_size, &id)?;
    if rank == 0 {
        meeting::adjourn(&folder)?;
    }
    Ok((Device::Cuda(device), Box::new(nccl)))
}

/// The number of a rank's GPU among the `count` that it sees: its only one, or the one of its own number.
fn own_gpu(choice: Choice, local: usize, count: usize) -> Result<usize> {
    match choice {
        Choice::Cpu => {
            Err(Error::Spec("--device cpu: several ranks need a GPU each; start one for the CPU".into()))
        }
        Choice::Cuda(ordinal) if ordinal > 0 => Err(Error::Spec(format!(
            "--device cuda:{ordinal}: each rank takes the GPU of its own number; write --device cuda, or choose GPUs \
             with CUDA_VISIBLE_DEVICES"
        ))),
        _ if count == 1 => Ok(0),
        _ if local < count => Ok(local),
        _ => Err(Error::Spec(format!(
            "rank {local} of this machine sees {count} GPUs; start at most {count} ranks on it"
        ))),
    }
}

#[cfg(not(feature = "nccl"))]
fn join(ranks: &Ranks, _: Choice, _: &Path) -> Result<(Device, Box<dyn Collective>)> {
    Err(alone(ranks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read() {
        for (text, choice) in [
            ("auto", Choice::Auto),
            ("cpu", Choice::Cpu),
            ("cuda", Choice::Cuda(0)),
            ("cuda:3", Choice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
        }
        for text in ["gpu", "cuda:", "cuda:x", "CUDA"] {
            assert_eq!(text.parse::<Choice>(), Err(EXPECTED.into()));
        }
        assert!(Choice::Cpu.open().unwrap().is_cpu());
    }

    #[test]
    fn each_rank_takes_a_gpu_of_its_own() {
        assert_eq!(own_gpu(Choice::Auto, 3, 4).unwrap(), 3);
        // As `srun --gpus-per-task=1` shows it: each rank sees one GPU, its own.
        assert_eq!(own_gpu(Choice::Cuda(0), 3, 1).unwrap(), 0);
        for (choice, local, count, part) in [
            (Choice::Cpu, 0, 2, "--device cpu"),
            (Choice::Cuda(1), 0, 2, "cuda:1"),
            (Choice::Auto, 2, 2, "2 GPUs"),
        ] {
            let message = own_gpu(choice, local, count).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_unopened() {
        let message = check_among(Choice::Cuda(2), None, 2).unwrap_err().to_string();
        assert!(message.contains("--device cuda:2"), "{message}");
        for choice in [Choice::Auto, Choice::Cpu, Choice::Cuda(1)] {
            check_among(choice, None, 2).unwrap();
        }
        check_among(Choice::Auto, None, 0).unwrap();
        let ranks = Ranks { rank: 1, world_size: 2, local: 1, job: String::new() };
        let outcome = check_among(Choice::Auto, Some(&ranks), 2);
        let lonely = check_among(Choice::Auto, Some(&ranks), 0).unwrap_err().to_string();
        assert_eq!(outcome.is_ok(), cfg!(feature = "nccl"));
        assert!(lonely.contains("process 1 of 2") || lonely.contains("sees 0 GPUs"), "{lonely}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_gpu_that_the_build_cannot_use_is_refused_with_the_way_out() {
        let message = Choice::Cuda(1).open().unwrap_err().to_string();
        assert!(message.contains("cuda:1") && message.contains("--features cuda"), "{message}");
        assert!(Choice::Auto.open().unwrap().is_cpu());
    }
}
