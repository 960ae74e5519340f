//! A judge behind an address: any endpoint that speaks OpenAI's chat completions.
//!
//! Endpoints differ in what they can: whether they see, whether they keep to a JSON schema, and whether they give
//! log-probabilities is found out before the first question, never assumed. The key is read from the environment and goes into
//! one header; it is taken out of whatever a server says before that is shown or kept.

mod answer;
mod config;
mod probe;

use std::io::Read as _;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use reqwest::blocking::{Client, Response};
use reqwest::redirect::Policy;
use serde_json::{Value, json};

use super::Identity;
use super::budget::Spent;
use super::question::Question;
use super::transport::Attempt;
use crate::error::{Error, Result};
use crate::image::{Format, encode};
use crate::judgement::Outcome;
use crate::pixels::Image;

pub(super) use answer::{declines, form, letter};
pub use config::{Config, ImageFormat, MaxTokensField};
pub use probe::Abilities;

/// The variable that holds the key unless the configuration names another one.
const KEY: &str = "OPENAI_API_KEY";
/// The most bytes of an answer that are read.
const LONGEST_ANSWER: u64 = 16 << 20;
/// Characters of a text for each token, for estimates.
const CHARACTERS_PER_TOKEN: usize = 4;

/// An endpoint that can be asked.
pub struct OpenAi {
    config: Config,
    /// The address of chat completions.
    url: String,
    key: Option<String>,
    client: Client,
    abilities: Option<Abilities>,
}

impl std::fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither the key nor an address that may hold one.
        f.debug_struct("OpenAi").field("model", &self.config.model).finish_non_exhaustive()
    }
}

/// Why a request brought nothing.
#[derive(Debug)]
struct Fault {
    status: Option<u16>,
    attempt: Attempt,
}

impl OpenAi {
    /// Reads the key from `environment`; nothing is asked yet.
    ///
    /// # Errors
    /// Where the configuration makes no sense, or the variable that it names is not set.
    pub fn open(config: Config, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let base = config.base_url.trim_end_matches('/');
        let shown = shown(base);
        let host = base.strip_prefix("https://").or_else(|| base.strip_prefix("http://"));
        let Some(host) = host.filter(|host| !host.is_empty() && !base.contains(char::is_whitespace)) else {
            return Err(Error::Spec(format!(
                "base_url: expected an address such as https://api.openai.com/v1, got {shown:?}"
            )));
        };
        config.limits.check()?;
        config.price.check()?;
        let temperature = config.temperature;
        if config.model.is_empty() || config.max_tokens == 0 || !(-1.0..=2.0).contains(&temperature) {
            return Err(Error::Spec(format!(
                "expected a model's name, a max_tokens above 0 and a temperature in [0, 2] (-1: none is sent), got {:?}, {} and \
                 {temperature}",
                config.model, config.max_tokens
            )));
        }
        let variable = config.key_env.as_deref().unwrap_or(KEY);
        let key = environment(variable).map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        if key.is_none() && config.key_env.is_some() {
            return Err(Error::Spec(format!(
                "key_env names the variable {variable}, which is not set; put the endpoint's key there, or leave key_env out \
                 for an endpoint without keys"
            )));
        }
        if key.as_ref().is_some_and(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::Spec(format!(
                "the key in {variable} holds characters that no key has; set it again"
            )));
        }
        let patience = Duration::from_secs_f64(config.limits.timeout_seconds);
        let local = ["127.", "localhost", "[::1]"].iter().any(|local| without_user(host).starts_with(local));
        let builder = Client::builder()
            .user_agent(concat!("ppd/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .timeout(patience)
            .connect_timeout(patience.min(Duration::from_secs(30)));
        // A proxy for the world is none for this machine.
        let builder = if local { builder.no_proxy() } else { builder };
        let client = builder
            .build()
            .map_err(|fault| Error::Judge(format!("{shown} cannot be asked: {}", fault.without_url())))?;
        let url = format!("{base}/chat/completions");
        Ok(Self { config, url, key, client, abilities: None })
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who it is, as far as that is configured.
    fn configured(&self) -> Identity {
        let config = &self.config;
        let backend = config.backend.clone().unwrap_or_else(|| host(&config.base_url));
        let version = [backend.as_str(), &config.version].join(" ").trim().to_owned();
        let settings = json!({
            "image": config.image,
            "detail": config.detail,
            "max_tokens": config.max_tokens,
            "max_tokens_field": config.max_tokens_field,
            "temperature": config.temperature,
            "seed": config.seed,
            "json_schema": config.json_schema,
            "logprobs": config.logprobs,
        });
        Identity { kind: "openai", model: config.model.clone(), version, settings }
    }

    /// Who it is: its configuration with the abilities that are used.
    pub(super) fn identity(&self) -> Identity {
        let mut identity = self.configured();
        identity.settings["abilities"] = json!(self.abilities());
        identity
    }

    /// What it can; before that was found out, the least.
    fn abilities(&self) -> Abilities {
        self.abilities.unwrap_or_default()
    }

    pub(super) fn form(&self) -> &'static str {
        answer::form(self.abilities().json_schema)
    }

    /// What a question will cost at most, roughly.
    pub(super) fn estimate(&self, question: &Question) -> Spent {
        let words = question.characters().div_ceil(CHARACTERS_PER_TOKEN) as u64;
        let images = self.config.image_tokens * question.pictures.len() as u64;
        Spent::call(words + images, u64::from(self.config.max_tokens), &self.config.price)
    }

    /// Sends a question once.
    ///
    /// # Errors
    /// Where an image cannot be read.
    pub(super) fn attempt(&self, question: &Question) -> Result<Attempt> {
        let images = question.pictures.iter().map(|picture| self.encoded(&picture.image()?));
        let images = images.collect::<Result<Vec<_>>>()?;
        let texts: Vec<&str> = question.texts().collect();
        let system = question.words.system.as_deref();
        let body = self.body(system, &texts, &images, question.repeat, self.abilities());
        Ok(match self.post(&body) {
            Ok(reply) => match answer::read(&reply, self.abilities().json_schema) {
                Ok(answer) => Attempt::Answer(self.redacted(answer)),
                Err(reason) => {
                    Attempt::Again { reason: self.clean(&reason), wait: None, crowded: false, charged: true }
                }
            },
            Err(fault) => fault.attempt,
        })
    }

    /// An image as a data URL.
    fn encoded(&self, image: &Image) -> Result<String> {
        let (kind, format) = match self.config.image {
            ImageFormat::Png => ("png", Format::Png),
            ImageFormat::Jpeg => ("jpeg", Format::Jpeg(90)),
        };
        let bytes = base64::engine::general_purpose::STANDARD.encode(encode(image, format)?);
        Ok(format!("data:image/{kind};base64,{bytes}"))
    }

    /// A request: texts and images in turns.
    fn body(
        &self,
        system: Option<&str>,
        texts: &[&str],
        images: &[String],
        repeat: u32,
        abilities: Abilities,
    ) -> Value {
        let config = &self.config;
        let mut content = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            if !text.is_empty() {
                content.push(json!({"type": "text", "text": text}));
            }
            if let Some(image) = images.get(index) {
                let mut url = json!({"url": image});
                if let Some(detail) = &config.detail {
                    url["detail"] = json!(detail);
                }
                content.push(json!({"type": "image_url", "image_url": url}));
            }
        }
        let system = system.map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> =
            system.into_iter().chain([json!({"role": "user", "content": content})]).collect();
        let mut body = json!({"model": config.model, "messages": messages});
        let limit = match config.max_tokens_field {
            MaxTokensField::MaxTokens => "max_tokens",
            MaxTokensField::MaxCompletionTokens => "max_completion_tokens",
        };
        body[limit] = json!(config.max_tokens);
        if config.temperature >= 0.0 {
            body["temperature"] = json!(config.temperature);
        }
        if let Some(seed) = config.seed {
            body["seed"] = json!(seed.wrapping_add(u64::from(repeat)));
        }
        if abilities.json_schema {
            body["response_format"] = answer::schema();
        }
        if abilities.top_logprobs > 0 {
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(abilities.top_logprobs);
        }
        body
    }

    /// Sends a request once, and reads a JSON answer.
    fn post(&self, body: &Value) -> Result<Value, Fault> {
        let mut request =
            self.client.post(&self.url).header("Content-Type", "application/json").body(body.to_string());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().map_err(|fault| self.failed(fault))?;
        let status = response.status().as_u16();
        let wait = retry_after(&response);
        let mut bytes = Vec::new();
        if let Err(fault) = response.take(LONGEST_ANSWER).read_to_end(&mut bytes) {
            let timed_out = fault.kind() == std::io::ErrorKind::TimedOut;
            let reason = self.clean(&format!("the answer broke off after {} bytes ({fault})", bytes.len()));
            let charged = status < 300;
            return Err(Fault {
                status: None,
                attempt: Attempt::Again { reason, wait, crowded: timed_out, charged },
            });
        }
        let parsed = serde_json::from_slice::<Value>(&bytes);
        if (200..300).contains(&status) {
            return parsed.map_err(|fault| {
                let reason = format!("the answer is no JSON ({fault}): {}", self.start(&bytes));
                Fault {
                    status: Some(status),
                    attempt: Attempt::Again { reason, wait: None, crowded: false, charged: true },
                }
            });
        }
        Err(self.refused(status, wait, &parsed.unwrap_or(Value::Null), &bytes))
    }

    /// What a request that brought no status means.
    fn failed(&self, fault: reqwest::Error) -> Fault {
        let (timed_out, connecting) = (fault.is_timeout(), fault.is_connect());
        let fault = fault.without_url();
        let mut causes = vec![fault.to_string()];
        let mut cause = std::error::Error::source(&fault);
        while let Some(inner) = cause {
            causes.push(inner.to_string());
            cause = inner.source();
        }
        let what = match (timed_out, connecting) {
            (true, _) => format!("no answer within {} s", self.config.limits.timeout_seconds),
            (false, true) => format!("{} cannot be reached", shown(&self.config.base_url)),
            (false, false) => "no answer".into(),
        };
        let reason = self.clean(&format!("{what} ({})", causes.join(": ")));
        let attempt = Attempt::Again { reason, wait: None, crowded: timed_out, charged: !connecting };
        Fault { status: None, attempt }
    }

    /// What a status that is no success means.
    fn refused(&self, status: u16, wait: Option<Duration>, body: &Value, bytes: &[u8]) -> Fault {
        let error = body.get("error").unwrap_or(body);
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
        let code = [text("code"), text("type")].join(" ");
        let said = match (error.as_str(), text("message")) {
            (Some(words), _) => self.clean(words),
            (None, "") => self.start(bytes),
            (None, words) => self.clean(words),
        };
        let reason = format!("status {status}: {said}");
        let again = |crowded: bool| Attempt::Again { reason: reason.clone(), wait, crowded, charged: false };
        let attempt = match status {
            429 if code.contains("insufficient_quota") => {
                Attempt::Stop(format!("the account has nothing left ({reason}); pay, or set another key"))
            }
            429 => again(true),
            408 | 503 | 504 | 529 => again(true),
            500..=599 if status != 501 => again(false),
            401 | 402 => Attempt::Stop(format!(
                "the endpoint refuses the key ({reason}); set the right one in {}",
                self.config.key_env.as_deref().unwrap_or(KEY)
            )),
            404 | 405 => Attempt::Stop(format!(
                "there is no model {:?} at {} ({reason}); check model and base_url",
                self.config.model,
                shown(&self.config.base_url)
            )),
            300..=399 => Attempt::Stop(format!(
                "{} answers from elsewhere ({reason}); write that address as base_url",
                shown(&self.config.base_url)
            )),
            400 | 403 | 422
                if ["content_filter", "content_policy", "moderation"]
                    .iter()
                    .any(|word| code.contains(word)) =>
            {
                Attempt::Answer(super::Answer::of(Outcome::Refusal { raw: said }))
            }
            _ => Attempt::Never(reason),
        };
        Fault { status: Some(status), attempt }
    }

    /// The start of some bytes, as text without secrets.
    fn start(&self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        match text.trim() {
            "" => "(nothing)".into(),
            text => self.clean(text),
        }
    }

    /// A text without the key, and not endless.
    fn clean(&self, text: &str) -> String {
        let text = self.without_key(text);
        match text.char_indices().nth(300) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text,
        }
    }

    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.as_str(), "[the key]"),
            None => text.to_owned(),
        }
    }

    fn redacted(&self, mut answer: super::Answer) -> super::Answer {
        match &mut answer.outcome {
            Outcome::Refusal { raw } | Outcome::Unreadable { raw } => *raw = self.without_key(raw),
            _ => {}
        }
        answer.endpoint = answer.endpoint.map(|endpoint| self.clean(&endpoint));
        answer
    }
}

/// How long a server asks to wait: seconds, or until a date.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get("retry-after")?.to_str().ok()?.trim();
    wait(text, SystemTime::now())
}

fn wait(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(text).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

fn without_user(host: &str) -> &str {
    let authority = host.split(['/', '?']).next().unwrap_or(host);
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// The host of an address, without a port.
fn host(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = without_user(rest);
    let end = if host.starts_with('[') { host.find(']').map(|at| at + 1) } else { host.find(':') };
    host[..end.unwrap_or(host.len())].to_owned()
}

/// An address without what may be secret in it: a user's name and password, and the query.
fn shown(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let path = rest.find('/').map_or("", |slash| &rest[slash..]);
    let colon = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{colon}{}{path}", without_user(rest))
}

#[cfg(test)]
mod tests;
