//! Tells the program which compiler and which tensor library it was built with, for its records; compiles the CUDA
//! kernels where the feature asks for them.

use std::process::Command;

fn main() {
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(compiler)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=PPD_RUSTC={}", version.trim());

    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let candle = lock
        .split("[[package]]")
        .find(|package| package.contains("name = \"candle-core\""))
        .and_then(|package| package.lines().find_map(|line| line.strip_prefix("version = ")))
        .unwrap_or("unknown");
    println!("cargo::rustc-env=PPD_CANDLE={}", candle.trim_matches('"'));
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile_kernels();
    }
    println!("cargo::rerun-if-changed=Cargo.lock");
    println!("cargo::rerun-if-changed=build.rs");
}

/// `src/nn/kernels.cu` to PTX, which the driver compiles for the GPU at hand. For the generation in `CUDA_COMPUTE_CAP` and
/// newer ones; 80 (Ampere) where it is not set.
fn compile_kernels() {
    const SOURCE: &str = "src/nn/kernels.cu";
    println!("cargo::rerun-if-changed={SOURCE}");
    for name in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let generation = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    let out =
        std::path::Path::new(&std::env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.ptx");
    let nvcc = std::env::var("CUDA_HOME").map_or_else(|_| "nvcc".into(), |home| format!("{home}/bin/nvcc"));
    let status = Command::new(&nvcc)
        .args(["-ptx", "-O3", &format!("-arch=compute_{generation}"), SOURCE, "-o"])
        .arg(&out)
        .status()
        .unwrap_or_else(|e| panic!("{nvcc} does not start ({e}); scripts/cuda-toolkit.sh makes a toolkit"));
    assert!(status.success(), "{nvcc} failed on {SOURCE}");
}
