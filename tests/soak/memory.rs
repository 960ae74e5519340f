//! A large weight file is mapped, and what is made of it is the only copy in memory, at any moment.
#![cfg(target_os = "linux")]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ppd::weights::Weights;
use safetensors::tensor::{Dtype, TensorView};

/// Of one tensor, and how many there are: 640 MiB.
const BYTES: usize = 64 << 20;
const COUNT: usize = 10;
/// Tells the process that is this test's child which file to read.
const FILE: &str = "PPD_TEST_LARGE_FILE";

/// What this process may write to of memory that is its own, in bytes.
fn own_memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

/// From here on this process gets `room` bytes of memory of its own beside what it has.
pub fn limit_own_memory(room: usize) {
    let most = (own_memory() + room) as libc::rlim_t;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the structure is whole; the limit is this process's own.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) }, 0);
}

/// Reads the file in a process that gets memory for its tensors once, and for a quarter of one tensor beside them.
fn read_within_limit(path: &Path) {
    limit_own_memory(COUNT * BYTES + BYTES / 4);
    let weights = Weights::open(path).unwrap();
    let read = |i| weights.read(&format!("t{i}"), DType::BF16, &Device::Cpu).unwrap();
    let tensors: Vec<Tensor> = (0..COUNT).map(read).collect();
    assert!(tensors.iter().all(|tensor| tensor.elem_count() == BYTES / 2));
}

#[test]
fn a_large_file_is_never_twice_in_memory() {
    if let Some(path) = std::env::var_os(FILE) {
        return read_within_limit(path.as_ref());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    {
        let zeros = vec![0u8; BYTES];
        let view = TensorView::new(Dtype::BF16, vec![BYTES / 2], &zeros).unwrap();
        let views = (0..COUNT).map(|i| (format!("t{i}"), view.clone()));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["memory::a_large_file_is_never_twice_in_memory", "--exact", "--nocapture", "--test-threads=1"])
        .env(FILE, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}\n{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains("1 passed"), "the child ran this very test: {said}");
}
