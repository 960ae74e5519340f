//! The integration suite: one binary, one module for each floor's oracles and families.

mod diffusion;
mod objective;
mod stage_c;
