use super::*;
use crate::data::labels::{agreement, raw_choices, reward_choices};
use crate::data::pick_a_pic::Columns;
use crate::data::scores::Scores;
use crate::scenes::population::{Config, Kind};
use crate::scenes::{Split, Style, render, sample_scene};

const JURY: Jury = Jury { users: 40, seed: Seed::new(3) };

/// Pairs of renders: the second of each shows another scene than the caption's half of the time.
fn renders(count: usize) -> Vec<Pair> {
    let mut s = stream(Seed::new(1), "desk-test", 0);
    let weights = [1.0, 0.0, 0.0];
    (0..count)
        .map(|index| {
            let scene = sample_scene(&mut s, weights, Split::Train);
            let other =
                if s.chance(0.5) { scene.clone() } else { sample_scene(&mut s, weights, Split::Train) };
            let samples = [&scene, &other].map(|shown| {
                let style = Style::sample(&mut s);
                Sample {
                    image: render(shown, &style, &mut s),
                    model: "renderer".into(),
                    origin: format!("index={index}"),
                }
            });
            Pair { caption: scene.caption(), samples }
        })
        .collect()
}

#[test]
fn users_choose_what_they_like_and_rows_are_complete() {
    let judged = judge(&renders(400), Format::Jpeg(95)).unwrap();
    let population = Population::new(Seed::new(7), Kind::Pick);
    let rows = preferences(&judged, &population, JURY);
    let mut utility = Scores::new();
    let mut aligned = Scores::new();
    let sides = |pair: &Judged| {
        let user = population.mean_user();
        [0, 1].map(|side| population.utility(&user, &pair.measured[side], pair.alignment[side]))
    };
    utility.insert("utility", judged.iter().map(sides).collect()).unwrap();
    aligned.insert("alignment", judged.iter().map(|pair| pair.alignment).collect()).unwrap();
    let share = |scores: &Scores| {
        let reward = scores.rewards()[0].clone();
        let counted = agreement(&raw_choices(&rows), &reward_choices(scores, &reward).unwrap());
        (counted.fraction().unwrap(), counted.both as f64)
    };
    for scores in [&utility, &aligned] {
        let (drawn, count) = share(scores);
        let values = scores.get(&scores.rewards()[0]).unwrap();
        let expected = expected_agreement(&judged, values, &population, JURY).unwrap();
        // Four standard errors of a share near one half.
        assert!((drawn - expected).abs() < 4.0 * 0.5 / count.sqrt(), "{drawn} against {expected}");
        assert!(expected > 0.55, "users prefer what the mean user likes, and aligned pictures: {expected}");
    }
    let users: std::collections::BTreeSet<i64> = rows.iter().filter_map(|row| row.user_id).collect();
    assert_eq!(users, (0..40).collect(), "each of 40 users meets some of 400 pairs");
    for row in &rows {
        let best = row.best_image_uid.as_deref().unwrap();
        match row.choice().unwrap() {
            Choice::Side(side) => assert_eq!(Some(best), row.image_uids[side].as_deref()),
            Choice::Tie => assert_eq!(best, "tie"),
        }
    }
}

#[test]
fn pairs_are_made_again_to_the_byte_and_judged_from_the_file_alone() {
    let pairs = renders(20);
    let judged = judge(&pairs, Format::Jpeg(95)).unwrap();
    let population = Population::new(Seed::new(7), Kind::Pick);
    let rows = preferences(&judged, &population, JURY);
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("a.parquet"), folder.path().join("b.parquet"));
    write(&one, &rows).unwrap();
    write(&two, &preferences(&judge(&pairs, Format::Jpeg(95)).unwrap(), &population, JURY)).unwrap();
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    let back = pick_a_pic::read(&one, Columns::All).unwrap();
    assert_eq!(back, rows);
    for (row, pair) in back.iter().zip(&judged) {
        let image = row.image(1, &one).unwrap();
        assert_eq!(crate::scenes::measure::measure(&image), pair.measured[1]);
    }
}

#[test]
fn a_jury_keeps_its_users_when_tastes_change() {
    let judged = judge(&renders(30), Format::Png).unwrap();
    let users = |kind: Kind| -> Vec<Option<i64>> {
        let rows = preferences(&judged, &Population::new(Seed::new(7), kind), JURY);
        rows.iter().map(|row| row.user_id).collect()
    };
    assert_eq!(users(Kind::Hps), users(Kind::Pick));
    let fitted = reference(&judged);
    assert!(fitted.deviation.iter().all(|deviation| *deviation > 0.0));
}

#[test]
fn captions_of_no_scene_are_refused() {
    let mut pairs = renders(1);
    pairs[0].caption = "a photograph of an astronaut".into();
    let message = judge(&pairs, Format::Png).unwrap_err().to_string();
    assert!(message.contains("astronaut") && message.contains("grammar"), "{message}");
}

#[test]
fn a_calibrated_population_agrees_as_asked() {
    use super::calibrate::{Target, calibrate};
    let judged = judge(&renders(300), Format::Png).unwrap();
    let start = Config { reference: reference(&judged), ..Config::of(Kind::Pick) };
    // Rewards that stand for alignment, the raters' taste and the utility of the users behind HPS.
    let users = Population::new(Seed::new(1), Kind::Hps);
    let mut scores = Scores::new();
    let rated = |pair: &Judged| pair.measured.map(|measured| population::aesthetic(&measured));
    let utility = |pair: &Judged| {
        [0, 1].map(|side| users.utility(&users.mean_user(), &pair.measured[side], pair.alignment[side]))
    };
    scores.insert("clip", judged.iter().map(|pair| pair.alignment).collect()).unwrap();
    scores.insert("aesthetic", judged.iter().map(rated).collect()).unwrap();
    scores.insert("hps", judged.iter().map(utility).collect()).unwrap();
    let targets = [("clip", 0.57), ("aesthetic", 0.51), ("hps", 0.59)]
        .map(|(reward, agreement)| Target { reward, agreement });
    let config = calibrate(&judged, &scores, &start, JURY, &targets).unwrap();
    let population = Population::with(JURY.seed, Kind::Pick, config.clone());
    for target in targets {
        let sides = scores.get(target.reward).unwrap();
        let got = expected_agreement(&judged, sides, &population, JURY).unwrap();
        assert!((got - target.agreement).abs() < 0.01, "{}: {got}", target.reward);
    }
    assert_eq!(calibrate(&judged, &scores, &start, JURY, &targets).unwrap(), config, "no luck in it");
    assert_eq!(calibrate(&judged, &Scores::new(), &start, JURY, &targets).unwrap(), start);
}
