//! `ppd pretrain MODEL`: trains one of the desk's own models, or goes on with it, and installs it among the assets.

use std::path::{Path, PathBuf};

use super::{Global, Verdict, progress, terminal};
use crate::base::open_codec;
use crate::error::{Error, Result};
use crate::pretrain::clip::{self, ClipConfig};
use crate::pretrain::codec::{self, CodecConfig};
use crate::pretrain::denoiser::{self, DenoiserConfig};
use crate::pretrain::{MANIFEST, Manifest, Step};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The model
    #[arg(value_enum)]
    model: Model,
    /// Optimiser steps, instead of the recipe's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
}

/// The desk's models, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Model {
    /// Pictures to latents and back
    Codec,
    /// Stage C and its text encoder, over the codec
    Denoiser,
    /// The CLIP reward
    Clip,
    /// The CLIP reward's twin, which no method trains on
    ClipTwin,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Codec => "codec",
            Self::Denoiser => "denoiser",
            Self::Clip => "clip",
            Self::ClipTwin => "clip-twin",
        }
    }
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    let name = arguments.model.name();
    let folder = global.cache.join("pretrain").join(name);
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let installed = global.assets.join("desk").join(name);
    let progress = progress(global)?;
    progress.enter(&format!("pretrain {name}"));
    let mut begun = false;
    let mut watch = |total: usize, step: Step| {
        if !begun {
            begun = true;
            progress.begin("train", total.saturating_sub(step.step - 1));
        }
        progress.advance(1);
        if step.step.is_multiple_of(100) {
            progress.note(&format!("step {}: loss {:.4}", step.step, step.loss));
        }
        !progress.stopping()
    };
    let steps = |recipe: usize| arguments.steps.map_or(recipe, |steps| steps as usize);
    let threads = global.threads();
    match arguments.model {
        Model::Codec => {
            let mut config = CodecConfig::desk();
            config.optimisation.steps = steps(config.optimisation.steps);
            let total = config.optimisation.steps;
            codec::run(&config, &folder, threads, &mut |step| watch(total, step))?;
        }
        Model::Denoiser => {
            let mut config = DenoiserConfig::desk()?;
            config.optimisation.steps = steps(config.optimisation.steps);
            let total = config.optimisation.steps;
            let codec = open_codec(&global.assets.join("desk/codec/codec.safetensors"))?;
            denoiser::run(&config, codec, &folder, threads, &mut |step| watch(total, step))?;
        }
        Model::Clip | Model::ClipTwin => {
            let mut config =
                if arguments.model == Model::Clip { ClipConfig::reward() } else { ClipConfig::twin() };
            config.optimisation.steps = steps(config.optimisation.steps);
            let total = config.optimisation.steps;
            clip::run(&config, &folder, threads, &mut |step| watch(total, step))?;
        }
    }
    let stopped = progress.stopping();
    drop(progress);
    if stopped && !folder.join(MANIFEST).exists() {
        anyhow::bail!("stopped; the same command goes on from the last state in {}", folder.display());
    }
    // A denoiser that is stopped early is a model too: its manifest says after how many of the recipe's steps.
    let manifest = install(&folder, &installed)?;
    terminal::say(
        global.quiet,
        &format!("{name}: {} steps, installed in {}", manifest.steps, installed.display()),
    );
    for (what, value) in &manifest.evaluation {
        terminal::say(global.quiet, &format!("  {what}: {value:.4}"));
    }
    Ok(Verdict::Done)
}

/// Copies a finished model's files, the manifest last: a folder with a manifest is complete.
fn install(from: &Path, to: &Path) -> Result<Manifest> {
    let manifest = Manifest::read_checked(from)?;
    std::fs::create_dir_all(to).map_err(Error::io("create", to))?;
    for name in manifest.files.keys().map(String::as_str).chain([MANIFEST]) {
        let target: PathBuf = to.join(name);
        std::fs::copy(from.join(name), &target).map_err(Error::io("write", &target))?;
    }
    Ok(manifest)
}
