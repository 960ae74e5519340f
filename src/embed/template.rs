//! The words around a user's pairs: a text with fields in braces.
//!
//! Lines between `{pair}` and `{/pair}` stand once for each pair; what follows a line `{system}` is the system's message, and
//! what follows a line `{user}` the user's. Fields: `{count}` everywhere; `{caption}`, `{number}` and `{ordinal}` for a pair.
//! Each `<image>` is the place of the next picture: every pair has its chosen one, then its rejected one. `{{` and `}}` are
//! braces.

use crate::error::{Error, Result, nearest};
use crate::units::Digest;

/// A prompt's template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    system: Option<Vec<Section>>,
    user: Vec<Section>,
    digest: Digest,
}

/// A template filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    /// The system's message, where there is one.
    pub system: Option<String>,
    /// The user's message.
    pub user: String,
}

/// Lines that stand once, or once for each pair.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    for_each_pair: bool,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Caption,
    Number,
    Ordinal,
    Count,
}

impl Field {
    const ALL: [(&'static str, Self); 4] = [
        ("caption", Self::Caption),
        ("number", Self::Number),
        ("ordinal", Self::Ordinal),
        ("count", Self::Count),
    ];

    fn fill(self, captions: &[&str], pair: usize) -> String {
        match self {
            Self::Caption => captions[pair].to_owned(),
            Self::Number => (pair + 1).to_string(),
            Self::Ordinal => ordinal(pair + 1),
            Self::Count => captions.len().to_string(),
        }
    }
}

/// `First` to `Tenth`, then `11th`.
fn ordinal(number: usize) -> String {
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

impl Default for Template {
    fn default() -> Self {
        Self::parse(Self::DEFAULT, "experiments/prompts/few-shot.txt")
            .expect("the template of this crate is one")
    }
}

impl Template {
    /// The template that embeddings are made with unless another one is given.
    pub const DEFAULT: &str = include_str!("../../experiments/prompts/few-shot.txt");

    /// Reads a template; `origin` names it in messages.
    ///
    /// # Errors
    /// [`Error::Data`] with the line: an unknown field, one that belongs to a pair outside of one, a section that does not
    /// end; and where nothing stands for the pairs or for their pictures.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let mut reader = Reader { origin, parts: vec![(Role::User, Vec::new())], section: None };
        for (i, line) in text.lines().enumerate() {
            reader.line(line, i + 1)?;
        }
        if let Some((opened, _)) = reader.section {
            return Err(reader.fault(opened, "`{pair}` has no `{/pair}` behind it".into()));
        }
        let (mut system, mut user) = (None, Vec::new());
        for (role, sections) in reader.parts {
            match role {
                Role::System => system = Some(sections),
                Role::User => user.extend(sections),
            }
        }
        let of_pairs =
            || user.iter().filter(|section| section.for_each_pair).flat_map(|section| &section.pieces);
        let lacks = |what: &str| {
            let message = format!(
                "{what}; a template shows every pair between the lines {{pair}} and {{/pair}}, with the places \
                                   of its chosen and its rejected picture written <image>"
            );
            Err(Error::data(origin, message))
        };
        if of_pairs().next().is_none() {
            return lacks("there is no {pair} in the user's message");
        }
        if !of_pairs().any(|piece| matches!(piece, Piece::Text(text) if text.contains("<image>"))) {
            return lacks("no {pair} has a picture");
        }
        Ok(Self { system, user, digest: Digest::of(text.as_bytes()) })
    }

    /// The digest of its text.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The messages about pairs with these captions.
    pub fn fill(&self, captions: &[&str]) -> Filled {
        let text = |sections: &[Section]| {
            let lines = sections.iter().flat_map(|section| {
                let times = if section.for_each_pair { captions.len() } else { 1 };
                (0..times).map(move |pair| (section, pair))
            });
            let lines: String = lines
                .flat_map(|(section, pair)| section.pieces.iter().map(move |piece| (piece, pair)))
                .map(|(piece, pair)| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Field(field) => field.fill(captions, pair),
                })
                .collect();
            lines.trim_end_matches('\n').to_owned()
        };
        Filled { system: self.system.as_deref().map(text), user: text(&self.user) }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    System,
    User,
}

struct Reader<'a> {
    origin: &'a str,
    parts: Vec<(Role, Vec<Section>)>,
    /// Of the open `{pair}`, its line and what it holds so far.
    section: Option<(usize, Vec<Piece>)>,
}

impl Reader<'_> {
    fn fault(&self, line: usize, message: String) -> Error {
        Error::data(self.origin, format!("line {line}: {message}"))
    }

    fn line(&mut self, line: &str, number: usize) -> Result<()> {
        let misplaced = |reader: &Self| Err(reader.fault(number, format!("{line} stands inside `{{pair}}`")));
        match (line.trim(), self.section.is_some()) {
            ("{system}" | "{user}" | "{pair}", true) => return misplaced(self),
            ("{system}", false) => self.parts.push((Role::System, Vec::new())),
            ("{user}", false) => self.parts.push((Role::User, Vec::new())),
            ("{pair}", false) => self.section = Some((number, Vec::new())),
            ("{/pair}", true) => {
                let (_, pieces) = self.section.take().expect("a pair is open");
                self.sections().push(Section { for_each_pair: true, pieces });
            }
            ("{/pair}", false) => {
                return Err(self.fault(number, "`{/pair}` has no `{pair}` before it".into()));
            }
            _ => {
                let pieces = self.pieces(line, number)?;
                match &mut self.section {
                    Some((_, open)) => open.extend(pieces),
                    None => self.sections().push(Section { for_each_pair: false, pieces }),
                }
            }
        }
        Ok(())
    }

    fn sections(&mut self) -> &mut Vec<Section> {
        let last = self.parts.len() - 1;
        &mut self.parts[last].1
    }

    fn pieces(&self, line: &str, number: usize) -> Result<Vec<Piece>> {
        let (mut pieces, mut text, mut rest) = (Vec::new(), String::new(), line);
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                text.push_str(&rest[..1]);
                rest = after;
                continue;
            }
            let name = rest.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let Some((name, after)) = name else {
                return Err(
                    self.fault(number, "a brace stands alone; write {{ or }} for a brace of the text".into())
                );
            };
            pieces.push(Piece::Text(std::mem::take(&mut text)));
            pieces.push(Piece::Field(self.field(name, number)?));
            rest = after;
        }
        text.push_str(rest);
        text.push('\n');
        pieces.push(Piece::Text(text));
        Ok(pieces)
    }

    fn field(&self, name: &str, number: usize) -> Result<Field> {
        let known = Field::ALL.map(|(name, _)| name);
        let Some((_, field)) = Field::ALL.into_iter().find(|(known, _)| *known == name) else {
            let near =
                nearest(name, known).map(|near| format!(" (did you mean {{{near}}}?)")).unwrap_or_default();
            return Err(self.fault(
                number,
                format!("unknown field {{{name}}}{near}; fields are {{{}}}", known.join("}, {")),
            ));
        };
        match field {
            Field::Count => Ok(field),
            _ if self.section.is_none() => Err(self.fault(
                number,
                format!(
                    "the field {{{name}}} belongs to a pair; put the line between {{pair}} and {{/pair}}"
                ),
            )),
            _ => Ok(field),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_repeated_and_fields_filled() {
        let text = "{system}\nBe kind.\n{user}\nOf {count}:\n{pair}\n{ordinal} ({number}), {{{caption}}}: <image><image>\n{/pair}\nWhy?\n";
        let filled = Template::parse(text, "t").unwrap().fill(&["a cat", "{count}"]);
        assert_eq!(filled.system.as_deref(), Some("Be kind."));
        assert_eq!(
            filled.user,
            "Of 2:\nFirst (1), {a cat}: <image><image>\nSecond (2), {{count}}: <image><image>\nWhy?"
        );
        let plain = Template::parse("{pair}\n<image>\n{/pair}", "t").unwrap().fill(&["x"]);
        assert_eq!((plain.system, plain.user.as_str()), (None, "<image>"));
        assert_eq!([10, 11, 12, 21, 22, 23].map(ordinal), ["Tenth", "11th", "12th", "21st", "22nd", "23rd"]);
    }

    #[test]
    fn the_default_shows_every_picture_and_asks_for_a_profile() {
        let filled = Template::default().fill(&["a", "b", "c", "d"]);
        assert_eq!(filled.user.matches("<image>").count(), 8);
        assert!(filled.user.contains("Fourth pair. The caption is: d") && filled.user.contains("Pair 4:"));
        assert!(filled.user.contains("User Profile:"));
    }

    #[test]
    fn faults_name_the_line_and_the_field() {
        for (text, parts) in [
            ("a\n{pair}\n{captoin} <image>\n{/pair}", ["line 3", "{captoin}", "{caption}"]),
            ("{mood}\n", ["line 1", "{mood}", "fields are"]),
            ("{caption}\n{pair}\n<image>\n{/pair}", ["line 1", "{caption}", "belongs to a pair"]),
            ("{pair}\n<image>\n", ["line 1", "{pair}", "{/pair}"]),
            ("{/pair}", ["line 1", "{/pair}", "before"]),
            ("{pair}\n{user}\n", ["line 2", "{user}", "inside"]),
            ("a } b", ["line 1", "brace", "alone"]),
            ("nothing", ["origin", "{pair}", "<image>"]),
            ("{pair}\n{caption}\n{/pair}", ["origin", "{pair}", "picture"]),
        ] {
            let message = Template::parse(text, "origin").unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
