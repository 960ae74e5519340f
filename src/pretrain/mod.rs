//! The desk models' own training loops.
