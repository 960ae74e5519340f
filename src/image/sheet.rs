//! Contact sheets: pictures in rows and columns, captions wrapped beneath, frames in a colour.

use super::font;
use crate::error::{Error, Result};
use crate::pixels::Image;

/// Points from one character to the next, and from one line to the next.
const ADVANCE: usize = font::WIDTH + 1;
const LINE: usize = font::HEIGHT + 2;

/// One place in a sheet.
#[derive(Debug, Clone)]
pub struct Cell<'a> {
    /// The picture, at its own size; the sheet enlarges it.
    pub image: &'a Image,
    /// What stands beneath it, wrapped to the cell's width; a line break in it is kept.
    pub caption: Option<String>,
    /// The colour of a frame around it.
    pub frame: Option<[u8; 3]>,
}

impl<'a> Cell<'a> {
    /// A picture without caption or frame.
    pub fn new(image: &'a Image) -> Self {
        Self { image, caption: None, frame: None }
    }

    /// With words beneath.
    pub fn caption(mut self, caption: impl Into<String>) -> Self {
        self.caption = Some(caption.into());
        self
    }

    /// With a frame.
    pub fn frame(mut self, colour: [u8; 3]) -> Self {
        self.frame = Some(colour);
        self
    }
}

/// How a contact sheet is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sheet {
    /// Pictures side by side.
    pub columns: usize,
    /// Pixels between pictures and around them.
    pub gap: usize,
    /// How many times each picture is enlarged (whole pixels, nothing interpolated).
    pub scale: usize,
    /// How many pixels a point of the font takes.
    pub text: usize,
    /// Pixels of a frame, outside the picture.
    pub frame: usize,
    /// The colour of the paper.
    pub paper: [u8; 3],
    /// The colour of words.
    pub ink: [u8; 3],
}

impl Default for Sheet {
    fn default() -> Self {
        Self { columns: 4, gap: 8, scale: 3, text: 2, frame: 4, paper: [255; 3], ink: [40; 3] }
    }
}

impl Sheet {
    /// Lays `cells` out row by row. A row is as high as its longest caption asks for.
    ///
    /// # Errors
    /// [`Error::Shape`] where there is nothing to show, or a layout value that must not be zero is.
    pub fn draw(&self, cells: &[Cell]) -> Result<Image> {
        if cells.is_empty() || self.columns == 0 || self.scale == 0 || self.text == 0 {
            return Err(Error::Shape(format!(
                "a contact sheet needs a picture and at least 1 column, scale and text size; got {} pictures, \
                 {} columns, scale {}, text {}",
                cells.len(),
                self.columns,
                self.scale,
                self.text
            )));
        }
        let columns = self.columns.min(cells.len());
        let border = if cells.iter().any(|cell| cell.frame.is_some()) { self.frame } else { 0 };
        let picture_width = self.scale * cells.iter().map(|cell| cell.image.width()).max().unwrap_or(0);
        let cell_width = picture_width + 2 * border;
        let per_line = (cell_width / (ADVANCE * self.text)).max(1);
        let captions: Vec<Vec<String>> = cells
            .iter()
            .map(|cell| cell.caption.as_deref().map(|words| wrap(words, per_line)).unwrap_or_default())
            .collect();

        let rows: Vec<(usize, usize)> = cells
            .chunks(columns)
            .zip(captions.chunks(columns))
            .map(|(row, words)| {
                let picture = self.scale * row.iter().map(|cell| cell.image.height()).max().unwrap_or(0);
                let lines = words.iter().map(Vec::len).max().unwrap_or(0);
                // Half a line of air between picture and words.
                let text = if lines == 0 { 0 } else { lines * LINE * self.text + LINE * self.text / 2 };
                (picture + 2 * border, text)
            })
            .collect();
        let width = self.gap + columns * (cell_width + self.gap);
        let height = self.gap + rows.iter().map(|(picture, text)| picture + text + self.gap).sum::<usize>();

        let mut canvas = Canvas::new(width, height, self.paper);
        let mut top = self.gap;
        for (row, (picture_height, text_height)) in rows.iter().enumerate() {
            for column in 0..columns {
                let Some(cell) = cells.get(row * columns + column) else { break };
                let left = self.gap + column * (cell_width + self.gap);
                let enlarged = upscale(cell.image, self.scale);
                if let Some(colour) = cell.frame {
                    canvas.fill(
                        left,
                        top,
                        enlarged.width() + 2 * border,
                        enlarged.height() + 2 * border,
                        colour,
                    );
                }
                canvas.paste(left + border, top + border, &enlarged);
                let first = top + picture_height + LINE * self.text / 2;
                for (line, words) in captions[row * columns + column].iter().enumerate() {
                    canvas.write(left, first + line * LINE * self.text, words, self.text, self.ink);
                }
            }
            top += picture_height + text_height + self.gap;
        }
        Ok(canvas.into_image())
    }
}

/// Enlarges by a whole factor: each pixel becomes a square.
pub fn upscale(image: &Image, factor: usize) -> Image {
    let (width, height) = (image.width() * factor, image.height() * factor);
    let rgb = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| image.at(x / factor, y / factor))
        .collect();
    Image::new(width, height, rgb)
}

/// Puts a frame of `thickness` pixels in `colour` around a picture.
pub fn framed(image: &Image, thickness: usize, colour: [u8; 3]) -> Image {
    let mut canvas = Canvas::new(image.width() + 2 * thickness, image.height() + 2 * thickness, colour);
    canvas.paste(thickness, thickness, image);
    canvas.into_image()
}

/// Breaks words into lines of at most `width` characters; a longer word is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut word: Vec<char> = word.chars().collect();
            let used = line.chars().count();
            if used > 0 && used + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

/// Bytes being painted.
struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    fn new(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// Fills a rectangle; what lies outside the canvas is left out.
    fn fill(&mut self, left: usize, top: usize, width: usize, height: usize, colour: [u8; 3]) {
        for y in top..(top + height).min(self.height) {
            for x in left..(left + width).min(self.width) {
                let start = 3 * (y * self.width + x);
                self.rgb[start..start + 3].copy_from_slice(&colour);
            }
        }
    }

    fn paste(&mut self, left: usize, top: usize, image: &Image) {
        for y in 0..image.height() {
            for x in 0..image.width() {
                self.fill(left + x, top + y, 1, 1, image.at(x, y));
            }
        }
    }

    fn write(&mut self, left: usize, top: usize, text: &str, size: usize, ink: [u8; 3]) {
        for (place, character) in text.chars().enumerate() {
            for (x, column) in font::columns(character).into_iter().enumerate() {
                for y in (0..font::HEIGHT).filter(|y| column >> y & 1 == 1) {
                    self.fill(left + (place * ADVANCE + x) * size, top + y * size, size, size, ink);
                }
            }
        }
    }

    fn into_image(self) -> Image {
        Image::new(self.width, self.height, self.rgb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(side: usize, colour: [u8; 3]) -> Image {
        Image::new(side, side, colour.repeat(side * side))
    }

    #[test]
    fn upscaling_repeats_each_pixel() {
        let image = Image::new(2, 1, vec![1, 2, 3, 4, 5, 6]);
        let big = upscale(&image, 2);
        assert_eq!((big.width(), big.height()), (4, 2));
        assert_eq!(big.rgb()[..12], [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]);
        assert_eq!(big.rgb()[..12], big.rgb()[12..]);
    }

    #[test]
    fn cells_stand_where_the_layout_says() {
        let (red, blue) = (flat(4, [255, 0, 0]), flat(4, [0, 0, 255]));
        let sheet = Sheet { columns: 2, gap: 1, scale: 2, ..Sheet::default() };
        let drawn = sheet.draw(&[Cell::new(&red), Cell::new(&blue), Cell::new(&blue)]).unwrap();
        assert_eq!((drawn.width(), drawn.height()), (1 + 2 * 9, 1 + 2 * 9));
        assert_eq!(drawn.at(0, 0), [255; 3]);
        assert_eq!((drawn.at(1, 1), drawn.at(8, 8)), ([255, 0, 0], [255, 0, 0]));
        assert_eq!((drawn.at(10, 1), drawn.at(1, 10)), ([0, 0, 255], [0, 0, 255]));
        assert_eq!(drawn.at(10, 10), [255; 3], "the empty place is paper");
    }

    #[test]
    fn captions_are_drawn_beneath_and_frames_around() {
        let red = flat(12, [255, 0, 0]);
        let sheet = Sheet { columns: 1, gap: 2, scale: 1, text: 1, frame: 3, ..Sheet::default() };
        let plain = sheet.draw(&[Cell::new(&red)]).unwrap();
        let drawn = sheet.draw(&[Cell::new(&red).caption("on to").frame([0, 255, 0])]).unwrap();
        // Eighteen pixels hold three characters, so the two words take two lines.
        assert_eq!(drawn.height(), plain.height() + 2 * 3 + 2 * LINE + LINE / 2);
        assert_eq!((drawn.at(2, 2), drawn.at(5, 5)), ([0, 255, 0], [255, 0, 0]));
        let ink = |from: usize| {
            (from..from + font::HEIGHT)
                .flat_map(|y| (0..drawn.width()).map(move |x| (x, y)))
                .filter(|&(x, y)| drawn.at(x, y) == sheet.ink)
                .count()
        };
        let points = |text: &str| text.chars().flat_map(font::columns).map(|c| c.count_ones() as usize).sum();
        let first = 2 + 18 + LINE / 2;
        let expected: [usize; 2] = [points("on"), points("to")];
        assert_eq!([ink(first), ink(first + LINE)], expected);
    }

    #[test]
    fn words_wrap_and_long_ones_are_cut() {
        assert_eq!(wrap("a red circle", 5), ["a red", "circl", "e"]);
        assert_eq!(wrap("one\ntwo", 9), ["one", "two"]);
        assert!(wrap("", 3).is_empty());
    }

    #[test]
    fn nothing_to_show_is_refused() {
        assert!(Sheet::default().draw(&[]).is_err());
        let red = flat(2, [255, 0, 0]);
        assert!(Sheet { columns: 0, ..Sheet::default() }.draw(&[Cell::new(&red)]).is_err());
    }
}
