//! The integration suite: one binary, one module for each floor's oracles and families.

mod clip;
mod diffusion;
mod objective;
mod reward;
mod stage_c;
