//! The last step of `ppd generate --model`: latents to PNGs, by a decoder or by the previewer.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::data::images;
use crate::decoder::{self, Decoding};
use crate::error::{Error, Result};
use crate::models::previewer::Previewer;
use crate::pixels::Image;
use crate::progress::Progress;
use crate::units::{GuidanceScale, Seed};

/// How latents become pictures.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Also write PNGs and `images.csv`, made by this decoder: a folder with Stable Cascade's decoder in diffusers' layout,
    /// or with one of Stability's stage_b*.safetensors and stage_a.safetensors
    #[arg(long, value_name = "DIR", requires = "model", conflicts_with = "previewer")]
    decoder: Option<PathBuf>,
    /// Also write small PNGs and `images.csv`, made by Stability's previewer.safetensors
    #[arg(long, value_name = "FILE.safetensors", requires = "model")]
    previewer: Option<PathBuf>,
    /// The decoder's sampler steps
    #[arg(long, default_value_t = 10, value_name = "N", requires = "model")]
    decoder_steps: usize,
    /// The decoder's classifier-free guidance; up to 1 there is none
    #[arg(long, default_value_t = 0.0, value_name = "SCALE", requires = "model")]
    decoder_guidance_scale: f64,
}

/// What makes the pictures, as far as it is known before there are latents.
pub(super) enum Maker {
    Decoder(Box<decoder::Files>, Decoding),
    Previewer(Box<Previewer>),
}

/// What each picture shows.
pub(super) struct Captions<'a> {
    pub(super) prompts: &'a [String],
    /// None, or one for each.
    pub(super) negative: &'a [String],
    pub(super) user: &'a str,
    pub(super) seed: u64,
}

impl Arguments {
    /// What was asked for; missing files are refused before anything is sampled.
    pub(super) fn maker(&self, device: &Device) -> Result<Option<Maker>> {
        if let Some(file) = &self.previewer {
            return Ok(Some(Maker::Previewer(Box::new(decoder::open_previewer(file, device)?))));
        }
        let Some(folder) = &self.decoder else { return Ok(None) };
        let scale = self.decoder_guidance_scale;
        if self.decoder_steps == 0 || !scale.is_finite() || scale < 0.0 {
            return Err(Error::Spec(format!(
                "--decoder-steps {} --decoder-guidance-scale {scale}: expected a step at least, and a scale of 0 or more",
                self.decoder_steps
            )));
        }
        let guidance_scale = GuidanceScale::new(scale.max(1.0))?;
        let decoding = Decoding { num_steps: self.decoder_steps, guidance_scale };
        Ok(Some(Maker::Decoder(Box::new(decoder::Files::find(folder)?), decoding)))
    }
}

impl Maker {
    /// Makes the pictures of latents and writes them with their list; each decoder's noise comes from the image's own
    /// stream.
    pub(super) fn write(
        &self,
        latents: &Tensor,
        captions: &Captions,
        out: &Path,
        dtype: DType,
        progress: &Progress,
    ) -> Result<usize> {
        let pictures = self.make(latents, captions, dtype, progress)?;
        let entry = |(i, prompt): (usize, &String)| images::Entry {
            file: format!("{i:05}.png"),
            prompt: prompt.clone(),
            noise_seed: captions.seed,
            user: captions.user.to_owned(),
        };
        let entries: Vec<_> = captions.prompts.iter().enumerate().map(entry).collect();
        images::write(out, &entries, &pictures)?;
        Ok(pictures.len())
    }

    fn make(
        &self,
        latents: &Tensor,
        captions: &Captions,
        dtype: DType,
        progress: &Progress,
    ) -> Result<Vec<Image>> {
        let (files, decoding) = match self {
            Self::Previewer(previewer) => return decoder::preview(previewer, latents),
            Self::Decoder(files, decoding) => (files, decoding),
        };
        let decoder = files.open(dtype, latents.device())?;
        progress.begin("decode", captions.prompts.len());
        let Captions { prompts, negative, seed, .. } = *captions;
        let seeds: Vec<_> = (0..prompts.len() as u64).map(|index| (Seed::new(seed), index)).collect();
        let task = decoder::Task { embeddings: latents, prompts, negative };
        decoder.images(&task, decoding, &seeds, || {
            progress.advance(1);
            progress.check()
        })
    }
}
