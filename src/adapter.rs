//! The user branch: decoupled cross-attention's parameters, user projector, user dropout.
