//! The integration suite: one binary, one module for each floor's oracles and families.

mod adamw;
mod assets;
mod cli;
mod clip;
mod data;
mod decoder;
mod diffusion;
mod fetch;
mod house;
mod judge;
mod judge_server;
mod judging;
mod llava_onevision;
mod local_hub;
mod objective;
mod paper;
mod pictures;
mod pipeline;
mod ppd_step;
mod reward;
mod score;
mod seeded;
mod stage_c;
mod stats;
mod study;
mod training;
