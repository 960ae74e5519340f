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

/// The memory that this process may still take, in MiB: what the machine has, or what a control group leaves where that is
/// less; `None` where the system does not say.
pub fn available_memory_mib() -> Option<u64> {
    available_bytes(Path::new("/")).map(|bytes| bytes >> 20)
}

fn available_bytes(root: &Path) -> Option<u64> {
    let of_machine = || {
        let memory = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let kib: u64 = value_of(&memory, "MemAvailable")?.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    };
    [of_machine(), left_by_groups(root)].into_iter().flatten().min()
}

/// The controllers of a line of `/proc/self/cgroup`, where its groups are mounted, and the names of the limit, the usage
/// and the cached file pages in it: version 2, then version 1.
const GROUPS: [(&str, &str, [&str; 4]); 2] = [
    ("", "", ["memory.max", "memory.current", "inactive_file", "active_file"]),
    (
        "memory",
        "memory",
        ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file"],
    ),
];

/// The bytes that the tightest of this process's control groups leaves. Cached file pages count as free, as they do in
/// `MemAvailable`: they make room when it is asked for.
fn left_by_groups(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let left = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_it =
            |(name, ..): &&(&str, &str, [&str; 4])| controllers.split(',').any(|other| other == *name);
        let (_, mounted, names) = GROUPS.iter().find(is_it)?;
        let mount = root.join("sys/fs/cgroup").join(mounted);
        let own = mount.join(path.trim_start_matches('/'));
        // The groups above limit it too.
        let all = own.ancestors().take_while(|group| group.starts_with(&mount));
        all.filter_map(|group| left_in(group, names)).min()
    });
    left.min()
}

fn left_in(group: &Path, [limit, usage, cached @ ..]: &[&str; 4]) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    // A limit that is none is `max`, or a number beyond any machine.
    let limit: u64 = read(limit)?.trim().parse().ok()?;
    let usage: u64 = read(usage)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let cached: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| cached.contains(name))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum();
    Some(limit.saturating_sub(usage.saturating_sub(cached)))
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
    fn the_tightest_of_machine_and_control_groups_says_what_is_free() {
        let of = |files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = root.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            available_bytes(root.path())
        };
        let machine = ("proc/meminfo", "MemTotal: 16 kB\nMemAvailable:  8 kB\n");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[machine]), Some(8192));
        let (second, first) = (
            ("proc/self/cgroup", "0::/job/task\n"),
            ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n"),
        );
        let group = "sys/fs/cgroup/job/task";
        let [limit, usage, stat] =
            ["memory.max", "memory.current", "memory.stat"].map(|n| format!("{group}/{n}"));
        assert_eq!(of(&[machine, second, (&limit, "5000\n"), (&usage, "3000\n")]), Some(2000));
        let cached = (stat.as_str(), "anon 100\ninactive_file 400\nactive_file 50\n");
        assert_eq!(of(&[machine, second, (&limit, "5000\n"), (&usage, "3000\n"), cached]), Some(2450));
        assert_eq!(of(&[machine, second, (&limit, "max\n"), (&usage, "3000\n")]), Some(8192));
        assert_eq!(of(&[machine, second, (&limit, "1000\n"), (&usage, "3000\n")]), Some(0), "over its limit");
        let above = [("sys/fs/cgroup/job/memory.max", "700"), ("sys/fs/cgroup/job/memory.current", "600")];
        let both = [machine, second, (&limit, "5000\n"), (&usage, "3000\n"), above[0], above[1]];
        assert_eq!(of(&both), Some(100), "the group above is the tighter one");
        let group = "sys/fs/cgroup/memory/job";
        let [limit, usage, stat] =
            ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"].map(|n| format!("{group}/{n}"));
        let cached = (stat.as_str(), "inactive_file 1\ntotal_inactive_file 500\n");
        assert_eq!(of(&[machine, first, (&limit, "6000\n"), (&usage, "5000\n"), cached]), Some(1500));
        assert_eq!(of(&[machine, first, (&limit, "9223372036854771712\n"), (&usage, "5000\n")]), Some(8192));
    }

    #[test]
    fn values_are_found_by_their_whole_name() {
        assert_eq!(value_of("MemTotalX: 3\nMemTotal:  12 kB\n", "MemTotal"), Some("12 kB"));
    }
}
