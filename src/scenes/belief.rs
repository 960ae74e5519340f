//! What choices tell of a taste: Bayes' rule over a sample of users.
//!
//! # Equation
//! With users `u` drawn from the population and choices `c` between pictures with features `f`:
//!
//! ```text
//! p(u | c)       ∝ Π_i P_u(c_i)                      Bradley-Terry, the user's own lapses included
//! E[w | c]       = Σ_u p(u | c) w_u
//! P(1 over 2 | c) = Σ_u p(u | c) P_u(1, 2)
//! ```
//!
//! No one who sees only the choices foresees the next one better, up to the sample's size.

use super::tastes::{FEATURES, Features, Kind, Taste, Tastes};

/// Users that stand for a population.
#[derive(Debug, Clone)]
pub struct Prior(Vec<Taste>);

impl Prior {
    /// The first `count` users of a kind.
    pub fn new(tastes: &Tastes, kind: Kind, count: usize) -> Self {
        Self::from_users((0..count as u64).map(|index| tastes.user(kind, index)).collect())
    }

    /// Users that were drawn elsewhere.
    pub fn from_users(users: Vec<Taste>) -> Self {
        Self(users)
    }

    /// What is believed before any choice.
    pub fn belief(&self) -> Belief<'_> {
        Belief { users: &self.0, log_odds: vec![0.0; self.0.len()] }
    }
}

/// How probable each user of a [`Prior`] is after some choices.
#[derive(Debug, Clone)]
pub struct Belief<'a> {
    users: &'a [Taste],
    log_odds: Vec<f64>,
}

impl Belief<'_> {
    /// Takes a choice into account.
    pub fn see(&mut self, chosen: &Features, rejected: &Features) {
        for (user, odds) in self.users.iter().zip(&mut self.log_odds) {
            *odds += user.prefers(chosen, rejected).ln();
        }
    }

    /// The mean of `value` over users.
    fn mean<const N: usize>(&self, value: impl Fn(&Taste) -> [f64; N]) -> [f64; N] {
        let most = self.log_odds.iter().copied().fold(f64::MIN, f64::max);
        let (mut sums, mut total) = ([0.0; N], 0.0);
        for (user, odds) in self.users.iter().zip(&self.log_odds) {
            let share = (odds - most).exp();
            total += share;
            for (sum, value) in sums.iter_mut().zip(value(user)) {
                *sum += share * value;
            }
        }
        sums.map(|sum| sum / total)
    }

    /// The mean weights.
    pub fn weights(&self) -> Features {
        self.mean::<FEATURES>(|user| user.weights)
    }

    /// The probability that the first picture is preferred.
    pub fn prefers(&self, first: &Features, second: &Features) -> f64 {
        self.mean(|user| [user.prefers(first, second)])[0]
    }
}

#[cfg(test)]
mod tests {
    use super::super::population::SAMPLES;
    use super::super::tastes::Config;
    use super::*;
    use crate::rng::{Stream, stream};
    use crate::units::Seed;

    fn picture(draw: &mut Stream) -> Features {
        std::array::from_fn(|_| draw.normal())
    }

    #[test]
    fn beliefs_are_calibrated_and_near_the_taste_after_many_choices() {
        let tastes = Tastes::new(Seed::new(5), Config::desk(SAMPLES));
        let prior = Prior::new(&tastes, Kind::Seen, 500);
        let mut draw = stream(Seed::new(1), "belief test", 0);
        let (mut expected, mut variance, mut taken, mut likeness) = (0.0, 0.0, 0.0, [0.0; 2]);
        let count = 200;
        for _ in 0..count {
            // Users beyond the sample.
            let user = tastes.user(Kind::Seen, draw.bits());
            let mut belief = prior.belief();
            for shots in [4, 16] {
                for _ in 0..shots {
                    let (a, b) = (picture(&mut draw), picture(&mut draw));
                    let odds = belief.prefers(&a, &b);
                    assert!((odds + belief.prefers(&b, &a) - 1.0).abs() < 1e-12);
                    let first = user.choose(&a, &b, &mut draw) == 0;
                    expected += odds;
                    variance += odds * (1.0 - odds);
                    taken += f64::from(u8::from(first));
                    if first { belief.see(&a, &b) } else { belief.see(&b, &a) }
                }
                let believed = Taste { cluster: 0, weights: belief.weights(), lapse: 0.0 };
                likeness[usize::from(shots == 16)] += believed.likeness(&user) / f64::from(count);
            }
        }
        let error: f64 = (taken - expected) / f64::sqrt(variance);
        assert!(
            error.abs() < 4.0,
            "{taken} first pictures taken, {expected} expected: {error} standard errors"
        );
        assert!(likeness[0] > 0.45 && likeness[1] > likeness[0] + 0.1, "{likeness:?}");
    }
}
