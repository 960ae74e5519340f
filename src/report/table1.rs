//! Table 1: each method's mean on each reward and on its twin, the paper's number beside it, and the paired gains.
//!
//! As in the paper, a method that takes users is asked for each reward under that reward's user, and a specialist
//! stands only in its own column (the matrix holds the rest). Means differ much between prompts, so their intervals
//! are wide; the second table pairs every image with the base's image of the same prompt and noise.

use super::study::{Method, Role, Study, Values, reward_label, twin};
use super::table::{Cell, Kind, Table, decimals_for};
use super::{Output, Result};
use crate::stats::Estimate;

/// What a reader of the two columns side by side must know.
const NOT_COMPARABLE: &str = "The paper's numbers are Stable Cascade's on PartiPrompts, scored by OpenCLIP ViT-H/14, the \
     LAION aesthetic predictor and HPSv2. Model, prompts, rewards and scale are others here: signs and order can be \
     compared, levels and sizes cannot.";

/// Renders both tables; `None` where no method has a reward.
///
/// # Errors
/// Where a method's rows cannot be averaged.
pub fn render(study: &Study) -> Result<Option<Output>> {
    let methods: Vec<&Method> =
        study.design.methods.iter().filter(|method| method.role != Role::Control).collect();
    let base = study.design.first(&Role::Base);
    let (mut means, mut gains) = (Vec::new(), Vec::new());
    for method in &methods {
        let (mut mean_row, mut gain_row) = (Vec::new(), Vec::new());
        for score in scores(study) {
            let own = own_values(study, method, &score);
            mean_row.push(own.as_ref().map(Values::mean).transpose()?);
            let theirs =
                base.filter(|base| base.name != method.name).and_then(|base| own_values(study, base, &score));
            gain_row.push(own.zip(theirs).map(|(own, theirs)| own.minus(&theirs).mean()).transpose()?);
        }
        means.push(mean_row);
        gains.push(gain_row);
    }
    if means.iter().flatten().flatten().next().is_none() {
        return Ok(None);
    }
    let mut first = lay(study, &methods, &means, true);
    first.caption = format!("Mean reward of each method ({}).", study.scale());
    add_notes(study, &mut first, &means);
    let mut output =
        Output { name: "table1".into(), tables: vec![("table1".into(), first)], ..Output::default() };
    if gains.iter().flatten().flatten().next().is_some() {
        let trained = |_: &&Method, gains: &Vec<Option<Estimate>>| gains.iter().any(Option::is_some);
        let (methods, gains): (Vec<_>, Vec<_>) =
            methods.into_iter().zip(gains).filter(|(method, gains)| trained(method, gains)).unzip();
        let mut second = lay(study, &methods, &gains, false);
        second.caption = "Gain over the base, image by image (same prompt, same noise).".into();
        second.note("Images that failed on either side are left out of the pair.");
        output.tables.push(("table1-gains".into(), second));
    }
    Ok(Some(output))
}

/// The rewards, each followed by its twin where rows hold one.
pub(super) fn scores(study: &Study) -> Vec<String> {
    let with_twin = |reward: &String| {
        [Some(reward.clone()), Some(twin(reward)).filter(|name| study.scores.contains(name))]
    };
    study.design.rewards.iter().flat_map(with_twin).flatten().collect()
}

/// A method's values on a score, under the condition that speaks for it; none for a specialist on another's reward.
pub(super) fn own_values(study: &Study, method: &Method, score: &str) -> Option<Values> {
    let reward = score.strip_suffix("-twin").unwrap_or(score);
    if matches!(&method.role, Role::Specialist(own) if own != reward) {
        return None;
    }
    study.values(&method.name, method.condition_for(reward), score)
}

fn lay(study: &Study, methods: &[&Method], numbers: &[Vec<Option<Estimate>>], paper: bool) -> Table {
    let scores = scores(study);
    let has_paper = |reward: &str| paper && methods.iter().any(|method| method.paper.contains_key(reward));
    let decimals: Vec<usize> = (0..scores.len())
        .map(|column| decimals_for(numbers.iter().filter_map(|row| row[column].as_ref())))
        .collect();
    let best: Vec<Option<f64>> = (0..scores.len())
        .map(|column| {
            let competing =
                methods.iter().zip(numbers).filter(|(m, _)| !matches!(m.role, Role::Specialist(_)));
            competing.filter_map(|(_, row)| row[column].as_ref().map(|e| e.value)).reduce(f64::max)
        })
        .collect();
    let mut columns = vec![("Method".to_owned(), Kind::Words)];
    for score in &scores {
        columns.push((reward_label(score), Kind::Estimates));
        if has_paper(score) {
            columns.push((format!("{} (paper)", reward_label(score)), Kind::Numbers));
        }
    }
    let mut table = Table::new("", columns);
    let mut earlier: Option<&Role> = None;
    for (method, numbers) in methods.iter().zip(numbers) {
        let specialist = |role: &Role| matches!(role, Role::Specialist(_));
        if earlier.is_some_and(|role| specialist(role) != specialist(&method.role)) {
            table.rule();
        }
        earlier = Some(&method.role);
        let mut row = vec![Cell::text(method.label.clone())];
        for ((score, number), (decimals, best)) in scores.iter().zip(numbers).zip(decimals.iter().zip(&best))
        {
            row.push(match number {
                Some(estimate) => Cell::Estimate {
                    bold: !specialist(&method.role) && *best == Some(estimate.value),
                    estimate: estimate.clone(),
                    decimals: *decimals,
                },
                None => Cell::Missing,
            });
            if has_paper(score) {
                row.push(Cell::number(method.paper.get(score.as_str()).copied(), 2));
            }
        }
        table.push(row);
    }
    table
}

fn add_notes(study: &Study, table: &mut Table, numbers: &[Vec<Option<Estimate>>]) {
    let mut methods: Vec<&str> =
        numbers.iter().flatten().flatten().map(|estimate| estimate.method.label()).collect();
    methods.sort_unstable();
    methods.dedup();
    table.note(format!("Brackets: 95 % intervals ({}).", methods.join("; ")));
    table.note_few_seeds(study.design.first(&Role::Base).map(|base| base.label.as_str()));
    if study.design.methods.iter().any(|method| !method.paper.is_empty()) {
        table.note(NOT_COMPARABLE);
    }
    if study.scores.iter().any(|score| score.ends_with("-twin")) {
        table.note("A twin is a second model of the same reward that no method trains on: a gain that it does not share is not believed.");
    }
    if study.design.methods.iter().any(|method| matches!(method.role, Role::Specialist(_))) {
        table.note("Below the line: one model for each reward, the paper's upper bounds; bold marks the best above it.");
    }
    table.note(failures(study));
    if study.unfinished > 0 {
        table.note(format!("{} cells are not finished and stand in no number.", study.unfinished));
    }
}

/// The footnote on failed images: how many of how many, and why.
pub(super) fn failures(study: &Study) -> String {
    let reasons = study.failure_reasons();
    let total: usize = reasons.iter().map(|(_, count)| count).sum();
    if total == 0 {
        return "No image failed.".into();
    }
    let listed: Vec<String> =
        reasons.iter().take(3).map(|(reason, count)| format!("{count} × {reason}")).collect();
    let more =
        if reasons.len() > 3 { format!(", and {} other reasons", reasons.len() - 3) } else { String::new() };
    format!(
        "{total} of {} images failed and stand in no mean: {}{more}. A prompt that a training seed has no image for is left out.",
        study.rows().len(),
        listed.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn planted_gains_are_found_within_their_intervals() {
        let study = testing::study();
        let output = render(&study).unwrap().unwrap();
        let (_, gains) = &output.tables[1];
        let row = gains.rows.iter().find(|row| row[0] == Cell::text("PPD")).unwrap();
        // Planted: 0.9 spreads of 6, 0.3 and 9 on the rewards, half of that on the twins.
        let planted = [5.4, 2.7, 0.27, 0.135, 8.1, 4.05];
        for (cell, truth) in row[1..].iter().zip(planted) {
            let Cell::Estimate { estimate, .. } = cell else { panic!("{cell:?}") };
            assert!(estimate.covers(truth), "{estimate:?} against {truth}");
            assert!(estimate.low > 0.0 && estimate.note.is_none());
        }
        assert!(
            !gains.rows.iter().any(|row| row[0] == Cell::text("Base")),
            "the base gains nothing over itself"
        );
    }

    #[test]
    fn a_specialist_stands_in_its_own_column_only() {
        let table = &render(&testing::study()).unwrap().unwrap().tables[0].1;
        let row = table.rows.iter().find(|row| row[0] == Cell::text("DPO (HPS)")).unwrap();
        assert_eq!(row[1..7].iter().filter(|cell| **cell == Cell::Missing).count(), 6);
        assert!(matches!(row[7], Cell::Estimate { .. }) && row[8] == Cell::number(Some(28.61), 2));
        assert_eq!(table.rules, [5]);
    }

    #[test]
    fn failures_are_counted_and_never_zero() {
        let study = testing::study();
        let markdown = render(&study).unwrap().unwrap().tables[0].1.markdown();
        assert!(markdown.contains("2 of "), "{markdown}");
        assert!(markdown.contains("2 × a pixel is not finite"));
        let values = study.values("ppd", "clip", "clip").unwrap().gathered().unwrap();
        assert_eq!(values.incomplete, [5]);
        assert!(values.values.values().iter().all(|value| *value > 20.0), "a failure became a number");
    }

    #[test]
    fn markdown_is_as_it_was() {
        let output = render(&testing::study()).unwrap().unwrap();
        let text: String = output.tables.iter().map(|(_, table)| table.markdown() + "\n").collect();
        super::super::testing::snapshot("table1.md", &text);
    }
}
