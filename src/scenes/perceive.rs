//! Seeing: which pixels of a picture are objects, and what colour, shape and size each one has.
//!
//! Everything is judged from pixels. Colours are compared with the palette under the whole range of tones that styles
//! have, and against each other, so a picture may be dark or muted and still be named rightly.

use std::sync::LazyLock;

use super::render::{Outline, Tone, luma};
use super::{Background, Colour, Shape, Style};
use crate::pixels::Image;

/// A picture taken apart: its background and its objects.
#[derive(Debug, Clone)]
pub struct Percept {
    /// The colour along the border, sRGB in [0, 1].
    pub background: [f64; 3],
    /// How much of each pixel is object, in [0, 1], row by row.
    pub cover: Vec<f32>,
    /// Connected objects, largest first; specks are left out.
    pub blobs: Vec<Blob>,
}

/// One connected object.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Covered pixels, fractions included.
    pub area: f64,
    /// The middle's column.
    pub x: f64,
    /// The middle's row.
    pub y: f64,
    /// The colour of its most distinct part.
    pub colour: [f64; 3],
    /// Its agreement with each shape at its own position and area (intersection over union), as [`Shape::ALL`].
    pub overlap: [f64; 8],
}

/// Objects smaller than this many pixels are specks.
const SPECK: f64 = 14.0;
/// The least colour distance from the background that makes an object.
const FLOOR: f64 = 0.10;
/// A background whose hue strays by no more than this is clean.
const CLEAN: f64 = 0.03;

impl Percept {
    /// Takes a picture apart.
    pub fn of(image: &Image) -> Self {
        let (width, height) = (image.width(), image.height());
        let mut pixels: Vec<[f64; 3]> = image
            .rgb()
            .chunks_exact(3)
            .map(|p| [p[0], p[1], p[2]].map(|byte| f64::from(byte) / 255.0))
            .collect();
        let mut ground = Ground::of(&pixels, width, height);
        if ground.hue_spread > CLEAN {
            // A model's sampler may leave coloured noise; a small blur takes most of it off and few edges.
            pixels = blurred(&pixels, width, height);
            ground = Ground::of(&pixels, width, height);
        }
        let background = ground.colour;
        let floor = FLOOR.max(2.0 * ground.hue_spread);
        let distances: Vec<f64> = pixels.iter().map(|&p| ground.distance(p)).collect();
        let peaks = local_maximum(&distances, width, height, 4);
        // Half the local peak is the middle of an antialiased edge, whatever the object's contrast.
        let cover: Vec<f32> = distances
            .iter()
            .zip(&peaks)
            .map(
                |(d, peak)| {
                    if *peak < floor { 0.0 } else { ((d / peak - 0.25) / 0.5).clamp(0.0, 1.0) as f32 }
                },
            )
            .collect();
        let mut blobs: Vec<Blob> = components(&cover, width, height)
            .into_iter()
            .map(|members| Blob::of(&members, &cover, &distances, &pixels, width, height))
            .filter(|blob| blob.area >= SPECK)
            .collect();
        blobs.sort_by(|a, b| b.area.total_cmp(&a.area));
        Self { background, cover, blobs }
    }

    /// The probability of each background colour, as [`Background::ALL`].
    pub fn background_odds(&self) -> Vec<f64> {
        odds(self.background, &BACKGROUNDS)
    }
}

/// The bare background, as the picture's border shows it.
struct Ground {
    colour: [f64; 3],
    /// How far the luma strays: stripes and grain move it alone, and as much as that is no object.
    luma_spread: f64,
    /// How far the hue strays.
    hue_spread: f64,
}

impl Ground {
    fn of(pixels: &[[f64; 3]], width: usize, height: usize) -> Self {
        let border: Vec<[f64; 3]> = (0..pixels.len())
            .filter(|at| {
                let (x, y) = (at % width, at / width);
                x < 2 || y < 2 || x + 2 >= width || y + 2 >= height
            })
            .map(|at| pixels[at])
            .collect();
        let colour = std::array::from_fn(|k| quantile(border.iter().map(|p| p[k]), 0.5));
        let mut ground = Self { colour, luma_spread: 0.0, hue_spread: 0.0 };
        ground.luma_spread = quantile(border.iter().map(|&p| ground.parts(p).0.abs()), 0.97) + 0.03;
        ground.hue_spread = quantile(border.iter().map(|&p| ground.parts(p).1), 0.9);
        ground
    }

    /// How far a colour is from the background: in luma, and in what is left.
    fn parts(&self, p: [f64; 3]) -> (f64, f64) {
        let shift = luma(p) - luma(self.colour);
        let hue: f64 = (0..3).map(|k| (p[k] - self.colour[k] - shift).powi(2)).sum();
        (shift, hue.sqrt())
    }

    fn distance(&self, p: [f64; 3]) -> f64 {
        let (shift, hue) = self.parts(p);
        hue.hypot((shift.abs() - self.luma_spread).max(0.0))
    }
}

/// A 3×3 binomial blur; beyond the edges the outermost pixels go on.
fn blurred(pixels: &[[f64; 3]], width: usize, height: usize) -> Vec<[f64; 3]> {
    let pass = |from: &[[f64; 3]], along_rows: bool| -> Vec<[f64; 3]> {
        (0..from.len())
            .map(|at| {
                let (x, y) = (at % width, at / width);
                let (before, after) = if along_rows {
                    (at - usize::from(x > 0), at + usize::from(x + 1 < width))
                } else {
                    (at - width * usize::from(y > 0), at + width * usize::from(y + 1 < height))
                };
                std::array::from_fn(|k| 0.25 * (from[before][k] + from[after][k]) + 0.5 * from[at][k])
            })
            .collect()
    };
    pass(&pass(pixels, true), false)
}

impl Blob {
    fn of(
        members: &[usize],
        cover: &[f32],
        distances: &[f64],
        pixels: &[[f64; 3]],
        width: usize,
        height: usize,
    ) -> Self {
        let (mut area, mut x, mut y) = (0.0, 0.0, 0.0);
        for &at in members {
            let share = f64::from(cover[at]);
            area += share;
            x += share * ((at % width) as f64 + 0.5);
            y += share * ((at / width) as f64 + 0.5);
        }
        let (x, y) = (x / area, y / area);
        // The most colourful third that is fully object: neither edges nor a dark outline.
        let mut inside: Vec<usize> = members.iter().copied().filter(|&at| cover[at] > 0.9).collect();
        if inside.is_empty() {
            inside = members.to_vec();
        }
        let spread = |at: usize| {
            let p = pixels[at];
            p[0].max(p[1]).max(p[2]) - p[0].min(p[1]).min(p[2]) + 0.3 * distances[at]
        };
        inside.sort_by(|&a, &b| spread(b).total_cmp(&spread(a)));
        inside.truncate((inside.len() / 3).max(1));
        let colour = std::array::from_fn(|k| quantile(inside.iter().map(|&at| pixels[at][k]), 0.5));
        let overlap = overlaps(members, cover, area, x, y, width, height);
        Self { area, x, y, colour, overlap }
    }

    /// The probability of each colour, as [`Colour::ALL`].
    pub fn colour_odds(&self) -> Vec<f64> {
        odds(self.colour, &COLOURS)
    }

    /// The radius that the object has if it is of `shape`.
    pub fn radius(&self, shape: Shape) -> f64 {
        (self.area / TEMPLATES.iter().find(|t| t.shape == shape).map_or(1.0, |t| t.unit_area)).sqrt()
    }
}

/// Each palette colour under a grid of tones.
type Palette = Vec<Vec<[f32; 3]>>;

static COLOURS: LazyLock<Palette> =
    LazyLock::new(|| Colour::ALL.iter().map(|colour| toned(colour.rgb())).collect());
static BACKGROUNDS: LazyLock<Palette> =
    LazyLock::new(|| Background::ALL.iter().map(|b| toned(b.rgb())).collect());

fn toned(rgb: [f64; 3]) -> Vec<[f32; 3]> {
    let levels = [-0.7, 0.0, 0.7];
    let mut tones = Vec::with_capacity(81);
    for brightness in levels {
        for saturation in levels {
            for warmth in levels {
                for contrast in levels {
                    let style = Style { brightness, saturation, warmth, contrast, ..Style::neutral() };
                    tones.push(Tone::new(&style).apply(rgb).map(|byte| f32::from(byte) / 255.0));
                }
            }
        }
    }
    tones
}

/// How probable each palette colour is: a normal kernel (0.06 wide) around its nearest tone, normalised over the
/// palette.
fn odds(seen: [f64; 3], palette: &Palette) -> Vec<f64> {
    let squares: Vec<f64> = palette
        .iter()
        .map(|tones| {
            let square = |t: &[f32; 3]| (0..3).map(|k| (f64::from(t[k]) - seen[k]).powi(2)).sum::<f64>();
            tones.iter().map(square).fold(f64::MAX, f64::min)
        })
        .collect();
    let nearest = squares.iter().copied().fold(f64::MAX, f64::min);
    let weights: Vec<f64> = squares.iter().map(|s| (-(s - nearest) / (2.0 * 0.06 * 0.06)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

fn quantile(values: impl Iterator<Item = f64>, at: f64) -> f64 {
    let mut values: Vec<f64> = values.collect();
    let index = ((values.len() - 1) as f64 * at).round() as usize;
    *values.select_nth_unstable_by(index, f64::total_cmp).1
}

/// The maximum within `reach` columns and rows of each pixel.
fn local_maximum(values: &[f64], width: usize, height: usize, reach: usize) -> Vec<f64> {
    let mut rows = vec![0.0; values.len()];
    for (at, most) in rows.iter_mut().enumerate() {
        let (x, start) = (at % width, at - at % width);
        let window = start + x.saturating_sub(reach)..start + (x + reach + 1).min(width);
        *most = values[window].iter().copied().fold(0.0, f64::max);
    }
    (0..values.len())
        .map(|at| {
            let (x, y) = (at % width, at / width);
            (y.saturating_sub(reach)..(y + reach + 1).min(height))
                .map(|row| rows[row * width + x])
                .fold(0.0, f64::max)
        })
        .collect()
}

/// Pixels that are more object than not, grouped by four-neighbourhood.
fn components(cover: &[f32], width: usize, height: usize) -> Vec<Vec<usize>> {
    let mut unseen: Vec<bool> = cover.iter().map(|&share| share >= 0.5).collect();
    let mut groups = Vec::new();
    for start in 0..cover.len() {
        if !unseen[start] {
            continue;
        }
        unseen[start] = false;
        let mut group = vec![start];
        let mut next = 0;
        while next < group.len() {
            let at = group[next];
            next += 1;
            let (x, y) = (at % width, at / width);
            let neighbours = [
                (x > 0).then(|| at - 1),
                (x + 1 < width).then_some(at + 1),
                (y > 0).then(|| at - width),
                (y + 1 < height).then_some(at + width),
            ];
            for neighbour in neighbours.into_iter().flatten() {
                if unseen[neighbour] {
                    unseen[neighbour] = false;
                    group.push(neighbour);
                }
            }
        }
        groups.push(group);
    }
    groups
}

/// Cells along each side of a template; the window spans `SPAN` square roots of the area to each side.
const GRID: usize = 32;
const SPAN: f64 = 1.25;

/// A shape's mask around its middle, scaled to unit area.
struct Template {
    shape: Shape,
    /// The area inside a circumscribed radius of one.
    unit_area: f64,
    mask: Vec<f32>,
}

static TEMPLATES: LazyLock<Vec<Template>> = LazyLock::new(|| {
    let mut templates: Vec<Template> =
        Shape::ALL.iter().map(|&shape| Template::of(shape, &Outline::new(shape, 100.0))).collect();
    // A ring under an outline shows less of its band.
    templates.push(Template::of(Shape::Ring, &Outline::Ring(70.0, 15.0)));
    templates
});

impl Template {
    fn of(shape: Shape, outline: &Outline) -> Self {
        let reach = 120;
        let (mut area, mut y) = (0.0, 0.0);
        for row in -reach..reach {
            for column in -reach..reach {
                let cover = (0.5 - outline.distance(f64::from(column), f64::from(row))).clamp(0.0, 1.0);
                area += cover;
                y += cover * f64::from(row);
            }
        }
        let (scale, middle) = (f64::sqrt(area), y / area);
        let mask = grid()
            .map(|(u, v)| {
                let cell = 2.0 * SPAN / GRID as f64 * scale;
                (0.5 - outline.distance(u * scale, v * scale + middle) / cell).clamp(0.0, 1.0) as f32
            })
            .collect();
        Self { shape, unit_area: area / 1e4, mask }
    }
}

/// The grid's cell middles in square roots of the area, row by row.
fn grid() -> impl Iterator<Item = (f64, f64)> {
    let at = |k: usize| SPAN * ((2 * k + 1) as f64 / GRID as f64 - 1.0);
    (0..GRID * GRID).map(move |cell| (at(cell % GRID), at(cell / GRID)))
}

/// The soft intersection over union of an object with every shape, both brought to unit area around their middles.
fn overlaps(
    members: &[usize],
    cover: &[f32],
    area: f64,
    x: f64,
    y: f64,
    width: usize,
    height: usize,
) -> [f64; 8] {
    // The object alone, with its soft rim, on a canvas of its own.
    let mut canvas = vec![0.0f32; cover.len()];
    for &at in members {
        let (column, row) = (at % width, at / width);
        for near_row in row.saturating_sub(1)..(row + 2).min(height) {
            for near_column in column.saturating_sub(1)..(column + 2).min(width) {
                let near = near_row * width + near_column;
                canvas[near] = cover[near];
            }
        }
    }
    let sample = |column: f64, row: f64| -> f32 {
        let (left, top) = ((column - 0.5).floor(), (row - 0.5).floor());
        let (right_share, low_share) = ((column - 0.5 - left) as f32, (row - 0.5 - top) as f32);
        let get = |c: f64, r: f64| {
            let inside = c >= 0.0 && r >= 0.0 && c < width as f64 && r < height as f64;
            if inside { canvas[r as usize * width + c as usize] } else { 0.0 }
        };
        let upper = get(left, top) * (1.0 - right_share) + get(left + 1.0, top) * right_share;
        let lower = get(left, top + 1.0) * (1.0 - right_share) + get(left + 1.0, top + 1.0) * right_share;
        upper * (1.0 - low_share) + lower * low_share
    };
    let scale = area.sqrt();
    let mask: Vec<f32> = grid().map(|(u, v)| sample(x + u * scale, y + v * scale)).collect();
    let mut best = [0.0f64; 8];
    for template in TEMPLATES.iter() {
        let (mut both, mut either) = (0.0f32, 0.0f32);
        for (a, b) in mask.iter().zip(&template.mask) {
            both += a.min(*b);
            either += a.max(*b);
        }
        let slot = &mut best[template.shape as usize];
        *slot = slot.max(f64::from(both / either.max(1e-6)));
    }
    best
}
