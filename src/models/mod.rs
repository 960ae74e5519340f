//! The networks, in the layouts of their public checkpoints.

mod blocks;
pub mod clip;
pub mod latent_codec;
pub mod layout;
pub mod llava_onevision;
pub mod stage_c;
pub mod tokenizer;
