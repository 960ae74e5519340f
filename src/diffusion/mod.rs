//! Schedules, targets, samplers and guidance.
