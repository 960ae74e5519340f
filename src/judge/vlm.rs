//! A judge on this machine: LLaVA-OneVision through [`vlm`](crate::vlm).
//!
//! The letters' log-probabilities are read off the logits of the answer's first token. The answer itself is either the likelier of
//! the two letters, which always is one, or what the model writes by itself, which may be no letter at all. A model that
//! reasons first is read where it writes its last letter.

use std::path::PathBuf;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::question::Question;
use super::transport::Attempt;
use super::{Answer, Identity};
use crate::error::{Error, Result};
use crate::judgement::{Outcome, Slot};
use crate::models::llava_onevision::{Input, Layout, Message};
use crate::units::Digest;
use crate::vlm::{Vlm, repository_digest};

use super::openai::{declines, form, letter};

/// A model and how it is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A folder in the layout of `llava-hf/llava-onevision-qwen2-7b-ov-hf`.
    pub folder: PathBuf,
    /// How an image becomes tokens.
    #[serde(default)]
    pub layout: Layout,
    /// How the answer is found.
    #[serde(default)]
    pub answer: AnswerBy,
    /// The most tokens that are written, where the model writes.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Whether it computes in half precision (bf16).
    #[serde(default)]
    pub bf16: bool,
}

fn max_tokens() -> usize {
    16
}

/// How a model's answer is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerBy {
    /// The likelier of the tokens A and B.
    #[default]
    Logits,
    /// What the model writes, one likeliest token after the other.
    Greedy,
    /// The last A or B of what the model writes; the letters' log-probabilities are those at its place.
    Reasoned,
}

/// A model that can be asked.
#[derive(Debug, Clone)]
pub struct VlmJudge {
    vlm: Vlm,
    config: Config,
    weights: Digest,
    letters: [u32; 2],
}

impl VlmJudge {
    /// Opens the configuration's folder.
    ///
    /// # Errors
    /// Where it holds no such model, one without vision among them, or there is no room for it.
    pub fn open(config: Config, device: &Device) -> Result<Self> {
        let dtype = if config.bf16 { DType::BF16 } else { DType::F32 };
        let vlm = Vlm::open(&config.folder, dtype, device)?;
        let weights = repository_digest(&config.folder)?;
        Self::new(vlm, config, weights)
    }

    /// A judge of a model that is open already; `weights` identifies it.
    ///
    /// # Errors
    /// Where a letter is no token of its vocabulary, or no token may be written.
    pub fn new(vlm: Vlm, config: Config, weights: Digest) -> Result<Self> {
        let id = |slot: Slot| match vlm.tokenizer.encode(slot.letter())?.as_slice() {
            [id] => Ok(*id),
            ids => Err(Error::weights(
                config.folder.join("tokenizer.json"),
                format!(
                    "writes {} in {} tokens, expected one: it cannot be asked for a letter",
                    slot.letter(),
                    ids.len()
                ),
            )),
        };
        if config.max_tokens == 0 {
            return Err(Error::Spec("max_tokens is 0; expected at least 1".into()));
        }
        Ok(Self { letters: [id(Slot::A)?, id(Slot::B)?], vlm, config, weights })
    }

    pub(super) fn identity(&self) -> Identity {
        let name = self.config.folder.file_name().unwrap_or(self.config.folder.as_os_str());
        let (limit, by) = (self.config.max_tokens, self.config.answer);
        Identity {
            kind: "vlm",
            model: name.to_string_lossy().into_owned(),
            version: format!("ppd {} {}", env!("CARGO_PKG_VERSION"), self.weights.short()),
            settings: json!({
                "weights": self.weights,
                "layout": self.config.layout,
                "answer": by,
                "max_tokens": (by != AnswerBy::Logits).then_some(limit),
                "bf16": self.config.bf16,
            }),
        }
    }

    pub(super) fn form(&self) -> &'static str {
        form(false)
    }

    /// Reads a question and answers it.
    ///
    /// # Errors
    /// Where an image cannot be read, a text speaks in the model's own tokens, or the question is longer than the model reads.
    pub(super) fn attempt(&self, question: &Question) -> Result<Attempt> {
        let asked = question.asked;
        let captions = asked.shots.iter().map(|shot| shot.caption.as_str()).chain([asked.prompt.as_str()]);
        if let Some(token) = captions.filter_map(|text| self.vlm.tokenizer.special_in(text)).next() {
            return Err(Error::Spec(format!(
                "user {:?}: a caption holds {token:?}, which is no word but a command to the model; take it out",
                asked.user
            )));
        }
        let system = question.words.system.as_ref().map(|text| Message::text("system", text));
        let user = Message::text("user", &question.words.user);
        let prompt = self.vlm.prompt(&system.into_iter().chain([user]).collect::<Vec<_>>())?;
        let images = question.pictures.iter().map(|picture| picture.image()).collect::<Result<Vec<_>>>()?;
        let input = [self.vlm.input(&prompt, &images, self.config.layout)?];
        let read = input[0].ids.len() as u64;
        let read_by = self.config.answer;
        let (outcome, written) = match read_by {
            AnswerBy::Logits => {
                let log_odds = self.log_odds(&input[0], question)?;
                match log_odds {
                    0.0 => (Outcome::Unreadable { raw: "(A and B are equally likely)".into() }, 1),
                    _ => (verdict(if log_odds > 0.0 { Slot::A } else { Slot::B }, log_odds), 1),
                }
            }
            AnswerBy::Greedy | AnswerBy::Reasoned => {
                let decoding = self.vlm.greedy(self.config.max_tokens);
                let written = self.vlm.model.generate(&input, &decoding, &mut [], |_| Ok(()))?;
                let ids = written.first().map(|written| written.ids.as_slice()).unwrap_or_default();
                let text = self.vlm.tokenizer.decode(ids, false)?;
                let found = match read_by {
                    AnswerBy::Reasoned => {
                        let last = ids.iter().rposition(|id| self.letters.contains(id));
                        last.map(|at| (if ids[at] == self.letters[0] { Slot::A } else { Slot::B }, at))
                    }
                    _ => letter(&text, false).map(|slot| (slot, 0)),
                };
                let outcome = match found {
                    Some((slot, before)) => {
                        let [mut input] = input;
                        input.ids.extend_from_slice(&ids[..before]);
                        verdict(slot, self.log_odds(&input, question)?)
                    }
                    None if declines(&text) => Outcome::Refusal { raw: text },
                    None => Outcome::Unreadable { raw: text },
                };
                (outcome, ids.len())
            }
        };
        let answer =
            Answer { tokens_in: Some(read), tokens_out: Some(written as u64), ..Answer::of(outcome) };
        Ok(Attempt::Answer(answer))
    }

    /// ln P(A) − ln P(B) as what comes next.
    fn log_odds(&self, input: &Input, question: &Question) -> Result<f64> {
        let logits =
            self.vlm.model.next_logits(std::slice::from_ref(input), &self.letters)?.to_vec2::<f32>()?;
        let log_odds = f64::from(logits[0][0]) - f64::from(logits[0][1]);
        match log_odds.is_finite() {
            true => Ok(log_odds),
            false => Err(Error::NonFinite {
                what: "a letter's logit".into(),
                value: log_odds,
                place: format!("the judge's answer for user {:?}", question.asked.user),
            }),
        }
    }
}

fn verdict(slot: Slot, log_odds: f64) -> Outcome {
    Outcome::Verdict { slot, log_odds: Some(log_odds) }
}
