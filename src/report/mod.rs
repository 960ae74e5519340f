//! Tables and figures from records alone.

pub mod panel;
pub mod plot;
