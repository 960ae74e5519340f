//! A user's few-shot pairs → prompt → vision-language model → user embedding and written profile (the paper's Sec. 4.1).
//!
//! The model is asked to reason before it sums up: describe each image, explain the differences, write a profile. The
//! embedding is what the authors' code stores: the hidden states of every layer at the last step of that answer. What this
//! module does not do: read pairs or write embeddings.

pub mod choices;
pub mod discriminant;
pub mod groups;
pub mod people;
mod template;
mod vectors;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::llava_onevision::{Decoding, Generated, Layout, Message, Sampling};
use crate::pixels::Image;
use crate::rng::{Stream, stream};
use crate::units::{Digest, Seed};
use crate::vlm::Vlm;

pub use template::Template;

/// What an embedding depends on besides the user's pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model's repository ([`crate::vlm::repository_digest`]).
    pub model: Digest,
    /// The prompt's template.
    pub template: Digest,
    /// How an image becomes tokens.
    pub layout: Layout,
    /// The most tokens that the model writes.
    pub max_new_tokens: usize,
    /// The precision that it computes in.
    pub dtype: String,
    /// How tokens are drawn; absent: the likeliest is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Drawn>,
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// Above 0: logits are divided by it.
    pub temperature: f64,
    /// In (0, 1]: the share of probability that the drawn tokens make up.
    pub top_p: f64,
    /// Of the draws; each prompt has its own, whatever is embedded beside it.
    pub seed: Seed,
}

/// A user's embedding and what the model wrote on its way to it.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// (layers + 1, width), in single precision: the embeddings, then each block's output, the last one after the final norm,
    /// at the position whose logits gave the last token.
    pub states: Tensor,
    /// All that was written.
    pub text: String,
    /// The tokens that it is made of.
    pub ids: Vec<u32>,
    /// Whether the text ended by itself; otherwise at the limit.
    pub ended: bool,
}

impl Embedding {
    /// The user's profile, where the text got that far: what stands behind the last `User Profile:`.
    pub fn profile(&self) -> Option<&str> {
        profile_in(&self.text)
    }
}

/// What stands behind the last `User Profile:` of a text.
pub fn profile_in(text: &str) -> Option<&str> {
    let (_, profile) = text.rsplit_once(PROFILE)?;
    Some(profile.trim()).filter(|profile| !profile.is_empty())
}

/// What the answer's fixed form puts before the profile.
const PROFILE: &str = "User Profile:";

/// The digest of everything that an embedding follows from: the config, the prompt as the model reads it, and the pictures.
pub fn prompt_digest(config: &Config, prompt: &str, images: &[Image]) -> Digest {
    let pictures: Vec<String> = images
        .iter()
        .map(|image| format!("{}x{} {}", image.width(), image.height(), Digest::of(image.rgb()).hex()))
        .collect();
    let whole = serde_json::json!({"config": config, "prompt": prompt, "pictures": pictures});
    Digest::of(whole.to_string().as_bytes())
}

/// The prompt of a user's pairs, as the model reads it.
///
/// # Errors
/// Where a caption holds one of the model's special tokens, or the chat template refuses the messages.
pub fn prompt(vlm: &Vlm, template: &Template, captions: &[&str]) -> Result<String> {
    for (i, caption) in captions.iter().enumerate() {
        if let Some(token) = vlm.tokenizer.special_in(caption) {
            return Err(Error::Spec(format!(
                "the caption of pair {} holds {token:?}, which is no word but a command to the model; take it out",
                i + 1
            )));
        }
    }
    let filled = template.fill(captions);
    let system = filled.system.map(|text| Message::text("system", text));
    vlm.prompt(&system.into_iter().chain([Message::text("user", filled.user)]).collect::<Vec<_>>())
}

/// One user's prompt with the pictures in the order of its placeholders.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// The prompt, as the model reads it ([`prompt`]).
    pub prompt: String,
    /// The pictures.
    pub images: Vec<&'a Image>,
}

/// Embeds one user: the pictures stand in the order of the prompt's placeholders, and `step` is called after each token with
/// the number of tokens so far.
///
/// # Errors
/// Where prompt and pictures do not fit each other or the model, and those of `step`.
pub fn embed(
    vlm: &Vlm,
    config: &Config,
    prompt: &str,
    images: &[Image],
    step: impl FnMut(usize) -> Result<()>,
) -> Result<Embedding> {
    let asked = Asked { prompt: prompt.to_owned(), images: images.iter().collect() };
    let mut embedded = embed_together(vlm, config, &[asked], step)?;
    embedded.pop().ok_or_else(|| Error::Shape("the model wrote nothing after the prompt".into()))
}

/// Embeds several users in one batch, which changes nothing for any of them but the last bits; `step` is called after each
/// token with the number of tokens so far.
///
/// # Errors
/// As [`embed`].
pub fn embed_together(
    vlm: &Vlm,
    config: &Config,
    asked: &[Asked],
    step: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Embedding>> {
    let inputs = asked.iter().map(|asked| vlm.input_of(&asked.prompt, &asked.images, config.layout));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let mut decoding = Decoding { states: true, ..vlm.greedy(config.max_new_tokens) };
    let mut streams = Vec::new();
    if let Some(Drawn { temperature, top_p, seed }) = config.sampling {
        decoding.sampling = Sampling::Drawn { temperature, top_p };
        streams = asked.iter().map(|asked| draws(seed, &asked.prompt)).collect();
    }
    let written = vlm.model.generate(&inputs, &decoding, &mut streams, step)?;
    let embedding = |written: Generated| {
        let Some(states) = &written.states else {
            return Err(Error::Shape("the model wrote nothing after the prompt".into()));
        };
        let states = states.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let values = states.flatten_all()?.to_vec1::<f32>()?;
        if let Some(value) = values.into_iter().find(|value| !value.is_finite()) {
            return Err(Error::NonFinite {
                what: "a hidden state".into(),
                value: f64::from(value),
                place: format!("token {} of the answer", written.ids.len()),
            });
        }
        Ok(Embedding {
            states,
            text: vlm.tokenizer.decode(&written.ids, false)?,
            ids: written.ids,
            ended: written.ended,
        })
    };
    written.into_iter().map(embedding).collect()
}

/// The stream of a prompt's draws.
fn draws(seed: Seed, prompt: &str) -> Stream {
    let index = u64::from_str_radix(&Digest::of(prompt.as_bytes()).hex()[..16], 16).unwrap_or_default();
    stream(seed, "embed", index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_what_stands_behind_its_title() {
        let of = |text: &str| {
            let states = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap();
            Embedding { states, text: text.into(), ids: vec![1], ended: true }.profile().map(str::to_owned)
        };
        assert_eq!(of("Pair 1: …\nUser Profile: Likes red.\n"), Some("Likes red.".into()));
        assert_eq!(of("Pair 1: …\nUser Prof"), None);
        assert_eq!(of("User Profile:"), None);
    }

    #[test]
    fn the_digest_changes_with_whatever_the_embedding_follows_from() {
        let config = Config {
            model: Digest::of(b"model"),
            template: Digest::of(b"template"),
            layout: Layout::BaseOnly,
            max_new_tokens: 8,
            dtype: "f32".into(),
            sampling: None,
        };
        let picture = |shade: u8, width| Image::new(width, 6 / width, vec![shade; 18]);
        let first = prompt_digest(&config, "a", &[picture(1, 2)]);
        assert_eq!(first, prompt_digest(&config, "a", &[picture(1, 2)]));
        assert_ne!(first, prompt_digest(&config, "b", &[picture(1, 2)]));
        assert_ne!(first, prompt_digest(&config, "a", &[picture(2, 2)]));
        assert_ne!(first, prompt_digest(&config, "a", &[picture(1, 3)]));
        let drawn = Drawn { temperature: 0.7, top_p: 0.9, seed: Seed::new(1) };
        let other = Config { sampling: Some(drawn), ..config.clone() };
        assert_ne!(first, prompt_digest(&other, "a", &[picture(1, 2)]));
        assert_ne!(first, prompt_digest(&Config { max_new_tokens: 9, ..config }, "a", &[picture(1, 2)]));
    }
}
