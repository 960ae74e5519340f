//! Noise schedules: how much signal is left at each timestep, and back.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{per_sample, same_shape};
use crate::error::{Error, Result};
use crate::units::{LogSnr, Timestep};

/// A range of timesteps, written `[from, to]`: those that training draws from, all alike, or that guidance is limited to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "[f64; 2]", into = "[f64; 2]")]
pub struct TimestepRange([f64; 2]);

impl TimestepRange {
    /// Every timestep, as published.
    pub const ALL: Self = Self([0.0, 1.0]);

    /// From the cleaner end to the noisier.
    ///
    /// # Errors
    /// [`Error::Spec`] unless `0 ≤ from < to ≤ 1`.
    pub fn new(from: f64, to: f64) -> Result<Self> {
        if 0.0 <= from && from < to && to <= 1.0 {
            return Ok(Self([from, to]));
        }
        Err(Error::Spec(format!("timesteps must be [from, to] with 0 ≤ from < to ≤ 1, got [{from}, {to}]")))
    }

    /// Whether no timestep is left out.
    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }

    /// Whether a timestep lies in it; both ends do.
    pub fn contains(&self, timestep: Timestep) -> bool {
        (self.0[0]..=self.0[1]).contains(&timestep.get())
    }

    /// The timestep that a uniform number in `[0, 1)` stands for; it falls as the number grows.
    pub fn draw(self, schedule: &Schedule, uniform: f64) -> Timestep {
        let [from, to] = self.0;
        let drawn = schedule.training_timestep((1.0 - to) + (to - from) * uniform);
        if drawn.get() > to { Timestep::new(to).expect("checked") } else { drawn }
    }
}

impl Default for TimestepRange {
    fn default() -> Self {
        Self::ALL
    }
}

impl TryFrom<[f64; 2]> for TimestepRange {
    type Error = Error;
    fn try_from([from, to]: [f64; 2]) -> Result<Self> {
        Self::new(from, to)
    }
}

impl From<TimestepRange> for [f64; 2] {
    fn from(range: TimestepRange) -> Self {
        range.0
    }
}

/// A noise schedule: `noised = √ᾱ · latents + √(1 − ᾱ) · noise`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The cosine schedule of Stable Cascade and Würstchen, with ᾱ clamped to [10⁻⁴, 0.9999].
    ///
    /// # Equation
    /// `ᾱ(t) = cos²((t + s)/(1 + s) · π/2) / cos²(s/(1 + s) · π/2)` (Nichol and Dhariwal 2021, equation 17).
    ///
    /// # Source
    /// diffusers `DDPMWuerstchenScheduler`; StableCascade `gdf.CosineSchedule`.
    Cosine {
        /// The small offset `s` that keeps a little noise at timestep 0.
        #[serde(default = "default_offset")]
        offset: f64,
        /// A power that bends time before the cosine: above 1, `1 − (1 − t)^scaler`; below 1, `t^scaler`.
        #[serde(default = "default_scaler")]
        scaler: f64,
    },
}

const fn default_offset() -> f64 {
    0.008
}

const fn default_scaler() -> f64 {
    1.0
}

/// The range that ᾱ is clamped to.
const CLAMP: (f64, f64) = (1e-4, 0.9999);

impl Default for Schedule {
    fn default() -> Self {
        Self::STABLE_CASCADE
    }
}

impl Schedule {
    /// The schedule of Stable Cascade's published weights.
    pub const STABLE_CASCADE: Self = Self::Cosine { offset: default_offset(), scaler: default_scaler() };

    /// What family tests walk.
    pub const ALL: &[Self] = &[
        Self::STABLE_CASCADE,
        Self::Cosine { offset: 0.008, scaler: 0.5 },
        Self::Cosine { offset: 0.008, scaler: 2.0 },
    ];

    /// ᾱ at a timestep: the share of the noised latents' variance that is signal.
    pub fn alpha_cumprod(&self, timestep: Timestep) -> f64 {
        let Self::Cosine { offset, scaler } = *self;
        let t = timestep.get();
        let bent = if scaler > 1.0 { 1.0 - (1.0 - t).powf(scaler) } else { t.powf(scaler) };
        let cosine = quarter_turn((bent + offset) / (1.0 + offset)).cos();
        (cosine * cosine / at_zero(offset)).clamp(CLAMP.0, CLAMP.1)
    }

    /// `ln(ᾱ / (1 − ᾱ))` at a timestep.
    pub fn log_snr(&self, timestep: Timestep) -> LogSnr {
        let alpha_cumprod = self.alpha_cumprod(timestep);
        LogSnr::new((alpha_cumprod / (1.0 - alpha_cumprod)).ln()).expect("ᾱ is clamped inside (0, 1)")
    }

    /// The timestep at which the schedule, unclamped, has this log-SNR.
    ///
    /// Upstream training feeds the denoiser `timestep(log_snr(t))`, which is `t` except where ᾱ is clamped: 0.99358 for
    /// 1, 0.002257 for 0. The sampler feeds `t` itself.
    ///
    /// # Source
    /// StableCascade `gdf.CosineTNoiseCond`.
    pub fn timestep(&self, log_snr: LogSnr) -> Timestep {
        let Self::Cosine { offset, scaler } = *self;
        let alpha_cumprod = sigmoid(log_snr.get());
        let angle = (alpha_cumprod * at_zero(offset)).sqrt().acos();
        let bent = (angle / quarter_turn(1.0) * (1.0 + offset) - offset).clamp(0.0, 1.0);
        let t = if scaler > 1.0 { 1.0 - (1.0 - bent).powf(1.0 / scaler) } else { bent.powf(1.0 / scaler) };
        Timestep::new(t.clamp(0.0, 1.0)).expect("clamped to the range")
    }

    /// The timestep that upstream training feeds the denoiser for a drawn one: see [`Schedule::timestep`].
    pub fn conditioning_timestep(&self, drawn: Timestep) -> Timestep {
        self.timestep(self.log_snr(drawn))
    }

    /// The timestep that upstream training makes of a uniform number in `[0, 1)`: `clamp(1 − u + 0.001, 0.001, 1)`.
    ///
    /// # Source
    /// StableCascade `gdf.CosineSchedule.schedule`.
    pub fn training_timestep(&self, uniform: f64) -> Timestep {
        Timestep::new((1.0 - uniform + 0.001).clamp(0.001, 1.0)).expect("clamped to the range")
    }

    /// The P2 weight of a sample's loss in supervised training, `1 / (1 + SNR)`, which equals `1 − ᾱ`.
    ///
    /// # Source
    /// StableCascade `gdf.P2LossWeight` with its defaults. Diffusion-DPO has no such weight.
    pub fn p2_weight(&self, timestep: Timestep) -> f64 {
        1.0 - self.alpha_cumprod(timestep)
    }

    /// Mixes noise into clean latents, each sample at its own timestep.
    ///
    /// # Shapes
    /// `latents` and `noise` `(B, …)`, one timestep for each sample; the result has the latents' shape.
    ///
    /// # Errors
    /// Where the shapes or the number of timesteps do not fit.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &[Timestep]) -> Result<Tensor> {
        same_shape("noise", latents, noise)?;
        let alphas = timesteps.iter().map(|&t| self.alpha_cumprod(t));
        let signal = per_sample(alphas.clone().map(f64::sqrt), latents)?; // (B, 1, …)
        let noise_level = per_sample(alphas.map(|a| (1.0 - a).sqrt()), latents)?; // (B, 1, …)
        Ok((latents.broadcast_mul(&signal)? + noise.broadcast_mul(&noise_level)?)?)
    }
}

/// A fraction of a quarter turn, in radians.
fn quarter_turn(fraction: f64) -> f64 {
    fraction * std::f64::consts::FRAC_PI_2
}

/// cos² at timestep 0: what the cosine schedule divides by.
fn at_zero(offset: f64) -> f64 {
    quarter_turn(offset / (1.0 + offset)).cos().powi(2)
}

/// The logistic function.
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_timesteps_hold_every_draw() {
        let schedule = Schedule::STABLE_CASCADE;
        for uniform in [0.0, 0.25, 0.999] {
            let all = TimestepRange::ALL.draw(&schedule, uniform);
            assert_eq!(all, schedule.training_timestep(uniform), "the whole range is upstream's rule");
        }
        let upper = TimestepRange::new(0.5, 0.9).unwrap();
        assert_eq!(upper.draw(&schedule, 0.0).get(), 0.9);
        assert!((upper.draw(&schedule, 1.0).get() - 0.501).abs() < 1e-12);
        for (from, to) in [(0.5, 0.5), (0.9, 0.5), (-0.1, 1.0), (0.0, 1.1), (f64::NAN, 1.0)] {
            let message = TimestepRange::new(from, to).unwrap_err().to_string();
            assert!(message.contains("from < to"), "{message}");
        }
    }

    #[test]
    fn every_schedule_falls_and_inverts() {
        for schedule in Schedule::ALL {
            let grid: Vec<Timestep> =
                (0..=1000).map(|i| Timestep::new(f64::from(i) / 1000.0).unwrap()).collect();
            for pair in grid.windows(2) {
                assert!(
                    schedule.alpha_cumprod(pair[1]) <= schedule.alpha_cumprod(pair[0]),
                    "{schedule:?} {pair:?}"
                );
                assert!(schedule.log_snr(pair[1]) <= schedule.log_snr(pair[0]));
                assert!(schedule.p2_weight(pair[1]) >= schedule.p2_weight(pair[0]));
            }
            let inside = |a: f64| a > CLAMP.0 && a < CLAMP.1;
            let inverted: Vec<_> = grid.iter().filter(|&&t| inside(schedule.alpha_cumprod(t))).collect();
            assert!(inverted.len() > 800);
            for &t in inverted {
                let back = schedule.conditioning_timestep(t).get();
                assert!((back - t.get()).abs() < 1e-9, "{schedule:?} {t:?} came back as {back}");
            }
            assert_eq!(schedule.alpha_cumprod(grid[0]), CLAMP.1);
            assert_eq!(schedule.alpha_cumprod(grid[1000]), CLAMP.0);
        }
    }

    #[test]
    fn extreme_log_snr_stays_in_range() {
        for schedule in Schedule::ALL {
            assert_eq!(schedule.timestep(LogSnr::new(1e4).unwrap()).get(), 0.0);
            assert_eq!(schedule.timestep(LogSnr::new(-1e4).unwrap()).get(), 1.0);
        }
    }

    #[test]
    fn configuration_is_closed() {
        let read: Schedule = serde_json::from_str(r#"{"kind":"cosine"}"#).unwrap();
        assert_eq!(read, Schedule::STABLE_CASCADE);
        assert!(serde_json::from_str::<Schedule>(r#"{"kind":"cosine","ofset":0.1}"#).is_err());
    }
}
