//! How operations are held against their compositions: values, then the gradient of a random projection.

use candle_core::{DType, Device, Tensor, Var};

use crate::rng::stream;
use crate::units::Seed;

/// A standard normal variable; `index` chooses the draw.
pub fn var(shape: &[usize], index: u64) -> Var {
    let count = shape.iter().product();
    let data = stream(Seed::new(99), "nn test", index).normals(count);
    Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
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
    let direction = var(ours.dims(), 1234).detach();
    let gradients = |ys: &Tensor| (ys * &direction).unwrap().sum_all().unwrap().backward().unwrap();
    let (ours, theirs) = (gradients(ours), gradients(theirs));
    for (i, variable) in variables.iter().enumerate() {
        let (a, b) = (ours.get(variable).expect("ours"), theirs.get(variable).expect("theirs"));
        assert!(distance(a, b) < tolerance, "gradient {i} differs by {}", distance(a, b));
    }
}
