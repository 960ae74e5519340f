//! Each differentiable operation, its result and its gradients, beside torch's.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use ppd::nn::{
    KeyValue, Mask, decoupled_attention, depthwise_conv3x3, gelu_erf, gelu_grn, grn, layer_norm, linear,
    modulate, self_attention, squared_error,
};

use crate::devices::{fixture_path, on_cpu, on_each_device};
use crate::packed;

/// Height and width of the pictures whose pixels stand in rows.
const SIZE: (usize, usize) = (3, 4);
const HEADS: usize = 2;

type Operation = fn(&[Tensor]) -> Result<Tensor>;

/// What each is called in the fixture, with its arguments in order.
const OPERATIONS: [(&str, &[&str], Operation); 11] = [
    ("linear", &["x", "weight", "bias"], |xs| linear(&xs[0], &xs[1], Some(&xs[2]))),
    ("pointwise", &["x", "weight", "bias"], |xs| linear(&xs[0], &xs[1], Some(&xs[2]))),
    ("depthwise", &["x", "weight", "bias"], |xs| depthwise_conv3x3(&xs[0], SIZE, &xs[1], &xs[2])),
    ("layer-norm", &["x", "weight", "bias"], |xs| layer_norm(&xs[0], Some((&xs[1], &xs[2])), 1e-6)),
    ("grn", &["x", "gamma", "beta"], |xs| grn(&xs[0], &xs[1], &xs[2])),
    ("gelu-grn", &["x", "gamma", "beta"], |xs| gelu_grn(&xs[0], &xs[1], &xs[2])),
    ("gelu", &["x"], |xs| gelu_erf(&xs[0])),
    ("modulate", &["x", "scale", "shift"], |xs| modulate(&xs[0], &xs[1], &xs[2])),
    ("squared-error", &["x", "target"], |xs| squared_error(&xs[0], &xs[1])),
    ("attention", &["qkv", "text", "user"], |xs| {
        let [text, user] = [1, 2].map(|i| KeyValue::new(xs[i].clone()));
        decoupled_attention(&xs[0], &text, Some(&user), HEADS)
    }),
    ("self-attention", &["qkv"], |xs| self_attention(&xs[0], HEADS, &Mask::Causal)),
];

/// The largest difference, in shares of the largest number of the fixture.
fn distance(ours: &Tensor, theirs: &Tensor) -> f32 {
    let largest = |xs: Tensor| -> f32 { xs.abs().unwrap().max_all().unwrap().to_scalar().unwrap() };
    let ours = on_cpu(ours).to_dtype(DType::F32).unwrap();
    assert_eq!(ours.dims(), theirs.dims());
    largest((ours - theirs).unwrap()) / largest(theirs.clone())
}

/// Holds every operation to torch's numbers. In half precision, which holds all arguments exactly, only what is given back may
/// be rounded.
fn hold(device: &Device, dtype: DType, tolerance: f32) {
    let bytes = packed::bytes(Path::new(&fixture_path("nn/ops.safetensors")));
    let golden: HashMap<String, Tensor> =
        candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    let mut compared = 0;
    for (name, arguments, operation) in OPERATIONS {
        let placed = |what: &str| golden[&format!("{name}.{what}")].to_device(device).unwrap();
        let given = |what: &str| placed(what).to_dtype(dtype).unwrap();
        let variables: Vec<Var> =
            arguments.iter().map(|&argument| Var::from_tensor(&given(argument)).unwrap()).collect();
        let tensors: Vec<Tensor> = variables.iter().map(|var| var.as_tensor().clone()).collect();
        let y = operation(&tensors).unwrap();
        let mut check = |what: String, ours: &Tensor| {
            let far = distance(ours, &golden[&format!("{name}.{what}")]);
            assert!(
                far <= tolerance,
                "{name}, {what}, {dtype:?}: {far} of the largest number, expected {tolerance}"
            );
            compared += 1;
        };
        check("y".into(), &y);
        // A sum in single precision leads the fixture's gradient back as it is.
        let loss = (y.to_dtype(DType::F32).unwrap() * placed("dy")).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        for (argument, variable) in arguments.iter().zip(&variables) {
            let gradient =
                gradients.get(variable).unwrap_or_else(|| panic!("{name}: no gradient of {argument}"));
            check(format!("d_{argument}"), gradient);
        }
    }
    // Nothing in the fixture is left out: a result and its arguments' gradients for each case.
    let expected = golden.keys().filter(|key| key.ends_with(".y") || key.contains(".d_")).count();
    assert_eq!(compared, expected);
}

#[test]
fn operations_and_their_gradients_equal_torchs() {
    on_each_device(|device| hold(device, DType::F32, 2e-6));
}

#[test]
fn half_precision_rounds_what_it_gives_back_and_nothing_before() {
    // Half a unit in the last of eight bits.
    on_each_device(|device| hold(device, DType::BF16, 4e-3));
}
