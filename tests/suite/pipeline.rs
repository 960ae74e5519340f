//! `ppd generate --model` against diffusers' `StableCascadePriorPipeline` (tests/reference/golden_stage_c.py): every step
//! of every run, from captions to latents, by a repository in the published layout.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use ppd::diffusion::guide_batch;
use ppd::units::GuidanceScale;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const PROMPTS: [&str; 2] = ["a red square on a wooden table", "Oil painting of a dog, 8k"];

/// The layout of `stabilityai/stable-cascade-prior`, of tiny models.
fn repository(root: &Path) {
    for (from, to) in [
        ("stage_c/config.json", "prior/config.json"),
        ("stage_c/prior.safetensors", "prior/diffusion_pytorch_model.safetensors"),
        ("clip/stable_cascade/text_encoder.json", "text_encoder/config.json"),
        ("clip/stable_cascade/text_encoder.safetensors", "text_encoder/model.safetensors"),
        ("clip/tokenizer.json", "tokenizer/tokenizer.json"),
    ] {
        let to = root.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(Path::new(FIXTURES).join(from), to).unwrap();
    }
    let special = r#"{"pad_token": {"content": "<|endoftext|>", "lstrip": false}}"#;
    std::fs::write(root.join("tokenizer/special_tokens_map.json"), special).unwrap();
}

fn generate(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ppd"));
    command
        .args(["generate", "--quiet", "--device", "cpu", "--threads", "1", "--model"])
        .arg(root.join("repo"));
    for prompt in PROMPTS {
        command.args(["--prompt", prompt]);
    }
    command.args(["--height", "256", "--width", "256", "--out"]).arg(root.join("out"));
    command.args(arguments).output().unwrap()
}

fn safetensors(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(a - b).unwrap()) / norm(b)
}

#[test]
fn every_step_equals_the_reference_pipeline() {
    let root = tempfile::tempdir().unwrap();
    repository(&root.path().join("repo"));
    let golden = safetensors(format!("{FIXTURES}/diffusion/pipeline.safetensors"));
    let negative = ["--negative", "cluttered", "--negative", "low contrast"];
    for (run, steps, scale, further) in [
        ("cfg4", 5, "4", &[][..]),
        ("cfg1", 5, "1", &[]),
        ("cfg4_neg", 3, "4", &negative),
        ("cfg4_n2", 2, "4", &["--num-images", "2"]),
    ] {
        let at = |name: String| &golden[&format!("{run}.{name}")];
        let noises: Vec<&Tensor> = (0..steps).map(|step| at(format!("step{step}.noise"))).collect();
        let given = HashMap::from([
            ("init".to_owned(), at("init_latents".into()).clone()),
            ("noise".to_owned(), Tensor::stack(&noises, 0).unwrap()),
        ]);
        let (input, trace) = (root.path().join("in.safetensors"), root.path().join("trace.safetensors"));
        candle_core::safetensors::save(&given, &input).unwrap();
        let (input, trace) = (input.to_str().unwrap(), trace.to_str().unwrap());
        let steps_text = steps.to_string();
        let mut arguments = vec!["--latents", input, "--trace", trace, "--num-steps", &steps_text];
        arguments.extend(["--guidance-scale", scale]);
        arguments.extend(further);
        let output = generate(root.path(), &arguments);
        assert!(output.status.success(), "{run}: {}", String::from_utf8_lossy(&output.stderr));

        let traced = safetensors(trace);
        let scale: f64 = scale.parse().unwrap();
        for step in 0..steps {
            let pred = at(format!("step{step}.model_out")).clone();
            let pred = if scale > 1.0 {
                guide_batch(&pred, GuidanceScale::new(scale).unwrap()).unwrap()
            } else {
                pred
            };
            for (what, ours, expected) in [
                ("epsilon", traced["epsilon"].get(step).unwrap(), pred),
                (
                    "latents",
                    traced["latents"].get(step + 1).unwrap(),
                    at(format!("step{step}.latents")).clone(),
                ),
            ] {
                let difference = relative(&ours, &expected);
                assert!(difference < 1e-4, "{run} step {step} {what}: {difference}");
            }
        }
        let end = &safetensors(root.path().join("out/latents.safetensors"))["latents"];
        assert!(relative(end, at("image_embeddings".into())) < 1e-4, "{run}");
    }
}

#[test]
fn noise_of_its_own_makes_each_image_whatever_stands_beside_it() {
    let root = tempfile::tempdir().unwrap();
    repository(&root.path().join("repo"));
    let latents = |arguments: &[&str]| {
        let output = generate(root.path(), &[arguments, &["--num-steps", "2"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        safetensors(root.path().join("out/latents.safetensors"))["latents"].clone()
    };
    let bytes = |xs: &Tensor| -> Vec<f32> { xs.flatten_all().unwrap().to_vec1().unwrap() };
    let two = latents(&[]);
    assert_eq!(two.dims(), [2, 16, 6, 6]);
    let four = latents(&["--num-images", "2"]);
    assert_eq!(bytes(&four.get(0).unwrap()), bytes(&two.get(0).unwrap()));
    assert_ne!(bytes(&latents(&["--seed", "1"])), bytes(&two));
    assert_ne!(bytes(&latents(&["--sampler", "gdf"])), bytes(&two));
    let half = latents(&["--bf16"]);
    assert!(relative(&half, &two) < 0.2, "half precision is the same picture");
}

#[test]
fn what_does_not_fit_is_refused_with_the_way_out() {
    let root = tempfile::tempdir().unwrap();
    repository(&root.path().join("repo"));
    let given = |shape: (usize, usize, usize, usize)| {
        let zeros = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let path = root.path().join("given.safetensors");
        candle_core::safetensors::save(&HashMap::from([("init".to_owned(), zeros)]), &path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let three = given((3, 16, 6, 6));
    for (arguments, part) in [
        (&["--negative", "a", "--negative", "b", "--negative", "c"][..], "--negative is given 3 times"),
        (&["--guidance-scale", "0.5"], "at least 1"),
        (&["--num-steps", "0"], "num_steps must be at least 1"),
        (&["--shift", "2"], "--sampler gdf"),
        (&["--latents", &three], "expected 2 latents"),
        (&["--adapter", "nowhere.safetensors"], "nowhere.safetensors"),
    ] {
        let output = generate(root.path(), arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(part), "{arguments:?}: {message}");
    }
    std::fs::remove_dir_all(root.path().join("repo/prior")).unwrap();
    let message = String::from_utf8_lossy(&generate(root.path(), &[]).stderr).into_owned();
    assert!(
        message.contains("diffusion_pytorch_model.safetensors") && message.contains("stage_c"),
        "{message}"
    );
}
