//! Times the PPD step and guided sampling on a Stage C in diffusers' layout (`config.json`,
//! `diffusion_pytorch_model.safetensors`) with `adapters.safetensors` and `inputs.safetensors` beside it, as PyTorch
//! exported them, and prints one JSON object a measurement. The script that exports and times PyTorch is not here yet.
//!
//! ```sh
//! cargo bench --bench stage_c -- --inputs DIR --threads 2
//! ```

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use ppd::adapter::{self, Adapter};
use ppd::diffusion::{Sampler, SamplerConfig, Schedule, guide_batch};
use ppd::models::stage_c::{self, KeyValue, StageC};
use ppd::nn::workers::Workers;
use ppd::objective::{self, dpo};
use ppd::rng::stream;
use ppd::train::{MicroBatch, StepSettings, Stepper};
use ppd::units::{Beta, GuidanceScale, Seed, Timestep};
use ppd::weights::{Trainable, Weights};

/// Pairs of one micro-batch, as in training.
const MICRO_BATCH: usize = 4;
/// Images that one worker samples at once, as in `generate`.
const SAMPLED_AT_ONCE: usize = 8;

#[derive(Parser)]
struct Arguments {
    /// The folder that the PyTorch twin exported
    #[arg(long)]
    inputs: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Measured repetitions of each
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Sampler steps
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Only these measurements: `step`, `step-cached`, `sample`
    #[arg(long, value_delimiter = ',', default_value = "step,step-cached,sample")]
    only: Vec<String>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

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
fn shape(exported: &Exported, threads: usize) -> Result<serde_json::Value> {
    Ok(serde_json::json!({
        "latent": exported.input("x0w")?.dims(),
        "text": exported.input("text")?.dims(),
        "user": exported.input("user")?.dims(),
        "dtype": "f32",
        "threads": threads,
        "device": "cpu",
    }))
}

/// Losses of `reps` steps after two that warm up, and each step's seconds.
fn steps(exported: &Exported, workers: &Workers, reps: usize, cached: bool) -> Result<(Vec<f64>, Vec<f64>)> {
    let get = |name: &str| exported.input(name);
    let (chosen, rejected, noise, r) = (get("x0w")?, get("x0l")?, get("eps")?, get("r")?);
    let (text, pooled, image, user) = (get("text")?, get("pooled")?, get("img")?, get("user")?);
    let (trainable, adapter) = exported.adapter()?;
    // As in the PyTorch twin: β = 2000 with its ½, over mean errors.
    let dpo = dpo::Config { beta: Beta::new(2000.0)?, half_factor: true, timesteps: 1.0 };
    let settings =
        StepSettings { objective: objective::Config::Dpo(dpo), weight_decay: 1e-2, max_grad_norm: 1e9 };
    let mut stepper = Stepper::new(&exported.denoiser, &trainable, settings, workers)?;
    let count = chosen.dim(0)?;
    let starts: Vec<usize> = (0..count).step_by(MICRO_BATCH).collect();
    let known = std::sync::Mutex::new(std::collections::BTreeMap::<usize, Vec<[f64; 2]>>::new());
    let schedule = Schedule::default();
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for step in 0..reps + 2 {
        let begun = Instant::now();
        let taken = stepper.step(
            step,
            1e-5,
            &starts,
            |&start| {
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
                let tokens =
                    exported.denoiser.conditioning_tokens(&part(&text)?, &part(&pooled)?, &part(&image)?)?;
                let text = double(exported.denoiser.key_values(&tokens)?)?;
                let user = double(adapter.key_values(&part(&user)?)?)?;
                let reference =
                    if cached { known.lock().expect("no panic").get(&start).cloned() } else { None };
                Ok(MicroBatch { noised, noise, timestep, text, user, reference })
            },
            |&start, errors| {
                known.lock().expect("no panic").insert(start, errors.to_vec());
            },
        )?;
        losses.push(taken.loss.value);
        if step >= 2 {
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    Ok((losses, seconds))
}

/// Seconds of each of `reps` guided samplings of all images, after one step that warms up.
fn sampling(exported: &Exported, workers: &Workers, reps: usize, num_steps: usize) -> Result<Vec<f64>> {
    let get = |name: &str| exported.input(name);
    let (start, text, pooled, image, user) =
        (get("x0w")?, get("text")?, get("pooled")?, get("img")?, get("user")?);
    let (_, adapter) = exported.adapter()?;
    let count = start.dim(0)?;
    let parts: Vec<usize> = (0..count).step_by(SAMPLED_AT_ONCE).collect();
    let with_zeros = |xs: Tensor| Tensor::cat(&[&xs, &xs.zeros_like()?], 0);
    let scale = GuidanceScale::new(4.0)?;
    let run = |num_steps: usize| -> Result<()> {
        let sampler = Sampler::new(Schedule::default(), SamplerConfig { num_steps, x0_clamp: None })?;
        let images = workers.map(&parts, |_, &first| -> ppd::error::Result<Tensor> {
            let size = SAMPLED_AT_ONCE.min(count - first);
            let part = |xs: &Tensor| xs.narrow(0, first, size);
            let tokens = exported.denoiser.conditioning_tokens(
                &with_zeros(part(&text)?)?,
                &with_zeros(part(&pooled)?)?,
                &with_zeros(part(&image)?)?,
            )?;
            let text = exported.denoiser.key_values(&tokens)?;
            let user = adapter.key_values(&with_zeros(part(&user)?)?)?;
            let start = part(&start)?;
            let mut draws = stream(Seed::new(1), "bench", first as u64);
            sampler.sample(
                &start,
                |latents, timestep| {
                    let r = Tensor::full(timestep.get() as f32, 2 * size, &Device::Cpu)?;
                    let both = Tensor::cat(&[latents, latents], 0)?;
                    guide_batch(&exported.denoiser.forward(&both, &r, &text, Some(&user))?, scale)
                },
                |_| Ok(Tensor::from_vec(draws.normals(start.elem_count()), start.shape(), &Device::Cpu)?),
            )
        });
        images.into_iter().collect::<ppd::error::Result<Vec<_>>>()?;
        Ok(())
    };
    run(1)?;
    (0..reps)
        .map(|_| {
            let begun = Instant::now();
            run(num_steps)?;
            Ok(begun.elapsed().as_secs_f64())
        })
        .collect()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let exported = Exported::open(&arguments.inputs)?;
    let workers = Workers::new(arguments.threads)?;
    let shape = shape(&exported, arguments.threads)?;
    for name in &arguments.only {
        let (losses, seconds) = match name.as_str() {
            "step" => steps(&exported, &workers, arguments.reps, false)?,
            "step-cached" => steps(&exported, &workers, arguments.reps, true)?,
            "sample" => (Vec::new(), sampling(&exported, &workers, arguments.reps, arguments.steps)?),
            other => anyhow::bail!("unknown measurement {other:?}, expected step, step-cached or sample"),
        };
        let first: Vec<f64> = losses.into_iter().take(3).collect();
        println!(
            "{}",
            serde_json::json!({"bench": name, "shape": shape, "seconds": seconds, "first_losses": first})
        );
    }
    Ok(())
}
