//! The rewards: LAION's head against its own layout, and what holds for all of them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ppd::models::tokenizer::Tokenizer;
use ppd::models::{blip, clip};
use ppd::pixels::Image;
use ppd::reward::{self, Config, Pixels, Reward, aesthetic};
use ppd::rng::stream;
use ppd::units::Seed;
use ppd::weights::{Trainable, Weights};

#[test]
fn the_folded_head_equals_its_chain_of_linear_maps() {
    let path = format!("{}/tests/fixtures/aesthetic/head.safetensors", env!("CARGO_MANIFEST_DIR"));
    let file = Weights::open(path).unwrap();
    let config = aesthetic::HeadConfig { widths: [48, 32, 24, 16] };
    let head =
        aesthetic::Head::new(&config, 64, file.builder(DType::F32, &Device::Cpu).pp("layers")).unwrap();
    let embeddings = file.read("embedding", DType::F32, &Device::Cpu).unwrap();
    let expected = file.read("score", DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    let chained = head.forward(&embeddings).unwrap().to_vec1::<f32>().unwrap();
    let (weight, bias) = head.folded().unwrap();
    for (i, row) in embeddings.to_vec2::<f32>().unwrap().iter().enumerate() {
        let folded = bias + row.iter().zip(&weight).map(|(x, w)| f64::from(*x) * w).sum::<f64>();
        // Double precision throughout: what differs is the rounding of the expected value to single precision.
        assert!((folded - f64::from(expected[i])).abs() < 1e-6, "{folded} {}", expected[i]);
        assert!((chained[i] - expected[i]).abs() < 1e-5, "{} {}", chained[i], expected[i]);
    }
}

fn images(count: usize) -> Vec<Image> {
    let mut stream = stream(Seed::new(3), "test images", 0);
    (0..count).map(|_| Image::new(16, 16, (0..768).map(|_| stream.below(256) as u8).collect())).collect()
}

fn tiny() -> clip::Config {
    clip::Config {
        projection_dim: 16,
        text_config: clip::TextConfig {
            vocab_size: 8,
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 32,
            eos_token_id: 7,
            ..Default::default()
        },
        vision_config: clip::VisionConfig {
            hidden_size: 32,
            intermediate_size: 64,
            projection_dim: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 16,
            patch_size: 4,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// One of each kind, on random weights.
fn open(kind: &str) -> Reward {
    let (clip, pixels) = (tiny(), Pixels::default());
    let config = match kind {
        "clip" => Config::Clip(reward::clip::Config { clip, pixels }),
        "hps" => Config::Hps(reward::hps::Config { clip, pixels }),
        "pick-score" => Config::PickScore(reward::pick_score::Config { clip, pixels }),
        "aesthetic" => Config::Aesthetic(aesthetic::Config {
            vision: clip.vision_config,
            pixels,
            head: aesthetic::HeadConfig { widths: [16, 8, 8, 4] },
        }),
        "image-reward" => Config::ImageReward(reward::image_reward::Config {
            vision: blip::VisionConfig {
                hidden_size: 32,
                intermediate_size: 64,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                image_size: 16,
                patch_size: 4,
            },
            text: blip::TextConfig {
                vocab_size: 8,
                hidden_size: 32,
                intermediate_size: 64,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                max_position_embeddings: 32,
                ..Default::default()
            },
            pixels,
            head: aesthetic::HeadConfig { widths: [16, 8, 8, 4] },
        }),
        "brightness" => Config::Brightness(reward::brightness::Config {}),
        other => panic!("no reward of kind {other} in this test"),
    };
    let written = serde_json::to_string(&config).unwrap();
    assert!(written.contains(&format!("\"kind\":\"{kind}\"")), "{written}");
    assert_eq!(serde_json::from_str::<Config>(&written).unwrap(), config);
    let tokenizer = Tokenizer::desk(&["a", "red", "square", "blue"]).unwrap();
    config.open(Trainable::new(Seed::new(5)).builder(&Device::Cpu), Some(tokenizer)).unwrap()
}

#[test]
fn no_score_depends_on_the_batch() {
    let images = images(70);
    let prompts: Vec<String> = (0..70)
        .map(|i| ["a red square", "a blue square", "square", "a a a red"][i % 4].to_string())
        .collect();
    for kind in reward::ALL {
        let reward = open(kind);
        let together = reward.score(&images, &prompts).unwrap();
        for i in [0, 1, 33, 64, 69] {
            let alone = reward.score(&images[i..=i], &prompts[i..=i]).unwrap();
            assert_eq!(alone[0].to_bits(), together[i].to_bits(), "{kind}, image {i}");
        }
        let distinct: std::collections::BTreeSet<u64> = together.iter().map(|s| s.to_bits()).collect();
        // Two noisy images may share their mean pixel.
        assert!(distinct.len() > 60, "{kind} tells the images apart");
        assert!(reward.score(&images, &prompts[1..]).is_err(), "{kind}");
    }
}

#[test]
fn only_the_kinds_that_read_prompts_change_with_them() {
    let images = images(2);
    let prompts = |text: &str| vec![text.to_string(); 2];
    for kind in reward::ALL {
        let reward = open(kind);
        let (a, b) = (
            reward.score(&images, &prompts("a red square")),
            reward.score(&images, &prompts("a blue square")),
        );
        assert_eq!(a.unwrap() == b.unwrap(), matches!(*kind, "aesthetic" | "brightness"), "{kind}");
    }
}

#[test]
fn brightness_is_the_mean_pixel_in_unit_range() {
    let reward = open("brightness");
    let flat = |byte: u8| Image::new(4, 2, vec![byte; 24]);
    let scores = reward.score(&[flat(0), flat(255), flat(51)], &vec![String::new(); 3]).unwrap();
    assert_eq!(scores, [0.0, 1.0, 0.2]);
}

#[test]
fn an_image_of_another_size_is_refused_with_both_sizes() {
    let big = Image::new(32, 16, vec![0; 3 * 32 * 16]);
    let text = open("clip").score(&[big], &["a".to_string()]).unwrap_err().to_string();
    assert!(text.contains("32×16") && text.contains("16×16"), "{text}");
}

#[test]
fn a_clip_file_with_another_towers_weights_is_refused_by_key_and_shape() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let trainable = Trainable::new(Seed::new(1));
    clip::Clip::new(&tiny(), trainable.builder(&Device::Cpu)).unwrap();
    ppd::weights::save(&path, &trainable.tensors(), DType::F32, &BTreeMap::new()).unwrap();
    let mut other = tiny();
    other.vision_config.hidden_size = 48;
    let weights = Weights::open(&path).unwrap();
    let text = clip::Clip::new(&other, weights.builder(DType::F32, &Device::Cpu)).unwrap_err().to_string();
    assert!(
        text.contains("model.safetensors") && text.contains("visual_projection") && text.contains("48"),
        "{text}"
    );
    let _: Tensor = weights.read("logit_scale", DType::F32, &Device::Cpu).unwrap();
}
