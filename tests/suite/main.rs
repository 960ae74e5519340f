//! The integration suite: one binary, one module for each floor's oracles and families.
mod stage_c;
