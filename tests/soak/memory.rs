//! A large weight file is mapped, and what is made of it is the only copy in memory.

use candle_core::{DType, Device, Tensor};
use ppd::weights::Weights;
use safetensors::tensor::{Dtype, TensorView};

/// Of one tensor, and how many there are: 640 MiB.
const BYTES: usize = 64 << 20;
const COUNT: usize = 10;

/// A line of this process's status, in bytes.
fn status(name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    1024 * line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn a_large_file_is_never_twice_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    {
        let zeros = vec![0u8; BYTES];
        let view = TensorView::new(Dtype::BF16, vec![BYTES / 2], &zeros).unwrap();
        let views = (0..COUNT).map(|i| (format!("t{i}"), view.clone()));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }
    let before = status("RssAnon");
    let weights = Weights::open(&path).unwrap();
    assert!(status("RssAnon") - before < BYTES / 4, "opening reads nothing into memory of its own");
    let tensors: Vec<Tensor> =
        (0..COUNT).map(|i| weights.read(&format!("t{i}"), DType::BF16, &Device::Cpu).unwrap()).collect();
    let held = status("RssAnon") - before;
    assert!(tensors.iter().all(|tensor| tensor.elem_count() == BYTES / 2));
    assert!(held < COUNT * BYTES + BYTES, "{held} bytes are held for {} in the file", COUNT * BYTES);
}
