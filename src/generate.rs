//! Adapter, prompts, users and seeds to images.
