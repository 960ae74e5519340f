//! Captions: a scene in plain lower-case English words, and back.
//!
//! ```text
//! caption    = object [relation object ["with" object side "them"]] ["on a" background "background"]
//! object     = ("a" | "an") [size] colour shape
//! relation   = "left of" | "right of" | "above" | "below"
//! side       = "left of" | "right of" | "above" | "below"
//! ```
//!
//! The longest caption has 22 words; [`style::STYLE_WORDS`](super::style::STYLE_WORDS) are never part of one.

use super::style::STYLE_WORDS;
use super::{Background, Colour, Object, Relation, Scene, Shape, Size};

/// The words of the grammar that no attribute owns.
const FRAME: [&str; 7] = ["a", "an", "of", "with", "them", "on", "background"];

/// Every word that a caption, with or without appended style words, can hold; the order is part of the format of the
/// text models' weights.
pub fn words() -> Vec<&'static str> {
    FRAME
        .into_iter()
        .chain(Size::ALL.iter().map(|member| member.word()))
        .chain(Colour::ALL.iter().map(|member| member.word()))
        .chain(Shape::ALL.iter().map(|member| member.word()))
        .chain(Relation::ALL.iter().map(|member| member.word()))
        .chain(Background::ALL.iter().map(|member| member.word()))
        .chain(STYLE_WORDS)
        .collect()
}

impl Scene {
    /// The scene in words; [`parse`] reads it back.
    pub fn caption(&self) -> String {
        let mut words = Vec::with_capacity(24);
        push_object(&mut words, &self.objects[0]);
        if let (Some(second), Some(&relation)) = (self.objects.get(1), self.relations.first()) {
            push_relation(&mut words, relation);
            push_object(&mut words, second);
        }
        if let (Some(third), Some(&relation)) = (self.objects.get(2), self.relations.get(1)) {
            words.push("with");
            push_object(&mut words, third);
            push_relation(&mut words, relation);
            words.push("them");
        }
        if let Some(background) = self.background {
            words.extend(["on", "a", background.word(), "background"]);
        }
        words.join(" ")
    }
}

fn push_object(words: &mut Vec<&'static str>, object: &Object) {
    let start = words.len();
    words.extend(object.size.map(Size::word));
    words.extend([object.colour.word(), object.shape.word()]);
    let article = if words[start].starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    words.insert(start, article);
}

fn push_relation(words: &mut Vec<&'static str>, relation: Relation) {
    words.push(relation.word());
    if relation.is_horizontal() {
        words.push("of");
    }
}

/// The scene that `caption` describes, or `None` where it is not a caption of this grammar.
pub fn parse(caption: &str) -> Option<Scene> {
    let mut rest = Words(caption.split_whitespace().collect());
    rest.0.reverse();
    let mut objects = vec![rest.object()?];
    let mut relations = Vec::new();
    if let Some(relation) = rest.relation() {
        relations.push(relation);
        objects.push(rest.object()?);
        if rest.take("with").is_some() {
            objects.push(rest.object()?);
            relations.push(rest.relation()?);
            rest.take("them")?;
        }
    }
    let background = match rest.take("on") {
        None => None,
        Some(()) => {
            rest.take("a")?;
            let background = rest.of(Background::from_word)?;
            rest.take("background")?;
            Some(background)
        }
    };
    rest.0.is_empty().then_some(Scene { objects, relations, background })
}

/// The unread words, last first.
struct Words<'a>(Vec<&'a str>);

impl Words<'_> {
    fn of<T>(&mut self, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = read(self.0.last()?)?;
        self.0.pop();
        Some(value)
    }

    fn take(&mut self, word: &str) -> Option<()> {
        self.of(|next| (next == word).then_some(()))
    }

    fn object(&mut self) -> Option<Object> {
        self.of(|next| matches!(next, "a" | "an").then_some(()))?;
        let size = self.of(Size::from_word);
        Some(Object { size, colour: self.of(Colour::from_word)?, shape: self.of(Shape::from_word)? })
    }

    fn relation(&mut self) -> Option<Relation> {
        let relation = self.of(Relation::from_word)?;
        if relation.is_horizontal() {
            self.take("of")?;
        }
        Some(relation)
    }
}
