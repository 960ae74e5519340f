//! How many choices must be told of a user, and how much it matters which ones.

use std::collections::BTreeSet;

use super::{Column, KINDS, People, Seen, kind_label, percent};
use crate::report::Result;
use crate::report::study::{BOOTSTRAP, Method, RESAMPLES, Role};
use crate::report::table::{Cell, Table};
use crate::spec::users::Addressee;

/// What the personal model makes of other numbers of choices, and of other choices; `None` where it was asked for none.
///
/// # Errors
/// Where rows cannot be averaged.
pub(super) fn table(people: &People, hero: &Method) -> Result<Option<Table>> {
    let design = &people.study.design;
    let Some(base) = design.first(&Role::Base) else { return Ok(None) };
    let told: BTreeSet<(usize, usize)> = hero
        .conditions
        .iter()
        .filter_map(|user| Addressee::parse(&user.condition))
        .map(|one| (one.shots.unwrap_or(people.users.shots), one.draw))
        .collect();
    if told.len() < 2 {
        return Ok(None);
    }
    let columns = vec![
        ("Choices told".into(), Column::Words),
        ("Users".into(), Column::Words),
        ("Number".into(), Column::Numbers),
        ("True preference over the base, %".into(), Column::Estimates),
        ("over what it makes of the study's number, %".into(), Column::Estimates),
    ];
    let mut table =
        Table::new(format!("{} told more, fewer, or other choices of the same users.", hero.label), columns);
    for &(shots, draw) in &told {
        let usual = (shots, draw) == (people.users.shots, 0);
        let label = match draw {
            0 => format!("{shots}"),
            draw => format!("{shots}, of block {}", draw + 1),
        };
        for kind in KINDS {
            let ours = |user: i64| of(people, hero, user, (shots, draw));
            // All of a kind have such images, or the first of them, or none; a part of them is not all.
            let mut who: Vec<i64> = people.of_kind(kind);
            let everybody = who.len();
            who.retain(|&user| ours(user).is_some());
            if kind.is_none() && who.len() < everybody {
                continue;
            }
            let Some(over_base) = people.preference(&who, ours, |user| people.images(base, user))? else {
                continue;
            };
            let over_usual = match usual {
                true => None,
                false => people.preference(&who, ours, |user| people.images(hero, user))?,
            };
            let estimate = |preference: Option<[crate::stats::Crossed; 2]>| -> Result<Cell> {
                let Some([probability, _]) = preference else { return Ok(Cell::Missing) };
                Ok(Cell::estimate(Some(percent(&probability.rate_inference(RESAMPLES, BOOTSTRAP)?)), 1))
            };
            table.push(vec![
                Cell::text(&label),
                Cell::text(kind_label(kind)),
                Cell::number(Some(who.len() as f64), 0),
                estimate(Some(over_base))?,
                estimate(over_usual)?,
            ]);
        }
    }
    if let Some((deviation, users, draws)) = spread(people, hero, &told)? {
        table.note(format!(
            "Which {} choices: over {draws} blocks, the standard deviation of one user's preference over the base is \
             {:.1} points (root mean square over {users} users; each is a mean over the same captions and noises).",
            people.users.shots,
            100.0 * deviation
        ));
    }
    Ok(Some(table))
}

/// What the model made of a number of a user's choices out of one block.
fn of<'s>(people: &'s People, hero: &Method, user: i64, (shots, draw): (usize, usize)) -> Option<&'s Seen> {
    if (shots, draw) == (people.users.shots, 0) {
        return people.images(hero, user);
    }
    let name = Addressee { user, shots: Some(shots), draw }.to_string();
    people.seen.get(&(hero.name.clone(), name))
}

/// How a user's preference over the base varies with the block that her choices are of; with the users and blocks.
fn spread(
    people: &People,
    hero: &Method,
    told: &BTreeSet<(usize, usize)>,
) -> Result<Option<(f64, usize, usize)>> {
    let Some(base) = people.study.design.first(&Role::Base) else { return Ok(None) };
    let blocks: Vec<(usize, usize)> =
        told.iter().copied().filter(|(shots, _)| *shots == people.users.shots).collect();
    let (mut variance, mut users) = (0.0, 0);
    for user in people.of_kind(None) {
        let mut means = Vec::new();
        for &block in &blocks {
            let ours = |user: i64| of(people, hero, user, block);
            if let Some([mean, _]) = people.preference(&[user], ours, |user| people.images(base, user))? {
                means.push(mean.mean());
            }
        }
        if means.len() == blocks.len() && means.len() > 1 {
            let mean = means.iter().sum::<f64>() / means.len() as f64;
            let squares: f64 = means.iter().map(|value| (value - mean).powi(2)).sum();
            variance += squares / (means.len() - 1) as f64;
            users += 1;
        }
    }
    Ok((users > 0).then(|| ((variance / users as f64).sqrt(), users, blocks.len())))
}
