//! The paper's path through the real binary: files from a hub on loopback, pairs encoded and relabelled, every method
//! trained, images sampled, decoded and scored, and the table; on tiny models in the published layouts.

use std::path::{Path, PathBuf};
use std::process::Command;

use ppd::data::Preference;
use ppd::data::pick_a_pic::Writer;
use ppd::image::{self, Format};
use ppd::pixels::Image;

use crate::local_hub::LocalHub;
use crate::{decoder, llava_onevision, pipeline, seeded};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
/// Pairs of the data set, in two files.
const PAIRS: usize = 14;
/// The pair of which a picture cannot be decoded.
const BROKEN: usize = 7;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

/// Pairs of Pick-a-Pic's schema, of pictures of several sizes in both formats.
fn pairs(path: &Path, numbers: std::ops::Range<usize>) {
    let picture = |number: usize, side: usize| {
        let (width, height) = (90 + 7 * (number % 3), 100 + 5 * side);
        let pixel = |i: usize| {
            let (x, y) = (i % width, i / width);
            [(x * (number + 1) % 256) as u8, (y * (side + 2) % 256) as u8, ((x + y) * 3 % 256) as u8]
        };
        let image = Image::new(width, height, (0..width * height).flat_map(pixel).collect());
        image::encode(&image, if number.is_multiple_of(2) { Format::Jpeg(90) } else { Format::Png }).unwrap()
    };
    let rows: Vec<Preference> = numbers
        .map(|number| Preference {
            caption: format!("a picture, number {}", number % 5),
            images: Some([
                picture(number, 0),
                if number == BROKEN { b"torn".to_vec() } else { picture(number, 1) },
            ]),
            label: Some(if number % 3 == 0 { [0.0, 1.0] } else { [1.0, 0.0] }),
            user_id: Some(number as i64 % 4),
            ranking_id: Some(number as i64),
            ..Preference::default()
        })
        .collect();
    let mut writer = Writer::create(path).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
}

/// Publishes a folder's files.
pub fn publish(hub: &LocalHub, repository: &str, root: &Path) {
    let entries = walkdir::WalkDir::new(root).sort_by_file_name().into_iter().map(Result::unwrap);
    let files: Vec<(String, Vec<u8>)> = entries
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let name = entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    hub.publish(repository, &files);
}

/// A hub with everything that the profile names but the pairs.
pub fn hub(scratch: &Path) -> LocalHub {
    let hub = LocalHub::start();
    let publish = |repository: &str, root: &Path| publish(&hub, repository, root);
    let folder = |name: &str| {
        let folder = scratch.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    let root = folder("prior");
    pipeline::repository(&root);
    publish("models/stabilityai/stable-cascade-prior", &root);

    let root = folder("decoder");
    decoder::repository(&root);
    seeded::write(fixture("decoder/effnet_encoder/tensors.json"), root.join("effnet_encoder.safetensors"));
    publish("models/stabilityai/stable-cascade", &root);

    let reward = |layout: &str, weights: &str, others: &[&str]| {
        let root = folder(layout);
        let from = fixture("rewards").join(layout);
        seeded::write(from.join("tensors.json"), root.join(weights));
        for other in others {
            std::fs::copy(from.join(other), root.join(other)).unwrap();
        }
        root
    };
    let root = reward("open_clip", "open_clip_model.safetensors", &["open_clip_config.json"]);
    std::fs::copy(fixture("clip/tokenizer.json"), root.join("tokenizer.json")).unwrap();
    publish("models/laion/CLIP-ViT-H-14-laion2B-s32B-b79K", &root);
    // HPS v2.1 has the architecture of the CLIP that it was tuned from.
    let weights = std::fs::read(root.join("open_clip_model.safetensors")).unwrap();
    hub.publish("models/xswu/HPSv2", &[("HPS_v2.1_compressed.safetensors", &weights)]);
    let root = reward("hugging_face", "model.safetensors", &["config.json", "preprocessor_config.json"]);
    publish("models/openai/clip-vit-large-patch14", &root);
    let root = reward("aesthetic", "sac+logos+ava1-l14-linearMSE.safetensors", &[]);
    publish("models/christophschuhmann/improved-aesthetic-predictor", &root);

    let vlm = llava_onevision::repository();
    std::fs::write(vlm.path().join("merges.txt"), "#version: 0.2\n").unwrap();
    publish("models/llava-hf/llava-onevision-qwen2-7b-ov-hf", vlm.path());
    let table = "Prompt\tCategory\tChallenge\tNote\na red square on a wooden table\tArts\tBasic\t\nOil painting of a \
                 dog, 8k\tAnimals\tBasic\t\n";
    hub.publish("datasets/google-research/parti", &[("prompts.tsv", table.as_bytes())]);
    hub
}

/// A folder to run in, with the hub's address in the environment.
pub struct Run<'a> {
    pub root: &'a Path,
    pub hub: &'a LocalHub,
}

impl Run<'_> {
    pub fn ppd(&self, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_ppd"))
            .current_dir(self.root)
            .args(arguments)
            .args(["--profile", "paper-tiny.toml", "--device", "cpu"])
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_CACHE")
            .envs(self.hub.environment(&self.root.join("home")))
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }
}

/// Every row of a run's records, without the clock's columns.
fn rows(root: &Path) -> Vec<String> {
    let files =
        walkdir::WalkDir::new(root.join("results")).sort_by_file_name().into_iter().map(Result::unwrap);
    let files = files.filter(|entry| entry.file_name() == "rows.csv");
    files.map(|entry| std::fs::read_to_string(entry.path()).unwrap()).collect()
}

#[test]
fn the_papers_study_runs_from_the_hub_to_the_table() {
    let scratch = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let hub = hub(scratch.path());
    let data = scratch.path().join("pairs");
    std::fs::create_dir_all(data.join("data")).unwrap();
    pairs(&data.join("data/train-00000-of-00002.parquet"), 0..9);
    pairs(&data.join("data/train-00001-of-00002.parquet"), 9..PAIRS);
    publish(&hub, "datasets/liuhuohuo2/pick-a-pic-v2", &data);
    let run = Run { root: root.path(), hub: &hub };
    std::fs::create_dir(root.path().join("experiments")).unwrap();
    std::fs::copy(fixture("paper_tiny/paper-tiny.toml"), root.path().join("paper-tiny.toml")).unwrap();
    let study = ["reproduce", "table1", "--set", "claims=[]"];

    // Before anything is fetched a dry run says what is wanting, and a run is refused.
    let (code, out, err) = run.ppd(&[&study[..], &["--dry-run"]].concat(), &[]);
    assert_eq!(code, 0, "{err}");
    for part in ["denoiser", "ppd fetch --profile", "clip 31.97", "time unknown"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, _, err) = run.ppd(&study, &[]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("ppd fetch") && err.contains("decoder"), "{err}");

    let (code, _, err) = run.ppd(&["fetch"], &[]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("stable-cascade-nc-community"), "the licence is shown: {err}");
    let offline = [("HF_HUB_OFFLINE", "1")];
    let (code, out, err) = run.ppd(&[&study[..], &["--dry-run"]].concat(), &offline);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("by a probe of a few steps") && !out.contains("wanting"), "{out}");

    let (code, out, err) = run.ppd(&study, &offline);
    assert_eq!(code, 0, "{out}\n{err}");
    assert!(err.contains("1 of 14 pairs have a picture that cannot be decoded"), "none is silent: {err}");
    let first = rows(root.path());
    // The base, with a second noise, five models without users, two with three: on two prompts each.
    let count: usize = first.iter().map(|rows| rows.lines().count() - 1).sum();
    assert_eq!(count, (2 + 5 + 2 * 3) * 2);
    for what in ["latents", "text-states", "scores", "reference", "adapters"] {
        assert!(root.path().join("cache").join(what).is_dir(), "{what} is kept");
    }
    let table = walkdir::WalkDir::new(root.path().join("figures"))
        .into_iter()
        .map(Result::unwrap)
        .find(|entry| entry.file_name() == "table1.md")
        .expect("the table was rendered");
    let table = std::fs::read_to_string(table.path()).unwrap();
    assert!(table.contains("PPD") && table.contains("32.66"), "ours beside the paper's: {table}");

    // Again: nothing is left to do. From empty folders: the same rows.
    let (code, out, err) = run.ppd(&study, &offline);
    assert!(code == 0 && (out + &err).contains("nothing to do"), "{err}");
    std::fs::remove_dir_all(root.path().join("results")).unwrap();
    std::fs::remove_dir_all(root.path().join("cache")).unwrap();
    let (code, _, err) = run.ppd(&study, &offline);
    assert_eq!(code, 0, "{err}");
    assert!(rows(root.path()) == first, "the same plan twice gives the same rows");

    // A file that changed since it was fetched is refused.
    let changed = walkdir::WalkDir::new(root.path().join("home"))
        .into_iter()
        .map(Result::unwrap)
        .find(|entry| entry.file_name() == "effnet_encoder.safetensors")
        .unwrap();
    let path = std::fs::canonicalize(changed.path()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (code, _, err) = run.ppd(&study, &offline);
    assert!(code != 0 && err.contains("effnet_encoder.safetensors"), "{err}");
}
