//! Prompt sets in PartiPrompts' columns: Prompt, Category, Challenge, Note, separated by tabs.
//!
//! Quotation marks mean nothing special: in the published file a prompt that begins with one
//! (`"G I G G L E" painted in …`) keeps it. HPDv2's benchmark is read too: four JSON lists, one a style, whose names
//! become the categories.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result, nearest};
use crate::units::Digest;

/// The SHA-256 of PartiPrompts.tsv as published: 1,632 prompts (google-research/parti).
pub const PARTI_PROMPTS: &str = "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb";

/// The name that it is published under; a file of this name must be that file.
const PARTI_NAME: &str = "PartiPrompts.tsv";
/// HPDv2's styles, each a JSON list of 800 prompts, in the order of its benchmark.
pub const HPD_STYLES: [&str; 4] = ["anime", "concept-art", "paintings", "photo"];

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

/// Reads a prompt file: a table, a JSON list, or a folder with HPDv2's four lists.
///
/// # Errors
/// [`Error::Io`] where it cannot be read; [`Error::Data`], with the line, where it is neither, or where it is called
/// `PartiPrompts.tsv` and is not the published file.
pub fn read(path: impl AsRef<Path>) -> Result<PromptSet> {
    let path = path.as_ref();
    if path.is_dir() {
        return read_styles(path);
    }
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    if path.extension().is_some_and(|ending| ending == "json") {
        let style = path.file_stem().unwrap_or_default().to_string_lossy();
        return Ok(PromptSet { prompts: list(&bytes, &style, path)?, digest: Digest::of(&bytes) });
    }
    let set = parse(&bytes, path)?;
    if path.file_name().is_some_and(|name| name == PARTI_NAME) && set.digest.hex() != PARTI_PROMPTS {
        return Err(Error::data(
            path,
            format!(
                "is not PartiPrompts as published: expected SHA-256 {PARTI_PROMPTS}, got {} of {} bytes; fetch it again \
                 (`ppd fetch --only test`), or give another table another name",
                set.digest,
                bytes.len()
            ),
        ));
    }
    Ok(set)
}

/// HPDv2's lists in a folder, or in its folder `benchmark`.
fn read_styles(folder: &Path) -> Result<PromptSet> {
    let inner = folder.join("benchmark");
    let folder = if inner.is_dir() { inner.as_path() } else { folder };
    let (mut prompts, mut all) = (Vec::new(), Vec::new());
    for style in HPD_STYLES {
        let path = folder.join(format!("{style}.json"));
        let bytes = std::fs::read(&path).map_err(|fault| match fault.kind() {
            std::io::ErrorKind::NotFound => Error::data(
                folder,
                format!(
                    "expected HPDv2's prompts, {}, got no {style}.json; fetch them again, or name one file",
                    HPD_STYLES.map(|style| format!("{style}.json")).join(", ")
                ),
            ),
            _ => Error::io("read", &path)(fault),
        })?;
        prompts.extend(list(&bytes, style, &path)?);
        all.extend(bytes);
    }
    Ok(PromptSet { prompts, digest: Digest::of(&all) })
}

/// A JSON list of prompts of one style. A prompt may stand in it twice, as in the published lists: its place counts.
fn list(bytes: &[u8], style: &str, path: &Path) -> Result<Vec<Prompt>> {
    let texts: Vec<String> = serde_json::from_slice(bytes).map_err(|fault| {
        Error::data(path, format!("expected a JSON list of prompts such as [\"a cat\", \"a dog\"]: {fault}"))
    })?;
    if texts.is_empty() {
        return Err(Error::data(path, "expected at least one prompt, got an empty list"));
    }
    if let Some(place) = texts.iter().position(|text| text.trim().is_empty()) {
        return Err(Error::data(
            path,
            format!("entry {place}: expected a prompt, got an empty text; remove it"),
        ));
    }
    let prompt =
        |text| Prompt { text, category: style.to_owned(), challenge: String::new(), note: String::new() };
    Ok(texts.into_iter().map(prompt).collect())
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
    fn lists_of_styles_are_read_and_a_file_called_parti_must_be_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let message = |path: &Path| read(path).unwrap_err().to_string();
        std::fs::create_dir(at("benchmark")).unwrap();
        for (count, style) in HPD_STYLES.iter().enumerate() {
            assert!(message(folder.path()).contains(&format!("got no {style}.json")));
            let texts: Vec<String> = (0..=count).map(|number| format!("{style} {number}")).collect();
            let path = at("benchmark").join(format!("{style}.json"));
            std::fs::write(path, serde_json::to_string(&texts).unwrap()).unwrap();
        }
        let set = read(folder.path()).unwrap();
        assert_eq!(set.prompts.len(), 10);
        assert_eq!(set.prompts[1].text, "concept-art 0");
        assert_eq!(set.categories()["photo"], 4);
        let one = read(at("benchmark/photo.json")).unwrap();
        assert_eq!((one.prompts.len(), one.prompts[0].category.as_str()), (4, "photo"));
        for (text, part) in
            [("{}", "expected a JSON list"), ("[]", "at least one"), ("[\"a\", \" \"]", "entry 1")]
        {
            std::fs::write(at("bad.json"), text).unwrap();
            assert!(message(&at("bad.json")).contains(part));
        }
        std::fs::write(at(PARTI_NAME), TABLE).unwrap();
        let said = message(&at(PARTI_NAME));
        assert!(said.contains(PARTI_PROMPTS) && said.contains("ppd fetch --only test"), "{said}");
        std::fs::write(at("mine.tsv"), TABLE).unwrap();
        read(at("mine.tsv")).unwrap();
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
