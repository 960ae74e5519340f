//! A judge that knows the truth, with as much bias and noise as it is given: what the statistics are tested with.
//!
//! # Equation
//! With the true ln P(first) − ln P(second) = d of a pair in its order (Bradley-Terry: the difference of the utilities), a set bias b
//! towards the first slot and noise n,
//! P(A) = (1 − n) · σ(d + b) + n / 2:
//! the bias adds to the log-odds of the image that stands first, and with probability n the answer is a fair coin. Each call draws
//! from a stream of its own, so the errors of calls are independent. As log-probability the judge gives ln P(A) − ln P(B), which it
//! knows, without a draw.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::question::Question;
use super::transport::Attempt;
use super::{Answer, Identity};
use crate::error::{Error, Result};
use crate::judgement::{Order, Outcome, Slot, sigmoid};
use crate::rng::{Stream, stream};
use crate::units::Seed;

/// How far from the truth the oracle is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// b: what is added to the log-odds of the image in the first slot.
    pub bias: f64,
    /// n: how often the answer is a fair coin.
    pub noise: f64,
    /// Where its choices are drawn from.
    pub seed: u64,
    /// Whether it gives log-probabilities.
    pub logprobs: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { bias: 0.0, noise: 0.0, seed: 0, logprobs: true }
    }
}

impl Config {
    /// # Errors
    /// Where the bias is no number or the noise no probability.
    pub(super) fn check(&self) -> Result<()> {
        if self.bias.is_finite() && (0.0..=1.0).contains(&self.noise) {
            return Ok(());
        }
        Err(Error::Spec(format!(
            "an oracle of bias {} and noise {}; expected a finite bias and a noise in [0, 1]",
            self.bias, self.noise
        )))
    }

    /// P(A), where ln P(left) − ln P(right) is `log_odds` in truth.
    pub fn probability_of_a(&self, log_odds: f64, order: Order) -> f64 {
        let d = match order {
            Order::LeftFirst => log_odds,
            Order::RightFirst => -log_odds,
        };
        (1.0 - self.noise) * sigmoid(d + self.bias) + 0.5 * self.noise
    }

    /// One call's answer.
    pub fn answer(&self, log_odds: f64, order: Order, stream: &mut Stream) -> Outcome {
        let p = self.probability_of_a(log_odds, order);
        let slot = if stream.chance(p) { Slot::A } else { Slot::B };
        // At the ends of what a number holds the odds are not finite, and then not given.
        let odds = Some(p.ln() - (1.0 - p).ln()).filter(|odds| self.logprobs && odds.is_finite());
        Outcome::Verdict { slot, log_odds: odds }
    }

    pub(super) fn identity(&self) -> Identity {
        Identity {
            kind: "oracle",
            model: format!("bias {} noise {}", self.bias, self.noise),
            version: format!("seed {}", self.seed),
            settings: json!(self),
        }
    }

    /// Answers a question.
    ///
    /// # Errors
    /// Where the pair's true log-odds are not given.
    pub(super) fn attempt(&self, question: &Question) -> Result<Attempt> {
        let asked = question.asked;
        let (user, prompt) = (&asked.user, &asked.prompt);
        let Some(log_odds) = asked.log_odds.filter(|odds| !odds.is_nan()) else {
            return Err(Error::Spec(format!(
                "the oracle is asked about {} against {} for user {user:?}, whose true log-odds are not given; give them in a \
                 column log_odds of --pairs",
                asked.left.name(),
                asked.right.name()
            )));
        };
        let (left, right) = (asked.left.name(), asked.right.name());
        let purpose = format!("judge oracle\0{user}\0{prompt}\0{left}\0{right}\0{}", question.order.name());
        let mut stream = stream(Seed::new(self.seed), &purpose, u64::from(question.repeat));
        Ok(Attempt::Answer(Answer::of(self.answer(log_odds, question.order, &mut stream))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_follow_the_equation_in_both_orders() {
        for (d, bias, noise) in
            [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.7, 0.8, 0.0), (-0.5, -1.0, 0.4), (9.0, 0.0, 1.0)]
        {
            let oracle = Config { bias, noise, ..Config::default() };
            for (order, sign) in [(Order::LeftFirst, 1.0), (Order::RightFirst, -1.0)] {
                let expected = (1.0 - noise) / (1.0 + f64::exp(-(sign * d + bias))) + noise / 2.0;
                let mut draws = stream(Seed::new(1), "oracle test", 0);
                let count = 20_000;
                let mut first = 0;
                for _ in 0..count {
                    let Outcome::Verdict { slot, log_odds } = oracle.answer(d, order, &mut draws) else {
                        unreachable!()
                    };
                    assert!((sigmoid(log_odds.unwrap()) - expected).abs() < 1e-12);
                    first += u32::from(slot == Slot::A);
                }
                // Four standard errors of a share of 20,000.
                let got = f64::from(first) / f64::from(count);
                assert!((got - expected).abs() < 0.0142, "{d} {bias} {noise}: {got}, expected {expected}");
            }
        }
        assert!(Config { noise: 1.5, ..Config::default() }.check().is_err());
        assert!(Config { bias: f64::NAN, ..Config::default() }.check().is_err());
    }
}
