//! What the desk vision-language model is taught on: pictures in twos with what they show, and conversations about them.

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::super::pairs::flawed_picture;
use super::Teacher;
use crate::data::desk::users::{Shown, Use};
use crate::error::{Error, Result};
use crate::models::llava_onevision::{Input, Keep, Layout, LlavaOnevision, Message};
use crate::pixels::Image;
use crate::rng::{Stream, stream};
use crate::scenes::population::Reference;
use crate::scenes::tastes::{Features, Kind, Taste, Tastes};
use crate::scenes::{ObjectWeights, Split, sample_scene, talk};
use crate::units::Seed;

/// One, two and three objects.
const OBJECTS: ObjectWeights = [0.5, 0.3, 0.2];

/// Renders of scenes of one part, now and then with mistakes, each in two styles; none of a caption that a user study draws
/// on.
pub(super) fn rendered(seed: Seed, count: usize, part: Split, reference: &Reference) -> Result<Vec<Shown>> {
    let one = |index: usize| {
        let mut draw = stream(seed, "vlm renders", index as u64);
        let mut scene = sample_scene(&mut draw, OBJECTS, part);
        while Use::of(&scene.caption()) != Use::Language {
            scene = sample_scene(&mut draw, OBJECTS, part);
        }
        let images = [flawed_picture(&scene, part, &mut draw), flawed_picture(&scene, part, &mut draw)];
        Shown::new(scene.caption(), images, reference)
    };
    (0..count).into_par_iter().map(one).collect()
}

/// What a lesson is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// What stands out in an image.
    Describe,
    /// What one image has more of than another.
    Compare,
    /// What pairs say about a taste, step by step.
    Profile,
    /// Which of two images a user prefers, after each of several pairs.
    Prefer,
    /// The same after a last pair, with what the pairs say before the answer.
    Judge,
}

impl Subject {
    /// Every subject.
    pub const ALL: &'static [Self] =
        &[Self::Describe, Self::Compare, Self::Profile, Self::Prefer, Self::Judge];
}

/// A conversation: its text, its pictures, and what is learned of it.
#[derive(Debug)]
pub(super) struct Lesson {
    pub input: Input,
    /// Places whose token is to be foreseen, a token, and its weight in the loss: a place has several where the answer is
    /// not certain.
    pub targets: Vec<(usize, u32, f32)>,
}

/// Texts of the desk's prompts.
pub(super) fn describing(caption: &str) -> String {
    format!("{caption} <image> describe")
}

pub(super) fn comparing(caption: &str) -> String {
    format!("{caption} <image> <image> compare")
}

/// The question of a judge: pairs that the user has answered, then the one in question.
pub(super) fn preferring(answered: &[(&str, usize)], caption: &str) -> String {
    let mut text = String::new();
    for (caption, answer) in answered {
        text += &format!("{caption} <image> <image> prefers {}\n", ANSWERS[*answer]);
    }
    text + &format!("{caption} <image> <image> prefers")
}

/// What names the first and the second image.
pub(super) const ANSWERS: [&str; 2] = ["A", "B"];

/// What is to be answered about a user's pairs, each with its chosen side first.
pub(super) fn reasoning(pairs: &[[&Features; 2]], weights: &Features) -> String {
    let mut text = String::new();
    for (i, [chosen, rejected]) in pairs.iter().enumerate() {
        text += &format!(
            "Pair {}: Preferred Image: {} Dispreferred Image: {} Differences: {}\n",
            i + 1,
            talk::describe(chosen),
            talk::describe(rejected),
            talk::difference(chosen, rejected)
        );
    }
    text + &format!("User Profile: {}", talk::profile(weights))
}

impl Teacher {
    /// A lesson on `subject` about pictures of `pool`, and a user's `shots` choices where it is about one.
    ///
    /// What it says of a taste is what Bayes' rule makes of the choices shown, over the population: four choices do not
    /// tell all that the user knows of herself, and her own words would teach mostly noise.
    pub(super) fn lesson(
        &self,
        subject: Subject,
        pool: &[Shown],
        shots: usize,
        draw: &mut Stream,
    ) -> Result<Lesson> {
        let shown = draw.pick(pool);
        match subject {
            Subject::Describe => {
                let side = draw.below(2);
                let (prompt, answer) = (describing(&shown.caption), talk::describe(&shown.features[side]));
                self.answered(&prompt, &answer, &[&shown.images[side]])
            }
            Subject::Compare => {
                let first = draw.below(2);
                let [a, b] = [first, 1 - first];
                let answer = talk::difference(&shown.features[a], &shown.features[b]);
                self.answered(&comparing(&shown.caption), &answer, &[&shown.images[a], &shown.images[b]])
            }
            Subject::Profile => {
                let user = any_user(&self.users, draw);
                let pairs = asked(pool, &user, shots, draw);
                let mut belief = self.prior.belief();
                for (shown, chosen) in &pairs {
                    belief.see(&shown.features[*chosen], &shown.features[1 - chosen]);
                }
                let captions: Vec<&str> = pairs.iter().map(|(shown, _)| shown.caption.as_str()).collect();
                let seen: Vec<[&Features; 2]> =
                    pairs.iter().map(|(s, chosen)| [&s.features[*chosen], &s.features[1 - chosen]]).collect();
                let images: Vec<&Image> = pairs
                    .iter()
                    .flat_map(|(s, chosen)| [&s.images[*chosen], &s.images[1 - chosen]])
                    .collect();
                self.answered(
                    &self.template.fill(&captions).user,
                    &reasoning(&seen, &belief.weights()),
                    &images,
                )
            }
            Subject::Prefer | Subject::Judge => {
                let user = any_user(&self.users, draw);
                let pairs = asked(pool, &user, shots + 1, draw);
                // Which side stands first is a coin's; the answer follows the picture.
                let placed: Vec<(&Shown, usize, usize)> = pairs
                    .into_iter()
                    .map(|(shown, chosen)| {
                        let first = draw.below(2);
                        (shown, first, usize::from(chosen != first))
                    })
                    .collect();
                let answered: Vec<(&str, usize)> = placed[..shots]
                    .iter()
                    .map(|(shown, _, answer)| (shown.caption.as_str(), *answer))
                    .collect();
                let images: Vec<&Image> = placed
                    .iter()
                    .flat_map(|(s, first, _)| [&s.images[*first], &s.images[1 - first]])
                    .collect();
                let (last, _, answer) = &placed[shots];
                let prompt = preferring(&answered, &last.caption);
                if subject == Subject::Judge {
                    return self.judged(&prompt, &placed, &images);
                }
                let mut lesson = self.answered(&prompt, ANSWERS[*answer], &images)?;
                // Every choice is foreseen from those before it, the asked one too; the end of the answer teaches nothing.
                let places: Vec<usize> = (0..lesson.input.ids.len())
                    .filter(|&i| self.answers.contains(&lesson.input.ids[i]))
                    .collect();
                let weight = 1.0 / (shots as f32 + 1.0).sqrt();
                let mut belief = self.prior.belief();
                lesson.targets.clear();
                for (place, (shown, first, answer)) in places.into_iter().zip(&placed) {
                    let shown = [*first, 1 - first].map(|side| &shown.features[side]);
                    let odds = belief.prefers(shown[0], shown[1]) as f32;
                    lesson.targets.extend(self.uncertain(place, weight, odds));
                    belief.see(shown[*answer], shown[1 - answer]);
                }
                Ok(lesson)
            }
        }
    }

    /// The two answers at a place, with their probabilities.
    fn uncertain(&self, place: usize, weight: f32, first: f32) -> [(usize, u32, f32); 2] {
        [(place, self.answers[0], weight * first), (place, self.answers[1], weight * (1.0 - first))]
    }

    /// The lesson of a judge, about pairs of which each is given with the side that stands first and with the answer: it says
    /// what the pairs tell, then how the last pair's images differ, then which of them is preferred.
    fn judged(&self, prompt: &str, placed: &[(&Shown, usize, usize)], images: &[&Image]) -> Result<Lesson> {
        let sides: Vec<[&Features; 2]> = placed
            .iter()
            .map(|(shown, first, _)| [*first, 1 - first].map(|side| &shown.features[side]))
            .collect();
        let Some((asked, seen)) = sides.split_last() else {
            return Err(Error::Shape("a judge is asked about no pair".into()));
        };
        let told: Vec<[&Features; 2]> =
            seen.iter().zip(placed).map(|(pair, (.., answer))| [pair[*answer], pair[1 - answer]]).collect();
        let mut belief = self.prior.belief();
        told.iter().for_each(|[chosen, rejected]| belief.see(chosen, rejected));
        let odds = belief.prefers(asked[0], asked[1]) as f32;
        let answer = format!(
            "{} Differences: {} prefers {}",
            reasoning(&told, &belief.weights()),
            talk::difference(asked[0], asked[1]),
            ANSWERS[usize::from(odds < 0.5)]
        );
        let mut lesson = self.answered(prompt, &answer, images)?;
        // Behind the letter stands the end alone.
        let place = lesson.input.ids.len() - 2;
        lesson.targets.retain(|(at, ..)| *at != place);
        lesson.targets.extend(self.uncertain(place, 1.0, odds));
        Ok(lesson)
    }

    /// A prompt with the answer that is to be learned: what stands before the profile's title, and from there on, count as
    /// one lesson each.
    fn answered(&self, prompt: &str, answer: &str, images: &[&Image]) -> Result<Lesson> {
        let asked = self.chat.render(&[Message::text("user", prompt)], true)?;
        let views = images.iter().map(|image| self.processor.views(image, Layout::BaseOnly));
        let mut input = self.tokenizer.input(&asked, views.collect::<Result<_>>()?)?;
        let start = input.ids.len();
        input.ids.extend(self.tokenizer.encode(&format!("{answer} <|im_end|>"))?);
        let end = input.ids.len();
        let profile = input.ids[start..].iter().position(|&id| id == self.profile).map(|at| start + at + 1);
        // Without a profile all is one part.
        let split = profile.unwrap_or(start);
        let parts = [start..split, split..end];
        let share = |part: std::ops::Range<usize>| {
            let weight = 1.0 / part.len().max(1) as f32;
            let ids = &input.ids;
            part.map(move |place| (place, ids[place], weight))
        };
        Ok(Lesson { targets: parts.into_iter().flat_map(share).collect(), input })
    }
}

/// A user of the kind that is learned from; there is no end of them.
pub(super) fn any_user(tastes: &Tastes, draw: &mut Stream) -> Taste {
    tastes.user(Kind::Seen, draw.bits())
}

/// Pairs of the pool with what a user chooses.
pub(super) fn asked<'a>(
    pool: &'a [Shown],
    user: &Taste,
    count: usize,
    draw: &mut Stream,
) -> Vec<(&'a Shown, usize)> {
    (0..count)
        .map(|_| {
            let shown = draw.pick(pool);
            (shown, user.choose(&shown.features[0], &shown.features[1], draw))
        })
        .collect()
}

/// The mean over lessons of the weighted negative log-likelihood of what is to be foreseen.
pub(super) fn loss(model: &LlavaOnevision, lessons: &[Lesson]) -> Result<Tensor> {
    let inputs: Vec<Input> = lessons.iter().map(|lesson| lesson.input.clone()).collect();
    let longest = inputs.iter().map(|input| input.ids.len()).max().unwrap_or(0);
    let states = model.forward(&inputs, Keep::All)?.hidden_states;
    let last = states.last().ok_or_else(|| Error::Shape("the model kept no state".into()))?; // (B, N, D)
    let (mut rows, mut ids, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (i, lesson) in lessons.iter().enumerate() {
        let start = longest - lesson.input.ids.len();
        for &(place, id, weight) in &lesson.targets {
            // The state before a token foresees it.
            rows.push((i * longest + start + place - 1) as u32);
            ids.push(id);
            weights.push(weight / lessons.len() as f32);
        }
    }
    let (count, device) = (rows.len(), last.device());
    let rows = Tensor::from_vec(rows, count, device)?;
    let states = last.flatten_to(1)?.index_select(&rows, 0)?; // (M, D)
    let logits = model.language_model().logits(&states)?.to_dtype(DType::F32)?; // (M, vocabulary)
    let ids = Tensor::from_vec(ids, (count, 1), device)?;
    let own = logits.gather(&ids, 1)?.squeeze(1)?;
    let surprise = (logits.log_sum_exp(1)? - own)?;
    Ok((surprise * Tensor::from_vec(weights, count, device)?)?.sum_all()?)
}
