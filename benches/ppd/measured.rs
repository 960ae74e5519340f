//! One measurement and the line that it prints.

use std::time::Instant;

use anyhow::Result;
use candle_core::Tensor;
use serde_json::{Value, json};

/// Repetitions that are not counted.
const WARM: usize = 2;

/// What was measured.
pub struct Measured {
    /// Everything that must agree with the twin's before a ratio means something: shapes, dtype, threads, device.
    pub shape: Value,
    /// Seconds of each counted repetition.
    pub seconds: Vec<f64>,
    /// A few numbers of the result, which the twin's must equal.
    pub check: Vec<f64>,
}

impl Measured {
    /// Prints it as one JSON object, with the peak memory of the process, on a GPU where it computed there.
    pub fn print(&self, name: &str, gpu: usize) {
        let Self { shape, seconds, check } = self;
        let line = json!({
            "bench": name, "program": "ppd", "shape": shape, "seconds": seconds, "check": check,
            "peak_bytes": if shape["device"] == "cuda" { gpu_bytes(gpu) } else { peak_bytes() },
        });
        println!("{line}");
    }
}

/// Adds to a shape what a tensor says of its precision and device, and how many threads compute.
pub fn circumstances(shape: &mut Value, tensor: &Tensor, threads: usize) {
    let device = if tensor.device().is_cuda() { "cuda" } else { "cpu" };
    shape["dtype"] = tensor.dtype().as_str().into();
    shape["device"] = device.into();
    shape["threads"] = threads.into();
}

/// Seconds of each of `reps` calls, after some that warm up, and what the first call gave.
pub fn time<R>(reps: usize, mut call: impl FnMut() -> Result<R>) -> Result<(Vec<f64>, R)> {
    let first = call()?;
    for _ in 1..WARM {
        call()?;
    }
    let mut seconds = Vec::with_capacity(reps);
    for _ in 0..reps {
        let begun = Instant::now();
        call()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    Ok((seconds, first))
}

/// The most that this process has reserved of a GPU's memory: the high-water mark of the pool that tensors come from.
#[cfg(feature = "cuda")]
fn gpu_bytes(ordinal: usize) -> Option<u64> {
    use candle_core::cuda::cudarc::driver::sys;

    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;
    let (mut pool, mut bytes) = (std::ptr::null_mut(), 0u64);
    // SAFETY: both calls only write what they are given a pointer to, of the type that the driver's manual names.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, i32::try_from(ordinal).ok()?).result().ok()?;
        sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()).result().ok()?;
    }
    Some(bytes)
}

#[cfg(not(feature = "cuda"))]
fn gpu_bytes(_: usize) -> Option<u64> {
    None
}

/// The most memory the process has held, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().trim_end_matches(" kB").parse::<u64>().ok()?)
}
