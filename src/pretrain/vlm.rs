//! Trains the desk's vision-language model: LLaVA-OneVision's architecture, a few hundred thousand weights, taught in
//! templated language to describe an image, to say how two differ, to sum up a taste from pairs, and to foresee a choice.
//!
//! It is taught the very task that PPD asks of it, so it shows the mechanism, and nothing of what the features of an
//! off-the-shelf model hold. What it learns from: renders, samples of the base for captions that no user study draws on,
//! and users of seeds of its own, never from the cluster that is kept for unseen users.

mod lessons;
mod repository;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, write_config};
use super::trainer::{Optimisation, Step, Trainer};
use crate::data::Preference;
use crate::data::desk::users::Shown;
use crate::embed::Template;
use crate::error::{Error, Result};
use crate::models::llava_onevision::{
    ChatTemplate, ChatTokenizer, ImageProcessor, Input, Layout, LlavaOnevision, Message,
};
use crate::pixels::Image;
use crate::rng::{Stream, stream};
use crate::scenes::population::SAMPLES;
use crate::scenes::tastes::{self, FEATURES, Taste, Tastes};
use crate::scenes::{Split, talk};
use crate::units::Seed;
use crate::vlm::Vlm;
use crate::weights::{self, Trainable};

pub use lessons::Subject;
use lessons::{ANSWERS, any_user, asked, describing, loss, preferring, rendered};
pub use repository::Sizes;

/// The recipe of a desk vision-language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlmConfig {
    /// Initialisation, lessons and users: another seed shares none of them.
    pub seed: Seed,
    /// The model's sizes.
    pub sizes: Sizes,
    /// Pairs of renders to learn from, beside the samples of the base.
    pub renders: usize,
    /// How often pictures are the base's samples.
    pub samples: f64,
    /// How often each subject is taught at the beginning.
    pub first: [f64; 4],
    /// How often each subject is taught from [`VlmConfig::later_from`] on.
    pub later: [f64; 4],
    /// The share of the steps after which the later shares hold.
    pub later_from: f64,
    /// The number of a user's pairs is drawn from these.
    pub shots: Vec<usize>,
    /// Length and speed.
    pub optimisation: Optimisation,
}

impl VlmConfig {
    /// The model that embeds users.
    pub fn embedder() -> Self {
        Self {
            seed: Seed::new(5005),
            sizes: Sizes {
                patch: 21,
                vision_width: 64,
                vision_layers: 3,
                text_width: 64,
                text_inner: 192,
                text_layers: 4,
            },
            renders: 6000,
            samples: 0.5,
            first: [0.45, 0.25, 0.1, 0.2],
            later: [0.1, 0.1, 0.4, 0.4],
            later_from: 0.25,
            shots: vec![1, 2, 3, 4, 4, 4, 6, 8],
            optimisation: Optimisation {
                steps: 3500,
                micro_batches: 2,
                micro_batch: 16,
                learning_rate: 2e-3,
                warmup_steps: 100,
                weight_decay: 0.02,
                max_grad_norm: 1.0,
                ema_decay: 0.998,
                former_plans: Vec::new(),
                restarts: Vec::new(),
            },
        }
    }

    /// The model that judges, which shares neither weights nor lessons with the one that embeds.
    pub fn judge() -> Self {
        Self {
            seed: Seed::new(6006),
            first: [0.4, 0.25, 0.05, 0.3],
            later: [0.1, 0.1, 0.1, 0.7],
            ..Self::embedder()
        }
    }

    /// A few steps of a tiny model, to try the loop.
    pub fn smoke() -> Self {
        let mut config = Self::embedder();
        config.sizes = Sizes {
            patch: 32,
            vision_width: 16,
            vision_layers: 1,
            text_width: 16,
            text_inner: 32,
            text_layers: 2,
        };
        config.renders = 12;
        config.later_from = 0.5;
        config.optimisation =
            Optimisation { steps: 4, micro_batch: 2, warmup_steps: 2, ..config.optimisation };
        config
    }

    /// Which subject micro-batch `index` is about.
    fn subject(&self, index: u64, draw: &mut Stream) -> Subject {
        let step = index as f64 / self.optimisation.micro_batches as f64;
        let early = step < self.later_from * self.optimisation.steps as f64;
        let weights = if early { self.first } else { self.later };
        let mut left = draw.uniform() * weights.iter().sum::<f64>();
        for (subject, weight) in Subject::ALL.iter().zip(weights) {
            left -= weight;
            if left < 0.0 {
                return *subject;
            }
        }
        Subject::Prefer
    }
}

/// What stands around the model while it learns.
struct Teacher {
    processor: ImageProcessor,
    tokenizer: ChatTokenizer,
    chat: ChatTemplate,
    template: Template,
    /// The ids of [`ANSWERS`].
    answers: [u32; 2],
    /// The id of the profile's title.
    profile: u32,
}

impl Teacher {
    fn new(config: &VlmConfig) -> Result<Self> {
        let model = config.sizes.model()?;
        let tokenizer = ChatTokenizer::from_json(repository::tokenizer_json().as_bytes(), &model)?;
        let id = |word: &str| {
            tokenizer.id(word).ok_or_else(|| Error::Spec(format!("the desk's words have no {word:?}")))
        };
        Ok(Self {
            answers: [id(ANSWERS[0])?, id(ANSWERS[1])?],
            profile: id("Profile:")?,
            processor: ImageProcessor::new(&repository::processor(), &model)?,
            chat: ChatTemplate::new(repository::CHAT_TEMPLATE)?,
            template: Template::parse(talk::FEW_SHOT, talk::FEW_SHOT_FILE)?,
            tokenizer,
        })
    }
}

/// Trains, or goes on training, a model on renders and on `samples`, and leaves a repository in `out`, beside the training
/// state. One in eight of the samples is kept for what is measured at the end. `progress` says after each step whether to go
/// on; where it stops, the state is kept and there is no manifest.
///
/// # Errors
/// Where a sample's caption is none of the desk's, the disk refuses, or the loss stops being finite.
pub fn run(
    config: &VlmConfig,
    samples: &[&Preference],
    out: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<Option<Manifest>> {
    let teacher = Teacher::new(config)?;
    let (kept, learned): (Vec<_>, Vec<_>) =
        samples.iter().copied().enumerate().partition(|(i, _)| i % 8 == 0);
    let shown = |pairs: Vec<(usize, &Preference)>| {
        Shown::of_pairs(&pairs.into_iter().map(|(_, pair)| pair).collect::<Vec<_>>(), &SAMPLES)
    };
    let (kept, learned) = (shown(kept)?, shown(learned)?);
    let renders = rendered(config.seed, config.renders, Split::Train, &SAMPLES)?;
    let users = Tastes::new(config.seed, tastes::Config::desk(SAMPLES));
    let model = config.sizes.model()?;
    let trainable = Trainable::new(config.seed);
    let vlm = LlavaOnevision::new(&model, trainable.builder(&Device::Cpu))?;
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    let batch = |index: u64| -> Result<Tensor> {
        let mut draw = stream(config.seed, "vlm lessons", index);
        let subject = config.subject(index, &mut draw);
        let shots = *draw.pick(&config.shots);
        // Short lessons come in larger batches.
        let larger = if matches!(subject, Subject::Describe | Subject::Compare) { 2 } else { 1 };
        let lessons = (0..larger * config.optimisation.micro_batch).map(|_| {
            let pool = if draw.chance(config.samples) && !learned.is_empty() { &learned } else { &renders };
            teacher.lesson(subject, pool, &users, shots, &mut draw)
        });
        loss(&vlm, &lessons.collect::<Result<Vec<_>>>()?)
    };
    if !trainer.run(&out.join("state.safetensors"), progress, batch)? {
        return Ok(None);
    }
    let files = store(config, out, &trainer.averaged())?;
    let stored = Vlm::open(out, DType::F32, &Device::Cpu)?;
    let evaluation = evaluate(&stored, &teacher, &kept, &users, 400)?;
    Manifest::write(out, "vlm", config, trainer.step(), &files, evaluation).map(Some)
}

/// Writes the repository's files.
fn store(config: &VlmConfig, folder: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<&'static str>> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(Error::io("write", &path))
    };
    let json = |value: serde_json::Value| {
        serde_json::to_string_pretty(&value).expect("a config is plain data") + "\n"
    };
    weights::save(folder.join("model.safetensors"), tensors, DType::F16, &BTreeMap::new())?;
    write_config(folder, &Described { model_type: "llava_onevision", config: config.sizes.model()? })?;
    let plain = |value: serde_json::Result<serde_json::Value>| value.expect("a config is plain data");
    write("preprocessor_config.json", json(plain(serde_json::to_value(repository::processor()))))?;
    write("generation_config.json", json(plain(serde_json::to_value(repository::generation()?))))?;
    write("chat_template.json", json(serde_json::json!({"chat_template": repository::CHAT_TEMPLATE})))?;
    write("tokenizer.json", repository::tokenizer_json())?;
    Ok(vec![
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "generation_config.json",
        "chat_template.json",
        "tokenizer.json",
    ])
}

/// `config.json` with what says which model it is.
#[derive(Serialize)]
struct Described {
    model_type: &'static str,
    #[serde(flatten)]
    config: crate::models::llava_onevision::Config,
}

/// What is measured on pictures that nothing was learned from, with users that nothing was learned from: how much of what
/// is said of an image is right and how much of what there is to say is said, the cosine of a written profile with the
/// user's weights, and after 0 to 8 pairs how often the user's likelier choice is foreseen, beside how often the likelier
/// choice is taken.
fn evaluate(
    vlm: &Vlm,
    teacher: &Teacher,
    pool: &[Shown],
    users: &Tastes,
    count: usize,
) -> Result<BTreeMap<String, f64>> {
    let mut results = BTreeMap::new();
    if pool.is_empty() {
        return Ok(results);
    }
    // Users far beyond those that lessons draw: their indices are random bits.
    let mut draw = stream(Seed::new(0), "vlm evaluation", 0);
    let (mut said_right, mut said, mut there) = (0.0, 0.0, 0.0);
    for batch in (0..count.min(2 * pool.len())).collect::<Vec<_>>().chunks(40) {
        let pictures: Vec<_> = batch.iter().map(|i| (&pool[i / 2], i % 2)).collect();
        let inputs = pictures
            .iter()
            .map(|(shown, side)| prompt(vlm, teacher, &describing(&shown.caption), &[&shown.images[*side]]));
        let written =
            vlm.model.generate(&inputs.collect::<Result<Vec<_>>>()?, &vlm.greedy(12), &mut [], |_| Ok(()))?;
        for ((shown, side), written) in pictures.iter().zip(written) {
            let text = vlm.tokenizer.decode(&written.ids, false)?;
            let truth = talk::describe(&shown.features[*side]);
            let truth: Vec<&str> = truth.split(' ').collect();
            let words: Vec<&str> = text.split_whitespace().collect();
            said += words.len() as f64;
            there += truth.len() as f64;
            said_right += words.iter().filter(|word| truth.contains(word)).count() as f64;
        }
    }
    results.insert("description: precision".into(), said_right / f64::max(said, 1.0));
    results.insert("description: recall".into(), said_right / there);
    let cosines = profiles(vlm, teacher, pool, users, count / 4, &mut draw)?;
    results.insert("profile from 4 pairs: cosine".into(), cosines.iter().sum::<f64>() / cosines.len() as f64);
    for shots in [0, 1, 2, 4, 8] {
        let (mut right, mut ceiling) = (0.0, 0.0);
        for batch in (0..count).collect::<Vec<_>>().chunks(40) {
            let mut inputs = Vec::new();
            let mut odds = Vec::new();
            for _ in batch {
                let user = any_user(users, &mut draw);
                let pairs = asked(pool, &user, shots + 1, &mut draw);
                let answered: Vec<(&str, usize)> =
                    pairs[..shots].iter().map(|(shown, chosen)| (shown.caption.as_str(), *chosen)).collect();
                let images: Vec<&Image> = pairs.iter().flat_map(|(shown, _)| shown.images.iter()).collect();
                let (last, _) = pairs[shots];
                inputs.push(prompt(vlm, teacher, &preferring(&answered, &last.caption), &images)?);
                odds.push(user.prefers(&last.features[0], &last.features[1]));
            }
            let logits = vlm.model.next_logits(&inputs, &teacher.answers)?.to_vec2::<f32>()?;
            for (logits, odds) in logits.iter().zip(odds) {
                right += if logits[0] > logits[1] { odds } else { 1.0 - odds };
                ceiling += odds.max(1.0 - odds);
            }
        }
        results.insert(format!("choice after {shots} pairs: accuracy"), right / count as f64);
        results.insert(format!("choice after {shots} pairs: ceiling"), ceiling / count as f64);
    }
    Ok(results)
}

/// The cosines of written profiles with their users' weights.
fn profiles(
    vlm: &Vlm,
    teacher: &Teacher,
    pool: &[Shown],
    users: &Tastes,
    count: usize,
    draw: &mut Stream,
) -> Result<Vec<f64>> {
    let mut cosines = Vec::new();
    for batch in (0..count.max(1)).collect::<Vec<_>>().chunks(20) {
        let (mut inputs, mut tasted) = (Vec::new(), Vec::new());
        for _ in batch {
            let user = any_user(users, draw);
            let pairs = asked(pool, &user, 4, draw);
            let captions: Vec<&str> = pairs.iter().map(|(shown, _)| shown.caption.as_str()).collect();
            let images: Vec<&Image> =
                pairs.iter().flat_map(|(s, chosen)| [&s.images[*chosen], &s.images[1 - chosen]]).collect();
            inputs.push(prompt(vlm, teacher, &teacher.template.fill(&captions).user, &images)?);
            tasted.push(user);
        }
        for (written, user) in
            vlm.model.generate(&inputs, &vlm.greedy(160), &mut [], |_| Ok(()))?.iter().zip(&tasted)
        {
            let text = vlm.tokenizer.decode(&written.ids, false)?;
            let mut weights = [0.0; FEATURES];
            for word in text.rsplit("User Profile:").next().unwrap_or_default().split_whitespace() {
                if let Some((feature, sign)) = talk::meaning(word) {
                    weights[feature] = sign;
                }
            }
            cosines.push(user.likeness(&Taste { cluster: 0, weights, lapse: 0.0 }));
        }
    }
    Ok(cosines)
}

fn prompt(vlm: &Vlm, teacher: &Teacher, text: &str, images: &[&Image]) -> Result<Input> {
    let asked = teacher.chat.render(&[Message::text("user", text)], true)?;
    vlm.input_of(&asked, images, Layout::BaseOnly)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_stops_goes_on_and_ends_as_if_it_had_not_stopped() {
        let config = VlmConfig::smoke();
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        for folder in [&whole, &parts] {
            std::fs::create_dir(folder).unwrap();
        }
        let mut losses = Vec::new();
        let one = run(&config, &[], &whole, 1, &mut |step| {
            losses.push(step.loss);
            true
        });
        assert!(run(&config, &[], &parts, 1, &mut |step| step.step < 2).unwrap().is_none());
        let two = run(&config, &[], &parts, 1, &mut |_| true).unwrap().unwrap();
        let one = one.unwrap().unwrap();
        assert_eq!(one.files, two.files, "the same weights to the last bit");
        assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
        let opened = Vlm::open(&whole, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(opened.end_tokens.len(), 1);
    }

    #[test]
    fn lessons_hold_what_is_to_be_learned() {
        let config = VlmConfig::smoke();
        let teacher = Teacher::new(&config).unwrap();
        let pool = rendered(config.seed, 6, Split::Train, &SAMPLES).unwrap();
        let users = Tastes::new(config.seed, tastes::Config::desk(SAMPLES));
        let mut draw = stream(Seed::new(1), "lessons test", 0);
        let unknown = teacher.tokenizer.id("<unk>").unwrap();
        for &subject in Subject::ALL {
            for shots in [1, 4, 8] {
                let lesson = teacher.lesson(subject, &pool, &users, shots, &mut draw).unwrap();
                assert!(!lesson.input.ids.contains(&unknown), "{subject:?}");
                let learned: Vec<u32> =
                    lesson.targets.iter().map(|(place, _)| lesson.input.ids[*place]).collect();
                let text = teacher.tokenizer.decode(&learned, false).unwrap();
                match subject {
                    Subject::Prefer => {
                        assert_eq!(learned.len(), shots + 1);
                        assert!(text.split(' ').all(|word| ANSWERS.contains(&word)), "{text}");
                    }
                    Subject::Profile => {
                        assert!(
                            text.starts_with("Pair 1: Preferred Image:") && text.contains("User Profile:")
                        );
                        assert!(text.contains(&format!("Pair {shots}:")), "{text}");
                    }
                    Subject::Describe | Subject::Compare => {
                        assert!(
                            text.split(' ').all(|w| w == talk::PLAIN || talk::meaning(w).is_some()),
                            "{text}"
                        );
                        assert_eq!(learned.last(), teacher.tokenizer.encode("<|im_end|>").unwrap().last());
                    }
                }
            }
        }
    }
}
