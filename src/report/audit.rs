//! What judges said of a study of people, and what that is worth: win rates beside the true ones, corrected by labels; and
//! a page about the judges themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::judged::{MISMATCHED, NONE, OWN, PAIRS, Said};
use super::study::{BOOTSTRAP, LEVEL, Study};
use super::table::{Cell, Kind as Column, Table};
use super::{Output, Result};
use crate::data::desk::users;
use crate::judgement::truth::Truth;
use crate::judgement::{self, Row};
use crate::rng::stream;
use crate::scenes::tastes::Kind;
use crate::spec::Users;
use crate::stats::Estimate;
use crate::stats::judging::correction::{Inclusion, Plan, Scope, Weight};
use crate::stats::judging::win_rate::Interval;
use crate::stats::judging::{
    Agreement, Answer, Audit, Corrected, Label, Oracle, Predicted, Share, Spread, WinRates, strict,
};

/// How intervals are made: fewer resamples than elsewhere, since there are many rates.
const INTERVAL: Interval = Interval { level: LEVEL, resamples: 2000, seed: BOOTSTRAP };

const KINDS: [(Option<Kind>, &str); 3] =
    [(Some(Kind::Seen), "seen"), (Some(Kind::Unseen), "unseen"), (None, "all")];

/// Why rates of recorded people's judges are not corrected.
pub const NOT_CORRECTABLE: &str = "Not correctable: the labels of the data set are of other pairs than those that the judges \
                                   were asked about.";
/// Renders both; `None` where nobody was asked.
///
/// # Errors
/// Where a table of judgements contradicts itself.
pub fn render(study: &Study) -> Result<Option<Output>> {
    let Some(users) = study.design.people.as_ref().filter(|_| !study.judged.is_empty()) else {
        return Ok(None);
    };
    let mut output = Output { name: "audit".into(), ..Output::default() };
    output.tables.push(("audit-rates".into(), rates(study, users)?));
    output.tables.push(("audit-judges".into(), judges(study)?));
    output.tables.extend(agreement(study)?.map(|table| ("audit-agreement".into(), table)));
    output.tables.push(("audit-strict".into(), strict_curve()));
    Ok(Some(output))
}

fn percent(estimate: &Estimate) -> Estimate {
    estimate.clone().percent()
}

fn share(share: Option<&Share>) -> Cell {
    Cell::estimate(share.map(|share| percent(&share.estimate)), 1)
}

fn is_of(truth: &Truth, kind: Option<Kind>) -> bool {
    let user = truth.user.parse().map(|user| users::of_identifier(user).0);
    kind.is_none_or(|kind| user == Ok(kind))
}

/// What a judge's win rate of one comparison is worth.
fn rates(study: &Study, people: &Users) -> Result<Table> {
    let columns = vec![
        ("Judge".into(), Column::Words),
        ("Comparison".into(), Column::Words),
        ("Users".into(), Column::Words),
        ("Pairs".into(), Column::Numbers),
        ("Ties as half, %".into(), Column::Estimates),
        ("Strict, %".into(), Column::Estimates),
        ("Consistent, %".into(), Column::Estimates),
        ("By probability, %".into(), Column::Estimates),
        ("Corrected, %".into(), Column::Estimates),
        ("True, %".into(), Column::Numbers),
        ("Design effect".into(), Column::Numbers),
        ("How users differ".into(), Column::Words),
    ];
    let mut table = Table::new(
        match people.choices.is_simulated() {
            true => {
                "Win rates by judges beside the true preference over the same pairs. Primary: ties as half."
            }
            false => "Win rates by judges. Primary: ties as half.",
        },
        columns,
    );
    for said in study.judged.iter().filter(|said| said.set == PAIRS) {
        table.rule();
        for comparison in comparisons(said) {
            for (kind, name) in KINDS {
                let kept = asked_for(said, comparison, kind);
                if !kept.is_empty() {
                    table.push(rate(said, people, &kept, (comparison, name))?);
                }
            }
        }
    }
    table.note(match people.choices.is_simulated() {
        true => {
            "Over all asked pairs, a pair asked in both orders; strict: over consistent pairs alone, as the paper counts. \
             Intervals: users × captions. True: mean Bradley-Terry probability over the same pairs."
        }
        false => {
            "Over all asked pairs, a pair asked in both orders; strict: over consistent pairs alone, as the paper counts. \
             Intervals: users × captions. Nothing true stands beside them: people's utilities are unknown."
        }
    });
    table.note(match (people.labelled, people.choices.is_simulated()) {
        (Some(labelled), _) => format!(
            "Corrected: prediction-powered, by the choices of {} users drawn at random, about the very pairs that the judge was \
             asked about. Of those who label, their own choices are one draw each.",
            labelled.users
        ),
        (None, true) => "Not correctable: nobody labelled the pairs that the judges were asked about.".into(),
        (None, false) => NOT_CORRECTABLE.into(),
    });
    Ok(table)
}

/// What a judge was asked about, in the order in which it was.
pub(super) fn comparisons(said: &Said) -> Vec<&str> {
    let mut comparisons: Vec<&str> = Vec::new();
    for truth in &said.truths {
        if !comparisons.contains(&truth.comparison.as_str()) {
            comparisons.push(&truth.comparison);
        }
    }
    comparisons
}

/// The pairs of one comparison and kind of users.
pub(super) fn asked_for<'s>(said: &'s Said, comparison: &str, kind: Option<Kind>) -> Vec<&'s Truth> {
    said.truths.iter().filter(|truth| truth.comparison == comparison && is_of(truth, kind)).collect()
}

/// What a judge said of some pairs.
pub(super) fn rows_of(said: &Said, kept: &[&Truth]) -> Vec<Row> {
    let keys: HashSet<_> = kept.iter().map(|truth| truth.key()).collect();
    let is_of = |row: &&Row| keys.contains(&(&*row.user, &*row.prompt, &*row.left, &*row.right));
    said.rows.iter().filter(is_of).cloned().collect()
}

/// The rates of rows, with their intervals.
///
/// # Errors
/// Where rows contradict themselves.
pub(super) fn win_rates(rows: &[Row]) -> Result<WinRates> {
    WinRates::of(&judgement::asked(&judgement::pairs(rows)), INTERVAL)
}

fn rate(said: &Said, people: &Users, kept: &[&Truth], (comparison, name): (&str, &str)) -> Result<Vec<Cell>> {
    let keys: HashMap<_, usize> = kept.iter().enumerate().map(|(at, truth)| (truth.key(), at)).collect();
    let rows = rows_of(said, kept);
    let pairs = judgement::pairs(&rows);
    let asked = judgement::asked(&pairs);
    let rates = WinRates::of(&asked, INTERVAL)?;
    let spread = Spread::of_asked(&asked, LEVEL)?;
    let predicted: Vec<Predicted> = pairs
        .iter()
        .filter_map(|pair| {
            let row = pair.first;
            let at = *keys.get(&(&*row.user, &*row.prompt, &*row.left, &*row.right))?;
            Some(Predicted {
                user: row.user.parse().ok()?,
                pair: at as u64,
                prediction: pair.probability().or(pair.ties_as_half()).unwrap_or(0.5),
            })
        })
        .collect();
    let corrected = match Corrected::of(&predicted, &labels(people, kept), &plan())? {
        Corrected::Corrected(found) => Cell::estimate(Some(percent(&found.estimate)), 1),
        other @ Corrected::NotCorrectable { .. } => Cell::text(other.to_string()),
    };
    let of = |rate: &Option<crate::stats::judging::Rate>| {
        Cell::estimate(rate.as_ref().map(|rate| percent(&rate.estimate)), 1)
    };
    let truth: Option<f64> = kept.iter().map(|truth| truth.probability).sum();
    let truth = truth.map(|sum| sum / kept.len() as f64);
    let effect = rates.ties_as_half.as_ref().and_then(|rate| rate.design_effect);
    let spread = match spread {
        Spread::Fitted(fit) => format!(
            "ρ {:.2} [{:.2}, {:.2}]",
            fit.overdispersion.value, fit.overdispersion.low, fit.overdispersion.high
        ),
        other @ Spread::NotIdentifiable { .. } => other.to_string(),
    };
    Ok(vec![
        Cell::text(&said.judge.label),
        Cell::text(comparison),
        Cell::text(name),
        Cell::number(Some(rates.asked as f64), 0),
        of(&rates.ties_as_half),
        of(&rates.strict),
        of(&rates.consistency),
        of(&rates.by_probability),
        corrected,
        Cell::number(truth.map(|truth| 100.0 * truth), 1),
        Cell::number(effect, 1),
        Cell::text(spread),
    ])
}

fn plan() -> Plan {
    Plan { inclusion: Inclusion::Simple, scope: Scope::AskedPairs, weight: Weight::Tuned, level: LEVEL }
}

/// The choices that a random sample of users makes between the very pairs of `kept`.
fn labels(people: &Users, kept: &[&Truth]) -> Vec<Label> {
    let Some(labelled) = people.labelled else { return Vec::new() };
    let mut who: Vec<i64> = people.evaluated(Kind::Seen).chain(people.evaluated(Kind::Unseen)).collect();
    stream(labelled.seed, "labelled users", 0).shuffle(&mut who);
    let drawn: BTreeSet<i64> = who.into_iter().take(labelled.users).collect();
    let mut labels = Vec::new();
    for (pair, truth) in kept.iter().enumerate() {
        let user = truth.user.parse::<i64>().ok().filter(|user| drawn.contains(user));
        let Some((user, probability)) = user.zip(truth.probability) else { continue };
        // One choice of a pair, whatever it is compared for.
        let name = format!("label {} {} {}", truth.prompt, truth.left, truth.right);
        let chosen = stream(labelled.seed, &name, user as u64).chance(probability);
        labels.push(Label { pair: pair as u64, truth: f64::from(u8::from(chosen)) });
    }
    labels
}

/// How good each judge is, where users' own choices say.
fn judges(study: &Study) -> Result<Table> {
    let columns = vec![
        ("Judge".into(), Column::Words),
        ("No shots, %".into(), Column::Estimates),
        ("A stranger's, %".into(), Column::Estimates),
        ("Own, %".into(), Column::Estimates),
        ("Ceiling, %".into(), Column::Numbers),
        ("Consistent, %".into(), Column::Estimates),
        ("First slot, %".into(), Column::Estimates),
        ("Stable, %".into(), Column::Estimates),
        ("Bias, logits".into(), Column::Estimates),
        ("Noise".into(), Column::Estimates),
    ];
    let mut table = Table::new(
        "How often judges foresee a choice that no other part of the study has seen, and what their errors are like.",
        columns,
    );
    let mut by_judge: BTreeMap<usize, BTreeMap<&str, &Said>> = BTreeMap::new();
    let mut order: Vec<&str> = Vec::new();
    for said in &study.judged {
        if !order.contains(&said.judge.name.as_str()) {
            order.push(&said.judge.name);
        }
        let place = order.len() - 1;
        by_judge.entry(place).or_default().insert(&said.set, said);
    }
    for sets in by_judge.values() {
        let Some(own) = sets.get(OWN) else { continue };
        let choice = |truth: &Truth| truth.choice.map(|left| f64::from(u8::from(left)));
        let audit = |set: &str| -> Result<Option<Audit>> {
            let Some(said) = sets.get(set) else { return Ok(None) };
            let kept: Vec<&Truth> = said.truths.iter().collect();
            Audit::of(&said.calls(&kept, choice), INTERVAL).map(Some)
        };
        let [none, mismatched, of_own] = [audit(NONE)?, audit(MISMATCHED)?, audit(OWN)?];
        let accuracy =
            |audit: &Option<Audit>| share(audit.as_ref().and_then(|audit| audit.accuracy.as_ref()));
        let of_own = of_own.as_ref();
        let count = own.truths.len().max(1) as f64;
        let likelier =
            |truth: &Truth| truth.probability.map(|probability| probability.max(1.0 - probability));
        let ceiling: Option<f64> = own.truths.iter().map(likelier).sum();
        // Repetitions of the oracle are draws of their own, and all count.
        let kept: Vec<&Truth> = own.truths.iter().collect();
        let answers: Vec<Answer> = own
            .calls(&kept, |truth| truth.probability)
            .into_iter()
            .filter_map(|call| {
                let log_odds = kept[call.pair as usize].log_odds()?;
                Some(Answer {
                    log_odds: if call.left_first { log_odds } else { -log_odds },
                    first: call.first,
                })
            })
            .collect();
        let (bias, noise) = match Oracle::of(&answers, LEVEL)? {
            Oracle::Fitted(fit) => (Cell::estimate(Some(fit.bias), 2), Cell::estimate(Some(fit.noise), 2)),
            other @ Oracle::NotIdentifiable { .. } => (Cell::text(other.to_string()), Cell::Missing),
        };
        table.push(vec![
            Cell::text(&own.judge.label),
            accuracy(&none),
            accuracy(&mismatched),
            share(of_own.and_then(|audit| audit.accuracy.as_ref())),
            Cell::number(ceiling.map(|sum| 100.0 * sum / count), 1),
            share(of_own.and_then(|audit| audit.consistency.as_ref())),
            share(of_own.and_then(|audit| audit.first_slot.as_ref())),
            share(of_own.and_then(|audit| audit.stability.as_ref())),
            bias,
            noise,
        ]);
    }
    let simulated = study.design.people.as_ref().is_none_or(|people| people.choices.is_simulated());
    if !simulated {
        table.note(
            "The paper reports 83 % at four shots, over consistent pairs alone. How often a choice can be foreseen at most is \
             unknown: so are people's utilities. Intervals are over users.",
        );
        return Ok(table);
    }
    table.note(
        "Ceiling: how often somebody foresees the choice who knows the user's true utilities; choices themselves are drawn. The \
         paper reports 83 % at four shots, over consistent pairs alone. Intervals are over users.",
    );
    table.note(
        "Bias b and noise n: as if the first slot were named with probability (1 − n) σ(d + b) + n/2, d the true log-odds; \
         from the calls with own shots.",
    );
    Ok(table)
}

/// How far each two judges agree on users' choices.
fn agreement(study: &Study) -> Result<Option<Table>> {
    let said: Vec<&Said> = study.judged.iter().filter(|said| said.set == OWN).collect();
    let columns = vec![
        ("Judges".into(), Column::Words),
        ("Agree, %".into(), Column::Estimates),
        ("Cohen's κ".into(), Column::Estimates),
    ];
    let mut table = Table::new("How far judges agree, call by call.", columns);
    for (at, one) in said.iter().enumerate() {
        for other in &said[at + 1..] {
            let kept: Vec<&Truth> = one.truths.iter().collect();
            let [a, b] = [one, other].map(|said| said.calls(&kept, |_| None));
            let found = Agreement::of(&a, &b, INTERVAL)?;
            table.push(vec![
                Cell::text(format!("{} and {}", one.judge.label, other.judge.label)),
                share(found.as_ref().map(|found| &found.raw)),
                Cell::estimate(found.and_then(|found| found.kappa), 2),
            ]);
        }
    }
    Ok((!table.rows.is_empty()).then_some(table))
}

/// What the strict rule makes of a judge with independent errors.
fn strict_curve() -> Table {
    let columns = vec![
        ("Right in a call, %".into(), Column::Numbers),
        ("Strict rate, %".into(), Column::Numbers),
        ("Consistent pairs, %".into(), Column::Numbers),
    ];
    let mut table = Table::new("What counting consistent pairs alone makes of independent errors.", columns);
    for accuracy in [0.5, 0.55, 0.6, 0.65, 0.67, 0.7, 0.75, 0.8, 0.9, 1.0] {
        let Some(strict) = strict::of_accuracy(accuracy) else { continue };
        table.push(vec![
            Cell::number(Some(100.0 * accuracy), 0),
            Cell::number(Some(100.0 * strict.rate), 1),
            Cell::number(Some(100.0 * strict.consistency), 1),
        ]);
    }
    table
}
