//! The sections of an experiment file, each field with its range.

use std::num::NonZeroUsize;

use serde::{Deserialize, Deserializer, Serialize};

use crate::diffusion::{
    GuidanceSteps, Sampler, SamplerConfig, Schedule, TimestepRange, UnconditionalHalf, UnconditionalUser,
};
use crate::error::{Error, Result};
use crate::nn::Decay;
use crate::units::{GuidanceScale, Seed};

/// Which prompts a study opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prompts {
    /// For choosing settings; looked at as often as one likes.
    Validation,
    /// For the published numbers; each look is logged.
    Test,
    /// The captions of people's own held-out choices, so many of each evaluated user; each look is logged.
    Own,
}

impl Prompts {
    /// The name that experiment files and profiles use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Test => "test",
            Self::Own => "own",
        }
    }
}

/// `[data]`: what is trained on and what is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The most preference pairs to train on; absent: all that the profile has.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_count")]
    pub pairs: Option<usize>,
    /// The prompt set.
    pub prompts: Prompts,
    /// How many of its prompts, from the first; of people's own, how many of each.
    #[serde(deserialize_with = "count")]
    pub num_prompts: usize,
    /// The noise seeds of each prompt, common to all methods: a number of them, or a list.
    pub noise_seeds: Seeds,
    /// Further noise seeds of the base alone: how its images of one prompt differ is the unit of effects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_seeds: Option<Seeds>,
    /// How many prompts' images records keep for people to look at, from the first (of people's own: of each), under the
    /// first noise and training seed.
    #[serde(default)]
    pub kept_images: usize,
}

/// `[train]`: how an adapter is fine-tuned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Optimiser steps.
    #[serde(deserialize_with = "count")]
    pub steps: usize,
    /// Preference pairs in each step.
    #[serde(deserialize_with = "count")]
    pub pairs_per_step: usize,
    /// AdamW's learning rate after warm-up.
    #[serde(deserialize_with = "above_zero")]
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup_steps: usize,
    /// What the learning rate does after that.
    #[serde(default, skip_serializing_if = "After::is_constant")]
    pub after_warmup: After,
    /// The timesteps that are drawn, all alike.
    #[serde(default, skip_serializing_if = "TimestepRange::is_all")]
    pub timesteps: TimestepRange,
    /// AdamW's decoupled weight decay.
    #[serde(deserialize_with = "not_negative")]
    pub weight_decay: f64,
    /// The gradient's norm is scaled down to this where it is larger.
    #[serde(deserialize_with = "above_zero")]
    pub max_grad_norm: f64,
    /// The share of pairs that train without their caption.
    #[serde(deserialize_with = "share")]
    pub text_dropout: f64,
    /// The share of pairs that train without their user.
    #[serde(deserialize_with = "share")]
    pub user_dropout: f64,
    /// The share of relabelled pairs, those with the smallest difference in score, that is left out.
    #[serde(deserialize_with = "share")]
    pub gap_filter: f64,
}

/// What the learning rate does after its warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum After {
    /// It stays, as published.
    #[default]
    Constant,
    /// It falls in a straight line to 0 at the last step.
    Linear,
    /// It falls in half a cosine to 0 at the last step.
    Cosine,
}

impl After {
    fn is_constant(&self) -> bool {
        *self == Self::Constant
    }

    /// As the optimiser takes it, for a training of `total_steps`.
    pub fn decay(self, total_steps: usize) -> Decay {
        match self {
            Self::Constant => Decay::Constant,
            Self::Linear => Decay::Linear { total_steps },
            Self::Cosine => Decay::Cosine { total_steps },
        }
    }
}

/// `[adapter]`: the shape of the user branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// User tokens that each cross-attention layer sees.
    #[serde(deserialize_with = "count")]
    pub user_tokens: usize,
    /// The width of a user token.
    #[serde(deserialize_with = "count")]
    pub token_width: usize,
    /// Whether the user projector has a bias; then the null user is learned, without one it is the base.
    pub projector_bias: bool,
}

/// `[sample]`: how images are made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Denoiser evaluations per image and branch.
    #[serde(deserialize_with = "count")]
    pub num_steps: usize,
    /// The weight of classifier-free guidance; 1 is none.
    pub guidance_scale: GuidanceScale,
    /// Whether the unconditional branch of guidance keeps the user.
    #[serde(default)]
    pub unconditional_user: UnconditionalUser,
    /// Clamps the implied clean latents to ± this at each step; absent: no clamp, as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x0_clamp: Option<f64>,
    /// The timesteps at which guidance acts; absent: all, as published.
    #[serde(default, skip_serializing_if = "TimestepRange::is_all")]
    pub guidance_interval: TimestepRange,
    /// The unconditional half is evaluated at the first of so many guided steps and kept for the others; absent: at each, as
    /// published.
    #[serde(default = "one", skip_serializing_if = "is_one", deserialize_with = "count")]
    pub unconditional_every: usize,
}

const fn one() -> usize {
    1
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

impl Sample {
    /// At which steps guidance's other half is evaluated.
    pub fn guidance_steps(&self) -> GuidanceSteps {
        GuidanceSteps {
            interval: self.guidance_interval,
            unconditional_every: NonZeroUsize::new(self.unconditional_every).unwrap_or(NonZeroUsize::MIN),
        }
    }

    /// Denoiser evaluations of one image, both halves of guidance counted.
    ///
    /// # Errors
    /// [`Error::Spec`] where there are no steps.
    pub fn evaluations(&self) -> Result<usize> {
        let config = SamplerConfig { num_steps: self.num_steps, x0_clamp: None };
        let sampler = Sampler::new(Schedule::default(), config)?;
        let guided = self.guidance_scale.get() > 1.0;
        let halves = self.guidance_steps().halves(&sampler.timesteps()[..self.num_steps]);
        let evaluated = halves.iter().filter(|half| guided && **half == UnconditionalHalf::Evaluated);
        Ok(self.num_steps + evaluated.count())
    }
}

/// `[rewards]`: the synthetic users and who checks them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewards {
    /// The rewards that are users, in the order of the one-hot vector.
    pub users: Vec<String>,
    /// Whether each image is also scored by each reward's twin, which no method trains on.
    pub twins: bool,
}

/// Seeds: written as a number of them (0 to N−1) or as a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Seeds(Vec<Seed>);

impl Seeds {
    /// The most seeds that a number may ask for: beyond it, it is surely a seed and not a number of seeds.
    const MOST: u64 = 10_000;

    /// Seeds 0 to `count` − 1.
    ///
    /// # Errors
    /// Where there are none, or too many to be meant.
    pub fn first(count: u64) -> Result<Self> {
        match count {
            0 => Err(Error::Spec("zero seeds: expected at least one".into())),
            1..=Self::MOST => Ok(Self((0..count).map(Seed::new).collect())),
            _ => Err(Error::Spec(format!(
                "{count} seeds are too many (at most {}); a single seed is written as a list: {count},",
                Self::MOST
            ))),
        }
    }

    /// These seeds.
    ///
    /// # Errors
    /// Where there are none, or one stands twice.
    pub fn list(seeds: Vec<u64>) -> Result<Self> {
        if seeds.is_empty() {
            return Err(Error::Spec("zero seeds: expected at least one".into()));
        }
        for (index, seed) in seeds.iter().enumerate() {
            if seeds[..index].contains(seed) {
                return Err(Error::Spec(format!("seed {seed} stands twice in the list")));
            }
        }
        Ok(Self(seeds.into_iter().map(Seed::new).collect()))
    }

    /// The seeds.
    pub fn get(&self) -> &[Seed] {
        &self.0
    }
}

impl std::str::FromStr for Seeds {
    type Err = Error;

    /// `5` is 0 to 4; `3,5` is these two; `3,` is this one.
    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| {
            part.trim().parse::<u64>().map_err(|_| {
                Error::Spec(format!(
                    "seeds {text:?}: expected a number of seeds such as 5, or a list such as 3,5"
                ))
            })
        };
        if text.contains(',') {
            let parts = text.strip_suffix(',').unwrap_or(text).split(',');
            return Self::list(parts.map(number).collect::<Result<_>>()?);
        }
        Self::first(number(text)?)
    }
}

impl<'de> Deserialize<'de> for Seeds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Seeds;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of seeds, or a list of them")
            }

            fn visit_i64<E: serde::de::Error>(self, count: i64) -> std::result::Result<Seeds, E> {
                let count = u64::try_from(count)
                    .map_err(|_| E::custom(format!("{count} seeds: expected at least one")))?;
                Seeds::first(count).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, count: u64) -> std::result::Result<Seeds, E> {
                Seeds::first(count).map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Seeds, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<Seeds, A::Error> {
                let mut seeds = Vec::new();
                while let Some(seed) = list.next_element()? {
                    seeds.push(seed);
                }
                Seeds::list(seeds).map_err(serde::de::Error::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<usize, D::Error> {
    let number = i64::deserialize(deserializer)?;
    usize::try_from(number)
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| serde::de::Error::custom(format!("must be at least 1, got {number}")))
}

fn some_count<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<usize>, D::Error> {
    count(deserializer).map(Some)
}

/// Declares a reader of numbers in a range.
macro_rules! ranged {
    ($name:ident, $expected:literal, $ok:expr) => {
        fn $name<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
            let number = f64::deserialize(deserializer)?;
            let ok: fn(f64) -> bool = $ok;
            if ok(number) {
                Ok(number)
            } else {
                Err(serde::de::Error::custom(format!(concat!("must be ", $expected, ", got {}"), number)))
            }
        }
    };
}

ranged!(above_zero, "a finite number above 0", |x| x.is_finite() && x > 0.0);
ranged!(not_negative, "a finite number, at least 0", |x| x.is_finite() && x >= 0.0);
ranged!(share, "at least 0 and below 1", |x| (0.0..1.0).contains(&x));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_number_or_a_list() {
        let seeds =
            |text: &str| text.parse::<Seeds>().map(|s| s.get().iter().map(|s| s.get()).collect::<Vec<_>>());
        assert_eq!(seeds("3").unwrap(), [0, 1, 2]);
        assert_eq!(seeds("3,5").unwrap(), [3, 5]);
        assert_eq!(seeds("7,").unwrap(), [7]);
        for (text, expected) in [
            ("0", "at least one"),
            ("x", "expected a number"),
            ("3,3", "twice"),
            (",", "expected"),
            ("20250101", "too many"),
        ] {
            let message = seeds(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn ranges_are_refused() {
        let train = "steps = 1\npairs_per_step = 2\nlearning_rate = 1e-4\nwarmup_steps = 0\nweight_decay = 0\n\
                     max_grad_norm = 1\ntext_dropout = 0.1\nuser_dropout = 0.1\ngap_filter = 0.3\n";
        assert_eq!(toml::from_str::<Train>(train).unwrap().weight_decay, 0.0);
        for (from, to, expected) in [
            ("steps = 1\n", "steps = 0\n", "at least 1, got 0"),
            ("1e-4", "0", "above 0, got 0"),
            ("1e-4", "inf", "finite"),
            ("weight_decay = 0", "weight_decay = -1", "at least 0, got -1"),
            ("gap_filter = 0.3", "gap_filter = 1", "below 1, got 1"),
            ("gap_filter = 0.3", "gap_filter = 0.3\ntimesteps = [0.5, 0.5]", "from < to ≤ 1, got [0.5, 0.5]"),
        ] {
            let message = toml::from_str::<Train>(&train.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
