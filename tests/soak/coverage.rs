//! Simulated studies with a known mean, and how often the interval of each design holds it.

use ppd::rng::{Stream, stream};
use ppd::stats::{Clusters, Crossed, mean_interval};
use ppd::units::Seed;
use rayon::prelude::*;

/// What is drawn for the effects of seeds and prompts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Standard normal.
    Normal,
    /// Exponential of mean 1, less 1: skewness 2.
    Skewed,
    /// Wins: 1, 0 or a tie, from a normal of the given parts against thresholds.
    Wins,
}

/// A study: how many seeds and prompts, and the standard deviations of what they and a single cell add.
#[derive(Debug, Clone, Copy)]
pub struct Design {
    pub seeds: usize,
    pub prompts: usize,
    pub mean: f64,
    pub by_seed: f64,
    pub by_prompt: f64,
    pub by_cell: f64,
    pub shape: Shape,
}

/// One simulated study and the mean it was drawn around.
pub struct Study {
    pub values: Crossed,
    pub truth: f64,
}

impl Design {
    /// Seeds and prompts add about the same to the variance of the mean.
    pub const BALANCED: Self = Self {
        seeds: 5,
        prompts: 100,
        mean: 0.3,
        by_seed: 0.2,
        by_prompt: 1.0,
        by_cell: 1.0,
        shape: Shape::Normal,
    };

    /// Draws study number `index` of this design.
    pub fn draw(&self, index: u64) -> Study {
        let mut stream = stream(Seed::new(index), "simulated study", 0);
        let draw = if self.shape == Shape::Skewed { exponential } else { Stream::normal };
        let seeds: Vec<f64> = (0..self.seeds).map(|_| self.by_seed * draw(&mut stream)).collect();
        let mut values = Vec::with_capacity(self.seeds * self.prompts);
        for _ in 0..self.prompts {
            let prompt = self.mean + self.by_prompt * draw(&mut stream);
            for seed in &seeds {
                let value = prompt + seed + self.by_cell * draw(&mut stream);
                values.push(match self.shape {
                    Shape::Wins if value > TIE => 1.0,
                    Shape::Wins if value < -TIE => 0.0,
                    Shape::Wins => 0.5,
                    _ => value,
                });
            }
        }
        let truth = match self.shape {
            Shape::Wins => {
                let spread = self.by_seed.hypot(self.by_prompt).hypot(self.by_cell);
                let below = |x: f64| ppd::stats::distribution::normal_cdf((x - self.mean) / spread);
                1.0 - (below(TIE) + below(-TIE)) / 2.0
            }
            _ => self.mean,
        };
        Study { values: Crossed::new(self.seeds, self.prompts, values).expect("finite"), truth }
    }

    /// The share of `studies` whose 95 % interval holds the truth; below five seeds, the truth given those seeds.
    pub fn coverage(&self, studies: u64, resamples: usize) -> f64 {
        let covered = (0..studies).into_par_iter().filter(|&index| {
            let study = self.draw(index);
            let seed = Seed::new(1_000_000 + index);
            mean_interval(&study.values, 0.95, resamples, seed).expect("valid").covers(study.truth)
        });
        covered.count() as f64 / studies as f64
    }
}

/// An exponential effect of mean zero: variance 1, skewness 2.
pub fn exponential(stream: &mut Stream) -> f64 {
    -(1.0 - stream.uniform()).ln() - 1.0
}

/// Half the width of a tie.
const TIE: f64 = 0.1;

/// The designs that the coverage is held for.
pub fn designs() -> Vec<(String, Design)> {
    let mut designs = Vec::new();
    for seeds in [5, 8] {
        let base = Design { seeds, ..Design::BALANCED };
        let per_seed = |share: f64| (share * seeds as f64 / base.prompts as f64).sqrt();
        for (name, design) in [
            ("nothing but noise", Design { by_seed: 0.0, by_prompt: 0.0, ..base }),
            ("prompts only", Design { by_seed: 0.0, by_prompt: 2.0, ..base }),
            ("seeds only", Design { by_seed: 1.0, by_prompt: 0.0, by_cell: 0.2, ..base }),
            ("seeds and prompts alike", Design { by_seed: per_seed(1.0), ..base }),
            ("seeds three times prompts", Design { by_seed: per_seed(3.0), ..base }),
            ("seeds six times prompts", Design { by_seed: per_seed(6.0), by_cell: 0.3, ..base }),
            ("prompts three times seeds", Design { by_seed: per_seed(1.0 / 3.0), ..base }),
            ("512 prompts", Design { prompts: 512, by_seed: 0.05, ..base }),
            ("skewed", Design { shape: Shape::Skewed, by_seed: per_seed(0.3), ..base }),
            ("wins with ties", Design { shape: Shape::Wins, by_seed: per_seed(1.0), ..base }),
        ] {
            designs.push((format!("{seeds} seeds, {name}"), design));
        }
    }
    // Given the models, only prompts vary: the truth holds for seeds without an effect.
    let conditional = Design { seeds: 3, by_seed: 0.0, ..Design::BALANCED };
    designs.push(("3 seeds, conditional on them".to_owned(), conditional));
    designs
}

/// The share of `studies` whose cluster bootstrap holds the mean: `clusters` of uneven size that share an effect, drawn
/// by `effect` with mean zero.
pub fn cluster_coverage(
    clusters: u64,
    effect: fn(&mut Stream) -> f64,
    studies: u64,
    resamples: usize,
) -> f64 {
    let covered = (0..studies).into_par_iter().filter(|&index| {
        let mut stream = stream(Seed::new(index), "simulated clusters", clusters);
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for cluster in 0..clusters {
            let effect = effect(&mut stream);
            for _ in 0..2 + cluster % 3 {
                values.push(0.5 + effect + stream.normal());
                labels.push(cluster);
            }
        }
        let grouped = Clusters::new(&values, &labels).expect("finite");
        grouped.inference(resamples, Seed::new(2_000_000 + index)).expect("valid").estimate(0.95).covers(0.5)
    });
    covered.count() as f64 / studies as f64
}
