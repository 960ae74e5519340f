//! What the CLIP-based rewards share: pixels → normalised tensor → embedding, prompts → embedding, cosine.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use super::BATCH;
use super::preprocess::{Preprocessing, Square};
use crate::error::Result;
use crate::models::clip::{self, Clip, VisionTower};
use crate::models::tokenizer::Tokenizer;
use crate::pixels::Image;

/// How bytes become the numbers that an image tower takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pixels {
    /// Subtracted from each channel, in [0, 1].
    pub mean: [f64; 3],
    /// Divides each channel afterwards.
    pub std: [f64; 3],
    /// What makes a picture of any size the tower's square.
    #[serde(default, skip_serializing_if = "Preprocessing::is_none")]
    pub preprocessing: Preprocessing,
}

impl Default for Pixels {
    /// OpenAI's constants, which every public CLIP here uses, for pictures that have the tower's size.
    fn default() -> Self {
        Self {
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
            preprocessing: Preprocessing::None,
        }
    }
}

impl Pixels {
    /// Images as a tensor (B, 3, `size`, `size`), each channel `(value − mean) / std` of what the preprocessing gives.
    ///
    /// # Errors
    /// Where the preprocessing refuses an image.
    pub fn tensor(&self, images: &[&Image], size: usize, device: &Device) -> Result<Tensor> {
        let plane = size * size;
        let mut values = vec![0f32; images.len() * 3 * plane];
        let table: Vec<[f32; 256]> = (0..3)
            .map(|c| std::array::from_fn(|byte| ((byte as f64 / 255.0 - self.mean[c]) / self.std[c]) as f32))
            .collect();
        for (image, out) in images.iter().zip(values.chunks_exact_mut(3 * plane)) {
            match self.preprocessing.apply(image, size)? {
                Square::Bytes(square) => {
                    for (i, pixel) in square.rgb().chunks_exact(3).enumerate() {
                        for c in 0..3 {
                            out[c * plane + i] = table[c][usize::from(pixel[c])];
                        }
                    }
                }
                Square::Numbers(square) => {
                    let (mean, std) = (self.mean.map(|x| x as f32), self.std.map(|x| x as f32));
                    for (i, (out, value)) in out.iter_mut().zip(square.values()).enumerate() {
                        *out = (value - mean[i / plane]) / std[i / plane];
                    }
                }
            }
        }
        Ok(Tensor::from_vec(values, (images.len(), 3, size, size), device)?)
    }

    /// Unit image embeddings, one row for each image.
    ///
    /// # Errors
    /// Where the preprocessing refuses an image.
    pub fn embed(&self, tower: &VisionTower, images: &[Image], device: &Device) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::with_capacity(images.len());
        for chunk in images.chunks(BATCH) {
            let chunk: Vec<&Image> = chunk.iter().collect();
            let pixels = self.tensor(&chunk, tower.image_size(), device)?;
            rows.extend(clip::unit(&tower.embeddings(&pixels)?)?.to_vec2::<f32>()?);
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

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
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
