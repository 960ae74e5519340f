//! Stable Cascade's decoder, encoder and previewer against diffusers, torchvision and torch
//! (`tests/reference/golden_decoder.py`), opened from repositories in the published layouts.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ppd::decoder::{Decoder, Decoding, Files, Task, open_previewer, preview};
use ppd::encoder::{Encoder, prepared};
use ppd::models::layout::{Place, stability_stage_b};
use ppd::pixels::Image;
use ppd::units::{GuidanceScale, Seed};
use ppd::weights::Weights;

use crate::seeded;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const PROMPTS: [&str; 2] = ["a red square on a wooden table", "Oil painting of a dog, 8k"];

/// What the issue allows: 2e-5 of numbers of order one.
const TOLERANCE: f32 = 2e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join("decoder").join(name)
}

fn golden() -> Weights {
    Weights::open(fixture("golden.safetensors")).unwrap()
}

fn read(file: &Weights, name: &str) -> Tensor {
    file.read(name, DType::F32, &Device::Cpu).unwrap()
}

/// 1.7·u has unit variance.
fn drawn(name: &str, shape: &[usize], scale: f32) -> Tensor {
    seeded::tensor(name, shape, scale, 0.0)
}

fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    std::fs::create_dir_all(to.as_ref().parent().unwrap()).unwrap();
    std::fs::copy(from, to).unwrap();
}

/// The text encoder and tokenizer of a repository.
fn text_encoder(root: &Path) {
    let clip = Path::new(FIXTURES).join("clip");
    copy(clip.join("stable_cascade/text_encoder.json"), root.join("text_encoder/config.json"));
    copy(clip.join("stable_cascade/text_encoder.safetensors"), root.join("text_encoder/model.safetensors"));
    copy(clip.join("tokenizer.json"), root.join("tokenizer/tokenizer.json"));
    let special = r#"{"pad_token": {"content": "<|endoftext|>", "lstrip": false}}"#;
    std::fs::write(root.join("tokenizer/special_tokens_map.json"), special).unwrap();
}

/// The layout of `stabilityai/stable-cascade`, of tiny models.
pub fn repository(root: &Path) {
    text_encoder(root);
    for name in ["model_index.json", "scheduler/scheduler_config.json"] {
        copy(fixture(name), root.join(name));
    }
    for part in ["decoder", "vqgan"] {
        copy(fixture(&format!("{part}/config.json")), root.join(part).join("config.json"));
        let weights = root.join(part).join("diffusion_pytorch_model.safetensors");
        seeded::write(fixture(&format!("{part}/tensors.json")), weights);
    }
}

/// The same in Stability's layout.
fn stability_repository(root: &Path) {
    text_encoder(root);
    copy(fixture("decoder/config.json"), root.join("config.json"));
    let mut denoiser: HashMap<String, Tensor> = HashMap::new();
    let mut parts: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
    for (name, tensor) in seeded::tensors(fixture("decoder/tensors.json")) {
        match stability_stage_b(&name) {
            Place { name, part: Some((index, _)) } => {
                parts.entry(name).or_default().insert(index, tensor);
            }
            Place { name, part: None } => drop(denoiser.insert(name, tensor)),
        }
    }
    for (name, parts) in parts {
        let parts: Vec<Tensor> = parts.into_values().collect();
        denoiser.insert(name, Tensor::cat(&parts, 0).unwrap());
    }
    assert!(denoiser.contains_key("clip_mapper.weight"));
    candle_core::safetensors::save(&denoiser, root.join("stage_b.safetensors")).unwrap();
    let autoencoder: HashMap<String, Tensor> = seeded::tensors(fixture("vqgan/tensors.json"))
        .into_iter()
        .map(|(name, tensor)| (name.replace("embedding", "codebook"), tensor))
        .collect();
    candle_core::safetensors::save(&autoencoder, root.join("stage_a.safetensors")).unwrap();
}

fn open(root: &Path) -> Decoder {
    Decoder::open_repository(root, DType::F32, &Device::Cpu).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(a - b).unwrap()) / norm(b)
}

/// The prediction for the fixture's latents, whose sides are odd at every level.
fn predict(decoder: &Decoder) -> Tensor {
    let pooled = drawn("unet.pooled", &[2, 1, 24], 1.0);
    let effnet = drawn("unet.effnet", &[2, 16, 3, 2], 1.0);
    let condition = decoder.denoiser.condition(&pooled, &effnet, (26, 22)).unwrap();
    let timestep = Tensor::new(&[1f32, 0.33], &Device::Cpu).unwrap();
    decoder.denoiser.forward(&drawn("unet.sample", &[2, 4, 26, 22], 1.0), &timestep, &condition).unwrap()
}

#[test]
fn stage_b_equals_diffusers_in_both_layouts() {
    let root = tempfile::tempdir().unwrap();
    repository(&root.path().join("diffusers"));
    stability_repository(&root.path().join("stability"));
    let expected = read(&golden(), "unet.out");
    for layout in ["diffusers", "stability"] {
        let decoder = open(&root.path().join(layout));
        let difference = largest_difference(&predict(&decoder), &expected);
        assert!(difference < TOLERANCE, "{layout}: {difference}");
        let scale = decoder.autoencoder.config().scale_factor;
        assert_eq!(scale, if layout == "diffusers" { 0.3764 } else { 0.43 });
        let condition = decoder.denoiser.condition(
            &drawn("unet.pooled", &[2, 1, 24], 1.0),
            &drawn("unet.effnet", &[2, 16, 3, 2], 1.0),
            (26, 22),
        );
        let other = Tensor::zeros((2, 4, 26, 24), DType::F32, &Device::Cpu).unwrap();
        let refused = decoder.denoiser.forward(
            &other,
            &Tensor::new(&[1f32; 2], &Device::Cpu).unwrap(),
            &condition.unwrap(),
        );
        assert!(refused.unwrap_err().to_string().contains("13×12"));
    }
    for path in ["diffusers/decoder", "stability/stage_b.safetensors"] {
        Files::find(&root.path().join(path)).unwrap();
    }
}

#[test]
fn stage_b_computes_in_half_precision() {
    let root = tempfile::tempdir().unwrap();
    repository(root.path());
    let half = Decoder::open_repository(root.path(), DType::BF16, &Device::Cpu).unwrap();
    let (ours, expected) = (predict(&half), read(&golden(), "unet.out"));
    assert_eq!((half.denoiser.dtype(), ours.dtype()), (DType::BF16, DType::F32));
    // Eight bits of mantissa through some twenty layers.
    let difference = relative(&ours, &expected);
    assert!(difference < 5e-2, "{difference}");
    let refused = Decoder::open_repository(root.path(), DType::F16, &Device::Cpu).err().unwrap();
    assert!(refused.to_string().contains("bf16"), "{refused}");
}

#[test]
fn stage_a_equals_diffusers() {
    let root = tempfile::tempdir().unwrap();
    repository(&root.path().join("diffusers"));
    stability_repository(&root.path().join("stability"));
    let golden = golden();
    for layout in ["diffusers", "stability"] {
        let autoencoder = open(&root.path().join(layout)).autoencoder;
        let latents = drawn("vq.latents", &[1, 4, 5, 4], 1.0);
        let picture = seeded::tensor("vq.picture", &[1, 3, 20, 16], 0.5, 0.5);
        let quantized = autoencoder.quantize(&latents).unwrap();
        for (name, ours) in [
            ("vq.decode", autoencoder.decode(&latents).unwrap()),
            ("vq.decode_quantized", autoencoder.decode(&quantized).unwrap()),
            ("vq.encode", autoencoder.encode(&picture).unwrap()),
        ] {
            let difference = largest_difference(&ours, &read(&golden, name));
            assert!(difference < TOLERANCE, "{layout} {name}: {difference}");
        }
    }
}

#[test]
fn every_step_of_the_pipeline_equals_diffusers() {
    let root = tempfile::tempdir().unwrap();
    repository(root.path());
    let (decoder, golden) = (open(root.path()), golden());
    assert_eq!(decoder.latent_size((1, 3)), (10, 32));
    assert_eq!(decoder.latent_size((24, 11)), (256, 118), "117 is no multiple of the patch");
    let prompts = PROMPTS.map(str::to_owned);
    let negative = ["cluttered", "low contrast"].map(str::to_owned);
    for (run, scale, negative) in [("plain", 1.0, &[][..]), ("guided", 1.5, &negative)] {
        let embeddings = drawn("pipeline.embeddings", &[2, 16, 1, 3], 1.7);
        let task = Task { embeddings: &embeddings, prompts: &prompts, negative };
        let decoding = Decoding { num_steps: 2, guidance_scale: GuidanceScale::new(scale).unwrap() };
        let start = drawn("pipeline.start", &[2, 4, 10, 32], 1.7);
        let mut steps = Vec::new();
        let noise = |step: usize| Ok(drawn(&format!("pipeline.noise.{step}"), &[2, 4, 10, 32], 1.7));
        let seen = |latents: &Tensor| {
            steps.push(latents.clone());
            Ok(())
        };
        let end = decoder.sample(&task, &decoding, &start, noise, seen).unwrap();
        let expected = read(&golden, &format!("{run}.latents"));
        for (step, ours) in steps.iter().enumerate() {
            let difference = relative(ours, &expected.get(step).unwrap());
            assert!(difference < 1e-4, "{run} step {step}: {difference}");
        }
        let second = decoder.decode(&end.narrow(0, 1, 1).unwrap()).unwrap().get(0).unwrap();
        let bytes = (second * 255.0).unwrap().round().unwrap();
        let expected = read(&golden, &format!("{run}.image")).permute((2, 0, 1)).unwrap();
        // A byte falls to the other side where its pixel lies on the border between two.
        assert!(largest_difference(&bytes, &expected) <= 1.0);
        assert!(relative(&bytes, &expected) < 1e-3, "{run}: {}", relative(&bytes, &expected));
    }
}

#[test]
fn a_picture_does_not_depend_on_those_beside_it() {
    let root = tempfile::tempdir().unwrap();
    repository(root.path());
    let decoder = open(root.path());
    let embeddings = drawn("pipeline.embeddings", &[2, 16, 1, 3], 1.7);
    let prompts = PROMPTS.map(str::to_owned);
    let decoding = Decoding { num_steps: 2, ..Decoding::default() };
    let seeds = [(Seed::new(3), 0), (Seed::new(3), 1)];
    let task = Task { embeddings: &embeddings, prompts: &prompts, negative: &[] };
    let both = decoder.images(&task, &decoding, &seeds, || Ok(())).unwrap();
    let second =
        Task { embeddings: &embeddings.narrow(0, 1, 1).unwrap(), prompts: &prompts[1..], negative: &[] };
    let alone = decoder.images(&second, &decoding, &seeds[1..], || Ok(())).unwrap();
    assert_eq!((both[0].width(), both[0].height()), (128, 40));
    assert_eq!(both[1], alone[0]);
    assert_ne!(both[0], both[1]);
    let few = decoder.images(&task, &decoding, &seeds[1..], || Ok(())).unwrap_err();
    assert!(few.to_string().contains("1 seeds"), "{few}");
}

#[test]
fn the_encoder_equals_torchvisions_network_and_its_preprocessing() {
    let folder = tempfile::tempdir().unwrap();
    seeded::write(fixture("effnet_encoder/tensors.json"), folder.path().join("effnet_encoder.safetensors"));
    let (encoder, golden) = (Encoder::open(folder.path(), &Device::Cpu).unwrap(), golden());
    for (name, height, width) in [("shrunk", 90, 121), ("grown", 61, 50)] {
        let values = drawn(&format!("encoder.{name}"), &[height, width, 3], 1.0);
        let values = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes = values.iter().map(|value| (value * 127.5 + 127.5) as u8).collect();
        let picture = Image::new(width, height, bytes);
        let ours = prepared(std::slice::from_ref(&picture), 64, &Device::Cpu).unwrap();
        let expected = read(&golden, &format!("encoder.{name}.prepared")).permute((1, 2, 0)).unwrap();
        let rows: Vec<u32> = (0..64).step_by(13).collect();
        let ours = ours.get(0).unwrap().index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
        let difference = largest_difference(&ours, &expected);
        assert!(difference < 5e-6, "{name}: {difference}");
        let latents = encoder.encode(&[picture], 64).unwrap();
        let difference = largest_difference(&latents, &read(&golden, &format!("encoder.{name}.latents")));
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
    let uneven = drawn("encoder.uneven", &[1, 3, 75, 101], 2.0).permute((0, 2, 3, 1)).unwrap();
    let latents = encoder.encode_prepared(&uneven).unwrap();
    let difference = largest_difference(&latents, &read(&golden, "encoder.uneven.latents"));
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn the_previewer_equals_torchs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("previewer.safetensors");
    seeded::write(fixture("previewer/tensors.json"), &path);
    let previewer = open_previewer(&path, &Device::Cpu).unwrap();
    let latents = drawn("previewer.latents", &[1, 16, 2, 3], 1.7);
    let difference =
        largest_difference(&previewer.forward(&latents).unwrap(), &read(&golden(), "previewer.out"));
    assert!(difference < TOLERANCE, "{difference}");
    let pictures = preview(&previewer, &latents).unwrap();
    assert_eq!((pictures[0].width(), pictures[0].height()), (24, 16));
}

#[test]
fn what_is_missing_or_another_file_is_named() {
    let root = tempfile::tempdir().unwrap();
    let refusal =
        |path: &Path| Decoder::open_repository(path, DType::F32, &Device::Cpu).err().unwrap().to_string();
    let message = refusal(root.path());
    assert!(message.contains("decoder/diffusion_pytorch_model") && message.contains("stage_b"), "{message}");
    repository(root.path());
    let file = root.path().join("vqgan/diffusion_pytorch_model.safetensors");
    std::fs::remove_file(&file).unwrap();
    let message = refusal(root.path());
    assert!(message.contains("vqgan") && message.contains("stage_a.safetensors"), "{message}");
    seeded::write(fixture("previewer/tensors.json"), &file);
    assert!(refusal(root.path()).contains("vqgan"));

    let message = Encoder::open(&file, &Device::Cpu).err().unwrap().to_string();
    assert!(message.contains("effnet_encoder.safetensors"), "{message}");
    seeded::write(fixture("vqgan/tensors.json"), &file);
    let message = open_previewer(&file, &Device::Cpu).err().unwrap().to_string();
    assert!(message.contains("previewer.safetensors"), "{message}");

    let other = tempfile::tempdir().unwrap();
    stability_repository(other.path());
    std::fs::remove_file(other.path().join("config.json")).unwrap();
    let message = refusal(other.path());
    assert!(message.contains("640 or 576") && message.contains("config.json"), "{message}");
}
