//! The desk's own preference pairs: samples of the base model, judged by simulated users.
//!
//! Pick-a-Pic's pairs come from diffusion models and from people. Here they come from the desk's base, sampled with
//! varied seed and guidance so that alignment and style vary (the sampling is the caller's), and each pair is shown to
//! one user of the population behind raw labels. A user sees the picture as it is stored, so whoever reads the file
//! can judge it again.

pub mod calibrate;
pub mod users;

use std::collections::BTreeMap;

use crate::data::Preference;
use crate::data::{Choice, pick_a_pic};
use crate::error::{Error, Result};
use crate::image::{self, Format, JpegDecoder};
use crate::pixels::Image;
use crate::rng::stream;
use crate::scenes::measure::{Measured, measure_percept};
use crate::scenes::perceive::Percept;
use crate::scenes::population::{self, Population, Reference};
use crate::scenes::{alignment, parse};
use crate::units::{Digest, Seed};

/// Rows of one parquet row group.
const GROUP: usize = 500;

/// One picture that a model made for a caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The picture.
    pub image: Image,
    /// Which model made it (`model_0`, `model_1`).
    pub model: String,
    /// How to make it again, for example `seed=12&guidance=2.5` (`image_0_url`, `image_1_url`).
    pub origin: String,
}

/// Two samples for one caption, before anybody judged them.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// What both were made for.
    pub caption: String,
    /// The samples.
    pub samples: [Sample; 2],
}

/// A pair as it is stored, with what users see in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    caption: String,
    stored: [Vec<u8>; 2],
    models: [String; 2],
    origins: [String; 2],
    /// Each picture's measured statistics.
    pub measured: [Measured; 2],
    /// Each picture's alignment with the caption.
    pub alignment: [f64; 2],
}

impl Judged {
    /// Each side as a user sees it.
    fn sides(&self) -> [(&Measured, f64); 2] {
        [(&self.measured[0], self.alignment[0]), (&self.measured[1], self.alignment[1])]
    }
}

/// Who judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jury {
    /// How many users there are; each pair meets one of them, drawn uniformly.
    pub users: usize,
    /// The seed of who meets which pair, and of the choices' noise.
    pub seed: Seed,
}

/// Stores each sample in `format` and measures what is stored.
///
/// # Errors
/// [`Error::Spec`] where a caption is none of the desk's grammar; [`Error::Shape`] where a picture cannot be stored.
pub fn judge(pairs: &[Pair], format: Format) -> Result<Vec<Judged>> {
    pairs.iter().map(|pair| judge_one(pair, format)).collect()
}

fn judge_one(pair: &Pair, format: Format) -> Result<Judged> {
    let scene = parse(&pair.caption).ok_or_else(|| {
        Error::Spec(format!(
            "the caption {:?} is none of the desk's grammar, so simulated users cannot judge its pictures; \
             use captions that the desk world made",
            pair.caption
        ))
    })?;
    let [first, second] = &pair.samples;
    let mut stored = [Vec::new(), Vec::new()];
    let mut seen = Vec::with_capacity(2);
    for (bytes, sample) in stored.iter_mut().zip([first, second]) {
        *bytes = image::encode(&sample.image, format)?;
        let decoder = JpegDecoder::of_model(Some(&sample.model));
        let image = image::decode_by(decoder, bytes, &pair.caption)?;
        let percept = Percept::of(&image);
        seen.push((measure_percept(&image, &percept), alignment::alignment_percept(&percept, &scene)));
    }
    Ok(Judged {
        caption: pair.caption.clone(),
        stored,
        models: [first.model.clone(), second.model.clone()],
        origins: [first.origin.clone(), second.origin.clone()],
        measured: [seen[0].0, seen[1].0],
        alignment: [seen[0].1, seen[1].1],
    })
}

/// How statistics spread among these pictures: the standardisation under which users see differences between samples
/// as they would between renders.
///
/// # Panics
/// Where there is no pair.
pub fn reference(judged: &[Judged]) -> Reference {
    let mut groups: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
    for pair in judged {
        groups.entry(&pair.caption).or_default().extend(pair.measured);
    }
    Reference::fit(&groups.into_values().collect::<Vec<_>>())
}

/// Shows each pair to its user and writes down what she chose, as Pick-a-Pic's rows.
///
/// A pair's user and choice depend on its place and the jury's seed alone, so changing the population's taste changes
/// no draw. Pictures carry the beginning of their bytes' SHA-256 as identifier; `created_at` stays empty, so that
/// making the pairs again gives the same bytes.
///
/// # Panics
/// Where the jury has no user.
pub fn preferences(judged: &[Judged], population: &Population, jury: Jury) -> Vec<Preference> {
    let mut shared: BTreeMap<&str, i64> = BTreeMap::new();
    for pair in judged {
        *shared.entry(&pair.caption).or_default() += 1;
    }
    judged
        .iter()
        .enumerate()
        .map(|(index, pair)| {
            let (user, mut draws) = juror(jury, index);
            let [first, second] = pair.sides();
            let answer = population.choose(&mut draws, &population.user(user), first, second);
            let choice = match answer {
                population::Choice::First => Choice::Side(0),
                population::Choice::Second => Choice::Side(1),
                population::Choice::Tie => Choice::Tie,
            };
            let uids = [0, 1].map(|side| Digest::of(&pair.stored[side]).hex()[..32].to_owned());
            Preference {
                caption: pair.caption.clone(),
                images: Some(pair.stored.clone()),
                label: Some(choice.label()),
                user_id: Some(user as i64),
                ranking_id: Some(index as i64),
                image_urls: pair.origins.clone().map(Some),
                models: pair.models.clone().map(Some),
                best_image_uid: Some(choice.side().map_or_else(|| "tie".into(), |side| uids[side].clone())),
                are_different: Some(uids[0] != uids[1]),
                has_label: Some(true),
                created_at: None,
                num_example_per_prompt: Some(shared[pair.caption.as_str()]),
                index: Some(index as i64),
                image_uids: uids.map(Some),
            }
        })
        .collect()
}

/// Who judges pair `index`, and her draws.
fn juror(jury: Jury, index: usize) -> (u64, crate::rng::Stream) {
    let mut draws = stream(jury.seed, "desk-jury", index as u64);
    (draws.below(jury.users) as u64, draws)
}

/// The agreement with raw labels that a reward's choices would have on average over the users' noise, ties left out.
///
/// The mean over pairs of the chance that the pair's user, where she prefers one, prefers the side with the higher of
/// the two `scores`. It moves smoothly with the population's configuration, so the population can be calibrated by it
/// (to the 57, 51 and 59 % that CLIP, aesthetic and HPS reach on Pick-a-Pic); the drawn labels scatter around it.
/// `None` where the reward ties on every pair.
pub fn expected_agreement(
    judged: &[Judged],
    scores: &[[f64; 2]],
    population: &Population,
    jury: Jury,
) -> Option<f64> {
    let (mut agreed, mut chosen) = (0.0, 0.0);
    for (index, (pair, &sides)) in judged.iter().zip(scores).enumerate() {
        let Some(side) = Choice::by_score(sides).side() else { continue };
        let [first, second] = pair.sides();
        let odds = population.odds(&population.user(juror(jury, index).0), first, second);
        agreed += odds[side];
        chosen += odds[0] + odds[1];
    }
    (chosen > 0.0).then(|| agreed / chosen)
}

/// Writes pairs to one file, a few hundred in a row group.
///
/// # Errors
/// As [`pick_a_pic::Writer`].
pub fn write(path: impl AsRef<std::path::Path>, pairs: &[Preference]) -> Result<()> {
    let mut writer = pick_a_pic::Writer::create(path)?;
    for group in pairs.chunks(GROUP) {
        writer.write(group)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests;
