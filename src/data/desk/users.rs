//! The desk's real-user study as a data set: who of the many users chose what between which samples of the base.

use crate::units::Digest;

/// What a caption's samples are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The vision-language models learn from them.
    Language,
    /// Users choose between them.
    Study,
}

impl Use {
    /// What the samples of `caption` are for: a third is for language, by the caption's digest.
    pub fn of(caption: &str) -> Self {
        let digest = Digest::of(format!("desk use {caption}").as_bytes());
        let byte = u8::from_str_radix(&digest.hex()[..2], 16).unwrap_or(0);
        if byte < 86 { Self::Language } else { Self::Study }
    }
}
