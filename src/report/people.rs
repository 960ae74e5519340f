//! What outputs about people have in common: how a row becomes features, and which of a method's images are whose.

use std::collections::BTreeMap;

use super::study::Method;
use crate::record::Row;
use crate::scenes::measure::Measured;
use crate::scenes::population::SAMPLES;
use crate::scenes::tastes::{Features, Kind, features};
use crate::spec::Users;
use crate::spec::users::{Addressee, condition};

/// The score that says how well an image shows its caption, in [0, 1].
pub const ALIGNMENT: &str = "alignment";
/// The kinds of users that numbers are given for; `None` is all of them.
pub const KINDS: [Option<Kind>; 3] = [Some(Kind::Seen), Some(Kind::Unseen), None];

/// How well the row's image shows its caption; `None` where the image failed, or nobody measured it.
pub fn alignment(row: &Row) -> Option<f64> {
    row.scores.get(ALIGNMENT).copied()
}

/// What people see in the row's image; `None` where it failed, or some statistic was not measured.
pub fn seen(row: &Row) -> Option<Features> {
    let score = |name: &str| row.scores.get(name).copied();
    let measured = Measured {
        brightness: score("brightness")?,
        saturation: score("saturation")?,
        warmth: score("warmth")?,
        contrast: score("contrast")?,
        texture: score("texture")?,
        centredness: score("centredness")?,
        fill: score("fill")?,
    };
    Some(features(&SAMPLES, &measured, alignment(row)?))
}

/// How a kind is called.
pub fn kind_label(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::Seen) => "seen",
        Some(Kind::Unseen) => "unseen",
        None => "all",
    }
}

/// The evaluated users of a kind, in the order of their numbers.
pub fn of_kind(users: &Users, kind: Option<Kind>) -> Vec<i64> {
    let kinds = [Kind::Seen, Kind::Unseen].into_iter().filter(|one| kind.is_none_or(|kind| kind == *one));
    let mut all: Vec<i64> = kinds.flat_map(|kind| users.evaluated(kind)).collect();
    all.sort_unstable();
    all
}

/// The condition under which a method made images for nobody in particular, where it knows no people.
pub fn of_nobody(method: &Method) -> Option<&str> {
    match method.conditions.as_slice() {
        [only] if Addressee::parse(&only.condition).is_none() => Some(&only.condition),
        _ => None,
    }
}

/// The condition of the images that a method has for a user: hers, or nobody's where it knows no people; `None` where it
/// knows others only.
pub fn condition_for(method: &Method, user: i64) -> Option<&str> {
    let own = condition(user).to_string();
    let hers = method.conditions.iter().map(|user| user.condition.as_str()).find(|name| *name == own);
    hers.or_else(|| of_nobody(method))
}

/// For each user another one ([`Users::strangers`]).
pub fn mismatched(users: &Users, who: &[i64]) -> BTreeMap<i64, i64> {
    users.strangers(who)
}
