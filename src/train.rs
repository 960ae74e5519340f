//! The one loop that fine-tunes a denoiser, for every objective.
