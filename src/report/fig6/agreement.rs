//! How far all images of the study follow what was written about users, and how far they neglect their captions.

use std::collections::{BTreeMap, BTreeSet};

use super::super::people::{self, KINDS, condition_for, kind_label, of_kind, of_nobody};
use super::super::study::{BOOTSTRAP, LEVEL, Method, RESAMPLES, Role};
use super::super::table::{Cell, Kind as Column, Table};
use super::{NEGLECT, Records, Result};
use crate::record::Row;
use crate::scenes::talk;
use crate::scenes::tastes::{Features, Kind};
use crate::stats::{Clusters, Estimate};

/// Values, each with the cluster that it belongs to.
#[derive(Default)]
struct Gathered {
    values: Vec<f64>,
    clusters: Vec<u64>,
}

impl Gathered {
    fn push(&mut self, cluster: u64, value: f64) {
        self.values.push(value);
        self.clusters.push(cluster);
    }

    fn clusters(&self) -> Result<Option<Clusters>> {
        match self.values.is_empty() {
            true => Ok(None),
            false => Clusters::new(&self.values, &self.clusters).map(Some),
        }
    }

    fn mean(&self) -> Result<Option<Estimate>> {
        let inference =
            self.clusters()?.map(|clusters| clusters.inference(RESAMPLES, BOOTSTRAP)).transpose()?;
        Ok(inference.map(|inference| inference.estimate(LEVEL)))
    }

    /// In percent, never beyond its ends.
    fn rate(&self) -> Result<Option<Estimate>> {
        let clusters = self.clusters()?;
        let inference = clusters.map(|clusters| clusters.rate_inference(RESAMPLES, BOOTSTRAP)).transpose()?;
        Ok(inference.map(|inference| inference.estimate(LEVEL).clamped(0.0, 1.0).percent()))
    }
}

/// Everything that is said of one method and kind of users.
#[derive(Default)]
struct Told {
    users: usize,
    own: Gathered,
    others: Gathered,
    difference: Gathered,
    neglects: Gathered,
    alignment: Gathered,
}

/// A method's rows under one condition, by prompt.
type ByPrompt<'a> = BTreeMap<u32, Vec<&'a Row>>;

/// The share of words that images agree with, averaged over images; `None` where there is no word, or nothing measured.
fn share(words: &[&str], images: &[Features]) -> Option<f64> {
    let agree = |image: &Features, word: &&&str| talk::agrees(word, image) == Some(true);
    let agreed: usize =
        images.iter().map(|image| words.iter().filter(|word| agree(image, word)).count()).sum();
    let all = words.len() * images.len();
    (all > 0).then(|| agreed as f64 / all as f64)
}

fn average(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// What images of a method follow, for the users of a kind; `None` where it has none for some of them.
fn told(
    records: &Records,
    rows: &BTreeMap<(&str, &str), ByPrompt>,
    method: &Method,
    kind: Option<Kind>,
) -> Option<Told> {
    let who = of_kind(records.users, kind);
    let others = people::mismatched(records.users, &who);
    let mut told = Told::default();
    // One image for everybody counts once where the user does not matter.
    let shared = of_nobody(method).is_some();
    for (place, &user) in who.iter().enumerate() {
        let images = rows.get(&(method.name.as_str(), condition_for(method, user)?))?;
        let own = records.words(user);
        let other = others.get(&user).map_or_else(Vec::new, |other| records.words(*other));
        told.users += usize::from(!own.is_empty());
        for (prompt, rows) in images {
            let seen: Vec<Features> = rows.iter().filter_map(|row| people::seen(row)).collect();
            let (own, other) = (share(&own, &seen), share(&other, &seen));
            if let Some(own) = own {
                told.own.push(user as u64, own);
            }
            if let Some((own, other)) = own.zip(other) {
                told.others.push(user as u64, other);
                told.difference.push(user as u64, own - other);
            }
            if shared && place > 0 {
                continue;
            }
            let cluster = if shared { u64::from(*prompt) } else { user as u64 };
            let neglects = rows.iter().filter_map(|row| records.neglects(row));
            if let Some(share) = average(neglects.map(|neglects| f64::from(u8::from(neglects)))) {
                told.neglects.push(cluster, share);
            }
            if let Some(mean) = average(rows.iter().filter_map(|row| people::alignment(row))) {
                told.alignment.push(cluster, mean);
            }
        }
    }
    (!told.own.values.is_empty()).then_some(told)
}

/// The table over all images of the study; `None` where nothing measured stands in it.
///
/// # Errors
/// Where rows cannot be averaged.
pub(super) fn table(records: &Records) -> Result<Option<Table>> {
    let mut rows: BTreeMap<(&str, &str), ByPrompt> = BTreeMap::new();
    for row in records.study.rows() {
        let of = rows.entry((&row.method, &row.condition)).or_default();
        of.entry(row.prompt).or_default().push(row);
    }
    let columns = [
        ("Method", Column::Words),
        ("Users", Column::Words),
        ("Number", Column::Numbers),
        ("Own words agree, %", Column::Estimates),
        ("Another user's words agree, %", Column::Estimates),
        ("Difference, points", Column::Estimates),
        ("Caption neglected, %", Column::Estimates),
        ("Alignment", Column::Estimates),
    ];
    let columns = columns.map(|(head, kind)| (head.to_owned(), kind)).to_vec();
    let mut table =
        Table::new("How far images follow what was written about users, and their captions.", columns);
    for method in &records.study.design.methods {
        table.rule();
        for kind in KINDS {
            let Some(told) = told(records, &rows, method, kind) else { continue };
            // Of the base there is no other base that it could fall behind.
            let neglects = match method.role {
                Role::Base if of_nobody(method).is_some() => None,
                _ => told.neglects.rate()?,
            };
            table.push(vec![
                Cell::text(&method.label),
                Cell::text(kind_label(kind)),
                Cell::number(Some(told.users as f64), 0),
                Cell::estimate(told.own.rate()?, 1),
                Cell::estimate(told.others.rate()?, 1),
                Cell::estimate(told.difference.mean()?.map(Estimate::percent), 1),
                Cell::estimate(neglects, 1),
                Cell::estimate(told.alignment.mean()?, 3),
            ]);
        }
    }
    if table.rows.is_empty() {
        return Ok(None);
    }
    notes(records, &mut table);
    Ok(Some(table))
}

fn notes(records: &Records, table: &mut Table) {
    table.note(format!(
        "A word agrees where the measured image has its sign by at least {} standard deviations of the base's samples. Means \
         are over users and prompts, 95 % intervals over users.",
        talk::STANDS_OUT
    ));
    table.note(
        "Another user's words are those of a random other user of the same kind, by a derangement, against the same images: \
         what words agree with by chance. The difference is paired.",
    );
    table.note(format!(
        "A caption is neglected where alignment, in [0, 1], lies more than {NEGLECT} below that of the base's image of the same \
         prompt and noise. For methods that make one image for everybody, intervals of these two columns are over prompts.",
    ));
    table.note(
        "What was written about a user may be wrong about her: this is how far images follow the words, not how much she \
         would like them.",
    );
    let all = of_kind(records.users, None);
    let wordless = all.iter().filter(|user| records.words(**user).is_empty()).count();
    if wordless > 0 {
        table.note(format!(
            "About {wordless} of {} users no word was written that can be measured; they stand in no share of words.",
            all.len()
        ));
    }
    let failed = records.study.rows().iter().filter(|row| row.failure.is_some()).count();
    if failed > 0 {
        table.note(format!("{failed} images failed and stand in no number."));
    }
    let trained = records.study.headers.iter().filter(|header| header.method == records.hero.name);
    if trained.map(|header| header.train_seed).collect::<BTreeSet<_>>().len() == 1 {
        table.note("One training seed: intervals are over users, for this training.");
    }
}
