//! What a study's work costs on this machine, measured on a few steps of it.

use std::collections::BTreeSet;
use std::time::Instant;

use candle_core::Tensor;

use super::{Laboratory, sampling};
use crate::collective::Alone;
use crate::diffusion::GuidanceSteps;
use crate::error::{Error, Result};
use crate::generate::{Request, sample};
use crate::pixels::Image;
use crate::progress::Progress;
use crate::rng::stream;
use crate::spec::{Cell, Cost};
use crate::train::{self, Bench, Example, Pairs, ReferenceErrors, Rows};
use crate::units::Seed;

/// Pairs of a measured step: one micro-batch, which one worker takes.
const PAIRS: usize = 4;
/// The width of a user's vector, which costs next to nothing: nobody is embedded for an estimate.
const USER_WIDTH: usize = 16;

impl Laboratory<'_> {
    /// Trains on two steps of noise, makes two images with the fewest sampler steps, scores one, and says what each took.
    ///
    /// # Errors
    /// As the work itself.
    pub(crate) fn probe(&self, progress: &Progress) -> Result<Cost> {
        let trained = self.plan.cells.iter().find(|cell| cell.train_key.is_some());
        progress.begin("probe", 2 + trained.iter().count());
        let pair_seconds = trained.map(|cell| self.probe_training(cell)).transpose()?;
        progress.advance(trained.iter().count());
        let (evaluation_seconds, decode_seconds, image) = self.probe_sampling()?;
        progress.advance(1);
        let begun = Instant::now();
        self.scorers()?.score(&[image], &["a probe".to_owned()], &self.compute.workers)?;
        progress.advance(1);
        Ok(Cost {
            pair_seconds: pair_seconds.or(Some(0.0)),
            evaluation_seconds: Some(evaluation_seconds),
            score_seconds: Some(begun.elapsed().as_secs_f64() + decode_seconds),
        })
    }

    /// Seconds of one pair in a step, the second of two.
    fn probe_training(&self, cell: &Cell) -> Result<f64> {
        let (base, settings) = (self.base()?, self.settings(cell, USER_WIDTH)?);
        let settings = train::Settings { steps: 2, pairs_per_step: PAIRS, ..settings };
        let (height, width) = base.latent_size();
        let channels = base.prior.denoiser.config().in_channels;
        let each = 2 * channels * height * width;
        let latents = stream(Seed::new(0), "probe", 0).normals(PAIRS * each);
        let captions = vec!["a probe of what a step takes".to_owned(); PAIRS];
        let pairs = Pairs {
            latents: Rows::Memory(Tensor::from_vec(
                latents,
                (PAIRS, 2, channels, height, width),
                &base.prior.device,
            )?),
            tokens: Rows::Memory(base.prior.conditioning_tokens(&captions)?),
            caption: (0..PAIRS).collect(),
            empty: base.prior.conditioning_tokens(&[String::new()])?,
            broken: BTreeSet::new(),
            cut_captions: 0,
        };
        let user = vec![1.0; settings.adapter.user_width];
        let example = |pair| Example { pair, second_chosen: false, user: user.clone() };
        let examples: Vec<Example> = (0..PAIRS).map(example).collect();
        let bench = Bench {
            base,
            pairs: &pairs,
            reference: &ReferenceErrors::default(),
            workers: &self.compute.workers,
            collective: &Alone,
        };
        let mut stamps = Vec::new();
        train::fine_tune(&bench, &examples, &settings, Seed::new(0), None, &mut |_| {
            stamps.push(Instant::now());
            true
        })?;
        Ok(stamps[1].duration_since(stamps[0]).as_secs_f64() / PAIRS as f64)
    }

    /// Seconds of one evaluation of the denoiser on one image and branch, seconds of decoding, and an image.
    fn probe_sampling(&self) -> Result<(f64, f64, Image)> {
        let spec = &self.plan.spec;
        let request = Request { prompt: "a probe".into(), index: 0, seed: Seed::new(0) };
        let seconds = |num_steps: usize| {
            let mut sampling = sampling(&spec.sample);
            sampling.sampler.num_steps = num_steps;
            // Every step alike: what a study leaves out, its estimate does.
            sampling.guidance_steps = GuidanceSteps::ALL;
            let begun = Instant::now();
            let requests = std::slice::from_ref(&request);
            let images = sample(self.base()?, requests, &sampling, None, &self.compute.workers, &|_| true)?;
            Ok::<_, Error>((begun.elapsed().as_secs_f64(), images))
        };
        // The first call warms up.
        seconds(1)?;
        let (short, _) = seconds(1)?;
        let (long, images) = seconds(3)?;
        let branches = if spec.sample.guidance_scale.get() > 1.0 { 2.0 } else { 1.0 };
        let step = ((long - short) / 2.0).max(0.0);
        let image = images.into_iter().next().expect("one request gives one image");
        Ok((step / branches, (short - step).max(0.0), image))
    }
}
