//! Writing on: one token after the other, greedily or drawn, with the keys of everything before kept.

use candle_core::Tensor;

use super::qwen2::{Keep, Past};
use super::{Input, LlavaOnevision};
use crate::error::{Error, Result};
use crate::rng::Stream;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The likeliest, of equals the one with the lowest id.
    Greedy,
    /// Drawn from the likeliest tokens that make up `top_p` of the probability, after the logits are divided by
    /// `temperature`.
    Drawn {
        /// Above 0; 1 leaves the probabilities as they are.
        temperature: f64,
        /// In (0, 1]; 1 keeps every token.
        top_p: f64,
    },
}

/// How far and how to write on.
#[derive(Debug, Clone)]
pub struct Decoding<'a> {
    /// The most tokens to write.
    pub max_new_tokens: usize,
    /// The tokens that end a text.
    pub end_tokens: &'a [u32],
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Whether the hidden states of the last step are wanted.
    pub states: bool,
}

/// What was written after one prompt.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The tokens, the one that ended the text included.
    pub ids: Vec<u32>,
    /// Whether the text ended by itself; otherwise at the limit.
    pub ended: bool,
    /// The hidden states of every layer at the position whose logits gave the last token: (layers + 1, D). It is what
    /// transformers' `generate` returns as `hidden_states[-1]`: the last token itself is never read again.
    pub states: Option<Tensor>,
}

impl LlavaOnevision {
    /// Writes on after each prompt of a batch; sample `i` draws from `streams[i]`, and none is needed where nothing is drawn.
    /// `step` is called after each token with the number of tokens so far, and may stop the work.
    ///
    /// # Errors
    /// [`Error::Shape`] where a prompt with its `max_new_tokens` is longer than the model's context, and those of
    /// [`LlavaOnevision::merge`], of `step`, and of sampling settings out of range.
    pub fn generate(
        &self,
        inputs: &[Input],
        decoding: &Decoding,
        streams: &mut [Stream],
        mut step: impl FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Generated>> {
        self.check(inputs, decoding, streams)?;
        let keep = if decoding.states { Keep::Last } else { Keep::None };
        let model = self.language_model();
        let merged = self.merge(inputs)?;
        // The last token is never read.
        let capacity = merged.embeddings.dim(1)? + decoding.max_new_tokens - 1;
        let mut cache = model.cache(&merged.starts, capacity)?;
        let mut states = model.forward(&merged.embeddings, Past::Cache(&mut cache), keep)?;
        drop(merged);
        let mut written = vec![Generated { ids: Vec::new(), ended: false, states: None }; inputs.len()];
        for count in 1..=decoding.max_new_tokens {
            let logits = model.logits(&states.last)?.to_vec2::<f32>()?;
            for (i, (written, logits)) in written.iter_mut().zip(logits).enumerate() {
                if written.ended {
                    continue;
                }
                let token = decoding.sampling.choose(logits, streams.get_mut(i))?;
                written.ids.push(token);
                written.ended = decoding.end_tokens.contains(&token);
                if decoding.states && (written.ended || count == decoding.max_new_tokens) {
                    let row = |xs: &Tensor| xs.get(i)?.squeeze(0); // (D)
                    let rows =
                        states.hidden_states.iter().map(row).collect::<candle_core::Result<Vec<_>>>()?;
                    written.states = Some(Tensor::stack(&rows, 0)?);
                }
            }
            step(count)?;
            if count == decoding.max_new_tokens || written.iter().all(|written| written.ended) {
                break;
            }
            // Samples that have ended go on unread, so that the batch stays whole.
            let last: Vec<u32> = written.iter().map(|written| written.ids[written.ids.len() - 1]).collect();
            let embeddings = model.embed(&last)?.unsqueeze(1)?; // (B, 1, D)
            states = model.forward(&embeddings, Past::Cache(&mut cache), keep)?;
        }
        Ok(written)
    }

    fn check(&self, inputs: &[Input], decoding: &Decoding, streams: &[Stream]) -> Result<()> {
        let refuse = |message: String| Err(Error::Spec(message));
        if decoding.max_new_tokens == 0 {
            return refuse("the number of new tokens is 0; expected at least 1".into());
        }
        let longest = inputs.iter().map(|input| input.ids.len()).max().unwrap_or(0);
        let context = self.config().text_config.max_position_embeddings;
        if longest + decoding.max_new_tokens > context {
            return refuse(format!(
                "a prompt of {longest} tokens and up to {} new ones do not fit the model's context of {context} \
                 (max_position_embeddings); give fewer images, the layout base-only, or a smaller --max-new-tokens",
                decoding.max_new_tokens
            ));
        }
        match decoding.sampling {
            Sampling::Drawn { temperature, top_p } if !(temperature > 0.0 && top_p > 0.0 && top_p <= 1.0) => {
                refuse(format!(
                    "temperature {temperature} and top-p {top_p}: expected a temperature above 0 and a top-p in (0, 1]"
                ))
            }
            Sampling::Drawn { .. } if streams.len() != inputs.len() => refuse(format!(
                "{} streams of random numbers for {} prompts; each needs its own",
                streams.len(),
                inputs.len()
            )),
            _ => Ok(()),
        }
    }
}

impl Sampling {
    fn choose(self, logits: Vec<f32>, stream: Option<&mut Stream>) -> Result<u32> {
        let top = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
            if logit > best.1 { (id, logit) } else { best }
        });
        if let Some(bad) = logits.iter().find(|logit| !logit.is_finite()) {
            return Err(Error::NonFinite {
                what: "a logit".into(),
                value: f64::from(*bad),
                place: "the language model's next token".into(),
            });
        }
        match (self, stream) {
            (Self::Drawn { temperature, top_p }, Some(stream)) => {
                Ok(drawn(&logits, f64::from(top.1), temperature, top_p, stream))
            }
            _ => Ok(top.0 as u32),
        }
    }
}

/// The smallest set of likeliest tokens whose probabilities reach `top_p`, the likeliest first, each with its weight; the
/// weights' sum stands beside.
///
/// # Source
/// transformers' `TemperatureLogitsWarper`, then `TopPLogitsWarper`.
fn kept(logits: &[f32], top: f64, temperature: f64, top_p: f64) -> (Vec<(usize, f64)>, f64) {
    let weight = |&logit: &f32| ((f64::from(logit) - top) / temperature).exp();
    let mut weighted: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
    let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
    weighted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut kept = 0.0;
    let mut count = 0;
    while count < weighted.len() && (count == 0 || kept < top_p * total) {
        kept += weighted[count].1;
        count += 1;
    }
    weighted.truncate(count);
    (weighted, kept)
}

/// One draw among [`kept`] tokens.
fn drawn(logits: &[f32], top: f64, temperature: f64, top_p: f64, stream: &mut Stream) -> u32 {
    let (weighted, sum) = kept(logits, top, temperature, top_p);
    let mut left = stream.uniform() * sum;
    let mut last = 0;
    for (id, weight) in weighted {
        last = id as u32;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    #[test]
    fn draws_follow_the_probabilities_of_the_kept_tokens() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let shares = |temperature, top_p| {
            let mut stream = stream(Seed::new(3), "generate test", 0);
            let mut counts = [0u32; 4];
            let sampling = Sampling::Drawn { temperature, top_p };
            for _ in 0..20_000 {
                counts[sampling.choose(logits.clone(), Some(&mut stream)).unwrap() as usize] += 1;
            }
            counts.map(|count| f64::from(count) / 20_000.0)
        };
        let near = |got: [f64; 4], expected: [f64; 4]| {
            // Four standard errors of a share of 20,000.
            let close = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 0.0142);
            assert!(close, "{got:?}, expected {expected:?}");
        };
        near(shares(1.0, 1.0), [0.5, 0.3, 0.15, 0.05]);
        // 0.5 + 0.3 reaches 0.7 and no more is kept; at most half of it reaches one token.
        near(shares(1.0, 0.7), [0.625, 0.375, 0.0, 0.0]);
        near(shares(1.0, 0.5), [1.0, 0.0, 0.0, 0.0]);
        let squares = [0.25, 0.09, 0.0225, 0.0025].map(|p| p / 0.365);
        near(shares(0.5, 1.0), squares);
    }

    #[test]
    fn the_kept_tokens_and_their_probabilities_are_transformers() {
        #[derive(serde::Deserialize)]
        struct Case {
            temperature: f64,
            top_p: f64,
            logits: Vec<f32>,
            probabilities: Vec<f64>,
        }
        let text = include_str!("../../../tests/fixtures/llava_onevision/warpers.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert!(cases.len() > 10);
        for Case { temperature, top_p, logits, probabilities } in cases {
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (weighted, sum) = kept(&logits, f64::from(top), temperature, top_p);
            let mut ours = vec![0.0; logits.len()];
            weighted.into_iter().for_each(|(id, weight)| ours[id] = weight / sum);
            for (ours, theirs) in ours.iter().zip(&probabilities) {
                assert_eq!(*ours > 0.0, *theirs > 0.0, "temperature {temperature}, top-p {top_p}");
                // Theirs are in single precision.
                assert!((ours - theirs).abs() < 1e-6, "{ours} for {theirs}");
            }
        }
    }

    #[test]
    fn the_likeliest_of_equals_is_the_first_and_a_logit_that_is_no_number_is_named() {
        assert_eq!(Sampling::Greedy.choose(vec![1.0, 3.0, 3.0], None).unwrap(), 1);
        let message = Sampling::Greedy.choose(vec![1.0, f32::NAN], None).unwrap_err().to_string();
        assert!(message.contains("logit"), "{message}");
    }
}
