//! What a picture's file held beside its RGB, where that changes how Pillow resizes it.
//!
//! open_clip, OpenAI's CLIP and ImageReward resize a picture as its file holds it and take the RGB afterwards; transformers and HPS v2
//! take the RGB first. Of grey and colour both give the same. But Pillow takes the nearest pixel of a palette whatever
//! filter it is asked for, weighs colours by their opacity, and mixes ink, not light.
//!
//! # Source
//! Pillow, `Image.resize`, `libImaging/Geometry.c` (`ImagingScaleAffine`), `libImaging/Convert.c`.

use super::{Filter, Image};
use crate::error::Result;

/// How a picture was stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mode {
    /// As grey or RGB of eight bits, or of sixteen, of which eight were kept.
    #[default]
    Rgb,
    /// By a palette, or in black and white: Pillow's `P` and `1`.
    Indexed,
    /// With opacity, one byte a pixel: `RGBA` and `LA`.
    Alpha(Vec<u8>),
    /// As ink, four bytes a pixel, 0 being none: `CMYK`.
    Ink(Vec<u8>),
}

impl Image {
    /// Remembers how the picture was stored.
    ///
    /// # Panics
    /// Where the mode has not as many bytes as the picture has pixels.
    pub fn stored_as(mut self, mode: Mode) -> Self {
        let expected = match &mode {
            Mode::Rgb | Mode::Indexed => None,
            Mode::Alpha(bytes) => Some((bytes.len(), 1)),
            Mode::Ink(bytes) => Some((bytes.len(), 4)),
        };
        if let Some((bytes, each)) = expected {
            assert_eq!(bytes, each * self.width * self.height, "a mode has its bytes for each pixel");
        }
        self.mode = mode;
        self
    }

    /// How the picture was stored; what was made from it since is RGB.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// The RGB of the picture that is resized as it was stored.
    ///
    /// # Errors
    /// Where a side is zero.
    pub fn resized_as_stored(&self, width: usize, height: usize, filter: Filter) -> Result<Self> {
        if (width, height) == (self.width, self.height) {
            return Ok(Self::new(width, height, self.rgb.clone()));
        }
        let rgb = match &self.mode {
            Mode::Rgb => return self.resized(width, height, filter),
            Mode::Indexed => {
                self.check_sides(width, height)?;
                let columns = nearest(self.width, width);
                let row = |y: usize| columns.iter().flat_map(move |&x| self.at(x, y));
                nearest(self.height, height).into_iter().flat_map(row).collect()
            }
            Mode::Alpha(alpha) => {
                let weigh = |(rgb, &alpha): (&[u8], &u8)| {
                    let weighed = |byte: u8| product(byte, alpha);
                    [weighed(rgb[0]), weighed(rgb[1]), weighed(rgb[2]), alpha]
                };
                let bands: Vec<u8> = self.rgb.chunks_exact(3).zip(alpha).flat_map(weigh).collect();
                let bands = self.bands_resized::<4>(&bands, width, height, filter)?;
                bands.chunks_exact(4).flat_map(|p| unweighed([p[0], p[1], p[2]], p[3])).collect()
            }
            Mode::Ink(ink) => {
                let bands = self.bands_resized::<4>(ink, width, height, filter)?;
                bands.chunks_exact(4).flat_map(|p| light([p[0], p[1], p[2], p[3]])).collect()
            }
        };
        Ok(Self::new(width, height, rgb))
    }

    /// The same with its shorter side of `size` pixels, the longer one rounded down.
    ///
    /// # Errors
    /// Where a side is zero.
    pub fn resized_shortest_as_stored(&self, size: usize, filter: Filter) -> Result<Self> {
        let (width, height) = super::resize::shortest((self.width, self.height), size);
        self.resized_as_stored(width, height, filter)
    }
}

/// The light that ink (0 is none) leaves of white, as Pillow's `convert("RGB")`.
pub fn light([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let white = 255 - black;
    [cyan, magenta, yellow].map(|ink| white.saturating_sub(product(ink, white)))
}

/// A product of two bytes as parts of 255, rounded.
fn product(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// The colour that became `weighed` by its opacity.
fn unweighed(weighed: [u8; 3], alpha: u8) -> [u8; 3] {
    match alpha {
        0 | 255 => weighed,
        alpha => weighed.map(|byte| (255 * u32::from(byte) / u32::from(alpha)).min(255) as u8),
    }
}

/// The pixel under the middle of each output pixel, with the sum that Pillow rounds along the way.
fn nearest(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut place = step * 0.5;
    let mut next = || {
        let pixel = (place as usize).min(from - 1);
        place += step;
        pixel
    };
    (0..to).map(|_| next()).collect()
}
