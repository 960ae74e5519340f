//! The networks, in the layouts of their public checkpoints.

pub mod stage_c;
