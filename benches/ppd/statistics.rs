//! The BCa interval of a mean.

use anyhow::Result;
use ppd::stats::Clusters;
use ppd::units::Seed;
use serde_json::json;

use crate::measured::{Measured, time};

/// PartiPrompts, three images each.
const PROMPTS: u64 = 1632;
const IMAGES: u64 = 3;
const RESAMPLES: usize = 10_000;

/// BCa of all rows clustered by prompt, with new resamples each time: on one thread, as scipy computes, or on more, which
/// scipy leaves idle.
pub fn bca(reps: usize, threads: usize) -> Result<Measured> {
    let rows = PROMPTS * IMAGES;
    let values: Vec<f64> =
        (0..rows).map(|i| f64::from((i as u32).wrapping_mul(2_654_435_761) >> 8) / 16_777_216.0).collect();
    let labels: Vec<u64> = (0..rows).map(|i| i / IMAGES).collect();
    let mut seed = 0;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let (seconds, first) = time(reps, || {
        seed += 1;
        let clusters = Clusters::new(&values, &labels)?;
        Ok(pool.install(|| clusters.inference(RESAMPLES, Seed::new(seed)))?.estimate(0.95))
    })?;
    // The twin does not cluster: only the estimate itself can agree.
    let shape = json!({"rows": rows, "resamples": RESAMPLES, "dtype": "f64", "threads": pool.current_num_threads(), "device": "cpu"});
    Ok(Measured { shape, seconds, check: vec![first.value] })
}
