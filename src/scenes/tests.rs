use std::collections::HashSet;

use super::render::place;
use super::*;
use crate::rng::stream;
use crate::units::Seed;

const EVEN: ObjectWeights = [1.0, 1.0, 1.0];
const PARTS: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

#[test]
fn captions_round_trip_and_use_only_known_words() {
    let mut s = stream(Seed::new(0), "captions", 0);
    let known: HashSet<&str> = words().into_iter().collect();
    assert_eq!(known.len(), words().len(), "no word twice");
    assert!(known.len() <= 64, "{}", known.len());
    let mut longest = 0;
    for index in 0..6000 {
        let scene = sample_scene(&mut s, EVEN, PARTS[index % 3]);
        let caption = scene.caption();
        assert_eq!(parse(&caption).as_ref(), Some(&scene), "{caption}");
        assert!(caption.split(' ').all(|word| known.contains(word)), "{caption}");
        longest = longest.max(caption.split(' ').count());
    }
    assert!((20..=26).contains(&longest), "two style words must still fit into 28: {longest}");
    assert_eq!(
        parse("an orange star left of a small blue ring with a red heart below them on a gray background")
            .map(|scene| scene.relations),
        Some(vec![Relation::Left, Relation::Below])
    );
    let wrong = [
        "",
        "a circle",
        "a red circle on a red background",
        "a red circle left a blue ring",
        "a red circle bright",
    ];
    assert!(wrong.iter().all(|caption| parse(caption).is_none()));
}

#[test]
fn there_are_far_more_captions_than_anybody_learns_by_heart() {
    let mut s = stream(Seed::new(1), "captions", 0);
    let distinct: HashSet<String> =
        (0..40_000).map(|_| sample_scene(&mut s, EVEN, Split::Train).caption()).collect();
    assert!(distinct.len() > 20_000, "{}", distinct.len());
}

#[test]
fn splits_share_no_composition_and_training_knows_every_value() {
    let mut s = stream(Seed::new(2), "splits", 0);
    let mut compositions: [HashSet<Vec<(Shape, Colour)>>; 3] = Default::default();
    let mut trained = std::collections::HashMap::<String, usize>::new();
    let draws = 6000;
    for (part, seen) in PARTS.into_iter().zip(&mut compositions) {
        for _ in 0..draws {
            let scene = sample_scene(&mut s, EVEN, part);
            assert_eq!(split(&scene), part);
            let mut key: Vec<_> = scene.objects.iter().map(|object| (object.shape, object.colour)).collect();
            key.sort_unstable();
            seen.insert(key);
            if part == Split::Train {
                scene.caption().split(' ').for_each(|word| *trained.entry(word.to_owned()).or_default() += 1);
            }
        }
    }
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert!(compositions[a].is_disjoint(&compositions[b]));
    }
    let content = words().into_iter().filter(|word| !style::STYLE_WORDS.contains(word));
    for word in content {
        let share = trained.get(word).copied().unwrap_or(0) as f64 / draws as f64;
        assert!(share > 0.06, "`{word}` stands in only {share} training captions");
    }
    for &shape in Shape::ALL {
        let parts: Vec<Split> = Colour::ALL.iter().map(|&colour| pair_split(shape, colour)).collect();
        assert_eq!(parts.iter().filter(|&&part| part == Split::Train).count(), 6);
        assert!(parts.contains(&Split::Test) && parts.contains(&Split::Validation));
    }
}

#[test]
fn layouts_hold_what_captions_say() {
    let mut s = stream(Seed::new(3), "layouts", 0);
    for _ in 0..3000 {
        let scene = sample_scene(&mut s, EVEN, Split::Train);
        let placed = place(&scene, &Style::sample(&mut s), &mut s);
        for (index, p) in placed.iter().enumerate() {
            assert!(p.radius >= 5.0, "{p:?} in {}", scene.caption());
            assert!(
                p.x - p.radius > 1.0
                    && p.x + p.radius < 63.0
                    && p.y - p.radius > 1.0
                    && p.y + p.radius < 63.0
            );
            assert!(placed[..index].iter().all(|q| (p.x - q.x).hypot(p.y - q.y) > p.radius + q.radius));
        }
        let stands = |a: usize, b: usize, relation: Relation| {
            let (dx, dy) = (placed[a].x - placed[b].x, placed[a].y - placed[b].y);
            let along = if relation.is_horizontal() { dx } else { dy };
            assert!(relation.sign() * along > placed[a].radius.max(placed[b].radius), "{}", scene.caption());
        };
        if let Some(&relation) = scene.relations.first() {
            stands(0, 1, relation);
        }
        if let Some(&relation) = scene.relations.get(1) {
            stands(2, 0, relation);
            stands(2, 1, relation);
        }
        let of_size = |size| placed.iter().filter(move |p| p.object.size == Some(size)).map(|p| p.radius);
        let small = of_size(Size::Small).fold(f64::MIN, f64::max);
        let large = of_size(Size::Large).fold(f64::MAX, f64::min);
        assert!(small == f64::MIN || large == f64::MAX || large > 1.2 * small, "{}", scene.caption());
    }
}

#[test]
fn pictures_are_functions_of_scene_style_and_stream() {
    let mut s = stream(Seed::new(4), "render", 0);
    let scene = sample_scene(&mut s, EVEN, Split::Test);
    let style = Style::sample(&mut s);
    let draw = |index| render(&scene, &style, &mut stream(Seed::new(5), "render", index));
    assert_eq!(draw(0), draw(0));
    assert_ne!(draw(0), draw(1), "the layout is drawn");
    // The style is no argument of the caption: the same words whatever the style, and different pixels.
    let neutral = render(&scene, &Style::neutral(), &mut stream(Seed::new(5), "render", 0));
    assert_ne!(neutral, draw(0));
    assert!(!scene.caption().split(' ').any(|word| style::STYLE_WORDS.contains(&word)));
}

#[test]
fn styles_cover_their_words() {
    let mut s = stream(Seed::new(6), "style", 0);
    let seen: HashSet<&str> = (0..500).flat_map(|_| style_words(&Style::sample(&mut s))).collect();
    assert_eq!(seen.len(), style::STYLE_WORDS.len());
    assert_eq!(style_words(&Style::neutral()), ["centred", "plain"]);
}
