//! What is true of the pairs that judges were asked about, where it is known: a table beside the judgements. Where people
//! chose, their utilities are unknown, and so are the probabilities of their choices.

use crate::error::{Error, Result};

/// The columns of a table of truths.
const COLUMNS: [&str; 7] = ["comparison", "user", "prompt", "left", "right", "probability", "choice"];

/// What is true of one pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    /// What it was asked for.
    pub comparison: String,
    /// The user.
    pub user: String,
    /// The prompt of both images.
    pub prompt: String,
    /// The image whose win rate is counted.
    pub left: String,
    /// The other one.
    pub right: String,
    /// The probability that the user chooses the left one, where her utilities are known.
    pub probability: Option<f64>,
    /// Whether she chose the left one, where she did choose.
    pub choice: Option<bool>,
}

impl Truth {
    /// What a judgement of the same pair has too.
    pub fn key(&self) -> (&str, &str, &str, &str) {
        (&self.user, &self.prompt, &self.left, &self.right)
    }

    /// ln P(left) − ln P(right), where it is known.
    pub fn log_odds(&self) -> Option<f64> {
        self.probability.map(|probability| probability.ln() - (1.0 - probability).ln())
    }
}

/// The table in CSV.
///
/// # Errors
/// None for plain text.
pub fn write(truths: &[Truth]) -> Result<String> {
    let fault = |fault: csv::Error| Error::Judge(fault.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(fault)?;
    for one in truths {
        let choice = one.choice.map_or("", |left| if left { "left" } else { "right" });
        let probability = one.probability.map(|probability| probability.to_string()).unwrap_or_default();
        let (user, prompt, left, right) = one.key();
        writer
            .write_record([&one.comparison, user, prompt, left, right, &probability, choice])
            .map_err(fault)?;
    }
    let bytes = writer.into_inner().map_err(|fault| Error::Judge(fault.to_string()))?;
    String::from_utf8(bytes).map_err(|fault| Error::Judge(fault.to_string()))
}

/// The truths of a table that [`write()`] wrote; `origin` names it in messages.
///
/// # Errors
/// [`Error::Data`] with the row that is none.
pub fn read(text: &str, origin: &str) -> Result<Vec<Truth>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(|fault| Error::data(origin, fault.to_string()))?;
    if header.iter().ne(COLUMNS) {
        let got: Vec<&str> = header.iter().collect();
        return Err(Error::data(
            origin,
            format!("expected the columns {}, got {}", COLUMNS.join(","), got.join(",")),
        ));
    }
    let mut truths = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let fault = |message: String| Error::data(origin, format!("row {}: {message}", index + 1));
        let record = record.map_err(|cause| fault(cause.to_string()))?;
        let probability = match &record[5] {
            "" => None,
            text => {
                let probability = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
                Some(probability.ok_or_else(|| {
                    fault(format!("expected a probability or nothing in `probability`, got {text:?}"))
                })?)
            }
        };
        let choice = match &record[6] {
            "" => None,
            "left" => Some(true),
            "right" => Some(false),
            other => {
                return Err(fault(format!("expected left, right or nothing in `choice`, got {other:?}")));
            }
        };
        let [comparison, user, prompt, left, right] = [0, 1, 2, 3, 4].map(|at| record[at].to_owned());
        truths.push(Truth { comparison, user, prompt, left, right, probability, choice });
    }
    Ok(truths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truths_are_written_and_read_back_and_odd_ones_refused() {
        let truth = |choice, probability| Truth {
            comparison: "PPD over Base".into(),
            user: "3".into(),
            prompt: "a \"red\", star".into(),
            left: "ppd/user-3/0/100".into(),
            right: "base/none/0/100".into(),
            probability,
            choice,
        };
        let truths = [
            truth(None, Some(0.25)),
            truth(Some(true), Some(1.0)),
            truth(Some(false), Some(0.1 + 0.2)),
            truth(Some(true), None),
        ];
        let text = write(&truths).unwrap();
        assert_eq!(read(&text, "t").unwrap(), truths);
        assert!((truths[0].log_odds().unwrap() + 3f64.ln()).abs() < 1e-12);
        assert_eq!(truths[3].log_odds(), None);
        for (from, to, message) in
            [("0.25", "1.25", "row 1"), (",left\n", ",both\n", "row 2"), ("choice", "chosen", "columns")]
        {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            let fault = read(&changed, "truth.csv").unwrap_err().to_string();
            assert!(fault.contains(message) && fault.contains("truth.csv"), "{fault}");
        }
    }
}
