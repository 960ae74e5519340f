//! One theme for every figure: a scene in points, drawn as SVG, PDF and PNG from the same shapes.
//!
//! Figures are `\columnwidth` wide (237 pt, as in CVPR's style), in the embedded DejaVu Sans, in Okabe and Ito's
//! colours with a distinct marker each, and every colour is opaque: what should look translucent is blended
//! beforehand, which also keeps the PDF identical from run to run. Plotters writes whole units only, so a scene is
//! drawn at ten units to the point.

use std::sync::{Arc, Once, OnceLock};

use plotters::coord::Shift;
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::{DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, register_font};
use svg2pdf::usvg;

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
const PNG_PIXELS_PER_POINT: f64 = 3.0;
const FAMILY: &str = "DejaVu Sans";
/// One face only: with two in one file, svg2pdf writes their resources in an order that changes from run to run.
const FONT: &[u8] = include_bytes!("../../assets/fonts/DejaVuSans.ttf");
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
    shapes: Vec<Shape>,
    pictures: Vec<Picture>,
}

impl Scene {
    /// An empty sheet, its sides rounded up to whole points: half a pixel at an edge would not be opaque.
    pub fn new(width: f64, height: f64) -> Self {
        Self { width: width.ceil(), height: height.ceil(), shapes: Vec::new(), pictures: Vec::new() }
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

fn parse(svg: &str) -> Result<usvg::Tree> {
    static FONTS: OnceLock<Arc<usvg::fontdb::Database>> = OnceLock::new();
    let fontdb = FONTS.get_or_init(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(FONT.to_vec());
        fonts.set_sans_serif_family(FAMILY);
        Arc::new(fonts)
    });
    let options =
        usvg::Options { fontdb: fontdb.clone(), font_family: FAMILY.to_owned(), ..usvg::Options::default() };
    usvg::Tree::from_str(svg, &options)
        .map_err(|e| Error::Shape(format!("a figure's SVG cannot be read: {e}")))
}

/// The PDF of an SVG that [`Scene::to_svg`] made: vectors, with real text in the embedded font.
///
/// # Errors
/// Where the SVG cannot be converted.
pub fn to_pdf(svg: &str) -> Result<Vec<u8>> {
    // 96 units to the inch is how `usvg` reads points; the page keeps them.
    let page = svg2pdf::PageOptions { dpi: 96.0 };
    let mut pdf = svg2pdf::to_pdf(&parse(svg)?, svg2pdf::ConversionOptions::default(), page)
        .map_err(|e| Error::Shape(format!("a figure cannot be converted to PDF: {e}")))?;
    sort_pictures(&mut pdf);
    Ok(pdf)
}

/// Sorts the lines of every dictionary of pictures, which the converter writes in random order. No byte moves beyond
/// its dictionary, so the file's table of offsets stays right.
fn sort_pictures(pdf: &mut [u8]) {
    const OPEN: &[u8] = b"/XObject <<\n";
    let mut from = 0;
    while let Some(start) = pdf[from..].windows(OPEN.len()).position(|bytes| bytes == OPEN) {
        let start = from + start + OPEN.len();
        let Some(length) = pdf[start..].windows(2).position(|bytes| bytes == b">>") else { return };
        // The last line holds the closing brackets' indentation.
        let length =
            pdf[start..start + length].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut lines: Vec<Vec<u8>> =
            pdf[start..start + length].split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        pdf[start..start + length].copy_from_slice(&lines.concat());
        from = start + length;
    }
}

/// The PNG of an SVG that [`Scene::to_svg`] made, three pixels to the point (216 per inch).
///
/// # Errors
/// Where the SVG cannot be drawn or encoded.
pub fn to_png(svg: &str) -> Result<Vec<u8>> {
    use resvg::tiny_skia::{Pixmap, Transform};
    let tree = parse(svg)?;
    let scale = (PNG_PIXELS_PER_POINT * 72.0 / 96.0) as f32;
    let size = tree.size();
    let (width, height) = ((size.width() * scale).round() as u32, (size.height() * scale).round() as u32);
    let mut pixels = Pixmap::new(width, height)
        .ok_or_else(|| Error::Shape(format!("a figure of {width}×{height} pixels")))?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixels.as_mut());
    // The background is opaque, so dropping the alpha channel loses nothing.
    let rgb: Vec<u8> = pixels.data().chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect();
    encode_png(&rgb, width, height)
}

/// Encodes RGB pixels as PNG.
///
/// # Errors
/// Where the encoder refuses.
pub fn encode_png(rgb: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    use image::ImageEncoder as _;
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, FilterType::Sub)
        .write_image(rgb, width, height, image::ExtendedColorType::Rgb8)
        .map_err(|e| Error::Shape(format!("a figure cannot be encoded as PNG: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Scene {
        let mut scene = Scene::new(COLUMN, 60.0);
        scene.line((10.0, 50.0), (227.0, 50.0), 0.5, Color::GREY);
        for (index, marker) in Marker::ALL.into_iter().enumerate() {
            let look = Look { marker, ..Look::nth(index) };
            scene.marker((20.0 + 20.0 * index as f64, 20.0), 2.5, look);
            scene.marker((20.0 + 20.0 * index as f64, 35.0), 2.5, look.opened());
        }
        scene.label(Label::new((150.0, 20.0), "β = 0.5 ± ½ × σ"));
        scene.label(Label::new((235.0, 30.0), "up").upward());
        scene
    }

    #[test]
    fn all_three_formats_repeat_to_the_byte() {
        let svg = sample().to_svg("a < b").unwrap();
        assert!(svg.contains("width=\"237pt\"") && svg.contains("a &lt; b") && !svg.contains("opacity"));
        let (pdf, png) = (to_pdf(&svg).unwrap(), to_png(&svg).unwrap());
        for _ in 0..3 {
            let again = sample().to_svg("a < b").unwrap();
            assert_eq!(again, svg);
            assert!(to_pdf(&again).unwrap() == pdf, "the PDF differs from run to run");
            assert!(to_png(&again).unwrap() == png, "the PNG differs from run to run");
        }
        // Text that lost its font would leave a PDF without any font.
        assert!(pdf.windows(9).any(|bytes| bytes == b"/FontFile"), "the PDF embeds no font");
        let page = b"/MediaBox [0 0 237 60]";
        assert!(pdf.windows(page.len()).any(|bytes| bytes == page), "the PDF page is not 237 × 60 pt");
        let picture = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!((picture.width(), picture.height()), (711, 180));
        assert!(picture.pixels().any(|p| p.0 == [0, 114, 178]), "no Okabe-Ito blue in the PNG");
    }

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
