//! The full matrix: every method under every user on every score, pixel statistics and their spread included.
//!
//! Here a reward is seen to be bought: what a method does to rewards that it was not asked for, to the twins, and to
//! brightness, contrast or distance from the base. Mixtures of users are left to Figure 4.

use super::plot::{Anchor, Color, Label, PAGE, SMALL, Scene, text_width};
use super::study::{Method, Role, Study, Values, reward_label, twin};
use super::table::{Cell, Kind, Table, decimals_for};
use super::{Figure, Output, Result};
use crate::stats::{Estimate, sample};

/// One row of the matrix.
struct Line<'a> {
    method: &'a Method,
    condition: &'a str,
    /// The mean of each score.
    means: Vec<Option<Estimate>>,
    /// The paired gain over the base, in the base's standard deviations between images of one prompt.
    effects: Vec<Option<Estimate>>,
    /// The standard deviation between images.
    spreads: Vec<Option<f64>>,
}

/// Renders the matrix as tables and as a heat map; `None` where there are no rows.
///
/// # Errors
/// Where rows cannot be averaged.
pub fn render(study: &Study) -> Result<Option<Output>> {
    use rayon::prelude::*;
    let scores = scores(study);
    let base = study.design.first(&Role::Base);
    let reference: Vec<Option<(Values, f64)>> = scores
        .iter()
        .map(|score| {
            let values = study.values(&base?.name, base?.condition_for(score), score)?;
            study.deviation(score).map(|deviation| (values, deviation))
        })
        .collect();
    let places: Vec<(&Method, &str)> = study
        .design
        .methods
        .iter()
        .flat_map(|method| {
            study.conditions(&method.name).into_iter().map(move |condition| (method, condition))
        })
        .filter(|(_, condition)| !condition.contains('='))
        .collect();
    let lines: Vec<Line<'_>> = places
        .into_par_iter()
        .map(|(method, condition)| line(study, method, condition, &scores, &reference))
        .collect::<Result<_>>()?;
    let mut lines = lines;
    let rank = |condition: &str| study.design.rewards.iter().position(|reward| reward == condition);
    lines.sort_by_key(|line| (study.design.place(&line.method.name), rank(line.condition)));
    if lines.iter().all(|line| line.means.iter().all(Option::is_none)) {
        return Ok(None);
    }
    let mut output = Output { name: "matrix".into(), ..Output::default() };
    output.tables.push(("matrix".into(), tabulate(study, &scores, &lines)));
    if let Some(spread) = spreads(study, &scores, &lines) {
        output.tables.push(("matrix-spread".into(), spread));
    }
    if lines.iter().any(|line| line.effects.iter().any(Option::is_some)) {
        output.figures.push(Figure {
            name: "matrix-effects".into(),
            caption: "Paired change against the base of every method (and user) on every score, in the base's standard \
                      deviations between images of one prompt. Framed: what was asked for. Columns past the twins are \
                      measured pixels."
                .into(),
            scene: draw(&scores, &lines),
            data: effects(&scores, &lines),
        });
    }
    Ok(Some(output))
}

/// Rewards with their twins, then everything else that was measured.
fn scores(study: &Study) -> Vec<String> {
    let mut scores: Vec<String> = study.design.rewards.clone();
    scores.extend(study.design.rewards.iter().map(|reward| twin(reward)));
    scores.retain(|score| study.scores.contains(score));
    scores.extend(pixel_scores(study));
    scores
}

/// Measured statistics: scores that are neither a user's reward nor a twin of one.
fn pixel_scores(study: &Study) -> Vec<String> {
    let is_reward =
        |score: &str| study.design.rewards.iter().any(|reward| reward == score.trim_end_matches("-twin"));
    study.scores.iter().filter(|score| !is_reward(score)).cloned().collect()
}

fn line<'a>(
    study: &Study,
    method: &'a Method,
    condition: &'a str,
    scores: &[String],
    reference: &[Option<(Values, f64)>],
) -> Result<Line<'a>> {
    let (mut means, mut effects, mut spreads) = (Vec::new(), Vec::new(), Vec::new());
    for (score, reference) in scores.iter().zip(reference) {
        let Some(values) = study.values(&method.name, condition, score) else {
            means.push(None);
            effects.push(None);
            spreads.push(None);
            continue;
        };
        means.push(Some(values.mean()?));
        spreads.push(sample::variance(&values.all()).map(f64::sqrt));
        effects.push(match reference {
            Some((base, deviation)) if method.role != Role::Base => {
                Some(values.minus(base).scaled(1.0 / deviation).mean()?)
            }
            _ => None,
        });
    }
    Ok(Line { method, condition, means, effects, spreads })
}

/// A row's name: the method, and the user where it takes users.
fn name(line: &Line<'_>) -> String {
    let user = line.condition;
    if user == super::study::NOBODY {
        line.method.label.clone()
    } else {
        format!("{}, {}", line.method.label, reward_label(user))
    }
}

fn tabulate(study: &Study, scores: &[String], lines: &[Line<'_>]) -> Table {
    let mut columns = vec![("Method, user".to_owned(), Kind::Words)];
    columns.extend(scores.iter().map(|score| (reward_label(score), Kind::Estimates)));
    let mut table = Table::new(
        format!(
            "Mean of every score for every method and user ({}). Intervals stand in the CSV.",
            study.scale()
        ),
        columns,
    );
    table.brief = true;
    let decimals: Vec<usize> = (0..scores.len())
        .map(|column| decimals_for(lines.iter().filter_map(|line| line.means[column].as_ref())))
        .collect();
    let mut earlier = None;
    for line in lines {
        if earlier.is_some_and(|method| method != &line.method.name) {
            table.rule();
        }
        earlier = Some(&line.method.name);
        let mut row = vec![Cell::text(name(line))];
        row.extend(
            line.means.iter().zip(&decimals).map(|(mean, decimals)| Cell::estimate(mean.clone(), *decimals)),
        );
        table.push(row);
    }
    table.note_few_seeds(study.design.first(&Role::Base).map(|base| base.label.as_str()));
    table.note(super::table1::failures(study));
    table
}

/// How much measured pixels differ between images: a method whose images all look alike has little.
fn spreads(study: &Study, scores: &[String], lines: &[Line<'_>]) -> Option<Table> {
    let pixels = pixel_scores(study);
    let columns: Vec<usize> =
        scores.iter().enumerate().filter(|(_, s)| pixels.contains(s)).map(|(at, _)| at).collect();
    if columns.is_empty() {
        return None;
    }
    let mut heads = vec![("Method, user".to_owned(), Kind::Words)];
    heads.extend(columns.iter().map(|at| (reward_label(&scores[*at]), Kind::Numbers)));
    let mut table = Table::new("Diversity: standard deviation of measured pixels between images.", heads);
    for line in lines {
        let mut row = vec![Cell::text(name(line))];
        row.extend(columns.iter().map(|at| Cell::number(line.spreads[*at], 3)));
        table.push(row);
    }
    table.note("A method that makes all its images alike (less spread than the base) has lost diversity.");
    Some(table)
}

fn effects(scores: &[String], lines: &[Line<'_>]) -> Table {
    let columns =
        [("method", Kind::Words), ("user", Kind::Words), ("score", Kind::Words), ("change", Kind::Estimates)];
    let mut table =
        Table::new("Paired changes", columns.map(|(head, kind)| (head.to_owned(), kind)).to_vec());
    for line in lines.iter().filter(|line| line.effects.iter().any(Option::is_some)) {
        for (score, effect) in scores.iter().zip(&line.effects) {
            table.push(vec![
                Cell::text(line.method.name.clone()),
                Cell::text(line.condition),
                Cell::text(score.clone()),
                Cell::estimate(effect.clone(), 2),
            ]);
        }
    }
    table
}

/// Blue for less, vermilion for more, white for none; saturated at two standard deviations.
fn shade(effect: f64) -> Color {
    let strength = (effect.abs() / 2.0).min(1.0) * 0.85;
    if effect < 0.0 { Color(0, 114, 178).tint(strength) } else { Color(213, 94, 0).tint(strength) }
}

fn draw(scores: &[String], lines: &[Line<'_>]) -> Scene {
    const ROW: f64 = 11.0;
    let lines: Vec<&Line<'_>> =
        lines.iter().filter(|line| line.effects.iter().any(Option::is_some)).collect();
    let left = lines.iter().map(|line| text_width(&name(line), SMALL)).fold(0.0, f64::max) + 6.0;
    // A score on which the base does not vary (its own drift) has no unit, and no column.
    let shown: Vec<usize> =
        (0..scores.len()).filter(|at| lines.iter().any(|line| line.effects[*at].is_some())).collect();
    let heads: Vec<String> = shown.iter().map(|at| &scores[*at]).map(|score| reward_label(score)).collect();
    let top = heads.iter().map(|head| text_width(head, SMALL)).fold(0.0, f64::max) + 5.0;
    let column = ((PAGE - left) / shown.len() as f64).min(42.0);
    let breaks = lines.windows(2).filter(|pair| pair[0].method.name != pair[1].method.name).count() as f64;
    let mut scene = Scene::new(
        left + column * shown.len() as f64 + 1.0,
        top + ROW * lines.len() as f64 + 2.0 * breaks + 1.0,
    );
    for (at, head) in heads.iter().enumerate() {
        let x = left + column * (at as f64 + 0.5);
        scene.label(Label::new((x, top - 3.0), head.clone()).small().upward());
    }
    let mut y = top;
    for (index, line) in lines.iter().enumerate() {
        if index > 0 && lines[index - 1].method.name != line.method.name {
            y += 2.0;
        }
        scene.label(Label::new((left - 4.0, y + ROW / 2.0), name(line)).small().anchored(Anchor::End));
        for (place, at) in shown.iter().copied().enumerate() {
            let Some(effect) = &line.effects[at] else { continue };
            let x = left + column * place as f64;
            let asked = line.condition == scores[at]
                || matches!(&line.method.role, Role::Specialist(own) if *own == scores[at]);
            // What a method was asked for is framed.
            let (right, bottom) = (x + column - 0.8, y + ROW - 0.8);
            if asked {
                scene.rectangle((x, y), (right, bottom), Color::INK);
            }
            let frame = if asked { 0.8 } else { 0.0 };
            scene.rectangle((x + frame, y + frame), (right - frame, bottom - frame), shade(effect.value));
            let label =
                Label::new((x + column / 2.0, y + ROW / 2.0), super::panel::number(effect.value, 2)).small();
            let label = if effect.value.abs() > 1.5 { label.colored(Color::WHITE) } else { label };
            scene.label(label.anchored(Anchor::Middle));
        }
        y += ROW;
    }
    scene
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn every_method_user_and_score_is_there() {
        let study = testing::study();
        let output = render(&study).unwrap().unwrap();
        let table = &output.tables[0].1;
        // Seven methods without users, four with three users each: no mixtures.
        assert_eq!(table.rows.len(), 7 + 4 * 3);
        assert_eq!(table.columns.len(), 1 + 6 + 2);
        assert!(table.rows.iter().all(|row| row.iter().all(|cell| *cell != Cell::Missing)));
        assert!(!table.markdown().contains('['), "intervals are left to the CSV");
        assert!(table.csv().contains("CLIP low"));
    }

    #[test]
    fn planted_changes_are_measured_in_deviations() {
        let study = testing::study();
        let output = render(&study).unwrap().unwrap();
        let csv = output.figures[0].data.csv();
        let line = csv.lines().find(|line| line.starts_with("dpo-hps,none,hps,")).unwrap();
        let numbers: Vec<f64> = line.split(',').skip(3).map(|field| field.parse().unwrap()).collect();
        // Planted: one spread; the sample's own spread of 24 prompts differs a little from the planted 9.
        assert!(
            (0.7..1.4).contains(&numbers[0]) && numbers[1] < numbers[0] && numbers[0] < numbers[2],
            "{line}"
        );
    }
}
