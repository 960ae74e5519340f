//! Resizing and cropping as Pillow does, on which every public reward model's preprocessing rests.
//!
//! Pillow widens its filter when it shrinks a picture, so that no pixel is skipped, works along rows first and columns
//! second, rounds to bytes between the two, and computes in fixed point. `fast_image_resize` follows the same scheme.

use fast_image_resize::images::{Image as Output, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::Image;
use crate::error::{Error, Result};

/// How the colours between pixels are guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// A triangle: `BILINEAR`.
    Bilinear,
    /// Cubic convolution with a = −1/2: `BICUBIC`.
    Bicubic,
    /// A windowed sinc of three lobes: `LANCZOS`.
    Lanczos,
}

impl Image {
    /// The picture in another size, as Pillow's `Image.resize`.
    ///
    /// # Errors
    /// Where a side is zero.
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Result<Self> {
        if (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let refused = |fault: String| {
            let (from, to) = ((self.width, self.height), (width, height));
            Error::Shape(format!(
                "cannot resize a picture of {}×{} to {}×{}: {fault}",
                from.0, from.1, to.0, to.1
            ))
        };
        if [width, height, self.width, self.height].contains(&0) {
            return Err(refused("a picture has at least one pixel".into()));
        }
        let source = ImageRef::new(self.width as u32, self.height as u32, &self.rgb, PixelType::U8x3)
            .map_err(|fault| refused(fault.to_string()))?;
        let mut output = Output::new(width as u32, height as u32, PixelType::U8x3);
        let filter = match filter {
            Filter::Bilinear => FilterType::Bilinear,
            Filter::Bicubic => FilterType::CatmullRom,
            Filter::Lanczos => FilterType::Lanczos3,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
        Resizer::new().resize(&source, &mut output, &options).map_err(|fault| refused(fault.to_string()))?;
        Ok(Self::new(width, height, output.into_vec()))
    }

    /// The picture with its shorter side of `size` pixels, the longer one rounded down, as torchvision's and transformers'
    /// `shortest_edge`.
    ///
    /// # Errors
    /// Where a side is zero.
    pub fn resized_shortest(&self, size: usize, filter: Filter) -> Result<Self> {
        let (short, long) = (self.width.min(self.height).max(1), self.width.max(self.height));
        let long = size * long / short;
        let (width, height) = if self.width <= self.height { (size, long) } else { (long, size) };
        self.resized(width, height, filter)
    }

    /// A part of the picture.
    ///
    /// # Errors
    /// Where the part does not lie inside.
    pub fn cropped(&self, left: usize, top: usize, width: usize, height: usize) -> Result<Self> {
        if left + width > self.width || top + height > self.height {
            return Err(Error::Shape(format!(
                "{width}×{height} pixels from ({left}, {top}) do not lie inside a picture of {}×{}",
                self.width, self.height
            )));
        }
        let row = |y: usize| {
            let start = 3 * (y * self.width + left);
            &self.rgb[start..start + 3 * width]
        };
        Ok(Self::new(width, height, (top..top + height).flat_map(row).copied().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> Image {
        let pixel = |i: usize| [(i % width * 5) as u8, (i / width * 7) as u8, 9];
        Image::new(width, height, (0..width * height).flat_map(pixel).collect())
    }

    #[test]
    fn sides_and_parts_are_those_asked_for() {
        let image = ramp(20, 30);
        let small = image.resized_shortest(7, Filter::Bicubic).unwrap();
        assert_eq!((small.width(), small.height()), (7, 10), "7·30/20 is 10.5, rounded down");
        assert_eq!(image.resized(20, 30, Filter::Lanczos).unwrap(), image);
        let part = image.cropped(2, 3, 4, 5).unwrap();
        assert_eq!((part.at(0, 0), part.at(3, 4)), (image.at(2, 3), image.at(5, 7)));
    }

    #[test]
    fn what_has_no_pixels_is_refused() {
        let message = ramp(4, 4).resized(0, 3, Filter::Bilinear).unwrap_err().to_string();
        assert!(message.contains("4×4") && message.contains("0×3"), "{message}");
        let message = ramp(4, 4).cropped(2, 0, 3, 1).unwrap_err().to_string();
        assert!(message.contains("3×1") && message.contains("4×4"), "{message}");
    }
}
