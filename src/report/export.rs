//! What a figure's SVG becomes: a PDF of vectors, and a PNG.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock};

use svg2pdf::usvg;

use super::plot::{FAMILY, FONT};
use crate::error::{Error, Result};

const PIXELS_PER_POINT: f64 = 3.0;
/// Where there are photographs, which are drawn larger than they are: more pixels would show nothing more.
const PIXELS_PER_POINT_OF_PICTURES: f64 = 2.0;

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

/// The PDF of an SVG that [`super::plot::Scene::to_svg`] made: vectors, with real text in the embedded font.
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

/// The PNG of an SVG that [`super::plot::Scene::to_svg`] made, three pixels to the point (216 per inch), two where it holds
/// pictures.
///
/// # Errors
/// Where the SVG cannot be drawn or encoded.
pub fn to_png(svg: &str) -> Result<Vec<u8>> {
    use resvg::tiny_skia::{Pixmap, Transform};
    let tree = parse(svg)?;
    let pixels = if svg.contains("<image") { PIXELS_PER_POINT_OF_PICTURES } else { PIXELS_PER_POINT };
    let scale = (pixels * 72.0 / 96.0) as f32;
    let size = tree.size();
    let (width, height) = ((size.width() * scale).round() as u32, (size.height() * scale).round() as u32);
    let mut pixels = Pixmap::new(width, height)
        .ok_or_else(|| Error::Shape(format!("a figure of {width}×{height} pixels")))?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixels.as_mut());
    // The background is opaque, so dropping the alpha channel loses nothing.
    let rgb: Vec<u8> = pixels.data().chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect();
    encode_png(&rgb, width, height)
}

/// Encodes RGB pixels as PNG, in the smallest of the ways that are tried: by numbers from a palette where few colours are
/// used; plain, which suits plots; by differences, which suits pictures.
///
/// # Errors
/// Where the encoder refuses.
pub fn encode_png(rgb: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let encode = |palette: Option<Vec<u8>>, data: &[u8], filter: png::Filter| {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        if let Some(palette) = palette {
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_palette(palette);
        }
        encoder.set_compression(png::Compression::High);
        encoder.set_filter(filter);
        let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(data));
        written.map_err(|e| Error::Shape(format!("a figure cannot be encoded as PNG: {e}")))?;
        Ok(bytes)
    };
    if let Some((palette, indices)) = indexed(rgb) {
        return encode(Some(palette), &indices, png::Filter::NoFilter);
    }
    let (plain, differences) =
        (encode(None, rgb, png::Filter::NoFilter)?, encode(None, rgb, png::Filter::Adaptive)?);
    Ok(if plain.len() <= differences.len() { plain } else { differences })
}

/// The colours in the order of their first pixels, three bytes each, and each pixel's number; `None` above 256.
fn indexed(rgb: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut numbers: HashMap<&[u8], u8> = HashMap::new();
    let (mut palette, mut indices) = (Vec::new(), Vec::with_capacity(rgb.len() / 3));
    for pixel in rgb.chunks_exact(3) {
        let next = numbers.len();
        let number = match numbers.entry(pixel) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                palette.extend_from_slice(pixel);
                *new.insert(u8::try_from(next).ok()?)
            }
        };
        indices.push(number);
    }
    Some((palette, indices))
}

#[cfg(test)]
mod tests {
    use super::super::plot::{COLUMN, Color, Label, Look, Marker, Scene};
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
    fn many_colours_and_few_are_drawn_alike() {
        let few: Vec<u8> = (0..64u8).flat_map(|i| [i % 4, 0, 255]).collect();
        let many: Vec<u8> = (0..1024u16).flat_map(|i| [(i % 256) as u8, (i / 256) as u8, 9]).collect();
        for (rgb, side, color) in [(few, 8, png::ColorType::Indexed), (many, 32, png::ColorType::Rgb)] {
            let bytes = encode_png(&rgb, side, side).unwrap();
            let reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
            assert_eq!(reader.info().color_type, color);
            assert!(*image::load_from_memory(&bytes).unwrap().to_rgb8().as_raw() == rgb);
        }
    }
}
