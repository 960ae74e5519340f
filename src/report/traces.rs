//! Training traces: loss, margin, implicit accuracy and saturation of every method, step by step.
//!
//! One line a method, its mean over training seeds; of a large sweep, one line for each value of its first key. A loss
//! that hardly moves while samples change much is as telling as an accuracy that stays at one half.

use std::collections::BTreeMap;

use super::panel::{Axis, Panel, legend, legend_height};
use super::plot::{COLUMN, Color, Look, Scene};
use super::study::{Study, Trace};
use super::sweep::{key_label, plain};
use super::table::{Cell, Kind, Table};
use super::{Figure, Output, Result};
use crate::record::Step;

/// What is plotted: its name, how to read it, and a line of reference.
type Quantity = (&'static str, fn(&Step) -> Option<f64>, Option<f64>);

const QUANTITIES: [Quantity; 4] = [
    ("loss", |step| Some(step.loss), Some(std::f64::consts::LN_2)),
    ("margin", |step| step.margin, Some(0.0)),
    ("implicit accuracy", |step| step.implicit_accuracy, Some(0.5)),
    ("saturation", |step| step.saturation, None),
];

/// At most so many points a line: more cannot be told apart in a column.
const POINTS: usize = 60;

/// More lines than this cannot be told apart: a sweep's are drawn as one for each value of its first key.
const MOST_NAMED: usize = 14;

/// The mean of some traces at each place, by step.
struct Curve<'a> {
    /// The first trace's.
    method: &'a str,
    points: Vec<(f64, [Option<f64>; 4])>,
}

/// A curve as it is drawn.
struct Line<'a> {
    look: Look,
    label: String,
    curve: Curve<'a>,
}

/// Renders the figure; `None` where nothing was trained.
///
/// # Errors
/// None of its own.
pub fn render(study: &Study) -> Result<Option<Output>> {
    let mut of: BTreeMap<usize, Vec<&Trace>> = BTreeMap::new();
    for trace in &study.traces {
        of.entry(study.design.place(&trace.method)).or_default().push(trace);
    }
    let curves: Vec<Curve<'_>> = of.into_values().map(|traces| curve(&traces)).collect();
    if curves.iter().all(|curve| curve.points.is_empty()) {
        return Ok(None);
    }
    let data = plotted(&curves);
    let (lines, mean) = lines(study, curves);
    let figure = Figure {
        name: "traces".into(),
        caption: format!(
            "Training traces, each line the mean over {mean}: loss (grey: ln 2, the loss of knowing nothing), margin, \
             implicit accuracy (grey: one half) and saturation."
        ),
        scene: draw(&lines),
        data,
    };
    Ok(Some(Output { name: "traces".into(), figures: vec![figure], ..Output::default() }))
}

/// What is drawn, and what each line is the mean over.
fn lines<'a>(study: &'a Study, curves: Vec<Curve<'a>>) -> (Vec<Line<'a>>, String) {
    if let Some(sweep) = study.design.sweep.as_ref().filter(|_| curves.len() > MOST_NAMED) {
        let first_key = |method: &str| {
            let (_, values) = sweep.points.iter().find(|(name, _)| name == method)?;
            values.first().copied()
        };
        let mut values: Vec<f64> =
            sweep.points.iter().filter_map(|(_, values)| values.first().copied()).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.dedup();
        let key = key_label(&sweep.keys[0]);
        let lines = values.iter().enumerate().map(|(at, value)| {
            let traces = study.traces.iter().filter(|trace| first_key(&trace.method) == Some(*value));
            let curve = curve(&traces.collect::<Vec<_>>());
            Line { look: Look::nth(at), label: format!("{key} {}", plain(*value)), curve }
        });
        let others: Vec<String> = sweep.keys[1..].iter().map(|key| key_label(key)).collect();
        let mean = format!("training seeds and {} (each run is in the figure's CSV)", others.join(", "));
        return (lines.filter(|line| !line.curve.points.is_empty()).collect(), mean);
    }
    let line = |curve: Curve<'a>| {
        let known = study.design.method(curve.method);
        let label = known.map_or(curve.method.to_owned(), |known| known.label.clone());
        Line { look: Look::nth(study.design.place(curve.method)), label, curve }
    };
    (curves.into_iter().map(line).collect(), "training seeds".into())
}

fn curve<'a>(traces: &[&'a Trace]) -> Curve<'a> {
    let mut steps: BTreeMap<u64, [(f64, f64); 4]> = BTreeMap::new();
    for step in traces.iter().flat_map(|trace| &trace.steps) {
        let sums = steps.entry(step.step).or_default();
        for ((_, read, _), sum) in QUANTITIES.iter().zip(sums) {
            if let Some(value) = read(step).filter(|value| value.is_finite()) {
                sum.0 += value;
                sum.1 += 1.0;
            }
        }
    }
    let steps: Vec<_> = steps.into_iter().collect();
    let length = steps.len().div_ceil(POINTS).max(1);
    let points = steps.chunks(length).map(|chunk| {
        let middle = chunk.iter().map(|(step, _)| *step as f64).sum::<f64>() / chunk.len() as f64;
        let mut means = [None; 4];
        for (index, mean) in means.iter_mut().enumerate() {
            let (sum, count) =
                chunk.iter().fold((0.0, 0.0), |(s, n), (_, sums)| (s + sums[index].0, n + sums[index].1));
            *mean = (count > 0.0).then(|| sum / count);
        }
        (middle, means)
    });
    Curve { method: traces.first().map_or("", |trace| &trace.method), points: points.collect() }
}

fn plotted(curves: &[Curve<'_>]) -> Table {
    let mut columns = vec![("method".to_owned(), Kind::Words), ("step".to_owned(), Kind::Numbers)];
    columns.extend(QUANTITIES.iter().map(|(name, _, _)| ((*name).to_owned(), Kind::Numbers)));
    let mut table = Table::new("Training traces", columns);
    for curve in curves {
        for (step, means) in &curve.points {
            let mut row = vec![Cell::text(curve.method), Cell::number(Some(*step), 1)];
            row.extend(means.iter().map(|mean| Cell::number(*mean, 4)));
            table.push(row);
        }
    }
    table
}

fn draw(lines: &[Line<'_>]) -> Scene {
    const HEIGHT: f64 = 62.0;
    let entries: Vec<(Look, String)> = lines.iter().map(|line| (line.look, line.label.clone())).collect();
    let top = legend_height(COLUMN, &entries) + 6.0;
    let points = || lines.iter().flat_map(|line| &line.curve.points);
    let last = points().map(|(step, _)| *step).fold(1.0, f64::max);
    let axes: Vec<Axis> = QUANTITIES
        .iter()
        .enumerate()
        .map(|(index, (name, _, reference))| {
            let values = points().filter_map(|(_, means)| means[index]);
            Axis::covering(values.chain(*reference), 4).named(*name)
        })
        .collect();
    // Panels of one column share their left edge.
    let rooms = [0, 1].map(|column| axes[column].room_at_left().max(axes[column + 2].room_at_left()) + 1.0);
    let gap = 8.0;
    let width = (COLUMN - rooms[0] - rooms[1] - gap - 6.0) / 2.0;
    let below = Axis::categories(["x"]).named("step").room_below();
    let pitch = HEIGHT + below + 7.0;
    let mut scene = Scene::new(COLUMN, top + 2.0 * pitch - 4.0);
    legend(&mut scene, (1.0, 1.0), COLUMN, &entries);
    for (index, (quantity, y)) in QUANTITIES.iter().zip(&axes).enumerate() {
        let (column, row) = (index % 2, index / 2);
        let left = rooms[0] + column as f64 * (width + gap + rooms[1]);
        let x = Axis::linear(0.0, last * 1.02, 3);
        let x = if row == 1 { x.named("step") } else { x };
        let panel = Panel { left, top: top + pitch * row as f64, width, height: HEIGHT, x, y: y.clone() };
        panel.frame(&mut scene);
        if let Some(reference) = quantity.2 {
            scene.dashed(panel.at(0.0, reference), panel.at(last, reference), 0.8, Color::GREY);
        }
        for (place, Line { look, curve, .. }) in lines.iter().enumerate() {
            let path: Vec<(f64, f64)> = curve
                .points
                .iter()
                .filter_map(|(step, means)| means[index].map(|mean| panel.at(*step, mean)))
                .collect();
            // A few markers, at other steps for each method, so that no line depends on colour alone.
            let stride = (path.len() / 4).max(1);
            let marks: Vec<(f64, f64)> = path.iter().skip(place % stride).step_by(stride).copied().collect();
            if path.len() > 1 {
                scene.path(path, 0.7, look.color);
            }
            marks.into_iter().for_each(|at| scene.marker(at, 1.4, *look));
        }
    }
    scene
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn lines_are_means_over_seeds_and_thinned() {
        let step = |step: u64, loss: f64| Step { step, loss, ..Step::default() };
        let trace = |train_seed: u64, steps: Vec<Step>| Trace { method: "a".into(), train_seed, steps };
        let (first, second) = (trace(0, vec![step(0, 1.0), step(10, 3.0)]), trace(1, vec![step(0, 2.0)]));
        let both = curve(&[&first, &second]);
        assert_eq!(
            both.points,
            [(0.0, [Some(1.5), None, None, None]), (10.0, [Some(3.0), None, None, None])]
        );
        let long = trace(0, (0..1000).map(|at| step(at, at as f64)).collect());
        let thinned = curve(&[&long]);
        assert!(thinned.points.len() <= POINTS, "{}", thinned.points.len());
        assert_eq!(thinned.points[0], (8.0, [Some(8.0), None, None, None]), "17 steps make one point");
    }

    #[test]
    fn every_trained_method_is_plotted() {
        let study = testing::study();
        let output = render(&study).unwrap().unwrap();
        let csv = output.figures[0].data.csv();
        let methods: std::collections::BTreeSet<&str> =
            csv.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
        assert_eq!(methods.len(), study.design.methods.len() - 1, "all but the base");
        let sft = csv.lines().find(|line| line.starts_with("sft,")).unwrap();
        assert!(sft.ends_with(",,,"), "an objective without a sigmoid has no margin, which is empty: {sft}");
    }
}
