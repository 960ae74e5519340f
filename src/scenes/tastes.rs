//! The desk's stand-ins for real users: many people whose tastes differ in direction, not only in degree.
//!
//! The populations behind labels and rewards ([`population`](super::population)) share one mean taste. Here taste comes in
//! clusters with continuous variation inside, so that four pairs of a person say much about the fifth and a stranger's
//! pairs say little. One cluster is kept for unseen users alone, and some users are inconsistent.
//!
//! # Equation
//! With the standardised statistics `z` (clipped to ±3) and the alignment `a` of a picture with its caption:
//!
//! ```text
//! f       = (z_1, …, z_7, (a − 0.7) / 0.2, clipped to ±3)
//! w       = strength · (m + spread · n) / |m + spread · n|,   m the unit centre of the user's cluster, n standard normal
//! U       = w · f
//! P(1, 2) = (1 − ε) σ(U_1 − U_2) + ε / 2                      Bradley-Terry; ε > 0 for inconsistent users
//! ```

use serde::{Deserialize, Serialize};

use super::measure::{COUNT, Measured};
use super::population::Reference;
use crate::rng::{Stream, stream};
use crate::units::Seed;

/// How many features a taste weighs: the measured statistics and alignment.
pub const FEATURES: usize = COUNT + 1;

/// What a user sees in a picture, standardised; alignment stands last.
pub type Features = [f64; FEATURES];

/// The largest size of a feature.
const CLIP: f64 = 3.0;

/// What a picture shows to a user.
pub fn features(reference: &Reference, measured: &Measured, alignment: f64) -> Features {
    let z = reference.standardise(measured);
    let mut features = [0.0; FEATURES];
    features[..COUNT].copy_from_slice(&z);
    features[COUNT] = ((alignment - 0.7) / 0.2).clamp(-CLIP, CLIP);
    features
}

/// One cluster: what its members have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name in tables.
    pub name: String,
    /// The direction of its members' weights, in the order of [`Features`]; of any length above zero.
    pub centre: Features,
}

/// What a population of tastes is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The clusters; the last one is found among unseen users only.
    pub clusters: Vec<Cluster>,
    /// How much a user's direction varies around her cluster's, for each feature, where the centre has length 1.
    pub spread: f64,
    /// The length of every user's weights: how decided choices are.
    pub strength: f64,
    /// The share of users who are inconsistent.
    pub inconsistent: f64,
    /// How often an inconsistent user chooses by a coin.
    pub lapse: f64,
    /// How statistics are standardised.
    pub reference: Reference,
}

impl Config {
    /// The desk's population, over pictures that are standardised by `reference`.
    pub fn desk(reference: Reference) -> Self {
        // brightness, saturation, warmth, contrast, texture, centredness, fill, alignment
        let clusters: [(&str, Features); 8] = [
            ("light and warm", [0.8, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.2]),
            ("dark and vivid", [-0.7, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2]),
            ("cool and crisp", [0.0, 0.0, -0.7, 0.7, 0.0, 0.0, 0.0, 0.2]),
            ("muted and smooth", [0.0, -0.7, 0.0, 0.0, -0.7, 0.0, 0.0, 0.2]),
            ("close and vivid", [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.8, 0.2]),
            ("distant and centred", [0.0, 0.0, 0.0, 0.0, 0.0, 0.6, -0.8, 0.2]),
            ("faithful", [0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.9]),
            ("dark, warm and close", [-0.6, 0.0, 0.6, 0.0, 0.0, 0.0, 0.5, 0.2]),
        ];
        let clusters =
            clusters.into_iter().map(|(name, centre)| Cluster { name: name.into(), centre }).collect();
        Self { clusters, spread: 0.25, strength: 2.0, inconsistent: 0.1, lapse: 0.5, reference }
    }
}

/// Whether a user's choices are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Some of her choices are.
    Seen,
    /// None of them is, and she may belong to the cluster that no seen user belongs to.
    Unseen,
}

/// One user.
#[derive(Debug, Clone, PartialEq)]
pub struct Taste {
    /// Her cluster's place in [`Config::clusters`].
    pub cluster: usize,
    /// Her weights.
    pub weights: Features,
    /// How often she chooses by a coin.
    pub lapse: f64,
}

impl Taste {
    /// Her utility of a picture.
    pub fn utility(&self, features: &Features) -> f64 {
        self.weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum()
    }

    /// The probability that she prefers the first picture.
    pub fn prefers(&self, first: &Features, second: &Features) -> f64 {
        let margin = self.utility(first) - self.utility(second);
        (1.0 - self.lapse) / (1.0 + (-margin).exp()) + 0.5 * self.lapse
    }

    /// Which picture she chooses: 0 or 1.
    pub fn choose(&self, first: &Features, second: &Features, draws: &mut Stream) -> usize {
        usize::from(!draws.chance(self.prefers(first, second)))
    }

    /// The angle's cosine between two users' weights.
    pub fn likeness(&self, other: &Self) -> f64 {
        let length = |taste: &Self| taste.weights.iter().map(|weight| weight * weight).sum::<f64>().sqrt();
        let product = self.weights.iter().zip(&other.weights).map(|(a, b)| a * b).sum::<f64>();
        product / (length(self) * length(other)).max(f64::MIN_POSITIVE)
    }
}

/// A population of tastes.
#[derive(Debug, Clone)]
pub struct Tastes {
    seed: Seed,
    config: Config,
}

impl Tastes {
    /// The population of `config`; another seed has other users.
    ///
    /// # Panics
    /// Where there are fewer than two clusters.
    pub fn new(seed: Seed, config: Config) -> Self {
        assert!(config.clusters.len() > 1, "one cluster is for unseen users alone");
        Self { seed, config }
    }

    /// What it is like.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// User number `index` of a kind; the kinds share no user.
    pub fn user(&self, kind: Kind, index: u64) -> Taste {
        let (purpose, clusters) = match kind {
            Kind::Seen => ("tastes seen", self.config.clusters.len() - 1),
            Kind::Unseen => ("tastes unseen", self.config.clusters.len()),
        };
        let mut draws = stream(self.seed, purpose, index);
        let cluster = draws.below(clusters);
        let centre = &self.config.clusters[cluster].centre;
        let length = centre.iter().map(|value| value * value).sum::<f64>().sqrt();
        let around = centre.map(|value| value / length + self.config.spread * draws.normal());
        let length = around.iter().map(|value| value * value).sum::<f64>().sqrt();
        let inconsistent = draws.chance(self.config.inconsistent);
        Taste {
            cluster,
            weights: around.map(|value| self.config.strength * value / length),
            lapse: if inconsistent { self.config.lapse } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::population::RENDERS;
    use super::*;

    fn tastes() -> Tastes {
        Tastes::new(Seed::new(5), Config::desk(RENDERS))
    }

    #[test]
    fn users_vary_around_their_clusters_and_one_cluster_is_unseen() {
        let tastes = tastes();
        let last = tastes.config().clusters.len() - 1;
        let of = |kind| (0..400).map(|index| tastes.user(kind, index)).collect::<Vec<_>>();
        let (seen, unseen) = (of(Kind::Seen), of(Kind::Unseen));
        assert!(seen.iter().all(|user| user.cluster != last));
        let held_out = unseen.iter().filter(|user| user.cluster == last).count();
        assert!((25..80).contains(&held_out), "{held_out} of 400, an eighth on average");
        let odd = seen.iter().filter(|user| user.lapse > 0.0).count();
        assert!((20..65).contains(&odd), "{odd} of 400, a tenth on average");
        let mean = |same: bool| {
            let pairs = seen.iter().enumerate().flat_map(|(i, a)| seen[i + 1..].iter().map(move |b| (a, b)));
            let likeness: Vec<f64> =
                pairs.filter(|(a, b)| (a.cluster == b.cluster) == same).map(|(a, b)| a.likeness(b)).collect();
            likeness.iter().sum::<f64>() / likeness.len() as f64
        };
        assert!(mean(true) > 0.5 && mean(false) < 0.2, "{} and {}", mean(true), mean(false));
        for user in seen.iter().chain(&unseen) {
            let length = user.weights.iter().map(|weight| weight * weight).sum::<f64>().sqrt();
            assert!((length - 2.0).abs() < 1e-12);
        }
        assert_eq!(tastes.user(Kind::Seen, 7), seen[7]);
        assert_ne!(Tastes::new(Seed::new(6), Config::desk(RENDERS)).user(Kind::Seen, 7), seen[7]);
    }

    #[test]
    fn choices_are_bradley_terry_with_lapses() {
        let mut first = [0.0; FEATURES];
        first[0] = 1.0;
        let second = [0.0; FEATURES];
        let mut weights = [0.0; FEATURES];
        weights[0] = 1.5;
        let user = Taste { cluster: 0, weights, lapse: 0.0 };
        assert!((user.prefers(&first, &second) - 1.0 / (1.0 + (-1.5f64).exp())).abs() < 1e-12);
        assert!((user.prefers(&first, &second) + user.prefers(&second, &first) - 1.0).abs() < 1e-12);
        let lapsing = Taste { lapse: 1.0, ..user.clone() };
        assert!((lapsing.prefers(&first, &second) - 0.5).abs() < 1e-12);
        let mut draws = stream(Seed::new(1), "choices", 0);
        let chosen = (0..4000).filter(|_| user.choose(&first, &second, &mut draws) == 0).count();
        // Four standard errors.
        assert!((chosen as f64 / 4000.0 - 0.8176).abs() < 0.0245, "{chosen}");
    }
}
