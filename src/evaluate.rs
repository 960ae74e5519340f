//! Images to scores: every reward that a study names, their twins, and statistics measured on the pixels.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};

use crate::error::{Error, Result};
use crate::models::tokenizer::{DESK_CONTEXT, DESK_PAD, Tokenizer};
use crate::nn::workers::Workers;
use crate::pixels::Image;
use crate::reward::{self, Reward, retrieval};
use crate::reward_checkpoint::{self, Files};
use crate::scenes;
use crate::weights::Weights;

/// The rewards of one study, opened.
#[derive(Debug)]
pub struct Scorers {
    rewards: Vec<(String, Reward)>,
    measured: Vec<String>,
}

/// Images that one worker scores at a time.
const BATCH: usize = 16;

/// The statistic that needs the prompt: how well the pixels show what it says.
const ALIGNMENT: &str = "alignment";

impl Scorers {
    /// Opens each reward from its files. `measured` names statistics of the pixels.
    ///
    /// # Errors
    /// Where a file is missing or damaged, or a statistic unknown.
    pub fn open(rewards: &[(String, Files)], measured: &[String], device: &Device) -> Result<Self> {
        let blank = Image::new(scenes::SIDE, scenes::SIDE, vec![0; 3 * scenes::SIDE * scenes::SIDE]);
        let known: Vec<&str> = scenes::measure(&blank).pairs().iter().map(|(name, _)| *name).collect();
        if let Some(name) = measured.iter().find(|name| *name != ALIGNMENT && !known.contains(&name.as_str()))
        {
            return Err(Error::Spec(format!(
                "`{name}` is no statistic of pixels; expected {ALIGNMENT}, {}",
                known.join(", ")
            )));
        }
        let rewards = rewards
            .iter()
            .map(|(name, files)| {
                let reward = match &files.published {
                    None => open_reward(&files.weights, device)?,
                    Some(published) => reward_checkpoint::open(
                        *published,
                        &files.weights,
                        files.backbone.as_deref(),
                        device,
                    )?,
                };
                Ok((name.clone(), reward))
            })
            .collect::<Result<_>>()?;
        Ok(Self { rewards, measured: measured.to_vec() })
    }

    /// The name of every score: the rewards, then the measured statistics.
    pub fn names(&self) -> Vec<String> {
        self.rewards.iter().map(|(name, _)| name).chain(&self.measured).cloned().collect()
    }

    /// All scores of each image.
    ///
    /// # Errors
    /// Where there are not as many prompts as images, or an image has a size that a reward does not take.
    pub fn score(
        &self,
        images: &[Image],
        prompts: &[String],
        workers: &Workers,
    ) -> Result<Vec<BTreeMap<String, f64>>> {
        if images.len() != prompts.len() {
            return Err(Error::Shape(format!("{} images, {} prompts", images.len(), prompts.len())));
        }
        let batches: Vec<_> = images.chunks(BATCH).zip(prompts.chunks(BATCH)).collect();
        let scored = workers.map(&batches, |_, (images, prompts)| self.score_batch(images, prompts));
        Ok(scored.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// How often each reward that reads prompts finds a picture's own prompt nearest among `candidates` of the list.
    ///
    /// # Errors
    /// As [`Scorers::score`].
    pub fn retrieval(
        &self,
        images: &[Image],
        prompts: &[String],
        candidates: usize,
    ) -> Result<BTreeMap<String, f64>> {
        if images.len() != prompts.len() {
            return Err(Error::Shape(format!("{} images, {} prompts", images.len(), prompts.len())));
        }
        let mut found = BTreeMap::new();
        for (name, reward) in &self.rewards {
            if let Some(scorer) = reward.scorer() {
                let (pictures, texts) = (scorer.embed_images(images)?, scorer.embed_prompts(prompts)?);
                found.insert(name.clone(), retrieval(&pictures, &texts, prompts, candidates));
            }
        }
        Ok(found)
    }

    fn score_batch(&self, images: &[Image], prompts: &[String]) -> Result<Vec<BTreeMap<String, f64>>> {
        let mut rows: Vec<BTreeMap<String, f64>> =
            images.iter().zip(prompts).map(|(image, prompt)| self.measure(image, prompt)).collect();
        for (name, reward) in &self.rewards {
            for (row, score) in rows.iter_mut().zip(reward.score(images, prompts)?) {
                row.insert(name.clone(), score);
            }
        }
        Ok(rows)
    }

    fn measure(&self, image: &Image, prompt: &str) -> BTreeMap<String, f64> {
        let of_pixels = scenes::measure(image).pairs();
        let wanted = |name: &str| self.measured.iter().any(|wanted| wanted == name);
        let mut row: BTreeMap<String, f64> = of_pixels
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        // Only captions of the desk world's grammar can be checked against pixels.
        if let Some(scene) = scenes::parse(prompt).filter(|_| wanted(ALIGNMENT)) {
            row.insert(ALIGNMENT.to_owned(), scenes::alignment(image, &scene));
        }
        row
    }
}

/// Opens the desk's reward whose weights lie at `path`; `reward.json` and, where the reward reads prompts, `tokenizer.json`
/// stand beside them.
///
/// # Errors
/// Where its files are missing or damaged.
pub fn open_reward(path: &Path, device: &Device) -> Result<Reward> {
    let beside = |name: &str| path.with_file_name(name);
    let config = beside("reward.json");
    let text = std::fs::read_to_string(&config).map_err(Error::io("read", &config))?;
    let config: reward::Config = serde_json::from_str(&text)
        .map_err(|fault| Error::weights(&config, format!("is no reward's config: {fault}")))?;
    let tokenizer = beside("tokenizer.json");
    let tokenizer = match std::fs::read(&tokenizer) {
        Ok(bytes) => Some(Tokenizer::from_json(&bytes, DESK_CONTEXT, DESK_PAD)?),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => None,
        Err(fault) => return Err(Error::io("read", &tokenizer)(fault)),
    };
    config.open(Weights::open(path)?.builder(DType::F32, device), tokenizer)
}
