//! The words around pictures: a text with fields in braces, and parts that stand once, several times, or not at all.
//!
//! What follows a line `{system}` is the system's message, and what follows a line `{user}` the user's. Lines between `{name}`
//! and `{/name}`, where `name` is a part of the [`Grammar`], stand as often as whoever fills the template says. `{{` and `}}` are
//! braces. What a template is about (which parts and fields there are) is for its user to say: see `embed` and `judge`.

use crate::error::{Error, Result, nearest};

/// Which parts and fields a kind of template has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grammar {
    /// The names of the parts; a part holds no other.
    pub parts: &'static [&'static str],
    /// The names of the fields, each with the only part that it may stand in, or with none where it may stand everywhere.
    pub fields: &'static [(&'static str, Option<&'static str>)],
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    system: Option<Vec<Section>>,
    user: Vec<Section>,
}

/// A template filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    /// The system's message, where there is one.
    pub system: Option<String>,
    /// The user's message.
    pub user: String,
}

/// Lines that stand once, or as often as their part.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    part: Option<&'static str>,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Words(String),
    Field(&'static str),
}

/// `First` to `Tenth`, then `11th`.
pub fn ordinal(number: usize) -> String {
    const WORDS: [&str; 10] =
        ["First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth", "Tenth"];
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    WORDS.get(number.wrapping_sub(1)).map_or_else(|| format!("{number}{ending}"), |word| (*word).to_owned())
}

impl Text {
    /// Reads a template; `origin` names it in messages.
    ///
    /// # Errors
    /// [`Error::Data`] with the line: an unknown field, one outside of its part, a part that does not end.
    pub fn parse(text: &str, origin: &str, grammar: Grammar) -> Result<Self> {
        let mut reader = Reader { origin, grammar, messages: vec![(Role::User, Vec::new())], open: None };
        for (i, line) in text.lines().enumerate() {
            reader.line(line, i + 1)?;
        }
        if let Some((part, opened, _)) = reader.open {
            return Err(reader.fault(opened, format!("`{{{part}}}` has no `{{/{part}}}` behind it")));
        }
        let (mut system, mut user) = (None, Vec::new());
        for (role, sections) in reader.messages {
            match role {
                Role::System => system = Some(sections),
                Role::User => user.extend(sections),
            }
        }
        Ok(Self { system, user })
    }

    /// How often some words stand in the user's message, in lines of `part` (`None`: outside of all parts); `None` where there
    /// are no such lines.
    pub fn count(&self, part: Option<&str>, words: &str) -> Option<usize> {
        let sections: Vec<&Section> = self.user.iter().filter(|section| section.part == part).collect();
        let pieces = || sections.iter().flat_map(|section| &section.pieces);
        pieces().next()?;
        let count = |piece: &Piece| match piece {
            Piece::Words(text) => text.matches(words).count(),
            Piece::Field(_) => 0,
        };
        Some(pieces().map(count).sum())
    }

    /// Whether a field stands in the user's message.
    pub fn has(&self, field: &str) -> bool {
        let pieces = self.user.iter().flat_map(|section| &section.pieces);
        pieces.into_iter().any(|piece| matches!(piece, Piece::Field(name) if *name == field))
    }

    /// The messages, where a part stands as often as `times` says and a field is what `value` says of it in the part's
    /// repetition of that index.
    pub fn fill(
        &self,
        times: impl Fn(&str) -> usize,
        mut value: impl FnMut(&'static str, usize) -> String,
    ) -> Filled {
        let mut text = |sections: &[Section]| {
            let mut whole = String::new();
            for section in sections {
                for index in 0..section.part.map_or(1, &times) {
                    for piece in &section.pieces {
                        match piece {
                            Piece::Words(words) => whole.push_str(words),
                            Piece::Field(field) => whole.push_str(&value(field, index)),
                        }
                    }
                }
            }
            whole.truncate(whole.trim_end_matches('\n').len());
            whole
        };
        Filled { system: self.system.as_deref().map(&mut text), user: text(&self.user) }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    System,
    User,
}

struct Reader<'a> {
    origin: &'a str,
    grammar: Grammar,
    messages: Vec<(Role, Vec<Section>)>,
    /// Of the open part, its name, its line and what it holds so far.
    open: Option<(&'static str, usize, Vec<Piece>)>,
}

impl Reader<'_> {
    fn fault(&self, line: usize, message: String) -> Error {
        Error::data(self.origin, format!("line {line}: {message}"))
    }

    /// The part that a line such as `{pair}` or `{/pair}` names.
    fn part(&self, line: &str) -> Option<(&'static str, bool)> {
        let inner = line.strip_prefix('{')?.strip_suffix('}')?;
        let (name, opens) = inner.strip_prefix('/').map_or((inner, true), |name| (name, false));
        self.grammar.parts.iter().find(|part| **part == name).map(|part| (*part, opens))
    }

    fn line(&mut self, line: &str, number: usize) -> Result<()> {
        let trimmed = line.trim();
        let part = self.part(trimmed);
        let role = match trimmed {
            "{system}" => Some(Role::System),
            "{user}" => Some(Role::User),
            _ => None,
        };
        match (self.open.take(), part, role) {
            (Some((open, ..)), Some((_, true)), _) | (Some((open, ..)), _, Some(_)) => {
                Err(self.fault(number, format!("{line} stands inside `{{{open}}}`")))
            }
            (Some((open, _, pieces)), Some((closed, false)), _) if open == closed => {
                self.sections().push(Section { part: Some(open), pieces });
                Ok(())
            }
            (_, Some((name, false)), _) => {
                Err(self.fault(number, format!("`{{/{name}}}` has no `{{{name}}}` before it")))
            }
            (None, Some((name, true)), _) => {
                self.open = Some((name, number, Vec::new()));
                Ok(())
            }
            (None, None, Some(role)) => {
                self.messages.push((role, Vec::new()));
                Ok(())
            }
            (Some((name, opened, mut pieces)), None, None) => {
                pieces.extend(self.pieces(line, number, Some(name))?);
                self.open = Some((name, opened, pieces));
                Ok(())
            }
            (None, None, None) => {
                let pieces = self.pieces(line, number, None)?;
                self.sections().push(Section { part: None, pieces });
                Ok(())
            }
        }
    }

    fn sections(&mut self) -> &mut Vec<Section> {
        let last = self.messages.len() - 1;
        &mut self.messages[last].1
    }

    fn pieces(&self, line: &str, number: usize, part: Option<&str>) -> Result<Vec<Piece>> {
        let (mut pieces, mut words, mut rest) = (Vec::new(), String::new(), line);
        while let Some(at) = rest.find(['{', '}']) {
            words.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                words.push_str(&rest[..1]);
                rest = after;
                continue;
            }
            let name = rest.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let Some((name, after)) = name else {
                return Err(
                    self.fault(number, "a brace stands alone; write {{ or }} for a brace of the text".into())
                );
            };
            pieces.push(Piece::Words(std::mem::take(&mut words)));
            pieces.push(Piece::Field(self.field(name, number, part)?));
            rest = after;
        }
        words.push_str(rest);
        words.push('\n');
        pieces.push(Piece::Words(words));
        Ok(pieces)
    }

    fn field(&self, name: &str, number: usize, part: Option<&str>) -> Result<&'static str> {
        let known = || self.grammar.fields.iter().map(|(name, _)| *name);
        let Some((field, place)) = self.grammar.fields.iter().find(|(known, _)| *known == name) else {
            let near =
                nearest(name, known()).map(|near| format!(" (did you mean {{{near}}}?)")).unwrap_or_default();
            let known: Vec<&str> = known().collect();
            return Err(self.fault(
                number,
                format!("unknown field {{{name}}}{near}; fields are {{{}}}", known.join("}, {")),
            ));
        };
        match place {
            Some(place) if part != Some(*place) => Err(self.fault(
                number,
                format!(
                    "the field {{{name}}} belongs to a {place}; put the line between {{{place}}} and {{/{place}}}"
                ),
            )),
            _ => Ok(field),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAMMAR: Grammar =
        Grammar { parts: &["pair", "none"], fields: &[("caption", Some("pair")), ("count", None)] };

    #[test]
    fn parts_stand_as_often_as_they_are_wanted() {
        let text = "{system}\nS\n{user}\n{count}\n{pair}\n<i>{caption}\n{/pair}\n{none}\nnothing\n{/none}\n";
        let text = Text::parse(text, "t", GRAMMAR).unwrap();
        let fill = |pairs: usize| {
            let times = |part: &str| if part == "pair" { pairs } else { usize::from(pairs == 0) };
            text.fill(times, |field, index| format!("{field}{index}")).user
        };
        assert_eq!(
            (fill(0).as_str(), fill(2).as_str()),
            ("count0\nnothing", "count0\n<i>caption0\n<i>caption1")
        );
        assert_eq!((text.count(Some("pair"), "<i>"), text.count(None, "<i>")), (Some(1), Some(0)));
        assert!(text.has("caption") && !text.has("x"));
        assert_eq!(Text::parse("{pair}\n{/pair}", "t", GRAMMAR).unwrap().count(Some("pair"), "x"), None);
    }

    #[test]
    fn parts_that_do_not_fit_are_named_with_their_line() {
        for (text, parts) in [
            ("{none}\n{/pair}", ["line 2", "{/pair}", "before"]),
            ("{none}\n{pair}", ["line 2", "{pair}", "inside `{none}`"]),
            ("\n{none}\n", ["line 2", "{none}", "{/none}"]),
            ("{none}\n{caption}\n{/none}", ["line 2", "{caption}", "between {pair}"]),
        ] {
            let message = Text::parse(text, "origin", GRAMMAR).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
