//! LLaVA-OneVision against transformers: tokens, pixels, hidden states of every layer, logits, greedy text; and `ppd embed`
//! through the real binary.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ppd::embed::Template;
use ppd::image;
use ppd::models::llava_onevision::{
    Config, Decoding, Input, Keep, Layout, LlavaOnevision, Merged, Message, Part, Past, Sampling, Views,
};
use ppd::pixels::Image;
use ppd::rng::stream;
use ppd::units::Seed;
use ppd::vlm::Vlm;
use ppd::weights::{Trainable, Weights};

use crate::packed;

use crate::seeded;

/// Hidden states of two layers are of order one; sums of up to 64 terms in another order move them by about 1e-6.
const TOLERANCE: f32 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llava_onevision").join(name)
}

/// A repository with weights in one file.
pub fn repository() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "chat_template.json",
        "tokenizer.json",
    ] {
        std::fs::copy(fixture(name), folder.path().join(name)).unwrap();
    }
    seeded::write(fixture("tensors.json"), folder.path().join("model.safetensors"));
    folder
}

fn open(folder: &Path, dtype: DType) -> Vlm {
    Vlm::open(folder, dtype, &Device::Cpu).unwrap()
}

fn golden() -> Weights {
    let unpacked = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&unpacked, packed::bytes(&fixture("golden.safetensors"))).unwrap();
    // The file stays mapped.
    Weights::open(unpacked.path()).unwrap()
}

fn read(golden: &Weights, name: &str) -> Tensor {
    golden.read(name, DType::F32, &Device::Cpu).unwrap()
}

fn ids(golden: &Weights, name: &str) -> Vec<u32> {
    let ids = golden.read(name, DType::I64, &Device::Cpu).unwrap().to_vec1::<i64>().unwrap();
    ids.into_iter().map(|id| id as u32).collect()
}

fn picture(name: &str) -> Image {
    image::read(fixture(name)).unwrap()
}

fn values(xs: &Tensor) -> Vec<f32> {
    xs.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference relative to the largest entry.
fn distance(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let (ours, theirs) = (values(ours), values(theirs));
    let scale = theirs.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}

#[track_caller]
fn close(ours: &Tensor, theirs: &Tensor, tolerance: f32, what: &str) {
    let distance = distance(ours, theirs);
    assert!(distance < tolerance, "{what} differs by {distance:e}");
}

fn prompt(name: &str) -> String {
    let chat: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("chat.json")).unwrap()).unwrap();
    chat["prompts"][name].as_str().unwrap().to_owned()
}

/// The three cases of the fixture: the stored name, the input, and the pictures' stored pixels.
fn cases(vlm: &Vlm) -> Vec<(&'static str, Input, Vec<&'static str>)> {
    let (wide, large) = (picture("wide.png"), picture("large.png"));
    let both = [large, wide.clone()];
    let input = |prompt: &str, images: &[Image], layout| vlm.input(prompt, images, layout).unwrap();
    vec![
        ("wide", input(&prompt("wide"), &[wide], Layout::Anyres), vec!["wide.pixels.0"]),
        ("both", input(&prompt("both"), &both, Layout::Anyres), vec!["both.pixels.0", "both.pixels.1"]),
        ("base_only", input(&prompt("both"), &both, Layout::BaseOnly), vec![]),
    ]
}

/// All hidden states of one prompt: (layers + 1, N, D).
fn states(vlm: &Vlm, input: &Input) -> Tensor {
    let states = vlm.model.forward(std::slice::from_ref(input), Keep::All).unwrap().hidden_states;
    Tensor::cat(&states, 0).unwrap()
}

#[test]
fn pixels_tokens_states_and_texts_equal_transformers() {
    let folder = repository();
    let (vlm, golden) = (open(folder.path(), DType::F32), golden());
    for (name, input, pixels) in cases(&vlm) {
        assert_eq!(input.ids, ids(&golden, &format!("{name}.input_ids")), "{name}");
        let levels = |views: &Views| ((&views.tiles * 127.5).unwrap() + 127.5).unwrap().round().unwrap();
        for (views, stored) in input.images.iter().zip(&pixels) {
            assert_eq!(values(&levels(views)), values(&read(&golden, stored)), "{stored}");
        }
        if name == "base_only" {
            let tiles: Vec<Tensor> = input.images.iter().map(levels).collect();
            assert_eq!(values(&Tensor::cat(&tiles, 0).unwrap()), values(&read(&golden, "base_only.pixels")));
        }
        let (ours, theirs) = (states(&vlm, &input), read(&golden, &format!("{name}.hidden_states")));
        let (layers, stored) = (ours.dim(0).unwrap(), theirs.dim(0).unwrap());
        close(&ours.narrow(0, layers - stored, stored).unwrap(), &theirs, TOLERANCE, name);
        let last = vlm.model.forward(std::slice::from_ref(&input), Keep::None).unwrap().last;
        let logits = vlm.model.language_model().logits(&last).unwrap().get(0).unwrap();
        close(&logits, &read(&golden, &format!("{name}.logits")), TOLERANCE, name);
        let some = vlm.model.next_logits(std::slice::from_ref(&input), &[7, 300, 1]).unwrap();
        let all = values(&logits);
        close(&some, &Tensor::new(&[[all[7], all[300], all[1]]], &Device::Cpu).unwrap(), 1e-6, name);
        let decoding =
            Decoding { max_new_tokens: 8, end_tokens: &[], sampling: Sampling::Greedy, states: true };
        let written = vlm.model.generate(&[input], &decoding, &mut [], |_| Ok(())).unwrap().remove(0);
        assert_eq!(written.ids, ids(&golden, &format!("{name}.generated")), "{name}");
        assert!(!written.ended);
        close(&written.states.unwrap(), &read(&golden, &format!("{name}.last_step")), TOLERANCE, name);
    }
}

#[test]
fn the_chat_template_is_rendered_as_transformers_renders_it() {
    let folder = repository();
    let vlm = open(folder.path(), DType::F32);
    let mut user = Message::text("user", "Which?");
    user.content.splice(0..0, [Part::Image, Part::Image]);
    let chat: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("chat.json")).unwrap()).unwrap();
    let rendered = vlm.prompt(&[Message::text("system", "Be brief."), user]).unwrap();
    assert_eq!(rendered, chat["rendered"].as_str().unwrap());
}

#[test]
fn the_tokenizer_equals_transformers() {
    let folder = repository();
    let tokenizer = open(folder.path(), DType::F32).tokenizer;
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("tokenizer_cases.json")).unwrap()).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 20, "{}", cases.len());
    for case in cases {
        let expected: Vec<u32> =
            case["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), expected, "{}", case["text"]);
    }
    assert_eq!(tokenizer.special_in("a <|im_end|> then <image>").as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.special_in("a <b> image"), None);
}

#[test]
fn cached_steps_equal_a_whole_prompt_and_a_batch_its_samples() {
    let folder = repository();
    let vlm = open(folder.path(), DType::F32);
    let inputs: Vec<Input> = cases(&vlm).into_iter().map(|(_, input, _)| input).collect();
    let language = vlm.model.language_model();
    // A batch with padding gives each sample the bits that it has alone.
    let both = vlm.model.forward(&inputs[..2], Keep::All).unwrap();
    for (i, input) in inputs[..2].iter().enumerate() {
        let alone = vlm.model.forward(std::slice::from_ref(input), Keep::All).unwrap();
        for (batched, alone) in both.hidden_states.iter().zip(&alone.hidden_states) {
            let n = input.ids.len();
            let own = batched.narrow(0, i, 1).unwrap();
            let own = own.narrow(1, own.dim(1).unwrap() - n, n).unwrap();
            assert_eq!(values(&own), values(alone));
        }
        assert_eq!(values(&both.last.get(i).unwrap()), values(&alone.last));
    }
    // All positions at once, against some first and the others one by one.
    let Merged { embeddings, starts } = vlm.model.merge(&inputs[..2]).unwrap();
    let length = embeddings.dim(1).unwrap();
    let mut cache = language.cache(&starts, length + 3).unwrap();
    let first = starts.iter().max().unwrap() + 4;
    let mut steps = Vec::new();
    for (from, count) in std::iter::once((0, first)).chain((first..length).map(|at| (at, 1))) {
        let part = embeddings.narrow(1, from, count).unwrap().contiguous().unwrap();
        steps.push(language.forward(&part, Past::Cache(&mut cache), Keep::All).unwrap().hidden_states);
    }
    assert_eq!(cache.filled(), length);
    for (layer, whole) in both.hidden_states.iter().enumerate() {
        let parts: Vec<&Tensor> = steps.iter().map(|states| &states[layer]).collect();
        close(&Tensor::cat(&parts, 1).unwrap(), whole, 3e-6, &format!("layer {layer}"));
    }
    // Texts too, greedy ones and drawn ones, whatever else is in the batch.
    for sampling in [Sampling::Greedy, Sampling::Drawn { temperature: 1.5, top_p: 0.9 }] {
        let decoding = Decoding { max_new_tokens: 12, end_tokens: &vlm.end_tokens, sampling, states: true };
        let draws = |i: usize| stream(Seed::new(5), "test", i as u64);
        let mut streams: Vec<_> = (0..inputs.len()).map(draws).collect();
        let together = vlm.model.generate(&inputs, &decoding, &mut streams, |_| Ok(())).unwrap();
        for (i, (input, together)) in inputs.iter().zip(&together).enumerate() {
            let alone = vlm
                .model
                .generate(std::slice::from_ref(input), &decoding, &mut [draws(i)], |_| Ok(()))
                .unwrap()
                .remove(0);
            assert_eq!((&alone.ids, alone.ended), (&together.ids, together.ended));
            assert_eq!(values(&alone.states.unwrap()), values(together.states.as_ref().unwrap()));
        }
    }
}

#[test]
fn a_text_ends_at_its_end_token_and_the_states_are_those_before_it() {
    let folder = repository();
    let vlm = open(folder.path(), DType::F32);
    let (_, input, _) = cases(&vlm).remove(0);
    let written = ids(&golden(), "wide.generated");
    let (end, at) = (written[3], written.iter().position(|id| *id == written[3]).unwrap());
    let decoding =
        Decoding { max_new_tokens: 8, end_tokens: &[end], sampling: Sampling::Greedy, states: true };
    let ended =
        vlm.model.generate(std::slice::from_ref(&input), &decoding, &mut [], |_| Ok(())).unwrap().remove(0);
    assert_eq!((ended.ids.as_slice(), ended.ended), (&written[..=at], true));
    // The state at the position that was read last: that of the token before the end.
    let mut longer = input;
    longer.ids.extend(&written[..at]);
    let whole = states(&vlm, &longer);
    let last = whole.narrow(1, whole.dim(1).unwrap() - 1, 1).unwrap().squeeze(1).unwrap();
    close(&ended.states.unwrap(), &last, 3e-6, "last step");
}

#[test]
fn half_precision_stays_near_and_shards_and_other_layouts_read_the_same() {
    let folder = repository();
    let vlm = open(folder.path(), DType::F32);
    let (_, input, _) = cases(&vlm).remove(1);
    let expected = states(&vlm, &input);
    // bf16 has eight bits: two layers of roundings.
    close(&states(&open(folder.path(), DType::BF16), &input), &expected, 4e-2, "bf16");
    let tensors = seeded::tensors(fixture("tensors.json"));
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let (mut map, mut parts) = (serde_json::Map::new(), [(); 2].map(|()| std::collections::HashMap::new()));
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        let renamed = match name.strip_prefix("language_model.") {
            Some("lm_head.weight") => "lm_head.weight".to_owned(),
            Some(rest) => format!("model.language_model.{}", rest.strip_prefix("model.").unwrap()),
            None => format!("model.{name}"),
        };
        map.insert(renamed.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
        parts[i % 2].insert(renamed, tensor);
    }
    for (i, part) in parts.iter().enumerate() {
        let file = folder.path().join(format!("model-0000{}-of-00002.safetensors", i + 1));
        candle_core::safetensors::save(part, file).unwrap();
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_eq!(values(&states(&open(folder.path(), DType::F32), &input)), values(&expected));
}

#[test]
fn logits_may_reuse_the_embeddings() {
    let folder = repository();
    let edit = |tie: bool| {
        let text = std::fs::read_to_string(fixture("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["text_config"]["tie_word_embeddings"] = tie.into();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    };
    let save = |own: bool| {
        let mut tensors = seeded::tensors(fixture("tensors.json"));
        let shared = tensors["language_model.model.embed_tokens.weight"].clone();
        tensors.remove("language_model.lm_head.weight");
        if own {
            tensors.insert("language_model.lm_head.weight".into(), shared);
        }
        let tensors: std::collections::HashMap<String, Tensor> = tensors.into_iter().collect();
        candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    };
    let logits = || {
        let vlm = open(folder.path(), DType::F32);
        let (_, input, _) = cases(&vlm).remove(2);
        let last = vlm.model.forward(&[input], Keep::None).unwrap().last;
        let language = vlm.model.language_model();
        (values(&language.logits(&last).unwrap()), values(&language.logits_of(&last, &[9]).unwrap()))
    };
    save(true);
    let separate = logits();
    save(false);
    edit(true);
    let tied = logits();
    let near = separate.0.iter().zip(&tied.0).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!(near && (tied.1[0] - tied.0[9]).abs() < 1e-4);
    edit(false);
    let message = Vlm::open(folder.path(), DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("lm_head.weight"), "{message}");
}

#[test]
fn every_variable_of_a_trained_model_gets_a_gradient() {
    let config: Config =
        serde_json::from_str(&std::fs::read_to_string(fixture("config.json")).unwrap()).unwrap();
    let folder = repository();
    let vlm = open(folder.path(), DType::F32);
    let trainable = Trainable::new(Seed::new(1));
    let model = LlavaOnevision::new(&config, trainable.builder(&Device::Cpu)).unwrap();
    let inputs: Vec<Input> = cases(&vlm).into_iter().map(|(_, input, _)| input).collect();
    let states = model.forward(&inputs, Keep::None).unwrap();
    let logits = model.language_model().logits(&states.last).unwrap();
    let grads = logits.sin().unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let vars = trainable.vars();
    let stored = seeded::tensors(fixture("tensors.json"));
    let unread = |name: &&String| !name.contains("post_layernorm");
    assert_eq!(vars.keys().collect::<Vec<_>>(), stored.keys().filter(unread).collect::<Vec<_>>());
    for (name, var) in &vars {
        let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
        let size = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        // SigLIP's key biases shift every score of a query alike; Qwen2's are turned by the position first.
        assert!(
            size > 0.0 || name.contains("vision_model") && name.ends_with("k_proj.bias"),
            "{name}: {size}"
        );
        assert!(size.is_finite());
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_way_out() {
    let folder = repository();
    let vlm = open(folder.path(), DType::F32);
    let wide = picture("wide.png");
    for (text, images) in [("<image><image>", 1), ("no place", 1), ("<image>", 0)] {
        let message = vlm.input(text, &vec![wide.clone(); images], Layout::BaseOnly).unwrap_err().to_string();
        assert!(message.contains(&format!("{images} images")) && message.contains("<image>"), "{message}");
    }
    let empty = vlm.input("<image>", &[Image::new(0, 4, vec![])], Layout::Anyres).unwrap_err().to_string();
    assert!(empty.contains("image 1") && empty.contains("0×4"), "{empty}");
    // Slivers are seen, with whatever features they have.
    for (width, height) in [(60, 1), (1, 60)] {
        let sliver = Image::new(width, height, vec![90; 180]);
        let input = vlm.input("<image> a", &[sliver], Layout::Anyres).unwrap();
        vlm.model.forward(&[input], Keep::None).unwrap();
    }
    let input = vlm.input(&"word ".repeat(5000), &[], Layout::Anyres).unwrap();
    let long = vlm.model.generate(&[input], &vlm.greedy(4), &mut [], |_| Ok(())).unwrap_err().to_string();
    assert!(long.contains("max_position_embeddings") && long.contains("4096"), "{long}");
    let refused = |change: &dyn Fn(&Path), parts: &[&str]| {
        let folder = repository();
        change(folder.path());
        let message = Vlm::open(folder.path(), DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    for name in [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        refused(&|folder| std::fs::remove_file(folder.join(name)).unwrap(), &[name]);
    }
    refused(
        &|folder| std::fs::remove_file(folder.join("chat_template.json")).unwrap(),
        &["no chat template"],
    );
    let text_only = r#"{"model_type": "qwen2", "hidden_size": 32}"#;
    refused(
        &|folder| std::fs::write(folder.join("config.json"), text_only).unwrap(),
        &["without vision", "qwen2"],
    );
    refused(
        &|folder| {
            let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
            let other = text.replace("\"image_token_index\": ", "\"image_token_index\": 1");
            std::fs::write(folder.join("config.json"), other).unwrap();
        },
        &["image_token_index", "tokenizer.json"],
    );
}

fn ppd(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ppd"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

#[test]
fn embed_writes_each_user_once_and_says_how_the_text_ended() {
    let folder = repository();
    for name in ["wide.png", "large.png"] {
        std::fs::copy(fixture(name), folder.path().join(name)).unwrap();
    }
    let line = |user: &str, caption: &str| {
        format!(
            r#"{{"user": "{user}", "shots": [{{"caption": "{caption}", "chosen": "wide.png", "rejected": "large.png"}}]}}"#
        )
    };
    let list = folder.path().join("shots.jsonl");
    let write = |lines: &[String]| std::fs::write(&list, lines.join("\n")).unwrap();
    let arguments = [
        "embed",
        "--model",
        ".",
        "--examples",
        "shots.jsonl",
        "--out",
        "users.safetensors",
        "--max-new-tokens",
        "5",
    ];
    let embed = |code, more: &[&str]| ppd(folder.path(), code, &[&arguments[..], more].concat());
    write(&[line("ann", "a cat"), line("bob", "a dog")]);
    let said = embed(0, &[]);
    assert!(said.contains("2 made, 0 there before"), "{said}");
    let file = Weights::open(folder.path().join("users.safetensors")).unwrap();
    assert_eq!(file.names(), ["ann", "bob"]);
    let metadata = file.metadata().clone();
    assert_eq!(metadata["end.ann"], "stopped at the limit of 5 tokens");
    assert!(
        metadata["embedding"].contains(r#""layout":"base-only""#)
            && metadata["prompt_digest.ann"].len() == 64
    );
    // The same through the library.
    let vlm = open(folder.path(), DType::F32);
    let prompt = ppd::embed::prompt(&vlm, &Template::default(), &["a cat"]).unwrap();
    assert!(prompt.starts_with("<|im_start|>system \nYou are a helpful assistant.<|im_end|>"), "{prompt}");
    let input = vlm.input(&prompt, &[picture("wide.png"), picture("large.png")], Layout::BaseOnly).unwrap();
    let decoding = Decoding { states: true, ..vlm.greedy(5) };
    let written = vlm.model.generate(&[input], &decoding, &mut [], |_| Ok(())).unwrap().remove(0);
    assert_eq!(values(&read(&file, "ann")), values(written.states.as_ref().unwrap()));
    assert_eq!(metadata["text.ann"], vlm.tokenizer.decode(&written.ids, false).unwrap());
    // Again: nothing is made twice, what changed is made anew, and who is new comes too.
    assert!(embed(0, &[]).contains("0 made, 2 there before"));
    write(&[line("ann", "a cat"), line("bob", "a red dog"), line("eve", "a cat")]);
    assert!(embed(0, &[]).contains("2 made, 1 there before"));
    let again = Weights::open(folder.path().join("users.safetensors")).unwrap();
    assert_eq!(again.metadata()["prompt_digest.ann"], metadata["prompt_digest.ann"]);
    assert_ne!(again.metadata()["prompt_digest.bob"], metadata["prompt_digest.bob"]);
    assert_eq!(values(&read(&again, "ann")), values(&read(&again, "eve")));
    assert!(embed(0, &["--layout", "anyres"]).contains("3 made, 0 there before"));
    // Drawn instead: by the seed alone, and at no temperature to speak of the likeliest.
    let drawn = |temperature: &str, seed: &str| {
        embed(0, &["--temperature", temperature, "--top-p", "0.9", "--seed", seed]);
        let file = Weights::open(folder.path().join("users.safetensors")).unwrap();
        let metadata = file.metadata().clone();
        assert!(metadata["embedding"].contains(r#""top_p":0.9"#), "{metadata:?}");
        ["ann", "eve", "bob"].map(|user| metadata[&format!("text.{user}")].clone())
    };
    let hot = drawn("1.5", "1");
    assert_eq!(drawn("1.5", "1"), hot);
    assert_eq!(hot[0], hot[1], "the same prompt has the same draws");
    assert_ne!(drawn("1.5", "2"), hot);
    assert_eq!(drawn("0.0001", "1")[0], metadata["text.ann"]);
    assert!(embed(2, &["--top-p", "0.5"]).contains("--temperature"));
    assert!(embed(1, &["--temperature", "0"]).contains("above 0"));
    // Faults.
    write(&[line("ann", "a cat"), line("ann", "a dog")]);
    let said = embed(1, &[]);
    assert!(said.contains("line 2") && said.contains("ann"), "{said}");
    write(&[line("ann", "a cat")]);
    let said = embed(2, &[]);
    assert!(said.contains("bob") && said.contains("--out"), "{said}");
    write(&[line("ann", "see <image> here"), line("bob", "a"), line("eve", "a")]);
    let said = embed(1, &[]);
    assert!(said.contains("line 1") && said.contains("<image>"), "{said}");
    std::fs::write(folder.path().join("words.txt"), "{pair}\n{mood} <image><image>\n{/pair}\n").unwrap();
    let said = embed(1, &["--prompt-template", "words.txt"]);
    assert!(said.contains("words.txt") && said.contains("{mood}"), "{said}");
}
