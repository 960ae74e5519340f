//! What the preference pairs are like: how often each reward agrees with the raw labels, with what it stands for, and
//! with its twin, on the samples themselves.
//!
//! A reward that was trained on renders need not know samples of a model; here it is asked on them. The desk's rewards
//! stand for something that can be measured: CLIP for alignment with the caption, the aesthetic reward for the rating
//! rule behind its raters, HPS for the utility of its population's mean user. Needs the pairs and their scores, no model.

use std::path::Path;

use super::table::{Cell, Kind, Table};
use super::{Output, Result};
use crate::data::desk::calibrate::PICK_A_PIC;
use crate::data::labels::{agreement, raw_choices, reward_choices};
use crate::data::scores::Scores;
use crate::data::{Choice, Preference};
use crate::scenes::population::{Config, Kind as Users, Population, aesthetic};
use crate::scenes::{alignment, measure, parse};
use crate::stats::correlation::spearman;
use crate::units::Seed;

/// The measurable thing that each desk reward stands for, on both pictures of every pair; nothing where a caption is
/// none of the desk's.
fn truths(pairs: &[Preference], origin: &Path) -> Result<Scores> {
    let population = Population::with(Seed::new(0), Users::Hps, Config::of(Users::Hps));
    let mean_user = population.mean_user();
    let mut values = [(); 3].map(|()| Vec::with_capacity(pairs.len()));
    for pair in pairs {
        let Some(scene) = parse(&pair.caption) else { return Ok(Scores::new()) };
        let judge = |side: usize| -> Result<[f64; 3]> {
            let image = pair.image(side, origin)?;
            let (measured, aligned) = (measure(&image), alignment(&image, &scene));
            Ok([aligned, aesthetic(&measured), population.utility(&mean_user, &measured, aligned)])
        };
        let (first, second) = (judge(0)?, judge(1)?);
        for (reward, values) in values.iter_mut().enumerate() {
            values.push([first[reward], second[reward]]);
        }
    }
    let mut scores = Scores::new();
    for (target, values) in PICK_A_PIC.iter().zip(values) {
        scores.insert(target.reward, values)?;
    }
    Ok(scores)
}

/// Renders the table.
///
/// # Errors
/// Where a picture cannot be decoded, or pairs and scores do not fit together.
pub fn render(pairs: &[Preference], scores: &Scores, origin: &Path) -> Result<Output> {
    let truths = truths(pairs, origin)?;
    let raw = raw_choices(pairs);
    let mut table = Table::new(
        format!("What the rewards say of {} preference pairs, all samples of the base model.", pairs.len()),
        vec![
            ("Score".into(), Kind::Words),
            ("agrees with raw labels, %".into(), Kind::Estimates),
            ("Pick-a-Pic, %".into(), Kind::Numbers),
            ("orders pairs as what it stands for, %".into(), Kind::Estimates),
            ("Spearman of differences".into(), Kind::Numbers),
            ("agrees with its twin, %".into(), Kind::Estimates),
        ],
    );
    for name in scores.rewards() {
        let kind = name.strip_suffix(TWIN).unwrap_or(name);
        let ours = reward_choices(scores, name)?;
        let known = truths.rewards().iter().any(|truth| truth == kind);
        let (ordered, correlation) = if known {
            let correlation = spearman(&differences(scores.get(name)?), &differences(truths.get(kind)?))?;
            (share(&ours, &reward_choices(&truths, kind)?)?, correlation.map(|found| found.coefficient))
        } else {
            (Cell::Missing, None)
        };
        let twin = format!("{name}{TWIN}");
        let twin = match scores.rewards().contains(&twin) {
            true => share(&ours, &reward_choices(scores, &twin)?)?,
            false => Cell::Missing,
        };
        let published =
            PICK_A_PIC.iter().find(|target| target.reward == name).map(|target| 100.0 * target.agreement);
        table.push(vec![
            Cell::text(name.as_str()),
            share(&ours, &raw)?,
            Cell::number(published, 0),
            ordered,
            Cell::number(correlation, 2),
            twin,
        ]);
    }
    table.note("Intervals are Wilson's at 95 %, pairs taken as independent; ties are left out.");
    table.note(
        "CLIP stands for measured alignment with the caption, the aesthetic reward for the rating rule behind its \
         raters, HPS for the utility of its population's mean user; each twin for the same.",
    );
    Ok(Output { name: "pairs".into(), tables: vec![("pairs".into(), table)], ..Output::default() })
}

const TWIN: &str = "-twin";

fn differences(sides: &[[f64; 2]]) -> Vec<f64> {
    sides.iter().map(|[first, second]| first - second).collect()
}

/// The share of pairs, in %, on which two label sources choose the same side.
fn share(first: &[Option<Choice>], second: &[Option<Choice>]) -> Result<Cell> {
    let counted = agreement(first, second);
    if counted.both == 0 {
        return Ok(Cell::Missing);
    }
    let mut estimate = counted.interval(0.95)?;
    for value in [&mut estimate.value, &mut estimate.low, &mut estimate.high] {
        *value *= 100.0;
    }
    Ok(Cell::estimate(Some(estimate), 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Format, encode};
    use crate::rng::stream;
    use crate::scenes::{Split, Style, render as draw, sample_scene};

    #[test]
    fn a_score_that_is_what_it_stands_for_orders_every_pair_and_its_opposite_none() {
        let pairs: Vec<Preference> = (0..24)
            .map(|i| {
                let mut s = stream(Seed::new(3), "pair", i);
                let scene = sample_scene(&mut s, [1.0, 0.0, 0.0], Split::Train);
                let images = [(); 2].map(|()| {
                    let style = Style::sample(&mut s);
                    encode(&draw(&scene, &style, &mut s), Format::Png).unwrap()
                });
                Preference {
                    caption: scene.caption(),
                    images: Some(images),
                    label: Some([1.0, 0.0]),
                    ..Preference::default()
                }
            })
            .collect();
        let truth = truths(&pairs, Path::new("test")).unwrap();
        let mut scores = Scores::new();
        let rated = truth.get("aesthetic").unwrap().to_vec();
        scores.insert("aesthetic", rated.clone()).unwrap();
        scores.insert("aesthetic-twin", rated.iter().map(|[a, b]| [-a, -b]).collect()).unwrap();
        scores.insert("brightness", rated).unwrap();
        let output = render(&pairs, &scores, Path::new("test")).unwrap();
        let csv = output.tables[0].1.csv();
        let cell = |row: usize, head: &str| {
            let mut reader = csv::Reader::from_reader(csv.as_bytes());
            let column = reader.headers().unwrap().iter().position(|h| h == head).unwrap();
            reader.records().nth(row).unwrap().unwrap()[column].to_owned()
        };
        assert_eq!(cell(0, "orders pairs as what it stands for, %"), "100");
        assert_eq!(cell(1, "orders pairs as what it stands for, %"), "0");
        assert_eq!(cell(0, "Spearman of differences"), "1");
        assert_eq!(cell(0, "agrees with its twin, %"), "0");
        assert_eq!(cell(2, "orders pairs as what it stands for, %"), "");
        assert_eq!((cell(0, "Pick-a-Pic, %"), cell(1, "Pick-a-Pic, %")), ("51".into(), String::new()));
    }
}
