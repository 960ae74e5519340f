//! Prompt sets in PartiPrompts' columns: Prompt, Category, Challenge, Note, separated by tabs.
//!
//! Quotation marks mean nothing special: in the published file a prompt that begins with one
//! (`"G I G G L E" painted in …`) keeps it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result, nearest};
use crate::units::Digest;

/// The SHA-256 of PartiPrompts.tsv as published: 1,632 prompts (google-research/parti).
pub const PARTI_PROMPTS: &str = "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb";

const HEADER: [&str; 4] = ["Prompt", "Category", "Challenge", "Note"];

/// One prompt of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What is asked for.
    pub text: String,
    /// What it is about.
    pub category: String,
    /// What makes it hard.
    pub challenge: String,
    /// A remark; often empty.
    pub note: String,
}

/// The prompts of one file, in its order; a prompt's place is its number in every record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// The digest of the file's bytes.
    pub digest: Digest,
}

impl PromptSet {
    /// How many prompts each category holds.
    pub fn categories(&self) -> BTreeMap<&str, usize> {
        count(self.prompts.iter().map(|prompt| prompt.category.as_str()))
    }

    /// How many prompts each challenge holds.
    pub fn challenges(&self) -> BTreeMap<&str, usize> {
        count(self.prompts.iter().map(|prompt| prompt.challenge.as_str()))
    }
}

fn count<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}

/// Reads a prompt file.
///
/// # Errors
/// [`Error::Io`] where it cannot be read; [`Error::Data`], with the line, where it is not such a table.
pub fn read(path: impl AsRef<Path>) -> Result<PromptSet> {
    let path = path.as_ref();
    parse(&std::fs::read(path).map_err(Error::io("read", path))?, path)
}

/// Reads prompts from a file's bytes; `path` names them in messages.
///
/// # Errors
/// [`Error::Data`], with the line, where they are not such a table.
pub fn parse(bytes: &[u8], path: impl AsRef<Path>) -> Result<PromptSet> {
    let fault = |message: String| Error::data(path.as_ref(), message);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        fault(format!("line {line}: expected UTF-8 text, got other bytes; save the file as UTF-8"))
    })?;
    let mut lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate();
    let header: Vec<&str> = lines.next().map(|(_, line)| line.split('\t').collect()).unwrap_or_default();
    let mut places = [0; 4];
    for (place, name) in places.iter_mut().zip(HEADER) {
        *place = header.iter().position(|column| *column == name).ok_or_else(|| {
            let near = nearest(name, header.iter().copied()).map(|near| format!(" ({near:?} is near)"));
            fault(format!(
                "line 1: expected the columns {} separated by tabs, got {header:?}: {name} is missing{}; \
                 give the file PartiPrompts' header line",
                HEADER.join(", "),
                near.unwrap_or_default()
            ))
        })?;
    }
    let mut prompts = Vec::new();
    let mut seen = BTreeMap::new();
    for (index, line) in lines {
        let number = index + 1;
        if line.trim().is_empty() {
            continue;
        }
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != header.len() {
            return Err(fault(format!(
                "line {number}: expected {} fields separated by tabs, got {}: {line:?}; \
                 an empty note still needs its tab",
                header.len(),
                fields.len()
            )));
        }
        let [prompt, category, challenge, note] = places.map(|place| fields[place].to_owned());
        if prompt.trim().is_empty() {
            return Err(fault(format!(
                "line {number}: expected a prompt, got an empty field; remove the line"
            )));
        }
        if let Some(first) = seen.insert(prompt.clone(), number) {
            return Err(fault(format!(
                "line {number}: the prompt {prompt:?} stands on line {first} already, and would count twice; \
                 remove one of the two"
            )));
        }
        prompts.push(Prompt { text: prompt, category, challenge, note });
    }
    if prompts.is_empty() {
        return Err(fault("expected at least one prompt below the header, got none".into()));
    }
    Ok(PromptSet { prompts, digest: Digest::of(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Prompt\tCategory\tChallenge\tNote\na red circle\tIllustrations\tBasic\t\n\
        \"G I G G L E\" on a wall\tIllustrations\tWriting & Symbols\tas published\n";

    #[test]
    fn prompts_are_read_as_they_stand() {
        let set = parse(TABLE.as_bytes(), "prompts.tsv").unwrap();
        assert_eq!(set.prompts[1].text, "\"G I G G L E\" on a wall");
        assert_eq!(set.prompts[1].note, "as published");
        assert_eq!(set.categories(), BTreeMap::from([("Illustrations", 2)]));
        assert_eq!(set.challenges()["Basic"], 1);
        assert_eq!(set.digest, Digest::of(TABLE.as_bytes()));
        let windows = TABLE.replace('\n', "\r\n");
        assert_eq!(parse(windows.as_bytes(), "prompts.tsv").unwrap().prompts, set.prompts);
    }

    #[test]
    fn bad_tables_are_refused_with_their_line() {
        let message = |text: &[u8]| parse(text, "prompts.tsv").unwrap_err().to_string();
        let cases: [(Vec<u8>, &[&str]); 6] = [
            (
                TABLE.replace("Category", "Categories").into(),
                &["line 1", "Category is missing", "\"Categories\""],
            ),
            (TABLE.replace("\tBasic", "").into(), &["line 2", "4 fields", "got 3"]),
            (TABLE.replace("a red circle", " ").into(), &["line 2", "empty"]),
            ([TABLE, "a red circle\tX\tY\t\n"].concat().into(), &["line 4", "line 2 already"]),
            ([TABLE.as_bytes(), b"\xff\xfe"].concat(), &["line 4", "UTF-8"]),
            (TABLE.lines().next().unwrap_or_default().into(), &["at least one prompt"]),
        ];
        for (text, parts) in cases {
            let message = message(&text);
            assert!(
                message.starts_with("prompts.tsv: ") && parts.iter().all(|p| message.contains(p)),
                "{message}"
            );
        }
    }
}
