//! Experiment files to a plan of cells; every refusal happens here.

pub mod claim;
