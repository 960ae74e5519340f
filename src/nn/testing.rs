//! How operations are held against their compositions: values, then the gradient of a random projection.

use candle_core::{DType, Device, Tensor, Var};

use crate::rng::stream;
use crate::units::Seed;

/// Runs a test on the CPU and, where the build and the machine have one, on a GPU.
///
/// Panics where there is none and `PPD_TEST_GPU=1` asks for it.
pub fn on_each_device(test: impl Fn(&Device)) {
    test(&Device::Cpu);
    #[cfg(feature = "cuda")]
    let gpu = Device::new_cuda_with_stream(0).map_err(|fault| fault.to_string());
    #[cfg(not(feature = "cuda"))]
    let gpu = Err("built without the feature cuda".to_owned());
    if let Some(gpu) = gpu_or_none(gpu, std::env::var_os("PPD_TEST_GPU").is_some_and(|asked| asked == "1")) {
        test(&gpu);
    }
}

fn gpu_or_none(gpu: Result<Device, String>, asked: bool) -> Option<Device> {
    match gpu {
        Err(fault) if asked => panic!("PPD_TEST_GPU=1 asks for a GPU, but: {fault}"),
        gpu => gpu.ok(),
    }
}

#[test]
#[should_panic(expected = "PPD_TEST_GPU=1 asks for a GPU, but: there is none")]
fn a_gpu_that_is_asked_for_is_not_skipped() {
    assert!(gpu_or_none(Err("there is none".into()), false).is_none());
    gpu_or_none(Err("there is none".into()), true);
}

/// A standard normal variable; `index` chooses the draw.
pub fn var(device: &Device, shape: &[usize], index: u64) -> Var {
    let count = shape.iter().product();
    let data = stream(Seed::new(99), "nn test", index).normals(count);
    Var::from_tensor(&Tensor::from_vec(data, shape, device).unwrap()).unwrap()
}

/// The operation on bf16 arguments gives what it gives in single precision, to about three digits; gradients too.
pub fn same_in_half(arguments: &[&Tensor], op: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>) {
    // Both start from the rounded numbers: what differs is the operation's own rounding.
    let rounded =
        |t: &Tensor| Var::from_tensor(&t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap());
    let vars: Vec<Var> = arguments.iter().map(|t| rounded(t).unwrap()).collect();
    let given = |dtype: DType| -> Vec<Tensor> { vars.iter().map(|v| v.to_dtype(dtype).unwrap()).collect() };
    let half = op(&given(DType::BF16)).unwrap();
    assert_eq!(half.dtype(), DType::BF16);
    let single = op(&given(DType::F32)).unwrap();
    let variables: Vec<&Tensor> = vars.iter().map(|v| v.as_tensor()).collect();
    same(&half.to_dtype(DType::F32).unwrap(), &single, &variables, 2e-2);
}

/// The same number in double precision, still connected to the variable, so that the composed path is taken.
pub fn double(xs: &Tensor) -> Tensor {
    xs.to_dtype(DType::F64).unwrap()
}

/// `op` in double precision, rounded once at the end.
pub fn in_double(xs: &Tensor, op: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Tensor {
    op(&double(xs)).unwrap().to_dtype(DType::F32).unwrap()
}

/// All elements.
pub fn values(xs: &Tensor) -> Vec<f32> {
    xs.flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference relative to the largest element.
pub fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let scale = values(b).iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}

/// Both results are the same, and so are the gradients of a random projection of each with respect to `variables`.
pub fn same(ours: &Tensor, theirs: &Tensor, variables: &[&Tensor], tolerance: f32) {
    assert!(distance(ours, theirs) < tolerance, "values differ by {}", distance(ours, theirs));
    let direction = var(ours.device(), ours.dims(), 1234).detach();
    let gradients = |ys: &Tensor| (ys * &direction).unwrap().sum_all().unwrap().backward().unwrap();
    let (ours, theirs) = (gradients(ours), gradients(theirs));
    for (i, variable) in variables.iter().enumerate() {
        let (a, b) = (ours.get(variable).expect("ours"), theirs.get(variable).expect("theirs"));
        assert!(distance(a, b) < tolerance, "gradient {i} differs by {}", distance(a, b));
    }
}
