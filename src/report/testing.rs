//! A small study made of seeded streams, with planted effects that tests know.
//!
//! Six training seeds, 24 prompts, one noise seed; each score is a prompt's level, plus what the method does to it,
//! plus a seed's and an image's noise. Twins follow the reward at half strength. Two more images a prompt of the base
//! make its images of one prompt differ as much as its prompts do.

use std::collections::BTreeMap;

use super::study::{Design, Method, Role, Study, Trace, User};
use crate::record::{Row, Step};
use crate::rng::stream;
use crate::units::Seed;

pub const REWARDS: [&str; 3] = ["clip", "aesthetic", "hps"];
const LEVELS: [f64; 3] = [70.0, 5.5, 40.0];
const SPREADS: [f64; 3] = [6.0, 0.3, 9.0];
pub const SEEDS: u64 = 6;
pub const PROMPTS: u32 = 24;

/// What a method does to a reward, in units of its spread.
fn effect(method: &str, condition: &str, reward: usize) -> f64 {
    let weights: Vec<f64> = REWARDS.iter().map(|reward| weight(condition, reward)).collect();
    match method {
        "dpo" => [-0.1, 0.1, 0.3][reward],
        "dpo-pooled" => 0.3,
        "sft" => 0.1 * weights[reward],
        "ppd" => 0.9 * weights[reward] - 0.2 * (1.0 - weights[reward]),
        "ppd-shuffled-labels" => 0.0,
        "ppd-shuffled-users" => 0.2,
        "dpo-brightness" => -0.1,
        _ => match method.strip_prefix("dpo-") {
            Some(own) if own == REWARDS[reward] => 1.0,
            Some(_) => -0.3,
            None => 0.0,
        },
    }
}

fn weight(condition: &str, reward: &str) -> f64 {
    condition
        .split('+')
        .map(|part| part.split_once('=').map_or((part, 1.0), |(name, share)| (name, share.parse().unwrap())))
        .filter(|(name, _)| *name == reward)
        .map(|(_, share)| share)
        .sum()
}

/// The grid of users over the simplex in steps of a quarter, corners included, in the conditions' own spelling.
pub fn simplex() -> Vec<String> {
    let mut conditions = Vec::new();
    for first in 0..=4u32 {
        for second in 0..=4 - first {
            let shares = [first, second, 4 - first - second];
            let parts: Vec<String> = REWARDS
                .iter()
                .zip(shares)
                .filter(|(_, share)| *share > 0)
                .map(|(reward, share)| {
                    if share == 4 {
                        (*reward).to_owned()
                    } else {
                        format!("{reward}={:.2}", f64::from(share) / 4.0)
                    }
                })
                .collect();
            conditions.push(parts.join("+"));
        }
    }
    conditions
}

pub fn design() -> Design {
    let users: Vec<String> = REWARDS.map(String::from).to_vec();
    let nobody = vec!["none".to_owned()];
    let paper =
        |numbers: [f64; 3]| REWARDS.map(String::from).into_iter().zip(numbers).collect::<BTreeMap<_, _>>();
    let method = |name: &str, label: &str, role, conditions: &Vec<String>, paper| Method {
        name: name.into(),
        label: label.into(),
        role,
        conditions: conditions
            .iter()
            .map(|condition| User {
                condition: condition.clone(),
                weights: REWARDS.iter().map(|reward| weight(condition, reward)).collect(),
            })
            .collect(),
        paper,
    };
    let specialist = |reward: &str, label: &str, number: f64| {
        let paper = BTreeMap::from([(reward.to_owned(), number)]);
        method(&format!("dpo-{reward}"), label, Role::Specialist(reward.into()), &nobody, paper)
    };
    let none = BTreeMap::new;
    Design {
        study: "table1".into(),
        title: "Synthetic users".into(),
        profile: "desk".into(),
        rewards: users.clone(),
        methods: vec![
            method("base", "Base", Role::Base, &nobody, paper([31.97, 5.33, 23.87])),
            method("dpo", "Diffusion-DPO", Role::Baseline, &nobody, paper([32.48, 5.46, 25.96])),
            method("sft", "SFT", Role::Baseline, &users, paper([32.26, 5.56, 25.78])),
            method("dpo-pooled", "DPO, pooled labels", Role::Baseline, &nobody, none()),
            method("ppd", "PPD", Role::Personal, &simplex(), paper([32.66, 5.92, 27.51])),
            specialist("clip", "DPO (CLIP)", 32.96),
            specialist("aesthetic", "DPO (Aesthetic)", 6.42),
            specialist("hps", "DPO (HPS)", 28.61),
            method("ppd-shuffled-labels", "PPD, shuffled labels", Role::Control, &users, none()),
            method("ppd-shuffled-users", "PPD, shuffled users", Role::Control, &users, none()),
            method("dpo-brightness", "DPO (brightness)", Role::Control, &nobody, none()),
        ],
        claims: super::claims::tests::claims(),
        sweep: None,
        outputs: None,
        people: None,
        own_prompts: None,
        noise_seeds: vec![0],
    }
}

pub fn rows(design: &Design, seeds: u64, prompts: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    for (place, method) in design.methods.iter().enumerate() {
        for User { condition, .. } in &method.conditions {
            for train_seed in 0..if method.role == Role::Base { 1 } else { seeds } {
                for prompt in 0..prompts {
                    let mut scores = BTreeMap::new();
                    for (index, reward) in REWARDS.iter().enumerate() {
                        let mut levels = stream(Seed::new(index as u64), "level", u64::from(prompt));
                        let mut model = stream(Seed::new(train_seed), method.name.as_str(), index as u64);
                        let key = (place as u64 * 100 + index as u64) * 1000 + u64::from(prompt);
                        let mut image = stream(Seed::new(train_seed), condition, key);
                        let drift = if method.role == Role::Base { 0.0 } else { 0.1 * model.normal() };
                        let change = effect(&method.name, condition, index) + drift;
                        let value = |strength: f64, level: f64, noise: f64| {
                            LEVELS[index] + SPREADS[index] * (level + strength * change + 0.3 * noise)
                        };
                        let level = levels.normal();
                        scores.insert((*reward).to_owned(), value(1.0, level, image.normal()));
                        scores.insert(
                            format!("{reward}-twin"),
                            value(0.5, level + 0.2 * levels.normal(), image.normal()),
                        );
                    }
                    let mut image =
                        stream(Seed::new(train_seed), "pixels", u64::from(prompt) + place as u64 * 1000);
                    let bright = if method.name == "dpo-brightness" { 0.3 } else { 0.0 };
                    scores.insert("brightness".into(), 0.5 + bright + 0.1 * image.normal());
                    scores
                        .insert("drift".into(), if place == 0 { 0.0 } else { 0.05 + 0.01 * image.uniform() });
                    rows.push(Row {
                        method: method.name.clone(),
                        condition: condition.clone(),
                        train_seed,
                        prompt,
                        noise_seed: 0,
                        scores,
                        failure: None,
                    });
                }
            }
        }
    }
    let base: Vec<Row> = rows.iter().filter(|row| row.method == "base").cloned().collect();
    for (noise_seed, sign) in [(1, 1.0), (2, -1.0)] {
        rows.extend(base.iter().cloned().map(|mut row| {
            row.noise_seed = noise_seed;
            for (score, value) in &mut row.scores {
                let reward = REWARDS.iter().position(|reward| score.starts_with(reward));
                // Three images, one of them in the middle: their standard deviation is this distance.
                *value += sign * reward.map_or(0.1, |reward| SPREADS[reward]);
            }
            row
        }));
    }
    // Two images failed: one of the base, one of PPD under CLIP's user.
    for (method, condition, prompt) in [("base", "none", 3), ("ppd", "clip", 5)] {
        let row = rows
            .iter_mut()
            .find(|row| (&*row.method, &*row.condition, row.prompt) == (method, condition, prompt))
            .unwrap();
        row.scores.clear();
        row.failure = Some("a pixel is not finite".into());
    }
    rows
}

pub fn traces(design: &Design) -> Vec<Trace> {
    let mut traces = Vec::new();
    for method in design.methods.iter().filter(|method| method.role != Role::Base) {
        for train_seed in 0..SEEDS {
            let mut noise = stream(Seed::new(train_seed), "trace", 0);
            let preference = method.name != "sft";
            let steps = (0..120).step_by(4).map(|step| {
                let progress = step as f64 / 120.0;
                Step {
                    step,
                    loss: 0.693 - 0.06 * progress + 0.01 * noise.normal(),
                    margin: preference.then(|| 0.4 * progress + 0.02 * noise.normal()),
                    implicit_accuracy: preference.then(|| 0.5 + 0.15 * progress + 0.03 * noise.normal()),
                    saturation: preference.then_some(0.2 * progress * progress),
                    error_chosen: None,
                    error_rejected: None,
                    gradient_norm: 1.0 - 0.3 * progress,
                    learning_rate: 1e-4,
                }
            });
            traces.push(Trace { method: method.name.clone(), train_seed, steps: steps.collect() });
        }
    }
    traces
}

/// The whole study.
pub fn study() -> Study {
    let design = design();
    let rows = rows(&design, SEEDS, PROMPTS);
    let traces = traces(&design);
    let mut study = Study::new(design, rows);
    study.traces = traces;
    study
}

/// Compares a text with the stored one of this name; `PPD_BLESS=1` stores it anew.
pub fn snapshot(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/report").join(name);
    if std::env::var_os("PPD_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == text, "{name} changed; PPD_BLESS=1 stores it anew. Now:\n{text}");
}
