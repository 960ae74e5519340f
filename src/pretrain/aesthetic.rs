//! Trains the desk's aesthetic head, in LAION's layout, on ratings of rendered pictures.
//!
//! The head reads the image embeddings of a CLIP that is not the CLIP reward; that CLIP stays as it is. Raters look at
//! measured pixels alone, so the ratings hold for degraded pictures too. What is stored is one file: the image tower
//! and the head.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::pairs::{any_style, degrade};
use super::stored::{Parent, store};
use super::trainer::{Optimisation, Step, Trainer};
use crate::error::Result;
use crate::models::clip::VisionTower;
use crate::pixels::Image;
use crate::reward::aesthetic::{Config, Head, HeadConfig};
use crate::reward::{self, Reward};
use crate::rng::stream;
use crate::scenes::population::{aesthetic, aesthetic_rating};
use crate::scenes::{Split, measure, render, sample_scene};
use crate::stats;
use crate::units::Seed;
use crate::weights::Trainable;

/// The recipe of an aesthetic head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AestheticConfig {
    /// Initialisation, pictures and raters.
    pub seed: Seed,
    /// The head's widths.
    pub head: HeadConfig,
    /// Rated pictures.
    pub pictures: usize,
    /// Length and speed.
    pub optimisation: Optimisation,
}

impl AestheticConfig {
    /// The aesthetic reward.
    pub fn reward() -> Self {
        Self {
            seed: Seed::new(3103),
            head: HeadConfig { widths: [64, 32, 16, 8] },
            pictures: 12_000,
            optimisation: Optimisation {
                steps: 3000,
                micro_batches: 1,
                micro_batch: 256,
                learning_rate: 3e-3,
                warmup_steps: 100,
                weight_decay: 1e-3,
                max_grad_norm: 5.0,
                ema_decay: 0.99,
                former_plans: Vec::new(),
                restarts: Vec::new(),
            },
        }
    }

    /// The reward's twin: another tower, other pictures, other raters.
    pub fn twin() -> Self {
        Self { seed: Seed::new(4104), head: HeadConfig { widths: [48, 32, 16, 8] }, ..Self::reward() }
    }
}

/// Picture `index` of a purpose.
fn picture(seed: Seed, purpose: &str, index: u64, part: Split) -> Image {
    let mut draw = stream(seed, purpose, index);
    let scene = sample_scene(&mut draw, [1.0, 1.0, 1.0], part);
    let style = any_style(&mut draw);
    let picture = render(&scene, &style, &mut draw);
    degrade(picture, &mut draw)
}

/// Trains, or goes on training, a head on the CLIP in folder `backbone`; leaves `model.safetensors` (f16: the image
/// tower and the head), `reward.json` and `manifest.json` in `out`, beside the training state.
///
/// # Errors
/// Where the backbone is missing, the disk refuses, or the loss stops being finite.
pub fn run(
    config: &AestheticConfig,
    backbone: &Path,
    out: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<Option<Manifest>> {
    let parent = Parent::open(backbone)?;
    let model = Config {
        vision: parent.config.clip.vision_config,
        pixels: parent.config.pixels,
        head: config.head.clone(),
    };
    let tower = VisionTower::new(&model.vision, parent.weights.builder(DType::F32, &Device::Cpu))?;

    let (mut embeddings, mut ratings) = (Vec::new(), Vec::new());
    for start in (0..config.pictures).step_by(256) {
        let pictures: Vec<Image> = (start..config.pictures.min(start + 256))
            .map(|i| picture(config.seed, "aesthetic picture", i as u64, Split::Train))
            .collect();
        for (i, picture) in pictures.iter().enumerate() {
            let mut rater = stream(config.seed, "aesthetic rater", (start + i) as u64);
            ratings.push(aesthetic_rating(&measure(picture), &mut rater) as f32);
        }
        embeddings.extend(model.pixels.embed(&tower, &pictures, &Device::Cpu)?);
    }
    let mean = ratings.iter().map(|&r| f64::from(r)).sum::<f64>() / ratings.len() as f64;

    let trainable = Trainable::new(config.seed);
    let head =
        Head::new(&model.head, model.vision.projection_dim, trainable.builder(&Device::Cpu).pp("layers"))?;
    let loss = |index: u64| -> Result<Tensor> {
        let mut draw = stream(config.seed, "aesthetic batch", index);
        let rows: Vec<usize> =
            (0..config.optimisation.micro_batch).map(|_| draw.below(ratings.len())).collect();
        let inputs: Vec<f32> = rows.iter().flat_map(|&row| embeddings[row].iter().copied()).collect();
        let inputs = Tensor::from_vec(inputs, (rows.len(), model.vision.projection_dim), &Device::Cpu)?;
        let targets: Vec<f32> = rows.iter().map(|&row| ratings[row] - mean as f32).collect();
        let targets = Tensor::from_vec(targets, rows.len(), &Device::Cpu)?;
        Ok((head.forward(&inputs)? - targets)?.sqr()?.mean_all()?)
    };
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    if !trainer.run(&out.join("state.safetensors"), progress, loss)? {
        return Ok(None);
    }

    // The head was trained on centred ratings: the mean goes into the last bias.
    let mut tensors = trainer.averaged();
    let last = tensors.get_mut("layers.7.bias").expect("the head's last map has a bias");
    *last = (&*last + mean)?;
    for name in parent.weights.names() {
        if name.starts_with("vision_model.") || name.starts_with("visual_projection.") {
            tensors.insert(name.to_owned(), parent.weights.read(name, DType::F32, &Device::Cpu)?);
        }
    }
    let (reward, files) = store(out, &reward::Config::Aesthetic(model), None, &tensors, &BTreeMap::new())?;
    let evaluation = evaluate(&reward, 1024)?;
    Manifest::write(out, "aesthetic", config, trainer.step(), &files, evaluation).map(Some)
}

/// Correlation with the rating without rater noise, on `count` pictures of validation scenes, and the scores' moments.
///
/// # Errors
/// Where the tower refuses.
pub fn evaluate(reward: &Reward, count: usize) -> Result<BTreeMap<String, f64>> {
    let pictures: Vec<Image> = (0..count)
        .map(|i| picture(Seed::new(0), "aesthetic evaluation", i as u64, Split::Validation))
        .collect();
    let truth: Vec<f64> = pictures.iter().map(|picture| aesthetic(&measure(picture))).collect();
    let scores = reward.score(&pictures, &vec![String::new(); count])?;
    let mut results = BTreeMap::new();
    if let Some(pearson) = stats::correlation::pearson(&scores, &truth)? {
        results.insert("correlation with the rating".into(), pearson.coefficient);
    }
    let right = (0..count / 2).filter(|i| {
        let (a, b) = (2 * i, 2 * i + 1);
        (scores[a] > scores[b]) == (truth[a] > truth[b])
    });
    results
        .insert("pairs ordered as the rating orders them".into(), right.count() as f64 / (count / 2) as f64);
    let mean = scores.iter().sum::<f64>() / count as f64;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
    results.insert("mean score".into(), mean);
    results.insert("standard deviation of scores".into(), variance.sqrt());
    Ok(results)
}
