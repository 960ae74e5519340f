//! The PPD step and guided sampling on a Stage C in diffusers' layout (`config.json`,
//! `diffusion_pytorch_model.safetensors`) with `adapters.safetensors` and `inputs.safetensors` beside it, as PyTorch
//! exported them.

use std::path::Path;

use anyhow::{Context as _, Result};
use candle_core::{D, DType, Device, Tensor};
use ppd::adapter::{self, Adapter};
use ppd::collective::Alone;
use ppd::diffusion::{Process, Sampler, SamplerConfig, Schedule, guide_batch};
use ppd::models::stage_c::{self, KeyValue, StageC};
use ppd::nn::workers::Workers;
use ppd::objective::{self, dpo};
use ppd::train::{MicroBatch, StepSettings, Stepper};
use ppd::units::{Beta, GuidanceScale, Seed, Timestep, TimestepCount};
use ppd::weights::{Trainable, Weights};
use serde_json::{Value, json};

use crate::measured::{Measured, circumstances, time};

/// Pairs of one micro-batch, as in training.
const MICRO_BATCH: usize = 4;
/// Images that one worker samples at once, as in `generate`.
const SAMPLED_AT_ONCE: usize = 8;

/// The exported model with its inputs.
struct Exported {
    denoiser: StageC,
    adapters: Weights,
    inputs: Weights,
}

impl Exported {
    fn open(folder: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(folder.join("config.json"))
            .with_context(|| format!("{} holds no exported model", folder.display()))?;
        let config: stage_c::Config = serde_json::from_str(&text)?;
        let weights = Weights::open(folder.join("diffusion_pytorch_model.safetensors"))?;
        Ok(Self {
            denoiser: StageC::new(&config, weights.builder(DType::F32, &Device::Cpu))?,
            adapters: Weights::open(folder.join("adapters.safetensors"))?,
            inputs: Weights::open(folder.join("inputs.safetensors"))?,
        })
    }

    fn input(&self, name: &str) -> Result<Tensor> {
        Ok(self.inputs.read(name, DType::F32, &Device::Cpu)?)
    }

    /// A user branch with the exported parameters.
    fn adapter(&self) -> Result<(Trainable, Adapter)> {
        let trainable = Trainable::new(Seed::new(0));
        let (_, num_tokens, token_width) = self.input("user")?.dims3()?;
        let config = adapter::Config {
            user_width: 1,
            num_tokens,
            token_width,
            projector_bias: false,
            projector_std: 1.0,
        };
        let blocks = self.denoiser.config().attention_blocks();
        let adapter = Adapter::new(config, &blocks, trainable.builder(&Device::Cpu))?;
        let vars = trainable.vars();
        for (block, _) in &blocks {
            for side in ["k", "v"] {
                let exported = format!("{}.{side}", block.replace('.', "_"));
                let value = self.adapters.read(&exported, DType::F32, &Device::Cpu)?;
                vars[&format!("{block}.to_{side}_ip.weight")].set(&value)?;
            }
        }
        Ok((trainable, adapter))
    }
}

/// Everything about a measurement that must agree before two may be compared.
fn shape(exported: &Exported, workers: &Workers) -> Result<Value> {
    let latents = exported.input("x0w")?;
    let (text, user) = (exported.input("text")?, exported.input("user")?);
    let mut shape = json!({"latent": latents.dims(), "text": text.dims(), "user": user.dims()});
    circumstances(&mut shape, &latents, workers.count());
    Ok(shape)
}

/// One PPD step on all pairs; with `cached`, the reference's errors are those of the first.
pub fn step(inputs: &Path, threads: usize, reps: usize, cached: bool) -> Result<Measured> {
    let exported = Exported::open(inputs)?;
    let workers = Workers::new(threads)?;
    let get = |name: &str| exported.input(name);
    let (chosen, rejected, noise, r) = (get("x0w")?, get("x0l")?, get("eps")?, get("r")?);
    let (text, pooled, image, user) = (get("text")?, get("pooled")?, get("img")?, get("user")?);
    let (trainable, adapter) = exported.adapter()?;
    // As in the PyTorch twin: β = 2000 with its ½, over mean errors.
    let dpo =
        dpo::Config { beta: Beta::new(2000.0)?, half_factor: true, timesteps: TimestepCount::new(1.0)? };
    let settings =
        StepSettings { objective: objective::Config::Dpo(dpo), weight_decay: 1e-2, max_grad_norm: 1e9 };
    let mut stepper = Stepper::new(&exported.denoiser, &trainable, settings, &workers, &Alone)?;
    let count = chosen.dim(0)?;
    let starts: Vec<usize> = (0..count).step_by(MICRO_BATCH).collect();
    let known = std::sync::Mutex::new(std::collections::BTreeMap::<usize, Vec<[f64; 2]>>::new());
    let schedule = Schedule::default();
    let micro_batch = |&start: &usize| {
        let size = MICRO_BATCH.min(count - start);
        let part = |xs: &Tensor| xs.narrow(0, start, size);
        let twice = |xs: &Tensor| Tensor::cat(&[xs, xs], 0);
        let latents = Tensor::cat(&[part(&chosen)?, part(&rejected)?], 0)?;
        let (noise, timestep) = (twice(&part(&noise)?)?, twice(&part(&r)?)?);
        let timesteps = timestep.to_vec1::<f32>()?.into_iter().map(|t| Timestep::new(f64::from(t)));
        let timesteps = timesteps.collect::<ppd::error::Result<Vec<_>>>()?;
        let noised = schedule.add_noise(&latents, &noise, &timesteps)?;
        let double =
            |kv: Vec<KeyValue>| kv.iter().map(|kv| kv.map(twice)).collect::<candle_core::Result<_>>();
        let tokens = exported.denoiser.conditioning_tokens(&part(&text)?, &part(&pooled)?, &part(&image)?)?;
        let text = double(exported.denoiser.key_values(&tokens)?)?;
        let user = double(adapter.key_values(&part(&user)?)?)?;
        let known = cached.then(|| known.lock().expect("no panic").get(&start).cloned()).flatten();
        let reference = known.into_iter().flatten().map(Some).collect();
        Ok(MicroBatch { noised, noise, timestep, text, user, reference })
    };
    let mut losses = Vec::new();
    let (seconds, _) = time(reps, || {
        let taken = stepper.step((losses.len(), 1e-5), count, &starts, micro_batch, |&start, errors| {
            known.lock().expect("no panic").insert(start, errors.to_vec());
        })?;
        losses.push(taken.loss.value);
        Ok(())
    })?;
    losses.truncate(3);
    Ok(Measured { shape: shape(&exported, &workers)?, seconds, check: losses })
}

/// Guided sampling of all images.
pub fn sample(inputs: &Path, threads: usize, reps: usize, num_steps: usize) -> Result<Measured> {
    let exported = Exported::open(inputs)?;
    let workers = Workers::new(threads)?;
    let get = |name: &str| exported.input(name);
    let (start, text, pooled, image, user) =
        (get("x0w")?, get("text")?, get("pooled")?, get("img")?, get("user")?);
    let noise = get("noise")?; // (steps, B, 16, h, w)
    anyhow::ensure!(
        noise.dim(0)? >= num_steps,
        "the twin exported the noise of {} sampler steps, {num_steps} are asked for",
        noise.dim(0)?
    );
    let (_, adapter) = exported.adapter()?;
    let count = start.dim(0)?;
    let parts: Vec<usize> = (0..count).step_by(SAMPLED_AT_ONCE).collect();
    let with_zeros = |xs: Tensor| Tensor::cat(&[&xs, &xs.zeros_like()?], 0);
    let scale = GuidanceScale::new(4.0)?;
    let sampler = Sampler::new(Schedule::default(), SamplerConfig { num_steps, x0_clamp: None })?;
    let process = Process::Ddpm(sampler);
    let part_of = |&first: &usize| -> ppd::error::Result<Tensor> {
        let size = SAMPLED_AT_ONCE.min(count - first);
        let part = |xs: &Tensor| xs.narrow(0, first, size);
        let tokens = exported.denoiser.conditioning_tokens(
            &with_zeros(part(&text)?)?,
            &with_zeros(part(&pooled)?)?,
            &with_zeros(part(&image)?)?,
        )?;
        let text = exported.denoiser.key_values(&tokens)?;
        let user = adapter.key_values(&with_zeros(part(&user)?)?)?;
        let user: Vec<KeyValue> =
            user.iter().map(|kv| kv.map(|t| Ok(t.detach()))).collect::<candle_core::Result<_>>()?;
        process.sample(
            &part(&start)?,
            |latents, timestep| {
                let r = Tensor::full(timestep.get() as f32, 2 * size, &Device::Cpu)?;
                let both = Tensor::cat(&[latents, latents], 0)?;
                guide_batch(&exported.denoiser.forward(&both, &r, &text, Some(&user))?, scale)
            },
            |step| Ok(part(&noise.get(step)?)?.contiguous()?),
        )
    };
    let (seconds, latents) = time(reps, || {
        let parts = workers.map(&parts, |_, first| part_of(first));
        Ok(Tensor::cat(&parts.into_iter().collect::<ppd::error::Result<Vec<_>>>()?, 0)?)
    })?;
    let mut shape = shape(&exported, &workers)?;
    shape["steps"] = json!(num_steps);
    let check = vec![f64::from(latents.sqr()?.flatten_all()?.mean(D::Minus1)?.to_scalar::<f32>()?)];
    Ok(Measured { shape, seconds, check })
}
