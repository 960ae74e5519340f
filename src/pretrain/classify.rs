//! Heads that tell users apart from frozen features (the paper's Fig. 2): a linear one, and the residual one of the authors'
//! code, smaller. Trained with AdamW on standardised features; how good one is, its user's rank says.
//!
//! # Source
//! Widths, blocks and the order of layers follow the published `user_classifier.py` (Linear, GELU, residual blocks of
//! Linear, GELU, LayerNorm, then Linear); the optimiser's settings are this crate's.

use candle_core::{D, Device, Tensor};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use super::trainer::{Optimisation, Trainer};
use crate::error::{Error, Result};
use crate::nn;
use crate::rng::stream;
use crate::units::Seed;
use crate::weights::Trainable;

/// The form of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// One affine map.
    Linear,
    /// A wide layer, residual blocks, one affine map.
    Mlp,
}

impl Head {
    /// Both.
    pub const ALL: &'static [Self] = &[Self::Linear, Self::Mlp];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Mlp => "mlp",
        }
    }
}

/// How a head is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of initialisation and batches.
    pub seed: Seed,
    /// The form.
    pub head: Head,
    /// Width of the residual head.
    pub width: usize,
    /// Its residual blocks.
    pub blocks: usize,
    /// Passes over the examples.
    pub epochs: usize,
    /// Examples of a step.
    pub batch: usize,
    /// The learning rate after warm-up.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// Examples: one row of features and one class each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examples {
    /// Rows of equal length.
    pub features: Vec<Vec<f32>>,
    /// The class of each row.
    pub classes: Vec<usize>,
}

impl Examples {
    fn check(&self, what: &str, width: usize, classes: usize) -> Result<()> {
        let Self { features, classes: of } = self;
        if features.len() != of.len() || features.iter().any(|row| row.len() != width) {
            return Err(Error::Shape(format!(
                "{what}: {} rows and {} classes, the rows of several lengths or other than {width}; expected one class \
                 for each row and rows of one length",
                features.len(),
                of.len()
            )));
        }
        match of.iter().find(|&&class| class >= classes) {
            Some(class) => Err(Error::Shape(format!("{what}: class {class}, and there are {classes}"))),
            None => Ok(()),
        }
    }
}

struct Layers {
    first: Option<(Tensor, Tensor)>,
    blocks: Vec<(Tensor, Tensor)>,
    last: (Tensor, Tensor),
}

fn affine(from: usize, to: usize, vb: VarBuilder) -> Result<(Tensor, Tensor)> {
    let init = Init::Randn { mean: 0.0, stdev: 1.0 / (from as f64).sqrt() };
    let weight = vb.get_with_hints((to, from), "weight", init)?;
    Ok((weight, vb.get_with_hints(to, "bias", Init::Const(0.0))?))
}

impl Layers {
    fn new(config: &Config, inputs: usize, classes: usize, vb: VarBuilder) -> Result<Self> {
        match config.head {
            Head::Linear => {
                Ok(Self { first: None, blocks: Vec::new(), last: affine(inputs, classes, vb.pp("last"))? })
            }
            Head::Mlp => Ok(Self {
                first: Some(affine(inputs, config.width, vb.pp("first"))?),
                blocks: (0..config.blocks)
                    .map(|i| affine(config.width, config.width, vb.pp("blocks").pp(i)))
                    .collect::<Result<_>>()?,
                last: affine(config.width, classes, vb.pp("last"))?,
            }),
        }
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let map = |xs: &Tensor, (weight, bias): &(Tensor, Tensor)| nn::linear(xs, weight, Some(bias));
        let mut xs = xs.clone();
        if let Some(first) = &self.first {
            xs = nn::gelu_erf(&map(&xs, first)?)?;
        }
        for block in &self.blocks {
            let ys = nn::gelu_erf(&(&xs + map(&xs, block)?)?)?;
            xs = nn::layer_norm(&ys, None, 1e-5)?;
        }
        Ok(map(&xs, &self.last)?)
    }
}

/// Trains a head on some examples and gives, for each of others, the rank of its class among all by the head's logits: 1
/// for the largest; of equals half are counted as before it.
///
/// # Errors
/// [`Error::Shape`] where rows and classes do not fit together or there is nothing to learn from; [`Error::NonFinite`] where
/// the loss stops being finite.
pub fn ranks(config: &Config, classes: usize, learned: &Examples, asked: &Examples) -> Result<Vec<f64>> {
    let width = learned.features.first().map_or(0, Vec::len);
    if width == 0 {
        return Err(Error::Shape("a classifier has no examples, or examples without features".into()));
    }
    learned.check("what a classifier learns from", width, classes)?;
    asked.check("what a classifier is asked", width, classes)?;
    let (mean, deviation) = moments(&learned.features, width);
    let tensor = |rows: &[&Vec<f32>]| -> Result<Tensor> {
        let values = rows.iter().flat_map(|row| {
            row.iter().zip(&mean).zip(&deviation).map(|((x, mean), deviation)| (x - mean) / deviation)
        });
        Ok(Tensor::from_vec(values.collect::<Vec<f32>>(), (rows.len(), width), &Device::Cpu)?)
    };
    let trainable = Trainable::new(config.seed);
    let layers = Layers::new(config, width, classes, trainable.builder(&Device::Cpu))?;
    let count = learned.features.len();
    let batch = config.batch.clamp(1, count);
    let per_epoch = count.div_ceil(batch);
    let optimisation = Optimisation {
        steps: config.epochs.max(1) * per_epoch,
        micro_batches: 1,
        micro_batch: batch,
        learning_rate: config.learning_rate,
        warmup_steps: per_epoch.min(20),
        weight_decay: config.weight_decay,
        max_grad_norm: 1.0,
        ema_decay: 0.0,
        former_plans: Vec::new(),
        restarts: Vec::new(),
    };
    let mut trainer = Trainer::new(&optimisation, &trainable, 1)?;
    while !trainer.is_done() {
        trainer.advance(|index| {
            let (epoch, part) = (index as usize / per_epoch, index as usize % per_epoch);
            let mut order: Vec<usize> = (0..count).collect();
            stream(config.seed, "classifier epoch", epoch as u64).shuffle(&mut order);
            let rows = &order[part * batch..((part + 1) * batch).min(count)];
            let xs = tensor(&rows.iter().map(|&row| &learned.features[row]).collect::<Vec<_>>())?;
            let logits = layers.forward(&xs)?;
            let own: Vec<u32> = rows.iter().map(|&row| learned.classes[row] as u32).collect();
            let own = Tensor::from_vec(own, (rows.len(), 1), &Device::Cpu)?;
            let own = logits.gather(&own, 1)?.squeeze(1)?;
            Ok((logits.log_sum_exp(D::Minus1)? - own)?.mean_all()?)
        })?;
    }
    let mut ranks = Vec::with_capacity(asked.features.len());
    for (rows, own) in asked.features.chunks(512).zip(asked.classes.chunks(512)) {
        let logits = layers.forward(&tensor(&rows.iter().collect::<Vec<_>>())?)?.to_vec2::<f32>()?;
        ranks.extend(logits.iter().zip(own).map(|(logits, &own)| rank(logits, own)));
    }
    Ok(ranks)
}

/// The rank of one of several values: 1 for the largest; of equals half are counted as before it.
///
/// # Panics
/// Where there are fewer values.
pub fn rank<T: PartialOrd + Copy>(values: &[T], own: usize) -> f64 {
    let above = values.iter().filter(|&&value| value > values[own]).count();
    let equal = values.iter().filter(|&&value| value == values[own]).count().saturating_sub(1);
    1.0 + above as f64 + 0.5 * equal as f64
}

/// The mean and the standard deviation of each feature; a feature that never varies keeps a deviation of 1.
pub(crate) fn moments(rows: &[Vec<f32>], width: usize) -> (Vec<f32>, Vec<f32>) {
    let count = rows.len() as f64;
    let (mut mean, mut deviation) = (vec![0f32; width], vec![1f32; width]);
    for k in 0..width {
        let m = rows.iter().map(|row| f64::from(row[k])).sum::<f64>() / count;
        let variance = rows.iter().map(|row| (f64::from(row[k]) - m).powi(2)).sum::<f64>() / count;
        mean[k] = m as f32;
        if variance > 1e-12 {
            deviation[k] = variance.sqrt() as f32;
        }
    }
    (mean, deviation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(head: Head) -> Config {
        Config {
            seed: Seed::new(1),
            head,
            width: 32,
            blocks: 2,
            epochs: 100,
            batch: 50,
            learning_rate: 1e-2,
            weight_decay: 1e-3,
        }
    }

    /// Ten classes around points of a square, or whose features say nothing.
    fn examples(count: usize, tells: f64, index: u64) -> Examples {
        let mut draw = stream(Seed::new(2), "classify test", index);
        let mut all = Examples::default();
        for i in 0..count {
            let class = i % 10;
            let angle = class as f64 / 10.0 * std::f64::consts::TAU;
            let mut at = |x: f64| (tells * x + 0.25 * draw.normal()) as f32;
            all.features.push(vec![at(angle.sin()), at(angle.cos()), at(0.0)]);
            all.classes.push(class);
        }
        all
    }

    #[test]
    fn heads_find_what_features_tell_and_no_more() {
        for &head in Head::ALL {
            let mean = |tells| {
                let (learned, asked) = (examples(600, tells, 0), examples(300, tells, 1));
                let ranks = ranks(&config(head), 10, &learned, &asked).unwrap();
                ranks.iter().sum::<f64>() / 300.0
            };
            // Neighbours on the circle are 2.5 deviations apart: the best rank is 1.2 on average.
            assert!(mean(1.0) < 1.6, "{head:?}: {}", mean(1.0));
            // By chance 5.5; the standard error is 0.17.
            assert!((mean(0.0) - 5.5).abs() < 0.7, "{head:?}: {}", mean(0.0));
        }
        let (learned, asked) = (examples(60, 1.0, 0), examples(30, 1.0, 1));
        let twice = [0, 1].map(|_| ranks(&config(Head::Mlp), 10, &learned, &asked).unwrap());
        assert_eq!(twice[0], twice[1]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (learned, mut asked) = (examples(20, 1.0, 0), examples(10, 1.0, 1));
        assert!(ranks(&config(Head::Linear), 10, &Examples::default(), &asked).is_err());
        let message = ranks(&config(Head::Linear), 9, &learned, &asked).unwrap_err().to_string();
        assert!(message.contains("class 9"), "{message}");
        asked.features[3].push(0.0);
        assert!(ranks(&config(Head::Linear), 10, &learned, &asked).is_err());
    }
}
