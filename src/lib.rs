//! `ppd`: a reproducible research harness for Personalized Preference Fine-tuning of diffusion models.
//!
//! **An experiment is a file. A run is a record. A table is a function of records.**
//!
//! The floors below import only from floors above them in this list (tests/suite/house.rs holds them to it).
//!
//! ```text
//! ground        error units pixels progress rng template stats judgement        plain values: no tensor, no file, no clock
//! first floor   nn models diffusion objective reward adapter scenes      mathematics
//! second floor  weights hub cache prior decoder encoder base vlm reward_checkpoint image data record judge checkpoint provenance
//! third floor   spec train pretrain collective generate embed evaluate identify launch      the work
//! side wing     report                                        reading only, no tensor
//! roof          cmd                                           prints, parses, exits
//! ```
//!
//! Letters in shape comments: `B` batch, `C` channels, `H` height, `W` width, `N` tokens (positions), `D` token width.
#![warn(missing_docs)]

pub mod error;
pub mod judgement;
pub mod pixels;
pub mod progress;
pub mod rng;
pub mod stats;
pub mod template;
pub mod units;

pub mod adapter;
pub mod diffusion;
pub mod models;
pub mod nn;
pub mod objective;
pub mod reward;
pub mod scenes;

pub mod base;
pub mod cache;
pub mod checkpoint;
pub mod data;
pub mod decoder;
pub mod encoder;
pub mod hub;
pub mod image;
pub mod judge;
pub mod prior;
pub mod provenance;
pub mod record;
pub mod reward_checkpoint;
pub mod vlm;
pub mod weights;

pub mod collective;
pub mod embed;
pub mod evaluate;
pub mod generate;
pub mod identify;
pub mod launch;
pub mod pretrain;
pub mod spec;
pub mod train;

pub mod report;

pub mod cmd;
