//! Alignment: how well a picture shows what a caption says, judged from pixels alone.

use super::perceive::{Blob, Percept};
use super::{Background, Colour, Object, Relation, Scene, Shape, Size};
use crate::pixels::Image;

/// How well `image` shows `scene`, in [0, 1]: near one where every attribute is right, whatever the style.
///
/// The mean of objects (weight 0.6: colour and shape, and the size where it is named), relations (0.25) and background
/// (0.15), over what the scene names, for the best assignment of seen objects to named ones; each object too many takes
/// off 15 %, each one too few counts as entirely wrong.
pub fn alignment(image: &Image, scene: &Scene) -> f64 {
    alignment_percept(&Percept::of(image), scene)
}

/// [`alignment`] of a picture that has been taken apart already.
pub fn alignment_percept(percept: &Percept, scene: &Scene) -> f64 {
    let count = scene.objects.len();
    // More than a few objects are noise; the largest are kept.
    let blobs = &percept.blobs[..percept.blobs.len().min(6)];
    let fits: Vec<Vec<f64>> = scene
        .objects
        .iter()
        .map(|object| blobs.iter().map(|blob| fit(object, blob, scene)).collect())
        .collect();
    let mut best = 0.0f64;
    assign(count, blobs.len(), &mut Vec::new(), &mut |chosen| {
        let objects: f64 =
            chosen.iter().enumerate().map(|(index, blob)| blob.map_or(0.0, |blob| fits[index][blob])).sum();
        let seen = |index: usize| chosen[index].map(|blob| &blobs[blob]);
        let mut relations = 0.0;
        if let Some(&relation) = scene.relations.first() {
            relations += stands(seen(0), seen(1), relation);
        }
        if let Some(&relation) = scene.relations.get(1) {
            relations += 0.5 * (stands(seen(2), seen(0), relation) + stands(seen(2), seen(1), relation));
        }
        let (mut total, mut weight) = (0.6 * objects / count as f64, 0.6);
        if count > 1 {
            total += 0.25 * relations / (count - 1) as f64;
            weight += 0.25;
        }
        best = best.max(total / weight);
    });
    let spare = percept.blobs.len().saturating_sub(count).min(4);
    let objects = best * 0.85f64.powi(spare as i32);
    match scene.background {
        None => objects,
        Some(background) => {
            let share = if count > 1 { 0.15 } else { 0.2 };
            let at =
                Background::ALL.iter().position(|&known| known == background).expect("ALL has every member");
            (1.0 - share) * objects + share * percept.background_odds()[at]
        }
    }
}

/// Calls `visit` with every assignment of distinct blobs (or none) to objects.
fn assign(
    objects: usize,
    blobs: usize,
    chosen: &mut Vec<Option<usize>>,
    visit: &mut impl FnMut(&[Option<usize>]),
) {
    if chosen.len() == objects {
        return visit(chosen);
    }
    for choice in (0..blobs).map(Some).chain([None]) {
        if choice.is_none() || !chosen.contains(&choice) {
            chosen.push(choice);
            assign(objects, blobs, chosen, visit);
            chosen.pop();
        }
    }
}

/// How well a seen object is the named one, in [0, 1].
fn fit(object: &Object, blob: &Blob, scene: &Scene) -> f64 {
    let at = Colour::ALL.iter().position(|&known| known == object.colour).expect("ALL has every member");
    let colour = blob.colour_odds()[at];
    let shape = shape_score(object.shape, &blob.overlap);
    match object.size {
        None => 0.5 * colour + 0.5 * shape,
        Some(size) => {
            let threshold = middle_radius(scene);
            let large = 1.0 / (1.0 + (-(blob.radius(object.shape) - threshold) / 0.5).exp());
            let size = if size == Size::Large { large } else { 1.0 - large };
            0.42 * colour + 0.42 * shape + 0.16 * size
        }
    }
}

/// Between small and large, in pixels, among as many objects; a row of three must shrink to fit.
fn middle_radius(scene: &Scene) -> f64 {
    match (scene.objects.len(), scene.relations.as_slice()) {
        (1, _) => 13.4,
        (2, _) => 11.2,
        (_, [first, second]) if first.is_horizontal() == second.is_horizontal() => 8.9,
        _ => 9.4,
    }
}

/// How well the overlaps speak for `shape`: by how far another shape fits better, and by how well this one fits.
fn shape_score(shape: Shape, overlap: &[f64; 8]) -> f64 {
    let own = overlap[shape as usize];
    let best = overlap.iter().copied().fold(0.0, f64::max);
    let relative = (-(best - own) / 0.05).exp();
    relative * ((own - 0.5) / 0.3).clamp(0.0, 1.0)
}

/// How clearly `first` stands in `relation` to `second`.
fn stands(first: Option<&Blob>, second: Option<&Blob>, relation: Relation) -> f64 {
    let (Some(first), Some(second)) = (first, second) else { return 0.0 };
    let (dx, dy) = (first.x - second.x, first.y - second.y);
    let (along, across) = if relation.is_horizontal() { (dx, dy) } else { (dy, dx) };
    let along = relation.sign() * along;
    // A third object stands beside the middle of two others, hence up to about 45 degrees off either.
    let side = 1.0 / (1.0 + (-(along - 5.0) / 1.2).exp());
    let direct = 1.0 / (1.0 + (-(1.6 * along - across.abs()) / 2.0).exp());
    side * direct
}

#[cfg(test)]
mod tests {
    use super::super::{Split, Style, render, sample_scene};
    use super::*;
    use crate::rng::{Stream, stream};
    use crate::units::Seed;

    /// A scene, and the same with one attribute wrong, where it has that attribute.
    type Spoil = fn(&Scene, &mut Stream) -> Option<Scene>;

    fn other<T: Copy + PartialEq>(all: &[T], than: T, s: &mut Stream) -> T {
        loop {
            let drawn = *s.pick(all);
            if drawn != than {
                return drawn;
            }
        }
    }

    fn colour(scene: &Scene, s: &mut Stream) -> Option<Scene> {
        let mut wrong = scene.clone();
        let object = s.below(wrong.objects.len());
        wrong.objects[object].colour = other(Colour::ALL, wrong.objects[object].colour, s);
        Some(wrong)
    }

    fn shape(scene: &Scene, s: &mut Stream) -> Option<Scene> {
        let mut wrong = scene.clone();
        let object = s.below(wrong.objects.len());
        wrong.objects[object].shape = other(Shape::ALL, wrong.objects[object].shape, s);
        Some(wrong)
    }

    fn size(scene: &Scene, _: &mut Stream) -> Option<Scene> {
        let mut wrong = scene.clone();
        let object = wrong.objects.iter_mut().find(|object| object.size.is_some())?;
        object.size = object.size.map(|size| if size == Size::Small { Size::Large } else { Size::Small });
        Some(wrong)
    }

    fn relation(scene: &Scene, s: &mut Stream) -> Option<Scene> {
        let mut wrong = scene.clone();
        let index = s.below(wrong.relations.len().max(1));
        let relation = wrong.relations.get_mut(index)?;
        *relation = other(Relation::ALL, *relation, s);
        Some(wrong)
    }

    fn background(scene: &Scene, s: &mut Stream) -> Option<Scene> {
        let background = scene.background?;
        Some(Scene { background: Some(other(Background::ALL, background, s)), ..scene.clone() })
    }

    fn swapped_colours(scene: &Scene, _: &mut Stream) -> Option<Scene> {
        let mut wrong = scene.clone();
        let [first, second, ..] = &mut wrong.objects[..] else { return None };
        std::mem::swap(&mut first.colour, &mut second.colour);
        (wrong != *scene).then_some(wrong)
    }

    fn missing(scene: &Scene, _: &mut Stream) -> Option<Scene> {
        let mut wrong = scene.clone();
        (wrong.objects.len() > 1).then(|| {
            wrong.objects.pop();
            wrong.relations.pop();
            wrong
        })
    }

    fn half<'a>(scores: impl Iterator<Item = &'a f64>) -> f64 {
        let mut scores: Vec<f64> = scores.copied().collect();
        scores.sort_by(f64::total_cmp);
        scores[scores.len() / 2]
    }

    #[test]
    fn matching_pictures_score_high_and_every_error_costs() {
        let cases: [(&str, Spoil, f64); 7] = [
            ("colour", colour, 0.95),
            ("shape", shape, 0.95),
            ("size", size, 0.90),
            ("relation", relation, 0.95),
            ("background", background, 0.93),
            ("swapped colours", swapped_colours, 0.95),
            ("missing object", missing, 0.97),
        ];
        let mut s = stream(Seed::new(0), "alignment", 0);
        let mut right = Vec::new();
        for (name, spoil, least) in cases {
            // (right, wrong) scores of pictures of the scene and of its spoilt twin, each under a style of its own.
            let mut pairs = Vec::new();
            while pairs.len() < 200 {
                let scene = sample_scene(&mut s, [1.0, 1.0, 1.0], Split::Train);
                let Some(wrong) = spoil(&scene, &mut s) else { continue };
                if !super::super::is_drawable(&wrong) {
                    continue;
                }
                let [good, bad] = [&scene, &wrong]
                    .map(|drawn| alignment(&render(drawn, &Style::sample(&mut s), &mut s), &scene));
                pairs.push((good, bad));
            }
            right.extend(pairs.iter().map(|pair| pair.0));
            let wins = pairs.iter().filter(|(good, bad)| good > bad).count() as f64 / pairs.len() as f64;
            println!("{name}: {wins:.3}, wrong median {:.3}", half(pairs.iter().map(|pair| &pair.1)));
            assert!(wins >= least, "{name}: only {wins} of the right pictures win");
        }
        let high = right.iter().filter(|&&score| score > 0.85).count() as f64 / right.len() as f64;
        println!("right median {:.3}, share above 0.85 {high:.3}", half(right.iter()));
        assert!(half(right.iter()) > 0.95 && high > 0.9, "{high}");
    }

    #[test]
    fn noise_of_a_sampler_does_not_hide_errors() {
        let mut s = stream(Seed::new(1), "alignment", 0);
        let (mut wins, mut right) = (0, Vec::new());
        let count = 120;
        while right.len() < count {
            let scene = sample_scene(&mut s, [1.0, 1.0, 1.0], Split::Train);
            let spoil: Spoil = if s.chance(0.5) { colour } else { shape };
            let Some(wrong) = spoil(&scene, &mut s) else { continue };
            if !super::super::is_drawable(&wrong) {
                continue;
            }
            let [good, bad] = [&scene, &wrong].map(|drawn| {
                let clean = render(drawn, &Style::sample(&mut s), &mut s);
                let noisy = clean.rgb().iter().map(|&byte| (f64::from(byte) + 10.0 * s.normal()) as u8);
                alignment(&Image::new(64, 64, noisy.collect()), &scene)
            });
            wins += usize::from(good > bad);
            right.push(good);
        }
        println!("noisy: wins {wins} of {count}, right median {:.3}", half(right.iter()));
        assert!(wins as f64 > 0.9 * count as f64 && half(right.iter()) > 0.9);
    }

    #[test]
    fn an_empty_picture_shows_nothing() {
        let scene = super::super::parse("a red circle left of a blue square").unwrap();
        assert!(alignment(&Image::new(64, 64, vec![128; 3 * 64 * 64]), &scene) < 0.01);
    }
}
