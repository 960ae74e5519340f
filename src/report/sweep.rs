//! A sweep: each reward's gain over the base at every value of the swept keys, such as β crossed with the learning rate.
//!
//! One panel a reward, the first key along the axis (logarithmic where its values span a factor of five), one line for
//! each value of the second. Without a base in the study, the rewards themselves are drawn.

use super::panel::{Axis, Panel, legend, legend_height};
use super::plot::{COLUMN, Color, Look, Scene};
use super::study::{Role, Study, Sweep, reward_label, twin};
use super::table::{Cell, Kind, Table, decimals_for};
use super::{Figure, Output, Result};
use crate::stats::Estimate;

/// One point of the sweep with its result on each reward.
struct Point<'a> {
    values: &'a [f64],
    results: Vec<Option<Estimate>>,
    /// The result on the reward that gains least of those that the method is to raise, each the mean of itself and its
    /// twin: what a search chooses by, as a claim on each reward stands or falls with its worst.
    score: Option<f64>,
}

/// Renders the table and the curves; `None` where the study is no sweep, or nothing of it has run.
///
/// # Errors
/// Where rows cannot be paired.
pub fn render(study: &Study) -> Result<Option<Output>> {
    use rayon::prelude::*;
    let design = &study.design;
    let Some(sweep) = &design.sweep else { return Ok(None) };
    let base = design.first(&Role::Base);
    let gains = base.is_some_and(|base| !study.conditions(&base.name).is_empty());
    let points: Vec<Point<'_>> = sweep
        .points
        .par_iter()
        .map(|(name, values)| {
            let result = |reward: &String, score: &str| -> Result<Option<Estimate>> {
                let Some(method) = design.method(name) else { return Ok(None) };
                let Some(ours) = study.values(name, method.condition_for(reward), score) else {
                    return Ok(None);
                };
                let Some(base) = base.filter(|_| gains) else { return ours.mean().map(Some) };
                let Some(theirs) = study.values(&base.name, base.condition_for(reward), score) else {
                    return Ok(None);
                };
                match study.deviation(score) {
                    Some(deviation) => ours.minus(&theirs).scaled(1.0 / deviation).mean().map(Some),
                    None => Ok(None),
                }
            };
            let raised = sweep
                .rewards
                .iter()
                .map(|reward| Ok([result(reward, reward)?, result(reward, &twin(reward))?]))
                .collect::<Result<Vec<_>>>()?;
            Ok(Point {
                values,
                results: design.rewards.iter().map(|reward| result(reward, reward)).collect::<Result<_>>()?,
                score: least(raised.iter().map(|judges| judges.iter().flatten().map(|judge| judge.value))),
            })
        })
        .collect::<Result<_>>()?;
    if points.iter().all(|point| point.results.iter().all(Option::is_none)) {
        return Ok(None);
    }
    let what = if gains {
        "Gain over the base, in its standard deviations between images of one prompt"
    } else {
        "Mean reward"
    };
    let table = tabulate(study, sweep, &points, what);
    let figure = Figure {
        name: "sweep".into(),
        caption: format!(
            "{what}, under each reward's own user, at each value of {}; whiskers are 95 % intervals.",
            sweep.keys.iter().map(|key| key_label(key)).collect::<Vec<_>>().join(" and ")
        ),
        scene: draw(study, sweep, &points, gains),
        data: table.clone(),
    };
    Ok(Some(Output {
        name: "sweep".into(),
        tables: vec![("sweep-table".into(), table)],
        figures: vec![figure],
        ..Output::default()
    }))
}

/// The smallest of the means; none where one of them is of nothing.
fn least(groups: impl Iterator<Item = impl Iterator<Item = f64>>) -> Option<f64> {
    let mean = |group: Vec<f64>| group.iter().sum::<f64>() / group.len() as f64;
    let means: Vec<f64> = groups.map(|group| mean(group.collect())).collect();
    means.iter().all(|mean| mean.is_finite()).then(|| means.into_iter().min_by(f64::total_cmp)).flatten()
}

/// A key's name in a table: `objective.beta` is β.
pub(super) fn key_label(key: &str) -> String {
    match key.rsplit('.').next().unwrap_or(key) {
        "beta" => "β".into(),
        other => other.replace('_', " "),
    }
}

fn tabulate(study: &Study, sweep: &Sweep, points: &[Point<'_>], what: &str) -> Table {
    let mut columns: Vec<(String, Kind)> =
        sweep.keys.iter().map(|key| (key_label(key), Kind::Words)).collect();
    columns.extend(study.design.rewards.iter().map(|reward| (reward_label(reward), Kind::Estimates)));
    columns.push(("Chosen by".into(), Kind::Numbers));
    let mut table = Table::new(format!("{what} ({}).", study.scale()), columns);
    let decimals = decimals_for(points.iter().flat_map(|point| point.results.iter().flatten()));
    for point in points {
        let mut row: Vec<Cell> = point.values.iter().map(|value| Cell::text(plain(*value))).collect();
        row.extend(point.results.iter().map(|result| Cell::estimate(result.clone(), decimals)));
        row.push(Cell::number(point.score, 3));
        table.push(row);
    }
    let raised: Vec<String> = sweep.rewards.iter().map(|reward| reward_label(reward)).collect();
    table.note(format!(
        "\"Chosen by\" is the least of what the method is to raise ({}), each the mean of the reward and its twin.",
        raised.join(", ")
    ));
    table.note_few_seeds(None);
    table.note("These are tuning prompts: the best point here is chosen, so its own number flatters it.");
    table
}

/// A setting as a person writes it: 0.0003 is 3e-4.
pub(super) fn plain(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-2 { format!("{value:e}") } else { format!("{value}") }
}

fn draw(study: &Study, sweep: &Sweep, points: &[Point<'_>], gains: bool) -> Scene {
    const HEIGHT: f64 = 74.0;
    let distinct = |key: usize| {
        let mut values: Vec<f64> = points.iter().filter_map(|point| point.values.get(key).copied()).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.dedup();
        values
    };
    let (along, across) = (distinct(0), distinct(1));
    let series: Vec<Option<f64>> =
        if across.is_empty() { vec![None] } else { across.iter().copied().map(Some).collect() };
    let mut entries = Vec::new();
    if let Some(key) = sweep.keys.get(1) {
        let name = key_label(key);
        entries.extend(
            series
                .iter()
                .flatten()
                .enumerate()
                .map(|(at, v)| (Look::nth(at), format!("{name} {}", plain(*v)))),
        );
    }
    let rewards = &study.design.rewards;
    let log = along.first().is_some_and(|first| *first > 0.0 && along[along.len() - 1] / first >= 5.0);
    let x = if log {
        Axis::logarithmic(&along)
    } else {
        let mut axis = Axis::covering(along.iter().copied(), 3);
        axis.ticks = along.iter().map(|value| (*value, plain(*value))).collect();
        axis
    };
    let axes: Vec<Axis> = (0..rewards.len())
        .map(|reward| {
            let ends =
                points.iter().flat_map(|p| p.results[reward].as_ref()).flat_map(|e| [e.value, e.low, e.high]);
            let zero = gains.then_some(0.0);
            let name = reward_label(&rewards[reward]);
            Axis::covering(ends.chain(zero), 4).named(if gains { format!("{name}, SD") } else { name })
        })
        .collect();
    let left = axes.iter().map(Axis::room_at_left).fold(0.0, f64::max) + 1.0;
    let top = if entries.is_empty() { 3.0 } else { legend_height(COLUMN - left, &entries) + 6.0 };
    let pitch = HEIGHT + 14.0;
    let height = top + pitch * rewards.len() as f64 + 8.0;
    let mut scene = Scene::new(COLUMN, height);
    legend(&mut scene, (left, 1.0), COLUMN - left, &entries);
    for (reward, y) in axes.into_iter().enumerate() {
        let bottom = reward + 1 == rewards.len();
        let mut x = x.clone();
        if bottom {
            x = x.named(key_label(&sweep.keys[0]));
        }
        let panel = Panel {
            left,
            top: top + pitch * reward as f64,
            width: COLUMN - left - 6.0,
            height: HEIGHT,
            x,
            y,
        };
        panel.frame(&mut scene);
        if gains {
            scene.line(panel.at(along[0], 0.0), panel.at(along[along.len() - 1], 0.0), 0.6, Color::GREY);
        }
        for (at, second) in series.iter().enumerate() {
            let look = Look::nth(at);
            let mut line: Vec<(f64, &Estimate)> = points
                .iter()
                .filter(|point| second.is_none_or(|second| point.values.get(1) == Some(&second)))
                .filter_map(|point| Some((point.values[0], point.results[reward].as_ref()?)))
                .collect();
            line.sort_by(|a, b| a.0.total_cmp(&b.0));
            if line.len() > 1 {
                scene.path(line.iter().map(|(x, e)| panel.at(*x, e.value)).collect(), 0.9, look.color);
            }
            for (x, estimate) in line {
                panel.whisker(&mut scene, x, (estimate.low, estimate.high), look.color);
                scene.marker(panel.at(x, estimate.value), 2.0, look);
            }
        }
    }
    scene
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::panel::faults;
    use super::super::study::{Design, Method, User};
    use super::super::testing;
    use super::*;
    use crate::record::Row;
    use crate::rng::stream;
    use crate::units::Seed;

    /// β in six values, two learning rates; the gain peaks at β = 0.5 and doubles with the second rate.
    fn study() -> Study {
        let user = |condition: &str| User {
            condition: condition.into(),
            weights: vec![f64::from(condition != "none")],
        };
        let method = |name: String, role: Role, users: &[&str]| Method {
            label: name.clone(),
            name,
            role,
            conditions: users.iter().map(|name| user(name)).collect(),
            paper: BTreeMap::new(),
        };
        let mut methods = vec![method("base".into(), Role::Base, &["none"])];
        let (mut points, mut rows) = (Vec::new(), Vec::new());
        let mut run = |name: &str, condition: &str, noise_seed: u64, gain: f64| {
            for prompt in 0..20 {
                let mut draw = stream(Seed::new(1), name, u64::from(prompt));
                let level = stream(Seed::new(0), "level", u64::from(prompt)).normal();
                rows.push(Row {
                    method: name.into(),
                    condition: condition.into(),
                    prompt,
                    noise_seed,
                    scores: BTreeMap::from([("clip".to_owned(), 10.0 + level + gain + 0.1 * draw.normal())]),
                    ..Row::default()
                });
            }
        };
        run("base", "none", 0, 0.0);
        run("base", "none", 1, 1.0);
        for beta in [0.1, 0.2, 0.5, 1.0, 1.5, 2.0] {
            for (rate, factor) in [(3e-5, 0.5), (1e-4, 1.0)] {
                let name = format!("ppd beta={beta} learning_rate={rate}");
                run(&name, "clip", 0, factor * (1.0 - (beta - 0.5f64).abs() / 2.0));
                methods.push(method(name.clone(), Role::Personal, &["clip"]));
                points.push((name, vec![beta, rate]));
            }
        }
        let keys = vec!["objective.beta".to_owned(), "train.learning_rate".to_owned()];
        let rewards = vec!["clip".into()];
        let sweep = Some(Sweep { method: "ppd".into(), keys, points, rewards });
        let design = Design {
            rewards: vec!["clip".into()],
            methods,
            sweep,
            noise_seeds: vec![0],
            ..Design::default()
        };
        Study::new(design, rows)
    }

    #[test]
    fn the_planted_peak_is_in_the_table() {
        let output = render(&study()).unwrap().unwrap();
        let table = &output.tables[0].1;
        assert_eq!(table.rows.len(), 12);
        let best = table
            .rows
            .iter()
            .max_by(|a, b| {
                let value = |row: &[Cell]| match &row[2] {
                    Cell::Estimate { estimate, .. } => estimate.value,
                    other => panic!("{other:?}"),
                };
                value(a).total_cmp(&value(b))
            })
            .unwrap();
        assert_eq!(best[..2], [Cell::text("0.5"), Cell::text("1e-4")]);
        assert!(table.columns[0].0 == "β" && table.columns[1].0 == "learning rate");
    }

    #[test]
    fn a_search_chooses_by_the_reward_that_gains_least() {
        let least = |groups: &[&[f64]]| super::least(groups.iter().map(|group| group.iter().copied()));
        assert_eq!(least(&[&[1.0, 2.0], &[0.25, 0.75], &[3.0]]), Some(0.5));
        assert_eq!(least(&[&[1.0], &[]]), None, "a reward that was not measured");
        assert_eq!(least(&[]), None);
    }

    #[test]
    fn the_figure_keeps_every_tick() {
        let output = render(&study()).unwrap().unwrap();
        let scene = &output.figures[0].scene;
        assert!(faults(scene).is_empty(), "{:?}", faults(scene));
        for tick in ["0.1", "0.2", "0.5", "1", "1.5", "2"] {
            assert!(scene.labels().any(|label| label.text == tick), "{tick} is missing");
        }
        if let Some(folder) = std::env::var_os("PPD_LOOK") {
            super::super::write(&[output], std::path::Path::new(&folder)).unwrap();
        }
    }

    #[test]
    fn a_study_that_is_no_sweep_has_none() {
        assert!(render(&testing::study()).unwrap().is_none());
    }
}
