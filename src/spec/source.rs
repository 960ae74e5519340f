//! Layers of TOML merged into one tree that still knows from which file and line each value came.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error as TomlError};

use crate::error::{Error, Result, nearest};

/// A node of the merged tree.
pub(super) type Node<'a> = Spanned<DeValue<'a>>;

/// Everything that is wrong with an experiment, so that all of it is said at once.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    /// Adds one, unless it is already there.
    pub(super) fn push(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// Adds what an error says, where there is one.
    pub(super) fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error.to_string())).ok()
    }

    /// All problems, a line each.
    pub(super) fn into_lines(self) -> Vec<String> {
        self.0
    }

    /// All problems as one error.
    pub(super) fn finish(self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(Error::Spec(self.0.into_iter().next().unwrap_or_default())),
            count => Err(Error::Spec(format!("{count} problems:\n  - {}", self.0.join("\n  - ")))),
        }
    }
}

/// The texts behind a tree. Each is padded so that a position says which text it is in.
#[derive(Debug, Default)]
pub(super) struct Sources {
    entries: Vec<Source>,
    end: usize,
}

#[derive(Debug)]
struct Source {
    name: String,
    padded: String,
    start: usize,
    has_lines: bool,
}

impl Sources {
    /// Adds a file's text; the result names it for [`Sources::parse`].
    pub(super) fn add_file(&mut self, name: impl Into<String>, text: &str) -> usize {
        self.add(name.into(), text, true)
    }

    /// Adds one `key=value` of the command line. A value that is not TOML is taken as a string.
    ///
    /// # Errors
    /// Where there is no `=`, or no key before it.
    pub(super) fn add_override(&mut self, setting: &str) -> Result<usize> {
        let refuse =
            || Error::Spec(format!("--set {setting}: expected key=value, for example --set train.steps=100"));
        let (key, value) = setting.split_once('=').ok_or_else(refuse)?;
        let (key, value) = (key.trim(), value.trim());
        if DeTable::parse(&format!("{key} = 0")).is_err() {
            return Err(refuse());
        }
        let plain = format!("{key} = {value}");
        let text = if DeTable::parse(&plain).is_ok() { plain } else { format!("{key} = {value:?}") };
        Ok(self.add(format!("--set {setting}"), &text, false))
    }

    fn add(&mut self, name: String, text: &str, has_lines: bool) -> usize {
        let start = self.end;
        self.end += text.len() + 1;
        let padded = format!("{:start$}{text}", "");
        self.entries.push(Source { name, padded, start, has_lines });
        self.entries.len() - 1
    }

    /// The tree of one text.
    ///
    /// # Errors
    /// Where it is not TOML; the message names file and line.
    pub(super) fn parse(&self, index: usize) -> Result<DeTable<'_>> {
        DeTable::parse(&self.entries[index].padded)
            .map(Spanned::into_inner)
            .map_err(|fault| Error::Spec(self.explain(&fault, None)))
    }

    /// `file:line` of a position.
    pub(super) fn place(&self, position: usize) -> String {
        if let Some(name) = self.override_at(position) {
            return name.to_owned();
        }
        let found = self.entries.iter().rev().find(|source| source.start <= position);
        let Some(source) = found else { return "?".into() };
        let before = &source.padded.as_bytes()[source.start..position.min(source.padded.len())];
        format!("{}:{}", source.name, 1 + before.iter().filter(|&&byte| byte == b'\n').count())
    }

    /// What messages call a text.
    pub(super) fn name_of(&self, index: usize) -> String {
        self.entries.get(index).map_or_else(String::new, |source| source.name.clone())
    }

    /// A fault with its file, its line, and the nearest known word where a word is unknown.
    fn explain(&self, fault: &TomlError, tree: Option<&Node<'_>>) -> String {
        let message = fault.message().trim();
        let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let mut span = fault.span();
        let mut said = message.to_owned();
        for (unknown, word) in [("unknown field", "unknown key"), ("unknown variant", "unknown value")] {
            if let Some(rest) = message.strip_prefix(unknown) {
                said = format!("{word}{rest}");
                let typed = words.first().copied().unwrap_or_default();
                if let Some(near) = nearest(typed, words.iter().skip(1).copied()) {
                    said.push_str(&format!("; did you mean `{near}`?"));
                }
                // Inside a tagged table the library only knows where the table stands; the key stands nearer.
                let key = if word == "unknown key" { typed } else { "kind" };
                span = span.clone().and_then(|span| tree.and_then(|tree| key_in(tree, &span, key))).or(span);
            }
        }
        let Some(span) = span else { return said };
        // Of a tagged table the library only knows where it stands, which may be a file that is not at fault.
        let tree = tree.filter(|_| self.override_at(span.start).is_none());
        let changes = tree.map_or_else(String::new, |tree| {
            let mut changes: Vec<&str> = Vec::new();
            visit(tree, &mut |node| {
                if node.span() == span {
                    visit(node, &mut |part| changes.extend(self.override_at(part.span().start)));
                }
            });
            changes.dedup();
            changes.iter().map(|change| format!(", changed by {change}")).collect()
        });
        format!("{}{changes}: {said}", self.place(span.start))
    }

    /// The override that wrote what stands at a position; `None` for a file.
    fn override_at(&self, position: usize) -> Option<&str> {
        let source = self.entries.iter().rev().find(|source| source.start <= position)?;
        (!source.has_lines).then_some(source.name.as_str())
    }

    /// A typed value of a node; what is wrong with it goes to `problems`.
    pub(super) fn read<'a, T: Deserialize<'a>>(&self, node: Node<'a>, problems: &mut Problems) -> Option<T> {
        let tree = node.clone();
        let deserializer = toml::de::ValueDeserializer::from(node);
        T::deserialize(deserializer).map_err(|fault| problems.push(self.explain(&fault, Some(&tree)))).ok()
    }

    /// Lays `over` upon `base`: tables merge, everything else is replaced.
    ///
    /// Lists of named tables (`[[methods]]`) merge by name, and a table over such a list reaches its entries by
    /// name, which is what `--set methods.ppd.objective.beta=0.2` means. A table whose `kind` changes is replaced.
    pub(super) fn merge<'a>(&self, base: &mut DeTable<'a>, over: DeTable<'a>, problems: &mut Problems) {
        for (key, value) in over {
            match (base.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut), value.get_ref()) {
                (Some(DeValue::Table(below)), DeValue::Table(above)) if !changes_kind(below, above) => {
                    self.merge(below, above.clone(), problems);
                }
                (Some(DeValue::Array(entries)), DeValue::Table(above)) if entries.iter().all(is_named) => {
                    for (name, change) in above.clone() {
                        let position =
                            entries.iter().position(|entry| name_of(entry) == Some(name.get_ref()));
                        match (
                            position.and_then(|at| entries.get_mut(at)).map(Spanned::get_mut),
                            change.into_inner(),
                        ) {
                            (Some(DeValue::Table(entry)), DeValue::Table(change)) => {
                                self.merge(entry, change, problems);
                            }
                            _ => {
                                let known: Vec<&str> = entries.iter().filter_map(name_of).collect();
                                let near = nearest(name.get_ref(), known.iter().copied());
                                problems.push(format!(
                                    "{}: no table named `{}` in `{}`, expected one of {}{}",
                                    self.place(name.span().start),
                                    name.get_ref(),
                                    key.get_ref(),
                                    known.join(", "),
                                    near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
                                ));
                            }
                        }
                    }
                }
                (Some(DeValue::Array(entries)), DeValue::Array(above))
                    if !above.is_empty() && entries.iter().chain(above.iter()).all(is_named) =>
                {
                    for entry in above.clone() {
                        let position = entries.iter().position(|below| name_of(below) == name_of(&entry));
                        match (
                            position.and_then(|at| entries.get_mut(at)).map(Spanned::get_mut),
                            entry.get_ref(),
                        ) {
                            (Some(DeValue::Table(below)), DeValue::Table(change)) => {
                                self.merge(below, change.clone(), problems);
                            }
                            _ => entries.push(entry),
                        }
                    }
                }
                _ => {
                    base.remove(key.get_ref().as_ref());
                    base.insert(key, value);
                }
            }
        }
    }
}

/// Whether a table over another is a different variant of a tagged choice.
fn changes_kind(below: &DeTable<'_>, above: &DeTable<'_>) -> bool {
    let kind =
        |table: &DeTable<'_>| table.get("kind").and_then(|kind| kind.get_ref().as_str().map(str::to_owned));
    kind(above).is_some_and(|new| kind(below).is_some_and(|old| old != new))
}

/// The `name` of a table.
pub(super) fn name_of<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    node.get_ref().as_table()?.get("name")?.get_ref().as_str()
}

fn is_named(node: &Node<'_>) -> bool {
    name_of(node).is_some()
}

/// Calls `each` with a node and everything in it.
fn visit<'n, 'a>(node: &'n Node<'a>, each: &mut impl FnMut(&'n Node<'a>)) {
    each(node);
    match node.get_ref() {
        DeValue::Table(table) => table.iter().for_each(|(_, value)| visit(value, each)),
        DeValue::Array(entries) => entries.iter().for_each(|entry| visit(entry, each)),
        _ => {}
    }
}

/// Where `key` stands in the table that spans `span`.
fn key_in(node: &Node<'_>, span: &Range<usize>, key: &str) -> Option<Range<usize>> {
    let here = || {
        node.get_ref().as_table()?.iter().find(|(name, _)| name.get_ref() == key).map(|(name, _)| name.span())
    };
    let inside = || match node.get_ref() {
        DeValue::Table(table) => table.iter().find_map(|(_, value)| key_in(value, span, key)),
        DeValue::Array(entries) => entries.iter().find_map(|entry| key_in(entry, span, key)),
        _ => None,
    };
    (node.span() == *span).then(here).flatten().or_else(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Whole {
        steps: u32,
        methods: Vec<Method>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Method {
        name: String,
        objective: Objective,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
    enum Objective {
        Dpo { beta: f64 },
        Sft {},
    }

    const FILE: &str = "steps = 3\n\n[[methods]]\nname = \"ppd\"\nobjective = { kind = \"dpo\", beta = 0.5 }\n\
                        [[methods]]\nname = \"sft\"\nobjective = { kind = \"sft\" }\n";

    fn load(file: &str, settings: &[&str]) -> Result<Whole> {
        let mut sources = Sources::default();
        sources.add_file("other.toml", "a = 1\nb = 2\n");
        let base = sources.add_file("study.toml", file);
        let overrides: Vec<usize> =
            settings.iter().map(|s| sources.add_override(s)).collect::<Result<_>>()?;
        let mut problems = Problems::default();
        let mut tree = sources.parse(base)?;
        for index in overrides {
            sources.merge(&mut tree, sources.parse(index)?, &mut problems);
        }
        let whole = sources.read(Spanned::new(0..0, DeValue::Table(tree)), &mut problems);
        problems.finish()?;
        Ok(whole.expect("no problem, so a value"))
    }

    #[test]
    fn overrides_reach_entries_by_name() {
        let whole = load(FILE, &["steps=10", "methods.ppd.objective.beta=0.2"]).unwrap();
        assert_eq!(whole.steps, 10);
        assert_eq!(whole.methods[0].objective, Objective::Dpo { beta: 0.2 });
        let whole = load(FILE, &["methods.sft.objective={kind=\"dpo\", beta=1}"]).unwrap();
        assert_eq!(whole.methods[1].objective, Objective::Dpo { beta: 1.0 });
        let whole = load(FILE, &["methods.sft.name=other"]).unwrap();
        assert_eq!(whole.methods[1].name, "other");
    }

    #[test]
    fn faults_name_their_place_and_the_nearest_word() {
        let cases: [(&str, &[&str], &[&str]); 10] = [
            (
                &FILE.replace("steps", "stepps"),
                &[],
                &["study.toml:1", "unknown key `stepps`", "did you mean `steps`"],
            ),
            (&FILE.replace("beta", "betta"), &[], &["study.toml:5", "`betta`", "did you mean `beta`"]),
            (
                &FILE.replace("\"sft\" }", "\"stf\" }"),
                &[],
                &["study.toml:8", "unknown value `stf`", "did you mean `sft`"],
            ),
            (&FILE.replace("= 3", "= \"x\""), &[], &["study.toml:1", "invalid type"]),
            (&FILE.replace("= 3", "= = 3"), &[], &["study.toml:1"]),
            (FILE, &["methods.pdp.objective.beta=1"], &["--set methods.pdp", "did you mean `ppd`"]),
            (
                FILE,
                &["methods.ppd.objective.betta=1"],
                &["--set methods.ppd.objective.betta=1", "did you mean `beta`"],
            ),
            (
                FILE,
                &["methods.ppd.objective.beta=x"],
                &["study.toml:5", "changed by --set methods.ppd.objective.beta=x", "invalid type"],
            ),
            (FILE, &["stebs=1"], &["--set stebs=1: unknown key `stebs`", "did you mean `steps`"]),
            (FILE, &["steps"], &["--set steps: expected key=value"]),
        ];
        for (file, settings, expected) in cases {
            let message = load(file, settings).unwrap_err().to_string();
            for part in expected {
                assert!(message.contains(part), "{message} lacks {part}");
            }
        }
    }
}
