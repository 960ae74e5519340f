//! Figure 5 of people whose utilities are unknown: what judges say of the images that were made for them.

use super::{Column, KINDS, Point, draw, kind_label};
use crate::report::audit::{NOT_CORRECTABLE, asked_for, comparisons, rows_of, win_rates};
use crate::report::judged::{PAIRS, Said};
use crate::report::study::{Method, Role, Study};
use crate::report::table::{Cell, Table};
use crate::report::{Figure, Output, Result};
use crate::scenes::tastes::Kind;
use crate::stats::Estimate;
use crate::stats::judging::{Rate, WinRates};

/// One comparison, as one judge sees it.
struct Row {
    comparison: String,
    kind: Option<Kind>,
    users: usize,
    rates: WinRates,
}

/// The figure and its table; `None` where no judge was asked about images.
///
/// # Errors
/// Where a table of judgements contradicts itself.
pub(super) fn render(study: &Study, hero: &Method) -> Result<Option<Output>> {
    let said: Vec<&Said> = study.judged.iter().filter(|said| said.set == PAIRS).collect();
    let Some(first) = said.first() else { return Ok(None) };
    let by_judge = said.iter().map(|said| Ok((*said, rows(said)?))).collect::<Result<Vec<_>>>()?;
    if by_judge.iter().all(|(_, rows)| rows.is_empty()) {
        return Ok(None);
    }
    let mut output = Output { name: "fig5".into(), ..Output::default() };
    output.tables.push(("fig5-table".into(), table(study, hero, &by_judge)));
    let shown: Vec<Point> = by_judge
        .iter()
        .take(1)
        .flat_map(|(_, rows)| rows)
        .filter_map(|row| {
            let estimate = percent(row.rates.ties_as_half.as_ref())?;
            Some(Point { label: row.comparison.clone(), kind: row.kind, estimate })
        })
        .collect();
    if !shown.is_empty() {
        let mut data = Table::new(
            "Win rate, ties as half",
            vec![
                ("comparison".into(), Column::Words),
                ("users".into(), Column::Words),
                ("win rate, %".into(), Column::Estimates),
            ],
        );
        for point in &shown {
            data.push(vec![
                Cell::text(&point.label),
                Cell::text(kind_label(point.kind)),
                Cell::estimate(Some(point.estimate.clone()), 3),
            ]);
        }
        output.figures.push(Figure {
            name: "fig5".into(),
            caption: format!(
                "How often {} says that a user would rather have {}'s image, made for her, than another of the same caption and \
                 noise: over all pairs, one that is judged differently in its two orders as half (95 % over users and captions). \
                 What people themselves would say is unknown. Dashed: no preference.",
                first.judge.label, hero.label
            ),
            scene: draw(&shown, "judged win rate, %"),
            data,
        });
    }
    Ok(Some(output))
}

fn rows(said: &Said) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for comparison in comparisons(said) {
        for kind in KINDS {
            let kept = asked_for(said, comparison, kind);
            if kept.is_empty() {
                continue;
            }
            let users: std::collections::BTreeSet<&str> =
                kept.iter().map(|truth| truth.user.as_str()).collect();
            let rates = win_rates(&rows_of(said, &kept))?;
            rows.push(Row { comparison: comparison.to_owned(), kind, users: users.len(), rates });
        }
    }
    Ok(rows)
}

fn percent(rate: Option<&Rate>) -> Option<Estimate> {
    rate.map(|rate| rate.estimate.clone().percent())
}

fn table(study: &Study, hero: &Method, by_judge: &[(&Said, Vec<Row>)]) -> Table {
    let columns = vec![
        ("Judge".into(), Column::Words),
        ("Comparison".into(), Column::Words),
        ("Users".into(), Column::Words),
        ("Number".into(), Column::Numbers),
        ("Pairs".into(), Column::Numbers),
        ("Ties as half, %".into(), Column::Estimates),
        ("Strict, %".into(), Column::Estimates),
        ("Consistent, %".into(), Column::Estimates),
        ("By probability, %".into(), Column::Estimates),
        ("Paper, strict, %".into(), Column::Numbers),
    ];
    let mut table = Table::new(
        "What judges say people would rather have, at equal captions and noises. Primary: ties as half.",
        columns,
    );
    let base = study.design.first(&Role::Base).map(|base| format!("{} over {}", hero.label, base.label));
    for (said, rows) in by_judge {
        let mut last = "";
        for row in rows {
            if row.comparison != last {
                table.rule();
                last = &row.comparison;
            }
            let estimate = |rate: Option<&Rate>| Cell::estimate(percent(rate), 1);
            let papers = (base.as_ref() == Some(&row.comparison)).then(|| papers(row.kind));
            table.push(vec![
                Cell::text(&said.judge.label),
                Cell::text(&row.comparison),
                Cell::text(kind_label(row.kind)),
                Cell::number(Some(row.users as f64), 0),
                Cell::number(Some(row.rates.asked as f64), 0),
                estimate(row.rates.ties_as_half.as_ref()),
                estimate(row.rates.strict.as_ref()),
                estimate(row.rates.consistency.as_ref()),
                estimate(row.rates.by_probability.as_ref()),
                Cell::number(papers, 0),
            ]);
        }
    }
    table.note(
        "A pair is asked in both orders. Strict: over consistent pairs alone, as the paper counts; read it beside the share of \
         consistent pairs. Intervals are over users and captions.",
    );
    table.note(NOT_CORRECTABLE);
    table
}

/// What the paper reports for its model over its base, by GPT-4o.
fn papers(kind: Option<Kind>) -> f64 {
    match kind {
        Some(Kind::Seen) => 83.0,
        Some(Kind::Unseen) => 78.0,
        None => 81.0,
    }
}
