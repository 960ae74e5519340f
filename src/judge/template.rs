//! The words of a question: a [`template`](crate::template) about a user's pairs and a new one.
//!
//! Lines between `{pair}` and `{/pair}` stand once for each pair that the judge is shown, those between `{some}` and `{/some}`
//! where there is at least one, and those between `{none}` and `{/none}` where there is none. Fields: `{count}`, `{prompt}` (the
//! new pair's) and `{form}` (how to answer, which depends on the judge) everywhere; `{caption}`, `{number}`, `{ordinal}` and
//! `{answer}` (the letter of the image that the user chose) for a pair. Each `<image>` is the place of the next image.

use crate::error::{Error, Result};
use crate::judgement::Slot;
use crate::template::{Filled, Grammar, Text, ordinal};
use crate::units::Digest;

/// The place of an image.
pub(super) const IMAGE: &str = "<image>";

const GRAMMAR: Grammar = Grammar {
    parts: &["pair", "some", "none"],
    fields: &[
        ("caption", Some("pair")),
        ("number", Some("pair")),
        ("ordinal", Some("pair")),
        ("answer", Some("pair")),
        ("count", None),
        ("prompt", None),
        ("form", None),
    ],
};

/// A question's template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Text,
    digest: Digest,
}

impl Default for Template {
    fn default() -> Self {
        Self::parse(Self::DEFAULT, "experiments/prompts/judge.txt")
            .expect("the template of this crate is one")
    }
}

impl Template {
    /// The template that judges are asked with unless another one is given.
    pub const DEFAULT: &str = include_str!("../../experiments/prompts/judge.txt");

    /// The words in which the desk's vision-language model was taught to judge.
    pub const DESK: &str = include_str!("../../experiments/prompts/judge-desk.txt");

    /// Reads a template; `origin` names it in messages.
    ///
    /// # Errors
    /// [`Error::Data`], with the line where there is one: an unknown field or part, one in the wrong place, or other places for
    /// images than two for each pair and two for the new one.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let parsed = Text::parse(text, origin, GRAMMAR)?;
        let wrong = |message: &str| Err(Error::data(origin, message));
        let images = |part| parsed.count(part, IMAGE).unwrap_or(0);
        if images(Some("some")) + images(Some("none")) > 0 {
            return wrong(
                "an <image> stands in {some} or {none}; put the images of pairs into {pair}, those asked about outside",
            );
        }
        if images(None) != 2 {
            return wrong(
                "expected two places <image> outside of {pair}, for the two images that are asked about; shots' images \
                 stand between the lines {pair} and {/pair}",
            );
        }
        if parsed.count(Some("pair"), IMAGE).is_some_and(|places| places != 2) {
            return wrong(
                "expected two places <image> between the lines {pair} and {/pair}, for the two images of a shot",
            );
        }
        if parsed.count(Some("pair"), IMAGE).is_some() && !parsed.has("answer") {
            return wrong(
                "no {pair} says which image the user chose; write the field {answer}, which is A or B",
            );
        }
        Ok(Self { text: parsed, digest: Digest::of(text.as_bytes()) })
    }

    /// The digest of its text.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether it has a place for a user's pairs.
    pub fn shows_pairs(&self) -> bool {
        self.text.count(Some("pair"), IMAGE).is_some()
    }

    /// The messages about a user who chose these slots in pairs with these captions, and about a new pair.
    pub(super) fn fill(&self, pairs: &[(&str, Slot)], prompt: &str, form: &str) -> Filled {
        let times = |part: &str| match part {
            "pair" => pairs.len(),
            "some" => usize::from(!pairs.is_empty()),
            _ => usize::from(pairs.is_empty()),
        };
        self.text.fill(times, |field, index| match field {
            "caption" => pairs[index].0.to_owned(),
            "number" => (index + 1).to_string(),
            "ordinal" => ordinal(index + 1),
            "answer" => pairs[index].1.letter().to_owned(),
            "count" => pairs.len().to_string(),
            "prompt" => prompt.to_owned(),
            _ => form.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_shows_each_pair_and_asks_about_a_new_one() {
        let template = Template::default();
        let filled = template.fill(&[("a cat", Slot::B), ("a dog", Slot::A)], "a cow", "Say A or B.");
        assert_eq!(filled.user.matches(IMAGE).count(), 6);
        assert!(filled.user.contains("Second pair. The caption is: a dog"), "{}", filled.user);
        assert!(filled.user.contains("chose image B.\n") && filled.user.ends_with("Say A or B."));
        assert!(filled.user.contains("a cow") && !filled.user.contains("Nothing is known"));
        let nobody = template.fill(&[], "a cow", "Say A or B.").user;
        assert!(nobody.contains("Nothing is known") && !nobody.contains("has compared"));
        assert_eq!(nobody.matches(IMAGE).count(), 2);
        assert!(filled.system.is_some_and(|system| system.contains("person")));
    }

    #[test]
    fn the_desk_is_asked_in_the_words_that_it_learned() {
        let template = Template::parse(Template::DESK, "judge-desk.txt").unwrap();
        let filled = template.fill(&[("a cat", Slot::B), ("a dog", Slot::A)], "a cow", "");
        let expected =
            "a cat <image> <image> prefers B\na dog <image> <image> prefers A\na cow <image> <image> prefers";
        assert_eq!((filled.system, filled.user.as_str()), (None, expected));
    }

    #[test]
    fn faults_name_the_field_and_its_neighbour() {
        for (text, parts) in [
            ("<image><image>\n{promt}", ["line 2", "{prompt}"]),
            ("<image><image>\n{caption}", ["line 2", "{pair}"]),
            ("<image>", ["origin", "two places"]),
            ("<image><image>\n{pair}\n<image>{answer}\n{/pair}", ["origin", "two images of a shot"]),
            ("<image><image>\n{pair}\n<image><image>\n{/pair}", ["origin", "{answer}"]),
            ("<image><image>\n{some}\n<image>\n{/some}", ["origin", "{some}"]),
        ] {
            let message = Template::parse(text, "origin").unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        assert!(!Template::parse("<image><image>", "origin").unwrap().shows_pairs());
    }
}
