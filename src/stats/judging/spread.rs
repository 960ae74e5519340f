//! How much users differ in how often left wins: a beta-binomial distribution of each user's wins.
//!
//! # Equation
//! User u's rate is drawn from a beta distribution of mean μ and overdispersion ρ = 1 / (α + β + 1), with μ = α / (α + β); of her n
//! pairs k are then won with probability C(n, k) B(k + α, n − k + β) / B(α, β). ρ is the correlation of two pairs of one user: 0 where
//! all users have one rate, 1 where each user's pairs are all won or all lost. The standard deviation of the rates is
//! √(ρ μ (1 − μ)).
//!
//! # Ties
//! The likelihood is of whole counts. Pairs on which the orders contradict each other are left out: n counts a user's consistent
//! pairs and k those that left won, so that μ belongs with the *strict* rate. Rounding ½ to either side would invent
//! wins; leaving them out is the strict rule's own selection.
//!
//! Both intervals are those of the profile likelihood. ρ is bounded at 0, and its critical values near there are those of
//! [`critical_value`]. With one pair a user, ρ has no trace in the data, whatever their number.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::win_rate::{Asked, Verdicts};
use crate::error::{Error, Result};
use crate::stats::crossed::check_level;
use crate::stats::likelihood::{critical_value, crossing, outside, peak};
use crate::stats::{Estimate, Method};

/// What can be said of how users differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Spread {
    /// The distribution of their rates.
    Fitted(BetaBinomial),
    /// These pairs do not say.
    NotIdentifiable {
        /// Why.
        reason: Reason,
    },
}

/// The distribution of users' rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BetaBinomial {
    /// μ, the mean rate of users.
    pub mean: Estimate,
    /// ρ, the correlation of two pairs of one user.
    pub overdispersion: Estimate,
    /// The number of users with at least one pair.
    pub users: usize,
    /// The number of their pairs.
    pub pairs: u64,
    /// The log-likelihood, without the binomial coefficients.
    pub log_likelihood: f64,
}

/// Why nothing can be said of how users differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There is no pair.
    NoPairs,
    /// No user has two pairs.
    OnePairAUser,
    /// All pairs of all users went to one side.
    AllAlike,
    /// Every ρ from 0 to 1 is within the interval.
    Flat,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fitted(fit) => {
                let (mean, rho) = (&fit.mean, &fit.overdispersion);
                write!(
                    f,
                    "mean {:.3} [{:.3}, {:.3}], overdispersion {:.3} [{:.3}, {:.3}] over {} users with {} pairs",
                    mean.value, mean.low, mean.high, rho.value, rho.low, rho.high, fit.users, fit.pairs
                )
            }
            Self::NotIdentifiable { reason } => {
                f.write_str("not identifiable: ")?;
                f.write_str(match reason {
                    Reason::NoPairs => "there is no pair",
                    Reason::OnePairAUser => "no user has two pairs",
                    Reason::AllAlike => "all pairs of all users went to one side",
                    Reason::Flat => "no overdispersion between 0 and 1 is excluded",
                })
            }
        }
    }
}

/// How many users have more than i wins, losses and pairs, for each i.
struct Counts {
    wins: Vec<f64>,
    losses: Vec<f64>,
    pairs: Vec<f64>,
}

impl Counts {
    fn new(users: &[(u64, u64)]) -> Self {
        let most = users.iter().map(|user| user.1).max().unwrap_or(0);
        let above = |count: fn(&(u64, u64)) -> u64| -> Vec<f64> {
            (0..most).map(|i| users.iter().filter(|user| count(user) > i).count() as f64).collect()
        };
        Self {
            wins: above(|user| user.0),
            losses: above(|user| user.1 - user.0),
            pairs: above(|user| user.1),
        }
    }

    /// The log-likelihood, as a product of the urn's draws; at ρ = 0 it is the binomial's, at ρ = 1 its limit.
    fn log_likelihood(&self, mean: f64, rho: f64) -> f64 {
        let term = |times: f64, of: f64| if times == 0.0 { 0.0 } else { times * of.ln() };
        let rest = 1.0 - rho;
        let mixed = self.wins[0] + self.losses[0] - self.pairs[0];
        let mut sum = term(self.wins[0], mean) + term(self.losses[0], 1.0 - mean) + term(mixed, rest);
        for i in 1..self.pairs.len() {
            let drawn = i as f64 * rho;
            sum += term(self.wins[i], mean * rest + drawn)
                + term(self.losses[i], (1.0 - mean) * rest + drawn)
                - term(self.pairs[i], rest + drawn);
        }
        sum
    }

    /// The highest over μ, where it is concave.
    fn over_mean(&self, rho: f64) -> (f64, f64) {
        peak(|mean| self.log_likelihood(mean, rho), 0.0, 1.0, 1e-8)
    }

    /// The highest over ρ: the best of a grid, and what lies about it.
    fn over_rho(&self, curve: impl Fn(f64) -> f64) -> (f64, f64) {
        const GRID: [f64; 12] = [0.0, 0.01, 0.03, 0.07, 0.15, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 1.0];
        let heights = GRID.map(&curve);
        let best = (0..GRID.len()).max_by(|&a, &b| heights[a].total_cmp(&heights[b])).unwrap_or(0);
        let within = (GRID[best.saturating_sub(1)], GRID[(best + 1).min(GRID.len() - 1)]);
        let (at, height) = peak(&curve, within.0, within.1, 1e-8);
        if height > heights[best] { (at, height) } else { (GRID[best], heights[best]) }
    }
}

impl Spread {
    /// The distribution of users, each given by her wins and her pairs.
    ///
    /// # Errors
    /// Where a user has more wins than pairs, or the level is not in (0, 1).
    pub fn of(users: &[(u64, u64)], level: f64) -> Result<Self> {
        check_level(level)?;
        if let Some((wins, pairs)) = users.iter().find(|(wins, pairs)| wins > pairs) {
            return Err(Error::Shape(format!("a user cannot have won {wins} of {pairs} pairs")));
        }
        let users: Vec<(u64, u64)> = users.iter().copied().filter(|user| user.1 > 0).collect();
        let pairs: u64 = users.iter().map(|user| user.1).sum();
        let wins: u64 = users.iter().map(|user| user.0).sum();
        let not = |reason| Ok(Self::NotIdentifiable { reason });
        if users.is_empty() {
            return not(Reason::NoPairs);
        }
        if users.iter().all(|user| user.1 == 1) {
            return not(Reason::OnePairAUser);
        }
        if wins == 0 || wins == pairs {
            return not(Reason::AllAlike);
        }
        let counts = Counts::new(&users);
        let by_rho = |rho: f64| counts.over_mean(rho).1;
        let (rho, highest) = counts.over_rho(by_rho);
        let mean = counts.over_mean(rho).0;
        let far = critical_value(level, f64::INFINITY).sqrt();
        let root = |height: f64| (2.0 * (highest - height)).max(0.0).sqrt();
        let excess = |candidate: f64| root(by_rho(candidate)) - near_zero(by_rho, candidate, level);
        let low = if excess(0.0) > 0.0 { crossing(excess, rho, 0.0, 1e-7) } else { 0.0 };
        let high = if excess(1.0) > 0.0 { crossing(excess, rho, 1.0, 1e-7) } else { 1.0 };
        if low == 0.0 && high == 1.0 {
            return not(Reason::Flat);
        }
        let by_mean = |mean: f64| root(counts.over_rho(|rho| counts.log_likelihood(mean, rho)).1) - far;
        let end = |step: f64, limit: f64| match outside(by_mean, mean, step, limit) {
            Some(out) => crossing(by_mean, mean, out, 1e-7),
            None => limit,
        };
        let interval = |value, ends| Estimate::new(value, ends, level, Method::ProfileLikelihood);
        Ok(Self::Fitted(BetaBinomial {
            mean: interval(mean, (end(-0.05, 0.0), end(0.05, 1.0))),
            overdispersion: interval(rho, (low, high)),
            users: users.len(),
            pairs,
            log_likelihood: highest,
        }))
    }

    /// The distribution of users over their consistent pairs.
    ///
    /// # Errors
    /// Where the level is not in (0, 1).
    pub fn of_asked(asked: &[Asked], level: f64) -> Result<Self> {
        let mut users = BTreeMap::<u64, (u64, u64)>::new();
        for pair in asked {
            let user = users.entry(pair.user).or_default();
            match pair.verdicts {
                Verdicts::Left => *user = (user.0 + 1, user.1 + 1),
                Verdicts::Right => user.1 += 1,
                Verdicts::Contradictory | Verdicts::NotJudged => {}
            }
        }
        Self::of(&users.into_values().collect::<Vec<_>>(), level)
    }
}

/// The square root of the critical value of a candidate ρ, its distance from 0 read from the curvature there.
fn near_zero(curve: impl Fn(f64) -> f64, candidate: f64, level: f64) -> f64 {
    const STEP: f64 = 1e-3;
    let distance = match candidate {
        0.0 => 0.0,
        // The curvature is taken forwards: below 0 there is nothing.
        _ if candidate < 0.5 => {
            let [here, next, after] = [0.0, STEP, 2.0 * STEP].map(|step| curve(candidate + step));
            let curvature = -(here - 2.0 * next + after) / (STEP * STEP);
            if curvature > 0.0 { candidate * curvature.sqrt() } else { f64::INFINITY }
        }
        _ => f64::INFINITY,
    };
    critical_value(level, distance).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, stream};
    use crate::units::Seed;

    /// A beta variable as a ratio of gammas, each by Marsaglia and Tsang 2000.
    fn beta(draws: &mut Stream, a: f64, b: f64) -> f64 {
        let mut gamma = |shape: f64| {
            let (boost, shape) =
                if shape < 1.0 { (draws.uniform().powf(1.0 / shape), shape + 1.0) } else { (1.0, shape) };
            let d = shape - 1.0 / 3.0;
            loop {
                let x = draws.normal();
                let v = (1.0 + x / (9.0 * d).sqrt()).powi(3);
                if v > 0.0 && (1.0 - draws.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                    return boost * d * v;
                }
            }
        };
        let (x, y) = (gamma(a), gamma(b));
        x / (x + y)
    }

    fn fitted(users: &[(u64, u64)]) -> BetaBinomial {
        match Spread::of(users, 0.95).unwrap() {
            Spread::Fitted(fit) => fit,
            Spread::NotIdentifiable { reason } => panic!("{reason:?}"),
        }
    }

    #[test]
    fn the_fit_is_scipys() {
        let users =
            [(3, 4), (0, 4), (4, 4), (2, 5), (5, 5), (1, 3), (0, 2), (4, 6), (6, 6), (2, 2), (1, 1), (3, 3)];
        let counts = Counts::new(&users);
        for (mean, rho, expected) in LOG_LIKELIHOODS {
            let got = counts.log_likelihood(mean, rho);
            assert!((got - expected).abs() < 1e-9 * expected.abs(), "{mean} {rho}: {got}");
        }
        let fit = fitted(&users);
        for (got, expected) in [
            (fit.mean.value, MAXIMUM[0]),
            (fit.overdispersion.value, MAXIMUM[1]),
            (fit.log_likelihood, MAXIMUM[2]),
            (fit.mean.low, MEAN[0]),
            (fit.mean.high, MEAN[1]),
            (fit.overdispersion.low, RHO[0]),
            (fit.overdispersion.high, RHO[1]),
        ] {
            assert!((got - expected).abs() < 2e-6, "{got}, expected {expected}");
        }
    }
    // tests/reference/judging.py, scipy 1.17: sum(betaln(k + a, n - k + b) - betaln(a, b)); optimize.minimize_scalar for the profiles, brentq for the ends,
    // with chi2.ppf(0.95, 1) but at rho's lower end, one standard error from 0, where it is 0.1273 without the bound's
    // critical value.
    const LOG_LIKELIHOODS: [(f64, f64, f64); 3] =
        [(0.6, 0.3, -24.42363497783384), (0.2, 0.05, -46.981562102944196), (0.9, 0.8, -29.239154307074756)];
    const MAXIMUM: [f64; 3] = [0.6779884324223326, 0.48432926775503593, -23.555207119836833];
    const MEAN: [f64; 2] = [0.44512959154519566, 0.8557660435377605];
    const RHO: [f64; 2] = [0.14343732681353635, 0.8110446437565542];

    #[test]
    fn the_likelihood_keeps_its_limits() {
        let counts = Counts::new(&[(1, 3), (2, 2)]);
        let binomial = 3.0 * 0.4f64.ln() + 2.0 * 0.6f64.ln();
        assert!((counts.log_likelihood(0.4, 0.0) - binomial).abs() < 1e-12);
        assert_eq!(counts.log_likelihood(0.4, 1.0), f64::NEG_INFINITY);
        let counts = Counts::new(&[(0, 3), (2, 2)]);
        assert!((counts.log_likelihood(0.4, 1.0) - (0.4f64.ln() + 0.6f64.ln())).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_in_the_data_has_a_name() {
        let reason = |users: &[(u64, u64)]| match Spread::of(users, 0.95).unwrap() {
            Spread::NotIdentifiable { reason } => Some(reason),
            Spread::Fitted(_) => None,
        };
        assert_eq!(reason(&[]), Some(Reason::NoPairs));
        assert_eq!(reason(&[(0, 0)]), Some(Reason::NoPairs));
        assert_eq!(
            reason(&vec![(0, 1); 200].into_iter().chain(vec![(1, 1); 100]).collect::<Vec<_>>()),
            Some(Reason::OnePairAUser)
        );
        assert_eq!(reason(&[(3, 3), (4, 4)]), Some(Reason::AllAlike));
        assert_eq!(reason(&[(0, 2), (1, 1), (1, 1)]), Some(Reason::Flat));
        let printed = Spread::of(&[(1, 1), (0, 1)], 0.95).unwrap().to_string();
        assert_eq!(printed, "not identifiable: no user has two pairs");
        assert!(Spread::of(&[(2, 1)], 0.95).is_err());
        assert!(Spread::of(&[(1, 2)], 0.0).is_err());
        // Users of one rate: none within, none differs more than chance lets them.
        let fit = fitted(&[(2, 4), (2, 4), (2, 4), (2, 4), (1, 4), (3, 4), (2, 4), (2, 4)]);
        assert_eq!((fit.overdispersion.value, fit.overdispersion.low), (0.0, 0.0));
        assert!(fit.overdispersion.high < 0.5);
    }

    #[test]
    fn contradictions_are_no_counts() {
        let pair = |user, verdicts| Asked { user, caption: 0, verdicts, probability: None };
        let mut asked = Vec::new();
        for user in 0..9 {
            asked.push(pair(user, Verdicts::Contradictory));
            asked.push(pair(user, if user % 3 == 0 { Verdicts::Left } else { Verdicts::Right }));
            asked.push(pair(user, if user % 2 == 0 { Verdicts::Left } else { Verdicts::Right }));
            asked.push(pair(user, Verdicts::NotJudged));
        }
        let users: Vec<(u64, u64)> =
            (0..9u64).map(|user| (u64::from(user % 3 == 0) + u64::from(user % 2 == 0), 2)).collect();
        assert_eq!(Spread::of_asked(&asked, 0.95).unwrap(), Spread::of(&users, 0.95).unwrap());
    }

    #[test]
    fn intervals_cover_mean_and_overdispersion() {
        const STUDIES: u64 = 400;
        for (mean, rho) in [(0.6, 0.2), (0.7, 0.02), (0.6, 0.0)] {
            let (mut of_mean, mut of_rho) = (0, 0);
            for study in 0..STUDIES {
                let mut draws = stream(Seed::new(study), "spread coverage", 0);
                let users: Vec<(u64, u64)> = (0..80)
                    .map(|user| {
                        let sum = if rho > 0.0 { 1.0 / rho - 1.0 } else { 0.0 };
                        let rate =
                            if rho > 0.0 { beta(&mut draws, mean * sum, (1.0 - mean) * sum) } else { mean };
                        let pairs = 3 + user % 4;
                        ((0..pairs).filter(|_| draws.chance(rate)).count() as u64, pairs)
                    })
                    .collect();
                let fit = fitted(&users);
                of_mean += i32::from(fit.mean.covers(mean));
                of_rho += i32::from(fit.overdispersion.covers(rho));
            }
            // Three standard errors of a binomial count.
            let slack = 3.0 * (STUDIES as f64 * 0.95 * 0.05).sqrt();
            for covered in [of_mean, of_rho] {
                assert!(
                    (f64::from(covered) - 0.95 * STUDIES as f64).abs() < slack,
                    "{mean} {rho}: {covered}"
                );
            }
        }
    }
}
