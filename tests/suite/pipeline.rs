//! `ppd generate --model` against diffusers' `StableCascadePriorPipeline` (tests/reference/golden_stage_c.py): every step
//! of every run, from captions to latents, by a repository in the published layout.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use ppd::adapter::Adapter;
use ppd::checkpoint::save_adapter;
use ppd::diffusion::guide_batch;
use ppd::models::stage_c::Config;
use ppd::units::{GuidanceScale, Seed};
use ppd::weights::Trainable;

use crate::{decoder, seeded};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const PROMPTS: [&str; 2] = ["a red square on a wooden table", "Oil painting of a dog, 8k"];

/// The layout of `stabilityai/stable-cascade-prior`, of tiny models.
pub fn repository(root: &Path) {
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

/// An adapter as training saves it, its numbers drawn from the tensors' names.
fn adapter(path: &Path) {
    let config: Config =
        serde_json::from_str(&std::fs::read_to_string(format!("{FIXTURES}/stage_c/config.json")).unwrap())
            .unwrap();
    let sizes = ppd::adapter::Config {
        user_width: 3,
        num_tokens: 4,
        token_width: 6,
        projector_bias: true,
        projector_std: 1.0,
    };
    let trainable = Trainable::new(Seed::new(7));
    let adapter = Adapter::new(sizes, &config.attention_blocks(), trainable.builder(&Device::Cpu)).unwrap();
    let tensors = trainable.tensors().into_iter().map(|(name, tensor)| {
        let drawn = seeded::tensor(&name, tensor.dims(), 0.6, 0.0);
        (name, drawn)
    });
    save_adapter(path, &adapter, &tensors.collect(), &BTreeMap::new()).unwrap();
}

#[test]
fn a_saved_adapter_gives_in_diffusers_what_it_gives_here() {
    let root = tempfile::tempdir().unwrap();
    repository(&root.path().join("repo"));
    let file = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    adapter(Path::new(&file("adapter.safetensors")));
    let drawn = |name: &str, shape: &[usize]| seeded::tensor(name, shape, 1.7, 0.0);
    let given = HashMap::from([
        ("init".to_owned(), drawn("adapter.init", &[2, 16, 6, 5])),
        ("noise".to_owned(), drawn("adapter.noise", &[2, 2, 16, 6, 5])),
    ]);
    candle_core::safetensors::save(&given, file("in.safetensors")).unwrap();
    let output = generate(
        root.path(),
        &[
            ["--latents", &file("in.safetensors")],
            ["--trace", &file("trace.safetensors")],
            ["--adapter", &file("adapter.safetensors")],
            ["--user", "0.5,0.2,0.3"],
            ["--num-steps", "3"],
        ]
        .concat(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let traced = safetensors(file("trace.safetensors"))["latents"].clone();
    // tests/reference/user_adapter.py read that very adapter.
    let expected = safetensors(format!("{FIXTURES}/adapter/diffusers.safetensors"))["latents"].clone();
    for step in 0..3 {
        let difference = relative(&traced.get(step + 1).unwrap(), &expected.get(step).unwrap());
        assert!(difference < 1e-4, "step {step}: {difference}");
    }
}

#[test]
fn a_decoder_and_a_previewer_make_pictures_of_the_latents() {
    let root = tempfile::tempdir().unwrap();
    repository(&root.path().join("repo"));
    decoder::repository(&root.path().join("decoder"));
    let previewer = root.path().join("previewer.safetensors");
    seeded::write(format!("{FIXTURES}/decoder/previewer/tensors.json"), &previewer);
    let folder = root.path().join("out");
    let run = |arguments: &[&str], prompts: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ppd"));
        command.args(["generate", "--quiet", "--device", "cpu", "--threads", "1", "--seed", "5"]);
        command.args(["--num-steps", "1", "--height", "40", "--width", "120", "--out"]).arg(&folder);
        command.arg("--model").arg(root.path().join("repo"));
        for prompt in &PROMPTS[..prompts] {
            command.args(["--prompt", prompt]);
        }
        command.args(arguments).output().unwrap()
    };
    let picture = |name: &str| ppd::image::read(folder.join(name)).unwrap();
    let (decoder, previewer) = (root.path().join("decoder"), previewer.to_str().unwrap());
    let decoder = ["--decoder", decoder.to_str().unwrap(), "--decoder-steps", "2"];

    let output = run(&decoder, 2);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = ppd::data::images::read(&folder).unwrap();
    let described: Vec<_> = list.iter().map(|(_, entry)| (entry.prompt.as_str(), entry.noise_seed)).collect();
    assert_eq!(described, [(PROMPTS[0], 5), (PROMPTS[1], 5)]);
    assert_eq!(safetensors(folder.join("latents.safetensors"))["latents"].dims(), [2, 16, 1, 3]);
    let first = picture("00000.png");
    assert_eq!((first.width(), first.height()), (128, 40));
    assert_ne!(first, picture("00001.png"));
    assert!(run(&decoder, 1).status.success());
    assert_eq!(picture("00000.png"), first, "alone as beside another");
    assert!(run(&[&decoder[..], &["--decoder-guidance-scale", "1.5"]].concat(), 1).status.success());
    assert_ne!(picture("00000.png"), first);

    assert!(run(&["--previewer", previewer], 1).status.success());
    assert_eq!((picture("00000.png").width(), picture("00000.png").height()), (24, 8));

    std::fs::remove_dir_all(&folder).unwrap();
    for (arguments, expected) in [
        (vec!["--decoder", "nowhere"], "stage_b.safetensors"),
        (vec!["--previewer", "nowhere.safetensors"], "nowhere.safetensors"),
        ([&decoder[..], &["--previewer", previewer]].concat(), "cannot be used with"),
        (vec!["--decoder", decoder[1], "--decoder-steps", "0"], "--decoder-steps 0"),
    ] {
        let output = run(&arguments, 1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{said}");
        assert!(!folder.exists(), "refused before anything was made");
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
