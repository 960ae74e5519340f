//! What a training learns from: the pairs with their scores, as latents and conditioning tokens kept in the cache.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use candle_core::{DType, Device, Tensor};

use super::{Laboratory, get_or_open};
use crate::cache::{Layout, Shards};
use crate::data::{Preference, Split, pick_a_pic, scores};
use crate::error::{Error, Result};
use crate::pixels::Image;
use crate::spec::{Labels, Precision, Profile};
use crate::train::{Pairs, Rows};
use crate::units::Digest;

/// Pairs, or captions, that one worker encodes at a time.
const ENCODED_AT_ONCE: usize = 16;
/// Pairs, and captions, in one file of the cache.
const PAIRS_PER_SHARD: usize = 1024;
const CAPTIONS_PER_SHARD: usize = 256;

impl Laboratory<'_> {
    /// Who saw what and chose what, without the pictures, and what the rewards say of them.
    pub(super) fn preferences(&self) -> Result<&(Vec<Preference>, scores::Scores)> {
        get_or_open(&self.preferences, || {
            let path = self.plan.data("pairs")?;
            let columns = pick_a_pic::Columns::WithoutImages;
            let mut preferences = pick_a_pic::load(&path, Split::Train, columns)?;
            let beside = path.with_extension("scores.csv");
            let mut scores = match beside.exists() {
                true => scores::read(&beside, &preferences)?,
                false => self.scores(preferences.len())?,
            };
            if let Some(most) = self.plan.spec.data.pairs.filter(|&most| most < preferences.len()) {
                preferences.truncate(most);
                scores = scores.truncated(most);
            }
            Ok((preferences, scores))
        })
    }

    /// What the rewards that label pairs say of both pictures of the first `count`: read from the cache, after what it
    /// lacks has been computed.
    fn scores(&self, count: usize) -> Result<scores::Scores> {
        let labels = self.plan.spec.methods.iter().filter_map(|method| method.labels.as_ref());
        let rewards: BTreeSet<&str> = labels.flat_map(Labels::rewards).map(String::as_str).collect();
        let mut scores = scores::Scores::new();
        if rewards.is_empty() {
            return Ok(scores);
        }
        let published = &self.plan.spec.profile.published;
        let backbones = rewards.iter().filter_map(|reward| published.get(*reward)?.backbone.as_deref());
        let models = rewards.iter().copied().chain(backbones);
        let weights: Vec<String> = models.map(|model| format!("weights/{model}")).collect();
        let inputs: Vec<&str> = weights.iter().map(String::as_str).chain(["data/pairs"]).collect();
        let shards = self.shards("scores", &inputs, count, PAIRS_PER_SHARD).in_single_precision();
        let origin = self.plan.data("pairs")?;
        let mut pictures = pick_a_pic::Rows::open(&origin, Split::Train, pick_a_pic::Columns::All)?;
        shards.fill(|rows| {
            let (pairs, scorers) = (pictures.take(rows.clone())?, self.scorers()?);
            let mut of_reward: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
            // A few pictures at a time: they are larger than what is said of them.
            for pairs in pairs.chunks(ENCODED_AT_ONCE) {
                let images = pairs.iter().flat_map(|pair| [pair.image(0, &origin), pair.image(1, &origin)]);
                let images = images.collect::<Result<Vec<Image>>>()?;
                let prompts: Vec<String> =
                    pairs.iter().flat_map(|pair| vec![pair.caption.clone(); 2]).collect();
                for scored in scorers.score(&images, &prompts, &self.compute.workers)? {
                    for &reward in &rewards {
                        let score = scored.get(reward).ok_or_else(|| {
                            Error::Spec(format!(
                                "`{reward}` is to label pairs, but is no score of this study"
                            ))
                        })?;
                        of_reward.entry(reward).or_default().push(*score as f32);
                    }
                }
            }
            let tensor = |(reward, values): (&str, Vec<f32>)| {
                Ok((reward.to_owned(), Tensor::from_vec(values, (rows.len(), 2), &Device::Cpu)?))
            };
            of_reward.into_iter().map(tensor).collect()
        })?;
        for reward in rewards {
            let values = shards.read_all(reward, DType::F32, &Device::Cpu)?.to_vec2::<f32>()?;
            let values = values.iter().map(|sides| [f64::from(sides[0]), f64::from(sides[1])]);
            scores.insert(reward, values.collect())?;
        }
        Ok(scores)
    }

    /// All pairs as the denoiser sees them: read from the cache, after what it lacks has been computed.
    pub(super) fn pairs(&self) -> Result<&Pairs> {
        get_or_open(&self.pairs, || {
            let captions = self.preferences()?.0.iter().map(|pair| pair.caption.as_str());
            let (distinct, caption) = distinct(captions);
            Ok(Pairs {
                latents: Rows::Kept(self.latents(caption.len())?, "latents"),
                tokens: Rows::Kept(self.tokens(&distinct)?, "tokens"),
                caption,
                empty: self.base()?.prior.conditioning_tokens(&[String::new()])?,
            })
        })
    }

    /// The latents of both pictures of the first `count` pairs, (2, C, h, w) each.
    fn latents(&self, count: usize) -> Result<Shards> {
        let shards = self.shards(
            "latents",
            &[Profile::ENCODERS.as_slice(), &["data/pairs"]].concat(),
            count,
            PAIRS_PER_SHARD,
        );
        let (base, origin) = (self.base()?, self.plan.data("pairs")?);
        let mut pictures = pick_a_pic::Rows::open(&origin, Split::Train, pick_a_pic::Columns::All)?;
        shards.fill(|rows| {
            let pairs = pictures.take(rows.clone())?;
            let batches: Vec<&[Preference]> = pairs.chunks(ENCODED_AT_ONCE).collect();
            let encoded = self.compute.workers.map(&batches, |_, batch| -> Result<Tensor> {
                let images = batch
                    .iter()
                    .flat_map(|pair| [pair.image(0, &origin), pair.image(1, &origin)])
                    .collect::<Result<Vec<Image>>>()?;
                let latents = base.encode(&images)?;
                let (_, channels, height, width) = latents.dims4()?;
                Ok(latents.reshape((batch.len(), 2, channels, height, width))?)
            });
            let encoded = Tensor::cat(&encoded.into_iter().collect::<Result<Vec<_>>>()?, 0)?;
            Ok(BTreeMap::from([("latents".to_owned(), encoded)]))
        })?;
        Ok(shards)
    }

    /// The conditioning tokens of captions, (N, D) each.
    fn tokens(&self, captions: &[String]) -> Result<Shards> {
        let inputs = ["weights/text-encoder", "weights/denoiser", "data/pairs"];
        let shards = self.shards("text-states", &inputs, captions.len(), CAPTIONS_PER_SHARD);
        let base = self.base()?;
        shards.fill(|rows| {
            let batches: Vec<&[String]> = captions[rows.clone()].chunks(ENCODED_AT_ONCE).collect();
            let encoded =
                self.compute.workers.map(&batches, |_, batch| base.prior.conditioning_tokens(batch));
            let encoded = Tensor::cat(&encoded.into_iter().collect::<Result<Vec<_>>>()?, 0)?;
            Ok(BTreeMap::from([("tokens".to_owned(), encoded)]))
        })?;
        Ok(shards)
    }

    /// The store of some rows that follow from the files named by `inputs`.
    fn shards(&self, what: &str, inputs: &[&str], rows: usize, per_shard: usize) -> Shards {
        let digests = self.plan.cells.first().map(|cell| &cell.digests);
        let inputs: Vec<Option<&Digest>> =
            inputs.iter().map(|name| digests.and_then(|digests| digests.get(*name))).collect();
        let profile = &self.plan.spec.profile;
        let from = serde_json::json!({"schema": 1, "inputs": inputs, "rows": rows});
        let key = Digest::of(profile.complete(from).to_string().as_bytes());
        let precision = match profile.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        Shards::new(&self.plan.places.cache, what, &key, rows, Layout { per_shard, precision })
    }
}

/// Each text once, in the order of first appearance, and the place of each among them.
fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> (Vec<String>, Vec<usize>) {
    let mut places = HashMap::new();
    let mut found = Vec::new();
    let of_each = texts.map(|text| {
        *places.entry(text).or_insert_with(|| {
            found.push(text.to_owned());
            found.len() - 1
        })
    });
    let of_each = of_each.collect();
    (found, of_each)
}
