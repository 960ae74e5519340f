//! Measured statistics of a picture: what can be said of any pixels, whoever made them.
//!
//! Simulated users and the record's drift columns read these, never the parameters of a [`Style`](super::Style):
//! pictures that a model made have none.

use super::perceive::Percept;
use super::render::luma;
use crate::pixels::Image;

/// Measured statistics of one picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The mean luma, in [0, 1].
    pub brightness: f64,
    /// The mean of the largest minus the smallest channel, in [0, 1].
    pub saturation: f64,
    /// The mean of red minus blue, in [-1, 1].
    pub warmth: f64,
    /// The standard deviation of luma, in [0, 0.5].
    pub contrast: f64,
    /// The mean size of the luma's Laplacian, each capped at 0.2 so that object edges do not drown grain and stripes.
    pub texture: f64,
    /// One minus the distance of the objects' middle from the picture's, as a share of half its side; in [0, 1].
    pub centredness: f64,
    /// The share of the picture that objects cover, in [0, 1].
    pub fill: f64,
}

/// How many statistics [`Measured`] has.
pub const COUNT: usize = 7;

impl Measured {
    /// The statistics' names, in the order of [`Measured::values`].
    pub const NAMES: [&'static str; COUNT] =
        ["brightness", "saturation", "warmth", "contrast", "texture", "centredness", "fill"];

    /// The statistics in order.
    pub fn values(&self) -> [f64; COUNT] {
        [
            self.brightness,
            self.saturation,
            self.warmth,
            self.contrast,
            self.texture,
            self.centredness,
            self.fill,
        ]
    }

    /// Names and values.
    pub fn pairs(&self) -> [(&'static str, f64); COUNT] {
        let values = self.values();
        std::array::from_fn(|k| (Self::NAMES[k], values[k]))
    }
}

/// Measures a picture.
pub fn measure(image: &Image) -> Measured {
    measure_percept(image, &Percept::of(image))
}

/// Measures a picture that has been segmented already.
pub fn measure_percept(image: &Image, percept: &Percept) -> Measured {
    let (width, height) = (image.width(), image.height());
    let count = (width * height) as f64;
    let pixels =
        || image.rgb().chunks_exact(3).map(|p| [p[0], p[1], p[2]].map(|byte| f64::from(byte) / 255.0));
    let lumas: Vec<f64> = pixels().map(luma).collect();
    let brightness = lumas.iter().sum::<f64>() / count;
    let variance = lumas.iter().map(|l| (l - brightness).powi(2)).sum::<f64>() / count;
    let chroma = |p: [f64; 3]| p[0].max(p[1]).max(p[2]) - p[0].min(p[1]).min(p[2]);
    let mut texture = 0.0;
    for row in 1..height - 1 {
        for at in row * width + 1..(row + 1) * width - 1 {
            let around = lumas[at - 1] + lumas[at + 1] + lumas[at - width] + lumas[at + width];
            texture += (lumas[at] - around / 4.0).abs().min(0.2);
        }
    }
    let (mut mass, mut x, mut y) = (0.0, 0.0, 0.0);
    for (at, &cover) in percept.cover.iter().enumerate() {
        let cover = f64::from(cover);
        mass += cover;
        x += cover * ((at % width) as f64 + 0.5);
        y += cover * ((at / width) as f64 + 0.5);
    }
    // Without any object nothing stands off the centre.
    let centredness = if mass > 0.0 {
        let (half_width, half_height) = (width as f64 / 2.0, height as f64 / 2.0);
        (1.0 - (x / mass / half_width - 1.0).hypot(y / mass / half_height - 1.0)).max(0.0)
    } else {
        1.0
    };
    Measured {
        brightness,
        saturation: pixels().map(chroma).sum::<f64>() / count,
        warmth: pixels().map(|p| p[0] - p[2]).sum::<f64>() / count,
        contrast: variance.sqrt(),
        texture: texture / ((width - 2) * (height - 2)) as f64,
        centredness,
        fill: mass / count,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Split, Style, render, sample_scene};
    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    /// The mean over scenes of each statistic under a neutral style changed by `change`, layouts and all else equal.
    fn mean_under(change: impl Fn(&mut Style)) -> [f64; COUNT] {
        let mut s = stream(Seed::new(0), "measure", 0);
        let mut means = [0.0; COUNT];
        let count = 60;
        for index in 0..count {
            let scene = sample_scene(&mut s, [1.0, 1.0, 1.0], Split::Train);
            let mut style = Style { offset: 0.2, ..Style::neutral() };
            change(&mut style);
            let image = render(&scene, &style, &mut stream(Seed::new(1), "measure", index));
            for (mean, value) in means.iter_mut().zip(measure(&image).values()) {
                *mean += value / count as f64;
            }
        }
        means
    }

    #[test]
    fn each_statistic_follows_its_style() {
        type Setter = fn(&mut Style, f64);
        let cases: [(&str, Setter, [f64; 5]); 8] = [
            ("brightness", |s, v| s.brightness = v, [-1.0, -0.5, 0.0, 0.5, 1.0]),
            ("saturation", |s, v| s.saturation = v, [-1.0, -0.5, 0.0, 0.5, 1.0]),
            ("warmth", |s, v| s.warmth = v, [-1.0, -0.5, 0.0, 0.5, 1.0]),
            ("contrast", |s, v| s.contrast = v, [-1.0, -0.5, 0.0, 0.5, 1.0]),
            ("fill", |s, v| s.zoom = v, [-1.0, -0.5, 0.0, 0.5, 1.0]),
            ("texture", |s, v| s.stripes = v, [0.0, 0.3, 0.5, 0.8, 1.0]),
            ("texture", |s, v| s.grain = v, [0.0, 0.3, 0.5, 0.8, 1.0]),
            ("centredness", |s, v| s.offset = -v, [-1.0, -0.75, -0.5, -0.25, 0.0]),
        ];
        for (name, set, levels) in cases {
            let at = Measured::NAMES.iter().position(|&known| known == name).unwrap();
            let means: Vec<f64> =
                levels.iter().map(|&level| mean_under(|style| set(style, level))[at]).collect();
            assert!(means.windows(2).all(|pair| pair[1] > pair[0] + 1e-3), "{name}: {means:?}");
        }
    }

    #[test]
    fn statistics_of_plain_pictures_are_known() {
        let gray = measure(&Image::new(64, 64, vec![51; 3 * 64 * 64]));
        assert!((gray.brightness - 0.2).abs() < 1e-9);
        let zero = [gray.saturation, gray.warmth, gray.contrast, gray.texture, gray.fill];
        assert!(zero.iter().all(|value| value.abs() < 1e-9), "{gray:?}");
        assert!((gray.centredness - 1.0).abs() < 1e-9);
    }
}
