//! What is said of pictures and tastes in the desk world: short templated language over what can be measured.
//!
//! The desk's vision-language model is taught to describe an image, to say how two differ, to sum up a taste from pairs,
//! and to foresee a choice. The words stand for directions of [`Features`]; nothing here knows how a picture was made.

use super::tastes::{FEATURES, Features};

/// The word for much and for little of each feature, in the order of [`Features`].
pub const WORDS: [[&str; 2]; FEATURES] = [
    ["bright", "dark"],
    ["vivid", "muted"],
    ["warm", "cool"],
    ["crisp", "soft"],
    ["rough", "smooth"],
    ["centred", "offset"],
    ["close", "distant"],
    ["faithful", "careless"],
];

/// The prompt that shows a user's choices and asks for her profile, in words that the desk's model knows.
pub const FEW_SHOT: &str = include_str!("../../experiments/prompts/few-shot-desk.txt");
/// Where [`FEW_SHOT`] stands.
pub const FEW_SHOT_FILE: &str = "experiments/prompts/few-shot-desk.txt";

/// Said where no feature stands out.
pub const PLAIN: &str = "plain";

/// From which size on a feature of one image is spoken of, in standard deviations.
pub const STANDS_OUT: f64 = 0.8;
/// From which size on the difference of two images is.
const DIFFERS: f64 = 1.0;
/// Which share of the largest weight makes a weight part of a profile.
const MATTERS: f64 = 0.4;
/// The most words of a profile.
const PROFILE_WORDS: usize = 3;

fn word(feature: usize, value: f64) -> &'static str {
    WORDS[feature][usize::from(value < 0.0)]
}

/// The words for all values of at least `least` in size, in the order of the features.
fn above(values: &Features, least: f64) -> String {
    let words: Vec<&str> = values
        .iter()
        .enumerate()
        .filter(|(_, value)| value.abs() >= least)
        .map(|(k, v)| word(k, *v))
        .collect();
    if words.is_empty() { PLAIN.into() } else { words.join(" ") }
}

/// What stands out in an image.
pub fn describe(features: &Features) -> String {
    above(features, STANDS_OUT)
}

/// What the first image has more of than the second.
pub fn difference(first: &Features, second: &Features) -> String {
    above(&std::array::from_fn(|k| first[k] - second[k]), DIFFERS)
}

/// What a user likes, the strongest first.
pub fn profile(weights: &Features) -> String {
    let mut order: Vec<usize> = (0..FEATURES).collect();
    order.sort_by(|&a, &b| weights[b].abs().total_cmp(&weights[a].abs()));
    let least = MATTERS * weights[order[0]].abs();
    let words: Vec<&str> = order
        .into_iter()
        .take(PROFILE_WORDS)
        .filter(|&k| weights[k].abs() >= least && weights[k] != 0.0)
        .map(|k| word(k, weights[k]))
        .collect();
    if words.is_empty() { PLAIN.into() } else { words.join(" ") }
}

/// The feature that a word speaks of, and whether it means much (1) or little (−1) of it.
pub fn meaning(said: &str) -> Option<(usize, f64)> {
    WORDS.iter().enumerate().find_map(|(k, [much, little])| match said {
        said if said == *much => Some((k, 1.0)),
        said if said == *little => Some((k, -1.0)),
        _ => None,
    })
}

/// The words of a text that speak of features, each once, in their order.
pub fn words_in(text: &str) -> Vec<&'static str> {
    let mut words = Vec::new();
    for said in text.split(|c: char| !c.is_alphabetic()) {
        let said = said.to_lowercase();
        let known = WORDS.iter().flatten().find(|word| **word == said);
        words.extend(known.filter(|word| !words.contains(*word)));
    }
    words
}

/// Whether an image shows what a word speaks of, so that [`describe`] would say the word of it; `None` where the word
/// speaks of no feature.
pub fn agrees(said: &str, features: &Features) -> Option<bool> {
    meaning(said).map(|(feature, sign)| sign * features[feature] >= STANDS_OUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_the_features_and_can_be_read_back() {
        let features = [1.2, -0.9, 0.1, 0.0, 0.0, 0.0, -2.0, 0.7];
        assert_eq!(describe(&features), "bright muted distant");
        assert_eq!(describe(&[0.0; FEATURES]), PLAIN);
        assert_eq!(
            difference(&features, &[0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, -0.4]),
            "bright muted distant faithful"
        );
        assert_eq!(profile(&[0.2, 0.0, 1.9, 0.0, -0.9, 0.8, 0.8, 0.1]), "warm smooth centred");
        assert_eq!(profile(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -2.0]), "careless");
        for (k, [much, little]) in WORDS.into_iter().enumerate() {
            assert_eq!((meaning(much), meaning(little)), (Some((k, 1.0)), Some((k, -1.0))));
        }
        assert_eq!(meaning(PLAIN), None);
    }

    #[test]
    fn an_image_agrees_with_the_words_that_describe_it_and_no_others() {
        let features = [1.2, -0.9, 0.1, 0.0, 0.79, 0.8, -2.0, 0.7];
        let described = describe(&features);
        for word in WORDS.iter().flatten() {
            assert_eq!(agrees(word, &features), Some(words_in(&described).contains(word)), "{word}");
        }
        assert_eq!(agrees("plain", &features), None);
        assert_eq!(words_in("She likes Warm, dark (and warm) pictures; not darker."), ["warm", "dark"]);
        assert!(words_in(PLAIN).is_empty());
    }
}
