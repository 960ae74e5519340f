//! Rows as a CSV table, one a call.

use crate::error::{Error, Result};
use crate::units::Digest;

use super::{Order, Outcome, Row, Slot};

/// The columns, in their order. `reason` holds the judge's own words where they are no verdict, or why there are none.
pub const COLUMNS: [&str; 16] = [
    "user",
    "prompt",
    "left",
    "right",
    "order",
    "repeat",
    "shots",
    "judge",
    "version",
    "template",
    "state",
    "verdict",
    "log_odds",
    "tokens_in",
    "tokens_out",
    "reason",
];

/// The table of some rows.
///
/// # Errors
/// Where a field cannot be written, which no text is known to cause.
pub fn write(rows: &[Row]) -> Result<String> {
    let fault = |fault: csv::Error| Error::Judge(format!("judgements cannot be written as CSV: {fault}"));
    let mut writer =
        csv::WriterBuilder::new().terminator(csv::Terminator::Any(b'\n')).from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(fault)?;
    for row in rows {
        let (verdict, log_odds) = match row.outcome {
            Outcome::Verdict { slot, log_odds } => (slot.letter(), log_odds),
            _ => ("", None),
        };
        let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
        let (repeat, shots) = (row.repeat.to_string(), row.shots.to_string());
        let log_odds = log_odds.map_or_else(String::new, |odds| odds.to_string());
        writer
            .write_record([
                row.user.as_str(),
                &row.prompt,
                &row.left,
                &row.right,
                row.order.name(),
                &repeat,
                &shots,
                &row.judge,
                &row.version,
                row.template.hex(),
                row.outcome.state(),
                verdict,
                &log_odds,
                &number(row.tokens_in),
                &number(row.tokens_out),
                row.outcome.reason(),
            ])
            .map_err(fault)?;
    }
    let bytes = writer.into_inner().map_err(|fault| Error::Judge(fault.to_string()))?;
    String::from_utf8(bytes).map_err(|fault| Error::Judge(fault.to_string()))
}

/// The rows of a table that [`write()`] wrote; `origin` names it in messages.
///
/// # Errors
/// [`Error::Data`] with the row that is none.
pub fn read(text: &str, origin: &str) -> Result<Vec<Row>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(|fault| Error::data(origin, fault.to_string()))?;
    if header.iter().ne(COLUMNS) {
        let got: Vec<&str> = header.iter().collect();
        return Err(Error::data(
            origin,
            format!(
                "expected the columns {} of a table of judgements, got {}; make it again with `ppd judge`",
                COLUMNS.join(","),
                got.join(",")
            ),
        ));
    }
    let mut rows = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let fault = |message: String| Error::data(origin, format!("row {}: {message}", index + 1));
        let record = record.map_err(|cause| fault(cause.to_string()))?;
        rows.push(row(&record).map_err(fault)?);
    }
    Ok(rows)
}

fn row(record: &csv::StringRecord) -> Result<Row, String> {
    let text = |index: usize| record[index].to_owned();
    let expected = |index: usize, what: &str| {
        format!("expected {what} in `{}`, got {:?}", COLUMNS[index], &record[index])
    };
    let whole = |index: usize| record[index].parse::<u32>().map_err(|_| expected(index, "a whole number"));
    let order = Order::ALL.into_iter().find(|order| order.name() == &record[4]);
    let log_odds = match &record[12] {
        "" => None,
        number => {
            let number = number.parse::<f64>().ok().filter(|number| number.is_finite());
            Some(number.ok_or_else(|| expected(12, "a number"))?)
        }
    };
    let reason = text(15);
    let outcome = match (&record[10], &record[11]) {
        ("verdict", "A") => Outcome::Verdict { slot: Slot::A, log_odds },
        ("verdict", "B") => Outcome::Verdict { slot: Slot::B, log_odds },
        ("verdict", _) => return Err(expected(11, "A or B")),
        ("refusal", _) => Outcome::Refusal { raw: reason },
        ("unreadable", _) => Outcome::Unreadable { raw: reason },
        ("transport-error", _) => Outcome::TransportError { reason },
        ("over-budget", _) => Outcome::OverBudget { reason },
        _ => return Err(expected(10, &Outcome::STATES.join(", "))),
    };
    let tokens = |index: usize| match &record[index] {
        "" => Ok(None),
        number => number.parse::<u64>().map(Some).map_err(|_| expected(index, "a whole number")),
    };
    Ok(Row {
        user: text(0),
        prompt: text(1),
        left: text(2),
        right: text(3),
        order: order.ok_or_else(|| expected(4, "left-first or right-first"))?,
        repeat: whole(5)?,
        shots: whole(6)?,
        judge: text(7),
        version: text(8),
        template: Digest::try_from(text(9)).map_err(|fault| fault.to_string())?,
        outcome,
        tokens_in: tokens(13)?,
        tokens_out: tokens(14)?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A row to change.
    pub(in crate::judgement) fn row() -> Row {
        Row {
            user: "ann".into(),
            prompt: "a \"red\", star".into(),
            left: "l/0.png".into(),
            right: "r/0.png".into(),
            order: Order::LeftFirst,
            repeat: 0,
            shots: 4,
            judge: "openai m".into(),
            version: "v".into(),
            template: Digest::of(b"t"),
            outcome: Outcome::Verdict { slot: Slot::A, log_odds: Some(0.1 + 0.2) },
            tokens_in: Some(100),
            tokens_out: None,
        }
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let outcomes = [
            row().outcome,
            Outcome::Verdict { slot: Slot::B, log_odds: None },
            Outcome::Refusal { raw: "I will not,\nsays \"it\"\r\n".into() },
            Outcome::Unreadable { raw: String::new() },
            Outcome::TransportError { reason: "500".into() },
            Outcome::OverBudget { reason: "calls".into() },
        ];
        let rows: Vec<Row> = outcomes.into_iter().map(|outcome| Row { outcome, ..row() }).collect();
        let text = write(&rows).unwrap();
        assert_eq!(read(&text, "t").unwrap(), rows);
        for (from, to, part) in [
            ("left-first", "left", "order"),
            ("verdict,A", "verdict,C", "A or B"),
            (",refusal,", ",tired,", "transport-error"),
            (",100,", ",many,", "tokens_in"),
            ("user,", "person,", "ppd judge"),
        ] {
            let message = read(&text.replacen(from, to, 1), "t.csv").unwrap_err().to_string();
            assert!(message.contains("t.csv") && message.contains(part), "{message}");
        }
    }
}
