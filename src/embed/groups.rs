//! Many few-shot groups of users → hidden states, computed once and kept.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::{Asked, Config, Template, embed_together, prompt};
use crate::cache::{Layout as Kept, Shards};
use crate::data::desk::users::Choice;
use crate::data::gallery::{Gallery, Pictures};
use crate::error::{Error, Result};
use crate::models::llava_onevision::Layout;
use crate::nn::workers::Workers;
use crate::progress::Progress;
use crate::units::Digest;
use crate::vlm::{Vlm, repository_digest};

/// The tensors that the cache holds: (groups, layers + 1, width), and (groups, most tokens), filled up with -1.
const STATES: &str = "states";
const WRITTEN: &str = "written";
/// Batches of one shard.
const BATCHES: usize = 8;

/// How groups are embedded.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// The model's folder.
    pub model: &'a Path,
    /// The prompt's words, and what messages call them.
    pub template: (&'a str, &'a str),
    /// The most tokens that the model writes about a group.
    pub max_new_tokens: usize,
    /// Groups that are embedded at once.
    pub batch: usize,
    /// Where the model computes, and in which precision.
    pub place: (&'a Device, DType),
    /// The layer whose states are given back; absent: the last.
    pub layer: Option<usize>,
    /// Where embeddings are kept.
    pub cache: &'a Path,
}

/// What a model makes of groups of choices.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// Each group's state of one layer, layer 0 being the embeddings' own, at the position whose logits gave the last token.
    pub states: Vec<Vec<f32>>,
    /// What was written about each group.
    pub texts: Vec<String>,
}

/// Embeds every group of choices, each shown with its chosen side first. A group may hold no choice.
///
/// # Errors
/// Where the model is missing or damaged or has no such layer, a picture cannot be read, the cache cannot be written, and
/// where the work is to stop.
pub fn embed_groups(
    gallery: &Gallery,
    groups: &[&[Choice]],
    how: How,
    workers: &Workers,
    progress: &Progress,
) -> Result<Embedded> {
    let (device, dtype) = how.place;
    let vlm = Vlm::open(how.model, dtype, device)?;
    let (words, origin) = how.template;
    let template = Template::parse(words, origin)?;
    let config = Config {
        model: repository_digest(how.model)?,
        template: template.digest().clone(),
        layout: Layout::BaseOnly,
        max_new_tokens: how.max_new_tokens,
        dtype: dtype.as_str().to_owned(),
        sampling: None,
    };
    let mut key = json!({"schema": 2, "embedding": config, "groups": said_by(gallery, groups)});
    if let Some(identity) = gallery.identity() {
        key["pairs"] = json!(identity);
    }
    let key = Digest::of(key.to_string().as_bytes());
    let kept = Kept { per_shard: BATCHES * how.batch, precision: DType::F32 };
    let shards = Shards::new(how.cache, "user-embeddings", &key, groups.len(), kept);
    progress.begin("embed", shards.missing().iter().map(ExactSizeIterator::len).sum());
    shards.fill(|rows| {
        let parts: Vec<&[&[Choice]]> = groups[rows.clone()].chunks(how.batch).collect();
        let made = workers.map(&parts, |_, part| -> Result<(Tensor, Tensor)> {
            progress.check()?;
            let pictures = gallery.pictures(part.iter().copied().flatten())?;
            let asked = part.iter().map(|choices| ask(&vlm, &template, (gallery, &pictures), choices));
            let asked = asked.collect::<Result<Vec<_>>>()?;
            let embedded = embed_together(&vlm, &config, &asked, |_| Ok(()))?;
            progress.advance(part.len());
            let states: Vec<&Tensor> = embedded.iter().map(|one| &one.states).collect();
            let most = how.max_new_tokens;
            let written = embedded.iter().flat_map(|one| {
                let ids = one.ids.iter().map(|&id| id as f32).chain(std::iter::repeat(NOTHING));
                ids.take(most)
            });
            let written = Tensor::from_vec(written.collect::<Vec<_>>(), (part.len(), most), &Device::Cpu)?;
            Ok((Tensor::stack(&states, 0)?, written)) // (groups, layers + 1, D)
        });
        let (states, written): (Vec<_>, Vec<_>) =
            made.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok(BTreeMap::from([
            (STATES.to_owned(), Tensor::cat(&states, 0)?),
            (WRITTEN.to_owned(), Tensor::cat(&written, 0)?),
        ]))
    })?;
    let texts = shards.read_all(WRITTEN, DType::F32, &Device::Cpu)?.to_vec2::<f32>()?;
    let ids: Vec<Vec<u32>> = texts
        .into_iter()
        .map(|ids| ids.into_iter().take_while(|id| *id >= 0.0).map(|id| id as u32).collect())
        .collect();
    let cut = ids.iter().filter(|ids| ids.last().is_some_and(|last| !vlm.end_tokens.contains(last))).count();
    if cut > 0 {
        progress.note(&format!(
            "{cut} of {} texts about users' choices were cut off after {} tokens, before a profile was written: their states \
             tell little of the user; raise max_new_tokens",
            groups.len(),
            how.max_new_tokens
        ));
    }
    Ok(Embedded {
        states: layer(&shards, groups.len(), how.layer)?,
        texts: ids.iter().map(|ids| vlm.tokenizer.decode(ids, false)).collect::<Result<_>>()?,
    })
}

/// Stands behind the last token. Ids are below 2²⁴, so that single precision keeps them.
const NOTHING: f32 = -1.0;

/// Groups whose states are in memory at once, with all their layers.
const READ: usize = 256;

/// One layer of the states, a row for each group.
fn layer(shards: &Shards, groups: usize, layer: Option<usize>) -> Result<Vec<Vec<f32>>> {
    let all: Vec<usize> = (0..groups).collect();
    let mut rows = Vec::with_capacity(groups);
    for part in all.chunks(READ) {
        let states = shards.read(STATES, part, DType::F32, &Device::Cpu)?; // (part, layers + 1, width)
        let last = states.dim(1)?.saturating_sub(1);
        let layer = layer.unwrap_or(last);
        if layer > last {
            return Err(Error::Spec(format!(
                "layer {layer} is asked for, and the model that embeds has layers 0 to {last}"
            )));
        }
        rows.extend(states.narrow(1, layer, 1)?.squeeze(1)?.to_vec2::<f32>()?);
    }
    Ok(rows)
}

/// What the model is asked about a group.
fn ask<'p>(
    vlm: &Vlm,
    template: &Template,
    (gallery, pictures): (&Gallery, &'p Pictures),
    choices: &[Choice],
) -> Result<Asked<'p>> {
    let captions: Vec<&str> = choices.iter().map(|choice| gallery.caption(choice.pair)).collect();
    let images = choices.iter().filter_map(|choice| {
        let [first, second] = pictures.get(&choice.pair)?.as_ref();
        Some(if choice.chosen == 0 { [first, second] } else { [second, first] })
    });
    Ok(Asked { images: images.flatten().collect(), prompt: prompt(vlm, template, &captions)? })
}

/// The digest of all that the groups show.
fn said_by(gallery: &Gallery, groups: &[&[Choice]]) -> Digest {
    let mut pictures: BTreeMap<usize, [String; 2]> = BTreeMap::new();
    for choice in groups.iter().copied().flatten() {
        pictures.entry(choice.pair).or_insert_with(|| gallery.names(choice.pair));
    }
    let mut text = String::new();
    for choices in groups {
        for choice in *choices {
            let [first, second] = &pictures[&choice.pair];
            text += &format!("{} {first} {second} {}\n", gallery.caption(choice.pair), choice.chosen);
        }
        text.push('\n');
    }
    Digest::of(text.as_bytes())
}
