use super::*;
use crate::rng::stream;
use crate::units::Seed;

const PLAN: Plan =
    Plan { inclusion: Inclusion::Simple, scope: Scope::AskedPairs, weight: Weight::Full, level: 0.95 };

/// Twelve users of three pairs each, the first six labelled.
fn study() -> (Vec<Predicted>, Vec<Label>) {
    let predicted: Vec<Predicted> = (0..36)
        .map(|i| Predicted {
            user: i / 3,
            pair: i,
            prediction: (0.5 + 0.45 * (1.1 * i as f64).sin()).clamp(0.0, 1.0),
        })
        .collect();
    let labels = (0..18)
        .map(|i| Label {
            pair: i,
            truth: f64::from(u8::from((1.1 * i as f64).sin() + 0.4 * (0.7 * i as f64).cos() > 0.2)),
        })
        .collect();
    (predicted, labels)
}

fn corrected(predicted: &[Predicted], labels: &[Label], plan: &Plan) -> Correction {
    match Corrected::of(predicted, labels, plan).unwrap() {
        Corrected::Corrected(correction) => correction,
        Corrected::NotCorrectable { reason } => panic!("{reason:?}"),
    }
}

/// Each user's mean label and mean prediction.
fn means(predicted: &[Predicted], labels: &[Label]) -> Vec<(f64, f64)> {
    let users = labels.chunks(3).zip(predicted.chunks(3));
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / 3.0;
    users
        .map(|(y, f)| {
            (mean(y.iter().map(|y| y.truth).collect()), mean(f.iter().map(|f| f.prediction).collect()))
        })
        .collect()
}

#[test]
fn equal_users_have_the_textbooks_difference_estimator() {
    let (predicted, labels) = study();
    let found = corrected(&predicted, &labels, &PLAN);
    let users = means(&predicted, &labels);
    let overall = predicted.iter().map(|p| p.prediction).sum::<f64>() / 36.0;
    let differences: Vec<f64> = users.iter().map(|(y, f)| y - f).collect();
    let error = differences.iter().sum::<f64>() / 6.0;
    assert!((found.uncorrected - overall).abs() < 1e-12 && (found.error - error).abs() < 1e-12);
    assert!((found.estimate.value - overall - error).abs() < 1e-12);
    // (1 − m/M) s² / m, Student's t with m − 1.
    let squares = differences.iter().map(|d| (d - error).powi(2)).sum::<f64>() / 5.0;
    let half = student_quantile(0.975, 5.0) * (0.5 * squares / 6.0).sqrt();
    assert!((found.estimate.half_width() - half).abs() < 1e-12, "{found:?}");
    // The labels alone: the same with the labels for differences.
    let alone = users.iter().map(|user| user.0).sum::<f64>() / 6.0;
    assert!((found.labels_alone.value - alone).abs() < 1e-12);
    assert_eq!((found.users, found.pairs, found.lambda), ([12, 6], [36, 18], 1.0));
    // Users in general: no finite population, and the mean prediction varies too.
    let general = corrected(&predicted, &labels, &Plan { scope: Scope::Users, ..PLAN });
    assert_eq!(general.estimate.value, found.estimate.value);
    assert!(general.estimate.half_width() > found.estimate.half_width() * 2f64.sqrt() * 0.99);
}

#[test]
fn the_tuned_weight_is_a_regressions() {
    let (predicted, labels) = study();
    let found = corrected(&predicted, &labels, &Plan { weight: Weight::Tuned, ..PLAN });
    let users = means(&predicted, &labels);
    let mean = |of: fn(&(f64, f64)) -> f64| users.iter().map(of).sum::<f64>() / 6.0;
    let (y, f) = (mean(|user| user.0), mean(|user| user.1));
    let product: f64 = users.iter().map(|user| (user.0 - y) * (user.1 - f)).sum();
    let square: f64 = users.iter().map(|user| (user.1 - f).powi(2)).sum();
    assert!((found.lambda - (product / square).clamp(0.0, 1.0)).abs() < 1e-12, "{found:?}");
    let overall = found.uncorrected;
    assert!((found.estimate.value - (y + found.lambda * (overall - f))).abs() < 1e-12);
    // Predictions that say the opposite get no weight: the labels alone.
    let opposite: Vec<Predicted> =
        predicted.iter().map(|p| Predicted { prediction: 1.0 - p.prediction, ..*p }).collect();
    let none = corrected(&opposite, &labels, &Plan { weight: Weight::Tuned, ..PLAN });
    assert_eq!((none.lambda, none.estimate.value), (0.0, none.labels_alone.value));
    assert!((none.estimate.half_width() / none.labels_alone.half_width() - 1.0).abs() < 0.2);
}

#[test]
fn a_judge_that_is_never_wrong_and_a_sample_of_everybody() {
    let (predicted, _) = study();
    let predicted: Vec<Predicted> =
        predicted.iter().map(|p| Predicted { prediction: p.prediction.round(), ..*p }).collect();
    let truth = |count: usize| -> Vec<Label> {
        predicted[..count].iter().map(|p| Label { pair: p.pair, truth: p.prediction }).collect()
    };
    let right = corrected(&predicted, &truth(18), &PLAN);
    assert_eq!((right.error, right.estimate.method), (0.0, Method::Wilson));
    assert!(right.estimate.low < right.estimate.value && right.estimate.high > right.estimate.value);
    let everybody = corrected(&predicted, &truth(36), &PLAN);
    assert_eq!(everybody.estimate.half_width(), 0.0);
    assert!(everybody.estimate.note.unwrap().contains("every asked pair"));
    let general = corrected(&predicted, &truth(36), &Plan { scope: Scope::Users, ..PLAN });
    assert!(general.estimate.half_width() > 0.05);
}

#[test]
fn labels_that_cannot_correct_have_a_name() {
    let (predicted, labels) = study();
    let reason = |labels: &[Label]| match Corrected::of(&predicted, labels, &PLAN).unwrap() {
        Corrected::NotCorrectable { reason } => Some(reason),
        Corrected::Corrected(_) => None,
    };
    assert_eq!(reason(&[]), Some(Reason::NoLabels));
    let others = [labels.clone(), vec![Label { pair: 99, truth: 1.0 }]].concat();
    assert_eq!(reason(&others), Some(Reason::OtherPairs { labels: 1 }));
    assert_eq!(reason(&labels[..17]), Some(Reason::PartlyLabelled { users: 1 }));
    assert_eq!(reason(&labels[..3]), Some(Reason::OneUser));
    let printed = Corrected::of(&predicted, &others, &PLAN).unwrap().to_string();
    assert_eq!(printed, "not correctable: 1 labels are of pairs that were not asked");
    // What is wrong rather than missing is refused.
    assert!(Corrected::of(&[], &labels, &PLAN).is_err());
    assert!(Corrected::of(&[predicted.clone(), predicted.clone()].concat(), &labels, &PLAN).is_err());
    assert!(Corrected::of(&predicted, &[labels[0], labels[0]], &PLAN).is_err());
    assert!(Corrected::of(&predicted, &[Label { truth: 2.0, ..labels[0] }], &PLAN).is_err());
    assert!(Corrected::of(&predicted, &labels, &Plan { level: 1.0, ..PLAN }).is_err());
    let unknown = Plan { inclusion: Inclusion::Of(BTreeMap::from([(0, 0.5)])), ..PLAN };
    assert!(Corrected::of(&predicted, &labels, &unknown).unwrap_err().to_string().contains("user 1"));
}

#[test]
fn users_who_are_sampled_more_often_weigh_less() {
    // Users of an even number are sampled four times as often, and are the ones the judge is wrong about.
    let (mut sum, mut covered, studies) = (0.0, 0, 400);
    for study in 0..studies {
        let mut draws = stream(Seed::new(study), "unequal inclusion", 0);
        let predicted: Vec<Predicted> =
            (0..480).map(|i| Predicted { user: i / 4, pair: i, prediction: 0.5 }).collect();
        let preferred = |pair: u64| if (pair / 4).is_multiple_of(2) { 0.9 } else { 0.5 };
        let (mut labels, mut inclusion) = (Vec::new(), BTreeMap::new());
        let truths: Vec<f64> =
            (0..480).map(|pair| f64::from(u8::from(draws.chance(preferred(pair))))).collect();
        for user in 0..120 {
            let probability = if user % 2 == 0 { 0.8 } else { 0.2 };
            if draws.chance(probability) {
                inclusion.insert(user, probability);
                labels.extend(
                    (4 * user..4 * user + 4).map(|pair| Label { pair, truth: truths[pair as usize] }),
                );
            }
        }
        let found = corrected(&predicted, &labels, &Plan { inclusion: Inclusion::Of(inclusion), ..PLAN });
        let truth = truths.iter().sum::<f64>() / 480.0;
        sum += found.estimate.value - truth;
        covered += i32::from(found.estimate.covers(truth));
    }
    // Without weights the mean would be too high by 0.12.
    assert!((sum / studies as f64).abs() < 0.01, "{}", sum / studies as f64);
    assert!(f64::from(covered) > 0.92 * studies as f64, "{covered}");
}
