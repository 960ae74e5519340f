//! A real-user study's choices as a data set records them: who chose which picture, and which of it is told, asked about,
//! or learned from.
//!
//! Pairs go through the [`census`](crate::data::census) first, ties among what it leaves out, and then into the paper's four
//! [parts](crate::data::splits): of users that are looked at, what is told and asked is in the part of held-out captions, so
//! that nothing learned from shares a caption or a picture with it. A choice that is asked about has a caption that none
//! of the user's told ones has. Who is looked at is drawn by a seed among those who have enough, and a user with fewer is
//! never used for less. People's utilities are nobody's to know.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::data::Preference;
use crate::data::album::{Album, State, States};
use crate::data::census::{Census, Policy};
use crate::data::desk::users::{Choice, FIRST_UNSEEN, identifier};
use crate::data::splits::{self, Part, Row};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::rng::stream;
use crate::scenes::tastes::Kind;
use crate::units::Seed;

/// How large the parts of held-out captions and of unseen users are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shares {
    /// The share of users that training never sees.
    pub unseen_users: f64,
    /// The share of the seen users' captions that nothing is done with here: settings may be chosen on them.
    pub validation: f64,
    /// The share of the seen users' captions that is told and asked about.
    pub held_out: f64,
}

impl Default for Shares {
    fn default() -> Self {
        let splits::Config { unseen_users, validation, held_out, .. } = splits::Config::default();
        Self { unseen_users, validation, held_out }
    }
}

/// Whom to look at, and how much of each is needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Of the parts, of who is looked at, and of the order of everybody's choices.
    pub seed: Seed,
    /// How large the parts are.
    pub shares: Shares,
    /// Users that are learned from and looked at.
    pub seen: usize,
    /// Users that are looked at and of whom nothing is learned.
    pub unseen: usize,
    /// Choices of each that are told.
    pub told: usize,
    /// Choices of each that are asked about, none under a caption that is told.
    pub asked: usize,
    /// The most choices of one user that are learned from.
    pub learned: usize,
}

/// What is used of one user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Of {
    /// Whose it is in the data set.
    pub user_id: i64,
    /// Choices that are told; nobody's but of those who are looked at.
    pub told: Vec<Choice>,
    /// Choices that are asked about, each under a caption of its own.
    pub asked: Vec<Choice>,
    /// Choices that are learned from.
    pub learned: Vec<Choice>,
}

/// Everybody, by the number that she has in the study: those who are looked at come first, as
/// [`identifier`] numbers them, the other seen ones behind them. Places of pairs are those among all.
pub type Everybody = BTreeMap<i64, Of>;

/// Finds out who chose what, and what of it is used for what.
///
/// # Errors
/// [`Error::Data`] where too few users have enough choices, with how many have how many; where pairs cannot be read.
pub fn gather(
    pairs: &[Preference],
    (album, states): (&Album, &mut States),
    config: &Config,
    progress: &Progress,
) -> Result<Everybody> {
    let by_part = by_part(pairs, album, config)?;
    let mut drawn = Everybody::new();
    for (kind, wanted) in [(Kind::Seen, config.seen), (Kind::Unseen, config.unseen)] {
        let part = if kind == Kind::Seen { Part::SeenUsers } else { Part::UnseenUsers };
        let own = by_part.get(&part).cloned().unwrap_or_default();
        let mut candidates: Vec<i64> = own.keys().copied().collect();
        stream(config.seed, "recorded users", kind as u64).shuffle(&mut candidates);
        let pick = |user: i64, known: &BTreeMap<usize, State>| pick(pairs, &own[&user], known, config);
        let mut known = BTreeMap::new();
        let users = loop {
            let enough = candidates.iter().filter_map(|&user| Some((user, pick(user, &known)?)));
            let users: Vec<(i64, [Vec<Place>; 2])> = enough.take(wanted).collect();
            let unknown: Vec<usize> = users
                .iter()
                .flat_map(|(_, parts)| parts.iter().flatten())
                .map(|(place, _)| *place)
                .filter(|place| !known.contains_key(place))
                .collect();
            if unknown.is_empty() {
                break users;
            }
            let found = states.of(&unknown, progress)?;
            known.extend(unknown.into_iter().zip(found));
        };
        if users.len() < wanted {
            return Err(too_few(album, &own, (kind, users.len(), wanted), config));
        }
        for (index, (user_id, [told, asked])) in users.into_iter().enumerate() {
            let number = identifier(kind, index);
            let choices = |places: Vec<Place>| {
                places.into_iter().map(|(pair, chosen)| Choice { user: number, pair, chosen }).collect()
            };
            let of = Of { user_id, told: choices(told), asked: choices(asked), learned: Vec::new() };
            drawn.insert(number, of);
        }
    }
    learned(by_part.get(&Part::Train), states, config, (&mut drawn, progress))?;
    Ok(drawn)
}

/// A pair's place and the side that was chosen.
type Place = (usize, usize);
/// Of each user of a part, by her number in the data set: what she chose, in the order of her own draws.
type Owned = BTreeMap<i64, Vec<Place>>;

/// What a caption must not hold: to vision-language models it is no word but a command.
const COMMANDS: [&str; 5] = ["<image>", "<video>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"];

/// The pair with the side that was chosen, where it can be used.
fn usable(census: &mut Census, pair: &Preference, album: &Album) -> Option<(Preference, usize)> {
    let pair = census.admit(pair.clone(), album.path())?;
    let side = pair.choice().and_then(crate::data::Choice::side)?;
    (!COMMANDS.iter().any(|command| pair.caption.contains(command))).then_some((pair, side))
}

/// The pairs that can be used, by part and user.
fn by_part(pairs: &[Preference], album: &Album, config: &Config) -> Result<BTreeMap<Part, Owned>> {
    let mut census = Census::new(Policy::default());
    let (mut places, mut rows): (Vec<Place>, Vec<Row>) = (Vec::new(), Vec::new());
    for (place, pair) in pairs.iter().enumerate() {
        let Some((pair, side)) = usable(&mut census, pair, album) else { continue };
        places.push((place, side));
        rows.push(Row::of(&pair));
    }
    let Shares { unseen_users, validation, held_out } = config.shares;
    let splits =
        splits::assign(&rows, &splits::Config { seed: config.seed, unseen_users, validation, held_out })?;
    let mut by_part: BTreeMap<Part, Owned> = BTreeMap::new();
    for ((place, side), part) in places.into_iter().zip(&splits.parts) {
        let (Ok(part), Some(user)) = (part, pairs[place].user_id) else { continue };
        by_part.entry(*part).or_default().entry(user).or_default().push((place, side));
    }
    for (part, owned) in &mut by_part {
        for (user, own) in owned.iter_mut() {
            stream(config.seed, &format!("recorded choices {}", part.name()), *user as u64).shuffle(own);
        }
    }
    Ok(by_part)
}

/// What is told and what is asked of a user, of pairs that nothing bad is known of; `None` where she has too few.
fn pick(
    pairs: &[Preference],
    own: &[Place],
    known: &BTreeMap<usize, State>,
    config: &Config,
) -> Option<[Vec<Place>; 2]> {
    let state = |place: usize| known.get(&place).copied().unwrap_or(State::Whole);
    // Captions that differ in case or white space alone are the same, as they are for the parts.
    let caption = |place: usize| {
        let words: Vec<String> = pairs[place].caption.split_whitespace().map(str::to_lowercase).collect();
        words.join(" ")
    };
    let usable: Vec<(Place, String)> = own
        .iter()
        .filter(|(place, _)| state(*place) != State::Broken)
        .map(|one| (*one, caption(one.0)))
        .collect();
    let mut left = usable.len();
    let (mut captions, mut asked): (BTreeSet<&str>, Vec<Place>) = Default::default();
    for (one, caption) in usable.iter().filter(|((place, _), _)| state(*place) == State::Whole) {
        let taken = usable.iter().filter(|(_, other)| other == caption).count();
        if asked.len() < config.asked && left >= config.told + taken && captions.insert(caption) {
            asked.push(*one);
            left -= taken;
        }
    }
    let told = usable.iter().filter(|(_, caption)| !captions.contains(caption.as_str()));
    let told: Vec<Place> = told.take(config.told).map(|(one, _)| *one).collect();
    (told.len() == config.told && asked.len() == config.asked).then_some([told, asked])
}

/// Puts what is learned beside those who are looked at, and everybody else who is learned from behind them.
fn learned(
    train: Option<&Owned>,
    states: &mut States,
    config: &Config,
    (drawn, progress): (&mut Everybody, &Progress),
) -> Result<()> {
    let Some(train) = train else { return Ok(()) };
    let mut kept: Vec<(i64, &[Place])> = train.iter().map(|(user, own)| (*user, own.as_slice())).collect();
    // Broken pictures are found among what would be used, and others take their places.
    let mut known: BTreeMap<usize, State> = BTreeMap::new();
    let whole = |own: &[Place], known: &BTreeMap<usize, State>| -> Vec<Place> {
        let whole = own.iter().filter(|(place, _)| known.get(place) != Some(&State::Broken));
        whole.take(config.learned).copied().collect()
    };
    loop {
        let used = kept.iter().flat_map(|(_, own)| whole(own, &known));
        let unknown: Vec<usize> =
            used.map(|(place, _)| place).filter(|place| !known.contains_key(place)).collect();
        if unknown.is_empty() {
            break;
        }
        let found = states.of(&unknown, progress)?;
        known.extend(unknown.into_iter().zip(found));
    }
    let broken = known.values().filter(|state| **state == State::Broken).count();
    if broken > 0 {
        progress.note(&format!(
            "{broken} of {} pairs that people chose between have a picture that cannot be decoded; others take their places",
            known.len()
        ));
    }
    let numbers: BTreeMap<i64, i64> = drawn.iter().map(|(number, of)| (of.user_id, *number)).collect();
    kept.sort_by_key(|(user, _)| (numbers.get(user).copied().unwrap_or(i64::MAX), *user));
    let mut next = config.seen as i64;
    for (user_id, own) in kept {
        let number = numbers.get(&user_id).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        if number >= FIRST_UNSEEN && !drawn.contains_key(&number) {
            return Err(Error::Spec(format!("more than {FIRST_UNSEEN} users cannot be learned from")));
        }
        let choice = |(pair, chosen): Place| Choice { user: number, pair, chosen };
        let of = drawn.entry(number).or_insert_with(|| Of { user_id, ..Of::default() });
        of.learned = whole(own, &known).into_iter().map(choice).collect();
    }
    Ok(())
}

/// How many users have how many choices, and what to do.
fn too_few(album: &Album, own: &Owned, (kind, got, wanted): (Kind, usize, usize), config: &Config) -> Error {
    let (name, share) = match kind {
        Kind::Seen => ("seen", "held_out"),
        Kind::Unseen => ("unseen", "unseen_users"),
    };
    let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
    let most = config.told + config.asked;
    own.values().for_each(|choices| *numbers.entry(choices.len().min(most)).or_default() += 1);
    let numbers: Vec<String> = numbers
        .iter()
        .map(|(choices, users)| {
            let more = if *choices == most { " or more" } else { "" };
            format!("{users} with {choices}{more}")
        })
        .collect();
    Error::data(
        album.path(),
        format!(
            "{got} {name} users have enough choices about held-out captions ({} to be told, {} to be asked about under \
             other captions), and users.{name} asks for {wanted}; users there: {}; lower users.{name}, users.draws or \
             users.most_shots, or raise users.choices.{share}",
            config.told,
            config.asked,
            if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") }
        ),
    )
}

/// Users with `enough` choices of their own, out of all that can be used: `count` of them, drawn by the seed, each with at most
/// `most`, in an order of her own. Nothing is held out.
///
/// # Errors
/// As [`gather`].
pub fn with_enough(
    pairs: &[Preference],
    (album, states): (&Album, &mut States),
    (seed, count, most): (Seed, usize, usize),
    enough: impl Fn(&[Choice]) -> bool,
    progress: &Progress,
) -> Result<Vec<Of>> {
    let mut census = Census::new(Policy::default());
    let mut owned: Owned = BTreeMap::new();
    for (place, pair) in pairs.iter().enumerate() {
        let Some((pair, side)) = usable(&mut census, pair, album) else { continue };
        if let Some(user) = pair.user_id {
            owned.entry(user).or_default().push((place, side));
        }
    }
    for (user, own) in &mut owned {
        stream(seed, "recorded choices", *user as u64).shuffle(own);
    }
    let mut candidates: Vec<i64> = owned.keys().copied().collect();
    stream(seed, "recorded users", 0).shuffle(&mut candidates);
    let mut known: BTreeMap<usize, State> = BTreeMap::new();
    loop {
        let whole = |user: &i64| {
            let own = owned[user].iter().filter(|(place, _)| known.get(place) != Some(&State::Broken));
            let choice = |&(pair, chosen): &Place| Choice { user: *user, pair, chosen };
            let choices: Vec<Choice> = own.take(most).map(choice).collect();
            enough(&choices).then(|| Of { user_id: *user, learned: choices, ..Of::default() })
        };
        let drawn: Vec<Of> = candidates.iter().filter_map(whole).take(count).collect();
        let places = drawn.iter().flat_map(|of| &of.learned).map(|choice| choice.pair);
        let unknown: Vec<usize> = places.filter(|place| !known.contains_key(place)).collect();
        if unknown.is_empty() {
            if drawn.len() == count {
                return Ok(drawn);
            }
            let mut sizes: Vec<usize> = owned.values().map(Vec::len).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let of = |place: usize| sizes.get(place).map_or("none".to_owned(), ToString::to_string);
            return Err(Error::data(
                album.path(),
                format!(
                    "{} users have choices enough for the groups that are asked for, and users.count is {count}; of {} users \
                     the one with the most has {}, the {count}th {}; lower users.count, groups.learned or groups.asked",
                    drawn.len(),
                    sizes.len(),
                    of(0),
                    of(count - 1)
                ),
            ));
        }
        let found = states.of(&unknown, progress)?;
        known.extend(unknown.into_iter().zip(found));
    }
}

#[cfg(test)]
mod tests;
