//! What the contrastive and Bradley-Terry loops draw: scenes, their near misses, and pictures of them.

use crate::pixels::Image;
use crate::rng::Stream;
use crate::scenes::{
    Background, Colour, Relation, Scene, Shape, Size, Split, is_drawable, render, split, style::Style,
};

/// How a near miss differs from its scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// One object has another shape.
    Shape,
    /// One object has another colour.
    Colour,
    /// One object has the other size.
    Size,
    /// The first relation is inverted.
    Relation,
    /// The background has another colour.
    Background,
    /// Two objects have swapped their colours.
    Binding,
}

impl Change {
    /// Every kind of change.
    pub const ALL: &'static [Self] =
        &[Self::Shape, Self::Colour, Self::Size, Self::Relation, Self::Background, Self::Binding];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shape => "shape",
            Self::Colour => "colour",
            Self::Size => "size",
            Self::Relation => "relation",
            Self::Background => "background",
            Self::Binding => "binding",
        }
    }

    /// The scene changed in this way, where that is possible and shows; `None` where it is not.
    pub fn apply(self, scene: &Scene, stream: &mut Stream) -> Option<Scene> {
        let mut other = scene.clone();
        let at = stream.below(scene.objects.len());
        match self {
            Self::Shape => other.objects[at].shape = *stream.pick(Shape::ALL),
            Self::Colour => other.objects[at].colour = *stream.pick(Colour::ALL),
            Self::Size => {
                other.objects[at].size = Some(match scene.objects[at].size? {
                    Size::Small => Size::Large,
                    Size::Large => Size::Small,
                });
            }
            Self::Relation => {
                let last = other.relations.len().checked_sub(1)?;
                let relation = &mut other.relations[stream.below(last + 1)];
                *relation = Relation::inverse(*relation);
            }
            Self::Background => {
                scene.background?;
                other.background = Some(*stream.pick(Background::ALL));
            }
            Self::Binding => {
                let next = (at + 1) % scene.objects.len();
                let (a, b) = (scene.objects[at].colour, scene.objects[next].colour);
                (other.objects[at].colour, other.objects[next].colour) = (b, a);
            }
        }
        // Swapping equal colours, or drawing the same word again, changes nothing.
        (other != *scene && is_drawable(&other)).then_some(other)
    }
}

/// How near misses are drawn: what towers are slow to see comes more often.
const DRAWN: [Change; 10] = [
    Change::Shape,
    Change::Shape,
    Change::Shape,
    Change::Relation,
    Change::Relation,
    Change::Binding,
    Change::Binding,
    Change::Colour,
    Change::Size,
    Change::Background,
];

/// A scene of the same part that differs from `scene` in one random respect; after many vain attempts `None`.
pub fn near_miss(scene: &Scene, part: Split, stream: &mut Stream) -> Option<Scene> {
    (0..64).find_map(|_| {
        let change = *stream.pick(&DRAWN);
        change.apply(scene, stream).filter(|other| split(other) == part)
    })
}

/// Degrades a picture now and then as a denoiser's samples are: blurred, or noisy. A tower trained on spotless renders
/// alone would judge samples by their flaws.
pub fn degrade(image: Image, stream: &mut Stream) -> Image {
    let (blurs, noise) = match stream.uniform() {
        u if u < 0.6 => (0, 0.0),
        u if u < 0.8 => (1 + stream.below(3), 0.0),
        _ => (stream.below(2), stream.between(2.0, 14.0)),
    };
    if blurs == 0 && noise == 0.0 {
        return image;
    }
    let (width, height) = (image.width(), image.height());
    let mut rgb: Vec<f32> = image.rgb().iter().map(|&byte| f32::from(byte)).collect();
    for _ in 0..blurs {
        rgb = blurred(&rgb, width, height);
    }
    let bytes = rgb.iter().map(|&value| {
        let shift = if noise > 0.0 { noise * stream.normal() } else { 0.0 };
        (f64::from(value) + shift).round().clamp(0.0, 255.0) as u8
    });
    Image::new(width, height, bytes.collect())
}

/// One pass of the binomial kernel (1, 2, 1)/4 across and down; borders repeat.
fn blurred(rgb: &[f32], width: usize, height: usize) -> Vec<f32> {
    let pass = |from: &[f32], step_x: usize, step_y: usize| -> Vec<f32> {
        let mut to = vec![0.0; from.len()];
        for y in 0..height {
            for x in 0..width {
                let (x0, x1) = (x.saturating_sub(step_x), (x + step_x).min(width - 1));
                let (y0, y1) = (y.saturating_sub(step_y), (y + step_y).min(height - 1));
                for c in 0..3 {
                    let at = |x: usize, y: usize| from[3 * (y * width + x) + c];
                    to[3 * (y * width + x) + c] = 0.25 * (at(x0, y0) + at(x1, y1)) + 0.5 * at(x, y);
                }
            }
        }
        to
    };
    pass(&pass(rgb, 1, 0), 0, 1)
}

/// A style that a picture of the training world has.
pub fn any_style(stream: &mut Stream) -> Style {
    // One in eight is neutral, as the pictures of a plain base are.
    if stream.chance(0.125) { Style::neutral() } else { Style::sample(stream) }
}

/// A picture of `scene` with up to two mistakes in what it shows, under any style, degraded now and then: as the
/// pictures are that people are asked to choose between.
pub fn flawed_picture(scene: &Scene, part: Split, stream: &mut Stream) -> Image {
    let mut shown = scene.clone();
    for _ in 0..[0, 0, 1, 2][stream.below(4)] {
        shown = near_miss(&shown, part, stream).unwrap_or(shown);
    }
    let style = any_style(stream);
    let picture = render(&shown, &style, stream);
    degrade(picture, stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::scenes::sample_scene;
    use crate::units::Seed;

    #[test]
    fn a_near_miss_is_another_caption_of_the_same_part() {
        let mut draw = stream(Seed::new(1), "near", 0);
        for _ in 0..500 {
            let scene = sample_scene(&mut draw, [1.0, 1.0, 1.0], Split::Train);
            let other = near_miss(&scene, Split::Train, &mut draw).unwrap();
            assert_ne!(scene.caption(), other.caption());
            assert_eq!(split(&other), Split::Train);
            assert_eq!(other.objects.len(), scene.objects.len());
        }
    }

    #[test]
    fn blurring_keeps_a_flat_picture_and_the_mean_of_any_inside() {
        let flat = vec![7.0; 3 * 16];
        assert_eq!(blurred(&flat, 4, 4), flat);
        let mut dot = vec![0.0; 3 * 49];
        dot[3 * (3 * 7 + 3)] = 16.0;
        let soft = blurred(&dot, 7, 7);
        assert_eq!(soft.iter().sum::<f32>(), 16.0);
        assert_eq!(soft[3 * (3 * 7 + 3)], 4.0);
        assert_eq!(soft[3 * (2 * 7 + 2)], 1.0);
    }
}
