//! How much of each specialist's gain the one personal model keeps, and whether it stays within the margin.
//!
//! The fraction is (personal − base) / (specialist − base) on the specialist's own reward, with Fieller's interval;
//! where the specialist itself gained nothing that can be told from zero, no fraction is excluded and none is shown. The
//! difference stands beside it in the base's standard deviations, against the margin that the study's
//! non-inferiority claim fixed beforehand.

use super::panel::{Axis, Panel, legend, legend_height};
use super::plot::{COLUMN, Color, Look, Scene};
use super::study::{BOOTSTRAP, LEVEL, Method, RESAMPLES, Role, Study, reward_label, twin};
use super::table::{Cell, Kind, Table};
use super::{Figure, Output, Result};
use crate::spec::claim::Test;
use crate::stats::{Estimate, ratio_interval};

/// The comparison on one score.
struct Kept {
    score: String,
    twin: bool,
    specialist: String,
    fraction: Option<Estimate>,
    /// Personal − specialist, in the base's standard deviations between images of one prompt.
    difference: Estimate,
}

/// Renders the table and the figure; `None` where there are no specialists.
///
/// # Errors
/// Where rows cannot be paired.
pub fn render(study: &Study) -> Result<Option<Output>> {
    let design = &study.design;
    let (Some(hero), Some(base)) = (design.first(&Role::Personal), design.first(&Role::Base)) else {
        return Ok(None);
    };
    let mut all = Vec::new();
    for reward in &design.rewards {
        let Some(specialist) = design.first(&Role::Specialist(reward.clone())) else { continue };
        for score in [reward.clone(), twin(reward)] {
            all.extend(kept(study, hero, base, specialist, reward, &score)?);
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    let margin = design.claims.iter().find_map(|claim| match &claim.test {
        Test::NonInferior { method, margin, .. } if *method == hero.name => Some(*margin),
        _ => None,
    });
    let columns = vec![
        ("Score".to_owned(), Kind::Words),
        ("Specialist".to_owned(), Kind::Words),
        ("fraction of its gain kept".to_owned(), Kind::Estimates),
        ("difference, SD".to_owned(), Kind::Estimates),
    ];
    let mut table =
        Table::new(format!("What {} keeps of each specialist's gain over the base.", hero.label), columns);
    for one in &all {
        table.push(vec![
            Cell::text(reward_label(&one.score)),
            Cell::text(one.specialist.clone()),
            Cell::estimate(one.fraction.clone(), 2),
            Cell::estimate(Some(one.difference.clone()), 2),
        ]);
    }
    if all.iter().any(|one| one.fraction.is_none()) {
        table
            .note("No fraction: the specialist's own gain is not told apart from zero, so none is excluded.");
    }
    table.note_few_seeds(None);
    if let Some(margin) = margin {
        table.note(format!(
            "The margin that was fixed beforehand: not worse by more than {margin} of the base's standard deviations \
             between images of one prompt."
        ));
    }
    table.note(
        "The paper calls the specialists upper bounds and PPD's win rates comparable; it states no margin.",
    );
    let figure = Figure {
        name: "retained".into(),
        caption: format!(
            "{} less each reward's specialist, in the base's standard deviations between images of one prompt; \
             whiskers are 95 % intervals{}.",
            hero.label,
            if margin.is_some() { ", the dashed line is the margin fixed beforehand" } else { "" }
        ),
        scene: draw(study, hero, &all, margin),
        data: table.clone(),
    };
    Ok(Some(Output {
        name: "retained".into(),
        tables: vec![("retained-table".into(), table)],
        figures: vec![figure],
        ..Output::default()
    }))
}

fn kept(
    study: &Study,
    hero: &Method,
    base: &Method,
    specialist: &Method,
    reward: &str,
    score: &str,
) -> Result<Option<Kept>> {
    let values = |method: &Method| study.values(&method.name, method.condition_for(reward), score);
    let (Some(ours), Some(start), Some(theirs)) = (values(hero), values(base), values(specialist)) else {
        return Ok(None);
    };
    let Some(deviation) = study.deviation(score) else { return Ok(None) };
    let difference = ours.minus(&theirs).scaled(1.0 / deviation).mean()?;
    // Both gains over the images that all three methods have, so that the ratio's halves share prompts and seeds.
    let shared = ours.combine(&theirs, |a, _| a).combine(&start, |a, _| a);
    let gain = |of: &super::study::Values| -> Result<crate::stats::Crossed> {
        Ok(of.minus(&start).combine(&shared, |gain, _| gain).gathered()?.values)
    };
    let (numerator, denominator) = (gain(&ours)?, gain(&theirs)?);
    let fraction = ratio_interval(&numerator, &denominator, LEVEL, RESAMPLES, BOOTSTRAP)
        .ok()
        .filter(|fraction| fraction.low.is_finite() && fraction.high.is_finite());
    Ok(Some(Kept {
        score: score.to_owned(),
        twin: score != reward,
        specialist: specialist.label.clone(),
        fraction,
        difference,
    }))
}

fn draw(study: &Study, hero: &Method, all: &[Kept], margin: Option<f64>) -> Scene {
    const HEIGHT: f64 = 72.0;
    let rewards: Vec<&String> =
        study.design.rewards.iter().filter(|reward| all.iter().any(|one| one.score == **reward)).collect();
    let looks = [Look::nth(0), Look::nth(1)];
    let entries = vec![(looks[0], "reward".to_owned()), (looks[1], "its twin, never trained on".to_owned())];
    let values = all
        .iter()
        .flat_map(|one| [one.difference.low, one.difference.high])
        .chain(margin.map(|margin| -1.2 * margin))
        .chain([0.0]);
    let y = Axis::covering(values, 4).named(format!("{} − specialist, SD", hero.label));
    let left = y.room_at_left() + 1.0;
    let top = legend_height(COLUMN - left, &entries) + 6.0;
    let x = Axis::categories(rewards.iter().map(|reward| reward_label(reward)));
    let mut scene = Scene::new(COLUMN, top + HEIGHT + x.room_below() + 2.0);
    legend(&mut scene, (left, 1.0), COLUMN - left, &entries);
    let panel = Panel { left, top, width: COLUMN - left - 2.0, height: HEIGHT, x, y };
    panel.frame(&mut scene);
    let last = rewards.len() as f64 - 0.5;
    scene.line(panel.at(-0.5, 0.0), panel.at(last, 0.0), 0.6, Color::GREY);
    if let Some(margin) = margin {
        scene.dashed(panel.at(-0.5, -margin), panel.at(last, -margin), 0.8, Color::GREY);
    }
    for one in all {
        let reward = one.score.strip_suffix("-twin").unwrap_or(&one.score);
        let Some(place) = rewards.iter().position(|known| *known == reward) else { continue };
        let x = place as f64 + if one.twin { 0.12 } else { -0.12 };
        let look = looks[usize::from(one.twin)];
        panel.whisker(&mut scene, x, (one.difference.low, one.difference.high), look.color);
        scene.marker(panel.at(x, one.difference.value), 2.3, look);
    }
    scene
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn planted_fractions_are_covered() {
        let output = render(&testing::study()).unwrap().unwrap();
        let table = &output.tables[0].1;
        assert_eq!(table.rows.len(), 6);
        for row in &table.rows {
            let (Cell::Estimate { estimate: fraction, .. }, Cell::Estimate { estimate: difference, .. }) =
                (&row[2], &row[3])
            else {
                panic!("{row:?}")
            };
            // Planted: 0.9 of 1.0 spreads; half of both on the twins.
            assert!(fraction.covers(0.9) && fraction.low > 0.3, "{fraction:?}");
            assert!(difference.low < 0.1 && difference.high > -0.3, "{difference:?}");
        }
        assert!(table.notes.iter().any(|note| note.contains("0.5 of the base's")), "{:?}", table.notes);
    }
}
