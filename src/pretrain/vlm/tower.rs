//! What the image tower learns before the language model sees through it: to tell what a picture shows.
//!
//! SigLIP's tower is pretrained on captions before LLaVA-OneVision is built on it. The desk's learns from measurements: the
//! statistics of the whole picture, its background, and the colours and shapes of its objects, read off the tower's
//! features by one linear map that is thrown away.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::super::trainer::{Optimisation, Step, Trainer};
use crate::data::desk::users::Shown;
use crate::error::{Error, Result};
use crate::models::llava_onevision::{Config, ImageProcessor, Layout, SiglipTower};
use crate::nn;
use crate::pixels::Image;
use crate::rng::stream;
use crate::scenes::measure::measure_percept;
use crate::scenes::perceive::Percept;
use crate::scenes::population::Reference;
use crate::units::Seed;
use crate::weights::Trainable;

/// Where the tower stands in a checkpoint.
const TOWER: &str = "vision_tower";

/// How much a probability counts, so that it varies about as much as a standardised statistic.
const ODDS: f64 = 2.0;

/// What is to be read off the features of a picture.
fn measurements(image: &Image, reference: &Reference) -> Vec<f32> {
    let percept = Percept::of(image);
    let statistics = reference.standardise(&measure_percept(image, &percept));
    // Of each colour and shape, how surely any object has it.
    let mut seen: Vec<f64> = Vec::new();
    for blob in &percept.blobs {
        let odds = blob.colour_odds().into_iter().chain(blob.overlap);
        for (k, value) in odds.enumerate() {
            match seen.get_mut(k) {
                Some(most) => *most = value.max(*most),
                None => seen.push(value),
            }
        }
    }
    seen.resize(OBJECT, 0.0);
    let odds = percept.background_odds().into_iter().chain(seen).map(|value| ODDS * value);
    statistics.into_iter().chain(odds).map(|value| value as f32).collect()
}

/// Probabilities that an object has: of each colour and each shape.
const OBJECT: usize = crate::scenes::Colour::ALL.len() + crate::scenes::Shape::ALL.len();

/// Trains the tower of `model` on the pictures of `pool`, or goes on from the state in `path`; its weights by their names in
/// the whole model, or none where `progress` stopped the loop.
///
/// # Errors
/// Where the disk refuses, or the loss stops being finite.
pub(super) fn train(
    (seed, optimisation): (Seed, &Optimisation),
    model: &Config,
    (pool, reference): (&[&Shown], &Reference),
    path: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<Option<BTreeMap<String, Tensor>>> {
    let processor = ImageProcessor::new(&super::repository::processor(), model)?;
    let images: Vec<&Image> = pool.iter().flat_map(|shown| &shown.images).collect();
    let targets: Vec<Vec<f32>> = images.par_iter().map(|image| measurements(image, reference)).collect();
    let count =
        targets.first().map(Vec::len).ok_or_else(|| Error::Shape("no picture to learn from".into()))?;
    let trainable = Trainable::new(seed);
    let vb = trainable.builder(&Device::Cpu);
    let tower = SiglipTower::new(&model.vision_config, model.feature_layer()?, vb.pp(TOWER))?;
    let features = model.vision_config.patches().pow(2) * model.vision_config.hidden_size;
    let (weight, bias) = (
        vb.get_with_hints((count, features), "head.weight", candle_nn::Init::Const(0.0))?,
        vb.get_with_hints(count, "head.bias", candle_nn::Init::Const(0.0))?,
    );
    let mut trainer = Trainer::new(optimisation, &trainable, threads)?;
    let batch = |index: u64| -> Result<Tensor> {
        let mut draw = stream(seed, "vlm tower", index);
        let places: Vec<usize> = (0..optimisation.micro_batch).map(|_| draw.below(images.len())).collect();
        let tiles = places.iter().map(|&place| Ok(processor.views(images[place], Layout::BaseOnly)?.tiles));
        let tiles = Tensor::cat(&tiles.collect::<Result<Vec<_>>>()?, 0)?; // (B, 3, S, S)
        let wanted: Vec<f32> = places.iter().flat_map(|&place| targets[place].iter().copied()).collect();
        let wanted = Tensor::from_vec(wanted, (places.len(), count), &Device::Cpu)?;
        let read = nn::linear(&tower.forward(&tiles)?.flatten_from(1)?, &weight, Some(&bias))?; // (B, targets)
        Ok((read - wanted)?.sqr()?.mean_all()?)
    };
    if !trainer.run(path, progress, batch)? {
        return Ok(None);
    }
    Ok(Some(trainer.averaged().into_iter().filter(|(name, _)| name.starts_with(TOWER)).collect()))
}
