//! Pairs and calls as the statistics of a judge take them: users, captions and pairs as numbers.

use std::collections::HashMap;
use std::hash::Hash;

use super::{Order, Outcome, Pair, PairState, Row, Side, Slot};
use crate::stats::judging::{Asked, Call, Verdicts};

/// Numbers for names, in the order in which each appears first.
struct Numbers<K>(HashMap<K, u64>);

impl<K: Eq + Hash> Numbers<K> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    fn of(&mut self, name: K) -> u64 {
        let next = self.0.len() as u64;
        *self.0.entry(name).or_insert(next)
    }
}

/// Pairs as win rates take them. Prompts of the same words are one caption.
pub fn asked(pairs: &[Pair]) -> Vec<Asked> {
    let (mut users, mut captions) = (Numbers::new(), Numbers::new());
    let one = |pair: &Pair| {
        let verdicts = match pair.state() {
            PairState::Consistent(Side::Left) => Verdicts::Left,
            PairState::Consistent(Side::Right) => Verdicts::Right,
            PairState::Inconsistent => Verdicts::Contradictory,
            PairState::NotJudged => Verdicts::NotJudged,
        };
        (verdicts, pair.probability())
    };
    let mut asked = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let (verdicts, probability) = one(pair);
        let (user, caption) = (users.of(pair.first.user.as_str()), captions.of(pair.first.prompt.as_str()));
        asked.push(Asked { user, caption, verdicts, probability });
    }
    asked
}

/// Calls with a verdict as a judge's audit takes them, of unknown truth.
///
/// A row that repeats an order of its pair, under the same number of repetition, is a call about a pair of its own.
pub fn calls(rows: &[Row]) -> Vec<Call> {
    type Key<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str, &'a str, u32);
    let (mut users, mut pairs) = (Numbers::new(), Numbers::new());
    let mut seen: HashMap<(Key, Order, u32), u32> = HashMap::with_capacity(rows.len());
    let mut calls = Vec::with_capacity(rows.len());
    for row in rows {
        let Outcome::Verdict { slot, .. } = row.outcome else { continue };
        let key: Key =
            (&row.user, &row.prompt, &row.left, &row.right, &row.judge, row.template.hex(), row.shots);
        let times = seen.entry((key, row.order, row.repeat)).or_default();
        *times += 1;
        calls.push(Call {
            user: users.of(row.user.as_str()),
            pair: pairs.of((key, *times)),
            left_first: row.order == Order::LeftFirst,
            repeat: row.repeat,
            first: slot == Slot::A,
            truth: None,
        });
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::{Calls, Tally, pairs};
    use crate::stats::judging::{Audit, WinRates, win_rate::Interval};
    use crate::units::{Digest, Seed};

    fn row(user: &str, prompt: &str, order: Order, repeat: u32, slot: Option<Slot>) -> Row {
        let outcome = match slot {
            Some(slot) => Outcome::Verdict { slot, log_odds: Some(if slot == Slot::A { 1.0 } else { -2.0 }) },
            None => Outcome::Refusal { raw: String::new() },
        };
        Row {
            user: user.into(),
            prompt: prompt.into(),
            left: "l.png".into(),
            right: "r.png".into(),
            order,
            repeat,
            shots: 0,
            outcome,
            judge: "j".into(),
            template: Digest::of(b"t"),
            version: String::new(),
            tokens_in: None,
            tokens_out: None,
        }
    }

    #[test]
    fn rates_are_the_tallys() {
        use Order::{LeftFirst, RightFirst};
        let (a, b) = (Some(Slot::A), Some(Slot::B));
        let mut rows = Vec::new();
        for (user, prompt, one, other) in [
            ("ann", "p", a, b),
            ("ann", "q", a, a),
            ("bob", "p", b, a),
            ("bob", "q", a, None),
            ("cat", "p", a, b),
            ("cat", "s", b, b),
        ] {
            for repeat in 0..2 {
                rows.push(row(user, prompt, LeftFirst, repeat, one));
                rows.push(row(user, prompt, RightFirst, repeat, other));
            }
        }
        // An order twice.
        rows.push(row("ann", "p", LeftFirst, 0, b));
        let pairs = pairs(&rows);
        let (tally, counted) = (Tally::of(&pairs), Calls::of(&rows));
        let interval = Interval { level: 0.95, resamples: 99, seed: Seed::new(0) };
        let asked = asked(&pairs);
        let rates = WinRates::of(&asked, interval).unwrap();
        assert_eq!((rates.asked as u64, rates.judged as u64), (tally.asked(), tally.judged()));
        let close = |rate: Option<f64>, tally: Option<f64>| {
            assert!((rate.unwrap() - tally.unwrap()).abs() < 1e-12, "{rate:?} {tally:?}");
        };
        let value =
            |rate: &Option<crate::stats::judging::Rate>| rate.as_ref().map(|rate| rate.estimate.value);
        close(value(&rates.ties_as_half), tally.ties_as_half());
        close(value(&rates.strict), tally.strict());
        close(value(&rates.consistency), tally.consistency());
        close(value(&rates.by_probability), tally.probability());
        let bounds = rates.bounds.unwrap();
        let (low, high) = tally.ties_as_half_bounds().unwrap();
        assert!((bounds.low - low).abs() < 1e-12 && (bounds.high - high).abs() < 1e-12);
        let rate = rates.ties_as_half.unwrap();
        assert_eq!((rate.users, rate.captions), (3, 3));
        let calls = calls(&rows);
        assert_eq!(calls.len() as u64, counted.verdicts());
        let audit = Audit::of(&calls, interval).unwrap();
        close(audit.first_slot.map(|share| share.estimate.value), counted.first_slot_rate());
        close(audit.consistency.map(|share| share.estimate.value), tally.consistency());
        assert_eq!(audit.stability.unwrap().estimate.value, 1.0);
    }
}
