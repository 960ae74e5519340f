//! A small table that knows its numbers: one model, written as Markdown, CSV and booktabs LaTeX.
//!
//! A cell keeps its estimate, not its text: Markdown and LaTeX round it, the CSV gives value, low and high apart.

use super::panel::number;
use crate::stats::Estimate;
use crate::stats::crossed::{CONDITIONAL, LEAST_SEEDS};

/// What stands in one place of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A number without an interval: a count, or somebody else's result.
    Number {
        /// The number.
        value: f64,
        /// Digits after the point.
        decimals: usize,
    },
    /// A number with its interval.
    Estimate {
        /// The estimate.
        estimate: Estimate,
        /// Digits after the point, of the value and of both ends.
        decimals: usize,
        /// Printed bold: the best of its column, or a claim that holds.
        bold: bool,
    },
    /// Words that should catch the eye.
    Strong(String),
    /// Nothing: printed as a dash, never as 0.
    Missing,
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Words that should catch the eye.
    pub fn strong(text: impl Into<String>) -> Self {
        Self::Strong(text.into())
    }

    /// A number without an interval; missing where there is none.
    pub fn number(value: Option<f64>, decimals: usize) -> Self {
        value.map_or(Self::Missing, |value| Self::Number { value, decimals })
    }

    /// A number with its interval; missing where there is none.
    pub fn estimate(estimate: Option<Estimate>, decimals: usize) -> Self {
        estimate.map_or(Self::Missing, |estimate| Self::Estimate { estimate, decimals, bold: false })
    }

    fn markdown(&self, brief: bool) -> String {
        match self {
            Self::Text(text) => text.replace('|', "\\|"),
            Self::Number { value, decimals } => number(*value, *decimals),
            Self::Estimate { estimate, decimals, bold } => {
                let value = number(estimate.value, *decimals);
                let value = if *bold { format!("**{value}**") } else { value };
                let interval = interval(estimate, *decimals).filter(|_| !brief);
                format!("{value}{}", interval.map_or(String::new(), |text| format!(" {text}")))
            }
            Self::Strong(text) => format!("**{}**", text.replace('|', "\\|")),
            Self::Missing => "–".into(),
        }
    }

    fn latex(&self, brief: bool) -> String {
        let minus = |text: String| text.replace('−', "$-$");
        match self {
            Self::Text(text) => latex_text(text),
            Self::Number { value, decimals } => minus(number(*value, *decimals)),
            Self::Estimate { estimate, decimals, bold } => {
                let value = minus(number(estimate.value, *decimals));
                let value = if *bold { format!("\\textbf{{{value}}}") } else { value };
                let interval = interval(estimate, *decimals).filter(|_| !brief);
                format!(
                    "{value}{}",
                    interval.map_or(String::new(), |text| format!(" {{\\scriptsize {}}}", minus(text)))
                )
            }
            Self::Strong(text) => format!("\\textbf{{{}}}", latex_text(text)),
            Self::Missing => "--".into(),
        }
    }
}

fn interval(estimate: &Estimate, decimals: usize) -> Option<String> {
    let both = estimate.low.is_finite() && estimate.high.is_finite();
    both.then(|| format!("[{}, {}]", number(estimate.low, decimals), number(estimate.high, decimals)))
}

/// How many digits after the point a column needs: two significant ones of its smallest interval half, at most four.
pub fn decimals_for<'a>(estimates: impl IntoIterator<Item = &'a Estimate>) -> usize {
    let smallest = estimates
        .into_iter()
        .map(Estimate::half_width)
        .filter(|half| half.is_finite() && *half > 0.0)
        .fold(f64::INFINITY, f64::min);
    if smallest.is_finite() { (1.0 - smallest.log10().floor()).clamp(0.0, 4.0) as usize } else { 2 }
}

/// What kind of thing a column holds, and so how it is aligned and how the CSV spreads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words, from the left.
    Words,
    /// Numbers, from the right; one CSV column.
    Numbers,
    /// Estimates, from the right; three CSV columns.
    Estimates,
}

/// What is to be said of intervals that tell nothing about other training seeds.
fn few_seeds() -> String {
    format!("Fewer than {LEAST_SEEDS} training seeds: intervals are over prompts alone, {CONDITIONAL}.")
}

/// A table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What the table shows, one sentence.
    pub caption: String,
    /// Column heads with what stands below them.
    pub columns: Vec<(String, Kind)>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Vec<Cell>>,
    /// Indices of rows above which a line is drawn in LaTeX.
    pub rules: Vec<usize>,
    /// Footnotes, each a sentence.
    pub notes: Vec<String>,
    /// Leaves intervals to the CSV.
    pub brief: bool,
}

impl Table {
    /// An empty table.
    pub fn new(caption: impl Into<String>, columns: Vec<(String, Kind)>) -> Self {
        Self {
            caption: caption.into(),
            columns,
            rows: Vec::new(),
            rules: Vec::new(),
            notes: Vec::new(),
            brief: false,
        }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a row is as long as the table is wide");
        self.rows.push(row);
    }

    /// Draws a line above the row that is added next.
    pub fn rule(&mut self) {
        self.rules.push(self.rows.len());
    }

    /// Adds a footnote, once.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Adds a footnote where an interval in any row but that of `exempt` is over prompts alone; the base,
    /// which trained nothing, has one model and lacks none.
    pub fn note_few_seeds(&mut self, exempt: Option<&str>) {
        let is_exempt = |row: &[Cell]| matches!((row.first(), exempt), (Some(Cell::Text(head)), Some(exempt)) if head == exempt);
        let is_conditional = |cell: &Cell| match cell {
            Cell::Estimate { estimate, .. } => {
                estimate.note.as_deref().is_some_and(|note| note.contains(CONDITIONAL))
            }
            _ => false,
        };
        if self.rows.iter().filter(|row| !is_exempt(row)).flatten().any(is_conditional) {
            self.note(few_seeds());
        }
    }

    /// Everything as JSON, numbers in full precision: an estimate is an object of value, low and high, what is missing null.
    pub fn json(&self) -> serde_json::Value {
        use serde_json::json;
        let value = |cell: &Cell| match cell {
            Cell::Text(text) | Cell::Strong(text) => json!(text),
            Cell::Number { value, .. } => json!(value),
            Cell::Estimate { estimate, .. } => {
                json!({"value": estimate.value, "low": estimate.low, "high": estimate.high})
            }
            Cell::Missing => serde_json::Value::Null,
        };
        json!({
            "caption": self.caption,
            "columns": self.columns.iter().map(|(head, _)| head).collect::<Vec<_>>(),
            "rows": self.rows.iter().map(|row| row.iter().map(value).collect()).collect::<Vec<Vec<_>>>(),
            "notes": self.notes,
        })
    }

    /// GitHub-flavoured Markdown: caption, table, footnotes.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("{}\n\n", self.caption);
        text += &line(self.columns.iter().map(|(head, _)| head.replace('|', "\\|")).collect());
        text += &line(
            self.columns
                .iter()
                .map(|(_, kind)| if *kind == Kind::Words { ":--".into() } else { "--:".into() })
                .collect(),
        );
        for row in &self.rows {
            text += &line(row.iter().map(|cell| cell.markdown(self.brief)).collect());
        }
        if !self.notes.is_empty() {
            text += "\n";
            text += &self.notes.iter().map(|note| format!("- {note}\n")).collect::<String>();
        }
        text
    }

    /// CSV in full precision; a column of estimates becomes `head`, `head low` and `head high`.
    pub fn csv(&self) -> String {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let mut record: Vec<String> = Vec::new();
        for (head, kind) in &self.columns {
            record.push(head.clone());
            if *kind == Kind::Estimates {
                record.extend([format!("{head} low"), format!("{head} high")]);
            }
        }
        let mut write =
            |record: &[String]| writer.write_record(record).expect("memory takes every row of one length");
        write(&record);
        for row in &self.rows {
            record.clear();
            for (cell, (_, kind)) in row.iter().zip(&self.columns) {
                let spread = *kind == Kind::Estimates;
                match cell {
                    Cell::Text(text) | Cell::Strong(text) => record.push(text.clone()),
                    Cell::Number { value, .. } => record.push(exact(*value)),
                    Cell::Estimate { estimate, .. } => {
                        record.push(exact(estimate.value));
                        if spread {
                            record.extend([exact(estimate.low), exact(estimate.high)]);
                        }
                        continue;
                    }
                    Cell::Missing => record.push(String::new()),
                }
                if spread {
                    record.extend([String::new(), String::new()]);
                }
            }
            write(&record);
        }
        let bytes = writer.into_inner().expect("memory can be flushed");
        String::from_utf8(bytes).expect("a table is text")
    }

    /// A booktabs `tabular` with the footnotes below it; `\usepackage{booktabs}` is all it needs.
    pub fn latex(&self) -> String {
        let line = |cells: Vec<String>| format!("{} \\\\\n", cells.join(" & "));
        let layout: String =
            self.columns.iter().map(|(_, kind)| if *kind == Kind::Words { 'l' } else { 'r' }).collect();
        let mut text = format!("% {}\n\\begin{{tabular}}{{{layout}}}\n\\toprule\n", self.caption);
        text += &line(self.columns.iter().map(|(head, _)| latex_text(head)).collect());
        text += "\\midrule\n";
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 && self.rules.contains(&index) {
                text += "\\midrule\n";
            }
            text += &line(row.iter().map(|cell| cell.latex(self.brief)).collect());
        }
        text += "\\bottomrule\n\\end{tabular}\n";
        for note in &self.notes {
            text += &format!("\\par\\footnotesize {}\n", latex_text(note));
        }
        text
    }
}

/// A number for a CSV: at most six significant digits, as in the records; empty where there is none.
fn exact(value: f64) -> String {
    if value.is_finite() { crate::record::six_digits(value) } else { String::new() }
}

/// Text with LaTeX's own characters escaped and this project's symbols spelled for it.
fn latex_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\textbackslash{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                escaped.push('\\');
                escaped.push(character);
            }
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '–' => escaped.push_str("--"),
            '−' => escaped.push_str("$-$"),
            '×' => escaped.push_str("$\\times$"),
            '±' => escaped.push_str("$\\pm$"),
            '½' => escaped.push_str("$\\frac12$"),
            'β' => escaped.push_str("$\\beta$"),
            'Δ' => escaped.push_str("$\\Delta$"),
            'ρ' => escaped.push_str("$\\rho$"),
            '≥' => escaped.push_str("$\\geq$"),
            '≤' => escaped.push_str("$\\leq$"),
            '>' => escaped.push_str("$>$"),
            '<' => escaped.push_str("$<$"),
            '*' => escaped.push_str("$^*$"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Method;

    fn sample() -> Table {
        let estimate = |value, low, high| Estimate::new(value, (low, high), 0.95, Method::CrossedBootstrap);
        let mut table = Table::new(
            "Mean | scores.",
            vec![
                ("method".into(), Kind::Words),
                ("clip".into(), Kind::Estimates),
                ("paper".into(), Kind::Numbers),
            ],
        );
        table.push(vec![
            Cell::text("base & co_1"),
            Cell::estimate(Some(estimate(-1.5, -2.25, -0.5)), 1),
            Cell::number(Some(31.97), 2),
        ]);
        table.rule();
        let best = estimate(2.0, f64::NEG_INFINITY, f64::INFINITY);
        table.push(vec![
            Cell::text("a|b"),
            Cell::Estimate { estimate: best, decimals: 1, bold: true },
            Cell::number(None, 2),
        ]);
        table.push(vec![Cell::text("none, yet"), Cell::estimate(None, 1), Cell::Missing]);
        table.note("100 % of nothing.");
        table.note("100 % of nothing.");
        table
    }

    #[test]
    fn markdown_is_aligned_and_escaped() {
        let expected = "Mean | scores.\n\n| method | clip | paper |\n| :-- | --: | --: |\n\
            | base & co_1 | −1.5 [−2.2, −0.5] | 31.97 |\n| a\\|b | **2.0** | – |\n| none, yet | – | – |\n\n\
            - 100 % of nothing.\n";
        assert_eq!(sample().markdown(), expected);
    }

    #[test]
    fn csv_spreads_intervals_and_leaves_what_is_missing_empty() {
        let expected = "method,clip,clip low,clip high,paper\nbase & co_1,-1.5,-2.25,-0.5,31.97\n\
            a|b,2,,,\n\"none, yet\",,,,\n";
        assert_eq!(sample().csv(), expected);
    }

    #[test]
    fn json_keeps_numbers_whole_and_says_null_where_there_is_none() {
        let json = sample().json();
        assert_eq!(json["columns"], serde_json::json!(["method", "clip", "paper"]));
        assert_eq!(json["rows"][0][1], serde_json::json!({"value": -1.5, "low": -2.25, "high": -0.5}));
        assert!(json["rows"][1][1]["low"].is_null() && json["rows"][2][2].is_null());
    }

    #[test]
    fn latex_is_booktabs() {
        let latex = sample().latex();
        for piece in [
            "\\begin{tabular}{lrr}\n\\toprule\nmethod & clip & paper \\\\\n\\midrule\n",
            "base \\& co\\_1 & $-$1.5 {\\scriptsize [$-$2.2, $-$0.5]} & 31.97 \\\\\n\\midrule\n",
            "a|b & \\textbf{2.0} & -- \\\\",
            "\\footnotesize 100 \\% of nothing.",
        ] {
            assert!(latex.contains(piece), "{piece} is not in\n{latex}");
        }
    }

    #[test]
    fn digits_follow_the_smallest_interval() {
        let with_half = |half: f64| Estimate::new(0.0, (-half, half), 0.95, Method::Basic);
        assert_eq!(decimals_for(&[with_half(0.034), with_half(2.0)]), 3);
        assert_eq!(decimals_for(&[with_half(1.4)]), 1);
        assert_eq!(decimals_for(&[with_half(20.0)]), 0);
        assert_eq!(decimals_for(&[with_half(f64::INFINITY), with_half(0.0)]), 2);
    }
}
