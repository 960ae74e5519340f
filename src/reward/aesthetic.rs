//! The aesthetic score: LAION's head on a CLIP's unit image embedding. It never reads the prompt.
//!
//! The head is five linear maps with dropout between them and no non-linearity, so at evaluation it is one affine map;
//! it is folded into that on opening, in double precision.
//!
//! # Source
//! `christophschuhmann/improved-aesthetic-predictor`, `sac+logos+ava1-l14-linearMSE.pth`: `layers` 0, 2, 4, 6, 7.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use super::Pixels;
use crate::error::Result;
use crate::models::clip as model;
use crate::nn;
use crate::pixels::Image;

/// The image tower, its pixel constants, and the head's widths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The image tower whose embedding the head reads.
    pub vision: model::VisionConfig,
    /// What the image tower was trained on.
    #[serde(default)]
    pub pixels: Pixels,
    /// The head.
    #[serde(default)]
    pub head: HeadConfig,
}

/// The widths between the head's linear maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// LAION's are 1024, 128, 64 and 16.
    pub widths: [usize; 4],
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self { widths: [1024, 128, 64, 16] }
    }
}

/// Where the linear maps stand in LAION's `Sequential`; between them stand dropouts.
const PLACES: [usize; 5] = [0, 2, 4, 6, 7];

/// The head as its chain of linear maps, trainable.
#[derive(Debug, Clone)]
pub struct Head {
    maps: Vec<(Tensor, Tensor)>,
}

impl Head {
    /// Opens the head for embeddings of `width`; `vb` stands at `layers`.
    ///
    /// # Errors
    /// Where a weight is missing or has another shape.
    pub fn new(config: &HeadConfig, width: usize, vb: VarBuilder) -> Result<Self> {
        let mut maps = Vec::new();
        let mut from = width;
        for (place, to) in PLACES.into_iter().zip(config.widths.into_iter().chain([1])) {
            let vb = vb.pp(place);
            let init = Init::Randn { mean: 0.0, stdev: (from as f64).powf(-0.5) };
            maps.push((
                vb.get_with_hints((to, from), "weight", init)?,
                vb.get_with_hints(to, "bias", Init::Const(0.0))?,
            ));
            from = to;
        }
        Ok(Self { maps })
    }

    /// Scores of embeddings (B, P), one map after the other: (B).
    ///
    /// # Errors
    /// Where the embeddings have another width.
    pub fn forward(&self, embeddings: &Tensor) -> Result<Tensor> {
        let mut xs = embeddings.clone();
        for (weight, bias) in &self.maps {
            xs = nn::linear(&xs, weight, Some(bias))?;
        }
        Ok(xs.squeeze(1)?)
    }

    /// The whole chain as one affine map: weights and bias.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    pub fn folded(&self) -> Result<(Vec<f64>, f64)> {
        let double = |t: &Tensor| t.to_dtype(DType::F64)?.to_device(&Device::Cpu);
        let (mut weight, mut bias): (Option<Tensor>, Option<Tensor>) = (None, None);
        for (w, b) in &self.maps {
            let (w, b) = (double(w)?, double(b)?);
            (weight, bias) = match (weight, bias) {
                (Some(weight), Some(bias)) => {
                    let bias = (w.matmul(&bias.unsqueeze(1)?)?.squeeze(1)? + b)?;
                    (Some(w.matmul(&weight)?), Some(bias))
                }
                _ => (Some(w), Some(b)),
            };
        }
        let (weight, bias) = weight.zip(bias).expect("the head has five maps");
        Ok((weight.flatten_all()?.to_vec1()?, bias.to_vec1::<f64>()?[0]))
    }
}

/// LAION's head on a CLIP's unit image embedding.
#[derive(Debug)]
pub struct Aesthetic {
    tower: model::VisionTower,
    pixels: Pixels,
    weight: Vec<f64>,
    bias: f64,
    device: Device,
}

impl Aesthetic {
    /// Opens the image tower over `vb` and the head over `layers`, which may come from another file.
    ///
    /// # Errors
    /// Where weights are missing or have other shapes.
    pub fn new(config: &Config, vb: VarBuilder, layers: VarBuilder) -> Result<Self> {
        let device = vb.device().clone();
        let tower = model::VisionTower::new(&config.vision, vb)?;
        let (weight, bias) = Head::new(&config.head, config.vision.projection_dim, layers)?.folded()?;
        Ok(Self { tower, pixels: config.pixels.clone(), weight, bias, device })
    }

    /// The head's value for each image; prompts are not read.
    ///
    /// # Errors
    /// Where an image has another size than the image tower takes.
    pub fn score(&self, images: &[Image], _prompts: &[String]) -> Result<Vec<f64>> {
        let embeddings = self.pixels.embed(&self.tower, images, &self.device)?;
        let affine = |row: &Vec<f32>| {
            self.bias + row.iter().zip(&self.weight).map(|(x, w)| f64::from(*x) * w).sum::<f64>()
        };
        Ok(embeddings.iter().map(affine).collect())
    }
}
