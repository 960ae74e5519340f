//! The figure: a line for each comparison.

use super::{KINDS, kind_label};
use crate::report::panel::{Axis, Panel, legend, legend_height};
use crate::report::plot::{COLUMN, Color, Label, Look, Scene};
use crate::scenes::tastes::Kind;
use crate::stats::Estimate;

/// One whisker of the figure.
pub(super) struct Point {
    pub(super) label: String,
    pub(super) kind: Option<Kind>,
    /// In percent.
    pub(super) estimate: Estimate,
}

/// One line for each comparison, its users side by side.
pub(super) fn draw(compared: &[Point], across: &str) -> Scene {
    let mut labels: Vec<&str> = Vec::new();
    for one in compared {
        if !labels.contains(&one.label.as_str()) {
            labels.push(&one.label);
        }
    }
    let entries: Vec<(Look, String)> = KINDS
        .iter()
        .enumerate()
        .map(|(at, kind)| (Look::nth(at), format!("{} users", kind_label(*kind))))
        .collect();
    let values = compared.iter().flat_map(|one| [one.estimate.low, one.estimate.high, 50.0]);
    const LINE: f64 = 20.0;
    let x = Axis::covering(values, 5).named(across);
    let top = legend_height(COLUMN, &entries) + 4.0;
    let height = LINE * labels.len() as f64;
    let mut scene = Scene::new(COLUMN, top + height + x.room_below() + 2.0);
    legend(&mut scene, (4.0, 1.0), COLUMN - 4.0, &entries);
    let mut y = Axis::linear(0.0, labels.len() as f64, 1);
    y.ticks.clear();
    let panel = Panel { left: 4.0, top, width: COLUMN - 12.0, height, x, y };
    panel.frame(&mut scene);
    scene.dashed(panel.at(50.0, 0.0), panel.at(50.0, labels.len() as f64), 0.6, Color::GREY);
    for (row, label) in labels.iter().enumerate() {
        let above = top + LINE * row as f64;
        scene.label(Label::new((8.0, above + 5.0), *label).small());
        for (at, kind) in KINDS.iter().enumerate() {
            let Some(one) = compared.iter().find(|one| one.label == *label && one.kind == *kind) else {
                continue;
            };
            let estimate = &one.estimate;
            let line = above + 11.0 + 2.6 * at as f64;
            let across = |value: f64| panel.at(value, 0.0).0;
            let look = Look::nth(at);
            scene.line((across(estimate.low), line), (across(estimate.high), line), 1.0, look.color);
            scene.marker((across(estimate.value), line), 1.7, look);
        }
    }
    scene
}
