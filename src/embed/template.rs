//! The words around a user's pairs: a [`template`](crate::template) with a part for each pair.
//!
//! Lines between `{pair}` and `{/pair}` stand once for each pair. Fields: `{count}` everywhere; `{caption}`, `{number}` and
//! `{ordinal}` for a pair. Each `<image>` is the place of the next picture: every pair has its chosen one, then its rejected
//! one.

use crate::error::{Error, Result};
use crate::template::{Filled, Grammar, Text, ordinal};
use crate::units::Digest;

const GRAMMAR: Grammar = Grammar {
    parts: &["pair"],
    fields: &[
        ("caption", Some("pair")),
        ("number", Some("pair")),
        ("ordinal", Some("pair")),
        ("count", None),
    ],
};

/// A prompt's template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Text,
    digest: Digest,
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
        let parsed = Text::parse(text, origin, GRAMMAR)?;
        let lacks = |what: &str| {
            let message = format!(
                "{what}; a template shows every pair between the lines {{pair}} and {{/pair}}, with the places \
                                   of its chosen and its rejected picture written <image>"
            );
            Err(Error::data(origin, message))
        };
        match parsed.count(Some("pair"), "<image>") {
            None => lacks("there is no {pair} in the user's message"),
            Some(0) => lacks("no {pair} has a picture"),
            Some(_) => Ok(Self { text: parsed, digest: Digest::of(text.as_bytes()) }),
        }
    }

    /// The digest of its text.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The messages about pairs with these captions.
    pub fn fill(&self, captions: &[&str]) -> Filled {
        self.text.fill(
            |_| captions.len(),
            |field, pair| match field {
                "caption" => captions[pair].to_owned(),
                "number" => (pair + 1).to_string(),
                "ordinal" => ordinal(pair + 1),
                _ => captions.len().to_string(),
            },
        )
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
