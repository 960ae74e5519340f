//! The networks, in the layouts of their public checkpoints.

pub mod blip;
mod blocks;
pub mod clip;
pub mod latent_codec;
pub mod layout;
pub mod stage_c;
pub mod tokenizer;
