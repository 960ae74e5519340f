//! The grid as a scene: texts at the left, images with their words below each.

use super::super::people::kind_label;
use super::super::plot::{Anchor, COLUMN, Color, LABEL, Label, OKABE_ITO, PAGE, SMALL, Scene, text_width};
use super::super::study::Method;
use super::{Grid, Line, Shown};

/// The width of the texts at the left, in points.
const LEFT: f64 = 112.0;
/// The room between two images, in points.
const GAP: f64 = 7.0;
/// The room around the sheet, in points.
const MARGIN: f64 = 4.0;
/// The smallest and the largest side of an image, in points.
const SIDES: (f64, f64) = (46.0, 68.0);
/// The height of a line of small text, in points.
const LEADING: f64 = 8.5;
/// How far a red frame stands out, in points.
const FRAME: f64 = 1.8;
/// The room between two words, in points.
const SPACE: f64 = 3.5;

const GREEN: Color = OKABE_ITO[2];
const RED: Color = OKABE_ITO[1];
/// What stands where a method has no image for a user.
const NO_IMAGE: &str = "no image";

/// Breaks a text into lines that are at most `width` wide; a word that is too long for any is broken where it must.
pub(super) fn wrap(text: &str, size: f64, width: f64) -> Vec<String> {
    let fits = |text: &str| text_width(text, size) <= width;
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let joined = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if fits(&joined) {
            line = joined;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for character in word.chars() {
            line.push(character);
            if !fits(&line) && line.chars().count() > 1 {
                line.pop();
                lines.push(std::mem::replace(&mut line, character.to_string()));
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// Where the columns stand.
struct Columns {
    side: f64,
    count: usize,
}

impl Columns {
    fn new(count: usize) -> Self {
        let room = (PAGE - LEFT - 2.0 * MARGIN) / count.max(1) as f64 - GAP;
        Self { side: room.clamp(SIDES.0, SIDES.1), count }
    }

    fn x(&self, column: usize) -> f64 {
        MARGIN + LEFT + GAP + (self.side + GAP) * column as f64
    }

    fn width(&self) -> f64 {
        (self.x(self.count) - GAP + MARGIN).max(COLUMN)
    }
}

/// The words below an image, each with its place: across from the image's edge, and in which line.
fn placed<'a>(words: &[&'a str], side: f64) -> Vec<(f64, usize, &'a str)> {
    let (mut x, mut line, mut placed) = (0.0, 0, Vec::new());
    for word in words {
        let width = text_width(word, SMALL);
        if x > 0.0 && x + width > side {
            (x, line) = (0.0, line + 1);
        }
        placed.push((x, line, *word));
        x += width + SPACE;
    }
    placed
}

/// The lines of text at the left of a row, each with its size and colour.
fn beside(line: &Line) -> Vec<(String, f64, Color)> {
    let width = LEFT - 4.0;
    let head = format!("User {} ({})", line.user, kind_label(Some(line.kind)));
    let mut lines: Vec<_> =
        wrap(&head, LABEL, width).into_iter().map(|text| (text, LABEL, Color::INK)).collect();
    let mut add = |text: &str, color| {
        lines.extend(wrap(text, SMALL, width).into_iter().map(|text| (text, SMALL, color)));
    };
    add("profile:", Color::GREY);
    add(if line.profile.is_empty() { "(nothing was written)" } else { line.profile }, Color::INK);
    add("prompt:", Color::GREY);
    add(&format!("“{}”", line.prompt), Color::INK);
    lines
}

/// The height of what stands below the images of a row.
fn below(line: &Line, side: f64) -> f64 {
    let words = placed(&line.words, side).last().map_or(1, |(_, last, _)| last + 1);
    let marked = line.images.iter().flatten().any(|shown| shown.neglects);
    LEADING * (words + usize::from(marked)) as f64
}

/// The grid with its heads and its key.
pub(super) fn scene(grid: &Grid) -> Scene {
    let columns = Columns::new(grid.methods.len());
    let side = columns.side;
    let heads: Vec<Vec<String>> =
        grid.methods.iter().map(|method: &&Method| wrap(&method.label, SMALL, side + GAP - 2.0)).collect();
    let head_lines = heads.iter().map(Vec::len).max().unwrap_or(0);
    let top = MARGIN + LEADING * head_lines as f64 + 2.0;
    let heights: Vec<f64> = grid
        .lines
        .iter()
        .map(|line| (side + 3.0 + below(line, side)).max(LEADING * beside(line).len() as f64) + GAP)
        .collect();
    let end = top + heights.iter().sum::<f64>();
    let width = columns.width();
    // Drawn twice: once to know how high the key is.
    let key_height = key(&mut Scene::new(width, 0.0), end, width);
    let mut scene = Scene::new(width, end + key_height + MARGIN);
    for (column, head) in heads.iter().enumerate() {
        let first = head_lines - head.len();
        for (at, text) in head.iter().enumerate() {
            let y = MARGIN + LEADING * ((first + at) as f64 + 0.5);
            let middle = (columns.x(column) + side / 2.0, y);
            scene.label(Label::new(middle, text.as_str()).small().anchored(Anchor::Middle));
        }
    }
    let (mut y, mut last) = (top, None);
    for (line, height) in grid.lines.iter().zip(&heights) {
        if last != Some(line.user) {
            scene.line((MARGIN, y - 1.0), (width - MARGIN, y - 1.0), 0.4, Color::GREY);
            last = Some(line.user);
        }
        row(&mut scene, line, &columns, y + 3.0);
        y += height;
    }
    key(&mut scene, end, width);
    scene
}

fn row(scene: &mut Scene, line: &Line, columns: &Columns, top: f64) {
    for (at, (text, size, color)) in beside(line).into_iter().enumerate() {
        let place = (MARGIN, top + LEADING * (at as f64 + 0.5));
        scene.label(Label { size, ..Label::new(place, text).colored(color) });
    }
    for (column, shown) in line.images.iter().enumerate() {
        let left = columns.x(column);
        match shown {
            Some(shown) => image(scene, line, shown, (left, top), columns.side),
            None => {
                let at = (left + columns.side / 2.0, top + columns.side / 2.0);
                scene.label(Label::new(at, NO_IMAGE).small().anchored(Anchor::Middle).colored(Color::GREY));
            }
        }
    }
}

fn image(scene: &mut Scene, line: &Line, shown: &Shown, (left, top): (f64, f64), side: f64) {
    if shown.neglects {
        let corner = (left + side + FRAME, top + side + FRAME);
        scene.rectangle((left - FRAME, top - FRAME), corner, RED);
    }
    scene.picture((left, top), side, shown.png.clone());
    let first = top + side + 3.0 + LEADING / 2.0;
    let mut end = first;
    match &shown.agrees {
        None => scene.label(Label::new((left, first), "not measured").small().colored(Color::GREY)),
        Some(agrees) => {
            for ((x, at, word), agrees) in placed(&line.words, side).into_iter().zip(agrees) {
                end = first + LEADING * at as f64;
                said(scene, (left + x, end), word, *agrees);
            }
        }
    }
    if shown.neglects {
        let room = side - 6.0 + GAP / 2.0;
        let text =
            ["caption neglected", "neglected"].into_iter().find(|text| text_width(text, SMALL) <= room);
        let y = end + LEADING;
        cross(scene, (left + 2.0, y));
        scene.label(
            Label::new((left + 6.0, y), text.unwrap_or("")).small().colored(RED.mix(Color::INK, 0.25)),
        );
    }
}

/// A word: underlined on green where the image agrees with it, else grey.
fn said(scene: &mut Scene, (x, y): (f64, f64), word: &str, agrees: bool) {
    if !agrees {
        scene.label(Label::new((x, y), word).small().colored(Color::GREY));
        return;
    }
    let (half, end) = (LEADING / 2.0 - 0.6, x + text_width(word, SMALL));
    scene.rectangle((x - 1.0, y - half), (end + 1.0, y + half), GREEN.tint(0.3));
    scene.line((x - 1.0, y + half), (end + 1.0, y + half), 1.0, GREEN);
    scene.label(Label::new((x, y), word).small().colored(GREEN.mix(Color(0, 0, 0), 0.55)));
}

fn cross(scene: &mut Scene, (x, y): (f64, f64)) {
    for way in [1.0, -1.0] {
        scene.line((x - 1.7, y - 1.7 * way), (x + 1.7, y + 1.7 * way), 1.0, RED);
    }
}

/// What the marks mean; returns its height.
fn key(scene: &mut Scene, top: f64, width: f64) -> f64 {
    scene.line((MARGIN, top - 1.0), (width - MARGIN, top - 1.0), 0.4, Color::GREY);
    let entries = [
        ("word", "the measured image agrees with it"),
        ("word", "it does not"),
        ("", "caption neglected: alignment far below the base's"),
    ];
    let (mut x, mut y) = (MARGIN + 2.0, top + 7.0);
    for (at, (sample, text)) in entries.into_iter().enumerate() {
        let mark = if sample.is_empty() { 4.0 } else { text_width(sample, SMALL) };
        let needed = mark + 5.0 + text_width(text, SMALL);
        if x > MARGIN + 2.0 && x + needed > width - MARGIN {
            (x, y) = (MARGIN + 2.0, y + LEADING + 1.0);
        }
        match sample.is_empty() {
            true => cross(scene, (x + 2.0, y)),
            false => said(scene, (x, y), sample, at == 0),
        }
        scene.label(Label::new((x + mark + 5.0, y), text).small());
        x += needed + 12.0;
    }
    y - top + 5.0
}
