//! What a training learns from: the pairs with their scores, as latents and conditioning tokens kept in the cache.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::{Laboratory, get_or_open};
use crate::base::Base;
use crate::cache::{Layout, Shards};
use crate::data::pairs::Store;
use crate::data::{Preference, Split, scores};
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
/// The version of what is kept: 2 since JPEGs are decoded as by Pillow.
const ROWS: u32 = 2;

impl Laboratory<'_> {
    /// Who saw what and chose what, without the pictures, and what the rewards say of them.
    pub(super) fn preferences(&self) -> Result<&(Vec<Preference>, scores::Scores)> {
        get_or_open(&self.preferences, || {
            let path = self.plan.data("pairs")?;
            let mut preferences = Store::at(&path, Split::Train)?.load()?;
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
        let (store, mut reader) = (Store::at(&origin, Split::Train)?, None);
        shards.fill(|rows| {
            let (pairs, scorers) = (store.take(rows.clone(), &mut reader)?, self.scorers()?);
            let mut of_reward: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
            // A few pictures at a time: they are larger than what is said of them.
            for pairs in pairs.chunks(ENCODED_AT_ONCE) {
                let (whole, images) = decoded(pairs, &origin);
                let seen = pairs.iter().zip(&whole).filter(|(_, whole)| **whole);
                let prompts: Vec<String> = seen.flat_map(|(pair, _)| vec![pair.caption.clone(); 2]).collect();
                let mut scored = scorers.score(&images, &prompts, &self.compute.workers)?.into_iter();
                for whole in whole {
                    for _ in 0..2 {
                        // Equal scores, which choose neither side, stand for a pair that cannot be seen.
                        let of_picture =
                            if whole { scored.next().unwrap_or_default() } else { BTreeMap::new() };
                        for &reward in &rewards {
                            let score = match of_picture.get(reward) {
                                Some(score) => *score as f32,
                                None if !whole => 0.0,
                                None => return Err(no_score(reward)),
                            };
                            of_reward.entry(reward).or_default().push(score);
                        }
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
            let latents = self.latents(caption.len())?;
            let whole = latents.read_all(WHOLE, DType::F32, &Device::Cpu)?.to_vec1::<f32>()?;
            let tokenizer = &self.base()?.prior.tokenizer;
            let cut = distinct.iter().map(|caption| Ok(usize::from(tokenizer.cut(caption)?.is_some())));
            Ok(Pairs {
                cut_captions: cut.sum::<Result<usize>>()?,
                latents: Rows::Kept(latents, "latents"),
                broken: (0..whole.len()).filter(|&pair| whole[pair] == 0.0).collect(),
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
        let (store, mut reader) = (Store::at(&origin, Split::Train)?, None);
        shards.fill(|rows| {
            let pairs = store.take(rows.clone(), &mut reader)?;
            let batches: Vec<&[Preference]> = pairs.chunks(ENCODED_AT_ONCE).collect();
            let encoded = self.compute.workers.map(&batches, |_, batch| encode(base, batch, &origin));
            let (mut latents, mut whole) = (Vec::new(), Vec::new());
            for part in encoded {
                let (of_part, flags) = part?;
                latents.push(of_part);
                whole.extend(flags.into_iter().map(|flag| f32::from(u8::from(flag))));
            }
            // A shard without any whole pair knows no shape of latents.
            let shape = latents.iter().flatten().next().map(|some| some.dims().to_vec());
            let shape = shape.ok_or_else(|| {
                Error::data(&origin, format!("no pair of rows {rows:?} has two pictures that can be decoded"))
            })?;
            let blank = Tensor::zeros(&shape[1..], DType::F32, &base.prior.device)?;
            let mut filled = Vec::with_capacity(rows.len());
            let mut of_whole =
                latents.into_iter().flatten().flat_map(|part| (0..part.dims()[0]).map(move |i| part.get(i)));
            for &flag in &whole {
                filled.push(if flag > 0.0 {
                    of_whole.next().expect("each whole pair has latents")?
                } else {
                    blank.clone()
                });
            }
            let whole = Tensor::from_vec(whole, rows.len(), &Device::Cpu)?;
            Ok(BTreeMap::from([
                ("latents".to_owned(), Tensor::stack(&filled, 0)?),
                (WHOLE.to_owned(), whole),
            ]))
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
        let from = serde_json::json!({"schema": ROWS, "inputs": inputs, "rows": rows});
        let key = Digest::of(profile.complete(from).to_string().as_bytes());
        let precision = match profile.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        Shards::new(&self.plan.places.cache, what, &key, rows, Layout { per_shard, precision })
    }
}

/// In the store of latents: 1 for a pair with two pictures, 0 for one of which a picture cannot be decoded.
const WHOLE: &str = "whole";

fn no_score(reward: &str) -> Error {
    Error::Spec(format!(
        "`{reward}` is to label pairs, but is no score of this study: add it to rewards.users"
    ))
}

/// Which pairs have two pictures that can be decoded, and those pictures.
fn decoded(pairs: &[Preference], origin: &Path) -> (Vec<bool>, Vec<Image>) {
    let mut images = Vec::with_capacity(2 * pairs.len());
    let whole = pairs.iter().map(|pair| match (pair.image(0, origin), pair.image(1, origin)) {
        (Ok(first), Ok(second)) => {
            images.extend([first, second]);
            true
        }
        _ => false,
    });
    let whole = whole.collect();
    (whole, images)
}

/// The latents of the pairs that can be seen, (pairs, 2, C, h, w), if there are any, and which these are.
fn encode(base: &Base, pairs: &[Preference], origin: &Path) -> Result<(Option<Tensor>, Vec<bool>)> {
    let (whole, images) = decoded(pairs, origin);
    if images.is_empty() {
        return Ok((None, whole));
    }
    let latents = base.encode(&images)?;
    let (count, channels, height, width) = latents.dims4()?;
    Ok((Some(latents.reshape((count / 2, 2, channels, height, width))?), whole))
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
