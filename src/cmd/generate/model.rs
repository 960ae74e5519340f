//! `ppd generate --model`: one of the public checkpoints as a tool, for images and for comparing implementations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::super::{Global, Verdict, progress, terminal};
use super::pictures::{self, Captions};
use crate::adapter::Adapter;
use crate::checkpoint::open_adapter;
use crate::diffusion::{Gdf, GdfConfig, GuidanceSteps, Process, Sampler, SamplerConfig, UnconditionalUser};
use crate::error::{Error, Result};
use crate::generate::{Noise, Task, Unconditional, UserBranch, sample_latents};
use crate::prior::{Prior, latent_side};
use crate::units::{GuidanceScale, Seed};
use crate::weights::{self, Weights};

/// What the tool takes; all of it needs `--model`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Of a public checkpoint (--model)")]
pub(super) struct Arguments {
    /// A folder with Stable Cascade's prior in diffusers' layout, or one of Stability's stage_c*.safetensors
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<PathBuf>,
    /// What the images should show; may be repeated
    #[arg(long, value_name = "TEXT", requires = "model")]
    prompt: Vec<String>,
    /// What they should not show: one for all prompts, or one for each
    #[arg(long, value_name = "TEXT", requires = "model")]
    negative: Vec<String>,
    /// Height of the images in pixels
    #[arg(long, default_value_t = 1024, value_name = "PIXELS", requires = "model")]
    height: usize,
    /// Width of the images in pixels
    #[arg(long, default_value_t = 1024, value_name = "PIXELS", requires = "model")]
    width: usize,
    /// The sampler: diffusers' `ddpm`, or Stability's own `gdf`
    #[arg(long, value_enum, default_value_t = Kind::Ddpm, requires = "model")]
    sampler: Kind,
    /// Sampler steps
    #[arg(long, default_value_t = 20, value_name = "N", requires = "model")]
    num_steps: usize,
    /// Classifier-free guidance; 1 is none
    #[arg(long, default_value_t = 4.0, value_name = "SCALE", requires = "model")]
    guidance_scale: f64,
    /// How far `gdf` brings the guided prediction back to the conditional one's deviation [upstream's default: 0.7]
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", requires = "model")]
    guidance_rescale: f64,
    /// The shift of `gdf`'s log-SNR [Stability's notebooks: 2]
    #[arg(long, default_value_t = 1.0, value_name = "SHIFT", requires = "model")]
    shift: f64,
    /// The noise seed; each image has a stream of its own under it
    #[arg(long, default_value_t = 0, value_name = "SEED", requires = "model")]
    seed: u64,
    /// Images of each prompt
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "model")]
    num_images: u32,
    /// Start from the tensor `init` of this file, with the noises `noise` (steps first) where it has them
    #[arg(long, value_name = "IN.safetensors", requires = "model")]
    latents: Option<PathBuf>,
    /// Write `latents` (steps + 1, B, C, h, w) and `epsilon` (steps, B, C, h, w, after guidance) here
    #[arg(long, value_name = "OUT.safetensors", requires = "model")]
    trace: Option<PathBuf>,
    /// Compute in half precision (bf16); text encoding and noise stay in single precision
    #[arg(long, requires = "model")]
    bf16: bool,
    #[command(flatten)]
    pictures: pictures::Arguments,
}

/// A sampler by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Ddpm,
    Gdf,
}

/// Runs the tool; `adapter` and `user` are those of every kind of generation.
pub(super) fn run(
    arguments: &Arguments,
    model: &Path,
    adapter: Option<(&Path, Option<&str>)>,
    out: &Path,
    global: &Global,
) -> anyhow::Result<Verdict> {
    if arguments.prompt.is_empty() {
        return Err(Error::Spec("--model needs at least one --prompt".into()).into());
    }
    let compute = global.compute()?;
    let dtype = if arguments.bf16 { DType::BF16 } else { DType::F32 };
    let maker = arguments.pictures.maker(&compute.device)?;
    let prior = Prior::open_repository(model, dtype, &compute.device)?;
    let (prompts, negative) = arguments.captions()?;
    for caption in arguments.prompt.iter().chain(&arguments.negative) {
        if let Some(cut) = prior.tokenizer.cut(caption)? {
            let said = format!(
                "a prompt has {} tokens, the text encoder reads {}; left out: {:?}",
                cut.tokens, cut.context, cut.rest
            );
            terminal::say(global.quiet, &said);
        }
    }
    let process = arguments.process(&prior)?;
    let name = adapter.and_then(|(_, user)| user).unwrap_or("none");
    let user = adapter.map(|(file, user)| branch(&prior, file, user)).transpose()?;
    let task = Task {
        prompts: &prompts,
        unconditional: &match (arguments.sampler, arguments.negative.is_empty()) {
            (Kind::Gdf, true) => Unconditional::Zeros,
            _ => Unconditional::Captions(negative.clone()),
        },
        guidance_scale: GuidanceScale::new(arguments.guidance_scale)?,
        guidance_steps: GuidanceSteps::ALL,
        user: user.as_ref(),
    };
    let images = (0..prompts.len() as u64).map(|index| (Seed::new(arguments.seed), index));
    let mut noise = Noise::new(images, &prior, (latent_side(arguments.height), latent_side(arguments.width)));
    let given = arguments.latents.as_ref().map(|path| Given::open(path, &compute.device)).transpose()?;
    let start = match &given {
        Some(given) => {
            let noises = (0..arguments.num_steps).filter(|&step| process.takes_noise(step)).count();
            given.start(prompts.len(), noises)?
        }
        None => noise.draw()?,
    };

    let progress = progress(global)?;
    progress.begin("sample", arguments.num_steps);
    let (mut latents, mut epsilon) = (Vec::new(), Vec::new());
    let end = sample_latents(
        &prior,
        &process,
        &task,
        &start,
        |step| match given.as_ref().and_then(|given| given.noise.as_ref()) {
            Some(noise) => Ok(noise.get(step)?.contiguous()?),
            None => noise.draw(),
        },
        |before, predicted| {
            if arguments.trace.is_some() {
                latents.push(before.clone());
                epsilon.push(predicted.clone());
            }
            progress.advance(1);
            progress.check()
        },
    )?;
    let mut written = Vec::new();
    if let Some(path) = &arguments.trace {
        latents.push(end.clone());
        let tensors = [("latents", Tensor::stack(&latents, 0)?), ("epsilon", Tensor::stack(&epsilon, 0)?)];
        write(path, tensors)?;
        written.push(format!("every step in {}", path.display()));
    }
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let path = out.join("latents.safetensors");
    write(&path, [("latents", end.clone())])?;
    written.push(format!("latents of {} images in {}", prompts.len(), path.display()));
    if let Some(maker) = maker {
        // The decoder takes the prior's room.
        drop((prior, user));
        let negative = if arguments.negative.is_empty() { &[] } else { &negative[..] };
        let captions = Captions { prompts: &prompts, negative, user: name, seed: arguments.seed };
        let count = maker.write(&end, &captions, out, dtype, &progress)?;
        written.push(format!("{count} images in {}", out.display()));
    }
    drop(progress);
    written.iter().for_each(|line| terminal::say(global.quiet, line));
    Ok(Verdict::Done)
}

impl Arguments {
    /// Each image's prompt, and what it should not show.
    fn captions(&self) -> Result<(Vec<String>, Vec<String>)> {
        let count = self.prompt.len();
        let negative = match &self.negative[..] {
            [] => vec![String::new(); count],
            [one] => vec![one.clone(); count],
            each if each.len() == count => each.to_vec(),
            each => {
                return Err(Error::Spec(format!(
                    "--negative is given {} times, expected once, or once for each of {count} prompts",
                    each.len()
                )));
            }
        };
        let repeat = |captions: &[String]| -> Vec<String> {
            let each = self.num_images as usize;
            captions.iter().flat_map(|caption| vec![caption.clone(); each]).collect()
        };
        Ok((repeat(&self.prompt), repeat(&negative)))
    }

    fn process(&self, prior: &Prior) -> Result<Process> {
        let num_steps = self.num_steps;
        match self.sampler {
            Kind::Ddpm if self.guidance_rescale != 0.0 || self.shift != 1.0 => Err(Error::Spec(
                "--guidance-rescale and --shift belong to Stability's sampler: add --sampler gdf".into(),
            )),
            Kind::Ddpm => {
                let config = SamplerConfig { num_steps, x0_clamp: None };
                Ok(Process::Ddpm(Sampler::new(prior.schedule, config)?))
            }
            Kind::Gdf => {
                let Self { guidance_rescale, shift, .. } = *self;
                Ok(Process::Gdf(Gdf::new(prior.schedule, GdfConfig { num_steps, shift, guidance_rescale })?))
            }
        }
    }
}

/// Latents and noises that somebody else drew.
struct Given {
    path: PathBuf,
    init: Tensor,
    noise: Option<Tensor>,
}

impl Given {
    fn open(path: &Path, device: &Device) -> Result<Self> {
        let file = Weights::open(path)?;
        let noise = file.shape("noise").map(|_| file.read("noise", DType::F32, device)).transpose()?;
        Ok(Self { path: path.to_owned(), init: file.read("init", DType::F32, device)?, noise })
    }

    /// The latents to start from, after a look at whether everything is there that a run of these sizes takes.
    fn start(&self, count: usize, noises: usize) -> Result<Tensor> {
        let refuse = |message: String| Err(Error::data(&self.path, message));
        let init = self.init.dims();
        if init.len() != 4 || init[0] != count {
            return refuse(format!(
                "`init` has shape {init:?}, expected {count} latents, one for each image"
            ));
        }
        match self.noise.as_ref().map(Tensor::dims) {
            Some([steps, rest @ ..]) if *steps < noises || rest != init => refuse(format!(
                "`noise` has shape {:?}, expected {noises} steps of {init:?}",
                [&[*steps], rest].concat()
            )),
            _ => Ok(self.init.clone()),
        }
    }
}

/// The branch of a user of an adapter: its number among one-hot users, coordinates, or FILE.safetensors:NAME.
fn branch(prior: &Prior, file: &Path, user: Option<&str>) -> Result<UserBranch> {
    let adapter = open_adapter(file, &prior.denoiser.config().attention_blocks(), &prior.device)?;
    let vector = vector(&adapter, user)?;
    UserBranch::new(&adapter, &vector, UnconditionalUser::Keep, &prior.device)
}

fn vector(adapter: &Adapter, user: Option<&str>) -> Result<Vec<f32>> {
    let width = adapter.config().user_width;
    let expected = || {
        Error::Spec(format!(
            "--user {}: this adapter's users have {width} coordinates; write them with commas between, or name an \
             embedding as FILE.safetensors:NAME",
            user.unwrap_or("(none)")
        ))
    };
    let numbers: Vec<f32> = match user {
        None if width == 1 => vec![1.0],
        None => return Err(expected()),
        Some(text) => match text.rsplit_once(".safetensors:") {
            Some((stem, name)) => {
                let file = Weights::open(format!("{stem}.safetensors"))?;
                let embedding = file.read(name, DType::F32, &Device::Cpu)?;
                // (layers, width): the last layer; or a vector.
                let embedding = match embedding.rank() {
                    2 => embedding.get(embedding.dim(0)? - 1)?,
                    _ => embedding,
                };
                embedding.flatten_all()?.to_vec1()?
            }
            None => {
                let numbers = text.split(',').map(|number| number.trim().parse::<f32>());
                numbers.collect::<std::result::Result<_, _>>().map_err(|_| expected())?
            }
        },
    };
    if numbers.len() == width { Ok(numbers) } else { Err(expected()) }
}

fn write<const N: usize>(path: &Path, tensors: [(&str, Tensor); N]) -> Result<()> {
    let tensors: BTreeMap<String, Tensor> =
        tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    weights::save(path, &tensors, DType::F32, &BTreeMap::new()).map(drop)
}
