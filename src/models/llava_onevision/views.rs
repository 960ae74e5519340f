//! Images as the model sees them: the whole image and its tiles, or the whole image alone, as pixels; and how many
//! features each gives.
//!
//! Two layouts exist. In `anyres`, transformers 4.49's, every image is tiled. In `base-only`, the paper's own (LLaVA-NeXT's
//! `image_aspect_ratio` "pad"), each image is laid on a square of mean colour and seen once; transformers 5 does the same
//! where a prompt has several images. Pixels are transformers': Pillow's bicubic filter, eight bits between the steps.

use std::ops::Range;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::config::{Config, ProcessorConfig};
use crate::error::{Error, Result};
use crate::pixels::{Filter, Image};

/// How an image becomes tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One view of the padded image: its features and one newline (730 tokens at the true size).
    #[default]
    BaseOnly,
    /// One view of the whole image and as many tiles as suit it, each row of features with a newline.
    Anyres,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Self; 2] = [Self::BaseOnly, Self::Anyres];

    /// Its name on the command line and in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::BaseOnly => "base-only",
            Self::Anyres => "anyres",
        }
    }
}

/// How the features of an image's tiles lie side by side, and what is taken of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Tiles down and across.
    pub tiles: (usize, usize),
    /// The rows of features that show the image, not the padding.
    pub rows: Range<usize>,
    /// The columns that do.
    pub columns: Range<usize>,
    /// Rows and columns after they are made fewer.
    pub shape: (usize, usize),
}

/// One image as the model sees it.
#[derive(Debug, Clone)]
pub struct Views {
    /// The whole image, then its tiles from left to right and top to bottom: (tiles, 3, S, S).
    pub tiles: Tensor,
    /// How the tiles lie; absent under [`Layout::BaseOnly`].
    pub grid: Option<Grid>,
    /// Features of one tile.
    pub patches: usize,
}

impl Views {
    /// Features, and so tokens, that the image gives.
    pub fn features(&self) -> usize {
        let of_tiles = |grid: &Grid| grid.shape.0 * (grid.shape.1 + 1);
        self.patches + self.grid.as_ref().map_or(1, of_tiles)
    }
}

/// Makes [`Views`] of images.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    size: usize,
    side: usize,
    max_tiles: usize,
    pinpoints: Vec<(usize, usize)>,
    rescale_factor: f64,
    mean: [f32; 3],
    std: [f32; 3],
}

impl ImageProcessor {
    /// The processor of a model.
    ///
    /// # Errors
    /// Where the two files do not fit each other, or ask for another filter than the bicubic one.
    pub fn new(processor: &ProcessorConfig, model: &Config) -> Result<Self> {
        let size = model.vision_config.image_size;
        let given = processor.size;
        if (given.height, given.width) != (size, size) {
            return Err(Error::Spec(format!(
                "preprocessor_config.json: `size` is {}×{}, and config.json's `image_size` is {size}; take both files from \
                 one repository",
                given.height, given.width
            )));
        }
        if processor.resample != 3 {
            return Err(Error::Spec(format!(
                "preprocessor_config.json: `resample` is {}; supported is 3, the bicubic filter",
                processor.resample
            )));
        }
        if let Some(pinpoints) = &processor.image_grid_pinpoints
            && *pinpoints != model.image_grid_pinpoints
        {
            return Err(Error::Spec(
                "preprocessor_config.json and config.json have different `image_grid_pinpoints`; take both files from \
                 one repository"
                    .into(),
            ));
        }
        Ok(Self {
            size,
            side: model.vision_config.patches(),
            max_tiles: model.max_tiles()?,
            pinpoints: model.image_grid_pinpoints.clone(),
            rescale_factor: processor.rescale_factor,
            mean: processor.image_mean,
            std: processor.image_std,
        })
    }

    /// An image's views.
    ///
    /// # Errors
    /// Where it has no pixels.
    pub fn views(&self, image: &Image, layout: Layout) -> Result<Views> {
        let (width, height) = (image.width(), image.height());
        if width == 0 || height == 0 {
            return Err(Error::Shape(format!(
                "an image of {width}×{height} pixels has nothing to see; expected at least one pixel each way"
            )));
        }
        let bicubic = |image: &Image| image.resized(self.size, self.size, Filter::Bicubic);
        let (pictures, grid) = match layout {
            Layout::BaseOnly => (vec![bicubic(&self.squared(image))?], None),
            Layout::Anyres => {
                let resolution = self.resolution(width, height);
                let mut pictures = vec![bicubic(image)?];
                pictures.extend(self.tiles(image, resolution)?);
                (pictures, Some(self.grid(width, height, resolution)?))
            }
        };
        let pixels = pictures.iter().flat_map(|picture| self.normalised(picture)).collect();
        let tiles = Tensor::from_vec(pixels, (pictures.len(), 3, self.size, self.size), &Device::Cpu)?;
        Ok(Views { tiles, grid, patches: self.side * self.side })
    }

    /// The image in the middle of a square of the mean colour.
    fn squared(&self, image: &Image) -> Image {
        let side = image.width().max(image.height());
        let colour = self.mean.map(|mean| (mean * 255.0) as u8);
        framed(image, side, side, ((side - image.width()) / 2, (side - image.height()) / 2), colour)
    }

    /// Of the sizes (height, width) that tiles may make up, the one that keeps the most of the image, and among those the
    /// one with the least padding.
    fn resolution(&self, width: usize, height: usize) -> (usize, usize) {
        let fit = |&(down, across): &(usize, usize)| {
            let scale = (across as f64 / width as f64).min(down as f64 / height as f64);
            let scaled = (width as f64 * scale) as usize * (height as f64 * scale) as usize;
            let effective = scaled.min(width * height);
            (effective, std::cmp::Reverse(down * across - effective))
        };
        // Of equals the first, as in the reference.
        let mut best = self.pinpoints[0];
        for pinpoint in &self.pinpoints[1..] {
            if fit(pinpoint) > fit(&best) {
                best = *pinpoint;
            }
        }
        best
    }

    /// The tiles of the image, scaled into `resolution` (height, width) and padded with black.
    fn tiles(&self, image: &Image, (down, across): (usize, usize)) -> Result<Vec<Image>> {
        let (width, height) = (image.width() as f64, image.height() as f64);
        let (scale_w, scale_h) = (across as f64 / width, down as f64 / height);
        let (new_width, new_height) = match scale_w < scale_h {
            true => (across, ((height * scale_w).ceil() as usize).min(down)),
            false => (((width * scale_h).ceil() as usize).min(across), down),
        };
        let scaled = image.resized(new_width, new_height, Filter::Bicubic)?;
        let (left, top) = ((across - new_width) / 2, (down - new_height) / 2);
        // The reference pads both sides alike: of an odd remainder one row or column stays missing at the end, and the last
        // tile, which lacks it, is stretched.
        let (padded_width, padded_height) = (new_width + 2 * left, new_height + 2 * top);
        let padded = framed(&scaled, padded_width, padded_height, (left, top), [0; 3]);
        let mut tiles = Vec::new();
        for y in (0..padded_height).step_by(self.size) {
            for x in (0..padded_width).step_by(self.size) {
                let (w, h) = (self.size.min(padded_width - x), self.size.min(padded_height - y));
                tiles.push(padded.cropped(x, y, w, h)?.resized(self.size, self.size, Filter::Bicubic)?);
            }
        }
        Ok(tiles)
    }

    fn grid(&self, width: usize, height: usize, (down, across): (usize, usize)) -> Result<Grid> {
        let tiles = (down / self.size, across / self.size);
        let (rows, columns) = (tiles.0 * self.side, tiles.1 * self.side);
        // Rounded to seven places first, as in the reference, so that whole numbers survive the division.
        let whole = |x: f64| ((x * 1e7).round() / 1e7) as usize;
        let (tall, wide) = (rows as f64 / height as f64, columns as f64 / width as f64);
        let unpadded = |all: usize, shown: usize| {
            let padding = all.saturating_sub(shown) / 2;
            padding..all - padding
        };
        let (rows, columns) = match width as f64 / height as f64 > columns as f64 / rows as f64 {
            true => (unpadded(rows, whole(height as f64 * wide)), 0..columns),
            false => (0..rows, unpadded(columns, whole(width as f64 * tall))),
        };
        let ratio =
            ((rows.len() * columns.len()) as f64 / (self.max_tiles * self.side * self.side) as f64).sqrt();
        let fewer = |count: usize| (count as f64 / ratio).floor() as usize;
        let shape = match ratio > 1.1 {
            true => (fewer(rows.len()), fewer(columns.len())),
            false => (rows.len(), columns.len()),
        };
        if ratio > 1.1 && (shape.0 == 0 || shape.1 == 0) {
            return Err(Error::Shape(format!(
                "an image of {width}×{height} pixels is too narrow to be tiled: not one row or column of features is left \
                 of it; crop it, or use the layout base-only"
            )));
        }
        Ok(Grid { tiles, rows, columns, shape })
    }

    /// (3, S, S), each channel normalised, in the reference's order of roundings.
    fn normalised(&self, image: &Image) -> Vec<f32> {
        let channel = |c: usize| {
            let values = image.rgb().iter().skip(c).step_by(3);
            values.map(move |&byte| {
                let scaled = (f64::from(byte) * self.rescale_factor) as f32;
                (scaled - self.mean[c]) / self.std[c]
            })
        };
        (0..3).flat_map(channel).collect()
    }
}

/// The image on a larger picture of one colour, its corner at (left, top).
fn framed(image: &Image, width: usize, height: usize, (left, top): (usize, usize), colour: [u8; 3]) -> Image {
    let mut rgb = colour.repeat(width * height);
    for (y, row) in image.rgb().chunks_exact(3 * image.width()).enumerate() {
        let start = 3 * ((top + y) * width + left);
        rgb[start..start + row.len()].copy_from_slice(row);
    }
    Image::new(width, height, rgb)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn true_size() -> ImageProcessor {
        let mut config = Config::default();
        config.vision_config.image_size = 384;
        config.vision_config.patch_size = 14;
        ImageProcessor::new(&ProcessorConfig::default(), &config).unwrap()
    }

    fn grey(width: usize, height: usize) -> Image {
        Image::new(width, height, vec![200; 3 * width * height])
    }

    #[test]
    fn tokens_at_the_true_size_are_those_of_the_paper_and_of_transformers() {
        let processor = true_size();
        for size in [512, 768] {
            let of = |layout| processor.views(&grey(size, size), layout).unwrap().features();
            assert_eq!((of(Layout::BaseOnly), of(Layout::Anyres)), (730, 3699), "{size}");
        }
        let views = processor.views(&grey(3000, 2200), Layout::Anyres).unwrap();
        let grid = views.grid.clone().unwrap();
        assert!(grid.shape.0 < grid.rows.len() && views.features() < 729 * 12, "{grid:?}");
    }

    #[test]
    fn padding_is_grey_around_the_whole_image_and_black_around_tiles() {
        let processor = true_size();
        let views = processor.views(&grey(400, 100), Layout::BaseOnly).unwrap();
        let row =
            |y: usize| views.tiles.get(0).unwrap().get(0).unwrap().get(y).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(row(0)[5], (127f64 / 255.0) as f32 * 2.0 - 1.0);
        assert!((row(192)[5] - (200.0 / 255.0 * 2.0 - 1.0)).abs() < 1e-6);
        let tiled = processor.views(&grey(400, 100), Layout::Anyres).unwrap();
        let corner = tiled.tiles.get(1).unwrap().get(0).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap()[0];
        assert_eq!(corner, -1.0);
    }

    #[test]
    fn images_without_pixels_are_refused() {
        let processor = true_size();
        for layout in Layout::ALL {
            let message = processor.views(&Image::new(0, 7, vec![]), layout).unwrap_err().to_string();
            assert!(message.contains("0×7"), "{message}");
        }
    }

    #[test]
    fn a_sliver_may_have_no_features_but_those_of_the_whole() {
        let mut config = Config::default();
        config.vision_config.image_size = 384;
        config.vision_config.patch_size = 16;
        let processor = ImageProcessor::new(&ProcessorConfig::default(), &config).unwrap();
        let features =
            |width, height| processor.views(&grey(width, height), Layout::Anyres).unwrap().features();
        // As the reference has it: of no rows nothing, of no columns the newlines of the rows.
        assert_eq!((features(9000, 1), features(1, 9000)), (576, 576 + 24));
    }
}
