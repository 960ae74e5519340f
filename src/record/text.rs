//! Rows and traces as CSV: shortest numbers, one line each, strict reading.

use std::fmt::Write as _;

use super::{Row, Step};

/// A number with at most six significant digits, as short as it reads back.
///
/// Six digits are what a single-precision score holds; records are committed, so they stay small.
pub fn six_digits(value: f64) -> String {
    let rounded: f64 = format!("{value:.5e}").parse().expect("a formatted number parses");
    if rounded == 0.0 {
        return "0".into();
    }
    if (1e-4..1e9).contains(&rounded.abs()) { format!("{rounded}") } else { format!("{rounded:e}") }
}

/// One line of CSV, quoted where a field needs it.
pub(super) fn line<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    let mut line = String::new();
    for (index, field) in fields.enumerate() {
        if index > 0 {
            line.push(',');
        }
        if field.contains([',', '"']) {
            write!(line, "\"{}\"", field.replace('"', "\"\"")).expect("writing to a string");
        } else {
            line.push_str(field);
        }
    }
    line.push('\n');
    line
}

/// A row as one line, or why it cannot be one.
pub(super) fn row_line(row: &Row, columns: &[String]) -> Result<String, String> {
    if let Some(unknown) = row.scores.keys().find(|name| !columns.contains(name)) {
        return Err(format!("the score {unknown} is not a column of this record ({})", columns.join(" ")));
    }
    let mut fields = vec![
        one_line(&row.method),
        one_line(&row.condition),
        row.train_seed.to_string(),
        row.prompt.to_string(),
        row.noise_seed.to_string(),
    ];
    for column in columns {
        match (row.scores.get(column), &row.failure) {
            (Some(_), Some(_)) => return Err("a row with a failure has no scores".into()),
            (Some(score), None) if score.is_finite() => fields.push(six_digits(*score)),
            (Some(score), None) => {
                return Err(format!("the score {column} is {score}, expected a finite number"));
            }
            (None, Some(_)) => fields.push(String::new()),
            (None, None) => return Err(format!("the score {column} is missing, and no failure says why")),
        }
    }
    match &row.failure {
        Some(reason) if reason.trim().is_empty() => return Err("a failure needs its reason".into()),
        reason => fields.push(reason.as_deref().map(one_line).unwrap_or_default()),
    }
    Ok(line(fields.iter().map(String::as_str)))
}

/// Text without line breaks, so that a line of the file is a row.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r', '\0'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" / ")
}

/// The rows in `text`, or what is wrong and on which line.
pub(super) fn parse_rows(text: &str, keys: &[&str], scores: &[String]) -> Result<Vec<Row>, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(true).from_reader(text.as_bytes());
    let expected: Vec<&str> =
        keys.iter().copied().chain(scores.iter().map(String::as_str)).chain(["failure"]).collect();
    let found = reader.headers().map_err(|fault| fault.to_string())?;
    if found.iter().ne(expected.iter().copied()) {
        let found = found.iter().collect::<Vec<_>>().join(",");
        return Err(format!("line 1: expected the columns {}, found {found}", expected.join(",")));
    }
    let mut rows = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let number = index + 2;
        let record = record.map_err(|fault| format!("line {number}: {fault}"))?;
        rows.push(parse_row(&record, keys.len(), scores).map_err(|fault| format!("line {number}: {fault}"))?);
    }
    Ok(rows)
}

fn parse_row(record: &csv::StringRecord, keys: usize, scores: &[String]) -> Result<Row, String> {
    let field = |index: usize| record.get(index).unwrap_or_default();
    let integer = |index: usize, what: &str| {
        field(index)
            .parse::<u64>()
            .map_err(|_| format!("{what} is {:?}, expected a whole number", field(index)))
    };
    let failure = Some(field(keys + scores.len())).filter(|reason| !reason.is_empty()).map(str::to_owned);
    let mut row = Row {
        method: field(0).into(),
        condition: field(1).into(),
        train_seed: integer(2, "train_seed")?,
        prompt: u32::try_from(integer(3, "prompt")?)
            .map_err(|_| format!("prompt {} is too large", field(3)))?,
        noise_seed: integer(4, "noise_seed")?,
        scores: Default::default(),
        failure,
    };
    if row.method.is_empty() || row.condition.is_empty() {
        return Err("method or condition is empty".into());
    }
    for (index, name) in scores.iter().enumerate() {
        let text = field(keys + index);
        match (text.is_empty(), row.failure.is_some()) {
            (true, true) => {}
            (false, true) => return Err(format!("{name} has a score beside a failure")),
            (true, false) => return Err(format!("{name} is empty, and no failure says why")),
            (false, false) => {
                let score: f64 =
                    text.parse().map_err(|_| format!("{name} is {text:?}, expected a number"))?;
                if !score.is_finite() {
                    return Err(format!("{name} is {text}, expected a finite number"));
                }
                row.scores.insert(name.clone(), score);
            }
        }
    }
    Ok(row)
}

/// The whole of `trace.csv`.
pub(super) fn trace(steps: &[Step]) -> String {
    const COLUMNS: [&str; 9] = [
        "step",
        "loss",
        "margin",
        "implicit_accuracy",
        "saturation",
        "error_chosen",
        "error_rejected",
        "gradient_norm",
        "learning_rate",
    ];
    let mut text = line(COLUMNS.into_iter());
    for step in steps {
        let optional = |value: Option<f64>| value.map(six_digits).unwrap_or_default();
        let fields = [
            step.step.to_string(),
            six_digits(step.loss),
            optional(step.margin),
            optional(step.implicit_accuracy),
            optional(step.saturation),
            optional(step.error_chosen),
            optional(step.error_rejected),
            six_digits(step.gradient_norm),
            six_digits(step.learning_rate),
        ];
        text.push_str(&line(fields.iter().map(String::as_str)));
    }
    text
}
