//! Weights that a fixture need not store: every value follows from its tensor's name, here as in
//! `tests/reference/seeded.py`, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

/// `offset + scale·u`, u uniform in [−1, 1) from SplitMix64 seeded with FNV-1a of the name.
pub fn tensor(name: &str, shape: &[usize], scale: f32, offset: f32) -> Tensor {
    let mut state = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let drawn = ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0;
            offset + scale * drawn
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The tensors that a fixture's `tensors.json` lists: each name with its shape, scale and offset.
pub fn tensors(index: impl AsRef<Path>) -> BTreeMap<String, Tensor> {
    let text = std::fs::read_to_string(index).unwrap();
    let index: BTreeMap<String, (Vec<usize>, f32, f32)> = serde_json::from_str(&text).unwrap();
    let made = index.into_iter().map(|(name, (shape, scale, offset))| {
        let tensor = tensor(&name, &shape, scale, offset);
        (name, tensor)
    });
    made.collect()
}

/// A checkpoint file of [`tensors`].
pub fn write(index: impl AsRef<Path>, file: impl AsRef<Path>) {
    let tensors: std::collections::HashMap<String, Tensor> = tensors(index).into_iter().collect();
    candle_core::safetensors::save(&tensors, file).unwrap();
}

#[test]
fn the_rule_is_that_of_the_python_side() {
    // From `seeded.draw("decoder.weight", [4])`.
    let drawn = tensor("decoder.weight", &[4], 1.0, 0.0).to_vec1::<f32>().unwrap();
    let expected =
        [16_075_821, 12_428_243, 15_419_028, 13_360_647].map(|drawn: i32| drawn as f32 / 8_388_608.0 - 1.0);
    assert_eq!(drawn, expected);
}
