//! The machine: processor, memory, free disk.

use std::path::Path;

use super::Machine;

/// A description of this machine, as used: with `threads` workers on `device`.
pub fn machine(threads: usize, device: &str) -> Machine {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Machine {
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        processor: value_of(&cpu, "model name").unwrap_or("unknown").to_owned(),
        features: features(),
        threads: threads as u64,
        memory_mib: value_of(&memory, "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib / 1024),
        device: device.to_owned(),
    }
}

/// The memory that programs may still take, in MiB; `None` where the system does not say.
pub fn available_memory_mib() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = value_of(&memory, "MemAvailable")?.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

/// The value of the first `name : value` line.
pub(super) fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// The vector instructions that the code asks about.
fn features() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let found: [(&str, bool); 0] = [];
    found.into_iter().filter(|(_, present)| *present).map(|(name, _)| name.to_owned()).collect()
}

/// The bytes that this process may still write where `path` is, or would be; `None` where the system does not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let standing = std::path::absolute(path).ok()?;
    let standing = standing.ancestors().find(|ancestor| ancestor.exists())?;
    free_at(standing)
}

#[cfg(unix)]
fn free_at(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a valid C string, and the answer is read only where the call says that it filled it.
    let answer = unsafe {
        if libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) != 0 {
            return None;
        }
        answer.assume_init()
    };
    // The fields' widths differ between systems.
    #[allow(clippy::useless_conversion)]
    Some(u64::from(answer.f_bavail).saturating_mul(u64::from(answer.f_frsize)))
}

#[cfg(not(unix))]
fn free_at(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = machine(2, "cpu");
        assert_eq!((machine.threads, machine.device.as_str()), (2, "cpu"));
        assert!(machine.system.contains(std::env::consts::ARCH));
        if cfg!(target_os = "linux") {
            assert!(machine.memory_mib > 0);
            assert!(free_bytes(Path::new("/tmp/not/there/yet")).unwrap() > 0);
        }
    }

    #[test]
    fn values_are_found_by_their_whole_name() {
        assert_eq!(value_of("MemTotalX: 3\nMemTotal:  12 kB\n", "MemTotal"), Some("12 kB"));
    }
}
