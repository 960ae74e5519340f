//! The integration suite: one binary, one module for each floor's oracles and families.

mod cli;
mod clip;
mod diffusion;
mod house;
mod objective;
mod reward;
mod stage_c;
