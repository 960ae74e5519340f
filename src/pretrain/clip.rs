//! Trains a desk CLIP on rendered scenes and their captions: symmetric InfoNCE over batches full of near misses.
//!
//! Half of the captions carry up to two words of the picture's style, so that the embeddings keep what taste needs
//! although plain captions never speak of it. Only scenes of the training part are used; what is measured at the end
//! is measured on the validation part, whose combinations of shape and colour no tower has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{D, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::pairs::{Change, any_style, degrade, near_miss};
use super::stored::store;
use super::trainer::{Optimisation, Step, Trainer};
use crate::error::Result;
use crate::models::clip::{Activation, Clip, Config, TextConfig, VisionConfig};
use crate::models::tokenizer::{DESK_CONTEXT, Tokenizer, desk_json};
use crate::pixels::Image;
use crate::reward::{self, Pixels, Reward, Scorer, cosine, retrieval};
use crate::rng::{Stream, stream};
use crate::scenes::{ObjectWeights, SIDE, Scene, Split, render, sample_scene, style_words, words};
use crate::units::Seed;
use crate::weights::Trainable;

/// The recipe of a desk CLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Initialisation and data: another seed shares neither.
    pub seed: Seed,
    /// The towers' sizes.
    pub towers: Towers,
    /// Near misses of each scene, which follow it in its batch: what tells them apart is what is learned.
    pub near_misses: usize,
    /// The share of captions that may carry style words.
    pub style_captions: f64,
    /// The share of the steps in which scenes have one object, so that shapes are learned before arrangements.
    pub single_objects: f64,
    /// Length and speed; a micro-batch is one contrastive batch.
    pub optimisation: Optimisation,
}

/// The sizes of a desk CLIP; what is not here is the same for all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Towers {
    /// Width of the image tower.
    pub vision_width: usize,
    /// Blocks of the image tower.
    pub vision_layers: usize,
    /// Width of the text tower.
    pub text_width: usize,
    /// Blocks of the text tower.
    pub text_layers: usize,
    /// Width of the shared embedding.
    pub projection: usize,
}

impl ClipConfig {
    /// The CLIP reward.
    pub fn reward() -> Self {
        let towers =
            Towers { vision_width: 96, vision_layers: 4, text_width: 96, text_layers: 2, projection: 96 };
        Self {
            seed: Seed::new(1001),
            towers,
            near_misses: 5,
            style_captions: 0.5,
            single_objects: 0.4,
            optimisation: Optimisation {
                steps: 4200,
                micro_batches: 1,
                micro_batch: 96,
                learning_rate: 1e-3,
                warmup_steps: 60,
                weight_decay: 0.02,
                max_grad_norm: 1.0,
                ema_decay: 0.995,
                former_plans: Vec::new(),
                restarts: Vec::new(),
            },
        }
    }

    /// The reward's twin: other seed, hence other scenes, and another width and depth.
    pub fn twin() -> Self {
        let towers =
            Towers { vision_width: 80, vision_layers: 5, text_width: 80, text_layers: 2, projection: 80 };
        Self { seed: Seed::new(2002), towers, ..Self::reward() }
    }

    /// The backbone of the aesthetic head, which is another CLIP than the CLIP reward. More captions speak of style.
    pub fn aesthetic() -> Self {
        let towers =
            Towers { vision_width: 96, vision_layers: 3, text_width: 64, text_layers: 2, projection: 96 };
        let optimisation = Optimisation { steps: 700, ..Self::reward().optimisation };
        Self {
            seed: Seed::new(3003),
            towers,
            near_misses: 2,
            style_captions: 0.8,
            single_objects: 0.3,
            optimisation,
        }
    }

    /// The backbone of the aesthetic head's twin.
    pub fn aesthetic_twin() -> Self {
        let towers =
            Towers { vision_width: 80, vision_layers: 4, text_width: 64, text_layers: 2, projection: 80 };
        Self { seed: Seed::new(4004), towers, ..Self::aesthetic() }
    }

    /// A few steps of a tiny model, to try the loop.
    pub fn smoke() -> Self {
        let mut config = Self::reward();
        config.towers =
            Towers { vision_width: 32, vision_layers: 1, text_width: 32, text_layers: 1, projection: 32 };
        config.optimisation =
            Optimisation { steps: 4, micro_batch: 16, warmup_steps: 2, ..config.optimisation };
        config
    }

    /// The model's `config.json`.
    pub fn model(&self, vocab_size: usize) -> Config {
        let Towers { vision_width, vision_layers, text_width, text_layers, projection } = self.towers;
        Config {
            projection_dim: projection,
            text_config: TextConfig {
                vocab_size,
                hidden_size: text_width,
                intermediate_size: 4 * text_width,
                projection_dim: projection,
                num_hidden_layers: text_layers,
                num_attention_heads: 4,
                max_position_embeddings: DESK_CONTEXT,
                hidden_act: Activation::Gelu,
                eos_token_id: vocab_size as u32 - 1,
                ..TextConfig::default()
            },
            vision_config: VisionConfig {
                hidden_size: vision_width,
                intermediate_size: 4 * vision_width,
                projection_dim: projection,
                num_hidden_layers: vision_layers,
                num_attention_heads: 4,
                image_size: SIDE,
                patch_size: 8,
                hidden_act: Activation::Gelu,
                ..VisionConfig::default()
            },
            ..Config::default()
        }
    }
}

/// The inverse temperature never exceeds 100, as in CLIP.
const LARGEST_LOGIT_SCALE: f64 = 4.605_170_185_988_092;
/// One, two and three objects.
const OBJECTS: ObjectWeights = [0.35, 0.35, 0.3];

/// The caption, now and then with one or two words on the picture's style.
fn caption(scene: &Scene, styles: &[&str], share: f64, draw: &mut Stream) -> String {
    let mut caption = scene.caption();
    if draw.chance(share) {
        let mut styles = styles.to_vec();
        draw.shuffle(&mut styles);
        for word in styles.iter().take(draw.below(3)) {
            caption.push(' ');
            caption.push_str(word);
        }
    }
    caption
}

/// One contrastive batch: scenes, each followed by its near misses, no caption twice.
pub(super) fn batch(config: &ClipConfig, index: u64) -> (Vec<Image>, Vec<String>) {
    let size = config.optimisation.micro_batch;
    let mut draw = stream(config.seed, "clip batch", index);
    let step = index as f64 / config.optimisation.micro_batches as f64;
    let objects = match step < config.single_objects * config.optimisation.steps as f64 {
        true => [1.0, 0.0, 0.0],
        false => OBJECTS,
    };
    let (mut images, mut captions, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    while images.len() < size {
        let scene = sample_scene(&mut draw, objects, Split::Train);
        let mut group = vec![scene.clone()];
        group.extend((0..config.near_misses).filter_map(|_| near_miss(&scene, Split::Train, &mut draw)));
        for scene in group {
            let style = any_style(&mut draw);
            let text = caption(&scene, &style_words(&style), config.style_captions, &mut draw);
            if images.len() < size && seen.insert(text.clone()) {
                let picture = render(&scene, &style, &mut draw);
                images.push(degrade(picture, &mut draw));
                captions.push(text);
            }
        }
    }
    (images, captions)
}

/// Mean over the rows of `log Σ exp(row) − diagonal`.
fn cross_entropy(logits: &Tensor, diagonal: &Tensor) -> Result<Tensor> {
    Ok((logits.log_sum_exp(D::Minus1)? - diagonal)?.mean_all()?)
}

fn loss(clip: &Clip, tokenizer: &Tokenizer, config: &ClipConfig, index: u64) -> Result<Tensor> {
    let (images, captions) = batch(config, index);
    let pixels = Pixels::default().tensor(&images.iter().collect::<Vec<_>>(), SIDE, &Device::Cpu)?;
    let images = clip.image_features(&pixels)?;
    let texts = clip.text_features(&tokenizer.encode(&captions)?.trimmed())?;
    let largest = Tensor::new(LARGEST_LOGIT_SCALE as f32, &Device::Cpu)?;
    let images = images.broadcast_mul(&clip.logit_scale.minimum(&largest)?.exp()?)?;
    let logits = images.matmul(&texts.t()?.contiguous()?)?; // (B, B)
    let diagonal = (&images * &texts)?.sum(1)?;
    let total = (cross_entropy(&logits, &diagonal)? + cross_entropy(&logits.t()?.contiguous()?, &diagonal)?)?;
    Ok((total * 0.5)?)
}

/// Trains, or goes on training, a CLIP, and leaves in `out`: `model.safetensors` (f16), `reward.json`,
/// `tokenizer.json` and `manifest.json`, beside the training state. `progress` says after each step whether to go on;
/// where it stops, the state is kept and there is no manifest.
///
/// # Errors
/// Where the disk refuses or the loss stops being finite.
pub fn run(
    config: &ClipConfig,
    out: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<Option<Manifest>> {
    let words = words();
    let tokenizer = Tokenizer::desk(&words)?;
    let model = config.model(tokenizer.vocab_size());
    let trainable = Trainable::new(config.seed);
    let clip = Clip::new(&model, trainable.builder(&Device::Cpu))?;
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    let state = out.join("state.safetensors");
    if !trainer.run(&state, progress, |index| loss(&clip, &tokenizer, config, index))? {
        return Ok(None);
    }
    let reward = reward::Config::Clip(reward::clip::Config { clip: model, pixels: Pixels::default() });
    let (stored, files) =
        store(out, &reward, Some(&desk_json(&words)?), &trainer.averaged(), &BTreeMap::new())?;
    let Reward::Clip(stored) = stored else { unreachable!("it was stored as a CLIP") };
    let evaluation = evaluate(stored.scorer(), 256)?;
    Manifest::write(out, "clip", config, trainer.step(), &files, evaluation).map(Some)
}

/// What is measured of a CLIP, on `count` validation scenes of each number of objects: how often the right caption of
/// 16 is nearest to the picture (`retrieval of 16, 1 object` …), how often the picture prefers its caption to a near
/// miss of each kind, and the mean of 100·cosine.
///
/// # Errors
/// Where the towers refuse.
pub fn evaluate(scorer: &Scorer, count: usize) -> Result<BTreeMap<String, f64>> {
    const CANDIDATES: usize = 16;
    let seed = Seed::new(0);
    let mut results = BTreeMap::new();
    let mut cosines = Vec::new();
    for (objects, weights) in [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]].into_iter().enumerate() {
        let mut draw = stream(seed, "clip evaluation", objects as u64);
        let (mut captions, mut images, mut scenes) = (Vec::new(), Vec::new(), Vec::new());
        while scenes.len() < count {
            let scene = sample_scene(&mut draw, weights, Split::Validation);
            let style = any_style(&mut draw);
            images.push(render(&scene, &style, &mut draw));
            captions.push(scene.caption());
            scenes.push(scene);
        }
        let (pictures, texts) = (scorer.embed_images(&images)?, scorer.embed_prompts(&captions)?);
        cosines.extend(pictures.iter().zip(&texts).map(|(picture, text)| cosine(picture, text)));
        results.insert(
            format!("retrieval of {CANDIDATES}, {} object(s)", objects + 1),
            retrieval(&pictures, &texts, &captions, CANDIDATES),
        );
        for &change in Change::ALL {
            let pairs: Vec<(usize, String)> = (0..count)
                .filter_map(|i| Some((i, change.apply(&scenes[i], &mut draw)?.caption())))
                .filter(|(i, caption)| *caption != captions[*i])
                .collect();
            if pairs.is_empty() {
                continue;
            }
            let wrong: Vec<String> = pairs.iter().map(|(_, caption)| caption.clone()).collect();
            let wrong = scorer.embed_prompts(&wrong)?;
            let right = pairs
                .iter()
                .zip(&wrong)
                .filter(|((i, _), wrong)| cosine(&pictures[*i], &texts[*i]) > cosine(&pictures[*i], wrong));
            let share = right.count() as f64 / pairs.len() as f64;
            results.insert(format!("near miss in {}, {} object(s)", change.name(), objects + 1), share);
        }
    }
    results.insert("mean of 100·cosine".into(), 100.0 * cosines.iter().sum::<f64>() / cosines.len() as f64);
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_stops_goes_on_and_ends_as_if_it_had_not_stopped() {
        let config = ClipConfig::smoke();
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        let mut losses = Vec::new();
        let one = run(&config, &whole, 1, &mut |step| {
            losses.push(step.loss);
            true
        });
        assert!(run(&config, &parts, 1, &mut |step| step.step < 2).unwrap().is_none());
        let two = run(&config, &parts, 1, &mut |_| true).unwrap().unwrap();
        let one = one.unwrap().unwrap();
        assert_eq!(one.files, two.files, "the same weights to the last bit");
        assert_eq!(Manifest::read_checked(&whole).unwrap(), one);
        // Sixteen candidates told apart by chance alone.
        assert!((losses[0] - 16f64.ln()).abs() < 1.0, "{losses:?}");
        std::fs::write(whole.join("reward.json"), "{}").unwrap();
        assert!(Manifest::read_checked(&whole).unwrap_err().to_string().contains("manifest"));
    }

    #[test]
    fn a_batch_is_its_index_and_repeats_no_caption() {
        let config = ClipConfig::reward();
        let (images, captions) = batch(&config, 903);
        assert_eq!((images.len(), captions.len()), (96, 96));
        assert_eq!(batch(&config, 903), (images, captions.clone()));
        assert_ne!(batch(&config, 904).1, captions);
        assert_eq!(captions.iter().collect::<BTreeSet<_>>().len(), 96);
        let tokenizer = Tokenizer::desk(&words()).unwrap();
        let tokens = tokenizer.encode(&captions).unwrap();
        assert!(tokens.ids.iter().flatten().all(|&id| id != 1), "every word is known");
        assert!(tokens.lengths.iter().all(|&length| length < DESK_CONTEXT), "nothing is cut");
    }
}
