//! Preference objectives: pure functions of per-sample denoising errors.
