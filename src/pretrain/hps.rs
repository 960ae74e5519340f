//! Tunes a desk CLIP on a simulated population's choices, as HPS tunes CLIP on people's: Bradley-Terry on
//! `exp(logit scale)·cosine`.
//!
//! Each pair shows one caption twice, with mistakes and styles of its own, and one user of the population chooses by
//! measured pixels and alignment. Every pair is new: one pass over them, since several passes over few pairs learn the
//! pairs. The image tower is tuned; the text tower and the temperature stay the CLIP's, and are not stored again.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::pairs::flawed_picture;
use super::stored::{MODEL, Parent, store};
use super::trainer::{Optimisation, Step, Trainer};
use crate::error::{Error, Result};
use crate::models::clip::{Clip, TextConfig, TextTower, VisionConfig, VisionTower};
use crate::models::tokenizer::Tokenizer;
use crate::pixels::Image;
use crate::provenance::file_digest;
use crate::reward::{self, Pixels, Reward};
use crate::rng::stream;
use crate::scenes::population::{Choice, Kind, Population};
use crate::scenes::{SIDE, Split, alignment, measure, sample_scene, words};
use crate::units::Seed;
use crate::weights::{BENEATH, Beneath, Trainable};

/// The recipe of an HPS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HpsConfig {
    /// Pairs, and the population's users.
    pub seed: Seed,
    /// How many users choose.
    pub users: u64,
    /// Length and speed; a micro-batch counts pairs.
    pub optimisation: Optimisation,
}

impl HpsConfig {
    /// The HPS reward: 25,600 pairs.
    pub fn reward() -> Self {
        Self {
            seed: Seed::new(5005),
            users: 200,
            optimisation: Optimisation {
                steps: 400,
                micro_batches: 2,
                micro_batch: 32,
                learning_rate: 3e-4,
                warmup_steps: 40,
                weight_decay: 0.02,
                max_grad_norm: 1.0,
                ema_decay: 0.98,
                former_plans: Vec::new(),
                restarts: Vec::new(),
            },
        }
    }

    /// The reward's twin: another CLIP, other pairs, other users.
    pub fn twin() -> Self {
        Self { seed: Seed::new(6006), ..Self::reward() }
    }
}

/// Two pictures of one caption.
struct Pair {
    caption: String,
    pictures: [Image; 2],
    /// The probability that the user gives to the first: 1, 0, or ½ for a tie.
    label: f64,
    /// The mean user's utility of the first minus that of the second.
    margin: f64,
}

fn pair(population: &Population, users: u64, seed: Seed, purpose: &str, index: u64, part: Split) -> Pair {
    let mut draw = stream(seed, purpose, index);
    let scene = sample_scene(&mut draw, [1.0, 1.0, 1.0], part);
    let pictures = [(); 2].map(|()| flawed_picture(&scene, part, &mut draw));
    let [first, second] = [0, 1].map(|i| (measure(&pictures[i]), alignment(&pictures[i], &scene)));
    let user = population.user(draw.below(users as usize) as u64);
    let label = match population.choose(&mut draw, &user, (&first.0, first.1), (&second.0, second.1)) {
        Choice::First => 1.0,
        Choice::Second => 0.0,
        Choice::Tie => 0.5,
    };
    let mean = population.mean_user();
    let margin =
        population.utility(&mean, &first.0, first.1) - population.utility(&mean, &second.0, second.1);
    Pair { caption: scene.caption(), pictures, label, margin }
}

/// `log(1 + eˣ)` without overflow.
fn softplus(xs: &Tensor) -> Result<Tensor> {
    Ok((xs.relu()? + (xs.abs()?.neg()?.exp()? + 1.0)?.log()?)?)
}

fn loss(clip: &Clip, tokenizer: &Tokenizer, pairs: &[Pair]) -> Result<Tensor> {
    let pictures: Vec<&Image> = pairs.iter().flat_map(|pair| &pair.pictures).collect();
    let captions: Vec<&str> = pairs.iter().map(|pair| pair.caption.as_str()).collect();
    let images = clip.image_features(&Pixels::default().tensor(&pictures, SIDE, &Device::Cpu)?)?; // (2B, P)
    let images = images.reshape((pairs.len(), 2, ()))?; // (B, 2, P)
    let texts = clip.text_features(&tokenizer.encode(&captions)?.trimmed())?.unsqueeze(1)?; // (B, 1, P)
    let scores = images.broadcast_mul(&texts)?.sum(2)?.broadcast_mul(&clip.logit_scale.exp()?)?; // (B, 2)
    let margin = (scores.narrow(1, 0, 1)? - scores.narrow(1, 1, 1)?)?.squeeze(1)?; // (B)
    let labels: Vec<f32> = pairs.iter().map(|pair| pair.label as f32).collect();
    let labels = Tensor::from_vec(labels, pairs.len(), &Device::Cpu)?;
    // −y log σ(m) − (1 − y) log σ(−m) = softplus(m) − y·m.
    Ok((softplus(&margin)? - (labels * &margin)?)?.mean_all()?)
}

/// Tunes, or goes on tuning, the CLIP in folder `from`; leaves `model.safetensors` (f16: the image tower alone, over the
/// CLIP's file, which is looked for in the folder of that name beside `out`), `reward.json`, `tokenizer.json` and
/// `manifest.json` in `out`, beside the training state.
///
/// # Errors
/// Where the CLIP is missing, the disk refuses, or the loss stops being finite.
pub fn run(
    config: &HpsConfig,
    from: &Path,
    out: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<Option<Manifest>> {
    let parent = Parent::open(from)?;
    let tokenizer = Tokenizer::desk(&words())?;
    let trainable = Trainable::from_weights(parent.weights.clone());
    let frozen = parent.weights.builder(DType::F32, &Device::Cpu);
    let model = &parent.config.clip;
    let projection_dim = model.projection_dim;
    let clip = Clip {
        text: TextTower::new(&TextConfig { projection_dim, ..model.text_config.clone() }, frozen.clone())?,
        vision: VisionTower::new(
            &VisionConfig { projection_dim, ..model.vision_config.clone() },
            trainable.builder(&Device::Cpu),
        )?,
        logit_scale: frozen.get((), "logit_scale")?,
    };
    let population = Population::new(config.seed, Kind::Hps);
    let count = config.optimisation.micro_batch as u64;
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    let finished = trainer.run(&out.join("state.safetensors"), progress, |index| {
        let pairs: Vec<Pair> = (index * count..(index + 1) * count)
            .map(|i| pair(&population, config.users, config.seed, "hps pair", i, Split::Train))
            .collect();
        loss(&clip, &tokenizer, &pairs)
    })?;
    if !finished {
        return Ok(None);
    }
    let metadata = BTreeMap::from([(BENEATH.to_owned(), beneath(from, out)?)]);
    let reward = reward::Config::Hps(reward::hps::Config {
        clip: model.clone(),
        pixels: parent.config.pixels.clone(),
    });
    let (reward, files) = store(out, &reward, Some(&parent.tokenizer_json), &trainer.averaged(), &metadata)?;
    let evaluation = evaluate(&reward, &parent.reward, &population, config.users, 1024)?;
    Manifest::write(out, "hps", config, trainer.step(), &files, evaluation).map(Some)
}

/// The header's entry for the CLIP, which is copied to where the tuned model will look for it unless it is there.
fn beneath(from: &Path, out: &Path) -> Result<String> {
    let name = from.file_name().map_or_else(|| "clip".into(), |name| name.to_owned());
    let file = Path::new("..").join(name).join(MODEL);
    let (source, target) = (from.join(MODEL), out.join(&file));
    if !target.exists() {
        let folder = target.parent().expect("a file stands in a folder");
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        std::fs::copy(&source, &target).map_err(Error::io("write", &target))?;
    }
    let beneath = Beneath { file, digest: file_digest(&source)? };
    Ok(serde_json::to_string(&beneath).expect("a name and a digest are plain data"))
}

/// How often the tuned and the untuned model order two pictures of a validation caption as the population's mean user
/// does and as single users choose, and how often they agree with each other.
fn evaluate(
    tuned: &Reward,
    untuned: &Reward,
    population: &Population,
    users: u64,
    count: usize,
) -> Result<BTreeMap<String, f64>> {
    let pairs: Vec<Pair> = (0..count as u64)
        .map(|i| pair(population, users, Seed::new(0), "hps evaluation", i, Split::Validation))
        .collect();
    let margins = |reward: &Reward| -> Result<Vec<f64>> {
        let scores = [0, 1].map(|side| {
            let images: Vec<Image> = pairs.iter().map(|pair| pair.pictures[side].clone()).collect();
            let captions: Vec<String> = pairs.iter().map(|pair| pair.caption.clone()).collect();
            reward.score(&images, &captions)
        });
        let [first, second] = scores;
        Ok(first?.into_iter().zip(second?).map(|(a, b)| a - b).collect())
    };
    let (after, before) = (margins(tuned)?, margins(untuned)?);
    let share =
        |right: &dyn Fn(usize) -> bool| (0..count).filter(|&i| right(i)).count() as f64 / count as f64;
    Ok(BTreeMap::from([
        ("agrees with the mean user".into(), share(&|i| (after[i] > 0.0) == (pairs[i].margin > 0.0))),
        ("agrees with single choices".into(), share(&|i| (after[i] > 0.0) == (pairs[i].label > 0.5))),
        ("CLIP agrees with the mean user".into(), share(&|i| (before[i] > 0.0) == (pairs[i].margin > 0.0))),
        ("CLIP agrees with single choices".into(), share(&|i| (before[i] > 0.0) == (pairs[i].label > 0.5))),
        ("agrees with CLIP".into(), share(&|i| (after[i] > 0.0) == (before[i] > 0.0))),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pretrain::aesthetic::{self, AestheticConfig};
    use crate::pretrain::clip::{self, ClipConfig};
    use crate::reward::aesthetic::HeadConfig;
    use crate::weights::Weights;

    #[test]
    fn softplus_is_right_and_finite_on_both_sides() {
        let xs = Tensor::new(&[-100f32, -1.0, 0.0, 1.0, 100.0], &Device::Cpu).unwrap();
        let ys = softplus(&xs).unwrap().to_vec1::<f32>().unwrap();
        for (y, expected) in ys.iter().zip([0.0, 0.313_261_7, std::f32::consts::LN_2, 1.313_261_7, 100.0]) {
            assert!((y - expected).abs() < 1e-6, "{y} {expected}");
        }
    }

    #[test]
    fn a_head_and_a_tuned_clip_are_made_from_a_clip_and_open_again() {
        let dir = tempfile::tempdir().unwrap();
        let [base, tuned, head] = ["clip", "hps", "aesthetic"].map(|name| dir.path().join(name));
        let backbone = ClipConfig::smoke();
        clip::run(&backbone, &base, 1, &mut |_| true).unwrap().unwrap();
        let short = Optimisation { steps: 3, micro_batch: 8, ..HpsConfig::reward().optimisation };
        let hps = HpsConfig { optimisation: short.clone(), ..HpsConfig::reward() };
        run(&hps, &base, &tuned, 1, &mut |_| true).unwrap().unwrap();
        Manifest::read_checked(&tuned).unwrap();
        let stored = Weights::open(tuned.join(MODEL)).unwrap();
        assert!(
            stored.names().iter().all(|name| name.starts_with("vis")),
            "the text tower is not stored twice"
        );
        let (config, vb) =
            (Parent::open(&base).unwrap().config.clip, stored.builder(DType::F32, &Device::Cpu));
        assert!(Clip::new(&config, vb).is_ok(), "the rest comes from the CLIP");

        let config = AestheticConfig {
            pictures: 64,
            head: HeadConfig { widths: [8, 8, 8, 4] },
            optimisation: Optimisation { micro_batches: 1, ..short },
            ..AestheticConfig::reward()
        };
        let manifest = aesthetic::run(&config, &base, &head, 1, &mut |_| true).unwrap().unwrap();
        assert!(manifest.evaluation["mean score"] > 3.0, "the mean rating went into the bias");

        // Another CLIP under the tuned one is refused.
        std::fs::remove_dir_all(&base).unwrap();
        clip::run(&ClipConfig { seed: Seed::new(9), ..backbone }, &base, 1, &mut |_| true).unwrap().unwrap();
        let text = Weights::open(tuned.join(MODEL)).unwrap_err().to_string();
        assert!(text.contains("clip/model.safetensors") && text.contains("SHA-256"), "{text}");
    }
}
