//! Judges: given a few pairs that a user has compared, which of two new images would this user prefer? (the paper's Sec. 5.3)
//!
//! Every pair is asked in both orders. Within each shown pair a seeded coin says which image stands first, the same in all
//! questions about a user. A call ends in one named state: a verdict, a refusal, an unreadable answer, a transport error, or over
//! budget; nothing is ever guessed. Answers of judges that cost something are kept as soon as they arrive, under everything that
//! they follow from ([`Cache`]), so the same question is not paid for twice.
//!
//! What this module does not do: choose the pairs, or say what the answers mean (see [`judgement`](crate::judgement)).

mod budget;
mod cache;
mod openai;
mod oracle;
mod plan;
mod question;
mod template;
mod transport;
mod vlm;

use std::path::Path;

use candle_core::Device;
use serde::Serialize;
use serde_json::Value;

use self::transport::Attempt;
use crate::error::{Error, Result, nearest};
use crate::progress::Progress;
use crate::units::Digest;

pub use budget::{Caps, Price, Spent};
pub use cache::{Answer, Cache};
pub use openai::{Abilities, Config as OpenAiConfig, ImageFormat, MaxTokensField, OpenAi};
pub use oracle::Config as Oracle;
pub use plan::{Estimate, Judged, Plan};
pub use question::{Asked, Picture, Protocol, Question, Shot};
pub use template::Template;
pub use transport::Limits;
pub use vlm::{AnswerBy, Config as VlmConfig, VlmJudge};

/// A judge's configuration, as a file holds it under its `kind`.
#[derive(Debug, Clone, PartialEq)]
pub enum Config {
    /// An OpenAI-compatible endpoint.
    OpenAi(Box<OpenAiConfig>),
    /// LLaVA-OneVision on this machine.
    Vlm(VlmConfig),
    /// The truth with bias and noise.
    Oracle(Oracle),
}

impl Config {
    /// Every kind's name in files.
    pub const KINDS: [&'static str; 3] = ["openai", "vlm", "oracle"];

    /// Reads a judge's file; a `vlm`'s folder is taken from the file's own folder.
    ///
    /// # Errors
    /// [`Error::Spec`] with the line: an unknown kind or key, a value that does not fit.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let mut config = Self::parse(&text, &path.display().to_string())?;
        if let Self::Vlm(vlm) = &mut config {
            vlm.folder = path.parent().unwrap_or(Path::new("")).join(&vlm.folder);
        }
        Ok(config)
    }

    /// Reads a judge's text; `origin` names it in messages.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let table: toml::Table = read_toml(text, origin)?;
        // The line that names the kind is no key of the kind's own; an empty one keeps the numbers of the others.
        let own: Vec<&str> = text.lines().map(|line| if is_kind(line) { "" } else { line }).collect();
        let own = own.join("\n");
        match table.get("kind").and_then(toml::Value::as_str) {
            Some("openai") => Ok(Self::OpenAi(Box::new(read_toml(&own, origin)?))),
            Some("vlm") => Ok(Self::Vlm(read_toml(&own, origin)?)),
            Some("oracle") => Ok(Self::Oracle(read_toml(&own, origin)?)),
            other => {
                let other = other.unwrap_or_default();
                let near = nearest(other, Self::KINDS).map(|near| format!(" (did you mean `{near}`?)"));
                Err(Error::Spec(format!(
                    "{origin}: expected `kind` to be one of {}, got `{other}`{}",
                    Self::KINDS.join(", "),
                    near.unwrap_or_default()
                )))
            }
        }
    }
}

/// Whether a line says `kind = …`.
fn is_kind(line: &str) -> bool {
    line.split_once('=').is_some_and(|(name, _)| name.trim() == "kind")
}

/// Reads TOML; a fault names the line, and what was probably meant.
fn read_toml<T: serde::de::DeserializeOwned>(text: &str, origin: &str) -> Result<T> {
    toml::from_str(text).map_err(|fault| {
        let message = fault.message();
        // The unknown name stands between the first backticks, what is known between the others.
        let mut quoted = message.split('`').skip(1).step_by(2);
        let unknown = quoted.next().filter(|_| message.starts_with("unknown"));
        let near = unknown.and_then(|typed| nearest(typed, quoted.collect::<Vec<_>>()));
        let near = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
        let line = fault.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        Error::Spec(format!("{origin}: {line}{message}{near}"))
    })
}

/// A judge that can be asked.
#[derive(Debug)]
pub enum Judge {
    /// An OpenAI-compatible endpoint.
    OpenAi(Box<OpenAi>),
    /// LLaVA-OneVision on this machine.
    Vlm(Box<VlmJudge>),
    /// The truth with bias and noise.
    Oracle(Oracle),
}

/// What a judge is, as far as its answers follow from it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Identity {
    /// Its kind.
    pub kind: &'static str,
    /// Its model.
    pub model: String,
    /// Its backend and version.
    pub version: String,
    /// How it is asked.
    pub settings: Value,
}

impl Identity {
    /// The digest of all of it.
    pub fn digest(&self) -> Digest {
        Digest::of(serde_json::json!(self).to_string().as_bytes())
    }
}

impl Judge {
    /// Opens a judge; an endpoint's key is read from `environment`. No endpoint is asked yet: see [`Judge::prepare`].
    ///
    /// # Errors
    /// Where the configuration makes no sense, the key is not set, or the model cannot be opened.
    pub fn open(
        config: Config,
        device: &Device,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        match config {
            Config::OpenAi(config) => Ok(Self::OpenAi(Box::new(OpenAi::open(*config, environment)?))),
            Config::Vlm(config) => Ok(Self::Vlm(Box::new(VlmJudge::open(config, device)?))),
            Config::Oracle(oracle) => {
                oracle.check()?;
                Ok(Self::Oracle(oracle))
            }
        }
    }

    /// Takes what was found out of an endpoint before, and says whether its identity is settled.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn recall(&mut self, folder: &Path) -> Result<bool> {
        match self {
            Self::OpenAi(endpoint) => endpoint.recall(folder),
            Self::Vlm(_) | Self::Oracle(_) => Ok(true),
        }
    }

    /// Finds out what an endpoint can, unless that is known from `folder`, and refuses one that does not see. Until then its
    /// identity is not settled.
    ///
    /// # Errors
    /// [`Error::Judge`] where it cannot be asked or does not see.
    pub fn prepare(&mut self, folder: Option<&Path>, progress: &Progress) -> Result<()> {
        if let Self::OpenAi(endpoint) = self {
            let known = match folder {
                Some(folder) => endpoint.recall(folder)?,
                None => false,
            };
            if !known {
                endpoint.probe(folder, progress)?;
            }
        }
        Ok(())
    }

    /// What it is.
    pub fn identity(&self) -> Identity {
        match self {
            Self::OpenAi(endpoint) => endpoint.identity(),
            Self::Vlm(vlm) => vlm.identity(),
            Self::Oracle(oracle) => oracle.identity(),
        }
    }

    /// Whether its answers are worth keeping: an oracle gives them again for nothing.
    pub fn is_kept(&self) -> bool {
        !matches!(self, Self::Oracle(_))
    }

    fn form(&self) -> &'static str {
        match self {
            Self::OpenAi(endpoint) => endpoint.form(),
            Self::Vlm(vlm) => vlm.form(),
            Self::Oracle(_) => "",
        }
    }

    fn limits(&self) -> Limits {
        match self {
            Self::OpenAi(endpoint) => endpoint.config().limits.clone(),
            Self::Vlm(_) | Self::Oracle(_) => Limits::alone(),
        }
    }

    fn price(&self) -> Price {
        match self {
            Self::OpenAi(endpoint) => endpoint.config().price,
            Self::Vlm(_) | Self::Oracle(_) => Price::default(),
        }
    }

    /// What a question will cost at most, roughly.
    fn estimate(&self, question: &Question) -> Spent {
        match self {
            Self::OpenAi(endpoint) => endpoint.estimate(question),
            Self::Vlm(_) | Self::Oracle(_) => Spent::call(0, 0, &Price::default()),
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// What is wrong with the question itself.
    fn attempt(&self, question: &Question) -> Result<Attempt> {
        match self {
            Self::OpenAi(endpoint) => endpoint.attempt(question),
            Self::Vlm(vlm) => vlm.attempt(question),
            Self::Oracle(oracle) => oracle.attempt(question),
        }
    }
}
