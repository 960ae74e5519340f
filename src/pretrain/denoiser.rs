//! Trains the desk's base model: a small Stage C and its text encoder, from nothing, on latents of rendered scenes.
//!
//! Stable Cascade conditions on a frozen CLIP; a text encoder of CLIP's architecture trained with the denoiser is the
//! desk's stand-in, and shares nothing with the CLIPs that score images. Scenes of one object come first, then the
//! mixture moves to two and three. Every sample is rendered afresh.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::codec::training_picture;
use super::manifest::{FILE as MANIFEST, Manifest, write_config};
use super::trainer::{FormerPlan, Optimisation, Step, Trainer};
use crate::base::picture_tensor;
use crate::diffusion::Schedule;
use crate::error::Result;
use crate::models::clip::{Activation, TextConfig, TextTower};
use crate::models::latent_codec::LatentCodec;
use crate::models::stage_c::{self, StageC};
use crate::models::tokenizer::Tokenizer;
use crate::nn;
use crate::prior::{DenoiserConfig as Networks, conditioning_tokens};
use crate::rng::{Stream, stream};
use crate::scenes::{ObjectWeights, words};
use crate::units::Seed;
use crate::weights::{Trainable, Weights, save};

/// The recipe of a base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserConfig {
    /// The denoiser and its text encoder.
    pub networks: Networks,
    /// Initialisation, scenes, timesteps and noise.
    pub seed: Seed,
    /// How often one, two and three objects are shown at the start.
    pub objects_at_start: ObjectWeights,
    /// How often from `objects_settle` of the steps on; linear between.
    pub objects_at_end: ObjectWeights,
    /// The share of all steps after which the mixture no longer changes.
    pub objects_settle: f64,
    /// How often a caption is replaced by the empty one, for classifier-free guidance.
    pub text_dropout: f64,
    /// Where timesteps are drawn more often.
    pub focus: Focus,
    /// Length and speed.
    pub optimisation: Optimisation,
}

/// Timesteps that are drawn more often from some step on.
///
/// Sixty-four latent positions share one background, so most of a picture is known at a signal far below the noise, and
/// what its caption decides (which shape, where) is decided there: swapping the shape in a caption costs most around
/// t = 0.8, where ᾱ is about 0.1, and next to nothing below t = 0.5.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Focus {
    /// The first optimiser step with the focus; all timesteps are uniform before.
    pub from_step: usize,
    /// The share of draws around the centre; the rest stay uniform.
    pub share: f64,
    /// The timestep around which they lie.
    pub centre: f64,
    /// Their standard deviation.
    pub spread: f64,
}

impl Focus {
    /// The uniform number behind the timestep of a sample of optimiser step `step`: timesteps fall as it grows.
    fn draw(&self, step: usize, draw: &mut Stream) -> f64 {
        let uniform = draw.uniform();
        if step < self.from_step || !draw.chance(self.share) {
            return uniform;
        }
        (1.0 - self.centre - self.spread * draw.normal()).clamp(0.0, 1.0)
    }
}

impl DenoiserConfig {
    /// The desk's base model.
    ///
    /// # Errors
    /// Where the desk's vocabulary makes no tokenizer.
    pub fn desk() -> Result<Self> {
        let vocabulary = Tokenizer::desk(&words())?;
        let prior = stage_c::Config {
            in_channels: 16,
            out_channels: 16,
            timestep_ratio_embedding_dim: 64,
            patch_size: 1,
            conditioning_dim: 128,
            block_out_channels: vec![128, 128],
            num_attention_heads: vec![4, 4],
            down_num_layers_per_block: vec![1, 2],
            up_num_layers_per_block: vec![2, 1],
            clip_text_in_channels: 128,
            clip_text_pooled_in_channels: 128,
            clip_image_in_channels: 16,
            clip_seq: 2,
            timestep_conditioning_type: vec!["sca".into(), "crp".into()],
            switch_level: vec![false],
        };
        let text_encoder = TextConfig {
            vocab_size: vocabulary.vocab_size(),
            hidden_size: 128,
            intermediate_size: 512,
            projection_dim: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            max_position_embeddings: vocabulary.context(),
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
            eos_token_id: vocabulary.vocab_size() as u32 - 1,
        };
        Ok(Self {
            networks: Networks { prior, text_encoder },
            seed: Seed::new(21),
            objects_at_start: [1.0, 0.0, 0.0],
            objects_at_end: [0.45, 0.33, 0.22],
            objects_settle: 0.2,
            text_dropout: 0.1,
            focus: Focus { from_step: 5000, share: 0.6, centre: 0.76, spread: 0.13 },
            optimisation: Optimisation {
                steps: 24_000,
                micro_batches: 2,
                micro_batch: 24,
                learning_rate: 1.5e-3,
                warmup_steps: 50,
                weight_decay: 1e-3,
                max_grad_norm: 1.0,
                ema_decay: 0.998,
                former_plans: vec![
                    FormerPlan { until_step: 8700, steps: 12_000 },
                    FormerPlan { until_step: 12_700, steps: 16_000 },
                ],
                restarts: vec![9800],
            },
        })
    }

    /// A base model of a few numbers and two steps, for tests.
    ///
    /// # Errors
    /// As [`DenoiserConfig::desk`].
    pub fn smoke() -> Result<Self> {
        let mut config = Self::desk()?;
        config.optimisation = Optimisation { steps: 2, micro_batch: 4, ..config.optimisation };
        config.networks.prior.block_out_channels = vec![16, 16];
        config.networks.prior.conditioning_dim = 16;
        config.networks.prior.num_attention_heads = vec![2, 2];
        config.networks.text_encoder.num_hidden_layers = 1;
        Ok(config)
    }

    fn objects_at(&self, index: u64) -> ObjectWeights {
        let step = index as f64 / self.optimisation.micro_batches as f64;
        let progress = (step / (self.objects_settle * self.optimisation.steps as f64)).min(1.0);
        std::array::from_fn(|i| {
            self.objects_at_start[i] + progress * (self.objects_at_end[i] - self.objects_at_start[i])
        })
    }
}

struct Parts {
    codec: LatentCodec,
    denoiser: StageC,
    text: TextTower,
    tokenizer: Tokenizer,
    schedule: Schedule,
}

impl Parts {
    /// The P2-weighted denoising loss of micro-batch `index`.
    fn loss(&self, config: &DenoiserConfig, index: u64) -> Result<Tensor> {
        let count = config.optimisation.micro_batch;
        let step = index as usize / config.optimisation.micro_batches;
        let objects = config.objects_at(index);
        let mut draw = stream(config.seed, "denoiser noise", index);
        let (mut captions, mut pictures, mut timesteps) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..count {
            let index = index * count as u64 + i as u64;
            let (caption, picture) = training_picture(config.seed, "denoiser scene", index, objects);
            captions.push(if draw.chance(config.text_dropout) { String::new() } else { caption });
            pictures.push(picture);
            timesteps.push(self.schedule.training_timestep(config.focus.draw(step, &mut draw)));
        }
        let latents = self.codec.encode(&picture_tensor(&pictures, &Device::Cpu)?)?;
        let noise = Tensor::from_vec(draw.normals(latents.elem_count()), latents.shape(), latents.device())?;
        let noised = self.schedule.add_noise(&latents, &noise, &timesteps)?;
        let tokens = conditioning_tokens(&self.denoiser, &self.text, &self.tokenizer, &captions)?;
        let key_values = self.denoiser.key_values(&tokens)?;
        let r: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
        let r = Tensor::from_vec(r, count, latents.device())?;
        let pred = self.denoiser.forward(&noised, &r, &key_values, None)?;
        let weights: Vec<f32> = timesteps.iter().map(|&t| self.schedule.p2_weight(t) as f32).collect();
        let weights = Tensor::from_vec(weights, count, latents.device())?;
        Ok((nn::squared_error(&pred, &noise)? * weights)?.mean_all()?)
    }
}

/// Trains, or goes on training, a base model over a codec; without a state in `folder` it goes on from the weights in
/// `shipped` where these stand at a restart of the recipe, else from nothing. It leaves `prior.safetensors`,
/// `text_encoder.safetensors` (moving averages), `config.json` and `manifest.json` in `folder`, beside the training
/// state. The weights are stored with every state, so that a run that is stopped early leaves a model too.
///
/// # Errors
/// Where the disk refuses or the loss stops being finite.
pub fn run(
    config: &DenoiserConfig,
    codec: LatentCodec,
    shipped: &Path,
    folder: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Step) -> bool,
) -> Result<()> {
    let trainable = Trainable::new(config.seed);
    let vb = trainable.builder(&Device::Cpu);
    let parts = Parts {
        codec,
        denoiser: StageC::new(&config.networks.prior, vb.pp(PRIOR))?,
        text: TextTower::new(&config.networks.text_encoder, vb.pp(TEXT))?,
        tokenizer: Tokenizer::desk(&words())?,
        schedule: Schedule::default(),
    };
    let mut trainer = Trainer::new(&config.optimisation, &trainable, threads)?;
    let state = folder.join("denoiser-state.safetensors");
    if state.exists() {
        trainer.resume(&state)?;
    } else if let Some(step) = restart_of(config, shipped)? {
        let open = |part: &str| Weights::open(shipped.join(format!("{part}.safetensors")));
        let parts = [(PRIOR, open(PRIOR)?), (TEXT, open(TEXT)?)];
        trainer.begin_anew(step, |name, shape| {
            let of = |(part, file): &(&str, Weights)| {
                Some((file.clone(), name.strip_prefix(part)?.strip_prefix('.')?.to_owned()))
            };
            let (file, key) = parts.iter().find_map(of).expect("every variable belongs to a part");
            file.get(shape, &key, DType::F32, &Device::Cpu)
        })?;
    }
    let mut recent = VecDeque::new();
    while !trainer.is_done() {
        let step = trainer.advance(|index| parts.loss(config, index))?;
        recent.push_back(step.loss);
        recent.drain(..recent.len().saturating_sub(SAVED_EVERY));
        let go_on = progress(step);
        if step.step.is_multiple_of(SAVED_EVERY) || trainer.is_done() || !go_on {
            trainer.save(&state)?;
            let averaged = trainer.averaged();
            for part in [PRIOR, TEXT] {
                let prefix = format!("{part}.");
                let tensors = averaged
                    .iter()
                    .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_owned(), value.clone())))
                    .collect();
                save(folder.join(format!("{part}.safetensors")), &tensors, DType::BF16, &Default::default())?;
            }
            let mean = recent.iter().sum::<f64>() / recent.len() as f64;
            let measured = BTreeMap::from([(format!("mean loss of the last {} steps", recent.len()), mean)]);
            write_config(folder, &config.networks)?;
            let files = ["prior.safetensors", "text_encoder.safetensors", "config.json"];
            Manifest::write(folder, "denoiser", config, trainer.step(), &files, measured)?;
        }
        if !go_on {
            break;
        }
    }
    Ok(())
}

/// The step of the model in `shipped`, where it is this recipe's and stands at one of its restarts.
fn restart_of(config: &DenoiserConfig, shipped: &Path) -> Result<Option<usize>> {
    if !shipped.join(MANIFEST).exists() {
        return Ok(None);
    }
    let manifest = Manifest::read_checked(shipped)?;
    let own = serde_json::to_value(config).expect("a recipe is plain data");
    // The plan of a run may have changed since; what it trains, and on what, may not.
    let same = ["networks", "seed"].iter().all(|key| own[key] == manifest.recipe[key]);
    let restarts = &config.optimisation.restarts;
    Ok(Some(manifest.steps).filter(|step| same && restarts.contains(step)))
}

/// Steps between two saves.
const SAVED_EVERY: usize = 200;

/// The parts of a base model: the prefixes of their variables, and the names of their files.
const PRIOR: &str = "prior";
const TEXT: &str = "text_encoder";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::open_codec;
    use crate::pretrain::codec::{self, CodecConfig};

    #[test]
    fn what_is_shipped_at_a_restart_is_all_that_going_on_needs() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let folder = root.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        codec::run(&CodecConfig::smoke(), &folder("codec"), 1, &mut |_| true).unwrap();

        let mut recipe = DenoiserConfig::smoke().unwrap();
        recipe.optimisation = Optimisation { steps: 4, restarts: vec![2], ..recipe.optimisation };
        let train = |from: &str, to: &str, until: usize| {
            let codec = open_codec(&folder("codec").join("codec.safetensors"), &Device::Cpu).unwrap();
            let (from, to) = (folder(from), folder(to));
            run(&recipe, codec, &from, &to, 1, &mut |step| step.step < until).unwrap();
            Manifest::read_checked(&to).unwrap()
        };
        let whole = train("nothing", "whole", 4);
        assert_eq!(train("nothing", "first", 2).steps, 2);
        let second = train("first", "second", 4);
        assert_eq!((second.steps, &second.files), (4, &whole.files));
        // From weights at no restart, or of another recipe, nothing is taken over.
        assert_eq!(train("nothing", "early", 1).steps, 1);
        assert_eq!(train("early", "anew", 4).files, whole.files);
        recipe.seed = Seed::new(22);
        assert_eq!(restart_of(&recipe, &folder("first")).unwrap(), None);
    }
}
