//! Trains the desk's vision-language model: LLaVA-OneVision's architecture, a few hundred thousand weights, taught in
//! templated language to describe an image, to say how two differ, to sum up a taste from pairs, and to foresee a choice.
//!
//! It is taught the very task that PPD asks of it, so it shows the mechanism, and nothing of what the features of an
//! off-the-shelf model hold. What it learns from: renders and samples of the base, both for captions that no
//! user study draws on, and users of seeds of its own, never from the cluster that is kept for unseen users.
//!
//! The image tower learns to measure pictures first. Then come lessons in stages, about pictures before people. What a
//! lesson says of a taste is what Bayes' rule makes of the choices shown, over the population.

mod evaluation;
mod lessons;
mod repository;
mod tower;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, write_config};
use super::trainer::{FormerPlan, Optimisation, Step, Trainer};
use crate::data::Preference;
use crate::data::desk::users::Shown;
use crate::embed::Template;
use crate::error::{Error, Result};
use crate::models::llava_onevision::{ChatTemplate, ChatTokenizer, ImageProcessor, LlavaOnevision};
use crate::rng::{Stream, stream};
use crate::scenes::belief::Prior;
use crate::scenes::population::SAMPLES;
use crate::scenes::tastes::{self, Kind, Tastes};
use crate::scenes::{Split, talk};
use crate::units::Seed;
use crate::vlm::Vlm;
use crate::weights::{self, Trainable};

use evaluation::evaluate;
pub use lessons::Subject;
use lessons::{ANSWERS, loss, rendered};
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
    /// What is taught when, in order.
    pub stages: Vec<Stage>,
    /// The number of a user's pairs is drawn from these.
    pub shots: Vec<usize>,
    /// Users whose tastes stand for the population where a lesson says what choices tell.
    pub known_users: usize,
    /// Length and speed of the image tower's own training, which comes first.
    pub tower: Optimisation,
    /// Length and speed.
    pub optimisation: Optimisation,
}

/// A part of the training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The share of the steps after which it begins.
    pub from: f64,
    /// How often each of [`Subject::ALL`] is taught.
    pub subjects: [f64; 5],
}

impl VlmConfig {
    /// The model that embeds users.
    pub fn embedder() -> Self {
        let optimisation = Optimisation {
            steps: 6000,
            micro_batches: 2,
            micro_batch: 16,
            learning_rate: 2e-3,
            warmup_steps: 100,
            weight_decay: 0.02,
            max_grad_norm: 1.0,
            ema_decay: 0.998,
            // It was planned to be twice as long, and need not be.
            former_plans: vec![FormerPlan { until_step: 2031, steps: 12_000 }],
            restarts: Vec::new(),
        };
        let tower =
            Optimisation { steps: 4000, micro_batch: 64, former_plans: Vec::new(), ..optimisation.clone() };
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
            renders: 8000,
            samples: 0.5,
            stages: vec![
                Stage { from: 0.0, subjects: [0.4, 0.3, 0.2, 0.1, 0.0] },
                Stage { from: 0.2, subjects: [0.08, 0.07, 0.55, 0.3, 0.0] },
            ],
            shots: vec![0, 1, 2, 3, 4, 4, 4, 6, 8],
            known_users: 2000,
            tower,
            optimisation,
        }
    }

    /// The model that judges, which shares neither weights nor lessons with the one that embeds.
    pub fn judge() -> Self {
        Self {
            seed: Seed::new(6006),
            stages: vec![
                Stage { from: 0.0, subjects: [0.4, 0.3, 0.2, 0.0, 0.1] },
                Stage { from: 0.2, subjects: [0.05, 0.05, 0.2, 0.0, 0.7] },
            ],
            optimisation: Optimisation { former_plans: Vec::new(), ..Self::embedder().optimisation },
            ..Self::embedder()
        }
    }

    /// The model that embeds, taught to describe pictures and how two differ, and nothing of people: what of an embedding was
    /// taught for the purpose. It sees more lessons about pictures than [`VlmConfig::embedder`] does (about 1,600 steps' worth).
    pub fn pictures() -> Self {
        let learned = Self::embedder().optimisation;
        Self {
            stages: vec![Stage { from: 0.0, subjects: [0.5, 0.5, 0.0, 0.0, 0.0] }],
            optimisation: Optimisation { steps: 2000, former_plans: Vec::new(), ..learned },
            ..Self::embedder()
        }
    }

    /// The model that embeds, as it is before it learns anything.
    pub fn untrained() -> Self {
        let nothing = |learned: Optimisation| Optimisation { steps: 0, former_plans: Vec::new(), ..learned };
        let learned = Self::embedder();
        Self {
            tower: nothing(learned.tower),
            optimisation: nothing(learned.optimisation),
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
        config.known_users = 20;
        config.stages[1].from = 0.5;
        config.tower.steps = 2;
        config.tower.micro_batch = 4;
        config.optimisation =
            Optimisation { steps: 4, micro_batch: 2, warmup_steps: 2, ..config.optimisation };
        config
    }

    /// Which subject micro-batch `index` is about.
    fn subject(&self, index: u64, draw: &mut Stream) -> Subject {
        let step = index as f64 / self.optimisation.micro_batches as f64;
        let begun = |stage: &&Stage| step >= stage.from * self.optimisation.steps as f64;
        let weights = self.stages.iter().rfind(begun).map_or([1.0; 5], |stage| stage.subjects);
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
    users: Tastes,
    prior: Prior,
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
        let users = Tastes::new(config.seed, tastes::Config::desk(SAMPLES));
        Ok(Self {
            prior: Prior::new(&users, Kind::Seen, config.known_users),
            users,
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
    let model = config.sizes.model()?;
    let seen: Vec<&Shown> = learned.iter().chain(&renders).collect();
    let tower = (config.seed, &config.tower);
    let Some(tower) =
        tower::train(tower, &model, (&seen, &SAMPLES), &out.join("tower.safetensors"), threads, progress)?
    else {
        return Ok(None);
    };
    let trainable = Trainable::new(config.seed);
    let vlm = LlavaOnevision::new(&model, trainable.builder(&Device::Cpu))?;
    for (name, variable) in trainable.vars() {
        if let Some(weights) = tower.get(&name) {
            variable.set(weights)?;
        }
    }
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    let batch = |index: u64| -> Result<Tensor> {
        let mut draw = stream(config.seed, "vlm lessons", index);
        let subject = config.subject(index, &mut draw);
        let shots = *draw.pick(&config.shots);
        // Short lessons come in larger batches.
        let larger = if matches!(subject, Subject::Describe | Subject::Compare) { 2 } else { 1 };
        let lessons = (0..larger * config.optimisation.micro_batch).map(|_| {
            let pool = if draw.chance(config.samples) && !learned.is_empty() { &learned } else { &renders };
            teacher.lesson(subject, pool, shots, &mut draw)
        });
        loss(&vlm, &lessons.collect::<Result<Vec<_>>>()?)
    };
    // The tower's steps count too.
    let before = config.tower.steps;
    let mut progress = |step: Step| progress(Step { step: before + step.step, ..step });
    if !trainer.run(&out.join("state.safetensors"), &mut progress, batch)? {
        return Ok(None);
    }
    let files = store(config, out, &trainer.averaged())?;
    let stored = Vlm::open(out, DType::F32, &Device::Cpu)?;
    let reasons = config.stages.iter().any(|stage| stage.subjects[4] > 0.0);
    let evaluation = evaluate(&stored, &teacher, &kept, 400, reasons)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::desk::users::Use;

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
        assert!(run(&config, &[], &parts, 1, &mut |step| step.step < 1).unwrap().is_none());
        assert!(run(&config, &[], &parts, 1, &mut |step| step.step < 4).unwrap().is_none());
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
        let mut draw = stream(Seed::new(1), "lessons test", 0);
        let unknown = teacher.tokenizer.id("<unk>").unwrap();
        assert!(pool.iter().all(|shown| Use::of(&shown.caption) == Use::Language));
        for &subject in Subject::ALL {
            for shots in [1, 4, 8] {
                let lesson = teacher.lesson(subject, &pool, shots, &mut draw).unwrap();
                assert!(!lesson.input.ids.contains(&unknown), "{subject:?}");
                let learned: Vec<u32> =
                    lesson.targets.iter().map(|(place, ..)| lesson.input.ids[*place]).collect();
                let text = teacher.tokenizer.decode(&learned, false).unwrap();
                match subject {
                    Subject::Prefer => {
                        // Every answer twice, each with its probability.
                        assert_eq!(learned.len(), 2 * (shots + 1));
                        for answers in lesson.targets.chunks(2) {
                            let weight = answers[0].2 + answers[1].2;
                            assert!((weight - 1.0 / (shots as f32 + 1.0).sqrt()).abs() < 1e-6, "{weight}");
                            assert_eq!([answers[0].1, answers[1].1], teacher.answers);
                        }
                        assert!(text.split(' ').all(|word| ANSWERS.contains(&word)), "{text}");
                    }
                    Subject::Judge => {
                        assert!(text.contains("User Profile:") && text.contains(&format!("Pair {shots}:")));
                        // The letter stands last, with both probabilities.
                        let (others, letter) = lesson.targets.split_at(lesson.targets.len() - 2);
                        assert_eq!([letter[0].1, letter[1].1], teacher.answers);
                        assert!((letter[0].2 + letter[1].2 - 1.0).abs() < 1e-6);
                        assert!(others.iter().all(|(place, ..)| *place != letter[0].0));
                        let written = lesson.input.ids[letter[0].0];
                        assert_eq!(written == teacher.answers[0], letter[0].2 >= 0.5);
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
