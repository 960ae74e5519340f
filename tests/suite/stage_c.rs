//! Stage C against diffusers' `StableCascadeUNet`: values of every block, gradients of every tensor, with and without
//! the user branch.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use ppd::models::layout;
use ppd::models::stage_c::{Config, KeyValue, StageC};
use ppd::weights::{Trainable, Weights};

use crate::devices::{fixture_path, on_cpu, on_each_device};
use crate::thinned;

fn fixture(name: &str) -> Weights {
    Weights::open(fixture_path(&format!("stage_c/{name}.safetensors"))).unwrap()
}

fn config() -> Config {
    let path = fixture_path("stage_c/config.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn read(file: &Weights, name: &str) -> Tensor {
    file.read(name, DType::F32, &Device::Cpu).unwrap()
}

fn frozen(device: &Device) -> StageC {
    StageC::new(&config(), fixture("prior").builder(DType::F32, device)).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (on_cpu(a) - on_cpu(b)).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> f32 {
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(on_cpu(a) - on_cpu(b)).unwrap()) / norm(&on_cpu(b))
}

/// The prediction of a model on `device` for the inputs stored under `prefix`.
fn predict(
    (model, device): (&StageC, &Device),
    file: &Weights,
    prefix: &str,
    scalars: Option<&[Tensor]>,
) -> Tensor {
    let get = |name: &str| file.read(&format!("{prefix}{name}"), DType::F32, device).unwrap();
    let tokens =
        model.conditioning_tokens(&get("clip_text"), &get("clip_text_pooled"), &get("clip_img")).unwrap();
    let text = model.key_values(&tokens).unwrap();
    let (sample, timestep) = (get("sample"), get("timestep_ratio"));
    match scalars {
        Some(scalars) => model.forward_with(&sample, &timestep, scalars, &text, None).unwrap(),
        None => model.forward(&sample, &timestep, &text, None).unwrap(),
    }
}

/// 1e-5 of outputs of scale 0.7: an fp64 network fed the same fp32 timestep embedding differs from the reference by
/// 1.2e-6, so the rest is room for another order of summation.
const FORWARD: f32 = 1e-5;

#[test]
fn predictions_equal_diffusers() {
    on_each_device(|device| {
        let (model, golden) = (frozen(device), fixture("unet_forward"));
        for case in ["case0", "case1", "case2"] {
            let difference = largest_difference(
                &predict((&model, device), &golden, &format!("{case}."), None),
                &read(&golden, &format!("{case}.out")),
            );
            assert!(difference < FORWARD, "{case}: {difference}");
        }
    });
}

/// The same file in Stability's layout: queries, keys and values of each attention in one tensor.
fn in_stabilitys_layout(diffusers: &Weights) -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    for name in diffusers.names() {
        let tensor = read(diffusers, name);
        match name.split_once(".attention.to_") {
            None => drop(tensors.insert(name.to_owned(), tensor)),
            Some((block, rest)) => match rest.split_once('.').unwrap() {
                ("q", kind) => {
                    let part = |map: &str| read(diffusers, &format!("{block}.attention.to_{map}.{kind}"));
                    let fused = Tensor::cat(&[tensor, part("k"), part("v")], 0).unwrap();
                    tensors.insert(format!("{block}.attention.attn.in_proj_{kind}"), fused);
                }
                ("out", kind) => {
                    let kind = kind.strip_prefix("0.").unwrap();
                    tensors.insert(format!("{block}.attention.attn.out_proj.{kind}"), tensor);
                }
                _ => {}
            },
        }
    }
    tensors
}

#[test]
fn stabilitys_own_layout_is_read() {
    let path = fixture_path("stage_c/stability_shapes.json");
    let shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let tensors = in_stabilitys_layout(&fixture("prior"));
    let ours: BTreeMap<String, Vec<usize>> =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
    assert_eq!(ours, shapes, "the names and shapes of the upstream model's own file");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stage_c.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().collect(), &path).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert!(layout::is_stability(weights.names().into_iter()));
    let model =
        StageC::new(&config(), weights.builder_in(layout::stability, DType::F32, &Device::Cpu)).unwrap();
    let golden = fixture("unet_forward");
    let difference = largest_difference(
        &predict((&model, &Device::Cpu), &golden, "case1.", None),
        &read(&golden, "case1.out"),
    );
    assert!(difference < FORWARD, "{difference}");

    let wrong =
        StageC::new(&config(), fixture("prior").builder_in(layout::stability, DType::F32, &Device::Cpu));
    let message = wrong.err().unwrap().to_string();
    assert!(message.contains("in_proj_weight"), "{message}");
}

#[test]
fn further_scalars_modulate_as_upstream() {
    on_each_device(|device| {
        let (model, inputs, golden) = (frozen(device), fixture("unet_forward"), fixture("unet_sca_crp"));
        let scalars = ["sca", "crp"].map(|name| golden.read(name, DType::F32, device).unwrap());
        let difference = largest_difference(
            &predict((&model, device), &inputs, "case1.", Some(&scalars)),
            &read(&golden, "out"),
        );
        assert!(difference < FORWARD, "{difference}");
    });
}

#[test]
fn half_precision_that_overflows_is_refused() {
    let refused = StageC::new(&config(), fixture("prior").builder(DType::F16, &Device::Cpu));
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("f16") && message.contains("bf16"), "{message}");
}

#[test]
fn every_gradient_equals_torchs() {
    on_each_device(|device| {
        let golden = fixture("unet_backward");
        let trainable = Trainable::from_weights(fixture("prior"));
        let model = StageC::new(&config(), trainable.builder(device)).unwrap();
        let get = |name: &str| golden.read(name, DType::F32, device).unwrap();
        let input = |name: &str| Var::from_tensor(&get(&format!("in.{name}"))).unwrap();
        let (sample, text, pooled, image) =
            (input("sample"), input("clip_text"), input("clip_text_pooled"), input("clip_img"));
        let tokens = model.conditioning_tokens(&text, &pooled, &image).unwrap();
        let out = model
            .forward(&sample, &get("in.timestep_ratio"), &model.key_values(&tokens).unwrap(), None)
            .unwrap();
        assert!(largest_difference(&out, &read(&golden, "out")) < FORWARD);
        let loss = (&out - &get("in.target")).unwrap().sqr().unwrap().mean_all().unwrap();
        let grads = loss.backward().unwrap();
        let mut compared = 0;
        let vars = trainable.vars();
        let parameters = vars.iter().map(|(name, var)| (format!("grad.param.{name}"), var.as_tensor()));
        let inputs = [
            ("grad.in.sample", &sample),
            ("grad.in.clip_text", &text),
            ("grad.in.clip_text_pooled", &pooled),
            ("grad.in.clip_img", &image),
        ];
        for (name, var) in parameters.chain(inputs.map(|(name, var)| (name.to_owned(), var.as_tensor()))) {
            // Both further scalars default to zeros: their mappers get one gradient, which the fixture holds once.
            let stored = name.replace("mapper_crp.weight", "mapper_sca.weight");
            let got = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let (got, expected) = thinned::entries(&golden, &stored, got);
            let scale: f32 = expected.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            // A bias on every key shifts all scores alike: its gradient is zero, and the reference holds rounding noise.
            if scale < 1e-7 {
                assert!(largest_difference(&got, &expected) < 1e-6, "{name}");
            } else {
                let error = relative(&got, &expected);
                assert!(error < 1e-4, "{name}: {error}");
            }
            compared += 1;
        }
        assert_eq!(compared, vars.len() + 4, "every tensor of the checkpoint is compared");
        assert_eq!(vars.len(), fixture("prior").names().len());
    });
}

/// K′ = u W′k and V′ = u W′v of each block, from the adapters stored under `prefix`.
fn user_branch(adapters: &BTreeMap<String, Var>, user: &Tensor) -> Vec<KeyValue> {
    let map = |block: &str, name: &str| {
        ppd::nn::linear(user, adapters[&format!("{block}.{name}.weight")].as_tensor(), None).unwrap()
    };
    config()
        .attention_blocks()
        .iter()
        .map(|(block, _)| {
            KeyValue::new(Tensor::cat(&[map(block, "to_k_ip"), map(block, "to_v_ip")], 2).unwrap())
        })
        .collect()
}

#[test]
fn the_user_branch_equals_ip_adapters() {
    on_each_device(|device| {
        let (model, golden) = (frozen(device), fixture("unet_with_adapters"));
        let get = |name: &str| golden.read(name, DType::F32, device).unwrap();
        let adapters: BTreeMap<String, Var> = golden
            .names()
            .iter()
            .filter_map(|name| {
                Some((name.strip_prefix("adapter.")?.to_owned(), Var::from_tensor(&get(name)).unwrap()))
            })
            .collect();
        let user = Var::from_tensor(&get("user")).unwrap();
        let tokens =
            model.conditioning_tokens(&get("clip_text"), &get("clip_text_pooled"), &get("clip_img")).unwrap();
        let text = model.key_values(&tokens).unwrap();
        let branch = user_branch(&adapters, &user);
        let out = model.forward(&get("sample"), &get("timestep_ratio"), &text, Some(&branch)).unwrap();
        assert!(largest_difference(&out, &get("out")) < FORWARD);
        let errors = (&out - &get("target")).unwrap().sqr().unwrap().mean((1, 2, 3)).unwrap();
        assert!(largest_difference(&errors, &get("mse_per_sample")) < 1e-5);
        let before = ppd::nn::counting::weight_gradients();
        let grads = errors.mean_all().unwrap().backward().unwrap();
        assert!(relative(grads.get(&user).unwrap(), &get("grad.user")) < 1e-4);
        for (name, var) in &adapters {
            let error = relative(grads.get(var).unwrap(), &get(&format!("grad.adapter.{name}")));
            assert!(error < 1e-4, "{name}: {error}");
        }
        let computed = ppd::nn::counting::weight_gradients() - before;
        assert_eq!(computed, adapters.len() as u64, "no frozen weight's gradient is computed");
    });
}
