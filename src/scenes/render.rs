//! The renderer: a scene under a style as 64×64 pixels, antialiased by signed distances.
//!
//! The layout (positions, and sizes and background where the caption names none) is drawn from the stream and always
//! consistent with the caption: relations hold by whole objects, nothing overlaps, nothing leaves the picture.

use super::style::Style;
use super::{Background, Object, Relation, SIDE, Scene, Shape, Size};
use crate::pixels::Image;
use crate::rng::Stream;

/// Pixels that stay free along each border.
const MARGIN: f64 = 2.5;

/// An object placed on the picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    /// Which object.
    pub object: Object,
    /// The centre's column, in pixels.
    pub x: f64,
    /// The centre's row, in pixels, downwards.
    pub y: f64,
    /// The radius of the circle around the shape, in pixels.
    pub radius: f64,
}

/// Draws `scene` under `style`; layout and grain come from `stream`.
///
/// # Panics
/// Where the scene has no object, or not one relation fewer than objects.
pub fn render(scene: &Scene, style: &Style, stream: &mut Stream) -> Image {
    let background = scene.background.unwrap_or_else(|| {
        let visible: Vec<Background> = Background::ALL
            .iter()
            .copied()
            .filter(|background| scene.objects.iter().all(|object| background.shows(object.colour)))
            .collect();
        *stream.pick(&visible)
    });
    let placed = place(scene, style, stream);
    paint(&placed, background, style, stream)
}

/// The radii that a size may have among `count` objects: small, unnamed, large.
fn radius(size: Option<Size>, count: usize, stream: &mut Stream) -> f64 {
    let (small, large) = match count {
        1 => ((9.0, 11.5), (15.5, 19.0)),
        2 => ((8.5, 10.0), (12.5, 14.5)),
        _ => ((7.5, 8.5), (10.8, 12.0)),
    };
    let (low, high) = match size {
        Some(Size::Small) => small,
        Some(Size::Large) => large,
        None => (small.0, large.1),
    };
    stream.between(low, high)
}

/// Draws where the objects stand.
pub fn place(scene: &Scene, style: &Style, stream: &mut Stream) -> Vec<Placed> {
    let count = scene.objects.len();
    assert!(count >= 1 && scene.relations.len() + 1 == count, "a scene has one relation fewer than objects");
    let mut placed: Vec<Placed> = scene
        .objects
        .iter()
        .map(|&object| Placed { object, x: 0.0, y: 0.0, radius: radius(object.size, count, stream) })
        .collect();
    if let Some(&relation) = scene.relations.first() {
        let reference = placed[1];
        beside(&mut placed[0], &[reference], relation, stream);
    }
    if let Some(&relation) = scene.relations.get(1) {
        let others = [placed[0], placed[1]];
        beside(&mut placed[2], &others, relation, stream);
    }
    fit(&mut placed, style, stream);
    placed
}

/// Puts `moved` on the side of all `others` that `relation` names, across from their middle but for some jitter.
fn beside(moved: &mut Placed, others: &[Placed], relation: Relation, stream: &mut Stream) {
    let along = |p: &Placed| if relation.is_horizontal() { p.x } else { p.y };
    let across = |p: &Placed| if relation.is_horizontal() { p.y } else { p.x };
    let sign = relation.sign();
    let edge = others.iter().map(|p| sign * along(p) + p.radius).fold(f64::MIN, f64::max);
    let middle = others.iter().map(across).sum::<f64>() / others.len() as f64;
    let gap = stream.between(2.0, if others.len() == 1 { 9.0 } else { 5.0 });
    let first = sign * (edge + gap + moved.radius);
    let second = middle + stream.between(-0.5, 0.5) * moved.radius;
    (moved.x, moved.y) = if relation.is_horizontal() { (first, second) } else { (second, first) };
}

/// Zooms the group, shrinks it where it would not fit, and puts it on the picture.
fn fit(placed: &mut [Placed], style: &Style, stream: &mut Stream) {
    let room = SIDE as f64 - 2.0 * MARGIN;
    let bounds = |placed: &[Placed], at: fn(&Placed) -> f64| {
        let low = placed.iter().map(|p| at(p) - p.radius).fold(f64::MAX, f64::min);
        let high = placed.iter().map(|p| at(p) + p.radius).fold(f64::MIN, f64::max);
        (low, high)
    };
    let (left, right) = bounds(placed, |p| p.x);
    let (top, bottom) = bounds(placed, |p| p.y);
    let largest = (right - left).max(bottom - top);
    let scale = (1.0 + 0.13 * style.zoom).min(room / largest);
    let slack_x = (room - scale * (right - left)) / 2.0;
    let slack_y = (room - scale * (bottom - top)) / 2.0;
    let angle = stream.uniform() * std::f64::consts::TAU;
    let (sine, cosine) = angle.sin_cos();
    // The direction is stretched to the unit square, so that corners are reached too.
    let stretch = style.offset / sine.abs().max(cosine.abs());
    let middle = SIDE as f64 / 2.0;
    for p in placed {
        p.x = middle + scale * (p.x - (left + right) / 2.0) + slack_x * stretch * cosine;
        p.y = middle + scale * (p.y - (top + bottom) / 2.0) + slack_y * stretch * sine;
        p.radius *= scale;
    }
}

/// Paints placed objects over a background.
fn paint(placed: &[Placed], background: Background, style: &Style, stream: &mut Stream) -> Image {
    let mut pixels = vec![background.rgb(); SIDE * SIDE];
    texture(&mut pixels, background, style, stream);
    let width = 1.8 * style.outline;
    for p in placed {
        let outlined = Outline::new(p.object.shape, p.radius - width / 2.0);
        let fill = p.object.colour.rgb();
        let line = fill.map(|channel| 0.28 * channel);
        let reach = p.radius + width + 1.0;
        let range = |middle: f64| {
            let low = (middle - reach).floor().max(0.0) as usize;
            let high = ((middle + reach).ceil().max(0.0) as usize).min(SIDE);
            low..high
        };
        for row in range(p.y) {
            for column in range(p.x) {
                let distance = outlined.distance(column as f64 + 0.5 - p.x, row as f64 + 0.5 - p.y);
                let pixel = &mut pixels[row * SIDE + column];
                if width > 0.0 {
                    blend(pixel, line, (0.5 - distance + width / 2.0).clamp(0.0, 1.0));
                    blend(pixel, fill, (0.5 - distance - width / 2.0).clamp(0.0, 1.0));
                } else {
                    blend(pixel, fill, (0.5 - distance).clamp(0.0, 1.0));
                }
            }
        }
    }
    let tone = Tone::new(style);
    let rgb = pixels.into_iter().flat_map(|pixel| tone.apply(pixel)).collect();
    Image::new(SIDE, SIDE, rgb)
}

fn blend(pixel: &mut [f64; 3], over: [f64; 3], cover: f64) {
    for (under, over) in pixel.iter_mut().zip(over) {
        *under += cover * (over - *under);
    }
}

/// Stripes and grain on the bare background. The stream always gives the same count of numbers, so a style's texture
/// never moves what is drawn after it.
fn texture(pixels: &mut [[f64; 3]], background: Background, style: &Style, stream: &mut Stream) {
    let phase = stream.uniform() * std::f64::consts::TAU;
    let period = stream.between(6.0, 9.0);
    let slope = if stream.chance(0.5) { 1.0 } else { -1.0 };
    if style.stripes > 0.0 {
        // Light backgrounds carry darker stripes, dark ones lighter stripes.
        let dark = background.rgb().iter().sum::<f64>() < 1.0;
        let depth = if dark { 0.10 } else { -0.12 } * style.stripes;
        for (index, pixel) in pixels.iter_mut().enumerate() {
            let (row, column) = ((index / SIDE) as f64, (index % SIDE) as f64);
            let wave = ((column + slope * row) * std::f64::consts::TAU / period + phase).sin();
            let cover = (0.5 + 1.5 * wave).clamp(0.0, 1.0);
            pixel.iter_mut().for_each(|channel| *channel += depth * cover);
        }
    }
    if style.grain > 0.0 {
        for eight in pixels.chunks_mut(8) {
            for (pixel, byte) in eight.iter_mut().zip(stream.bits().to_le_bytes()) {
                let noise = 0.16 * style.grain * (f64::from(byte) / 255.0 - 0.5);
                pixel.iter_mut().for_each(|channel| *channel += noise);
            }
        }
    }
}

/// The luma of a pixel (BT.601).
pub(super) fn luma(p: [f64; 3]) -> f64 {
    0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]
}

/// The style's colour transform.
pub(super) struct Tone {
    saturation: f64,
    contrast: f64,
    gain: f64,
    lift: [f64; 3],
}

impl Tone {
    pub(super) fn new(style: &Style) -> Self {
        let lift = 0.04 * style.brightness;
        let shift = 0.06 * style.warmth;
        Self {
            saturation: 1.0 + 0.38 * style.saturation,
            contrast: 1.0 + 0.22 * style.contrast,
            gain: 1.0 + 0.17 * style.brightness,
            lift: [lift + shift, lift, lift - shift],
        }
    }

    pub(super) fn apply(&self, pixel: [f64; 3]) -> [u8; 3] {
        let luma = luma(pixel);
        std::array::from_fn(|channel| {
            let vivid = luma + self.saturation * (pixel[channel] - luma);
            let sharp = 0.5 + self.contrast * (vivid - 0.5);
            let value = self.gain * sharp + self.lift[channel];
            // `as` saturates, so values beyond the range clip.
            (255.0 * value + 0.5) as u8
        })
    }
}

/// A shape's outline as a signed distance, negative inside.
pub enum Outline {
    /// A disc by its radius.
    Disc(f64),
    /// A ring by the radius of its middle line and half its width.
    Ring(f64, f64),
    /// A closed polygon.
    Polygon(Vec<[f64; 2]>),
    /// A heart by its scale.
    Heart(f64),
}

impl Outline {
    /// The outline of `shape` inside a circle of `radius` around the origin (y points down).
    pub fn new(shape: Shape, radius: f64) -> Self {
        let around = |count: usize, start: f64, radii: &[f64]| {
            let vertices = (0..count).map(|k| {
                let (sine, cosine) = (start + std::f64::consts::TAU * k as f64 / count as f64).sin_cos();
                let r = radius * radii[k % radii.len()];
                [r * cosine, r * sine]
            });
            Self::Polygon(vertices.collect())
        };
        let up = -std::f64::consts::FRAC_PI_2;
        match shape {
            Shape::Circle => Self::Disc(0.9 * radius),
            Shape::Square => {
                let h = 0.78 * radius;
                Self::Polygon(vec![[-h, -h], [h, -h], [h, h], [-h, h]])
            }
            Shape::Triangle => match around(3, up, &[1.08]) {
                // An equilateral triangle's centre lies low: lift the picture's centre to the middle of its height.
                Self::Polygon(vertices) => {
                    Self::Polygon(vertices.into_iter().map(|[x, y]| [x, y + 0.22 * radius]).collect())
                }
                other => other,
            },
            Shape::Diamond => {
                let (w, h) = (0.72 * radius, radius);
                Self::Polygon(vec![[0.0, -h], [w, 0.0], [0.0, h], [-w, 0.0]])
            }
            Shape::Star => around(10, up, &[1.04, 0.43]),
            Shape::Cross => {
                let (a, b) = (0.94 * radius, 0.31 * radius);
                Self::Polygon(vec![
                    [-b, -a],
                    [b, -a],
                    [b, -b],
                    [a, -b],
                    [a, b],
                    [b, b],
                    [b, a],
                    [-b, a],
                    [-b, b],
                    [-a, b],
                    [-a, -b],
                    [-b, -b],
                ])
            }
            Shape::Ring => Self::Ring(0.70 * radius, 0.22 * radius),
            Shape::Heart => Self::Heart(1.62 * radius),
        }
    }

    /// The signed distance of a point from the outline, in pixels.
    pub fn distance(&self, x: f64, y: f64) -> f64 {
        match self {
            Self::Disc(radius) => x.hypot(y) - radius,
            Self::Ring(radius, half_width) => (x.hypot(y) - radius).abs() - half_width,
            Self::Polygon(vertices) => polygon(vertices, x, y),
            Self::Heart(scale) => heart(x / scale, y / scale) * scale,
        }
    }
}

/// The distance to a polygon: the nearest edge, signed by the winding of edges across the point's row.
fn polygon(vertices: &[[f64; 2]], x: f64, y: f64) -> f64 {
    let mut nearest = f64::MAX;
    let mut inside = false;
    let mut previous = vertices[vertices.len() - 1];
    for &[vx, vy] in vertices {
        let [ux, uy] = previous;
        let (ex, ey) = (ux - vx, uy - vy);
        let (wx, wy) = (x - vx, y - vy);
        let t = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
        let (dx, dy) = (wx - t * ex, wy - t * ey);
        nearest = nearest.min(dx * dx + dy * dy);
        if (vy > y) != (uy > y) && wx < ex * wy / ey {
            inside = !inside;
        }
        previous = [vx, vy];
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

/// The distance to a heart one unit high, its middle at the origin, its point down.
fn heart(x: f64, y: f64) -> f64 {
    // The closed form has its point at the origin and its height upwards, about 1.1 in all.
    let (x, y) = (x.abs(), 0.55 - y);
    if x + y > 1.0 {
        return (x - 0.25).hypot(y - 0.75) - std::f64::consts::SQRT_2 / 4.0;
    }
    let side = 0.5 * (x + y).max(0.0);
    let near = (x * x + (y - 1.0).powi(2)).min((x - side).powi(2) + (y - side).powi(2));
    near.sqrt() * (x - y).signum()
}
