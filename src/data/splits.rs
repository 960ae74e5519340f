//! Four parts of a preference data set without leaks: training, validation, seen users with captions held out, and
//! unseen users with captions held out (the paper, Sec. 5.2; its sizes are not published).
//!
//! What must not be in two parts is the caption and the picture: pairs that share either, directly or through others,
//! are one piece and go to one part. Unseen users are in their own part alone; users of the other parts are all in
//! training. Everything is drawn by user and by piece from a seed, never by the order of the rows, and what fits into no
//! part is counted with its reason.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::data::Preference;
use crate::error::{Error, Result};
use crate::rng::stream;
use crate::units::Seed;

/// How large the parts are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What everything is drawn from.
    pub seed: Seed,
    /// The share of users that training never sees.
    pub unseen_users: f64,
    /// The share of the seen users' captions that go to validation.
    pub validation: f64,
    /// The share of the seen users' captions that are held out to test.
    pub held_out: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { seed: Seed::new(0), unseen_users: 0.05, validation: 0.05, held_out: 0.05 }
    }
}

/// One part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// What methods train on.
    Train,
    /// What settings are chosen on: training's users, other captions.
    Validation,
    /// Training's users, captions held out.
    SeenUsers,
    /// Users that training never saw, captions held out.
    UnseenUsers,
}

impl Part {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Train, Self::Validation, Self::SeenUsers, Self::UnseenUsers];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::SeenUsers => "seen users, captions held out",
            Self::UnseenUsers => "unseen users, captions held out",
        }
    }
}

/// Why a pair is in no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftOut {
    /// Nobody is named who chose.
    NoUser,
    /// An unseen user's, but its caption or picture is among seen users' too, who have more pairs with it.
    SharedWithSeen,
    /// A seen user's, but its caption or picture is among unseen users' too, who have more pairs with it.
    SharedWithUnseen,
    /// Its user has no pair left in training.
    UserNotInTraining,
}

impl LeftOut {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::NoUser, Self::SharedWithSeen, Self::SharedWithUnseen, Self::UserNotInTraining];

    /// What to say of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoUser => "no user named",
            Self::SharedWithSeen => "unseen user, but caption or picture shared with seen users",
            Self::SharedWithUnseen => "seen user, but caption or picture shared with unseen users",
            Self::UserNotInTraining => "user without a pair in training",
        }
    }
}

/// Half of a SHA-256: enough to tell captions and pictures apart, and small.
type Key = [u8; 16];

/// What of a pair decides where it goes: 72 bytes, and while parts are assigned about 200, so a million fit anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    user: Option<i64>,
    caption: Key,
    images: [Option<Key>; 2],
}

impl Row {
    /// The row of a pair. Captions that differ in case or in white space alone are the same.
    pub fn of(pair: &Preference) -> Self {
        let words: Vec<&str> = pair.caption.split_whitespace().collect();
        let image = |side: usize| {
            let uid = pair.image_uids[side].as_deref().filter(|uid| !uid.is_empty());
            uid.or(pair.image_urls[side].as_deref().filter(|url| !url.is_empty()))
                .map(|name| key(name.as_bytes()))
        };
        Self {
            user: pair.user_id,
            caption: key(words.join(" ").to_lowercase().as_bytes()),
            images: [image(0), image(1)],
        }
    }

    /// Whether both pictures have a name, so that a leak of them would be seen.
    pub fn names_images(&self) -> bool {
        self.images.iter().all(Option::is_some)
    }
}

fn key(bytes: &[u8]) -> Key {
    let digest = Sha256::digest(bytes);
    let mut key = Key::default();
    key.copy_from_slice(&digest[..16]);
    key
}

/// Where each pair goes, in the order of the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// The part of each pair, or why it is in none.
    pub parts: Vec<std::result::Result<Part, LeftOut>>,
}

impl Splits {
    /// The places of a part's pairs.
    pub fn places(&self, part: Part) -> impl Iterator<Item = usize> {
        self.parts.iter().enumerate().filter(move |(_, found)| **found == Ok(part)).map(|(place, _)| place)
    }

    /// How many pairs are in a part.
    pub fn count(&self, part: Part) -> usize {
        self.places(part).count()
    }

    /// How many pairs are left out, by reason; reasons without a pair are there with 0.
    pub fn left_out(&self) -> BTreeMap<LeftOut, usize> {
        let mut counts: BTreeMap<LeftOut, usize> = LeftOut::ALL.iter().map(|reason| (*reason, 0)).collect();
        for reason in self.parts.iter().filter_map(|part| part.err()) {
            *counts.entry(reason).or_default() += 1;
        }
        counts
    }
}

/// Sets of rows that grow together.
struct Pieces {
    parents: Vec<u32>,
}

impl Pieces {
    fn root(&mut self, mut row: u32) -> u32 {
        while self.parents[row as usize] != row {
            let above = self.parents[self.parents[row as usize] as usize];
            self.parents[row as usize] = above;
            row = above;
        }
        row
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b) as usize] = a.min(b);
    }
}

/// Distributes pairs over the parts.
///
/// # Errors
/// [`Error::Spec`] where a share is out of range or no seen user's caption is left for training.
pub fn assign(rows: &[Row], config: &Config) -> Result<Splits> {
    let shares = [config.unseen_users, config.validation, config.held_out];
    if shares.iter().any(|share| !(0.0..1.0).contains(share)) || config.validation + config.held_out >= 1.0 {
        return Err(Error::Spec(format!(
            "the shares of unseen users, validation and held-out captions must be in [0, 1), the last two less than 1 \
             together; got {shares:?}"
        )));
    }
    if u32::try_from(rows.len()).is_err() {
        return Err(Error::Spec(format!("at most {} pairs can be split, got {}", u32::MAX, rows.len())));
    }
    let mut pieces = Pieces { parents: (0..rows.len() as u32).collect() };
    let mut first: HashMap<(bool, Key), u32> = HashMap::with_capacity(2 * rows.len());
    for (place, row) in rows.iter().enumerate() {
        let keys =
            std::iter::once((false, row.caption)).chain(row.images.iter().flatten().map(|key| (true, *key)));
        for key in keys {
            let before = *first.entry(key).or_insert(place as u32);
            pieces.join(before, place as u32);
        }
    }
    drop(first);
    let unseen: BTreeSet<i64> = users(rows)
        .into_iter()
        .filter(|user| stream(config.seed, "unseen user", *user as u64).chance(config.unseen_users))
        .collect();
    // Of each piece: its smallest caption, which names it whatever the order, and whose pairs it has.
    let mut told: HashMap<u32, (Key, [usize; 2])> = HashMap::new();
    for (place, row) in rows.iter().enumerate() {
        let piece = told.entry(pieces.root(place as u32)).or_insert((row.caption, [0, 0]));
        piece.0 = piece.0.min(row.caption);
        if let Some(user) = row.user {
            piece.1[usize::from(unseen.contains(&user))] += 1;
        }
    }
    let part_of = |(name, [seen, not_seen]): (Key, [usize; 2])| {
        if not_seen > seen {
            return Part::UnseenUsers;
        }
        let [a, b, c, d, e, f, g, h, ..] = name;
        let drawn = stream(config.seed, "caption", u64::from_le_bytes([a, b, c, d, e, f, g, h])).uniform();
        match drawn {
            u if u < config.validation => Part::Validation,
            u if u < config.validation + config.held_out => Part::SeenUsers,
            _ => Part::Train,
        }
    };
    let mut parts: Vec<std::result::Result<Part, LeftOut>> = Vec::with_capacity(rows.len());
    for (place, row) in rows.iter().enumerate() {
        let part = part_of(told[&pieces.root(place as u32)]);
        parts.push(match row.user {
            None => Err(LeftOut::NoUser),
            Some(user) => match (unseen.contains(&user), part == Part::UnseenUsers) {
                (true, false) => Err(LeftOut::SharedWithSeen),
                (false, true) => Err(LeftOut::SharedWithUnseen),
                _ => Ok(part),
            },
        });
    }
    let trained: BTreeSet<i64> = parts
        .iter()
        .zip(rows)
        .filter(|(part, _)| **part == Ok(Part::Train))
        .filter_map(|(_, row)| row.user)
        .collect();
    for (part, row) in parts.iter_mut().zip(rows) {
        let seen = matches!(part, Ok(Part::Validation | Part::SeenUsers));
        if seen && !row.user.is_some_and(|user| trained.contains(&user)) {
            *part = Err(LeftOut::UserNotInTraining);
        }
    }
    if trained.is_empty() && !rows.is_empty() {
        return Err(Error::Spec(format!(
            "no pair of {} is left for training: {} have no user, {} users are unseen; lower the shares, or give data \
             with user_id",
            rows.len(),
            parts.iter().filter(|part| **part == Err(LeftOut::NoUser)).count(),
            unseen.len()
        )));
    }
    Ok(Splits { parts })
}

/// All users.
fn users(rows: &[Row]) -> BTreeSet<i64> {
    rows.iter().filter_map(|row| row.user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of a few users who share captions and pictures now and then.
    fn made(seed: u64, count: usize, captions: usize, images: usize) -> Vec<Preference> {
        let mut s = stream(Seed::new(seed), "splits test", 0);
        (0..count)
            .map(|place| {
                let user = s.below(40);
                // Mostly a user's own captions and a caption's own pictures.
                let own = if s.chance(0.9) { user * 1000 + s.below(captions) } else { s.below(captions) };
                let image = |s: &mut crate::rng::Stream| {
                    if s.chance(0.97) {
                        format!("c{own}-{}", s.below(images))
                    } else {
                        format!("x{}", s.below(50))
                    }
                };
                Preference {
                    caption: format!("Caption {own}{}", if s.chance(0.3) { " " } else { "" }),
                    user_id: (!s.chance(0.02)).then_some(user as i64 - 5),
                    image_uids: [Some(image(&mut s)), (place % 9 > 0).then(|| image(&mut s))],
                    ..Preference::default()
                }
            })
            .collect()
    }

    #[test]
    fn no_caption_picture_or_unseen_user_is_in_two_parts() {
        for seed in 0..30 {
            let pairs = made(seed, 200 + 40 * seed as usize, 3 + seed as usize, 4);
            let rows: Vec<Row> = pairs.iter().map(Row::of).collect();
            let config = Config { seed: Seed::new(seed), unseen_users: 0.2, validation: 0.15, held_out: 0.2 };
            let splits = assign(&rows, &config).unwrap();
            let mut captions: BTreeMap<String, Part> = BTreeMap::new();
            let mut images: BTreeMap<&str, Part> = BTreeMap::new();
            let mut users: BTreeMap<Part, BTreeSet<i64>> = BTreeMap::new();
            for (pair, part) in pairs.iter().zip(&splits.parts) {
                let Ok(part) = part else { continue };
                let caption = pair.caption.trim().to_lowercase();
                assert_eq!(*captions.entry(caption).or_insert(*part), *part, "seed {seed}: {}", pair.caption);
                for uid in pair.image_uids.iter().flatten() {
                    assert_eq!(*images.entry(uid).or_insert(*part), *part, "seed {seed}: {uid}");
                }
                users.entry(*part).or_default().extend(pair.user_id);
            }
            let of = |part| users.get(&part).cloned().unwrap_or_default();
            let trained = of(Part::Train);
            assert!(of(Part::Validation).is_subset(&trained) && of(Part::SeenUsers).is_subset(&trained));
            assert!(of(Part::UnseenUsers).is_disjoint(&trained));
            let kept: usize = Part::ALL.iter().map(|part| splits.count(*part)).sum();
            assert_eq!(
                kept + splits.left_out().values().sum::<usize>(),
                pairs.len(),
                "nothing is lost silently"
            );
            assert!(splits.count(Part::Train) > 0 && splits.count(Part::UnseenUsers) > 0);
        }
    }

    #[test]
    fn the_order_of_the_rows_changes_nothing_and_the_seed_does() {
        let pairs = made(3, 800, 12, 4);
        let rows: Vec<Row> = pairs.iter().map(Row::of).collect();
        let splits = assign(&rows, &Config::default()).unwrap();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        stream(Seed::new(1), "order", 0).shuffle(&mut order);
        let shuffled: Vec<Row> = order.iter().map(|&place| rows[place]).collect();
        let again = assign(&shuffled, &Config::default()).unwrap();
        for (place, part) in order.iter().zip(&again.parts) {
            assert_eq!(*part, splits.parts[*place]);
        }
        let other = assign(&rows, &Config { seed: Seed::new(1), ..Config::default() }).unwrap();
        assert_ne!(other, splits);
    }

    #[test]
    fn shares_are_kept_roughly_and_checked() {
        // Every user has captions of their own: nothing is shared.
        let pairs: Vec<Preference> = (0..20_000i64)
            .map(|place| Preference {
                caption: format!("caption {place}"),
                user_id: Some(place % 500),
                image_uids: [Some(format!("a{place}")), Some(format!("b{place}"))],
                ..Preference::default()
            })
            .collect();
        let rows: Vec<Row> = pairs.iter().map(Row::of).collect();
        let config = Config { unseen_users: 0.1, validation: 0.05, held_out: 0.1, seed: Seed::new(9) };
        let splits = assign(&rows, &config).unwrap();
        assert_eq!(splits.left_out().values().sum::<usize>(), 0);
        let share = |part| splits.count(part) as f64 / rows.len() as f64;
        // Four standard errors: of 500 users at 10 %, 0.054; of 20,000 captions at 9 %, 0.0081.
        assert!((share(Part::UnseenUsers) - 0.1).abs() < 0.054);
        let seen = 1.0 - share(Part::UnseenUsers);
        assert!((share(Part::SeenUsers) - 0.1 * seen).abs() < 0.0085);
        for config in
            [Config { validation: 0.6, held_out: 0.4, ..config }, Config { unseen_users: 1.0, ..config }]
        {
            assert!(assign(&rows, &config).unwrap_err().to_string().contains("[0, 1)"));
        }
        let nobody: Vec<Row> = rows.iter().map(|row| Row { user: None, ..*row }).collect();
        assert!(assign(&nobody, &config).unwrap_err().to_string().contains("20000 have no user"));
    }
}
