//! What users are to be told from: a model's states after it has written about a group, or a CLIP's difference of chosen and
//! rejected pictures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::DType;

use super::{Cut, Group, Identifier, Rows};
use crate::data::desk::users::Choice;
use crate::embed::groups::{self, How};
use crate::error::{Error, Result};
use crate::evaluate::open_reward;
use crate::pixels::Image;
use crate::progress::Progress;
use crate::reward::Reward;
use crate::reward_checkpoint;
use crate::rng::stream;
use crate::spec::Precision;
use crate::spec::identify::Choices;

impl Identifier<'_> {
    /// The mean over a group's pairs of the chosen picture's embedding less the rejected one's.
    pub(super) fn differences(&self, cut: &Cut, model: &Path) -> Result<(Rows, Rows)> {
        let reward = self.reward(model)?;
        let Reward::Clip(clip) = &reward else {
            return Err(Error::weights(model, "is no CLIP; name the folder of one, such as desk/clip"));
        };
        // Of the desk's pictures all, of a data set's those that somebody chose between here.
        let places: Vec<usize> = match self.gallery.shown() {
            Some(shown) => (0..shown.len()).collect(),
            None => {
                let groups = cut.learned.iter().chain(&cut.asked);
                let places: BTreeSet<usize> =
                    groups.flat_map(|group| &group.choices).map(|choice| choice.pair).collect();
                places.into_iter().collect()
            }
        };
        let parts: Vec<&[usize]> = places.chunks(64).collect();
        let embedded = self.workers.map(&parts, |_, part| -> Result<Vec<Vec<f32>>> {
            let pictures = self.gallery.pictures_of(part)?;
            let images: Vec<Image> = pictures.values().flat_map(|both| both.as_ref().clone()).collect();
            clip.scorer().embed_images(&images)
        });
        let mut rows: BTreeMap<usize, [Vec<f32>; 2]> = BTreeMap::new();
        for (part, embedded) in parts.iter().zip(embedded) {
            let mut embedded = embedded?.into_iter();
            for place in *part {
                if let (Some(first), Some(second)) = (embedded.next(), embedded.next()) {
                    rows.insert(*place, [first, second]);
                }
            }
        }
        let width = rows.values().next().map_or(0, |both| both[0].len());
        let of = |groups: &[Group]| -> Rows {
            let difference = |group: &Group| {
                let mut sum = vec![0f32; width];
                for choice in &group.choices {
                    let both = &rows[&choice.pair];
                    let pair = both[choice.chosen].iter().zip(&both[1 - choice.chosen]);
                    sum.iter_mut().zip(pair).for_each(|(sum, (a, b))| *sum += a - b);
                }
                sum.into_iter().map(|sum| sum / group.choices.len() as f32).collect()
            };
            groups.iter().map(difference).collect()
        };
        Ok((of(&cut.learned), of(&cut.asked)))
    }

    /// The reward of a folder among the assets, or the profile's public one of this name.
    fn reward(&self, model: &Path) -> Result<Reward> {
        let profile = self.study.profile()?;
        let public = model.to_str().filter(|name| profile.published.contains_key(*name));
        let files = public.map(|name| profile.reward_in(self.assets, name)).transpose()?;
        match files.as_ref().and_then(|files| Some((files.published?, files))) {
            Some((published, files)) => {
                reward_checkpoint::open(published, &files.weights, files.backbone.as_deref(), &self.device)
            }
            None => open_reward(&self.assets.join(model).join("model.safetensors"), &self.device),
        }
    }

    /// The hidden states of one layer after the model has written about each group.
    pub(super) fn embeddings(
        &self,
        cut: &Cut,
        (choices, model): (Choices, &Path),
        layer: Option<usize>,
        progress: &Progress,
    ) -> Result<(Rows, Rows)> {
        let (embedding, profile) = (&self.study.embedding, self.study.profile()?);
        let dtype = match profile.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let how = How {
            model: &profile.reader_in(self.assets, model)?,
            template: embedding.words.few_shot(),
            max_new_tokens: embedding.max_new_tokens,
            batch: embedding.batch,
            place: (&self.device, dtype),
            layer,
            cache: self.cache,
        };
        let groups = cut.learned.iter().chain(&cut.asked).enumerate();
        let told: Vec<Vec<Choice>> = groups
            .map(|(at, group)| match choices {
                Choices::Own => group.choices.clone(),
                Choices::Coin => {
                    let mut coin = stream(self.study.groups.seed, "identify coin", at as u64);
                    let tossed = |choice: &Choice| Choice { chosen: coin.below(2), ..*choice };
                    group.choices.iter().map(tossed).collect()
                }
            })
            .collect();
        let told: Vec<&[Choice]> = told.iter().map(Vec::as_slice).collect();
        let mut rows = groups::embed_groups(&self.gallery, &told, how, self.workers, progress)?.states;
        let asked = rows.split_off(cut.learned.len());
        Ok((rows, asked))
    }
}
