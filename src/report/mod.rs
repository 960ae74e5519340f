//! Tables and figures from records alone.

pub mod plot;
