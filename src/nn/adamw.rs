//! AdamW
