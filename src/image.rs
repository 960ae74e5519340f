//! PNG and JPEG to and from pixels, and contact sheets for people to look at.
//!
//! Bytes are recognised by what they hold, never by a file's name: Pick-a-Pic's `jpg_0` column holds whatever its
//! maker put there. Pictures become RGB8 as Pillow's `convert("RGB")` makes them, which every public reward model's
//! preprocessing begins with: grey is spread over the channels, transparency is dropped (not laid on anything), sixteen
//! bits keep their upper eight, ink (CMYK) becomes light, and no profile or orientation is applied. What has no such
//! meaning is refused: animations, and sixteen-bit grey, of which Pillow leaves almost nothing but white. JPEGs are decoded
//! byte for byte as by Pillow's library ([`JpegDecoder`]).

mod font;
mod jpeg;
mod sheet;

use std::path::Path;

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::png::{CompressionType, FilterType, PngEncoder};
use ::image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat};

use crate::error::{Error, Result};
pub use crate::image::sheet::{Cell, Sheet, framed, upscale};
use crate::pixels::{Image, Mode};

/// How a picture becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lossless.
    Png,
    /// Lossy, without chroma subsampling (4:4:4), at a quality of 1 to 100.
    Jpeg(u8),
}

/// By whose arithmetic a JPEG becomes pixels. Decoders agree on what is stored, not on the last bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JpegDecoder {
    /// libjpeg-turbo's, as Pillow's: what every public reward and data set is read with.
    Turbo,
    /// zune-jpeg's, for one use alone: the desk's own pairs, all of 4:4:4. They were judged, scored and trained on by its
    /// pixels, of which libjpeg-turbo gives 0.7 % differently, by up to three, and what follows from them is published.
    Zune,
}

impl JpegDecoder {
    /// What a data set calls the model whose pictures were published as [`JpegDecoder::Zune`] shows them.
    pub const DESK_MODEL: &str = "desk-base";

    /// The decoder of a preference pair's picture, by the model that made the picture.
    pub fn of_model(model: Option<&str>) -> Self {
        if model == Some(Self::DESK_MODEL) { Self::Zune } else { Self::Turbo }
    }
}

/// The bytes of `image` in `format`.
///
/// # Errors
/// [`Error::Shape`] where the format cannot hold the picture: no pixels, or more than 65,535 on a side in JPEG.
pub fn encode(image: &Image, format: Format) -> Result<Vec<u8>> {
    let (width, height) = (image.width(), image.height());
    let limit = if matches!(format, Format::Jpeg(_)) { usize::from(u16::MAX) } else { i32::MAX as usize };
    if width == 0 || height == 0 || width > limit || height > limit {
        return Err(Error::Shape(format!(
            "a picture of {width}×{height} pixels cannot be stored as {format:?}"
        )));
    }
    let mut bytes = Vec::new();
    let (w, h) = (width as u32, height as u32);
    let written = match format {
        Format::Png => PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive)
            .write_image(image.rgb(), w, h, ExtendedColorType::Rgb8),
        Format::Jpeg(quality) => JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100))
            .write_image(image.rgb(), w, h, ExtendedColorType::Rgb8),
    };
    written.map_err(|error| Error::Shape(format!("cannot store a picture of {width}×{height}: {error}")))?;
    Ok(bytes)
}

/// The picture in some bytes; `origin` names them in messages (a file, or a file with a row and a column).
///
/// # Errors
/// [`Error::Data`] where the bytes are not a whole PNG or JPEG.
pub fn decode(bytes: &[u8], origin: impl AsRef<Path>) -> Result<Image> {
    decode_by(JpegDecoder::Turbo, bytes, origin)
}

/// The same with a decoder of one's choice, should it be a JPEG.
///
/// # Errors
/// As [`decode`].
pub fn decode_by(decoder: JpegDecoder, bytes: &[u8], origin: impl AsRef<Path>) -> Result<Image> {
    let fault = |message: String| Error::data(origin.as_ref(), message);
    let format = match ::image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        Ok(other) => {
            return Err(fault(format!(
                "expected a PNG or JPEG picture, got {other:?}; convert it to PNG first"
            )));
        }
        Err(_) => {
            let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            return Err(fault(format!(
                "expected a PNG or JPEG picture, got {} bytes that begin with [{}]; \
                 the data is not a picture, or was damaged on its way: fetch or make it again",
                bytes.len(),
                start.join(" ")
            )));
        }
    };
    if let Some(reason) = refusal(bytes, format) {
        return Err(fault(reason));
    }
    let damaged = |cause: &dyn std::fmt::Display| {
        fault(format!(
            "the {format:?} picture cannot be decoded ({cause}); {} bytes are there, so it is probably cut short \
             or damaged: fetch or make it again",
            bytes.len()
        ))
    };
    if format == ImageFormat::Jpeg && decoder == JpegDecoder::Turbo {
        return Ok(jpeg::decode(bytes).map_err(|cause| damaged(&cause))?.rgb());
    }
    let decoded = ::image::load_from_memory_with_format(bytes, format).map_err(|cause| damaged(&cause))?;
    let mode = if format == ImageFormat::Png { png_mode(bytes, &decoded) } else { Some(Mode::Rgb) };
    let image = rgb(&decoded).zip(mode).map(|(image, mode)| image.stored_as(mode));
    image.ok_or_else(|| {
        fault(
            "a picture of 16-bit grey, which Pillow would make almost white; make it one of 8 bits, scaled as you mean it"
                .into(),
        )
    })
}

/// Why a picture is refused that could be decoded, or that the decoder would fill up with grey.
fn refusal(bytes: &[u8], format: ImageFormat) -> Option<String> {
    match format {
        ImageFormat::Png if png_chunks(bytes).any(|(kind, _)| kind == b"acTL") => Some(
            "an animated PNG: a picture is expected; save one of its frames as a picture of its own".into(),
        ),
        ImageFormat::Jpeg if !jpeg_ends(bytes) => Some(format!(
            "the Jpeg picture is cut short: its {} bytes hold no end marker; fetch or make it again",
            bytes.len()
        )),
        _ => None,
    }
}

/// The kinds of a PNG's chunks with their data, up to the pixels.
fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_at_checked(4)?;
        let (data, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = after.get(4..).unwrap_or_default();
        (kind != b"IDAT").then_some((kind, data))
    })
}

/// Whether a JPEG has its end marker, outside the segments that may hold a thumbnail with one of its own.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(start) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xFF)) {
        at += start + 1;
        match bytes.get(at) {
            Some(0xD9) => return true,
            // A stuffed byte, a fill byte, or a marker without a segment.
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 1,
            Some(0xFF) => {}
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
            None => return false,
        }
    }
    false
}

/// A decoded picture's RGB, as Pillow's `convert("RGB")`; `None` for sixteen-bit grey.
fn rgb(decoded: &DynamicImage) -> Option<Image> {
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let upper = |value: u16| (value >> 8) as u8;
    let bytes = match decoded {
        DynamicImage::ImageLuma16(_) => return None,
        DynamicImage::ImageLumaA16(pixels) => pixels.pixels().flat_map(|p| [upper(p[0]); 3]).collect(),
        DynamicImage::ImageRgb16(pixels) => pixels.pixels().flat_map(|p| p.0.map(upper)).collect(),
        DynamicImage::ImageRgba16(pixels) => {
            pixels.pixels().flat_map(|p| [upper(p[0]), upper(p[1]), upper(p[2])]).collect()
        }
        DynamicImage::ImageRgba8(pixels) => pixels.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLumaA8(pixels) => pixels.pixels().flat_map(|p| [p[0]; 3]).collect(),
        other => other.to_rgb8().into_raw(),
    };
    Some(Image::new(width, height, bytes))
}

/// How a PNG stores its picture, by its header: a colour that merely counts as transparent is no opacity to Pillow.
/// `None` for sixteen-bit grey.
fn png_mode(bytes: &[u8], decoded: &DynamicImage) -> Option<Mode> {
    let upper = |value: u16| (value >> 8) as u8;
    Some(match (bytes.get(25), bytes.get(24)) {
        (Some(0), Some(16)) => return None,
        (Some(3), _) | (Some(0), Some(1)) => Mode::Indexed,
        (Some(4 | 6), _) => Mode::Alpha(match decoded {
            DynamicImage::ImageLumaA8(pixels) => pixels.pixels().map(|p| p[1]).collect(),
            DynamicImage::ImageRgba8(pixels) => pixels.pixels().map(|p| p[3]).collect(),
            DynamicImage::ImageLumaA16(pixels) => pixels.pixels().map(|p| upper(p[1])).collect(),
            DynamicImage::ImageRgba16(pixels) => pixels.pixels().map(|p| upper(p[3])).collect(),
            _ => return Some(Mode::Rgb),
        }),
        _ => Mode::Rgb,
    })
}

/// Reads a PNG or JPEG file.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read, [`Error::Data`] where it is not a whole PNG or JPEG.
pub fn read(path: impl AsRef<Path>) -> Result<Image> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    decode(&bytes, path)
}

/// Writes a file in the format that its name ends with: `.png`, `.jpg` or `.jpeg` (then at quality 95).
///
/// # Errors
/// [`Error::Spec`] where the name ends otherwise, [`Error::Io`] where the file cannot be written.
pub fn write(path: impl AsRef<Path>, image: &Image) -> Result<()> {
    let path = path.as_ref();
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let format = match extension.as_str() {
        "png" => Format::Png,
        "jpg" | "jpeg" => Format::Jpeg(95),
        _ => {
            return Err(Error::Spec(format!(
                "{}: pictures are written as .png or .jpg, not as {:?}; give the file such a name",
                path.display(),
                if extension.is_empty() { "no extension".into() } else { format!(".{extension}") }
            )));
        }
    };
    std::fs::write(path, encode(image, format)?).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    fn noise(width: usize, height: usize) -> Image {
        let mut s = stream(Seed::new(1), "image-test", 0);
        Image::new(width, height, (0..3 * width * height).map(|_| s.below(256) as u8).collect())
    }

    #[test]
    fn png_is_lossless_and_jpeg_close_on_a_smooth_picture() {
        let random = noise(13, 7);
        assert_eq!(decode(&encode(&random, Format::Png).unwrap(), "x.png").unwrap(), random);
        let smooth: Vec<u8> =
            (0..32 * 32).flat_map(|i| [(i % 32 * 8) as u8, (i / 32 * 8) as u8, 90]).collect();
        let smooth = Image::new(32, 32, smooth);
        let back = decode(&encode(&smooth, Format::Jpeg(95)).unwrap(), "x.jpg").unwrap();
        let error: f64 = smooth.rgb().iter().zip(back.rgb()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        let mean = error / (3.0 * 32.0 * 32.0);
        assert!(mean < 1.0, "mean absolute error {mean}");
    }

    #[test]
    fn transparency_is_dropped_and_grey_spreads() {
        let mut bytes = Vec::new();
        let rgba = [10, 20, 30, 255, 10, 20, 30, 0, 0, 0, 0, 128];
        PngEncoder::new(&mut bytes).write_image(&rgba, 3, 1, ExtendedColorType::Rgba8).unwrap();
        let image = decode(&bytes, "x").unwrap();
        assert_eq!([image.at(0, 0), image.at(1, 0), image.at(2, 0)], [[10, 20, 30], [10, 20, 30], [0; 3]]);
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(&[7, 9], 2, 1, ExtendedColorType::L8).unwrap();
        assert_eq!(decode(&bytes, "x").unwrap().rgb(), [7, 7, 7, 9, 9, 9]);
    }

    #[test]
    fn of_sixteen_bits_the_upper_eight_stay_and_grey_is_refused() {
        let mut bytes = Vec::new();
        let wide: Vec<u8> =
            [0x12FFu16, 0x3400, 0xFFFF].iter().flat_map(|value| value.to_ne_bytes()).collect();
        PngEncoder::new(&mut bytes).write_image(&wide, 1, 1, ExtendedColorType::Rgb16).unwrap();
        assert_eq!(decode(&bytes, "x").unwrap().at(0, 0), [0x12, 0x34, 0xFF]);
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(&wide[..2], 1, 1, ExtendedColorType::L16).unwrap();
        assert!(decode(&bytes, "x").unwrap_err().to_string().contains("16-bit grey"));
    }

    #[test]
    fn a_jpeg_without_its_end_and_an_animation_are_refused() {
        let jpeg = encode(&noise(64, 64), Format::Jpeg(90)).unwrap();
        for length in [jpeg.len() / 2, jpeg.len() - 2] {
            let message = decode(&jpeg[..length], "a.jpg").unwrap_err().to_string();
            assert!(message.contains("cut short"), "{message}");
        }
        let png = encode(&noise(4, 4), Format::Png).unwrap();
        // The header chunk ends after 33 bytes; a chunk of eight bytes of data follows it, its checksum unread.
        let control =
            [0, 0, 0, 8].iter().chain(b"acTL").chain(&[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]).copied();
        let animated: Vec<u8> =
            png[..33].iter().copied().chain(control).chain(png[33..].iter().copied()).collect();
        let message = decode(&animated, "a.png").unwrap_err().to_string();
        assert!(message.contains("animated"), "{message}");
    }

    #[test]
    fn what_is_not_a_whole_picture_is_refused_by_name() {
        let whole = encode(&noise(16, 16), Format::Png).unwrap();
        let torn = decode(&whole[..whole.len() / 2], "pairs/a.png").unwrap_err().to_string();
        assert!(torn.starts_with("pairs/a.png: ") && torn.contains("cut short"), "{torn}");
        let text = decode(b"<html>404</html>", "b.jpg").unwrap_err().to_string();
        assert!(text.contains("b.jpg") && text.contains("3c 68 74 6d"), "{text}");
        let gif = decode(b"GIF89a\x01\x00\x01\x00\x00\x00\x00", "c.png").unwrap_err().to_string();
        assert!(gif.contains("Gif") && gif.contains("convert"), "{gif}");
        assert!(decode(b"", "empty").unwrap_err().to_string().contains("0 bytes"));
    }

    #[test]
    fn files_are_written_by_their_extension() {
        let folder = tempfile::tempdir().unwrap();
        let image = noise(8, 8);
        let path = folder.path().join("a.PNG");
        write(&path, &image).unwrap();
        assert_eq!(read(&path).unwrap(), image);
        let message = write(folder.path().join("a.bmp"), &image).unwrap_err().to_string();
        assert!(message.contains(".png or .jpg"), "{message}");
        assert!(read(folder.path().join("absent.png")).unwrap_err().to_string().contains("cannot read"));
        assert!(encode(&Image::new(0, 0, vec![]), Format::Png).is_err());
    }
}
