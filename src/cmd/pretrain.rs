//! `ppd pretrain MODEL`: trains one of the desk's own models, or goes on with it, and installs it among the assets.

use std::path::{Path, PathBuf};

use super::{Global, Verdict, progress, terminal};
use crate::base::open_codec;
use crate::data::desk::users::Use;
use crate::data::pick_a_pic::{self, Columns};
use crate::error::{Error, Result};
use crate::pretrain::aesthetic::{self, AestheticConfig};
use crate::pretrain::clip::{self, ClipConfig};
use crate::pretrain::codec::{self, CodecConfig, DecoderConfig};
use crate::pretrain::denoiser::{self, DenoiserConfig};
use crate::pretrain::hps::{self, HpsConfig};
use crate::pretrain::vlm::{self, VlmConfig};
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
    /// A new decoder for the codec's latents, which stay as they are
    Decoder,
    /// Stage C and its text encoder, over the codec
    Denoiser,
    /// The CLIP reward
    Clip,
    /// The CLIP reward's twin, which no method trains on
    ClipTwin,
    /// The CLIP under the aesthetic reward
    AestheticBackbone,
    /// The CLIP under its twin
    AestheticTwinBackbone,
    /// The aesthetic reward's head
    Aesthetic,
    /// Its twin, over another CLIP
    AestheticTwin,
    /// The HPS-like reward, tuned from the CLIP reward
    Hps,
    /// Its twin, tuned from the CLIP reward's twin
    HpsTwin,
    /// The vision-language model that embeds users
    Vlm,
    /// The one that judges, of another seed
    VlmJudge,
    /// The one that embeds, taught about pictures alone, for `fig2-ablation`
    VlmPictures,
    /// The one that embeds, before it learns anything, for `fig2-ablation`
    VlmUntrained,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Codec => "codec",
            Self::Decoder => "decoder",
            Self::Denoiser => "denoiser",
            Self::Clip => "clip",
            Self::ClipTwin => "clip-twin",
            Self::AestheticBackbone => "aesthetic-backbone",
            Self::AestheticTwinBackbone => "aesthetic-twin-backbone",
            Self::Aesthetic => "aesthetic",
            Self::AestheticTwin => "aesthetic-twin",
            Self::Hps => "hps",
            Self::HpsTwin => "hps-twin",
            Self::Vlm => "vlm",
            Self::VlmJudge => "vlm-judge",
            Self::VlmPictures => "vlm-pictures",
            Self::VlmUntrained => "vlm-untrained",
        }
    }
}

impl Model {
    /// The folder among the assets that holds it: a decoder is a part of the codec.
    fn installed(self) -> &'static str {
        match self {
            Self::Decoder => Self::Codec.name(),
            other => other.name(),
        }
    }
}

pub(super) fn run(arguments: &Arguments, global: &Global) -> anyhow::Result<Verdict> {
    let name = arguments.model.name();
    let _cache = global.use_cache()?;
    let folder = global.cache.join("pretrain").join(name);
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let installed = global.assets.join("desk").join(arguments.model.installed());
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
        Model::Decoder => {
            let mut config = DecoderConfig::desk();
            config.optimisation.steps = steps(config.optimisation.steps);
            let (total, from) = (config.optimisation.steps, installed.clone());
            codec::run_decoder(&config, &from, &folder, threads, &mut |step| watch(total, step))?;
        }
        Model::Denoiser => {
            let mut config = DenoiserConfig::desk()?;
            config.optimisation.steps = steps(config.optimisation.steps);
            let total = config.optimisation.steps;
            let codec =
                open_codec(&global.assets.join("desk/codec/codec.safetensors"), &candle_core::Device::Cpu)?;
            denoiser::run(&config, codec, &installed, &folder, threads, &mut |step| watch(total, step))?;
        }
        Model::Clip | Model::ClipTwin | Model::AestheticBackbone | Model::AestheticTwinBackbone => {
            let mut config = match arguments.model {
                Model::Clip => ClipConfig::reward(),
                Model::ClipTwin => ClipConfig::twin(),
                Model::AestheticBackbone => ClipConfig::aesthetic(),
                _ => ClipConfig::aesthetic_twin(),
            };
            config.optimisation.steps = steps(config.optimisation.steps);
            let total = config.optimisation.steps;
            clip::run(&config, &folder, threads, &mut |step| watch(total, step))?;
        }
        Model::Aesthetic | Model::AestheticTwin => {
            let (mut config, backbone) = match arguments.model {
                Model::Aesthetic => (AestheticConfig::reward(), Model::AestheticBackbone),
                _ => (AestheticConfig::twin(), Model::AestheticTwinBackbone),
            };
            config.optimisation.steps = steps(config.optimisation.steps);
            let (total, backbone) = (config.optimisation.steps, folder.with_file_name(backbone.name()));
            aesthetic::run(&config, &backbone, &folder, threads, &mut |step| watch(total, step))?;
        }
        Model::Hps | Model::HpsTwin => {
            let (mut config, from) = match arguments.model {
                Model::Hps => (HpsConfig::reward(), Model::Clip),
                _ => (HpsConfig::twin(), Model::ClipTwin),
            };
            config.optimisation.steps = steps(config.optimisation.steps);
            let (total, from) = (config.optimisation.steps, installed.with_file_name(from.name()));
            hps::run(&config, &from, &folder, threads, &mut |step| watch(total, step))?;
        }
        Model::Vlm | Model::VlmJudge | Model::VlmPictures | Model::VlmUntrained => {
            let mut config = match arguments.model {
                Model::Vlm => VlmConfig::embedder(),
                Model::VlmPictures => VlmConfig::pictures(),
                Model::VlmUntrained => VlmConfig::untrained(),
                _ => VlmConfig::judge(),
            };
            config.optimisation.steps = steps(config.optimisation.steps);
            let total = config.tower.steps + config.optimisation.steps;
            let pairs = pick_a_pic::read(global.assets.join("desk/pairs.parquet"), Columns::All)?;
            let samples: Vec<_> =
                pairs.iter().filter(|pair| Use::of(&pair.caption) == Use::Language).collect();
            vlm::run(&config, &samples, &folder, threads, &mut |step| watch(total, step))?;
        }
    }
    let stopped = progress.stopping();
    drop(progress);
    if stopped && !folder.join(MANIFEST).exists() {
        anyhow::bail!("stopped; the same command goes on from the last state in {}", folder.display());
    }
    // A denoiser that is stopped early is a model too: its manifest says after how many of the recipe's steps.
    // A backbone is a step on the way: its head's file holds what is needed of it.
    let (manifest, place) = match arguments.model {
        Model::AestheticBackbone | Model::AestheticTwinBackbone => {
            (Manifest::read_checked(&folder)?, &folder)
        }
        _ => (install(&folder, &installed)?, &installed),
    };
    terminal::say(
        global.quiet,
        &format!("{name}: {} steps, installed in {}", manifest.steps, place.display()),
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
