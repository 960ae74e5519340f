//! Many few-shot groups of the desk's users → hidden states, computed once and kept.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::{Asked, Config, Template, embed_together, prompt};
use crate::cache::{Layout as Kept, Shards};
use crate::data::desk::users::{Choice, Shown};
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
    /// Where embeddings are kept.
    pub cache: &'a Path,
}

/// What a model makes of groups of choices.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// (groups, layers + 1, width), layer 0 being the embeddings' own, at the position whose logits gave the last token.
    pub states: Tensor,
    /// What was written about each group.
    pub texts: Vec<String>,
}

/// Embeds every group of choices, each shown with its chosen side first. A group may hold no choice.
///
/// # Errors
/// Where the model is missing or damaged, the cache cannot be written, and where the work is to stop.
pub fn embed_groups(
    shown: &[Shown],
    groups: &[&[Choice]],
    how: How,
    workers: &Workers,
    progress: &Progress,
) -> Result<Embedded> {
    let vlm = Vlm::open(how.model, DType::F32, &Device::Cpu)?;
    let (words, origin) = how.template;
    let template = Template::parse(words, origin)?;
    let config = Config {
        model: repository_digest(how.model)?,
        template: template.digest().clone(),
        layout: Layout::BaseOnly,
        max_new_tokens: how.max_new_tokens,
        dtype: "f32".into(),
        sampling: None,
    };
    let key = json!({"schema": 2, "embedding": config, "groups": said_by(shown, groups)});
    let key = Digest::of(key.to_string().as_bytes());
    let kept = Kept { per_shard: BATCHES * how.batch, precision: DType::F32 };
    let shards = Shards::new(how.cache, "user-embeddings", &key, groups.len(), kept);
    progress.begin("embed", shards.missing().iter().map(ExactSizeIterator::len).sum());
    shards.fill(|rows| {
        let parts: Vec<&[&[Choice]]> = groups[rows.clone()].chunks(how.batch).collect();
        let made = workers.map(&parts, |_, part| -> Result<(Tensor, Tensor)> {
            progress.check()?;
            let asked = part.iter().map(|choices| ask(&vlm, &template, shown, choices));
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
    let text = |ids: Vec<f32>| {
        let ids: Vec<u32> = ids.into_iter().take_while(|id| *id >= 0.0).map(|id| id as u32).collect();
        vlm.tokenizer.decode(&ids, false)
    };
    Ok(Embedded {
        states: shards.read_all(STATES, DType::F32, &Device::Cpu)?,
        texts: texts.into_iter().map(text).collect::<Result<_>>()?,
    })
}

/// Stands behind the last token. Ids are below 2²⁴, so that single precision keeps them.
const NOTHING: f32 = -1.0;

/// One layer of states, a row for each group.
///
/// # Errors
/// [`Error::Spec`] where the model has no such layer.
pub fn layer(states: &Tensor, layer: Option<usize>) -> Result<Vec<Vec<f32>>> {
    let last = states.dim(1)?.saturating_sub(1);
    let layer = layer.unwrap_or(last);
    if layer > last {
        return Err(Error::Spec(format!(
            "layer {layer} is asked for, and the model that embeds has layers 0 to {last}"
        )));
    }
    Ok(states.narrow(1, layer, 1)?.squeeze(1)?.to_vec2::<f32>()?)
}

/// What the model is asked about a group.
fn ask<'s>(vlm: &Vlm, template: &Template, shown: &'s [Shown], choices: &[Choice]) -> Result<Asked<'s>> {
    let captions: Vec<&str> = choices.iter().map(|choice| shown[choice.pair].caption.as_str()).collect();
    let images = choices.iter().flat_map(|choice| {
        let images = &shown[choice.pair].images;
        [&images[choice.chosen], &images[1 - choice.chosen]]
    });
    Ok(Asked { images: images.collect(), prompt: prompt(vlm, template, &captions)? })
}

/// The digest of all that the groups show.
fn said_by(shown: &[Shown], groups: &[&[Choice]]) -> Digest {
    let mut pictures: BTreeMap<usize, [String; 2]> = BTreeMap::new();
    for choice in groups.iter().copied().flatten() {
        let images = &shown[choice.pair].images;
        let digests = || [0, 1].map(|side: usize| Digest::of(images[side].rgb()).short().to_owned());
        pictures.entry(choice.pair).or_insert_with(digests);
    }
    let mut text = String::new();
    for choices in groups {
        for choice in *choices {
            let [first, second] = &pictures[&choice.pair];
            text += &format!("{} {first} {second} {}\n", shown[choice.pair].caption, choice.chosen);
        }
        text.push('\n');
    }
    Digest::of(text.as_bytes())
}
