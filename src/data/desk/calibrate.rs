//! Fits the population behind raw labels to published agreements.
//!
//! On Pick-a-Pic, CLIP, the aesthetic score and HPS choose as people do in 57, 51 and 59 % of pairs. Three numbers of
//! the population are free: how much alignment counts, how much of the taste is that of the users behind HPS, and how
//! much is the aesthetic raters'. What makes people differ and err stays as it is.

use super::{Judged, Jury, expected_agreement};
use crate::data::scores::Scores;
use crate::error::Result;
use crate::scenes::measure::COUNT;
use crate::scenes::population::{AESTHETIC_TASTE, Config, Kind, Population};

/// The share of pairs on which a reward chooses as people do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The reward, as the scores name it.
    pub reward: &'static str,
    /// Its agreement with people.
    pub agreement: f64,
}

/// Pick-a-Pic's agreements (PPD, Section 5.1).
pub const PICK_A_PIC: [Target; 3] = [
    Target { reward: "clip", agreement: 0.57 },
    Target { reward: "aesthetic", agreement: 0.51 },
    Target { reward: "hps", agreement: 0.59 },
];

/// A point of the search: the weight of alignment, the share of HPS's taste, the share of the raters' taste.
type Point = [f64; 3];

/// Where the search begins, and the largest step in each direction.
const START: Point = [0.5, 0.4, 0.0];
const FIRST_STEP: f64 = 0.4;
const LAST_STEP: f64 = 0.005;
/// No weight is larger than this: a reward that is blind to what users see cannot be reached by shouting.
const LARGEST: f64 = 12.0;

fn config(start: &Config, [alignment, of_hps, of_raters]: Point) -> Config {
    let hps = Config::of(Kind::Hps).taste;
    let taste: [f64; COUNT] = std::array::from_fn(|k| of_hps * hps[k] + of_raters * AESTHETIC_TASTE[k]);
    Config { alignment, taste, ..start.clone() }
}

/// The population whose expected agreements with the rewards are nearest to `targets`, all else as in `start`.
///
/// A compass search from a fixed point: the same pairs give the same population. Targets whose reward has no scores are
/// left out; without any, `start` comes back.
///
/// # Errors
/// None that [`Scores`] lets happen; kept for the look-up by name.
pub fn calibrate(
    judged: &[Judged],
    scores: &Scores,
    start: &Config,
    jury: Jury,
    targets: &[Target],
) -> Result<Config> {
    let mut known = Vec::new();
    for target in targets.iter().filter(|target| scores.rewards().iter().any(|name| name == target.reward)) {
        known.push((target.agreement, scores.get(target.reward)?));
    }
    if known.is_empty() || judged.is_empty() {
        return Ok(start.clone());
    }
    let miss = |point: Point| -> f64 {
        let population = Population::with(jury.seed, Kind::Pick, config(start, point));
        let agreement = |sides: &[[f64; 2]]| expected_agreement(judged, sides, &population, jury);
        known.iter().map(|(target, sides)| (agreement(sides).unwrap_or(0.5) - target).powi(2)).sum()
    };
    let (mut best, mut step) = (START, FIRST_STEP);
    let mut least = miss(best);
    while step >= LAST_STEP {
        let mut moved = false;
        for axis in 0..best.len() {
            for sign in [1.0, -1.0] {
                let mut point = best;
                point[axis] = (point[axis] + sign * step).clamp(-LARGEST, LARGEST);
                // Nobody prefers pictures for missing the caption.
                point[0] = point[0].max(0.0);
                let missed = miss(point);
                if missed < least {
                    (best, least, moved) = (point, missed, true);
                }
            }
        }
        if !moved {
            step /= 2.0;
        }
    }
    Ok(config(start, best))
}
