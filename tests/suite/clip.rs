//! CLIP's towers, tokenizer and scores against transformers and open_clip, in both checkpoint layouts.

use candle_core::{DType, Device, Tensor};
use ppd::models::clip::{Clip, Config, OpenClipConfig, TextTower, VisionTower};
use ppd::models::tokenizer::{Tokenizer, Tokens};
use ppd::weights::{Trainable, Weights};

use crate::seeded;

/// Embeddings are of scale 1 to 10 after three blocks of single-precision sums of up to 192 terms: relative to the
/// largest entry, the reference itself moves by about 1e-6 between library versions; 1e-5 leaves room for another
/// order of summation.
const TOLERANCE: f64 = 1e-5;

fn path(name: &str) -> String {
    format!("{}/tests/fixtures/clip/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

/// The checkpoint of a fixture's seeded tensors.
fn checkpoint(name: &str) -> Weights {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    seeded::write(path(&format!("{name}/tensors.json")), &file);
    // An open file outlives its folder.
    Weights::open(file).unwrap()
}

/// The pictures that a fixture's models were shown.
fn pixels(count: usize) -> Tensor {
    seeded::tensor("pixel_values", &[count, 3, 56, 56], 1.7, 0.0)
}

fn read(file: &Weights, name: &str) -> Tensor {
    file.read(name, DType::F32, &Device::Cpu).unwrap()
}

fn ids(file: &Weights) -> Vec<Vec<u32>> {
    let rows = file.read("input_ids", DType::I64, &Device::Cpu).unwrap().to_vec2::<i64>().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(|id| id as u32).collect()).collect()
}

/// With the lengths that the stored attention mask gives.
fn tokens(file: &Weights) -> Tokens {
    let mask = file.read("attention_mask", DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    Tokens { ids: ids(file), lengths: mask.iter().map(|row| row.iter().sum::<f32>() as usize).collect() }
}

#[track_caller]
fn close(ours: &Tensor, theirs: &Tensor, what: &str) {
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (ours, theirs) = (flat(ours), flat(theirs));
    let scale = theirs.iter().fold(1f64, |m, x| m.max(f64::from(x.abs())));
    let largest = ours.iter().zip(&theirs).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert!(largest <= TOLERANCE * scale, "{what}: differs by {largest:e} at scale {scale}");
}

/// The cosine of each text with each image, times `factor`.
fn cosines(texts: &Tensor, images: &Tensor, factor: f64) -> Tensor {
    (texts.matmul(&images.t().unwrap()).unwrap() * factor).unwrap()
}

#[test]
fn the_hugging_face_layout_equals_transformers() {
    for name in ["hf_clip_gelu_pickscore", "hf_clip_quickgelu_openai"] {
        let golden = Weights::open(path(&format!("{name}/golden.safetensors"))).unwrap();
        // One model under either activation.
        let weights = checkpoint("hf_clip_gelu_pickscore");
        let config: Config = json(&format!("{name}/config.json"));
        let clip = Clip::new(&config, weights.builder(DType::F32, &Device::Cpu)).unwrap();
        let (pixels, tokens) = (pixels(4), tokens(&golden));
        close(&clip.vision.embeddings(&pixels).unwrap(), &read(&golden, "image_features"), name);
        close(&clip.text.embeddings(&tokens).unwrap(), &read(&golden, "text_features"), name);
        let (images, texts) = (clip.image_features(&pixels).unwrap(), clip.text_features(&tokens).unwrap());
        close(&cosines(&texts, &images, 100.0), &read(&golden, "clip_score_100cos"), name);
        let scale = f64::from(clip.logit_scale.exp().unwrap().to_scalar::<f32>().unwrap());
        let picks = cosines(&texts, &images, scale);
        close(&picks, &read(&golden, "pickscore_logits"), name);
        let first_two = candle_nn::ops::softmax(&picks.narrow(1, 0, 2).unwrap(), 1).unwrap();
        close(&first_two, &read(&golden, "pair_probs_first_two"), name);
    }
}

#[test]
fn the_open_clip_layout_equals_open_clip() {
    let golden = Weights::open(path("open_clip_gelu/golden.safetensors")).unwrap();
    let weights = checkpoint("open_clip_gelu");
    let config: Config = json::<OpenClipConfig>("open_clip_gelu/open_clip_config.json").into();
    let clip = Clip::new(&config, weights.builder(DType::F32, &Device::Cpu)).unwrap();
    let pixels = pixels(3);
    let states = clip.vision.hidden_states(&pixels).unwrap();
    close(&states[0], &read(&golden, "vis.after_ln_pre"), "after ln_pre");
    close(&states[1], &read(&golden, "vis.after_block0"), "after the first block");
    // open_clip pads with 0 and masks nothing: whole rows, as they stand.
    let ids = ids(&golden);
    let tokens = Tokens { lengths: vec![ids[0].len(); ids.len()], ids };
    close(&clip.vision.embeddings(&pixels).unwrap(), &read(&golden, "image_embed"), "image");
    close(&clip.text.embeddings(&tokens).unwrap(), &read(&golden, "text_embed"), "text");
    let (images, texts) = (clip.image_features(&pixels).unwrap(), clip.text_features(&tokens).unwrap());
    close(&images, &read(&golden, "image_embed_norm"), "unit image");
    close(&texts, &read(&golden, "text_embed_norm"), "unit text");
    close(&cosines(&images, &texts, 100.0), &read(&golden, "clip_score_matrix"), "scores");
}

#[test]
fn stable_cascades_text_encoder_equals_transformers_with_and_without_the_mask() {
    let golden = Weights::open(path("stable_cascade/golden.safetensors")).unwrap();
    let weights = Weights::open(path("stable_cascade/text_encoder.safetensors")).unwrap();
    let config = json("stable_cascade/text_encoder.json");
    let tower = TextTower::new(&config, weights.builder(DType::F32, &Device::Cpu)).unwrap();
    let tokens = tokens(&golden);
    let masked = tower.forward(&tokens, true).unwrap();
    assert_eq!(masked.hidden_states.len(), 4);
    for (i, state) in masked.hidden_states.iter().enumerate() {
        close(state, &read(&golden, &format!("hidden_states.{i}")), &format!("hidden state {i}"));
    }
    close(&masked.text_embeds, &read(&golden, "text_embeds"), "embedding");
    let open = tower.forward(&tokens, false).unwrap();
    close(&open.hidden_states[3], &read(&golden, "nomask.hidden_states.last"), "last state, no mask");
    close(&open.text_embeds, &read(&golden, "nomask.text_embeds"), "embedding, no mask");
    close(&tower.embeddings(&tokens).unwrap(), &read(&golden, "text_embeds"), "embedding alone");
}

#[test]
fn stable_cascades_image_encoder_equals_transformers() {
    let golden = Weights::open(path("stable_cascade/golden.safetensors")).unwrap();
    let weights = Weights::open(path("stable_cascade/image_encoder.safetensors")).unwrap();
    let config = json("stable_cascade/image_encoder.json");
    let tower = VisionTower::new(&config, weights.builder(DType::F32, &Device::Cpu)).unwrap();
    let pixels = read(&golden, "image.pixel_values");
    let states = tower.hidden_states(&pixels).unwrap();
    close(&states[states.len() - 1], &read(&golden, "image.last_hidden_state"), "last state");
    close(&tower.embeddings(&pixels).unwrap(), &read(&golden, "image.image_embeds"), "embedding");
}

#[test]
fn the_tokenizer_equals_transformers_fast_one() {
    let cases: serde_json::Value = json("cases.json");
    let pad = cases["pad"].as_u64().unwrap() as u32;
    let bytes = std::fs::read(path("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_json(&bytes, 77, pad).unwrap();
    assert_eq!(tokenizer.vocab_size() as u64, cases["vocab_size"].as_u64().unwrap());
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 20, "only {} cases", cases.len());
    for case in cases {
        let tokens = tokenizer.encode(&[case["text"].as_str().unwrap()]).unwrap();
        let expected: Vec<u32> =
            case["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let length: u64 =
            case["attention_mask"].as_array().unwrap().iter().map(|m| m.as_u64().unwrap()).sum();
        assert_eq!(tokens.ids[0], expected, "{}", case["text"]);
        assert_eq!(tokens.lengths[0] as u64, length, "{}", case["text"]);
    }
}

#[test]
fn every_variable_of_a_trained_clip_gets_a_gradient() {
    let golden = Weights::open(path("hf_clip_gelu_pickscore/golden.safetensors")).unwrap();
    let weights = checkpoint("hf_clip_gelu_pickscore");
    let config: Config = json("hf_clip_gelu_pickscore/config.json");
    let trainable = Trainable::from_weights(weights.clone());
    let clip = Clip::new(&config, trainable.builder(&Device::Cpu)).unwrap();
    let pixels = pixels(3);
    let (images, texts) =
        (clip.image_features(&pixels).unwrap(), clip.text_features(&tokens(&golden)).unwrap());
    let logits = texts.matmul(&images.t().unwrap()).unwrap();
    let logits = logits.broadcast_mul(&clip.logit_scale.exp().unwrap()).unwrap();
    // Any function of all logits will do; squares of a sine never cancel.
    let grads = logits.sin().unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let vars = trainable.vars();
    let stored: Vec<&str> = weights.names();
    assert_eq!(
        vars.keys().map(String::as_str).collect::<Vec<_>>(),
        stored,
        "the model's keys are the file's"
    );
    for (name, var) in &vars {
        let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
        let size = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        // A key's bias shifts every logit of a query alike, and the softmax takes that out again.
        assert!(size > 0.0 || name.ends_with("k_proj.bias"), "{name} has a zero gradient");
        assert!(size.is_finite());
    }
}
