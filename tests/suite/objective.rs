//! Losses and gradients against autograd in torch (tests/reference/golden_losses.py, golden_ppd_step.py).

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use ppd::objective::{BatchErrors, Config, dpo};
use ppd::units::{Beta, TimestepCount};

use crate::packed;

type Golden = HashMap<String, Tensor>;

fn fixture(path: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn golden(tensors: &str, meta: &str) -> (Golden, serde_json::Value) {
    let tensors = packed::bytes(&fixture(tensors));
    let tensors = candle_core::safetensors::load_buffer(&tensors, &Device::Cpu).unwrap();
    (tensors, serde_json::from_slice(&std::fs::read(fixture(meta)).unwrap()).unwrap())
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Each sample's error, and the derivative of each sample's error with respect to its prediction.
fn error(pred: &Tensor, target: &Tensor) -> (Vec<f64>, Vec<Vec<f64>>) {
    let batch = pred.dims()[0];
    let (pred, target) = (numbers(pred), numbers(target));
    let size = pred.len() / batch;
    let difference: Vec<f64> = pred.iter().zip(&target).map(|(p, t)| p - t).collect();
    let rows = difference.chunks(size);
    (
        rows.clone().map(|row| row.iter().map(|d| d * d).sum::<f64>() / size as f64).collect(),
        rows.map(|row| row.iter().map(|d| 2.0 * d / size as f64).collect()).collect(),
    )
}

/// `coefficient · ∂error/∂pred` against the stored gradient.
fn check_gradient(coefficients: &[f64], slopes: &[Vec<f64>], stored: &Tensor, tolerance: f64) {
    let got = coefficients.iter().zip(slopes).flat_map(|(c, row)| row.iter().map(move |s| c * s));
    let stored = numbers(stored);
    let (mut gap, mut norm, mut count) = (0.0, 0.0, 0);
    for (g, s) in got.zip(&stored) {
        gap += (g - s).powi(2);
        norm += s * s;
        count += 1;
    }
    assert_eq!(count, stored.len());
    assert!(gap.sqrt() <= tolerance * norm.sqrt(), "relative error {}", (gap / norm).sqrt());
}

fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() <= tolerance, "got {g}, expected {e}");
    }
}

#[test]
fn dpo_equals_the_reference() {
    let (golden, meta) = golden("objective/losses.safetensors", "objective/meta.json");
    for run in ["dpo_beta1", "dpo_beta2000", "dpo_beta5000"] {
        let at = |what: &str| &golden[&format!("{run}.{what}")];
        let beta = meta[run]["beta"].as_f64().unwrap();
        let config = Config::Dpo(dpo::Config {
            beta: Beta::new(beta).unwrap(),
            half_factor: true,
            timesteps: TimestepCount::new(1.0).unwrap(),
        });
        let (policy_chosen, slope_chosen) = error(at("model_w"), at("target_w"));
        let (policy_rejected, slope_rejected) = error(at("model_l"), at("target_l"));
        let (reference_chosen, _) = error(at("ref_w"), at("target_w"));
        let (reference_rejected, _) = error(at("ref_l"), at("target_l"));
        close(&policy_chosen, &numbers(at("mse_model_w")), 1e-7);
        close(&reference_rejected, &numbers(at("mse_ref_l")), 1e-7);
        let errors = BatchErrors { policy_chosen, policy_rejected, reference_chosen, reference_rejected };
        let loss = config.loss(&errors).unwrap();
        // Four errors near 0.3, each rounded by up to 3e-8 in the reference, times β/2.
        let tolerance = 1e-6 + 0.5 * beta * 1.2e-7;
        close(&loss.per_sample, &numbers(at("per_sample")), tolerance);
        close(&[loss.value], &numbers(at("loss")), tolerance);
        let trace = loss.preference.unwrap();
        let inside = numbers(at("inside"));
        close(&[trace.margin], &[inside.iter().sum::<f64>() / inside.len() as f64], tolerance);
        close(&[trace.implicit_accuracy], &numbers(at("implicit_acc")), 1e-6);
        // σ(−inside) carries the absolute error of inside as a relative one.
        check_gradient(&loss.coefficients.chosen, &slope_chosen, at("grad_model_w"), tolerance.max(1e-6));
        check_gradient(&loss.coefficients.rejected, &slope_rejected, at("grad_model_l"), tolerance.max(1e-6));
    }
}

#[test]
fn extreme_margins_equal_the_reference() {
    let (golden, _) = golden("objective/losses.safetensors", "objective/meta.json");
    let margins = numbers(&golden["neg_logsigmoid.x"]);
    // With βT = 1 and the other errors zero, the margin is the rejected image's policy error.
    let config = Config::Dpo(dpo::Config {
        beta: Beta::new(1.0).unwrap(),
        half_factor: false,
        timesteps: TimestepCount::new(1.0).unwrap(),
    });
    let zeros = vec![0.0; margins.len()];
    let errors = BatchErrors {
        policy_chosen: zeros.clone(),
        policy_rejected: margins.clone(),
        reference_chosen: zeros.clone(),
        reference_rejected: zeros,
    };
    let loss = config.loss(&errors).unwrap();
    for (got, expected) in loss.per_sample.iter().zip(numbers(&golden["neg_logsigmoid.y"])) {
        assert!((got - expected).abs() <= 1e-6 * expected.abs() + 1e-30, "got {got}, expected {expected}");
    }
    let slopes: Vec<f64> = loss.coefficients.rejected.iter().map(|c| c * margins.len() as f64).collect();
    for (got, expected) in slopes.iter().zip(numbers(&golden["neg_logsigmoid.dy"])) {
        assert!((got - expected).abs() <= 1e-6 * expected.abs() + 1e-30, "got {got}, expected {expected}");
    }
    // ±10, ±50 and ±200 are saturated; ±1 and 0 are not.
    assert_eq!(loss.preference.unwrap().saturation, 6.0 / 9.0);
}

#[test]
fn three_ppd_steps_have_the_reference_losses() {
    let (golden, meta) = golden("stage_c/ppd_step.safetensors", "stage_c/ppd_step.json");
    let beta = Beta::new(meta["beta"].as_f64().unwrap()).unwrap();
    let config =
        Config::Dpo(dpo::Config { beta, half_factor: true, timesteps: TimestepCount::new(1.0).unwrap() });
    for step in 0..3 {
        let at = |what: &str| &golden[&format!("step{step}.{what}")];
        let errors = BatchErrors {
            policy_chosen: error(at("pred_w"), at("noise")).0,
            policy_rejected: error(at("pred_l"), at("noise")).0,
            reference_chosen: error(at("ref_w"), at("noise")).0,
            reference_rejected: error(at("ref_l"), at("noise")).0,
        };
        let loss = config.loss(&errors).unwrap();
        // β multiplies what the reference lost by averaging in single precision: 4e-4 was measured in double.
        close(&loss.per_sample, &numbers(at("per_sample")), 1e-3);
        close(&[loss.value], &[meta["steps"][step]["loss"].as_f64().unwrap()], 1e-3);
        let inside: Vec<f64> =
            meta["steps"][step]["inside"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        close(&[loss.preference.unwrap().margin], &[inside.iter().sum::<f64>() / 3.0], 1e-3);
    }
}
