//! The networks, in the layouts of their public checkpoints.
