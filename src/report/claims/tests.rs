use super::super::testing;
use super::*;

/// The claims of the synthetic study.
pub fn claims() -> Vec<Claim> {
    let rewards = || testing::REWARDS.map(String::from).to_vec();
    let claim = |id: &str, test: Test| Claim {
        id: id.into(),
        text: format!("Claim {id}."),
        test,
        control: id.starts_with("control"),
    };
    let higher = |method: &str, over: &str, smallest_effect: f64, expected: Expected| Test::HigherMean {
        method: method.into(),
        condition: None,
        over: over.into(),
        rewards: rewards(),
        smallest_effect,
        expected,
    };
    let specialists = rewards().into_iter().map(|reward| (reward.clone(), format!("dpo-{reward}"))).collect();
    vec![
        claim("over-base", higher("ppd", "base", 0.1, Expected::Greater)),
        claim("base-over-ppd", higher("base", "ppd", 0.1, Expected::Greater)),
        claim("less-than-ppd", higher("base", "ppd", 0.1, Expected::Less)),
        claim("sft-over-base", higher("sft", "base", 0.02, Expected::Greater)),
        claim(
            "wins",
            Test::WinRate {
                method: "ppd".into(),
                over: "dpo".into(),
                rewards: rewards(),
                smallest_effect: 0.05,
                expected: Expected::Greater,
            },
        ),
        claim("diagonal", Test::Diagonal { method: "ppd".into(), rewards: rewards(), smallest_effect: 0.1 }),
        claim("keeps-up", Test::NonInferior { method: "ppd".into(), specialists, margin: 0.5 }),
        claim("interpolates", Test::Correlation { method: "ppd".into(), rewards: rewards(), least: 0.6 }),
        claim(
            "control-labels",
            Test::NoEffect {
                method: "ppd-shuffled-labels".into(),
                over: "base".into(),
                rewards: rewards(),
                largest_effect: 0.4,
            },
        ),
        claim(
            "control-users",
            Test::NoDiagonal { method: "ppd-shuffled-users".into(), rewards: rewards(), largest_effect: 0.4 },
        ),
        claim(
            "control-learned",
            Test::NoDiagonal { method: "ppd".into(), rewards: rewards(), largest_effect: 0.2 },
        ),
        claim(
            "control-brightness",
            Test::HigherMean {
                method: "dpo-brightness".into(),
                condition: None,
                over: "base".into(),
                rewards: vec!["brightness".into()],
                smallest_effect: 0.5,
                expected: Expected::Greater,
            },
        ),
    ]
}

fn verdicts() -> Vec<(String, Option<Verdict>)> {
    judge(&testing::study()).unwrap().into_iter().map(|one| (one.claim.id, one.verdict)).collect()
}

#[test]
fn planted_truths_hold_and_their_opposites_do_not() {
    let verdicts = verdicts();
    let of = |id: &str| verdicts.iter().find(|(known, _)| known == id).unwrap().1.unwrap();
    for id in [
        "over-base",
        "less-than-ppd",
        "wins",
        "diagonal",
        "keeps-up",
        "interpolates",
        "control-labels",
        "control-users",
        "control-brightness",
    ] {
        assert_eq!(of(id), Verdict::Holds, "{id}");
    }
    for id in ["base-over-ppd", "control-learned"] {
        assert_eq!(of(id), Verdict::DoesNotHold, "{id}");
    }
    // Planted at 0.1, half of that on the twins, against a seed's noise of 0.1: six seeds cannot tell.
    assert_eq!(of("sft-over-base"), Verdict::Underpowered);
}

#[test]
fn a_reward_whose_twin_disagrees_does_not_hold() {
    let design = testing::design();
    let mut rows = testing::rows(&design, testing::SEEDS, testing::PROMPTS);
    for row in rows.iter_mut().filter(|row| row.method == "ppd") {
        // The twin of HPS sees nothing of what PPD gained.
        if let Some(score) = row.scores.get_mut("hps-twin") {
            *score -= 9.0;
        }
    }
    let hacked = Study::new(design, rows);
    let judged = judge(&hacked).unwrap();
    let claim = judged.iter().find(|one| one.claim.id == "over-base").unwrap();
    assert_ne!(claim.verdict, Some(Verdict::Holds));
    let reward = claim.parts.iter().find(|part| part.name.starts_with("HPS:")).unwrap();
    let twin = claim.parts.iter().find(|part| part.name.starts_with("HPS twin:")).unwrap();
    assert!(reward.verdict == Verdict::Holds && twin.verdict == Verdict::DoesNotHold, "{twin:?}");
}

#[test]
fn the_number_of_claims_counts() {
    let study = testing::study();
    let judged = judge(&study).unwrap();
    let count = judged.len() as f64;
    let one = judged.iter().find(|one| one.claim.id == "wins").unwrap();
    let raw = one.parts.iter().map(|part| part.p).fold(0.0, f64::max);
    assert!(one.adjusted_p.unwrap() >= raw && one.adjusted_p.unwrap() <= raw * count + 1e-12);
    assert_eq!(one.parts.len(), 6, "three rewards and their twins");
    let brightness = judged.iter().find(|one| one.claim.id == "control-brightness").unwrap();
    assert_eq!(brightness.parts.len(), 1, "measured pixels have no twin");
}

#[test]
fn missing_rows_give_no_verdict() {
    let study = testing::study();
    let rows = study.rows().iter().filter(|row| row.method != "sft").cloned().collect();
    let judged = judge(&Study::new(study.design.clone(), rows)).unwrap();
    let one = judged.iter().find(|one| one.claim.id == "sft-over-base").unwrap();
    assert!(one.verdict.is_none() && one.missing.as_ref().unwrap().contains("no rows of sft under clip"));
}
