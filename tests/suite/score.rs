//! `ppd score --reward` through the real binary on tiny checkpoints, against the reference implementations' own scores
//! (tests/reference/golden_rewards.py); and what is refused on the way there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use candle_core::{DType, Device};
use ppd::models::tokenizer::Tokenizer;
use ppd::pixels::{Filter, Image};
use ppd::reward::Published;
use ppd::units::Digest;
use ppd::weights::Weights;

use super::seeded;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn fixture(name: &str) -> PathBuf {
    fixtures().join("rewards").join(name)
}

fn json<T: serde::de::DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Runs the program in `folder`; its exit code, standard output and standard error.
fn ppd(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ppd"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints UTF-8");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Checkpoints in their layouts, and the pictures.
fn checkpoints() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let layouts = [
        ("open_clip", "open_clip_model.safetensors", vec!["open_clip_config.json"]),
        ("hugging_face", "model.safetensors", vec!["config.json", "preprocessor_config.json"]),
        ("aesthetic", "sac+logos+ava1-l14-linearMSE.safetensors", vec![]),
        ("image_reward", "ImageReward.safetensors", vec!["med_config.json", "vocab.txt"]),
    ];
    for (layout, weights, others) in layouts {
        let folder = root.path().join(layout);
        std::fs::create_dir(&folder).unwrap();
        seeded::write(fixture(layout).join("tensors.json"), folder.join(weights));
        for other in others {
            std::fs::copy(fixture(layout).join(other), folder.join(other)).unwrap();
        }
        if layout.ends_with("clip") || layout.starts_with("hugging") {
            std::fs::copy(fixtures().join("clip/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
        }
    }
    std::fs::create_dir(root.path().join("pictures")).unwrap();
    for name in ["tall.png", "grey.png", "clear.png", "palette.png"] {
        std::fs::copy(fixture("pictures").join(name), root.path().join("pictures").join(name)).unwrap();
    }
    std::fs::copy(fixture("pairs.csv"), root.path().join("pairs.csv")).unwrap();
    root
}

/// The rows of a table of scores.
fn rows(table: &str) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_reader(table.as_bytes()).deserialize().map(|row| row.unwrap()).collect()
}

#[test]
fn every_public_reward_gives_its_references_scores() {
    let root = checkpoints();
    let expected: BTreeMap<String, Vec<f64>> = json(fixture("scores.json"));
    let given = rows(&std::fs::read_to_string(fixture("pairs.csv")).unwrap());
    let mut seen = 0;
    for (name, weights, backbone, tolerance) in [
        // Cosines of unit vectors in single precision, times a hundred: 1e-5 of the scale.
        ("clip", "open_clip", None, 1e-4),
        ("hps-v2.1", "open_clip/open_clip_model.safetensors", None, 1e-4),
        ("pick-score", "hugging_face", None, 1e-4),
        ("aesthetic", "aesthetic", Some("hugging_face"), 1e-5),
        ("image-reward", "image_reward", None, 1e-5),
    ] {
        let mut arguments = vec!["score", "--reward", name, "--weights", weights, "--pairs", "pairs.csv"];
        arguments.extend(["--out", "scores.csv", "--device", "cpu"]);
        arguments.extend(backbone.into_iter().flat_map(|path| ["--backbone", path]));
        let (code, out, err) = ppd(root.path(), &arguments);
        assert_eq!((code, &*out), (0, ""), "{name}: {err}");
        let table = rows(&std::fs::read_to_string(root.path().join("scores.csv")).unwrap());
        assert_eq!(table.len(), given.len());
        for ((row, given), expected) in table.iter().zip(&given).zip(&expected[name]) {
            assert_eq!((&row["image"], &row["prompt"]), (&given["image"], &given["prompt"]));
            assert_eq!(row["reward"], name);
            assert_eq!(row["version"], Published::of(name).unwrap().version());
            let score: f64 = row["score"].parse().unwrap();
            assert!((score - expected).abs() < tolerance, "{name}: {score} for {expected}");
            seen += 1;
        }
        // What is cut is said, with its row; the aesthetic score reads no prompt.
        let said = err.contains("row 3 (pictures/clear.png): the prompt has");
        assert_eq!(said, name != "aesthetic", "{name}: {err}");
        assert!(!err.contains("row 1 "), "{err}");
    }
    assert_eq!(seen, 25);
    let left: Vec<String> = std::fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("partial"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_checkpoint_in_several_files_gives_the_same_scores_as_in_one() {
    let root = checkpoints();
    let scores = |arguments: &[&str]| {
        let common = ["--pairs", "pairs.csv", "--out", "scores.csv", "--device", "cpu"];
        let (code, _, err) = ppd(root.path(), &[&["score"], arguments, &common].concat());
        assert_eq!(code, 0, "{err}");
        std::fs::read_to_string(root.path().join("scores.csv")).unwrap()
    };
    let pick_score = ["--reward", "pick-score", "--weights", "hugging_face"];
    let aesthetic = ["--reward", "aesthetic", "--weights", "aesthetic", "--backbone", "hugging_face"];
    let before = [scores(&pick_score), scores(&aesthetic)];
    // The same tensors in two files, with an index.
    let folder = root.path().join("hugging_face");
    let whole = Weights::open(folder.join("model.safetensors")).unwrap();
    let names: Vec<String> = whole.names().into_iter().map(str::to_owned).collect();
    let mut map = serde_json::Map::new();
    for (number, part) in names.chunks(names.len() / 2 + 1).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", number + 1);
        let read = |name: &String| (name.clone(), whole.read(name, DType::F32, &Device::Cpu).unwrap());
        let tensors: BTreeMap<_, _> = part.iter().map(read).collect();
        ppd::weights::save(folder.join(&file), &tensors, DType::F32, &BTreeMap::new()).unwrap();
        map.extend(part.iter().map(|name| (name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert_eq!([scores(&pick_score), scores(&aesthetic)], before);
    // A part that is not there is named.
    std::fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let arguments = ["score", "--reward", "pick-score", "--weights", "hugging_face", "--pairs", "pairs.csv"];
    let (code, _, err) = ppd(root.path(), &[&arguments[..], &["--out", "none.csv"]].concat());
    assert!(code == 1 && err.contains("model-00002-of-00002.safetensors"), "{err}");
    assert!(!root.path().join("none.csv").exists());
}

#[test]
fn a_folder_is_scored_in_the_order_of_its_names() {
    let root = checkpoints();
    std::fs::write(root.path().join("prompts.txt"), "cat\ngrey\npalette\ntall\n").unwrap();
    let arguments = [
        "score",
        "--reward",
        "clip",
        "--weights",
        "open_clip",
        "--images",
        "pictures",
        "--prompts",
        "prompts.txt",
    ];
    let (code, out, err) = ppd(root.path(), &arguments);
    assert_eq!(code, 0, "{err}");
    let table = rows(&out);
    let images: Vec<&str> = table.iter().map(|row| &*row["image"]).collect();
    assert_eq!(images, ["clear.png", "grey.png", "palette.png", "tall.png"]);
    assert_eq!(table[3]["prompt"], "tall");
}

#[test]
fn what_cannot_be_read_is_named_by_row_or_left_out_and_counted() {
    let root = checkpoints();
    std::fs::write(root.path().join("pictures/empty.png"), "").unwrap();
    let whole = std::fs::read(root.path().join("pictures/palette.png")).unwrap();
    std::fs::write(root.path().join("pictures/cut.png"), &whole[..whole.len() / 2]).unwrap();
    let list = "image,prompt\npictures/tall.png,a\npictures/empty.png,b\npictures/cut.png,c\nabsent.png,d\n";
    std::fs::write(root.path().join("list.csv"), list).unwrap();
    let score = |more: &[&str]| {
        let arguments =
            ["score", "--reward", "clip", "--weights", "open_clip", "--pairs", "list.csv", "--out", "s.csv"];
        ppd(root.path(), &[&arguments[..], more].concat())
    };
    let (code, _, err) = score(&[]);
    assert_eq!(code, 1);
    assert!(err.contains("list.csv") && err.contains("row 4") && err.contains("absent.png"), "{err}");
    std::fs::write(root.path().join("list.csv"), &list[..list.len() - "absent.png,d\n".len()]).unwrap();
    let (code, _, err) = score(&[]);
    assert_eq!(code, 1);
    assert!(err.contains("row 2") && err.contains("empty.png") && err.contains("0 bytes"), "{err}");
    assert!(!root.path().join("s.csv").exists(), "nothing partial is left");
    std::fs::write(root.path().join("list.csv"), list).unwrap();
    let (code, _, err) = score(&["--skip-unreadable"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("row 3 left out") && err.contains("3 of 4 pictures"), "{err}");
    assert_eq!(rows(&std::fs::read_to_string(root.path().join("s.csv")).unwrap()).len(), 1);
}

#[test]
fn pictures_of_odd_kinds_are_scored_or_refused_with_the_reason() {
    let root = checkpoints();
    let (odd, frames) = (root.path().join("odd"), [[9u8; 27], [90; 27]]);
    std::fs::create_dir(&odd).unwrap();
    // Ink, sixteen bits of colour, and opacity of sixteen bits are pictures to Pillow too.
    let known: BTreeMap<String, serde_json::Value> = json(fixture("pictures/pillow.json"));
    for (case, file) in
        [("jpeg ink False", "a-ink.jpg"), ("png rgb 16", "b-wide.png"), ("png rgba 16", "c-opacity.png")]
    {
        let bytes = base64::engine::general_purpose::STANDARD.decode(known[case]["bytes"].as_str().unwrap());
        std::fs::write(odd.join(file), bytes.unwrap()).unwrap();
    }
    let mut animation = png::Encoder::new(std::fs::File::create(odd.join("d-animation.png")).unwrap(), 3, 3);
    animation.set_color(png::ColorType::Rgb);
    animation.set_animated(2, 0).unwrap();
    let mut animation = animation.write_header().unwrap();
    frames.iter().for_each(|frame| animation.write_image_data(frame).unwrap());
    animation.finish().unwrap();
    std::fs::write(odd.join("e-animation.gif"), b"GIF89a\x03\0\x03\0\0\0\0\x3b").unwrap();
    let mut grey = png::Encoder::new(std::fs::File::create(odd.join("f-grey.png")).unwrap(), 3, 3);
    grey.set_color(png::ColorType::Grayscale);
    grey.set_depth(png::BitDepth::Sixteen);
    grey.write_header().unwrap().write_image_data(&[0x12; 18]).unwrap();
    std::fs::write(odd.join("g-nothing.jpg"), b"").unwrap();
    let ink = std::fs::read(odd.join("a-ink.jpg")).unwrap();
    std::fs::write(odd.join("h-cut.jpg"), &ink[..ink.len() * 3 / 4]).unwrap();
    std::fs::write(root.path().join("prompts.txt"), "a red circle\n".repeat(8)).unwrap();
    let arguments = ["score", "--reward", "clip", "--weights", "open_clip", "--images", "odd"];
    let more = ["--prompts", "prompts.txt", "--out", "s.csv", "--device", "cpu", "--skip-unreadable"];
    let (code, _, err) = ppd(root.path(), &[&arguments[..], &more].concat());
    assert_eq!(code, 0, "{err}");
    let table = rows(&std::fs::read_to_string(root.path().join("s.csv")).unwrap());
    let scored: Vec<&str> = table.iter().map(|row| &*row["image"]).collect();
    assert_eq!(scored, ["a-ink.jpg", "b-wide.png", "c-opacity.png"]);
    for (row, file, reason) in [
        (4, "d-animation.png", "animated"),
        (5, "e-animation.gif", "got Gif"),
        (6, "f-grey.png", "16-bit grey"),
        (7, "g-nothing.jpg", "0 bytes"),
        (8, "h-cut.jpg", "cut short"),
    ] {
        let line = err.lines().find(|line| line.contains(&format!("row {row} left out")));
        assert!(line.is_some_and(|line| line.contains(file) && line.contains(reason)), "{file}: {err}");
    }
    assert!(err.contains("5 of 8 pictures"), "{err}");
}

#[test]
fn a_command_that_lacks_something_says_what() {
    let root = checkpoints();
    let at = |path: &str| root.path().join(path);
    std::fs::rename(at("image_reward/vocab.txt"), at("vocab.txt")).unwrap();
    std::fs::copy(at("open_clip/open_clip_model.safetensors"), at("HPS_v2.1_compressed.safetensors"))
        .unwrap();
    for (arguments, code, parts) in [
        (vec!["clip", "--pairs", "pairs.csv"], 1, vec!["ppd fetch --profile paper --only clip"]),
        (vec!["hps"], 2, vec!["hps-v2.0", "hps-v2.1"]),
        (vec!["clip", "--weights", "open_clip", "--images", "pictures"], 2, vec!["--prompts"]),
        (vec!["clip", "--weights", "open_clip"], 2, vec!["--pairs", "--images"]),
        (
            vec!["aesthetic", "--weights", "aesthetic", "--pairs", "pairs.csv"],
            2,
            vec!["--backbone", "ViT-L/14"],
        ),
        (vec!["clip", "--weights", "absent", "--pairs", "pairs.csv"], 1, vec!["absent"]),
        (vec!["clip", "--weights", "aesthetic", "--pairs", "pairs.csv"], 1, vec!["is no CLIP"]),
        (
            vec!["image-reward", "--weights", "image_reward", "--pairs", "pairs.csv"],
            1,
            vec!["vocab.txt", "--backbone"],
        ),
        (
            vec!["hps-v2.0", "--weights", "HPS_v2.1_compressed.safetensors", "--pairs", "pairs.csv"],
            1,
            vec!["another scale", "--reward hps-v2.1"],
        ),
        (
            vec!["clip", "--weights", "open_clip", "--pairs", "pairs.csv", "--out", "no/s.csv"],
            2,
            vec!["no/s.csv"],
        ),
    ] {
        let (got, _, err) = ppd(root.path(), &[&["score", "--reward"][..], &arguments].concat());
        assert_eq!(got, code, "{arguments:?}: {err}");
        for part in parts {
            assert!(err.contains(part), "{arguments:?}: {err}");
        }
    }
    // A tokenizer may be lent.
    std::fs::create_dir(at("bert")).unwrap();
    std::fs::rename(at("vocab.txt"), at("bert/vocab.txt")).unwrap();
    let lent = ["--weights", "image_reward", "--backbone", "bert", "--pairs", "pairs.csv"];
    let (code, _, err) = ppd(root.path(), &[&["score", "--reward", "image-reward"][..], &lent].concat());
    assert_eq!(code, 0, "{err}");
}

#[test]
fn pictures_are_resized_to_the_byte_as_by_pillow() {
    type Case = (usize, usize, usize, usize, String, String);
    let cases: Vec<Case> = json(fixture("resizes.json"));
    assert_eq!(cases.len(), 18);
    for (height, width, to_height, to_width, filter, digest) in cases {
        let drawn = seeded::tensor(&format!("{height}x{width}"), &[height * width * 3], 1.0, 0.0);
        let bytes = drawn.to_vec1::<f32>().unwrap().into_iter().map(|x| ((x + 1.0) * 128.0) as u8).collect();
        let kind = match &*filter {
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            _ => Filter::Lanczos,
        };
        let resized = Image::new(width, height, bytes).resized(to_width, to_height, kind).unwrap();
        let ours = Digest::of(resized.rgb());
        assert_eq!(ours.hex(), digest, "{width}×{height} to {to_width}×{to_height}, {filter}");
    }
}

#[test]
fn a_nested_state_dict_is_read_from_a_pickle_whatever_its_strides() {
    let file = Weights::open(fixture("pickles/nested.pt")).unwrap();
    assert_eq!(file.names(), ["brain", "count", "half", "part", "plain", "turned", "weight"]);
    let read = |name: &str| {
        let tensor = file.read(name, DType::F32, &Device::Cpu).unwrap();
        (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    let counted: Vec<f32> = (0..12).map(|i| i as f32).collect();
    for name in ["plain", "half", "brain"] {
        assert_eq!(read(name), (vec![3, 4], counted.clone()), "{name}");
    }
    let turned: Vec<f32> = (0..12).map(|i| (i % 3 * 4 + i / 3) as f32).collect();
    assert_eq!(read("turned"), (vec![4, 3], turned));
    assert_eq!(read("part"), (vec![2, 2], vec![6.0, 7.0, 10.0, 11.0]));
    assert_eq!(read("count"), (vec![], vec![7.0]));
    assert_eq!(read("weight").1[11], 22.0);
}

#[test]
fn pickles_in_several_files_are_read_by_their_index() {
    let root = tempfile::tempdir().unwrap();
    let part = root.path().join("pytorch_model-00001-of-00001.bin");
    std::fs::copy(fixture("pickles/nested.pt"), &part).unwrap();
    let whole = Weights::open(&part).unwrap();
    let index = |name: &str| {
        let map: BTreeMap<&str, &str> = whole.names().into_iter().map(|tensor| (tensor, name)).collect();
        let path = root.path().join("pytorch_model.bin.index.json");
        std::fs::write(&path, serde_json::json!({"weight_map": map}).to_string()).unwrap();
        Weights::open(path)
    };
    let read = |weights: &Weights, name: &str| {
        let tensor = weights.read(name, DType::F32, &Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let opened = index("pytorch_model-00001-of-00001.bin").unwrap();
    assert_eq!(opened.names(), whole.names());
    for name in whole.names() {
        assert_eq!(read(&opened, name), read(&whole, name));
    }
    for (name, part) in
        [("pytorch_model-00002-of-00002.bin", "00002-of-00002"), ("../x.bin", "beside the index")]
    {
        let message = index(name).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_pickle_with_code_or_damage_is_refused_and_nothing_is_run() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model.pt");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let opened = Weights::open(&path)?;
        opened.names().into_iter().try_for_each(|name| opened.read(name, DType::F32, &Device::Cpu).map(drop))
    };
    let message = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
    let bytes = |name: &str| std::fs::read(fixture("pickles").join(name)).unwrap();
    let text = message(&bytes("code.pt"));
    assert!(text.contains("model.pt") && text.contains("posix.system") && text.contains("refused"), "{text}");
    let text = message(&bytes("bare.pt"));
    assert!(text.contains("bare pickle") && text.contains("code"), "{text}");
    let whole = bytes("nested.pt");
    open(&whole).unwrap();
    for length in [0, 100, whole.len() / 2, whole.len() - 1] {
        assert!(message(&whole[..length]).contains("model.pt"));
    }
    // Flipped anywhere, a bit never leads to a crash; in the pickle or in a tensor's bytes it is noticed.
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        let _ = open(&flipped);
    }
    let find = |part: &[u8]| whole.windows(part.len()).position(|window| window == part).unwrap();
    let eleven: Vec<u8> = [10f32, 11.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    for (at, part) in [(find(b"state_dict"), "checksum"), (find(&eleven), "checksum")] {
        let mut flipped = whole.clone();
        flipped[at + 1] ^= 1;
        let text = message(&flipped);
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn older_vocabulary_files_make_the_same_tokenizer() {
    let text = std::fs::read_to_string(fixtures().join("clip/tokenizer.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pair = |merge: &serde_json::Value| match merge.as_array() {
        Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        None => merge.as_str().unwrap().to_owned(),
    };
    let merges: Vec<String> = file["model"]["merges"].as_array().unwrap().iter().map(pair).collect();
    // In vocab.json the two special tokens stand with the others.
    let mut vocab = file["model"]["vocab"].clone();
    for token in file["added_tokens"].as_array().unwrap() {
        vocab[token["content"].as_str().unwrap()] = token["id"].clone();
    }
    let old = Tokenizer::clip(&vocab.to_string(), &format!("#version: 0.2\n{}\n", merges.join("\n")), 77, 0)
        .unwrap();
    let new = Tokenizer::from_json(text.as_bytes(), 77, 0).unwrap();
    let cases: serde_json::Value = json(fixtures().join("clip/cases.json"));
    for case in cases["cases"].as_array().unwrap() {
        let text = [case["text"].as_str().unwrap()];
        assert_eq!(old.encode(&text).unwrap(), new.encode(&text).unwrap(), "{text:?}");
    }
    assert!(Tokenizer::clip("{}", "", 77, 0).unwrap_err().to_string().contains("<|startoftext|>"));
    assert!(Tokenizer::bert("[PAD]\n", 35, 0).unwrap_err().to_string().contains("[UNK]"));
}
