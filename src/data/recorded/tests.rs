use super::*;
use crate::data::pick_a_pic::Writer;
use crate::image::{Format, encode};
use crate::pixels::Image;
use crate::units::Digest;

/// Users 0 to 39 with twenty pairs each, two under each caption; every seventh is a tie, and pair 33 is torn.
fn pairs() -> Vec<Preference> {
    let picture = |shade: usize| encode(&Image::new(2, 2, vec![shade as u8; 12]), Format::Png).unwrap();
    let one = |number: usize| {
        let (user, own) = (number / 20, number % 20);
        let second = if number == 33 { b"torn".to_vec() } else { picture(number + 1) };
        Preference {
            caption: format!("User {user}'s  caption {}", own / 2),
            images: Some([picture(number), second]),
            label: Some(match number % 7 {
                0 => [0.5, 0.5],
                odd if odd % 2 == 1 => [1.0, 0.0],
                _ => [0.0, 1.0],
            }),
            user_id: Some(1000 + user as i64),
            image_uids: [Some(format!("{number}-0")), Some(format!("{number}-1"))],
            ..Preference::default()
        }
    };
    (0..800).map(one).collect()
}

fn album(folder: &std::path::Path, pairs: &[Preference]) -> Album {
    let path = folder.join("pairs.parquet");
    let mut writer = Writer::create(&path).unwrap();
    writer.write(pairs).unwrap();
    writer.finish().unwrap();
    Album::open(&path, Digest::of(b"pairs")).unwrap()
}

fn config() -> Config {
    Config {
        seed: Seed::new(3),
        shares: Shares { unseen_users: 0.25, validation: 0.0, held_out: 0.5 },
        seen: 8,
        unseen: 5,
        told: 4,
        asked: 1,
        learned: 6,
    }
}

#[test]
fn nothing_told_or_asked_is_learned_and_everybody_has_enough() {
    let folder = tempfile::tempdir().unwrap();
    let (pairs, config) = (pairs(), config());
    let album = album(folder.path(), &pairs);
    let mut states = States::open(&album, folder.path()).unwrap();
    let everybody = gather(&pairs, (&album, &mut states), &config, &Progress::silent()).unwrap();
    let caption = |choice: &Choice| pairs[choice.pair].caption.as_str();
    let learned: BTreeSet<&str> = everybody.values().flat_map(|of| &of.learned).map(caption).collect();
    let (mut looked_at, mut ids) = (0, BTreeSet::new());
    for (number, of) in &everybody {
        assert!(ids.insert(of.user_id), "each is one user");
        let all = [&of.told, &of.asked, &of.learned].into_iter().flatten();
        for choice in all {
            let pair = &pairs[choice.pair];
            assert_eq!((choice.user, Some(of.user_id)), (*number, pair.user_id));
            assert_eq!(pair.choice().and_then(crate::data::Choice::side), Some(choice.chosen), "no tie");
            assert_ne!(choice.pair, 33, "a torn picture is nobody's choice");
        }
        if of.told.is_empty() {
            assert!((8..FIRST_UNSEEN).contains(number) && of.asked.is_empty() && !of.learned.is_empty());
            continue;
        }
        looked_at += 1;
        assert_eq!((of.told.len(), of.asked.len()), (4, 1));
        assert!(of.told.iter().all(|told| caption(told) != caption(&of.asked[0])));
        assert!(of.told.iter().chain(&of.asked).all(|choice| !learned.contains(caption(choice))));
        assert_eq!(of.learned.is_empty(), *number >= FIRST_UNSEEN, "of unseen users nothing is learned");
        assert!(of.learned.len() <= 6);
    }
    assert_eq!(looked_at, 13);
    assert!(
        everybody.keys().filter(|number| **number < FIRST_UNSEEN).count() > 20,
        "all others are learned from"
    );
    let mut again = States::open(&album, folder.path()).unwrap();
    assert_eq!(
        gather(&pairs, (&album, &mut again), &config, &Progress::silent()).unwrap(),
        everybody,
        "the same seed, the same people"
    );
    let other = Config { seed: Seed::new(4), ..config };
    assert_ne!(gather(&pairs, (&album, &mut again), &other, &Progress::silent()).unwrap(), everybody);
}

#[test]
fn too_few_users_are_refused_with_how_many_have_how_many() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = pairs();
    let album = album(folder.path(), &pairs);
    let mut states = States::open(&album, folder.path()).unwrap();
    for (config, parts) in [
        (Config { unseen: 30, ..config() }, ["users.unseen asks for 30", "5 or more", "unseen_users"]),
        (Config { seen: 31, told: 12, ..config() }, ["users.seen asks for 31", "12 to be told", "held_out"]),
    ] {
        let fault =
            gather(&pairs, (&album, &mut states), &config, &Progress::silent()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| fault.contains(part)), "{fault}");
    }
    let mut most = |count, least| {
        let enough = move |choices: &[Choice]| choices.len() >= least;
        with_enough(&pairs, (&album, &mut states), (Seed::new(1), count, 12), enough, &Progress::silent())
    };
    let found = most(30, 12).unwrap();
    assert_eq!(found.len(), 30);
    assert!(found.iter().all(|of| of.learned.len() == 12));
    let fault = most(41, 12).unwrap_err().to_string();
    assert!(fault.contains("40 users") && fault.contains("users.count is 41"), "{fault}");
    assert!(most(3, 19).unwrap_err().to_string().contains("0 users"));
}
