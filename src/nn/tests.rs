//! What every operation owes: its gradients are the slopes that finite differences measure.

use candle_core::{Tensor, Var};

use super::testing::{double, on_each_device, values, var};
use super::*;

/// An operation as a function of its arguments.
type Operation = fn(&[Tensor]) -> TensorResult;

/// Every differentiable operation, with the shapes of its arguments.
const OPERATIONS: &[(&str, &[&[usize]], Operation)] = &[
    ("linear", &[&[2, 7, 24], &[40, 24], &[40]], |xs| linear(&xs[0], &xs[1], Some(&xs[2]))),
    ("depthwise convolution", &[&[2, 30, 8], &[8, 1, 3, 3], &[8]], |xs| {
        depthwise_conv3x3(&xs[0], (5, 6), &xs[1], &xs[2])
    }),
    ("layer norm", &[&[2, 7, 24], &[24], &[24]], |xs| layer_norm(&xs[0], Some((&xs[1], &xs[2])), 1e-6)),
    ("grn", &[&[2, 7, 24], &[24], &[24]], |xs| grn(&xs[0], &xs[1], &xs[2])),
    ("gelu and grn", &[&[2, 7, 24], &[24], &[24]], |xs| gelu_grn(&xs[0], &xs[1], &xs[2])),
    ("modulation", &[&[2, 7, 24], &[2, 24], &[2, 24]], |xs| modulate(&xs[0], &xs[1], &xs[2])),
    ("self-attention", &[&[2, 9, 72]], |xs| self_attention(&xs[0], 3, &Mask::Causal)),
    ("decoupled attention", &[&[2, 9, 72], &[2, 13, 48], &[2, 4, 48]], |xs| {
        let [text, user] = [&xs[1], &xs[2]].map(|tokens| KeyValue::new(tokens.clone()));
        decoupled_attention(&xs[0], &text, Some(&user), 3)
    }),
    ("gelu", &[&[3, 41]], |xs| gelu_erf(&xs[0])),
    ("quick gelu", &[&[3, 41]], |xs| quick_gelu(&xs[0])),
    ("silu", &[&[3, 41]], |xs| silu(&xs[0])),
    ("squared error", &[&[3, 4, 5, 5], &[3, 4, 5, 5]], |xs| squared_error(&xs[0], &xs[1])),
];

#[test]
fn gradients_are_the_slopes_of_finite_differences() {
    const STEP: f64 = 1e-4;
    on_each_device(|device| {
        for (name, shapes, operation) in OPERATIONS {
            let draw = |first: u64| -> Vec<Var> {
                shapes.iter().zip(first..).map(|(shape, index)| var(device, shape, index)).collect()
            };
            let (arguments, direction) = (draw(0), draw(100));
            let xs: Vec<Tensor> = arguments.iter().map(|x| x.as_tensor().clone()).collect();
            let ys = operation(&xs).unwrap();
            let weights = var(device, ys.dims(), 200).detach();
            let grads = (ys * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            let mut terms = Vec::new();
            for (x, towards) in xs.iter().zip(&direction) {
                let grad = grads.get(x).unwrap_or_else(|| panic!("{name}: an argument without a gradient"));
                let pairs = values(grad).into_iter().zip(values(towards));
                terms.extend(pairs.map(|(grad, towards)| f64::from(grad) * f64::from(towards)));
            }
            // The same formula in double precision, a little to either side.
            let along = |step: f64| -> f64 {
                let moved: Vec<Tensor> = xs
                    .iter()
                    .zip(&direction)
                    .map(|(x, towards)| (double(x) + (double(towards) * step).unwrap()).unwrap().detach())
                    .collect();
                let ys = (operation(&moved).unwrap() * double(&weights)).unwrap();
                ys.sum_all().unwrap().to_scalar().unwrap()
            };
            let measured = (along(STEP) - along(-STEP)) / (2.0 * STEP);
            let slope: f64 = terms.iter().sum();
            let scale: f64 = terms.iter().map(|term| term.abs()).sum();
            // Single precision in the gradient, eight digits in the difference.
            assert!((slope - measured).abs() < 1e-5 * scale, "{name}: {slope}, measured {measured}");
        }
    });
}
