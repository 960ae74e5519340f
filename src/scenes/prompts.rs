//! The desk world's prompt benchmark: held-out captions in PartiPrompts' columns.
//!
//! 512 captions of the test part and 512 of the validation part, made by the grammar from a fixed seed and committed as
//! `experiments/prompts/desk-test.tsv` and `desk-validation.tsv`. They are shuffled, so a shorter benchmark is a prefix.

use std::collections::HashSet;

use super::{Scene, Size, Split, pair_split, sample_scene, split};
use crate::rng::stream;
use crate::units::Seed;

/// Captions in each benchmark.
pub const COUNT: usize = 512;

/// The header of the table, as in PartiPrompts.
pub const HEADER: &str = "Prompt\tCategory\tChallenge\tNote";

/// One line of the benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The caption.
    pub prompt: String,
    /// The kind of scene: `One object`, `Two objects`, `Three objects`.
    pub category: &'static str,
    /// What is hard about it: see [`quota`].
    pub challenge: &'static str,
    /// Which composition training never saw.
    pub note: String,
}

/// The benchmark of a held-out part.
///
/// # Panics
/// For [`Split::Train`], which is no benchmark.
pub fn benchmark(part: Split) -> Vec<Line> {
    assert_ne!(part, Split::Train, "a benchmark is held out");
    let mut s = stream(Seed::new(0), "prompt benchmark", part as u64);
    let mut known = HashSet::new();
    let mut prompts = Vec::with_capacity(COUNT);
    for (objects, challenge, count) in quota() {
        let mut weights = [0.0; 3];
        weights[objects - 1] = 1.0;
        let mut missing = count;
        while missing > 0 {
            let scene = sample_scene(&mut s, weights, part);
            if poses(&scene, challenge) && known.insert(scene.caption()) {
                let category = ["One object", "Two objects", "Three objects"][objects - 1];
                prompts.push(Line { prompt: scene.caption(), category, challenge, note: note(&scene) });
                missing -= 1;
            }
        }
    }
    s.shuffle(&mut prompts);
    prompts
}

/// How many captions of each object count pose each challenge; of each (count, challenge) all captions are distinct.
///
/// One object, a (shape, colour) pair never trained on: `Basic` names nothing else, `Size`, `Background` and
/// `Size and background` do. Several objects: `Novel combination` holds a pair never trained on; in the others every
/// pair is known and only their set is new: `Spatial relation` names neither size nor background, `Size contrast` names
/// a small and a large object, `Colour binding` has no colour and no shape twice.
pub fn quota() -> Vec<(usize, &'static str, usize)> {
    let mut quota =
        vec![(1, "Basic", 8), (1, "Size", 16), (1, "Background", 40), (1, "Size and background", 64)];
    for objects in [2, 3] {
        for challenge in ["Novel combination", "Spatial relation", "Size contrast", "Colour binding"] {
            quota.push((objects, challenge, 48));
        }
    }
    quota
}

fn poses(scene: &Scene, challenge: &str) -> bool {
    let named = |size| scene.objects.iter().any(|object| object.size == Some(size));
    let (sized, placed) = (named(Size::Small) || named(Size::Large), scene.background.is_some());
    let novel = scene.objects.iter().any(|object| pair_split(object.shape, object.colour) != Split::Train);
    let distinct = || {
        let colours: HashSet<_> = scene.objects.iter().map(|object| object.colour).collect();
        let shapes: HashSet<_> = scene.objects.iter().map(|object| object.shape).collect();
        colours.len() == scene.objects.len() && shapes.len() == scene.objects.len()
    };
    match challenge {
        "Basic" => !sized && !placed,
        "Size" => sized && !placed,
        "Background" => !sized && placed,
        "Size and background" => sized && placed,
        "Novel combination" => novel,
        "Spatial relation" => !novel && !sized && !placed,
        "Size contrast" => !novel && named(Size::Small) && named(Size::Large),
        "Colour binding" => !novel && distinct(),
        _ => false,
    }
}

fn note(scene: &Scene) -> String {
    let part = split(scene);
    let unseen: Vec<String> = scene
        .objects
        .iter()
        .filter(|object| pair_split(object.shape, object.colour) == part)
        .map(|object| format!("{} {}", object.colour.word(), object.shape.word()))
        .collect();
    if unseen.is_empty() { "unseen together".to_owned() } else { format!("unseen: {}", unseen.join(", ")) }
}

/// The benchmark as tab-separated values with a header line.
pub fn to_tsv(prompts: &[Line]) -> String {
    let mut text = format!("{HEADER}\n");
    for Line { prompt, category, challenge, note } in prompts {
        text.push_str(&format!("{prompt}\t{category}\t{challenge}\t{note}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{parse, words};
    use super::*;

    #[test]
    fn committed_tables_are_what_the_grammar_makes() {
        let committed = [
            (Split::Test, include_str!("../../experiments/prompts/desk-test.tsv")),
            (Split::Validation, include_str!("../../experiments/prompts/desk-validation.tsv")),
        ];
        for (part, text) in committed {
            let made = to_tsv(&benchmark(part));
            if made != text {
                let path = std::env::temp_dir().join(format!("desk-{part:?}.tsv").to_lowercase());
                std::fs::write(&path, made).unwrap();
                panic!("the benchmark changed: compare {}", path.display());
            }
        }
    }

    #[test]
    fn benchmarks_are_held_out_balanced_and_distinct() {
        let known: HashSet<&str> = words().into_iter().collect();
        for part in [Split::Test, Split::Validation] {
            let prompts = benchmark(part);
            assert_eq!(prompts.len(), COUNT);
            assert_eq!(prompts.iter().map(|p| &p.prompt).collect::<HashSet<_>>().len(), COUNT);
            for p in &prompts {
                assert_eq!(split(&parse(&p.prompt).unwrap()), part);
                assert!(p.prompt.split(' ').all(|word| known.contains(word)));
            }
            // A prefix of half the length keeps the mix, within four binomial standard errors.
            let single = prompts[..COUNT / 2].iter().filter(|p| p.category == "One object").count();
            assert!((40..=88).contains(&single), "{single}");
        }
    }
}
