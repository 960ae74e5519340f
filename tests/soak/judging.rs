//! Simulated studies with a judge of known bias and noise, and how often each interval holds what it is about.

use ppd::rng::stream;
use ppd::stats::TwoWay;
use ppd::stats::judging::bias_and_noise::{Answer, Oracle};
use ppd::stats::judging::correction::{Corrected, Inclusion, Label, Plan, Predicted, Scope, Weight};
use ppd::units::Seed;
use rayon::prelude::*;

/// Users with tastes of their own, several captions each, and a judge that is asked about all of them in both orders.
#[derive(Debug, Clone, Copy)]
pub struct Study {
    pub users: u64,
    /// Users whose pairs are labelled.
    pub labelled: u64,
    /// The judge's position bias, in logits.
    pub bias: f64,
    /// How often the judge throws a coin.
    pub noise: f64,
    /// Whether predictions are the judge's probabilities, else ties as half.
    pub probabilities: bool,
    /// Whether labels are probabilities, else choices.
    pub odds_known: bool,
    pub weight: Weight,
    pub scope: Scope,
}

/// Whether each interval of a study holds the truth: bias, noise, corrected rate.
pub type Held = [bool; 3];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// What is true of users in general: mean and spread of their log-odds, and the spread within one.
const TASTE: [f64; 3] = [0.4, 1.0, 1.2];

impl Study {
    pub const PLAIN: Self = Self {
        users: 120,
        labelled: 40,
        bias: 0.6,
        noise: 0.1,
        probabilities: false,
        odds_known: false,
        weight: Weight::Full,
        scope: Scope::AskedPairs,
    };

    /// The designs that the coverage is held for.
    pub fn designs() -> Vec<(&'static str, Self)> {
        let plain = Self::PLAIN;
        vec![
            ("ties as half, choices", plain),
            ("no bias, no noise", Self { bias: 0.0, noise: 0.0, ..plain }),
            ("strong bias, no noise", Self { bias: -1.5, noise: 0.0, ..plain }),
            ("much noise", Self { bias: 1.0, noise: 0.5, ..plain }),
            ("probabilities, odds", Self { probabilities: true, odds_known: true, ..plain }),
            ("tuned", Self { weight: Weight::Tuned, ..plain }),
            (
                "tuned, probabilities, much noise",
                Self { weight: Weight::Tuned, probabilities: true, noise: 0.4, ..plain },
            ),
            ("twenty labelled users", Self { labelled: 20, ..plain }),
            ("users in general", Self { scope: Scope::Users, ..plain }),
            ("users in general, tuned", Self { scope: Scope::Users, weight: Weight::Tuned, ..plain }),
        ]
    }

    /// Draws study number `index` and holds its intervals to the truth.
    pub fn held(&self, index: u64) -> Held {
        let mut draws = stream(Seed::new(index), "simulated judge", 0);
        let [mean, among, within] = TASTE;
        let (mut predicted, mut truths, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for user in 0..self.users {
            let taste = mean + among * draws.normal();
            for _ in 0..3 + user % 5 {
                let d = taste + within * draws.normal();
                let mut left = 0.0;
                for log_odds in [d, -d] {
                    let first =
                        draws.chance((1.0 - self.noise) * sigmoid(log_odds + self.bias) + self.noise / 2.0);
                    answers.push(Answer { log_odds, first });
                    left += if first == (log_odds == d) { 0.5 } else { 0.0 };
                }
                let odds = [d, -d].map(|d| {
                    let p = (1.0 - self.noise) * sigmoid(d + self.bias) + self.noise / 2.0;
                    (p / (1.0 - p)).ln()
                });
                let prediction = if self.probabilities { sigmoid((odds[0] - odds[1]) / 2.0) } else { left };
                predicted.push(Predicted { user, pair: truths.len() as u64, prediction });
                let choice = f64::from(u8::from(draws.chance(sigmoid(d))));
                truths.push(if self.odds_known { sigmoid(d) } else { choice });
            }
        }
        let mut circle: Vec<u64> = (0..self.users).collect();
        draws.shuffle(&mut circle);
        let sampled = &circle[..self.labelled as usize];
        let labels: Vec<Label> = predicted
            .iter()
            .filter(|predicted| sampled.contains(&predicted.user))
            .map(|predicted| Label { pair: predicted.pair, truth: truths[predicted.pair as usize] })
            .collect();
        let truth = match self.scope {
            Scope::AskedPairs => truths.iter().sum::<f64>() / truths.len() as f64,
            Scope::Users => mean_preference(),
        };
        let plan = Plan { inclusion: Inclusion::Simple, scope: self.scope, weight: self.weight, level: 0.95 };
        let corrected = match Corrected::of(&predicted, &labels, &plan).expect("a whole study") {
            Corrected::Corrected(found) => found.estimate.covers(truth),
            Corrected::NotCorrectable { reason } => panic!("{reason:?}"),
        };
        match Oracle::of(&answers, 0.95).expect("a whole study") {
            Oracle::Fitted(fit) => [fit.bias.covers(self.bias), fit.noise.covers(self.noise), corrected],
            Oracle::NotIdentifiable { reason } => panic!("{reason:?}"),
        }
    }

    /// Studies whose intervals hold the truth.
    pub fn coverage(&self, studies: u64) -> [u64; 3] {
        let held = (0..studies).into_par_iter().map(|index| self.held(index).map(u64::from));
        held.reduce(|| [0; 3], |a, b| [a[0] + b[0], a[1] + b[1], a[2] + b[2]])
    }
}

/// The mean of σ(d) over users in general, by the midpoint rule.
fn mean_preference() -> f64 {
    let [mean, among, within] = TASTE;
    let (spread, steps) = (among.hypot(within), 20_000);
    let z = |step: i32| -8.0 + 16.0 * (f64::from(step) + 0.5) / f64::from(steps);
    let (mut sum, mut weights) = (0.0, 0.0);
    for step in 0..steps {
        let weight = (-z(step) * z(step) / 2.0).exp();
        sum += weight * sigmoid(mean + spread * z(step));
        weights += weight;
    }
    sum / weights
}

/// Users and captions that are crossed but not balanced, and wins with ties among them.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub users: u64,
    pub captions: u64,
    /// Whether users' captions are drawn from all, else each has her own.
    pub shared: bool,
    pub each: u64,
    pub by_user: f64,
    pub by_caption: f64,
}

impl Layout {
    pub fn designs() -> Vec<(&'static str, Self)> {
        let plain = Self { users: 60, captions: 40, shared: true, each: 6, by_user: 0.7, by_caption: 0.7 };
        vec![
            ("users and captions alike", plain),
            ("nothing but chance", Self { by_user: 0.0, by_caption: 0.0, ..plain }),
            ("users only", Self { by_user: 1.2, by_caption: 0.0, ..plain }),
            ("captions only", Self { by_user: 0.0, by_caption: 1.2, ..plain }),
            ("captions of one's own", Self { shared: false, by_caption: 0.0, ..plain }),
            ("one pair a user", Self { users: 200, each: 1, captions: 50, ..plain }),
            ("few captions", Self { captions: 12, ..plain }),
        ]
    }

    fn covers(&self, index: u64, resamples: usize) -> bool {
        let mut draws = stream(Seed::new(index), "simulated layout", self.users);
        let captions: Vec<f64> = (0..self.captions).map(|_| self.by_caption * draws.normal()).collect();
        let (mut values, mut users, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for user in 0..self.users {
            let taste = 0.4 + self.by_user * draws.normal();
            // Between half and one and a half times as many as the others.
            for row in 0..(self.each + user % (self.each + 1)).div_ceil(2).max(1) {
                let (label, effect) = match self.shared {
                    true => {
                        let caption = draws.below(captions.len());
                        (caption as u64, captions[caption])
                    }
                    false => (1000 * (user + 1) + row, self.by_caption * draws.normal()),
                };
                values.push(win(taste + effect + draws.normal()));
                users.push(user);
                labels.push(label);
            }
        }
        let rows = TwoWay::new(&values, &users, &labels).expect("finite");
        let inference = rows.rate_inference(resamples, Seed::new(index)).expect("valid");
        inference.estimate(0.95).covers(self.truth())
    }

    fn truth(&self) -> f64 {
        let spread = (1.0 + self.by_user.powi(2) + self.by_caption.powi(2)).sqrt();
        let below = |x: f64| ppd::stats::distribution::normal_cdf((x - 0.4) / spread);
        1.0 - (below(TIE) + below(-TIE)) / 2.0
    }

    /// Studies whose interval holds the win rate.
    pub fn coverage(&self, studies: u64, resamples: usize) -> u64 {
        (0..studies).into_par_iter().filter(|index| self.covers(*index, resamples)).count() as u64
    }
}

/// Half the width of a tie.
const TIE: f64 = 0.4;

fn win(by: f64) -> f64 {
    match by {
        _ if by > TIE => 1.0,
        _ if by < -TIE => 0.0,
        _ => 0.5,
    }
}
