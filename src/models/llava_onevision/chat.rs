//! Messages → the text that the checkpoint's own chat template makes of them → token ids, and back.

use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;

use super::views::Views;
use super::{Config, Input};
use crate::error::{Error, Result};

/// The placeholder of an image in a text.
pub const IMAGE: &str = "<image>";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What it says and shows. The templates put images before texts; a text may hold placeholders of its own.
    pub content: Vec<Part>,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// A text.
    Text {
        /// The words.
        text: String,
    },
    /// The place of an image.
    Image,
}

impl Message {
    /// A turn that is a text.
    pub fn text(role: &str, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: vec![Part::Text { text: text.into() }] }
    }
}

/// A repository's chat template (Jinja).
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Takes a template's text.
    ///
    /// # Errors
    /// Where it is no Jinja template.
    pub fn new(source: &str) -> Result<Self> {
        let template = Self { source: plain(source) };
        template.environment().template_from_str(&template.source).map_err(refused)?;
        Ok(template)
    }

    fn environment(&self) -> Environment<'static> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.set_unknown_method_callback(|_, value, method, arguments| {
            let text = value.as_str();
            let argument = arguments.first().and_then(|argument| argument.as_str());
            match (text, method, argument) {
                (Some(text), "strip", None) => Ok(text.trim().into()),
                (Some(text), "lstrip", None) => Ok(text.trim_start().into()),
                (Some(text), "rstrip", None) => Ok(text.trim_end().into()),
                (Some(text), "startswith", Some(start)) => Ok(text.starts_with(start).into()),
                (Some(text), "endswith", Some(end)) => Ok(text.ends_with(end).into()),
                _ => Err(minijinja::Error::new(ErrorKind::UnknownMethod, method.to_owned())),
            }
        });
        environment
    }

    /// The text of a conversation, with the start of the model's own turn where it is to answer.
    ///
    /// # Errors
    /// Where the template refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let environment = self.environment();
        let template = environment.template_from_str(&self.source).map_err(refused)?;
        template.render(context! { messages, add_generation_prompt }).map_err(refused)
    }
}

fn refused(fault: minijinja::Error) -> Error {
    Error::Spec(format!(
        "the chat template cannot be used: {fault}; take chat_template.json or tokenizer_config.json of the model's own \
         repository"
    ))
}

/// Without transformers' own tags, which mark the assistant's words for training and print nothing.
fn plain(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}") else { break };
        let tag = &rest[at..at + end + 2];
        let inner = tag[2..end].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..at]);
        match inner {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[at + end + 2..];
    }
    out + rest
}

/// Qwen2's tokenizer with the image token of a model.
#[derive(Debug, Clone)]
pub struct ChatTokenizer {
    inner: tokenizers::Tokenizer,
    image_token: u32,
}

impl ChatTokenizer {
    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// Where the bytes are no tokenizer, or its `<image>` is not the model's image token.
    pub fn from_json(bytes: &[u8], model: &Config) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|fault| Error::Spec(format!("tokenizer.json: {fault}; fetch the file again")))?;
        let image_token = model.image_token_index;
        match inner.token_to_id(IMAGE) {
            Some(id) if id == image_token => Ok(Self { inner, image_token }),
            other => Err(Error::Spec(format!(
                "tokenizer.json: the id of {IMAGE} is {}, and config.json's `image_token_index` is {image_token}; take both \
                 files from one repository",
                other.map_or("absent".into(), |id| id.to_string())
            ))),
        }
    }

    /// The id of a token written as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of token ids, the added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of a text; special tokens in it become their ids.
    ///
    /// # Errors
    /// Where the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true);
        let encoding = encoding.map_err(|fault| Error::Spec(format!("cannot tokenize {text:?}: {fault}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, without special tokens where they are not asked for.
    ///
    /// # Errors
    /// Where an id is unknown.
    pub fn decode(&self, ids: &[u32], special: bool) -> Result<String> {
        self.inner
            .decode(ids, !special)
            .map_err(|fault| Error::Spec(format!("cannot write the tokens {ids:?} as text: {fault}")))
    }

    /// The first special token (such as `<image>` or `<|im_end|>`) that stands in a text written by somebody else, who would
    /// speak to the model in our name.
    pub fn special_in(&self, text: &str) -> Option<String> {
        let added = self.inner.get_added_tokens_decoder();
        let mut special: Vec<_> = added.values().filter(|token| token.special).collect();
        special.sort_by_key(|token| text.find(&token.content));
        special.into_iter().find(|token| text.contains(&token.content)).map(|token| token.content.clone())
    }

    /// A prompt and its images as the model takes them: each placeholder becomes as many image tokens as its image has
    /// features.
    ///
    /// # Errors
    /// Where the prompt has fewer or more placeholders than there are images.
    pub fn input(&self, text: &str, images: Vec<Views>) -> Result<Input> {
        let encoded = self.encode(text)?;
        let places = encoded.iter().filter(|&&id| id == self.image_token).count();
        if places != images.len() {
            return Err(Error::Spec(format!(
                "the prompt has {places} placeholders {IMAGE}, and there are {} images; write one placeholder for each image, \
                 in their order",
                images.len()
            )));
        }
        let mut features = images.iter().map(Views::features);
        let ids = encoded.into_iter().flat_map(|id| {
            let count = if id == self.image_token { features.next().unwrap_or(0) } else { 1 };
            std::iter::repeat_n(id, count)
        });
        let ids = ids.collect();
        Ok(Input { ids, images })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by us with every construct that the public templates use.
    const TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{# images first #}\
        {% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
        {% if message['role'] != 'assistant' %}\
        {% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}\
        {% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
        {% generation %}{{ '\\n' + content['text'].strip() }}{% endgeneration %}{% endfor %}{% endif %}\
        {{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    #[test]
    fn a_template_with_transformers_own_tags_is_rendered() {
        let template = ChatTemplate::new(TEMPLATE).unwrap();
        let mut first = Message::text("user", "Which?");
        first.content.insert(0, Part::Image);
        let messages = [first, Message::text("assistant", " This. ")];
        assert_eq!(
            template.render(&messages, true).unwrap(),
            "<|im_start|>user <image>\n\nWhich?<|im_end|><|im_start|>assistant \nThis.<|im_end|><|im_start|>assistant\n"
        );
        assert!(template.render(&messages[..1], false).unwrap().ends_with("Which?<|im_end|>"));
    }

    #[test]
    fn a_template_that_is_none_or_that_refuses_says_so() {
        let message = ChatTemplate::new("{% for %}").unwrap_err().to_string();
        assert!(message.contains("chat_template.json"), "{message}");
        let refusing = ChatTemplate::new("{{ raise_exception('no system role') }}").unwrap();
        let message = refusing.render(&[], true).unwrap_err().to_string();
        assert!(message.contains("no system role"), "{message}");
    }
}
