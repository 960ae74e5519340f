//! Pictures on their way into a reward model and into the denoiser's latents.

use std::path::Path;

use anyhow::Result;
use candle_core::{Device, Tensor};
use ppd::encoder::Encoder;
use ppd::nn::workers::Workers;
use ppd::pixels::Image;
use ppd::reward::{Pixels, Preprocessing};
use serde_json::json;

use crate::measured::{Measured, circumstances, time};
use crate::ops::{mean_square, numbers};

/// Pictures of one call, their size, and the side that CLIP takes.
const PICTURES: usize = 8;
const HEIGHT: usize = 768;
const WIDTH: usize = 1024;
const REWARD_SIDE: usize = 224;
/// Pictures that are encoded at once, and their side, as for Stage C's latents.
const ENCODED: usize = 2;
const CODEC_SIDE: usize = 768;

/// Resize, crop and normalise whole pictures as CLIP takes them, on one thread as Pillow works.
pub fn preprocess(reps: usize) -> Result<Measured> {
    let shape = [PICTURES, HEIGHT, WIDTH, 3];
    let values = numbers(&shape, 1)?.reshape((PICTURES, HEIGHT * WIDTH * 3))?.to_vec2::<f32>()?;
    let picture = |row: &Vec<f32>| {
        Image::new(WIDTH, HEIGHT, row.iter().map(|value| ((value + 1.0) * 128.0) as u8).collect())
    };
    let pictures: Vec<Image> = values.iter().map(picture).collect();
    // The same two steps as torchvision's transforms: the resize and crop, then the constants.
    let pixels = Pixels { preprocessing: Preprocessing::OpenClip, ..Pixels::default() };
    let pictures: Vec<&Image> = pictures.iter().collect();
    let (seconds, out) = time(reps, || Ok(pixels.tensor(&pictures, REWARD_SIDE, &Device::Cpu)?))?;
    let mut shape = json!({"pictures": shape, "side": REWARD_SIDE});
    circumstances(&mut shape, &out, 1);
    Ok(Measured { shape, seconds, check: vec![mean_square(&out)?] })
}

/// Prepared pictures to Stage C's latents, through EfficientNetV2-S at its true size with the exported weights.
pub fn encode(inputs: &Path, threads: usize, reps: usize) -> Result<Measured> {
    let encoder = Encoder::open(&inputs.join("effnet_encoder.safetensors"), &Device::Cpu)?;
    let shape = [ENCODED, 3, CODEC_SIDE, CODEC_SIDE];
    let pictures = numbers(&shape, 2)?.permute((0, 2, 3, 1))?.contiguous()?; // (B, H, W, 3)
    // A picture a worker, as where a data set is encoded.
    let workers = Workers::new(threads)?;
    let each: Vec<usize> = (0..ENCODED).collect();
    let (seconds, out) = time(reps, || {
        let encoded = workers.map(&each, |_, &i| encoder.encode_prepared(&pictures.narrow(0, i, 1)?));
        Ok(Tensor::cat(&encoded.into_iter().collect::<ppd::error::Result<Vec<_>>>()?, 0)?)
    })?;
    let mut shape = json!({"pixels": shape});
    circumstances(&mut shape, &out, workers.count());
    Ok(Measured { shape, seconds, check: vec![mean_square(&out)?] })
}
