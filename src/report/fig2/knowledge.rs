//! What features of a few choices know of a taste (the paper's Sec. 4.2), as a table.

use super::{Found, is_layer, percent, settings, words};
use crate::error::Result;
use crate::report::study::{BOOTSTRAP, LEVEL, RESAMPLES};
use crate::report::table::{Cell, Kind, Table};
use crate::spec::identify::{Features, row_method, score};
use crate::stats::crossed::ratio_interval;
use crate::stats::{Clusters, Crossed, Estimate};

/// The means over a user's groups, in the order of users.
fn by_user(values: &[(u64, f64)]) -> Vec<f64> {
    let mean = |own: &[(u64, f64)]| own.iter().map(|(_, value)| value).sum::<f64>() / own.len() as f64;
    values.chunk_by(|a, b| a.0 == b.0).map(mean).collect()
}

impl Found<'_> {
    fn mean(&self, values: &[(u64, f64)]) -> Result<Estimate> {
        let (users, values): (Vec<u64>, Vec<f64>) = values.iter().copied().unzip();
        Ok(percent(Clusters::new(&values, &users)?.inference(RESAMPLES, BOOTSTRAP)?.estimate(LEVEL)))
    }

    /// One less the ratio of two means of squares, over users.
    fn explained(&self, error: &[(u64, f64)], spread: &[(u64, f64)]) -> Result<Option<Estimate>> {
        let [error, spread] = [error, spread].map(by_user);
        if error.len() < 2 {
            return Ok(None);
        }
        let crossed = |values: Vec<f64>| Crossed::new(1, values.len(), values);
        let ratio = ratio_interval(&crossed(error)?, &crossed(spread)?, LEVEL, RESAMPLES, BOOTSTRAP)?;
        Ok(Some(Estimate {
            value: 1.0 - ratio.value,
            low: 1.0 - ratio.high,
            high: 1.0 - ratio.low,
            note: None,
            ..ratio
        }))
    }
}

/// The table, or none where the study does not ask.
///
/// # Errors
/// Where rows cannot be averaged.
pub(super) fn table(found: &Found) -> Result<Option<Table>> {
    let study = found.study;
    if study.knowledge.is_none() {
        return Ok(None);
    }
    let columns = vec![
        ("World, asked groups".into(), Kind::Words),
        ("Features".into(), Kind::Words),
        ("Choices foreseen, %".into(), Kind::Estimates),
        ("told the mean, %".into(), Kind::Estimates),
        ("told a stranger's, %".into(), Kind::Estimates),
        ("own less stranger's, points".into(), Kind::Estimates),
        ("R² of utilities".into(), Kind::Estimates),
        ("R² between two users".into(), Kind::Estimates),
    ];
    let caption = format!(
        "What the features of {} choices know: held-out choices of the same user foreseen by a Bradley-Terry reward that is \
         told them, and her utilities read off them by a linear probe.",
        study.groups.shots
    );
    let mut table = Table::new(caption, columns);
    for (world, separation) in settings(study) {
        table.rule();
        for method in &study.methods {
            let rows = row_method(&method.name, world, separation);
            let of = |score: &str| found.ranks.get(&(rows.clone(), score.to_owned()));
            let [
                Some(own),
                Some(mean),
                Some(shuffled),
                Some(error),
                Some(spread),
                Some(between),
                Some(apart),
            ] = [
                score::CHOICE_OWN,
                score::CHOICE_MEAN,
                score::CHOICE_SHUFFLED,
                score::UTILITIES_ERROR,
                score::UTILITIES_SPREAD,
                score::BETWEEN_ERROR,
                score::BETWEEN_SPREAD,
            ]
            .map(of)
            else {
                continue;
            };
            let gain: Vec<(u64, f64)> =
                own.iter().zip(shuffled).map(|((user, own), (_, other))| (*user, own - other)).collect();
            let label = match (is_layer(method), &method.features) {
                (None, Features::KnownUtilities) => "Bayes, population known".to_owned(),
                _ => method.label.clone(),
            };
            let mut row = vec![Cell::text(words(world, separation)), Cell::text(label)];
            for values in [own, mean, shuffled, &gain] {
                row.push(Cell::estimate(Some(found.mean(values)?), 1));
            }
            row.push(Cell::estimate(found.explained(error, spread)?, 2));
            row.push(Cell::estimate(found.explained(between, apart)?, 2));
            table.push(row);
        }
    }
    table.note(
        "Reward and probe learned from other users than those asked about; the choices foreseen are of other groups than the \
         one that is told. Bayes' rule knows the population and the features that utilities weigh: nothing that sees these \
         choices alone foresees more. Intervals are over users.",
    );
    Ok(Some(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Row;

    #[test]
    fn a_probe_that_errs_half_the_spread_explains_half() {
        let mut study = super::super::tests::study();
        study.methods.truncate(1);
        let (world, separation) = settings(&study).next().unwrap();
        let rows = (0..40u32).flat_map(|user| {
            let study = &study;
            (0..2).map(move |group| {
                let spread = 1.0 + f64::from(user % 5);
                let scores = [
                    (score::CHOICE_OWN, 0.75),
                    (score::CHOICE_MEAN, 0.5),
                    (score::CHOICE_SHUFFLED, 0.5 + 0.02 * f64::from(user % 2)),
                    (score::UTILITIES_ERROR, 0.5 * spread + 0.1 * f64::from(group)),
                    (score::UTILITIES_SPREAD, spread + 0.2 * f64::from(group)),
                    (score::BETWEEN_ERROR, spread),
                    (score::BETWEEN_SPREAD, spread),
                ];
                Row {
                    method: row_method(&study.methods[0].name, world, separation),
                    condition: format!("user-{user}"),
                    prompt: group,
                    scores: scores.map(|(name, value)| (name.to_owned(), value)).into(),
                    ..Row::default()
                }
            })
        });
        let found = Found::new(&study, rows.collect()).unwrap();
        let table = table(&found).unwrap().unwrap();
        assert_eq!(table.rows.len(), 1);
        let values: Vec<f64> = table.rows[0][2..]
            .iter()
            .map(|cell| match cell {
                Cell::Estimate { estimate, .. } => estimate.value,
                other => panic!("{other:?}"),
            })
            .collect();
        for (value, wanted) in values.iter().zip([75.0, 50.0, 51.0, 24.0, 0.5, 0.0]) {
            assert!((value - wanted).abs() < 1e-9, "{values:?}");
        }
    }
}
