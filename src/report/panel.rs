//! Axes, panels and legends: what every figure needs between its numbers and its shapes.

use super::plot::{Anchor, Color, LABEL, Label, Look, SMALL, Scene, text_width};

/// The length of a tick, in points.
const TICK: f64 = 2.0;
/// The room between a tick and its label, and between labels, in points.
const GAP: f64 = 2.0;

/// One axis: its range, whether it is logarithmic, its ticks and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Where the ticks stand and what they say.
    pub ticks: Vec<(f64, String)>,
    /// The axis's name with its unit; empty for none.
    pub name: String,
}

impl Axis {
    /// A linear axis that covers `values` with a little room, with about `count` round ticks.
    pub fn covering(values: impl IntoIterator<Item = f64>, count: usize) -> Self {
        let finite = values.into_iter().filter(|value| value.is_finite());
        let (low, high) =
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = match (low, high) {
            (low, high) if low < high => (low, high),
            (low, _) if low.is_finite() => (low - 0.5, low + 0.5),
            _ => (0.0, 1.0),
        };
        let room = 0.06 * (high - low);
        Self::linear(low - room, high + room, count)
    }

    /// A linear axis from `low` to `high` with about `count` round ticks within.
    pub fn linear(low: f64, high: f64, count: usize) -> Self {
        let step = round_step((high - low) / count.max(1) as f64);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        // A step such as 0.25 or 2.5 needs one digit more than its order of magnitude.
        let exact = (step * 10f64.powi(decimals as i32)).fract().abs() < 1e-9;
        let decimals = if exact { decimals } else { decimals + 1 };
        let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
        let ticks = (first..=last)
            .map(|index| (index as f64 * step, number(index as f64 * step, decimals)))
            .collect();
        Self { low, high, log: false, ticks, name: String::new() }
    }

    /// A logarithmic axis whose ticks are exactly these values, with a little room at both ends.
    pub fn logarithmic(ticks: &[f64]) -> Self {
        let (low, high) = ticks
            .iter()
            .fold((f64::INFINITY, 0.0f64), |(low, high), &value| (low.min(value), high.max(value)));
        let room = (high / low).powf(0.06).max(1.05);
        let ticks = ticks.iter().map(|&value| (value, format!("{value}"))).collect();
        Self { low: low / room, high: high * room, log: true, ticks, name: String::new() }
    }

    /// An axis of categories: the first stands at 0, the second at 1.
    pub fn categories<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let ticks: Vec<_> =
            names.into_iter().enumerate().map(|(index, name)| (index as f64, name.into())).collect();
        Self { low: -0.5, high: ticks.len() as f64 - 0.5, log: false, ticks, name: String::new() }
    }

    /// The same with a name.
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Where `value` lies, from 0 at the low end to 1 at the high end.
    pub fn share(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Whether `value` lies on the axis.
    pub fn holds(&self, value: f64) -> bool {
        (-1e-9..=1.0 + 1e-9).contains(&self.share(value))
    }

    /// The width of the widest tick label, in points.
    pub fn widest_tick(&self) -> f64 {
        self.ticks.iter().map(|(_, text)| text_width(text, SMALL)).fold(0.0, f64::max)
    }

    /// The room that this axis needs at the left of a panel, in points.
    pub fn room_at_left(&self) -> f64 {
        let name = if self.name.is_empty() { 0.0 } else { LABEL + GAP };
        TICK + GAP + self.widest_tick() + name
    }

    /// The room that this axis needs below a panel, in points.
    pub fn room_below(&self) -> f64 {
        let name = if self.name.is_empty() { 0.0 } else { LABEL + GAP };
        TICK + GAP + SMALL + name
    }
}

/// The round number (1, 2, 2.5 or 5 times a power of ten) next above `raw`.
fn round_step(raw: f64) -> f64 {
    let order = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|step| step * order)
        .into_iter()
        .find(|step| *step >= raw * 0.999)
        .unwrap_or(raw)
}

/// A number with a true minus sign, and no negative zero.
pub fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// The rectangle in which data are drawn, with its two axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// The left edge, in points.
    pub left: f64,
    /// The upper edge, in points.
    pub top: f64,
    /// The width, in points.
    pub width: f64,
    /// The height, in points.
    pub height: f64,
    /// The axis below.
    pub x: Axis,
    /// The axis at the left.
    pub y: Axis,
}

impl Panel {
    /// Where a data point lies on the sheet.
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.left + self.width * self.x.share(x), self.top + self.height * (1.0 - self.y.share(y)))
    }

    /// The lower edge, in points.
    pub fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// The right edge, in points.
    pub fn right(&self) -> f64 {
        self.left + self.width
    }

    /// Draws grid, axes, ticks and names; call it before the data.
    pub fn frame(&self, scene: &mut Scene) {
        for (value, text) in &self.y.ticks {
            let (_, y) = self.at(0.0, *value);
            scene.line((self.left, y), (self.right(), y), 0.4, Color::GRID);
            scene.line((self.left - TICK, y), (self.left, y), 0.5, Color::INK);
            let at = (self.left - TICK - GAP, y);
            scene.label(Label::new(at, text.clone()).small().anchored(Anchor::End));
        }
        for (value, text) in &self.x.ticks {
            let (x, _) = self.at(*value, 0.0);
            scene.line((x, self.bottom()), (x, self.bottom() + TICK), 0.5, Color::INK);
            let at = (x, self.bottom() + TICK + GAP + SMALL / 2.0);
            scene.label(Label::new(at, text.clone()).small().anchored(Anchor::Middle));
        }
        let corner = (self.left, self.bottom());
        scene.path(vec![(self.left, self.top), corner, (self.right(), self.bottom())], 0.5, Color::INK);
        if !self.x.name.is_empty() {
            let at = (self.left + self.width / 2.0, self.bottom() + TICK + GAP + SMALL + GAP + LABEL / 2.0);
            scene.label(Label::new(at, self.x.name.clone()).anchored(Anchor::Middle));
        }
        if !self.y.name.is_empty() {
            let at = (
                self.left - TICK - GAP - self.y.widest_tick() - GAP - LABEL / 2.0,
                self.top + self.height / 2.0,
            );
            scene.label(Label::new(at, self.y.name.clone()).anchored(Anchor::Middle).upward());
        }
    }

    /// Writes a title above the panel, centred.
    pub fn title(&self, scene: &mut Scene, title: &str) {
        let at = (self.left + self.width / 2.0, self.top - GAP - LABEL / 2.0);
        scene.label(Label::new(at, title).anchored(Anchor::Middle));
    }

    /// Draws an interval as a vertical whisker, cut at the panel's edges.
    pub fn whisker(&self, scene: &mut Scene, x: f64, (low, high): (f64, f64), color: Color) {
        if low.is_nan() || high.is_nan() {
            return;
        }
        let (x, bottom) = self.at(x, low);
        let (_, top) = self.at(0.0, high);
        let inside = |y: f64| y.clamp(self.top, self.bottom());
        scene.line((x, inside(bottom)), (x, inside(top)), 1.0, color);
    }
}

/// Draws a legend outside the panels, flowing over as many lines as `width` asks for; returns its height.
pub fn legend(scene: &mut Scene, (left, top): (f64, f64), width: f64, entries: &[(Look, String)]) -> f64 {
    let mut at = (left, top + LABEL / 2.0);
    for (look, text) in entries {
        let needed = 8.0 + text_width(text, LABEL) + 9.0;
        if at.0 > left && at.0 + needed - 9.0 > left + width {
            at = (left, at.1 + LABEL + 3.0);
        }
        scene.marker((at.0 + 3.0, at.1), 2.3, *look);
        scene.label(Label::new((at.0 + 8.0, at.1), text.clone()));
        at.0 += needed;
    }
    at.1 - top + LABEL / 2.0
}

/// The height that [`legend`] will need.
pub fn legend_height(width: f64, entries: &[(Look, String)]) -> f64 {
    legend(&mut Scene::new(width, 0.0), (0.0, 0.0), width, entries)
}

/// What is wrong with a figure's texts: any that leave the sheet, and any two that overlap.
#[cfg(test)]
pub fn faults(scene: &Scene) -> Vec<String> {
    let labels: Vec<_> = scene.labels().map(|label| (label.text.clone(), label.bounds())).collect();
    let mut faults = Vec::new();
    for (index, (text, [x0, y0, x1, y1])) in labels.iter().enumerate() {
        if *x0 < 0.0 || *y0 < 0.0 || *x1 > scene.width || *y1 > scene.height {
            faults.push(format!("{text:?} leaves the sheet: {x0:.1} {y0:.1} {x1:.1} {y1:.1}"));
        }
        for (other, [u0, v0, u1, v1]) in &labels[index + 1..] {
            if x0 < u1 && u0 < x1 && y0 < v1 && v0 < y1 {
                faults.push(format!("{text:?} overlaps {other:?}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(texts(&Axis::linear(0.0, 1.0, 4)), ["0.00", "0.25", "0.50", "0.75", "1.00"]);
        assert_eq!(texts(&Axis::linear(-0.21, 0.39, 3)), ["−0.2", "0.0", "0.2"]);
        assert_eq!(texts(&Axis::linear(31.2, 33.9, 4)), ["32", "33"]);
        assert_eq!(texts(&Axis::linear(0.0, 100.0, 4)), ["0", "25", "50", "75", "100"]);
        assert_eq!(texts(&Axis::logarithmic(&[0.1, 0.5, 2.0])), ["0.1", "0.5", "2"]);
        assert_eq!(texts(&Axis::covering([f64::NAN, 3.0, 3.0], 3)), ["2.5", "3.0", "3.5"]);
    }

    #[test]
    fn log_axes_keep_their_end_ticks() {
        let axis = Axis::logarithmic(&[0.1, 0.2, 0.5, 1.0, 2.0]);
        assert!(axis.holds(0.1) && axis.holds(2.0) && !axis.holds(0.05));
        let (a, b, c) = (axis.share(0.1), axis.share(0.2), axis.share(0.4));
        assert!((b - a - (c - b)).abs() < 1e-12, "equal factors are equal lengths");
    }

    #[test]
    fn faults_are_found() {
        let mut scene = Scene::new(50.0, 20.0);
        scene.label(Label::new((5.0, 10.0), "abc"));
        assert!(faults(&scene).is_empty());
        scene.label(Label::new((8.0, 10.0), "de"));
        scene.label(Label::new((45.0, 15.0), "long"));
        assert_eq!(faults(&scene).len(), 2, "{:?}", faults(&scene));
    }
}
