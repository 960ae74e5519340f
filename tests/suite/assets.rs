//! What the project ships: each model belongs to its manifest and to the recipe in the code, opens, and is small.

use std::path::{Path, PathBuf};

use ppd::base::{Base, open_codec};
use ppd::evaluate::open_reward;
use ppd::pretrain::Manifest;
use ppd::pretrain::aesthetic::AestheticConfig;
use ppd::pretrain::clip::ClipConfig;
use ppd::pretrain::codec::{CodecConfig, DecoderConfig};
use ppd::pretrain::denoiser::DenoiserConfig;
use ppd::pretrain::hps::HpsConfig;
use ppd::pretrain::vlm::VlmConfig;
use ppd::vlm::Vlm;
use serde_json::{Value, json, to_value};

fn desk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/desk")
}

/// The recipe that `ppd pretrain` follows for the model in this folder.
fn recipe(name: &str, manifest: &Manifest) -> Value {
    match name {
        // Until it has a decoder of its own, a codec is what its own training left.
        "codec" if manifest.recipe.get("decoder").is_none() => to_value(CodecConfig::desk()).unwrap(),
        "codec" => json!({ "codec": CodecConfig::desk(), "decoder": DecoderConfig::desk() }),
        "denoiser" => to_value(DenoiserConfig::desk().unwrap()).unwrap(),
        "clip" => to_value(ClipConfig::reward()).unwrap(),
        "clip-twin" => to_value(ClipConfig::twin()).unwrap(),
        "aesthetic" => to_value(AestheticConfig::reward()).unwrap(),
        "aesthetic-twin" => to_value(AestheticConfig::twin()).unwrap(),
        "hps" => to_value(HpsConfig::reward()).unwrap(),
        "hps-twin" => to_value(HpsConfig::twin()).unwrap(),
        "vlm" => to_value(VlmConfig::embedder()).unwrap(),
        "vlm-judge" => to_value(VlmConfig::judge()).unwrap(),
        // These two are not shipped; whoever ran the ablation has them.
        "vlm-pictures" => to_value(VlmConfig::pictures()).unwrap(),
        "vlm-untrained" => to_value(VlmConfig::untrained()).unwrap(),
        other => panic!("assets/desk/{other} is no model that `ppd pretrain` makes"),
    }
}

fn models() -> Vec<(String, PathBuf)> {
    let folders = std::fs::read_dir(desk()).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<(String, PathBuf)> = folders
        .filter(|path| path.is_dir())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    models.sort();
    assert!(models.iter().any(|(name, _)| name == "denoiser"));
    models
}

#[test]
fn every_model_belongs_to_its_manifest_and_to_its_recipe() {
    for (name, folder) in models() {
        let manifest = Manifest::read_checked(&folder).unwrap();
        assert_eq!(
            manifest.recipe,
            recipe(&name, &manifest),
            "{name}: made by another recipe than the code's"
        );
        let optimisation = &manifest.recipe.get("decoder").unwrap_or(&manifest.recipe)["optimisation"];
        let planned = optimisation["steps"].as_u64().unwrap();
        // A base model that is stopped early is a model too, and its manifest says after how many steps.
        let done = manifest.steps as u64;
        assert!(
            done == planned || (name == "denoiser" && done < planned),
            "{name}: {done} of {planned} steps"
        );
    }
}

#[test]
fn every_model_opens() {
    for (name, folder) in models() {
        match name.as_str() {
            "codec" => {
                drop(open_codec(&folder.join("codec.safetensors"), &candle_core::Device::Cpu).unwrap())
            }
            "denoiser" => {
                let codec = folder.with_file_name("codec").join("codec.safetensors");
                Base::open_desk(
                    &folder.join("prior.safetensors"),
                    &codec,
                    candle_core::DType::F32,
                    &candle_core::Device::Cpu,
                    None,
                )
                .unwrap();
            }
            "vlm" | "vlm-judge" | "vlm-pictures" | "vlm-untrained" => {
                drop(Vlm::open(&folder, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())
            }
            _ => drop(open_reward(&folder.join("model.safetensors"), &candle_core::Device::Cpu).unwrap()),
        }
    }
}

#[test]
fn what_is_shipped_is_small() {
    let sizes = |ending: &str| -> u64 {
        walkdir::WalkDir::new(desk())
            .into_iter()
            .map(Result::unwrap)
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(ending))
            .map(|entry| entry.metadata().unwrap().len())
            .sum()
    };
    assert!(sizes(".safetensors") <= 15_000_000, "weights of {} bytes", sizes(".safetensors"));
    assert!(sizes("") <= 30_000_000, "assets of {} bytes", sizes(""));
}

#[test]
fn shipped_pairs_were_sampled_by_the_shipped_base() {
    let pairs: Value =
        serde_json::from_str(&std::fs::read_to_string(desk().join("pairs.json")).unwrap()).unwrap();
    let digest = |folder: &str, file: &str| {
        let manifest = Manifest::read_checked(&desk().join(folder)).unwrap();
        to_value(&manifest.files[file]).unwrap()
    };
    assert_eq!(pairs["weights"]["denoiser"], digest("denoiser", "prior.safetensors"));
    assert_eq!(pairs["weights"]["text-encoder"], digest("denoiser", "text_encoder.safetensors"));
    assert_eq!(pairs["weights"]["codec"], digest("codec", "codec.safetensors"));
}

#[test]
fn shipped_scores_were_given_by_the_shipped_rewards() {
    let judges = ppd::data::scores::read_judges(&desk().join("pairs.scores.csv")).unwrap();
    assert_eq!(judges.len(), 6, "three rewards and their twins");
    for (reward, digest) in judges {
        let now = ppd::spec::weights_digest(&desk().join(&reward).join("model.safetensors"), "desk").unwrap();
        assert_eq!(digest, now, "{reward}");
    }
}
