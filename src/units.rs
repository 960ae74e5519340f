//! Quantities with one checked constructor each, so that a value out of range is refused where it is written.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Declares a number that must satisfy a condition; serde goes through the same check as `new`.
macro_rules! checked_number {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// Checks and wraps a number.
            ///
            /// # Errors
            /// Where the number is outside its range; the message names the range.
            pub fn new(value: f64) -> Result<Self> {
                let ok: fn(f64) -> bool = $ok;
                if ok(value) {
                    Ok(Self(value))
                } else {
                    Err(Error::Spec(format!(concat!(stringify!($name), " must be ", $expected, ", got {}"), value)))
                }
            }

            /// The number.
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = Error;
            fn try_from(value: f64) -> Result<Self> {
                Self::new(value)
            }
        }

        impl From<$name> for f64 {
            fn from(value: $name) -> f64 {
                value.0
            }
        }
    };
}

checked_number!(
    /// A position in diffusion time: 0 is clean, 1 is pure noise. Never the optimiser's step.
    Timestep, "in [0, 1]", |t| (0.0..=1.0).contains(&t)
);
checked_number!(
    /// The natural logarithm of the signal-to-noise ratio, `ln(ᾱ / (1 − ᾱ))`.
    LogSnr, "finite", |l| l.is_finite()
);
checked_number!(
    /// The weight of classifier-free guidance; 1 means none.
    GuidanceScale, "at least 1 (1 = no guidance)", |g| g.is_finite() && g >= 1.0
);
checked_number!(
    /// The strength of the KL constraint in a preference objective; its convention is recorded beside it.
    Beta, "a finite number above 0", |b| b.is_finite() && b > 0.0
);

checked_number!(
    /// The number of timesteps T that multiplies β in the paper's Eq. 6.
    TimestepCount, "a finite number above 0", |t| t.is_finite() && t > 0.0
);

/// The seed of one image or of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(u64);

impl Seed {
    /// Wraps a number; every number is a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A SHA-256 digest, printed as hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(hex: String) -> Result<Self> {
        if hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(hex));
        }
        Err(Error::Spec(format!(
            "`{hex}` is no SHA-256 digest: expected 64 hexadecimal digits in lower case"
        )))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hasher(Sha256::new().chain_update(bytes))
    }

    /// The digest that a hasher has gathered.
    pub fn from_hasher(hasher: Sha256) -> Self {
        Self(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// All 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first twelve digits: enough to name a file.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_enforced_on_both_ways_in() {
        assert!(Beta::new(0.0).is_err());
        assert!(GuidanceScale::new(0.5).unwrap_err().to_string().contains("at least 1"));
        assert!(Timestep::new(1.0).is_ok());
        assert!(serde_json::from_str::<Timestep>("1.5").is_err());
        assert_eq!(serde_json::to_string(&Beta::new(0.5).unwrap()).unwrap(), "0.5");
    }

    #[test]
    fn digest_is_sha256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").hex(), empty);
        assert_eq!(Digest::try_from(empty.to_owned()).unwrap(), Digest::of(b""));
        for wrong in ["", "e3b0c4", &empty.to_uppercase(), &empty.replace('b', "g")] {
            let message = Digest::try_from(wrong.to_owned()).unwrap_err().to_string();
            assert!(message.contains("64 hexadecimal digits"), "{message}");
        }
    }
}
