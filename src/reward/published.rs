//! The public reward models that `ppd score --reward` knows: their names, and which scale each one's numbers are on.
//!
//! The same network's number is printed in the literature as a cosine, as a hundred times it, or times a temperature; the
//! version beside every score says which, so that no two scales are ever compared by mistake.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A public reward model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Published {
    /// OpenCLIP ViT-H/14.
    Clip,
    /// LAION's aesthetic predictor.
    Aesthetic,
    /// HPS v2, as first released.
    HpsV20,
    /// HPS v2.1, another model on another scale.
    HpsV21,
    /// PickScore.
    PickScore,
    /// ImageReward.
    ImageReward,
}

impl Published {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Clip, Self::Aesthetic, Self::HpsV20, Self::HpsV21, Self::PickScore, Self::ImageReward];

    /// Its name on the command line and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Aesthetic => "aesthetic",
            Self::HpsV20 => "hps-v2.0",
            Self::HpsV21 => "hps-v2.1",
            Self::PickScore => "pick-score",
            Self::ImageReward => "image-reward",
        }
    }

    /// What fixes the scale of its numbers; stands beside each of them.
    pub fn version(self) -> &'static str {
        match self {
            Self::Clip => "100cos",
            Self::Aesthetic => "laion-v2-linear",
            Self::HpsV20 => "v2.0-100cos",
            Self::HpsV21 => "v2.1-100cos",
            Self::PickScore => "v1-scale-cos",
            Self::ImageReward => "v1.0-standardized",
        }
    }

    /// How its number is made.
    pub fn formula(self) -> &'static str {
        match self {
            Self::Clip | Self::HpsV20 | Self::HpsV21 => "100 · cos(image, prompt)",
            Self::Aesthetic => "LAION's linear head on the unit image embedding; the prompt is not read",
            Self::PickScore => "exp(logit_scale) · cos(image, prompt)",
            Self::ImageReward => "(head(BLIP(image, prompt)) − 0.16717…) / 1.03334…",
        }
    }

    /// The one of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|published| published.name() == name)
    }
}

impl TryFrom<String> for Published {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::of(&name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("unknown public reward model `{name}`, expected one of {known}")
        })
    }
}

impl From<Published> for String {
    fn from(published: Published) -> Self {
        published.name().to_owned()
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_tell_them_apart() {
        for (i, one) in Published::ALL.into_iter().enumerate() {
            assert_eq!(Published::of(one.name()), Some(one));
            for other in Published::ALL.into_iter().skip(i + 1) {
                assert_ne!(one.name(), other.name());
                assert_ne!(one.version(), other.version());
            }
        }
        assert_eq!(Published::of("hps"), None, "which of the two is meant must be said");
    }
}
