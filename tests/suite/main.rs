//! The integration suite: one binary, one module for each floor's oracles and families.

mod adamw;
mod assets;
mod cli;
mod clip;
mod data;
mod diffusion;
mod house;
mod objective;
mod pipeline;
mod ppd_step;
mod reward;
mod score;
mod seeded;
mod stage_c;
mod stats;
mod study;
mod training;
