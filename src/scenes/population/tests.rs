use std::sync::LazyLock;

use super::super::alignment::alignment_percept;
use super::super::measure::measure_percept;
use super::super::perceive::Percept;
use super::super::{Split, Style, render, sample_scene};
use super::*;

type Judged = (Measured, f64);

static RENDERED: LazyLock<Vec<Vec<Judged>>> = LazyLock::new(|| renders(300));

/// Measured renders of training captions, four styles each, with their alignments.
fn renders(count: usize) -> Vec<Vec<Judged>> {
    let mut s = stream(Seed::new(0), "population renders", 0);
    (0..count)
        .map(|_| {
            let scene = sample_scene(&mut s, [1.0, 1.0, 1.0], Split::Train);
            (0..4)
                .map(|_| {
                    let image = render(&scene, &Style::sample(&mut s), &mut s);
                    let percept = Percept::of(&image);
                    (measure_percept(&image, &percept), alignment_percept(&percept, &scene))
                })
                .collect()
        })
        .collect()
}

#[test]
fn the_reference_is_what_renders_measure() {
    let groups: Vec<Vec<Measured>> = renders(300)
        .into_iter()
        .map(|group| group.into_iter().map(|(measured, _)| measured).collect())
        .collect();
    let fitted = Reference::fit(&groups);
    println!("{fitted:?}");
    for k in 0..COUNT {
        // The mean over 300 captions has a standard error below a third of this; backgrounds differ between captions.
        let slack = 0.6 * RENDERS.deviation[k];
        assert!(
            (fitted.mean[k] - RENDERS.mean[k]).abs() < slack,
            "{}: {}",
            Measured::NAMES[k],
            fitted.mean[k]
        );
        let ratio = fitted.deviation[k] / RENDERS.deviation[k];
        assert!((0.8..1.25).contains(&ratio), "{}: {}", Measured::NAMES[k], fitted.deviation[k]);
    }
}

#[test]
fn choices_follow_the_model() {
    let population = Population::new(Seed::new(3), Kind::Pick);
    let groups = renders(3);
    let mut s = stream(Seed::new(4), "choices", 0);
    for group in groups.iter().take(3) {
        let (user, first, second) =
            (population.user(7), (&group[0].0, group[0].1), (&group[1].0, group[1].1));
        let odds = population.odds(&user, first, second);
        assert!((odds.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let swapped = population.odds(&user, second, first);
        assert!((odds[0] - swapped[1]).abs() < 1e-12 && (odds[2] - swapped[2]).abs() < 1e-12);
        // Davidson: without ties, the log odds are the utilities' difference over the temperature.
        let margin =
            population.utility(&user, first.0, first.1) - population.utility(&user, second.0, second.1);
        assert!(((odds[0] / odds[1]).ln() - margin / population.config().temperature).abs() < 1e-9);
        let draws = 20_000;
        let mut counts = [0.0; 3];
        for _ in 0..draws {
            counts[population.choose(&mut s, &user, first, second) as usize] += 1.0 / draws as f64;
        }
        for (count, odds) in counts.iter().zip(odds) {
            assert!((count - odds).abs() < 4.5 * (odds * (1.0 - odds) / draws as f64).sqrt() + 1e-9);
        }
    }
    let same = (&groups[0][0].0, groups[0][0].1);
    let tie = population.odds(&population.user(0), same, same)[2];
    assert!((tie - 0.3 / 2.3).abs() < 1e-12);
}

#[test]
fn populations_are_disjoint_and_vary_as_documented() {
    let seed = Seed::new(5);
    let (hps, pick) = (Population::new(seed, Kind::Hps), Population::new(seed, Kind::Pick));
    let users = 3000;
    for population in [&hps, &pick] {
        let config = population.config();
        for k in 0..COUNT {
            let weights: Vec<f64> = (0..users).map(|index| population.user(index).taste[k]).collect();
            let mean = weights.iter().sum::<f64>() / users as f64;
            let variance = weights.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / users as f64;
            let error = config.individual / (users as f64).sqrt();
            assert!((mean - config.taste[k]).abs() < 4.5 * error);
            assert!((variance.sqrt() - config.individual).abs() < 4.5 * error);
        }
    }
    let deviation = |population: &Population, index| {
        let (user, config) = (population.user(index), population.config());
        ((user.taste[0] - config.taste[0]) / config.individual * 1e9).round() as i64
    };
    let known: std::collections::HashSet<i64> = (0..500).map(|index| deviation(&hps, index)).collect();
    assert!((0..500).all(|index| !known.contains(&deviation(&pick, index))), "no user in both");
    assert_eq!(hps.user(3), Population::new(seed, Kind::Hps).user(3));
}

/// How often the signs of two judgements of the first two pictures of each caption agree.
fn agreement(groups: &[Vec<Judged>], a: impl Fn(&Judged) -> f64, b: impl Fn(&Judged) -> f64) -> f64 {
    let agree = |pair: &&[Judged]| (a(&pair[0]) > a(&pair[1])) == (b(&pair[0]) > b(&pair[1]));
    let pairs: Vec<&[Judged]> = groups.iter().flat_map(|group| group.chunks_exact(2)).collect();
    pairs.iter().filter(|pair| agree(pair)).count() as f64 / pairs.len() as f64
}

#[test]
fn tastes_disagree_where_they_should() {
    let groups = &RENDERED[..];
    let (hps, pick) = (Population::new(Seed::new(6), Kind::Hps), Population::new(Seed::new(6), Kind::Pick));
    let utility =
        |population: &Population, p: &Judged| population.utility(&population.mean_user(), &p.0, p.1);
    let taste = |p: &Judged| aesthetic(&p.0);
    let hps_aesthetic = agreement(groups, |p| utility(&hps, p), taste);
    let pick_aesthetic = agreement(groups, |p| utility(&pick, p), taste);
    let hps_pick = agreement(groups, |p| utility(&hps, p), |p| utility(&pick, p));
    println!("hps-aesthetic {hps_aesthetic:.3}, pick-aesthetic {pick_aesthetic:.3}, hps-pick {hps_pick:.3}");
    // 600 pairs: a standard error of 2 %. Users whose tastes were one could not be told apart by any method.
    assert!((0.30..0.60).contains(&hps_aesthetic), "{hps_aesthetic}");
    assert!((0.45..0.70).contains(&pick_aesthetic), "{pick_aesthetic}");
    assert!((0.55..0.85).contains(&hps_pick), "{hps_pick}");
    let ratings: Vec<f64> = groups.iter().flatten().map(taste).collect();
    let mean = ratings.iter().sum::<f64>() / ratings.len() as f64;
    let deviation = (ratings.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / ratings.len() as f64).sqrt();
    println!("aesthetic {mean:.2} sd {deviation:.2}");
    assert!((5.0..6.2).contains(&mean) && (0.6..1.6).contains(&deviation));
}

#[test]
fn the_samples_reference_is_that_of_the_shipped_pairs() {
    let text = include_str!("../../../assets/desk/pairs.json");
    let made: serde_json::Value = serde_json::from_str(text).unwrap();
    let shipped: Reference = serde_json::from_value(made["population"]["reference"].clone()).unwrap();
    for (ours, theirs) in [(SAMPLES.mean, shipped.mean), (SAMPLES.deviation, shipped.deviation)] {
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            assert!((ours / theirs - 1.0).abs() < 5e-3, "{ours} for {theirs}");
        }
    }
}
