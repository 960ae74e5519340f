//! What rows say together: pairs out of their two orders, and rates out of pairs.
//!
//! The two orders of a pair are one observation. Intervals are for whoever knows the clusters: the values here go into
//! [`stats`](crate::stats).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Order, Outcome, Row, Side, Slot};

/// What the two orders of a pair say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairState {
    /// The same image won in both orders.
    Consistent(Side),
    /// The same slot won in both orders.
    Inconsistent,
    /// At least one order has no verdict.
    NotJudged,
}

/// A pair, asked in both orders by one judge, once.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair<'a> {
    /// The row of the order that came first, which names user, prompt, images, judge and repeat.
    pub first: &'a Row,
    /// The row of the other order.
    pub second: Option<&'a Row>,
}

/// 1 / (1 + e⁻ˣ).
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Pair<'_> {
    /// What the two orders say.
    pub fn state(&self) -> PairState {
        match (self.first.preferred(), self.second.and_then(Row::preferred)) {
            (Some(one), Some(other)) if one == other => PairState::Consistent(one),
            (Some(_), Some(_)) => PairState::Inconsistent,
            _ => PairState::NotJudged,
        }
    }

    /// 1 where left won in both orders, 0 where right did, ½ where they contradict each other; none where it is not judged.
    pub fn ties_as_half(&self) -> Option<f64> {
        match self.state() {
            PairState::Consistent(Side::Left) => Some(1.0),
            PairState::Consistent(Side::Right) => Some(0.0),
            PairState::Inconsistent => Some(0.5),
            PairState::NotJudged => None,
        }
    }

    /// 1 or 0 where the orders agree; the paper's rule, which leaves out all others.
    pub fn strict(&self) -> Option<f64> {
        match self.state() {
            PairState::Consistent(side) => Some(f64::from(u8::from(side == Side::Left))),
            _ => None,
        }
    }

    /// The probability that left is preferred, from both orders' log-probabilities; none where either has none.
    ///
    /// # Equation
    /// σ(½ (o₁ + o₂)) with oₖ = ln P(left) − ln P(right) in order k: a bias towards a slot that adds to the log-odds cancels.
    pub fn probability(&self) -> Option<f64> {
        let (one, other) = (self.first.log_odds_of_left()?, self.second?.log_odds_of_left()?);
        Some(sigmoid(0.5 * (one + other)))
    }
}

/// The pairs of rows, in the order in which each appears first. Rows of one pair have user, prompt, images, judge,
/// template, number of shots and repeat in common; what an endpoint says of its version may differ between the orders.
/// A row that repeats an order of its pair begins a pair of its own.
pub fn pairs(rows: &[Row]) -> Vec<Pair<'_>> {
    type Key<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str, &'a str, u32, u32);
    let mut open: HashMap<(Key, Order), usize> = HashMap::with_capacity(rows.len());
    let mut found: Vec<Pair> = Vec::with_capacity(rows.len().div_ceil(2));
    for row in rows {
        let key: Key = (
            &row.user,
            &row.prompt,
            &row.left,
            &row.right,
            &row.judge,
            row.template.hex(),
            row.shots,
            row.repeat,
        );
        let other = match row.order {
            Order::LeftFirst => Order::RightFirst,
            Order::RightFirst => Order::LeftFirst,
        };
        match open.remove(&(key, other)) {
            Some(index) => found[index].second = Some(row),
            None => {
                open.insert((key, row.order), found.len());
                found.push(Pair { first: row, second: None });
            }
        }
    }
    found
}

/// How calls ended, and which slot the verdicts name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Number in each state, as in [`Outcome::STATES`].
    pub states: [u64; 5],
    /// Verdicts for the first slot.
    pub first_slot: u64,
}

impl Calls {
    /// Counts rows.
    pub fn of(rows: &[Row]) -> Self {
        let mut calls = Self::default();
        for row in rows {
            let state = Outcome::STATES.iter().position(|state| *state == row.outcome.state());
            calls.states[state.unwrap_or_default()] += 1;
            calls.first_slot += u64::from(matches!(row.outcome, Outcome::Verdict { slot: Slot::A, .. }));
        }
        calls
    }

    /// The number of verdicts.
    pub fn verdicts(&self) -> u64 {
        self.states[0]
    }

    /// The share of verdicts that name the first slot; ½ for a judge without a favourite place, whatever it prefers.
    pub fn first_slot_rate(&self) -> Option<f64> {
        share(self.first_slot as f64, self.verdicts())
    }
}

/// Pairs, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Left won in both orders.
    pub left: u64,
    /// Right won in both orders.
    pub right: u64,
    /// The orders contradict each other.
    pub inconsistent: u64,
    /// At least one order has no verdict.
    pub not_judged: u64,
    /// Pairs with log-probabilities in both orders.
    pub with_probability: u64,
    /// The sum of their probabilities.
    pub probability: f64,
}

fn share(part: f64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part / whole as f64)
}

impl Tally {
    /// Counts pairs.
    pub fn of(pairs: &[Pair]) -> Self {
        let mut tally = Self::default();
        for pair in pairs {
            match pair.state() {
                PairState::Consistent(Side::Left) => tally.left += 1,
                PairState::Consistent(Side::Right) => tally.right += 1,
                PairState::Inconsistent => tally.inconsistent += 1,
                PairState::NotJudged => tally.not_judged += 1,
            }
            if let Some(probability) = pair.probability() {
                tally.with_probability += 1;
                tally.probability += probability;
            }
        }
        tally
    }

    /// All pairs that were to be asked.
    pub fn asked(&self) -> u64 {
        self.judged() + self.not_judged
    }

    /// Pairs with a verdict in both orders.
    pub fn judged(&self) -> u64 {
        self.left + self.right + self.inconsistent
    }

    /// Left's win rate over the judged pairs, contradictions as half a win.
    pub fn ties_as_half(&self) -> Option<f64> {
        share(self.left as f64 + 0.5 * self.inconsistent as f64, self.judged())
    }

    /// Between what that rate over *all* pairs would lie, had left lost or won every pair that is not judged.
    pub fn ties_as_half_bounds(&self) -> Option<(f64, f64)> {
        let won = self.left as f64 + 0.5 * self.inconsistent as f64;
        Some((share(won, self.asked())?, share(won + self.not_judged as f64, self.asked())?))
    }

    /// Left's win rate over the consistent pairs alone, the paper's; read it beside [`Tally::consistency`].
    pub fn strict(&self) -> Option<f64> {
        share(self.left as f64, self.left + self.right)
    }

    /// The share of judged pairs whose orders agree.
    pub fn consistency(&self) -> Option<f64> {
        share((self.left + self.right) as f64, self.judged())
    }

    /// The mean of [`Pair::probability`].
    pub fn probability(&self) -> Option<f64> {
        share(self.probability, self.with_probability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::table::tests::row;

    fn verdict(order: Order, slot: Slot, log_odds: Option<f64>) -> Row {
        Row { order, outcome: Outcome::Verdict { slot, log_odds }, ..row() }
    }

    fn named(left: &str, rows: [Row; 2]) -> Vec<Row> {
        rows.map(|row| Row { left: left.into(), ..row }).into()
    }

    #[test]
    fn two_orders_are_one_observation() {
        use {Order::LeftFirst as L, Order::RightFirst as R, Slot::A, Slot::B};
        let rows = [
            named("won", [verdict(L, A, Some(3.0)), verdict(R, B, Some(1.0))]),
            named("lost", [verdict(R, A, None), verdict(L, B, None)]),
            named("first", [verdict(L, A, Some(2.0)), verdict(R, A, Some(2.0))]),
            named(
                "half",
                [
                    verdict(L, A, None),
                    Row { order: R, outcome: Outcome::Refusal { raw: "no".into() }, ..row() },
                ],
            ),
        ]
        .concat();
        let lone = [rows.clone(), vec![Row { left: "lone".into(), ..row() }]].concat();
        let pairs = pairs(&lone);
        let states: Vec<PairState> = pairs.iter().map(Pair::state).collect();
        assert_eq!(
            states,
            [
                PairState::Consistent(Side::Left),
                PairState::Consistent(Side::Right),
                PairState::Inconsistent,
                PairState::NotJudged,
                PairState::NotJudged
            ]
        );
        assert_eq!(
            pairs.iter().map(Pair::strict).collect::<Vec<_>>(),
            [Some(1.0), Some(0.0), None, None, None]
        );
        assert_eq!(pairs[2].ties_as_half(), Some(0.5));
        // The bias of 2 towards the first slot cancels: 3 − 1 in one case, 2 − 2 in the other.
        assert_eq!((pairs[0].probability(), pairs[2].probability()), (Some(sigmoid(1.0)), Some(0.5)));
        let tally = Tally::of(&pairs);
        assert_eq!((tally.asked(), tally.judged()), (5, 3));
        assert_eq!((tally.ties_as_half(), tally.strict()), (Some(0.5), Some(0.5)));
        assert_eq!(tally.ties_as_half_bounds(), Some((1.5 / 5.0, 3.5 / 5.0)));
        assert_eq!(tally.consistency(), Some(2.0 / 3.0));
        assert_eq!(tally.probability(), Some((sigmoid(1.0) + 0.5) / 2.0));
        let calls = Calls::of(&rows);
        assert_eq!((calls.states, calls.first_slot), ([7, 1, 0, 0, 0], 5));
        assert_eq!(Tally::default().ties_as_half(), None);
    }

    #[test]
    fn repeats_and_judges_are_pairs_of_their_own() {
        let other = |repeat, judge: &str, order| Row { repeat, judge: judge.into(), order, ..row() };
        let rows: Vec<Row> = [(0, "a"), (1, "a"), (0, "b")]
            .iter()
            .flat_map(|(repeat, judge)| Order::ALL.map(|order| other(*repeat, judge, order)))
            .collect();
        assert_eq!(pairs(&rows).len(), 3);
        // An order twice is not taken for the other one.
        assert_eq!(pairs(&[row(), row()]).len(), 2);
    }
}
