//! The public rewards' preprocessings: a picture of any size → the square that an image tower takes.
//!
//! They differ in what no eye sees and every score feels: in which pixel a crop of an odd remainder begins, whether
//! bytes or numbers are resized, and whether a palette, opacity or ink is still there when they are. A picture that has the tower's size already passes through all of them unchanged.
//!
//! # Source
//! `open_clip/transform.py`, `torchvision/transforms`, `CLIPImageProcessor` and `SiglipImageProcessor` of transformers 4.49,
//! `hpsv2/src/open_clip/transform.py`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pixels::{Filter, Image, Planes};

/// How a picture becomes the square that an image tower takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preprocessing {
    /// Not at all: the picture must have the tower's size.
    #[default]
    None,
    /// open_clip's and OpenAI's: the shorter side resized by Pillow, bicubically; the middle cut out as torchvision
    /// rounds, half to even; the RGB taken last (see [`crate::pixels::Mode`]). ImageReward's too.
    OpenClip,
    /// Hugging Face's `CLIPImageProcessor`: the same, the middle cut out as it rounds, down.
    HuggingFace,
    /// HPS v2's: as open_clip's, but numbers are resized, not bytes.
    HpsV2,
    /// `SiglipImageProcessor`'s: both sides resized by Pillow, bicubically, whatever becomes of the shape.
    Siglip,
}

/// A square picture, in bytes or where they were left behind in numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Square {
    /// Bytes.
    Bytes(Image),
    /// Numbers in [0, 1], but for the cubic's overshoot.
    Numbers(Planes),
}

impl Preprocessing {
    /// Whether it is [`Preprocessing::None`].
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// The picture as a square of `size`.
    ///
    /// # Errors
    /// Where the picture has no pixels, or is not to be changed and has another size.
    pub fn apply(self, image: &Image, size: usize) -> Result<Square> {
        if (image.width(), image.height()) == (size, size) {
            return Ok(Square::Bytes(image.clone()));
        }
        Ok(match self {
            Self::None => {
                return Err(Error::Shape(format!(
                    "an image of {}×{}: this reward takes {size}×{size}; resize and crop it as the reward's own \
                     preprocessing does",
                    image.width(),
                    image.height()
                )));
            }
            Self::OpenClip | Self::HuggingFace => {
                let resized = match self {
                    Self::OpenClip => image.resized_shortest_as_stored(size, Filter::Bicubic)?,
                    _ => image.resized_shortest(size, Filter::Bicubic)?,
                };
                let (left, top) = self.corner((resized.width(), resized.height()), size);
                Square::Bytes(resized.cropped(left, top, size, size)?)
            }
            Self::HpsV2 => {
                let resized = image.planes().resized_shortest(size, Filter::Bicubic)?;
                let (left, top) = self.corner((resized.width(), resized.height()), size);
                Square::Numbers(resized.cropped(left, top, size, size)?)
            }
            Self::Siglip => Square::Bytes(image.resized(size, size, Filter::Bicubic)?),
        })
    }

    /// The left upper corner of the middle `size × size` pixels.
    fn corner(self, (width, height): (usize, usize), size: usize) -> (usize, usize) {
        let middle = |side: usize| {
            let rest = side - size;
            match self {
                // Python's `round`: a half goes to the even neighbour.
                Self::OpenClip | Self::HpsV2 => rest / 2 + usize::from(rest % 4 == 3),
                _ => rest / 2,
            }
        };
        (middle(width), middle(height))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_as_each_library_does() {
        for (rest, open_clip, hugging_face) in
            [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 2, 1), (5, 2, 2), (7, 4, 3)]
        {
            let corner = |kind: Preprocessing| kind.corner((56 + rest, 56), 56);
            assert_eq!(corner(Preprocessing::OpenClip), (open_clip, 0));
            assert_eq!(corner(Preprocessing::HuggingFace), (hugging_face, 0));
        }
    }

    #[test]
    fn a_picture_of_the_towers_size_is_left_alone() {
        let image = Image::new(2, 2, (0..12).collect());
        for kind in [
            Preprocessing::None,
            Preprocessing::OpenClip,
            Preprocessing::HuggingFace,
            Preprocessing::HpsV2,
            Preprocessing::Siglip,
        ] {
            assert_eq!(kind.apply(&image, 2).unwrap(), Square::Bytes(image.clone()));
            assert!(kind.apply(&Image::new(0, 0, vec![]), 2).is_err(), "{kind:?}");
        }
    }
}
