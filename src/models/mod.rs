//! The networks, in the layouts of their public checkpoints.

pub mod blip;
mod blocks;
pub mod clip;
pub mod effnet;
pub mod latent_codec;
pub mod layout;
pub mod llava_onevision;
pub mod previewer;
pub mod stage_a;
pub mod stage_b;
pub mod stage_c;
pub mod tokenizer;
