//! Fixtures that hold of a large tensor every eighth entry, `eighth.NAME`, and its norm, `norm.NAME`: what the repository has
//! room for.

use candle_core::{DType, Device, Tensor};
use ppd::weights::Weights;

use crate::devices::on_cpu;

/// The entries of a tensor that a fixture holds, and the fixture's, both on the CPU.
///
/// Panics where the norms of a thinned one differ by more than 1e-4 of the fixture's.
pub fn entries(golden: &Weights, name: &str, got: &Tensor) -> (Tensor, Tensor) {
    let read = |name: &str| golden.read(name, DType::F32, &Device::Cpu).unwrap();
    let got = on_cpu(got);
    if golden.names().contains(&name) {
        return (got, read(name));
    }
    let all = got.flatten_all().unwrap();
    let norm: f32 = all.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar().unwrap();
    let expected: f32 = read(&format!("norm.{name}")).to_scalar().unwrap();
    assert!((norm - expected).abs() <= 1e-4 * expected, "{name}: norm {norm}, expected {expected}");
    let places: Vec<u32> = (0..all.elem_count() as u32).step_by(8).collect();
    let places = Tensor::new(places, &Device::Cpu).unwrap();
    (all.index_select(&places, 0).unwrap(), read(&format!("eighth.{name}")))
}
