//! A picture as plain values: eight-bit RGB, row by row. Reading and writing files is `image`'s business.

mod mode;
mod planes;
mod resize;

pub use mode::{Mode, light};
pub use planes::Planes;
pub use resize::Filter;

/// An RGB picture, `height × width × 3` bytes, rows from top to bottom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
    mode: Mode,
}

impl Image {
    /// Wraps bytes.
    ///
    /// # Panics
    /// Where the number of bytes is not `3 × width × height`.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        assert_eq!(rgb.len(), 3 * width * height, "an RGB image of {width}×{height} has 3·w·h bytes");
        Self { width, height, rgb, mode: Mode::Rgb }
    }

    /// Pixels across.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels down.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All bytes, `(height, width, 3)`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The colour at column `x`, row `y`.
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let start = 3 * (y * self.width + x);
        [self.rgb[start], self.rgb[start + 1], self.rgb[start + 2]]
    }

    /// The mean absolute difference of all bytes to another picture's, in [0, 1]; 1 where the sizes differ.
    pub fn difference(&self, other: &Self) -> f64 {
        if (self.width, self.height) != (other.width, other.height) {
            return 1.0;
        }
        let sum: u64 = self.rgb.iter().zip(&other.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / (255 * self.rgb.len().max(1)) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_none_to_itself_and_whole_between_black_and_white() {
        let flat = |byte: u8| Image::new(2, 3, vec![byte; 18]);
        assert_eq!(flat(7).difference(&flat(7)), 0.0);
        assert_eq!(flat(0).difference(&flat(255)), 1.0);
        assert!((flat(10).difference(&flat(61)) - 0.2).abs() < 1e-12);
        assert_eq!(flat(7).difference(&Image::new(3, 2, vec![7; 18])), 1.0);
    }
}
