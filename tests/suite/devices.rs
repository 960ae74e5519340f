//! The devices that a test's body runs on, and where such a test's fixtures are.

use candle_core::{Device, Tensor};

/// Runs a test on the CPU and, where the build and the machine have one, on a GPU.
///
/// Panics where there is none and `PPD_TEST_GPU=1` asks for it.
pub fn on_each_device(test: impl Fn(&Device)) {
    test(&Device::Cpu);
    let asked = std::env::var_os("PPD_TEST_GPU").is_some_and(|asked| asked == "1");
    // Without the feature `cuda` this is an error that says so.
    match Device::new_cuda_with_stream(0) {
        Ok(gpu) => test(&gpu),
        Err(fault) => assert!(!asked, "PPD_TEST_GPU=1 asks for a GPU, but: {fault}"),
    }
}

/// What fixtures are compared with.
pub fn on_cpu(tensor: &Tensor) -> Tensor {
    tensor.to_device(&Device::Cpu).unwrap()
}

/// A file under `tests/fixtures`: of the repository that cargo, or who runs a test that was built elsewhere, names.
pub fn fixture_path(name: &str) -> String {
    let built_in = env!("CARGO_MANIFEST_DIR");
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| built_in.into());
    format!("{root}/tests/fixtures/{name}")
}
