//! What a trained model is measured by: pictures that it has not learned from, and users that it has not met.

use std::collections::BTreeMap;

use super::Teacher;
use super::lessons::{any_user, asked, describing, preferring};
use crate::data::desk::users::Shown;
use crate::error::Result;
use crate::models::llava_onevision::{Input, Layout, Message};
use crate::pixels::Image;
use crate::rng::{Stream, stream};
use crate::scenes::belief::Belief;
use crate::scenes::talk;
use crate::scenes::tastes::{FEATURES, Features, Taste};
use crate::units::Seed;
use crate::vlm::Vlm;

/// The most tokens of an answer with its reasons about eight pairs.
const JUDGED: usize = 200;

/// What is measured on pictures that nothing was learned from, with users that nothing was learned from: how much of what
/// is said of an image is right and how much of what there is to say is said, the cosine of a written profile with the
/// user's weights, and after 0 to 8 pairs how often the user's next choice is foreseen, beside how often
/// Bayes' rule over the population foresees it from the true features, and somebody who knows her taste. A model that is
/// taught to reason first is read where it ends.
pub(super) fn evaluate(
    vlm: &Vlm,
    teacher: &Teacher,
    pool: &[Shown],
    count: usize,
    reasoned: bool,
) -> Result<BTreeMap<String, f64>> {
    let mut results = BTreeMap::new();
    if pool.is_empty() {
        return Ok(results);
    }
    // Users far beyond those that lessons draw: their indices are random bits.
    let mut draw = stream(Seed::new(0), "vlm evaluation", 0);
    let (mut said_right, mut said, mut there) = (0.0, 0.0, 0.0);
    for batch in (0..count.min(2 * pool.len())).collect::<Vec<_>>().chunks(40) {
        let pictures: Vec<_> = batch.iter().map(|i| (&pool[i / 2], i % 2)).collect();
        let inputs = pictures
            .iter()
            .map(|(shown, side)| prompt(vlm, teacher, &describing(&shown.caption), &[&shown.images[*side]]));
        let written =
            vlm.model.generate(&inputs.collect::<Result<Vec<_>>>()?, &vlm.greedy(12), &mut [], |_| Ok(()))?;
        for ((shown, side), written) in pictures.iter().zip(written) {
            let text = vlm.tokenizer.decode(&written.ids, false)?;
            let truth = talk::describe(&shown.features[*side]);
            let truth: Vec<&str> = truth.split(' ').collect();
            let words: Vec<&str> = text.split_whitespace().collect();
            said += words.len() as f64;
            there += truth.len() as f64;
            said_right += words.iter().filter(|word| truth.contains(word)).count() as f64;
        }
    }
    results.insert("description: precision".into(), said_right / f64::max(said, 1.0));
    results.insert("description: recall".into(), said_right / there);
    let [written, ceiling] = profiles(vlm, teacher, pool, count / 4, &mut draw)?;
    results.insert("profile from 4 pairs: cosine".into(), written);
    results.insert("profile from 4 pairs: ceiling".into(), ceiling);
    for shots in [0, 1, 2, 4, 8] {
        let [mut right, mut ceiling, mut known] = [0.0; 3];
        for batch in (0..count).collect::<Vec<_>>().chunks(40) {
            let mut inputs = Vec::new();
            let mut odds = Vec::new();
            for _ in batch {
                let user = any_user(&teacher.users, &mut draw);
                let pairs = asked(pool, &user, shots + 1, &mut draw);
                let answered: Vec<(&str, usize)> =
                    pairs[..shots].iter().map(|(shown, chosen)| (shown.caption.as_str(), *chosen)).collect();
                let images: Vec<&Image> = pairs.iter().flat_map(|(shown, _)| shown.images.iter()).collect();
                let (last, _) = pairs[shots];
                inputs.push(prompt(vlm, teacher, &preferring(&answered, &last.caption), &images)?);
                let [first, second] = &last.features;
                let believed = belief(teacher, &pairs[..shots]).prefers(first, second);
                odds.push((user.prefers(first, second), believed));
            }
            for (first, (odds, believed)) in answers(vlm, teacher, &inputs, reasoned)?.into_iter().zip(odds) {
                right += first * odds + (1.0 - first) * (1.0 - odds);
                ceiling += if believed > 0.5 { odds } else { 1.0 - odds };
                known += odds.max(1.0 - odds);
            }
        }
        results.insert(format!("choice after {shots} pairs: accuracy"), right / count as f64);
        results.insert(format!("choice after {shots} pairs: ceiling"), ceiling / count as f64);
        results.insert(format!("choice after {shots} pairs: taste known"), known / count as f64);
    }
    Ok(results)
}

/// Whether the first image is answered to each question: 1, 0, or one half where no letter is.
fn answers(vlm: &Vlm, teacher: &Teacher, inputs: &[Input], reasoned: bool) -> Result<Vec<f64>> {
    let [first, second] = teacher.answers;
    if reasoned {
        let written = vlm.model.generate(inputs, &vlm.greedy(JUDGED), &mut [], |_| Ok(()))?;
        let answer = |ids: &[u32]| match ids.iter().rfind(|&&id| id == first || id == second) {
            Some(id) => f64::from(u8::from(*id == first)),
            None => 0.5,
        };
        return Ok(written.iter().map(|written| answer(&written.ids)).collect());
    }
    let logits = vlm.model.next_logits(inputs, &teacher.answers)?.to_vec2::<f32>()?;
    Ok(logits.iter().map(|logits| f64::from(u8::from(logits[0] > logits[1]))).collect())
}

/// What Bayes' rule makes of a user's choices.
fn belief<'a>(teacher: &'a Teacher, pairs: &[(&Shown, usize)]) -> Belief<'a> {
    let mut belief = teacher.prior.belief();
    for (shown, chosen) in pairs {
        belief.see(&shown.features[*chosen], &shown.features[1 - chosen]);
    }
    belief
}

/// The mean cosine with the users' weights: of written profiles, and of what Bayes' rule would have written.
fn profiles(
    vlm: &Vlm,
    teacher: &Teacher,
    pool: &[Shown],
    count: usize,
    draw: &mut Stream,
) -> Result<[f64; 2]> {
    let mut cosines = [0.0; 2];
    let count = count.max(1);
    for batch in (0..count).collect::<Vec<_>>().chunks(20) {
        let (mut inputs, mut tasted) = (Vec::new(), Vec::new());
        for _ in batch {
            let user = any_user(&teacher.users, draw);
            let pairs = asked(pool, &user, 4, draw);
            let captions: Vec<&str> = pairs.iter().map(|(shown, _)| shown.caption.as_str()).collect();
            let images: Vec<&Image> =
                pairs.iter().flat_map(|(s, chosen)| [&s.images[*chosen], &s.images[1 - chosen]]).collect();
            inputs.push(prompt(vlm, teacher, &teacher.template.fill(&captions).user, &images)?);
            tasted.push((user, talk::profile(&belief(teacher, &pairs).weights())));
        }
        for (written, (user, best)) in
            vlm.model.generate(&inputs, &vlm.greedy(160), &mut [], |_| Ok(()))?.iter().zip(&tasted)
        {
            let text = vlm.tokenizer.decode(&written.ids, false)?;
            let profile = text.rsplit("User Profile:").next().unwrap_or_default();
            for (cosine, profile) in cosines.iter_mut().zip([profile, best]) {
                let weights = meant(profile);
                *cosine += user.likeness(&Taste { cluster: 0, weights, lapse: 0.0 }) / count as f64;
            }
        }
    }
    Ok(cosines)
}

/// The direction that the words of a profile speak of.
fn meant(profile: &str) -> Features {
    let mut weights = [0.0; FEATURES];
    for (feature, sign) in profile.split_whitespace().filter_map(talk::meaning) {
        weights[feature] = sign;
    }
    weights
}

fn prompt(vlm: &Vlm, teacher: &Teacher, text: &str, images: &[&Image]) -> Result<Input> {
    let asked = teacher.chat.render(&[Message::text("user", text)], true)?;
    vlm.input_of(&asked, images, Layout::BaseOnly)
}
