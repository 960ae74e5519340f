//! Whether it matters for whom images were made: against how alike two users' tastes are.

use std::collections::BTreeSet;

use super::{Column, People, paired, percent};
use crate::report::panel::{Axis, Panel};
use crate::report::plot::{COLUMN, Color, Look, Scene};
use crate::report::study::{BOOTSTRAP, Method, RESAMPLES};
use crate::report::table::{Cell, Table};
use crate::report::{Figure, Result};
use crate::scenes::tastes::Kind;

/// Bins of the likeness of two tastes.
const BINS: usize = 5;

/// The preference for one's own images over each other user's, against how alike the two tastes are.
pub(super) fn figure(people: &People, hero: &Method) -> Result<Option<Figure>> {
    let mut bins: [Vec<(u64, f64)>; BINS] = Default::default();
    let who = people.of_kind(Some(Kind::Unseen));
    for &user in &who {
        let (Some(own), Some(taste)) = (people.images(hero, user), people.tastes.get(&user)) else {
            return Ok(None);
        };
        for &other in who.iter().filter(|other| **other != user) {
            let Some(theirs) = people.images(hero, other) else { return Ok(None) };
            let values: Vec<f64> = own
                .iter()
                .filter_map(|(key, ours)| Some(paired(ours, theirs.get(key)?)))
                .flatten()
                .filter_map(|[a, b]| Some(taste.prefers(a.as_ref()?, b.as_ref()?)))
                .collect();
            if values.is_empty() {
                continue;
            }
            let Some(likeness) = people.tastes.get(&other).map(|other| taste.likeness(other)) else {
                continue;
            };
            let bin = ((likeness + 1.0) / 2.0 * BINS as f64).clamp(0.0, BINS as f64 - 1.0) as usize;
            bins[bin].push((user as u64, values.iter().sum::<f64>() / values.len() as f64));
        }
    }
    let mut points = Vec::new();
    for (at, bin) in bins.iter().enumerate() {
        let users: Vec<u64> = bin.iter().map(|(user, _)| *user).collect();
        let distinct: BTreeSet<u64> = users.iter().copied().collect();
        if distinct.len() < 2 {
            continue;
        }
        let values: Vec<f64> = bin.iter().map(|(_, value)| *value).collect();
        let inference = crate::stats::Clusters::new(&values, &users)?.rate_inference(RESAMPLES, BOOTSTRAP)?;
        let middle = -1.0 + (2 * at + 1) as f64 / BINS as f64;
        points.push((middle, bin.len(), percent(&inference)));
    }
    if points.len() < 2 {
        return Ok(None);
    }
    let columns = vec![
        ("cosine of tastes".into(), Column::Numbers),
        ("pairs of users".into(), Column::Numbers),
        ("true preference for one's own, %".into(), Column::Estimates),
    ];
    let mut data = Table::new("Preference for one's own images, by likeness of tastes", columns);
    for (middle, count, estimate) in &points {
        data.push(vec![
            Cell::number(Some(*middle), 1),
            Cell::number(Some(*count as f64), 0),
            Cell::estimate(Some(estimate.clone()), 2),
        ]);
    }
    let y = Axis::covering(points.iter().flat_map(|(_, _, e)| [e.low, e.high, 50.0]), 4)
        .named("prefers her own, %");
    let x = Axis::linear(-1.0, 1.0, 4).named("cosine of the two users' tastes");
    let left = y.room_at_left() + 1.0;
    const HEIGHT: f64 = 80.0;
    let mut scene = Scene::new(COLUMN, 4.0 + HEIGHT + x.room_below() + 2.0);
    let panel = Panel { left, top: 4.0, width: COLUMN - left - 6.0, height: HEIGHT, x, y };
    panel.frame(&mut scene);
    scene.dashed(panel.at(-1.0, 50.0), panel.at(1.0, 50.0), 0.6, Color::GREY);
    let look = Look::nth(0);
    scene.path(points.iter().map(|(x, _, e)| panel.at(*x, e.value)).collect(), 1.0, look.color);
    for (x, _, estimate) in &points {
        panel.whisker(&mut scene, *x, (estimate.low, estimate.high), look.color);
        scene.marker(panel.at(*x, estimate.value), 2.0, look);
    }
    let caption = format!(
        "Unseen users' true preference for the images that {} made for them over those that it made for another unseen user, \
         by the cosine of their tastes (95 % over users).",
        hero.label
    );
    Ok(Some(Figure { name: "fig5-likeness".into(), caption, scene, data }))
}
