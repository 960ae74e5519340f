//! Weight files: safetensors and .pt, checked by digest.
