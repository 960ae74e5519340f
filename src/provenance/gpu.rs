//! What there is to compute on besides the processor: NVIDIA's driver, its GPUs, and CUDA's libraries.

use std::path::Path;

/// The libraries that a build with the `cuda` feature needs at run time, and the one that `nccl` needs beside them.
pub const CUDA_LIBRARIES: [&str; 5] =
    ["libcuda.so.1", "libcudart.so.13", "libcublas.so.13", "libcurand.so.10", "libnccl.so.2"];

/// The version of NVIDIA's kernel driver, where it is loaded.
pub fn driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    driver_version(&text)
}

/// The first word of the version line that looks like a version.
fn driver_version(text: &str) -> Option<String> {
    let line = text.lines().next()?;
    let is_version =
        |word: &&str| word.split('.').count() >= 2 && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// The models of the GPUs that the driver sees, in its order.
pub fn models() -> Vec<String> {
    models_in(Path::new("/proc/driver/nvidia/gpus"))
}

fn models_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders
        .iter()
        .filter_map(|folder| std::fs::read_to_string(folder.join("information")).ok())
        .filter_map(|text| super::machine::value_of(&text, "Model").map(str::to_owned))
        .collect()
}

/// Whether the dynamic linker finds a library.
#[cfg(unix)]
pub fn loads(library: &str) -> bool {
    let Ok(name) = std::ffi::CString::new(library) else { return false };
    // SAFETY: the name is a valid C string; the libraries asked for do nothing but set themselves up.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
        !handle.is_null() && libc::dlclose(handle) == 0
    }
}

/// Whether the dynamic linker finds a library: never, where nobody has taught this program how to ask.
#[cfg(not(unix))]
pub fn loads(_: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_and_gpus_are_read_from_the_driver_itself() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version:\n";
        assert_eq!(driver_version(text).as_deref(), Some("580.65.06"));
        assert_eq!(driver_version("no version here"), None);

        let folder = tempfile::tempdir().unwrap();
        for (bus, model) in [("0000:01:00.0", "NVIDIA B"), ("0000:00:00.0", "NVIDIA A")] {
            std::fs::create_dir(folder.path().join(bus)).unwrap();
            let text = format!("Model: \t\t {model}\nIRQ: 1\n");
            std::fs::write(folder.path().join(bus).join("information"), text).unwrap();
        }
        assert_eq!(models_in(folder.path()), ["NVIDIA A", "NVIDIA B"]);
        assert!(models_in(Path::new("/not/there")).is_empty());
    }

    #[test]
    fn a_library_that_is_nowhere_does_not_load() {
        assert!(!loads("libppd-is-no-library.so.9"));
        if cfg!(target_os = "linux") {
            assert!(loads("libc.so.6"));
        }
    }
}
