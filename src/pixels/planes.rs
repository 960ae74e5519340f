//! A picture as numbers in [0, 1], a plane for each channel, and its resizing as torch does it on tensors.
//!
//! Some preprocessings resize after the bytes have become numbers: nothing is rounded to bytes on the way, so their
//! results are not Pillow's. Positions and weights are computed in single precision in torch's own order, as in a picture of a
//! thousand pixels the rounding of a position moves the result by as much as 1e-5.

use super::{Filter, Image};
use crate::error::{Error, Result};

/// Three planes of `height × width` numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Planes {
    width: usize,
    height: usize,
    values: Vec<f32>,
}

impl Image {
    /// The picture's bytes over 255, as torchvision's `to_tensor`.
    pub fn planes(&self) -> Planes {
        let plane = self.width * self.height;
        let mut values = vec![0f32; 3 * plane];
        for (i, pixel) in self.rgb.chunks_exact(3).enumerate() {
            for (c, &byte) in pixel.iter().enumerate() {
                values[c * plane + i] = f32::from(byte) / 255.0;
            }
        }
        Planes { width: self.width, height: self.height, values }
    }
}

/// Which inputs an output is made of, and how much of each.
struct Window {
    first: usize,
    weights: Vec<f32>,
}

impl Planes {
    /// Pixels across.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels down.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All numbers, `(3, height, width)`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The picture in another size, as `torchvision.transforms.functional.resize` of a tensor with `antialias=True`.
    ///
    /// # Errors
    /// Where a side is zero, or the filter is one that torch lacks.
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Result<Self> {
        if (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let refused = |fault: &str| {
            let (from, to) = ((self.width, self.height), (width, height));
            Error::Shape(format!(
                "cannot resize planes of {}×{} to {}×{}: {fault}",
                from.0, from.1, to.0, to.1
            ))
        };
        if [width, height, self.width, self.height].contains(&0) {
            return Err(refused("a picture has at least one pixel"));
        }
        if filter == Filter::Lanczos {
            return Err(refused("tensors are resized bilinearly or bicubically"));
        }
        // Along rows first.
        let columns = windows(self.width, width, filter);
        let mut across = Vec::with_capacity(3 * self.height * width);
        for row in self.values.chunks_exact(self.width) {
            across.extend(columns.iter().map(|window| {
                let inputs = &row[window.first..];
                window.weights.iter().zip(inputs).map(|(weight, value)| weight * value).sum::<f32>()
            }));
        }
        let rows = windows(self.height, height, filter);
        let mut values = vec![0f32; 3 * height * width];
        let planes = across.chunks_exact(self.height * width);
        for (plane, out) in planes.zip(values.chunks_exact_mut(height * width)) {
            for (window, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
                let inputs = plane[window.first * width..].chunks_exact(width);
                for (weight, row) in window.weights.iter().zip(inputs) {
                    out.iter_mut().zip(row).for_each(|(out, value)| *out += weight * value);
                }
            }
        }
        Ok(Self { width, height, values })
    }

    /// As [`Image::resized_shortest`].
    ///
    /// # Errors
    /// As [`Planes::resized`].
    pub fn resized_shortest(&self, size: usize, filter: Filter) -> Result<Self> {
        let (width, height) = super::resize::shortest((self.width, self.height), size);
        self.resized(width, height, filter)
    }

    /// A part of the picture.
    ///
    /// # Errors
    /// Where the part does not lie inside.
    pub fn cropped(&self, left: usize, top: usize, width: usize, height: usize) -> Result<Self> {
        if left + width > self.width || top + height > self.height {
            return Err(Error::Shape(format!(
                "{width}×{height} pixels from ({left}, {top}) do not lie inside planes of {}×{}",
                self.width, self.height
            )));
        }
        let rows =
            (0..3).flat_map(|c| (top..top + height).map(move |y| (c * self.height + y) * self.width + left));
        let values = rows.flat_map(|start| &self.values[start..start + width]).copied().collect();
        Ok(Self { width, height, values })
    }
}

impl Planes {
    /// The square of `size` pixels in the middle; of a gap that is odd the half is rounded to the even side (torchvision's
    /// `CenterCrop`).
    ///
    /// # Errors
    /// Where the picture is smaller.
    pub fn centre(&self, size: usize) -> Result<Self> {
        // A picture that is smaller has no gap, and is refused by the cut.
        let middle = |side: usize| (side.saturating_sub(size) as f64 / 2.0).round_ties_even() as usize;
        self.cropped(middle(self.width), middle(self.height), size, size)
    }
}

/// Torch's antialiasing windows from `from` to `to` pixels; in single precision wherever torch is.
fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f32 / to as f32;
    let reach: f32 = if filter == Filter::Bilinear { 1.0 } else { 2.0 };
    let (support, inverse) = if scale >= 1.0 { (reach * scale, 1.0 / scale) } else { (reach, 1.0) };
    let window = |i: usize| {
        let center = (f64::from(scale) * (i as f64 + 0.5)) as f32;
        let first = (f64::from(center - support) + 0.5).max(0.0) as usize;
        let end = ((f64::from(center + support) + 0.5) as usize).min(from);
        let weight = |j: usize| {
            let distance = (f64::from(j as f32 - center) + 0.5) * f64::from(inverse);
            kernel(distance as f32, filter)
        };
        let mut weights: Vec<f32> = (first..end).map(weight).collect();
        let total: f32 = weights.iter().sum();
        if total != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= total);
        }
        Window { first, weights }
    };
    (0..to).map(window).collect()
}

/// The filter at a distance in output pixels; the cubic's parameter is −1/2, as Pillow's.
fn kernel(distance: f32, filter: Filter) -> f32 {
    let x = distance.abs();
    match filter {
        Filter::Bilinear => (1.0 - x).max(0.0),
        _ if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        _ if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_shrinks_by_means_and_the_centre_is_cut_to_the_even_side() {
        let bytes = (0..6 * 4).flat_map(|i| [10 * (i % 6) as u8, 0, 255]).collect();
        let planes = Image::new(6, 4, bytes).planes();
        assert_eq!(planes.resized_shortest(4, Filter::Bilinear).unwrap(), planes);
        let small = planes.resized_shortest(2, Filter::Bilinear).unwrap();
        assert_eq!((small.width, small.height), (3, 2));
        // A triangle of half-width two over four pixels: 1/8, 3/8, 3/8, 1/8; at the border the rest of it.
        let expected = [(0.0 * 3.0 + 10.0 * 3.0 + 20.0) / 7.0, 25.0, (30.0 + 3.0 * 40.0 + 3.0 * 50.0) / 7.0];
        for (x, expected) in expected.iter().enumerate() {
            assert!((small.values[x] * 255.0 - expected).abs() < 1e-4, "{:?}", &small.values[..3]);
            assert!((small.values[12 + x] - 1.0).abs() < 1e-6);
        }
        assert_eq!(
            small.centre(2).unwrap().values[0],
            small.values[0],
            "a gap of one: half is rounded to zero"
        );
        let message = small.centre(3).unwrap_err().to_string();
        assert!(message.contains("3×3") && message.contains("3×2"), "{message}");
    }

    #[test]
    fn a_flat_picture_stays_flat_and_parts_are_those_asked_for() {
        let flat = Image::new(9, 5, vec![51; 135]).planes();
        assert!(flat.values().iter().all(|value| *value == 0.2));
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let small = flat.resized_shortest(4, filter).unwrap();
            assert_eq!((small.width(), small.height()), (7, 4));
            assert!(small.values().iter().all(|value| (value - 0.2).abs() < 1e-6));
        }
        assert_eq!(flat.resized(9, 5, Filter::Lanczos).unwrap(), flat);
        assert!(flat.resized(4, 4, Filter::Lanczos).is_err());
        assert!(flat.resized(0, 4, Filter::Bicubic).unwrap_err().to_string().contains("9×5"));
        let ramp = Image::new(3, 2, (0..18).collect()).planes();
        let part = ramp.cropped(1, 1, 2, 1).unwrap();
        assert_eq!(part.values(), [12, 15, 13, 16, 14, 17].map(|byte| byte as f32 / 255.0));
        assert!(ramp.cropped(2, 0, 2, 1).is_err());
    }
}
