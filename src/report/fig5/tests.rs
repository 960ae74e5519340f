use std::path::Path;

use super::people::ALIGNMENT;
use super::*;
use crate::record::Row;
use crate::report::study::Design;
use crate::scenes::measure::Measured;
use crate::spec::users::condition;
use crate::spec::{Request, Spec};

fn design() -> Design {
    let request = Request {
        study: "users".into(),
        experiments: Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments"),
        // Another seed of users in the study changes nothing here.
        set: vec!["users.evaluated=12".into(), "users.seed=5".into()],
        ..Request::default()
    };
    Design::of(&Spec::load(&request).unwrap()).unwrap()
}

/// An image whose every statistic lies `by` deviations from the samples' mean in the direction of `weights`.
fn row(
    method: &str,
    condition: &str,
    prompt: u32,
    noise_seed: u64,
    weights: Option<&Features>,
    by: f64,
) -> Row {
    let scores = Measured::NAMES.iter().enumerate().map(|(k, name)| {
        let along = weights.map_or(0.0, |weights| by * weights[k]);
        ((*name).to_owned(), SAMPLES.mean[k] + SAMPLES.deviation[k] * along)
    });
    let alignment = 0.7 + 0.2 * weights.map_or(0.0, |weights| by * weights[7]);
    Row {
        method: method.into(),
        condition: condition.into(),
        prompt,
        noise_seed,
        scores: scores.chain([(ALIGNMENT.to_owned(), alignment)]).collect(),
        ..Row::default()
    }
}

fn study(by: f64) -> Study {
    let design = design();
    let users = design.people.clone().unwrap();
    let population = Tastes::new(users.seed, tastes::Config::desk(SAMPLES));
    let everybody: Vec<i64> = users.evaluated(Kind::Seen).chain(users.evaluated(Kind::Unseen)).collect();
    let mut rows = Vec::new();
    for prompt in 0..4 {
        for &noise in &design.noise_seeds {
            for method in ["base", "dpo"] {
                rows.push(row(method, "none", prompt, noise, None, 0.0));
            }
            rows.push(row("ppd", MEAN_USER, prompt, noise, None, 0.0));
            for &user in &everybody {
                let weights = users::taste(&population, user).weights;
                rows.push(row("ppd", &condition(user).to_string(), prompt, noise, Some(&weights), by));
            }
        }
    }
    Study::new(design, rows)
}

#[test]
fn images_along_a_taste_are_preferred_as_bradley_terry_says() {
    let study = study(0.25);
    let users = study.design.people.clone().unwrap();
    let people = People::new(&study, &users);
    let over_base = |kind| {
        let [probability, sign] =
            people.compared("ppd", &Over::Method("base".into()), kind).unwrap().unwrap();
        assert_eq!(sign.mean(), 1.0);
        probability.mean()
    };
    // A quarter of weights whose squares sum to four raises the utility by one.
    let expected = |kind| {
        let of = |id: &i64| {
            let lapse = people.tastes[id].lapse;
            (1.0 - lapse) / (1.0 + (-1.0f64).exp()) + lapse / 2.0
        };
        let who = people.of_kind(kind);
        who.iter().map(of).sum::<f64>() / who.len() as f64
    };
    for kind in KINDS {
        assert!((over_base(kind) - expected(kind)).abs() < 1e-9, "{kind:?}");
    }
    let other = |over| people.compared("ppd", &over, None).unwrap().unwrap()[0].mean();
    assert!(other(Over::Farthest) > other(Over::Mismatched) && other(Over::Mismatched) > 0.55);
    // The mean over ordered pairs, counted out.
    let method = people.study.design.method("ppd").unwrap();
    let who = people.of_kind(None);
    let pairs = who.iter().flat_map(|user| who.iter().map(move |other| (*user, *other)));
    let pairs: Vec<f64> = pairs
        .filter(|(user, other)| user != other)
        .map(|(user, other)| {
            let [own, others] = [user, other].map(|whose| people.images(method, whose).unwrap());
            own.iter()
                .map(|(key, a)| people.tastes[&user].prefers(&a[&0].unwrap(), &others[key][&0].unwrap()))
                .sum::<f64>()
                / own.len() as f64
        })
        .collect();
    assert!((other(Over::Others) - pairs.iter().sum::<f64>() / pairs.len() as f64).abs() < 1e-9);
    let output = render(&study).unwrap().unwrap();
    assert_eq!(output.figures.len(), 2);
    let claims = &output.tables[1].1;
    assert_eq!(claims.rows.len(), 3);
    assert!(holds(&study).unwrap());
    for figure in &output.figures {
        assert_eq!(super::super::panel::faults(&figure.scene), Vec::<String>::new());
    }
}

#[test]
fn trainings_are_compared_with_the_rivals_of_their_seed_and_with_the_one_base() {
    let (moved, still) = (study(0.25), study(0.0));
    let users = moved.design.people.clone().unwrap();
    let single = People::new(&moved, &users).compared("ppd", &Over::Method("base".into()), None);
    let ahead = single.unwrap().unwrap()[0].mean();
    // The second training's images are the base's.
    let seeded = |rows: &[Row], seed: u64| -> Vec<Row> {
        let trained = rows.iter().filter(|row| row.method != "base");
        trained.map(|row| Row { train_seed: seed, ..row.clone() }).collect()
    };
    let base = moved.rows().iter().filter(|row| row.method == "base").cloned();
    let rows = [base.collect(), seeded(moved.rows(), 1), seeded(still.rows(), 2)].concat();
    let both = Study::new(design(), rows);
    let people = People::new(&both, &users);
    for rival in ["base", "dpo"] {
        let [probability, sign] = people.compared("ppd", &Over::Method(rival.into()), None).unwrap().unwrap();
        assert!((probability.mean() - (ahead + 0.5) / 2.0).abs() < 1e-12, "{rival}");
        assert!((sign.mean() - 0.75).abs() < 1e-12, "{rival}");
    }
    // Judges are asked about the first training's images.
    let asked = |study: &Study| -> Vec<Option<f64>> {
        questions(study).into_iter().map(|one| one.probability).collect()
    };
    assert_eq!(asked(&both), asked(&moved));
}

#[test]
fn images_that_are_the_bases_are_preferred_by_nobody() {
    let study = study(0.0);
    let users = study.design.people.clone().unwrap();
    let people = People::new(&study, &users);
    for over in [Over::Method("base".into()), Over::Others, Over::Mismatched, Over::Farthest] {
        let [probability, sign] = people.compared("ppd", &over, None).unwrap().unwrap();
        assert!((probability.mean() - 0.5).abs() < 1e-12 && sign.mean() == 0.5, "{over:?}");
    }
    assert!(!holds(&study).unwrap());
}

#[test]
fn nobody_is_shown_her_own_images_as_anothers() {
    let study = study(0.0);
    let users = study.design.people.clone().unwrap();
    let people = People::new(&study, &users);
    let who = people.of_kind(None);
    for over in [Over::Mismatched, Over::Farthest] {
        let others = people.others(&who, &over);
        assert_eq!(others.len(), who.len());
        assert!(others.iter().all(|(user, other)| user != other));
    }
    let shown: std::collections::BTreeSet<i64> =
        people.others(&who, &Over::Mismatched).into_values().collect();
    assert_eq!(shown.len(), who.len(), "a derangement shows everybody's images once");
}
