//! How an endpoint is asked, as a judge's file says it.

use serde::{Deserialize, Serialize};

use crate::judge::budget::Price;
use crate::judge::transport::Limits;

/// An endpoint and how it is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address up to the version, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// The model, as the endpoint calls it.
    pub model: String,
    /// What serves it, such as `vllm 0.11.0`: the same weights answer differently elsewhere. Left out: the address's host.
    pub backend: Option<String>,
    /// The model's version, where its name does not say.
    #[serde(default)]
    pub version: String,
    /// The environment's variable that holds the key. Left out: `OPENAI_API_KEY`, and no key where that is not set.
    pub key_env: Option<String>,
    /// How images are sent.
    #[serde(default)]
    pub image: ImageFormat,
    /// The endpoint's `detail` of an image (`low`, `high`, `auto`).
    pub detail: Option<String>,
    /// The most tokens of an answer.
    #[serde(default = "max_tokens")]
    pub max_tokens: u32,
    /// What the endpoint calls that limit.
    #[serde(default)]
    pub max_tokens_field: MaxTokensField,
    /// The temperature; -1 sends none, for models that take none.
    #[serde(default)]
    pub temperature: f64,
    /// The endpoint's seed; repetition r is asked with seed + r.
    pub seed: Option<u64>,
    /// Whether answers keep to a JSON schema. Left out: where the endpoint can.
    pub json_schema: Option<bool>,
    /// Whether log-probabilities are asked for. Left out: where the endpoint has them.
    pub logprobs: Option<bool>,
    /// Tokens that an image is taken for in estimates.
    #[serde(default = "image_tokens")]
    pub image_tokens: u64,
    /// What tokens cost.
    #[serde(default)]
    pub price: Price,
    /// How patiently it is asked.
    #[serde(default)]
    pub limits: Limits,
}

fn max_tokens() -> u32 {
    64
}

fn image_tokens() -> u64 {
    800
}

/// How an image is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// As PNG, without loss.
    #[default]
    Png,
    /// As JPEG at quality 90.
    Jpeg,
}

/// What an endpoint calls the limit of an answer's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// What nearly all call it.
    #[default]
    MaxTokens,
    /// What OpenAI's newer models call it.
    MaxCompletionTokens,
}
