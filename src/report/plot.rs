//! One theme for every figure: a scene in points, drawn as SVG; `export` makes PDF and PNG of that.
//!
//! Figures are `\columnwidth` wide (237 pt, as in CVPR's style), in the embedded DejaVu Sans, in Okabe and Ito's
//! colours with a distinct marker each, and every colour is opaque: what should look translucent is blended
//! beforehand, which also keeps the PDF identical from run to run. Plotters writes whole units only, so a scene is
//! drawn at ten units to the point.

use std::sync::Once;

use plotters::coord::Shift;
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::{DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, register_font};

use crate::error::{Error, Result};

/// The width of a figure that stands in one column, in points.
pub const COLUMN: f64 = 237.0;
/// The width of a figure that stands across both columns, in points.
pub const PAGE: f64 = 496.0;
/// The size of labels and legends, in points.
pub const LABEL: f64 = 7.0;
/// The size of tick labels and notes, in points.
pub const SMALL: f64 = 6.0;

const UNITS_PER_POINT: f64 = 10.0;
pub(super) const FAMILY: &str = "DejaVu Sans";
/// One face only: with two in one file, svg2pdf writes their resources in an order that changes from run to run.
pub(super) const FONT: &[u8] = include_bytes!("../../assets/fonts/DejaVuSans.ttf");
/// Ascent minus descent of DejaVu Sans in em: what plotters' text measure calls the size.
const LINE_HEIGHT: f64 = 2384.0 / 2048.0;
/// Plotters writes a font of size s as s / 1.24.
const SIZE_FACTOR: f64 = 1.24;

/// An opaque colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Color(pub u8, pub u8, pub u8);

impl Color {
    /// Text and axes.
    pub const INK: Self = Self(38, 38, 38);
    /// Notes, ticks and reference lines.
    pub const GREY: Self = Self(128, 128, 128);
    /// Grid lines.
    pub const GRID: Self = Self(232, 232, 232);
    /// Paper.
    pub const WHITE: Self = Self(255, 255, 255);

    /// This colour mixed into white: what it would look like at that opacity, yet opaque.
    pub fn tint(self, opacity: f64) -> Self {
        Self::WHITE.mix(self, opacity)
    }

    /// The colour that lies `share` of the way from this one to `other`.
    pub fn mix(self, other: Self, share: f64) -> Self {
        let blend = |a: u8, b: u8| {
            (f64::from(a) + (f64::from(b) - f64::from(a)) * share.clamp(0.0, 1.0)).round() as u8
        };
        Self(blend(self.0, other.0), blend(self.1, other.1), blend(self.2, other.2))
    }
}

/// Okabe and Ito's colours, which people with any colour vision tell apart; without the yellow, which paper swallows.
pub const OKABE_ITO: [Color; 7] = [
    Color(0, 114, 178),
    Color(213, 94, 0),
    Color(0, 158, 115),
    Color(204, 121, 167),
    Color(230, 159, 0),
    Color(86, 180, 233),
    Color(70, 70, 70),
];

/// The shape of a data point, so that no figure depends on colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// A disc.
    Circle,
    /// An upright square.
    Square,
    /// A triangle on its base.
    Triangle,
    /// A square on its corner.
    Diamond,
    /// A triangle on its tip.
    Wedge,
    /// A plus turned by 45°.
    Cross,
}

impl Marker {
    /// Every marker, in the order in which series take them.
    pub const ALL: [Self; 6] =
        [Self::Circle, Self::Square, Self::Triangle, Self::Diamond, Self::Wedge, Self::Cross];
}

/// How a series looks: its colour, its marker, and whether the marker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The colour of line and marker.
    pub color: Color,
    /// The marker's shape.
    pub marker: Marker,
    /// An open marker is an outline on white: numbers that are not ours.
    pub open: bool,
}

impl Look {
    /// The look of series number `index`.
    pub fn nth(index: usize) -> Self {
        Self {
            color: OKABE_ITO[index % OKABE_ITO.len()],
            marker: Marker::ALL[index % Marker::ALL.len()],
            open: false,
        }
    }

    /// The same with an open marker.
    pub fn opened(self) -> Self {
        Self { open: true, ..self }
    }
}

/// Which point of a text stands at its position, across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The text begins there.
    Start,
    /// The text is centred there.
    Middle,
    /// The text ends there.
    End,
}

/// A piece of text; vertically it is centred on its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// Where, in points from the upper left corner.
    pub at: (f64, f64),
    /// What it says.
    pub text: String,
    /// The font's size in points.
    pub size: f64,
    /// Which point of it stands at `at`.
    pub anchor: Anchor,
    /// Turned to read from bottom to top.
    pub upward: bool,
    /// Its colour.
    pub color: Color,
}

impl Label {
    /// A label in the theme's size and ink that begins at `at`.
    pub fn new(at: (f64, f64), text: impl Into<String>) -> Self {
        Self { at, text: text.into(), size: LABEL, anchor: Anchor::Start, upward: false, color: Color::INK }
    }

    /// The same in the size of tick labels.
    pub fn small(self) -> Self {
        Self { size: SMALL, ..self }
    }

    /// The same centred, or ending, at its position.
    pub fn anchored(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }

    /// The same in another colour.
    pub fn colored(self, color: Color) -> Self {
        Self { color, ..self }
    }

    /// The same turned to read upwards.
    pub fn upward(self) -> Self {
        Self { upward: true, ..self }
    }

    /// The corners of the box it fills: left, top, right, bottom.
    pub fn bounds(&self) -> [f64; 4] {
        let (along, across) = (text_width(&self.text, self.size), 0.73 * self.size);
        let start = match self.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => -along / 2.0,
            Anchor::End => -along,
        };
        let (x, y) = self.at;
        if self.upward {
            [x - across / 2.0, y - start - along, x + across / 2.0, y - start]
        } else {
            [x + start, y - across / 2.0, x + start + along, y + across / 2.0]
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Path { points: Vec<(f64, f64)>, width: f64, color: Color },
    Polygon { points: Vec<(f64, f64)>, fill: Color },
    Disc { at: (f64, f64), radius: f64, fill: Color },
    Label(Label),
}

/// A picture in a figure.
#[derive(Debug, Clone, PartialEq)]
struct Picture {
    at: (f64, f64),
    side: f64,
    png: Vec<u8>,
}

/// A figure as shapes on a sheet, in points from its upper left corner; later shapes lie above earlier ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// The sheet's width in points.
    pub width: f64,
    /// The sheet's height in points.
    pub height: f64,
    /// Whether it is little but pictures, so that nothing is gained by drawing it as vectors: then there is a PNG alone.
    pub pixels_alone: bool,
    shapes: Vec<Shape>,
    pictures: Vec<Picture>,
}

impl Scene {
    /// An empty sheet, its sides rounded up to whole points: half a pixel at an edge would not be opaque.
    pub fn new(width: f64, height: f64) -> Self {
        Self {
            width: width.ceil(),
            height: height.ceil(),
            pixels_alone: false,
            shapes: Vec::new(),
            pictures: Vec::new(),
        }
    }

    /// Whether there are pictures in it, which an SVG would hold once more as text.
    pub fn holds_pictures(&self) -> bool {
        !self.pictures.is_empty()
    }

    /// An open path.
    pub fn path(&mut self, points: Vec<(f64, f64)>, width: f64, color: Color) {
        self.shapes.push(Shape::Path { points, width, color });
    }

    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), width: f64, color: Color) {
        self.path(vec![from, to], width, color);
    }

    /// A straight line of short strokes.
    pub fn dashed(&mut self, from: (f64, f64), to: (f64, f64), width: f64, color: Color) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let strokes = ((dx.hypot(dy) / 4.0).round().max(1.0)) as usize;
        for stroke in 0..strokes {
            let (a, b) = (stroke as f64 / strokes as f64, (stroke as f64 + 0.55) / strokes as f64);
            self.line((from.0 + a * dx, from.1 + a * dy), (from.0 + b * dx, from.1 + b * dy), width, color);
        }
    }

    /// A filled polygon.
    pub fn polygon(&mut self, points: Vec<(f64, f64)>, fill: Color) {
        self.shapes.push(Shape::Polygon { points, fill });
    }

    /// A filled upright rectangle between two corners.
    pub fn rectangle(&mut self, (x0, y0): (f64, f64), (x1, y1): (f64, f64), fill: Color) {
        self.polygon(vec![(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill);
    }

    /// A square picture, its bytes PNG, with its upper left corner at a point; pictures lie above all shapes.
    pub fn picture(&mut self, at: (f64, f64), side: f64, png: Vec<u8>) {
        self.pictures.push(Picture { at, side, png });
    }

    /// A text.
    pub fn label(&mut self, label: Label) {
        self.shapes.push(Shape::Label(label));
    }

    /// A data point of radius `radius`.
    pub fn marker(&mut self, at: (f64, f64), radius: f64, look: Look) {
        self.solid_marker(at, radius, look.marker, look.color);
        if look.open && look.marker != Marker::Cross {
            self.solid_marker(at, radius - 0.75, look.marker, Color::WHITE);
        }
    }

    fn solid_marker(&mut self, at: (f64, f64), r: f64, marker: Marker, fill: Color) {
        let around =
            |offsets: &[(f64, f64)]| offsets.iter().map(|(x, y)| (at.0 + r * x, at.1 + r * y)).collect();
        match marker {
            Marker::Circle => self.shapes.push(Shape::Disc { at, radius: r, fill }),
            Marker::Square => {
                self.polygon(around(&[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]), fill)
            }
            Marker::Triangle => self.polygon(around(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)]), fill),
            Marker::Diamond => {
                self.polygon(around(&[(0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)]), fill)
            }
            Marker::Wedge => self.polygon(around(&[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)]), fill),
            Marker::Cross => {
                self.path(around(&[(-0.8, -0.8), (0.8, 0.8)]), 0.9, fill);
                self.path(around(&[(-0.8, 0.8), (0.8, -0.8)]), 0.9, fill);
            }
        }
    }

    /// All texts.
    pub fn labels(&self) -> impl Iterator<Item = &Label> {
        self.shapes.iter().filter_map(|shape| match shape {
            Shape::Label(label) => Some(label),
            _ => None,
        })
    }

    /// The figure as SVG, with `title` inside for those who hear it.
    ///
    /// # Errors
    /// Where the drawing library refuses.
    pub fn to_svg(&self, title: &str) -> Result<String> {
        register_fonts();
        let size = (units(self.width) as u32, units(self.height) as u32);
        let mut svg = String::new();
        {
            let sheet = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            for shape in &self.shapes {
                draw(&sheet, shape)
                    .map_err(|e| Error::Shape(format!("figure {title:?} cannot be drawn: {e}")))?;
            }
            sheet.present().map_err(|e| Error::Shape(format!("figure {title:?} cannot be drawn: {e}")))?;
        }
        // The sheet is told its size in points and its title; the font is given a fallback for viewers without it.
        let title = title.replace('&', "&amp;").replace('<', "&lt;");
        let background = format!("<rect width=\"{}\" height=\"{}\" fill=\"#FFFFFF\"/>\n", size.0, size.1);
        let svg = svg
            .replacen(&format!("width=\"{}\"", size.0), &format!("width=\"{}pt\"", self.width), 1)
            .replacen(&format!("height=\"{}\"", size.1), &format!("height=\"{}pt\"", self.height), 1)
            .replacen(">\n", &format!(">\n<title>{title}</title>\n{background}"), 1)
            .replace("font-family=\"DejaVu Sans\"", "font-family=\"DejaVu Sans, Verdana, sans-serif\"")
            .replace(" opacity=\"1\"", "");
        let pictures: String = self.pictures.iter().map(Picture::svg).collect();
        Ok(svg.replacen("</svg>", &format!("{pictures}</svg>"), 1))
    }
}

impl Picture {
    fn svg(&self) -> String {
        use base64::Engine as _;
        let data = base64::engine::general_purpose::STANDARD.encode(&self.png);
        let ((x, y), side) = (at(self.at), units(self.side));
        // Whole pixels: nothing between them is invented.
        format!(
            "<image x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" image-rendering=\"optimizeSpeed\" \
             href=\"data:image/png;base64,{data}\"/>\n"
        )
    }
}

fn units(points: f64) -> i32 {
    (points * UNITS_PER_POINT).round() as i32
}

fn at((x, y): (f64, f64)) -> (i32, i32) {
    (units(x), units(y))
}

fn style(color: Color) -> ShapeStyle {
    RGBColor(color.0, color.1, color.2).filled()
}

fn draw(sheet: &DrawingArea<SVGBackend<'_>, Shift>, shape: &Shape) -> std::result::Result<(), String> {
    let drawn = match shape {
        Shape::Path { points, width, color } => {
            let points: Vec<_> = points.iter().copied().map(at).collect();
            sheet.draw(&PathElement::new(points, style(*color).stroke_width(units(*width).max(1) as u32)))
        }
        Shape::Polygon { points, fill } => {
            sheet.draw(&Polygon::new(points.iter().copied().map(at).collect::<Vec<_>>(), style(*fill)))
        }
        Shape::Disc { at: centre, radius, fill } => {
            sheet.draw(&Circle::new(at(*centre), units(*radius).max(1), style(*fill)))
        }
        Shape::Label(label) => {
            let across = match label.anchor {
                Anchor::Start => HPos::Left,
                Anchor::Middle => HPos::Center,
                Anchor::End => HPos::Right,
            };
            let font = (FAMILY, label.size * UNITS_PER_POINT * SIZE_FACTOR).into_font();
            let font = if label.upward { font.transform(FontTransform::Rotate270) } else { font };
            let font = font
                .color(&RGBColor(label.color.0, label.color.1, label.color.2))
                .pos(Pos::new(across, VPos::Center));
            sheet.draw(&Text::new(label.text.clone(), at(label.at), font))
        }
    };
    drawn.map_err(|e| e.to_string())
}

fn register_fonts() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // Only bytes that are no font are refused, and these are compiled in.
        let _ = register_font(FAMILY, FontStyle::Normal, FONT);
    });
}

/// How wide a text is, in points.
pub fn text_width(text: &str, size: f64) -> f64 {
    register_fonts();
    // Measured large, because the answer is in whole units.
    let font = (FAMILY, 1000.0).into_font();
    font.box_size(text).map_or(0.0, |(width, _)| f64::from(width) / 1000.0 * LINE_HEIGHT * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_measured_as_the_font_says() {
        // DejaVu Sans advances: "0" is 1303 and "i" is 569 units of 2048.
        assert!((text_width("00", 10.0) - 20.0 * 1303.0 / 2048.0).abs() < 0.05);
        assert!((text_width("i", 10.0) - 10.0 * 569.0 / 2048.0).abs() < 0.05);
        let label = Label::new((10.0, 10.0), "00").anchored(Anchor::End);
        assert!((label.bounds()[2] - 10.0).abs() < 1e-9);
        let up = Label::new((10.0, 50.0), "00").upward().bounds();
        assert!(up[3] == 50.0 && up[1] < 42.0 && up[0] < 10.0);
    }

    #[test]
    fn tints_are_blended_and_opaque() {
        assert_eq!(Color(0, 0, 0).tint(0.0), Color::WHITE);
        assert_eq!(Color(0, 100, 200).tint(0.5), Color(128, 178, 228));
    }
}
