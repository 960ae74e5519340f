//! The desk models' own training loops: codec, CLIP, heads and denoiser, each resumable, seeded and described by a
//! manifest. Nothing here is part of the paper; it makes the small world in which the paper's study can be run.

pub mod aesthetic;
pub mod classify;
pub mod clip;
pub mod codec;
pub mod denoiser;
pub mod hps;
mod manifest;
mod pairs;
mod stored;
mod trainer;
pub mod vlm;

pub use manifest::{FILE as MANIFEST, Manifest};
pub use trainer::{FormerPlan, Optimisation, Step, Trainer};
