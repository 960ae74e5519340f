//! `ppd doctor`: what this machine has, and what each missing thing would need.

use std::ffi::OsString;
use std::path::Path;

use serde::Serialize;

use super::{Global, Verdict};
use crate::error::Result;
use crate::hub::{self, Hub};
use crate::provenance::{self, Provenance, free_bytes, gpu};
use crate::spec::{Request, Spec};

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    /// What was found; absent where it is missing.
    found: Option<String>,
    /// What having it would take.
    #[serde(skip_serializing_if = "Option::is_none")]
    needs: Option<String>,
    /// Whether nothing runs without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
}

impl Finding {
    fn new(what: impl Into<String>, found: Option<String>, needs: impl Into<String>) -> Self {
        let needs = found.is_none().then(|| needs.into());
        Self { what: what.into(), found, needs, required: false }
    }

    fn required(self) -> Self {
        Self { required: true, ..self }
    }
}

/// Free space below which a study may not fit.
const LITTLE_DISK: u64 = 2 << 30;
/// Memory that the desk's studies stay under, with room for the system.
const LITTLE_MEMORY_MIB: u64 = 4 << 10;

/// Keys that something may ask for; their values are never read further than whether they are empty.
const KEYS: [(&str, &str); 3] = [
    ("HF_TOKEN", "downloads of gated repositories"),
    ("OPENAI_API_KEY", "a hosted judge"),
    ("ANTHROPIC_API_KEY", "a hosted judge"),
];

pub(super) fn run(global: &Global) -> anyhow::Result<Verdict> {
    let mut findings = processor(global);
    findings.extend(graphics());
    findings.extend(disk(global)?);
    findings.push(repository(global)?);
    findings.extend(weights(global)?);
    findings.extend(keys(|name| std::env::var_os(name)));
    if global.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
        for Finding { what, found, needs, .. } in &findings {
            println!("{what:<width$}  {}", found.as_deref().unwrap_or("–"));
            if let Some(needs) = needs {
                println!("{:width$}  ↳ {needs}", "");
            }
        }
    }
    let complete = findings.iter().all(|finding| !finding.required || finding.found.is_some());
    Ok(if complete { Verdict::Done } else { Verdict::DoesNotHold })
}

fn processor(global: &Global) -> Vec<Finding> {
    let machine = provenance::machine(global.threads(), "cpu");
    let vectors = (!machine.features.is_empty()).then(|| machine.features.join(", "));
    let wide = machine.features.iter().any(|feature| feature == "avx512f");
    let available = provenance::available_memory_mib();
    let enough = |mib: &u64| *mib >= LITTLE_MEMORY_MIB;
    vec![
        Finding::new("program", Some(format!("ppd {} ({})", env!("CARGO_PKG_VERSION"), build())), ""),
        Finding::new("processor", Some(format!("{}, {} threads", machine.processor, machine.threads)), ""),
        Finding::new(
            "vector instructions",
            vectors,
            "an x86-64 processor with AVX2; without it all is slower",
        ),
        Finding::new(
            "AVX-512",
            wide.then(|| "yes".into()),
            "a processor that has it: matrix products take about half the time",
        ),
        Finding::new(
            "free memory",
            available.filter(enough).map(|mib| format!("{:.1} GiB", mib as f64 / 1024.0)),
            match available {
                Some(mib) => format!("4 GiB to be at ease; {mib} MiB are free"),
                None => "a system that tells how much is free".into(),
            },
        ),
    ]
}

/// What this build can use.
fn build() -> &'static str {
    match (cfg!(feature = "cuda"), cfg!(feature = "nccl")) {
        (_, true) => "CPU, CUDA and NCCL",
        (true, _) => "CPU and CUDA",
        _ => "CPU only",
    }
}

fn graphics() -> Vec<Finding> {
    let models = gpu::models();
    let mut findings = vec![
        Finding::new(
            "GPU",
            (!models.is_empty()).then(|| models.join(", ")),
            "an NVIDIA GPU, for the paper profile; the desk profile needs none",
        ),
        Finding::new("NVIDIA driver", gpu::driver(), "the vendor's driver, version 580 or newer for CUDA 13"),
        Finding::new(
            "CUDA in this build",
            cfg!(feature = "cuda").then(|| "yes".into()),
            "a build with `--features cuda`; without a toolkit, `scripts/cuda-toolkit.sh DIR` makes one (README)",
        ),
        Finding::new(
            "free GPU memory",
            free_gpu_memory(),
            "a GPU, its driver and a build with `--features cuda`",
        ),
    ];
    for library in gpu::CUDA_LIBRARIES {
        let needs = match library {
            "libcuda.so.1" => "NVIDIA's driver".to_owned(),
            "libnccl.so.2" => {
                "NCCL on LD_LIBRARY_PATH, for several GPUs; `scripts/cuda-toolkit.sh DIR` brings it"
                    .to_owned()
            }
            _ => {
                "CUDA 13's libraries on LD_LIBRARY_PATH; `scripts/cuda-toolkit.sh DIR` brings them".to_owned()
            }
        };
        findings.push(Finding::new(library, gpu::loads(library).then(|| "found".into()), needs));
    }
    findings
}

#[cfg(feature = "cuda")]
fn free_gpu_memory() -> Option<String> {
    use candle_core::cuda::cudarc::driver::result;
    let device = candle_core::CudaDevice::new_with_stream(0).ok()?;
    let (free, total) = result::mem_get_info().ok()?;
    drop(device);
    Some(format!("{:.1} of {:.1} GiB", free as f64 / f64::from(1 << 30), total as f64 / f64::from(1 << 30)))
}

#[cfg(not(feature = "cuda"))]
fn free_gpu_memory() -> Option<String> {
    None
}

fn disk(global: &Global) -> Result<Vec<Finding>> {
    let place = |what: &str, path: &Path| {
        let free = free_bytes(path);
        let gib =
            |bytes: u64| format!("{:.1} GiB free for {}", bytes as f64 / f64::from(1 << 30), path.display());
        let needs = match free {
            Some(bytes) => format!("2 GiB to be at ease; {}", gib(bytes)),
            None => format!("a file system under {} that tells how much is free", path.display()),
        };
        Finding::new(what, free.filter(|bytes| *bytes >= LITTLE_DISK).map(gib), needs)
    };
    let hub = Hub::from_env(hub::LOCK)?;
    let hub = hub.folder();
    Ok(vec![
        place("disk, records", &global.results),
        place("disk, cache", &global.cache),
        place("disk, hub cache", hub),
        Finding::new(
            "hub cache",
            hub.is_dir().then(|| hub.display().to_string()),
            format!("nothing yet: `ppd fetch` will make {}", hub.display()),
        ),
    ])
}

fn repository(global: &Global) -> anyhow::Result<Finding> {
    let outputs = [global.results.as_path(), &global.figures];
    let (provenance, difference) = Provenance::gather(Path::new("."), &outputs, global.threads(), "cpu")?;
    let found = provenance.git.map(|git| {
        let changed =
            if difference.is_some() { ", with uncommitted changes (records keep them)" } else { "" };
        format!("{}{changed}", git.commit.as_deref().unwrap_or("no commit yet"))
    });
    Ok(Finding::new("git", found, "a git repository around this folder; records say which code ran"))
}

/// Whether a profile's files are there.
fn weights(global: &Global) -> anyhow::Result<Vec<Finding>> {
    let profile = Spec::load(&Request { set: Vec::new(), ..global.request("table1") })?.profile;
    let files = profile.weights.iter().chain(&profile.data);
    let missing: Vec<String> = files
        .filter(|(_, file)| !global.assets.join(file).exists())
        .map(|(name, file)| format!("{name} ({})", file.display()))
        .collect();
    let found = missing.is_empty().then(|| "all files are there".to_owned());
    let hub = Hub::from_env(hub::LOCK)?;
    let needed = profile.artefacts.iter().filter(|(_, artefact)| !artefact.on_request);
    let absent: Vec<&str> =
        needed.map(|(name, _)| name.as_str()).filter(|name| profile.locate(name, &hub).is_err()).collect();
    let found = found.filter(|_| absent.is_empty());
    let mut needs = Vec::new();
    if !missing.is_empty() {
        needs.push(format!("under {}: {}", global.assets.display(), missing.join(", ")));
    }
    if !absent.is_empty() {
        needs.push(format!("`ppd fetch --profile {} --only {}`", profile.name, absent.join(" ")));
    }
    let needs = needs.join("; ");
    let mut findings = vec![Finding::new(format!("profile {}", profile.name), found, needs).required()];
    // What some studies need and others do not: pairs to train on, the model that embeds people's choices.
    let on_request = profile.artefacts.iter().filter(|(_, artefact)| artefact.on_request);
    let (here, absent): (Vec<&str>, Vec<&str>) =
        on_request.map(|(name, _)| name.as_str()).partition(|name| profile.locate(name, &hub).is_ok());
    if !(here.is_empty() && absent.is_empty()) {
        findings.push(Finding::new(
            format!("profile {}, on request", profile.name),
            (!here.is_empty()).then(|| here.join(", ")),
            format!(
                "`ppd fetch --profile {} --only NAME`, where a study asks for one of {}",
                profile.name,
                absent.join(", ")
            ),
        ));
    }
    Ok(findings)
}

/// Which keys `value_of` knows.
fn keys(value_of: impl Fn(&str) -> Option<OsString>) -> Vec<Finding> {
    KEYS.iter()
        .map(|(name, use_of)| {
            let is_set = value_of(name).is_some_and(|value| !value.is_empty());
            let found = is_set.then(|| "set (not shown)".to_owned());
            Finding::new(*name, found, format!("only for {use_of}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_needs_nothing_and_what_is_missing_says_what() {
        let there = Finding::new("a", Some("yes".into()), "a thing");
        assert_eq!((there.needs, there.required), (None, false));
        let missing = Finding::new("b", None, "a thing").required();
        assert_eq!((missing.needs.as_deref(), missing.required), (Some("a thing"), true));
    }

    #[test]
    fn no_key_is_shown() {
        let findings = keys(|name| (name != "HF_TOKEN").then(|| format!("secret of {name}").into()));
        assert_eq!(
            findings.iter().map(|finding| finding.found.is_some()).collect::<Vec<_>>(),
            [false, true, true]
        );
        assert!(!serde_json::to_string(&findings).unwrap().contains("secret"));
        assert!(
            keys(|_| Some(OsString::new())).iter().all(|finding| finding.found.is_none()),
            "empty is not set"
        );
    }
}
