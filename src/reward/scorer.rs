//! What the CLIP-based rewards share: pixels → normalised tensor → embedding, prompts → embedding, cosine.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::clip::{self, Clip, VisionTower};
use crate::models::tokenizer::Tokenizer;
use crate::pixels::Image;

/// Images or prompts in one pass through a tower: enough to fill the cores, little enough for any memory.
const BATCH: usize = 64;

/// How bytes become the numbers that an image tower takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pixels {
    /// Subtracted from each channel, in [0, 1].
    pub mean: [f64; 3],
    /// Divides each channel afterwards.
    pub std: [f64; 3],
}

impl Default for Pixels {
    /// OpenAI's constants, which every public CLIP here uses.
    fn default() -> Self {
        Self {
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
        }
    }
}

impl Pixels {
    /// Images as a tensor (B, 3, H, W), each channel `(byte / 255 − mean) / std`.
    ///
    /// # Errors
    /// Where the images differ in size.
    pub fn tensor(&self, images: &[&Image], device: &Device) -> Result<Tensor> {
        let (width, height) = images.first().map_or((0, 0), |image| (image.width(), image.height()));
        let mut values = vec![0f32; images.len() * 3 * width * height];
        let table: Vec<[f32; 256]> = (0..3)
            .map(|c| std::array::from_fn(|byte| ((byte as f64 / 255.0 - self.mean[c]) / self.std[c]) as f32))
            .collect();
        let plane = width * height;
        for (image, out) in images.iter().zip(values.chunks_exact_mut(3 * plane)) {
            if (image.width(), image.height()) != (width, height) {
                return Err(Error::Shape(format!(
                    "images of {width}×{height} and {}×{} in one batch",
                    image.width(),
                    image.height()
                )));
            }
            for (i, pixel) in image.rgb().chunks_exact(3).enumerate() {
                for c in 0..3 {
                    out[c * plane + i] = table[c][usize::from(pixel[c])];
                }
            }
        }
        Ok(Tensor::from_vec(values, (images.len(), 3, height, width), device)?)
    }

    /// Unit image embeddings, one row for each image.
    ///
    /// # Errors
    /// Where an image has another size than the tower takes.
    pub fn embed(&self, tower: &VisionTower, images: &[Image], device: &Device) -> Result<Vec<Vec<f32>>> {
        let size = tower.image_size();
        if let Some(odd) = images.iter().find(|image| (image.width(), image.height()) != (size, size)) {
            return Err(Error::Shape(format!(
                "an image of {}×{}: this reward takes {size}×{size}; resize and crop it as the reward's own \
                 preprocessing does",
                odd.width(),
                odd.height()
            )));
        }
        let mut rows = Vec::with_capacity(images.len());
        for chunk in images.chunks(BATCH) {
            let chunk: Vec<&Image> = chunk.iter().collect();
            rows.extend(clip::unit(&tower.embeddings(&self.tensor(&chunk, device)?)?)?.to_vec2::<f32>()?);
        }
        Ok(rows)
    }
}

/// A CLIP with its tokenizer and pixel constants.
#[derive(Debug)]
pub struct Scorer {
    clip: Clip,
    tokenizer: Tokenizer,
    pixels: Pixels,
    device: Device,
}

impl Scorer {
    /// Opens the CLIP of `config` over the weights of `vb`.
    ///
    /// # Errors
    /// Where weights are missing or have other shapes.
    pub fn new(config: &clip::Config, pixels: &Pixels, vb: VarBuilder, tokenizer: Tokenizer) -> Result<Self> {
        let device = vb.device().clone();
        Ok(Self { clip: Clip::new(config, vb)?, tokenizer, pixels: pixels.clone(), device })
    }

    /// Unit image embeddings, one row for each image.
    ///
    /// # Errors
    /// Where an image has another size than the image tower takes.
    pub fn embed_images(&self, images: &[Image]) -> Result<Vec<Vec<f32>>> {
        self.pixels.embed(&self.clip.vision, images, &self.device)
    }

    /// Unit text embeddings, one row for each prompt; a prompt that comes again is computed once.
    ///
    /// # Errors
    /// Where the tokenizer refuses a prompt.
    pub fn embed_prompts(&self, prompts: &[String]) -> Result<Vec<Vec<f32>>> {
        let mut distinct: BTreeMap<&str, usize> = BTreeMap::new();
        let mut texts: Vec<&str> = Vec::new();
        let places: Vec<usize> = prompts
            .iter()
            .map(|prompt| {
                *distinct.entry(prompt).or_insert_with(|| {
                    texts.push(prompt);
                    texts.len() - 1
                })
            })
            .collect();
        let mut rows = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(BATCH) {
            rows.extend(self.clip.text_features(&self.tokenizer.encode(chunk)?)?.to_vec2::<f32>()?);
        }
        Ok(places.into_iter().map(|place| rows[place].clone()).collect())
    }

    /// The cosine of each image and its prompt.
    ///
    /// # Errors
    /// As the two embeddings.
    pub fn cosines(&self, images: &[Image], prompts: &[String]) -> Result<Vec<f64>> {
        let (images, prompts) = (self.embed_images(images)?, self.embed_prompts(prompts)?);
        Ok(images.iter().zip(&prompts).map(|(image, prompt)| cosine(image, prompt)).collect())
    }

    /// The CLIP's inverse temperature, `exp(logit_scale)`.
    ///
    /// # Errors
    /// Where the tensor library refuses.
    pub fn inverse_temperature(&self) -> Result<f64> {
        Ok(f64::from(self.clip.logit_scale.exp()?.to_scalar::<f32>()?))
    }
}

/// The cosine of two unit embeddings: their inner product in double precision, so that the sum adds no rounding.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// How often a picture's own caption is the nearest to it among `candidates` captions: its own and others of the same
/// list, spread evenly over it. A caption that is the same in words is no wrong answer.
///
/// # Panics
/// Where the lists differ in length.
pub fn retrieval(pictures: &[Vec<f32>], texts: &[Vec<f32>], captions: &[String], candidates: usize) -> f64 {
    let count = pictures.len();
    assert_eq!((texts.len(), captions.len()), (count, count), "one caption for each picture");
    let right = pictures.iter().enumerate().filter(|(i, picture)| {
        let own = cosine(picture, &texts[*i]);
        let others = (1..candidates).map(|j| (i + j * count / candidates) % count);
        others.filter(|&j| captions[j] != captions[*i]).all(|j| cosine(picture, &texts[j]) < own)
    });
    right.count() as f64 / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retrieval_counts_pictures_whose_caption_is_nearest() {
        let axis = |i: usize| (0..4).map(|k| f32::from(u8::from(k == i))).collect::<Vec<f32>>();
        let texts: Vec<Vec<f32>> = (0..4).map(axis).collect();
        let captions: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        assert_eq!(retrieval(&texts, &texts, &captions, 4), 1.0);
        let pictures = [axis(0), axis(1), axis(3), axis(2)];
        assert_eq!(retrieval(&pictures, &texts, &captions, 4), 0.5);
        let same: Vec<String> = ["a", "b", "c", "c"].map(str::to_owned).to_vec();
        assert_eq!(retrieval(&pictures, &texts, &same, 4), 0.5, "ties with the rest are no victory");
    }
}
