//! What an endpoint can, found out with two images and a question whose answer is known.
//!
//! A red and a blue image are shown, in both orders, and the judge is asked which is red: who sees knows it twice, who always names
//! the same letter knows it once. The same two calls show whether answers keep to a schema and come with log-probabilities. What an
//! endpoint refuses (status 400 and the like) is left out of the next attempt.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Fault, OpenAi, answer};
use crate::error::{Error, Result};
use crate::judge::transport::{Attempt, pause};
use crate::judgement::{Outcome, Slot};
use crate::pixels::Image;
use crate::progress::Progress;
use crate::record::replace_file;

/// What an endpoint can besides seeing, without which it is no judge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abilities {
    /// Its answers keep to a JSON schema.
    pub json_schema: bool,
    /// How many tokens' log-probabilities it lists; 0 where it gives none.
    pub top_logprobs: u8,
}

/// Numbers of tokens to ask log-probabilities of: most give twenty, some at most five.
const LISTED: [u8; 3] = [20, 5, 0];
/// Images of this side are above every model's least.
const SIDE: usize = 64;

impl OpenAi {
    /// Takes the abilities that were found out before, and says whether there were any.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn recall(&mut self, folder: &Path) -> Result<bool> {
        let path = self.probe_file(folder);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(fault) => return Err(Error::io("read", &path)(fault)),
        };
        // What is no answer is found out again.
        self.abilities = serde_json::from_slice(&text).ok();
        Ok(self.abilities.is_some())
    }

    /// Finds out what the endpoint can, and keeps it below `folder`.
    ///
    /// # Errors
    /// [`Error::Judge`] where it does not see, lacks what the configuration demands, or cannot be asked.
    pub fn probe(&mut self, folder: Option<&Path>, progress: &Progress) -> Result<Abilities> {
        let mut refused = String::new();
        let wished = |wish: Option<bool>, has: bool| wish.is_none_or(|wish| wish == has);
        for json_schema in [true, false].into_iter().filter(|json| wished(self.config.json_schema, *json)) {
            for top_logprobs in LISTED.into_iter().filter(|top| wished(self.config.logprobs, *top > 0)) {
                match self.looks(Abilities { json_schema, top_logprobs }, progress)? {
                    Look::Refused(reason) => refused = reason,
                    // Another number of tokens would not help.
                    Look::NoSchema(said) => {
                        refused = format!("asked for a JSON schema, it answers {said:?}");
                        break;
                    }
                    Look::Sees(abilities) => {
                        if self.config.logprobs == Some(true) && abilities.top_logprobs == 0 {
                            return Err(self.lacks(
                                "gives no log-probabilities; leave `logprobs` out of its configuration",
                            ));
                        }
                        self.abilities = Some(abilities);
                        if let Some(folder) = folder {
                            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
                            let text = serde_json::to_string(&abilities)
                                .map_err(|fault| Error::Judge(fault.to_string()))?;
                            replace_file(&self.probe_file(folder), text.as_bytes())?;
                        }
                        return Ok(abilities);
                    }
                }
            }
        }
        Err(self.lacks(&format!(
            "cannot be asked about images: it takes no request with two of them ({refused}); a judge must see: choose a model with \
             vision, or leave `json_schema` and `logprobs` out of its configuration"
        )))
    }

    fn probe_file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.probe.json", self.configured().digest().short()))
    }

    fn lacks(&self, what: &str) -> Error {
        let url = super::shown(&self.config.base_url);
        Error::Judge(format!("the judge {:?} at {url} {what}", self.config.model))
    }

    /// Shows both images in both orders.
    fn looks(&self, abilities: Abilities, progress: &Progress) -> Result<Look> {
        let colour = |rgb: [u8; 3]| Image::new(SIDE, SIDE, rgb.repeat(SIDE * SIDE));
        let [red, blue] = [self.encoded(&colour([220, 20, 20]))?, self.encoded(&colour([20, 20, 220]))?];
        let question = format!("\nWhich of the two images is red? {}", answer::form(abilities.json_schema));
        let mut has = abilities;
        for (images, right) in [([&red, &blue], Slot::A), ([&blue, &red], Slot::B)] {
            let texts = ["Image A: ", "\nImage B: ", &question];
            let body = self.body(None, &texts, &images.map(String::clone), 0, abilities);
            let reply = match self.patiently(&body, progress)? {
                Ok(reply) => reply,
                Err(reason) => return Ok(Look::Refused(reason)),
            };
            let given = answer::read(&reply, abilities.json_schema);
            let given =
                given.map_err(|reason| self.lacks(&format!("does not answer: {}", self.clean(&reason))))?;
            match given.outcome {
                Outcome::Verdict { slot, log_odds } if slot == right => {
                    if log_odds.is_none() {
                        has.top_logprobs = 0;
                    }
                }
                Outcome::Unreadable { raw } if abilities.json_schema => {
                    return Ok(Look::NoSchema(self.clean(&raw)));
                }
                other => {
                    let said = match other {
                        Outcome::Verdict { slot, .. } => slot.letter().to_owned(),
                        other => self.clean(other.reason()),
                    };
                    return Err(self.lacks(&format!(
                        "does not see: shown a red image as {} and a blue one as {} and asked which is red, it says {said:?}; choose \
                         a model with vision",
                        right.letter(),
                        right.other().letter()
                    )));
                }
            }
        }
        Ok(Look::Sees(has))
    }

    /// Sends a request until it is answered or refused; the inner error says what was refused.
    fn patiently(&self, body: &Value, progress: &Progress) -> Result<Result<Value, String>> {
        let limits = &self.config.limits;
        let mut number = 0;
        loop {
            number += 1;
            progress.check()?;
            let Fault { status, attempt } = match self.post(body) {
                Ok(reply) => return Ok(Ok(reply)),
                Err(fault) => fault,
            };
            match attempt {
                Attempt::Again { reason, wait, .. } => {
                    let longest = wait.is_some_and(|wait| wait.as_secs_f64() > limits.longest_wait_seconds);
                    if number >= limits.attempts || longest {
                        return Err(self
                            .lacks(&format!("cannot be asked: {reason}; run the same command again later")));
                    }
                    pause(limits, &self.configured().digest(), number, wait, progress)?;
                }
                Attempt::Stop(reason) => return Err(self.lacks(&format!("cannot be asked: {reason}"))),
                Attempt::Answer(other) => return Ok(Err(other.outcome.reason().to_owned())),
                Attempt::Never(reason) => match status {
                    Some(400 | 404 | 415 | 422 | 501) => return Ok(Err(reason)),
                    _ => return Err(self.lacks(&format!("cannot be asked: {reason}"))),
                },
            }
        }
    }
}

/// What a look at two images showed.
enum Look {
    /// It sees, and has these of the abilities that it was asked for.
    Sees(Abilities),
    /// It refused the request.
    Refused(String),
    /// Its answer does not keep to the schema.
    NoSchema(String),
}
