//! PNG and JPEG to and from pixels, and contact sheets for people to look at.
//!
//! Bytes are recognised by what they hold, never by a file's name: Pick-a-Pic's `jpg_0` column holds whatever its
//! maker put there. Pictures become RGB8: grey is spread over the channels, and transparency is laid on white,
//! as the reference preprocessings' `convert("RGB")` callers expect of opaque data.

mod font;
mod sheet;

use std::path::Path;

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::png::{CompressionType, FilterType, PngEncoder};
use ::image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat};

use crate::error::{Error, Result};
pub use crate::image::sheet::{Cell, Sheet, framed, upscale};
use crate::pixels::Image;

/// How a picture becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lossless.
    Png,
    /// Lossy, without chroma subsampling (4:4:4), at a quality of 1 to 100.
    Jpeg(u8),
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
    let decoded = ::image::load_from_memory_with_format(bytes, format).map_err(|error| {
        fault(format!(
            "the {format:?} picture cannot be decoded ({error}); {} bytes are there, so it is probably cut short \
             or damaged: fetch or make it again",
            bytes.len()
        ))
    })?;
    Ok(flatten(&decoded))
}

/// Lays a decoded picture on white and keeps RGB.
fn flatten(decoded: &DynamicImage) -> Image {
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    if !decoded.color().has_alpha() {
        return Image::new(width, height, decoded.to_rgb8().into_raw());
    }
    let rgba = decoded.to_rgba8();
    let over_white = |colour: u8, alpha: u8| {
        let (colour, alpha) = (u32::from(colour), u32::from(alpha));
        ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let rgb = rgba.pixels().flat_map(|p| [0, 1, 2].map(|channel| over_white(p[channel], p[3]))).collect();
    Image::new(width, height, rgb)
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
    fn transparency_lies_on_white_and_grey_spreads() {
        let mut bytes = Vec::new();
        let rgba = [10, 20, 30, 255, 10, 20, 30, 0, 0, 0, 0, 128];
        PngEncoder::new(&mut bytes).write_image(&rgba, 3, 1, ExtendedColorType::Rgba8).unwrap();
        let image = decode(&bytes, "x").unwrap();
        assert_eq!([image.at(0, 0), image.at(1, 0), image.at(2, 0)], [[10, 20, 30], [255; 3], [127; 3]]);
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(&[7, 9], 2, 1, ExtendedColorType::L8).unwrap();
        assert_eq!(decode(&bytes, "x").unwrap().rgb(), [7, 7, 7, 9, 9, 9]);
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
