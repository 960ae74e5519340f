//! Reward models: images and prompts in, one score each out.
