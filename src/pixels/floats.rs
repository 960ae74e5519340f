//! Pictures in single precision, resized and cropped as torchvision does with tensors.

use super::Image;
use crate::error::{Error, Result};

/// An RGB picture in single precision: `height × width × 3` numbers, rows from top to bottom.
#[derive(Debug, Clone, PartialEq)]
pub struct Floats {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// All numbers, `(height, width, 3)`.
    pub rgb: Vec<f32>,
}

impl From<&Image> for Floats {
    /// Bytes as numbers in [0, 1] (torchvision's `ToTensor`).
    fn from(image: &Image) -> Self {
        let rgb = image.rgb().iter().map(|&byte| f32::from(byte) / 255.0).collect();
        Self { width: image.width(), height: image.height(), rgb }
    }
}

/// What one new pixel of an axis is mixed of: the first old pixel, and the weights from there on.
type Mixture = (usize, Vec<f32>);

impl Floats {
    /// The picture with its shorter side of `size` pixels, the longer one rounded down, by a bilinear filter that widens
    /// where the picture shrinks (torchvision's `Resize(size, antialias=True)` of a tensor).
    ///
    /// # Errors
    /// Where a side is zero.
    pub fn resized_shortest(&self, size: usize) -> Result<Self> {
        let (short, long) = (self.width.min(self.height), self.width.max(self.height));
        if short == 0 || size == 0 {
            return Err(Error::Shape(format!(
                "cannot resize a picture of {}×{} to a shorter side of {size}: a picture has at least one pixel",
                self.width, self.height
            )));
        }
        if short == size {
            return Ok(self.clone());
        }
        let long = size * long / short;
        let (width, height) = if self.width <= self.height { (size, long) } else { (long, size) };
        // (rows, old width, 3) to (rows, new width, 3), then the same down the columns.
        let along = mix(&self.rgb, self.height, 3, &mixtures(self.width, width));
        let rgb = mix(&along, 1, 3 * width, &mixtures(self.height, height));
        Ok(Self { width, height, rgb })
    }

    /// The square of `size` pixels in the middle; a gap that is odd is halved to the even side (torchvision's
    /// `CenterCrop`).
    ///
    /// # Errors
    /// Where the picture is smaller.
    pub fn centre(&self, size: usize) -> Result<Self> {
        if self.width < size || self.height < size {
            return Err(Error::Shape(format!(
                "{size}×{size} pixels do not lie inside a picture of {}×{}",
                self.width, self.height
            )));
        }
        let offset = |side: usize| (((side - size) as f64) / 2.0).round_ties_even() as usize;
        let (left, top) = (offset(self.width), offset(self.height));
        let row = |y: usize| {
            let start = 3 * (y * self.width + left);
            &self.rgb[start..start + 3 * size]
        };
        Ok(Self { width: size, height: size, rgb: (top..top + size).flat_map(row).copied().collect() })
    }
}

/// The triangle filter's weights, in torch's order of operations.
fn mixtures(from: usize, to: usize) -> Vec<Mixture> {
    let scale = from as f32 / to as f32;
    let widened = scale.max(1.0);
    let mixture = |i: usize| {
        let centre = scale * (i as f32 + 0.5);
        let first = (centre - widened + 0.5).max(0.0) as usize;
        let end = ((centre + widened + 0.5) as usize).min(from);
        let weight = |j: usize| (1.0 - ((j as f32 - centre + 0.5) / widened).abs()).max(0.0);
        let weights: Vec<f32> = (first..end).map(weight).collect();
        let sum: f32 = weights.iter().sum();
        (first, weights.iter().map(|weight| weight / sum).collect())
    };
    (0..to).map(mixture).collect()
}

/// Mixes the middle axis of (outer, positions, inner) numbers.
fn mix(data: &[f32], outer: usize, inner: usize, mixtures: &[Mixture]) -> Vec<f32> {
    let positions = data.len() / (outer * inner);
    let mut mixed = vec![0f32; outer * mixtures.len() * inner];
    let blocks = data.chunks_exact(positions * inner).zip(mixed.chunks_exact_mut(mixtures.len() * inner));
    for (data, mixed) in blocks {
        for ((first, weights), out) in mixtures.iter().zip(mixed.chunks_exact_mut(inner)) {
            for (weight, old) in weights.iter().zip(data[first * inner..].chunks_exact(inner)) {
                out.iter_mut().zip(old).for_each(|(out, old)| *out += weight * old);
            }
        }
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_shrinks_by_means_and_the_centre_is_cut_to_the_even_side() {
        let bytes = (0..6 * 4).flat_map(|i| [10 * (i % 6) as u8, 0, 255]).collect();
        let floats = Floats::from(&Image::new(6, 4, bytes));
        assert_eq!(floats.resized_shortest(4).unwrap(), floats);
        let small = floats.resized_shortest(2).unwrap();
        assert_eq!((small.width, small.height), (3, 2));
        // A triangle of half-width two over four pixels: 1/8, 3/8, 3/8, 1/8; at the border the rest of it.
        let expected = [(0.0 * 3.0 + 10.0 * 3.0 + 20.0) / 7.0, 25.0, (30.0 + 3.0 * 40.0 + 3.0 * 50.0) / 7.0];
        for (x, expected) in expected.iter().enumerate() {
            assert!((small.rgb[3 * x] * 255.0 - expected).abs() < 1e-4, "{:?}", &small.rgb[..9]);
            assert!((small.rgb[3 * x + 2] - 1.0).abs() < 1e-6);
        }
        assert_eq!(small.centre(2).unwrap().rgb[0], small.rgb[0], "a gap of one: half is rounded to zero");
        let message = small.centre(3).unwrap_err().to_string();
        assert!(message.contains("3×3") && message.contains("3×2"), "{message}");
    }
}
