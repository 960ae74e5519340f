//! An estimate is a type: a number never travels without its interval, how it was made and what is odd about it.

use serde::{Deserialize, Serialize};

/// A number with its confidence interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The point estimate.
    pub value: f64,
    /// The lower end of the interval; minus infinity where there is none.
    #[serde(with = "bound")]
    pub low: f64,
    /// The upper end of the interval; infinity where there is none.
    #[serde(with = "bound")]
    pub high: f64,
    /// The confidence level, for example 0.95.
    pub level: f64,
    /// How the interval was made.
    pub method: Method,
    /// What a reader must know beside the numbers: a fallback, a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Estimate {
    /// An estimate without a remark.
    pub fn new(value: f64, (low, high): (f64, f64), level: f64, method: Method) -> Self {
        Self { value, low, high, level, method, note: None }
    }

    /// The same estimate with `remark` added to its note.
    #[must_use]
    pub fn with_note(mut self, remark: impl AsRef<str>) -> Self {
        add_remark(&mut self.note, remark.as_ref());
        self
    }

    /// True where `value` lies in the closed interval.
    pub fn covers(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Half the length of the interval; infinite where it has no end.
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// The same estimate in percent.
    #[must_use]
    pub fn percent(mut self) -> Self {
        self.value *= 100.0;
        self.low *= 100.0;
        self.high *= 100.0;
        self
    }

    /// The same estimate, its interval cut to what the quantity can be (a rate lies in [0, 1]).
    #[must_use]
    pub fn clamped(mut self, least: f64, most: f64) -> Self {
        self.low = self.low.clamp(least, most);
        self.high = self.high.clamp(least, most);
        self
    }
}

/// Adds one remark to a note, parted from what stands there by a semicolon.
pub(crate) fn add_remark(note: &mut Option<String>, remark: &str) {
    *note = Some(match note.take() {
        Some(earlier) => format!("{earlier}; {remark}"),
        None => remark.to_owned(),
    });
}

/// How an interval was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Quantiles of the bootstrap distribution.
    Percentile,
    /// Quantiles of the bootstrap distribution reflected about the estimate.
    Basic,
    /// Bias-corrected and accelerated bootstrap (Efron 1987).
    Bca,
    /// Bootstrap over whole clusters (BCa, levels widened for the number of clusters).
    ClusterBootstrap,
    /// Bootstrap with independent weights for training seeds and for prompts, corrected for few seeds.
    CrossedBootstrap,
    /// Bootstrap with independent weights for users and for captions, over rows that need not be balanced.
    TwoWayBootstrap,
    /// Values that a likelihood-ratio test does not reject, the other parameters at their best for each of them.
    ProfileLikelihood,
    /// Student's t about a variance from leaving out one user in turn.
    Jackknife,
    /// Values of a ratio that the data do not reject (Fieller 1954), by the crossed or the prompt bootstrap.
    Fieller,
    /// Wilson's score interval of a proportion.
    Wilson,
    /// Wilson's score interval with continuity correction.
    WilsonCorrected,
    /// The exact interval of a proportion (Clopper and Pearson 1934).
    ClopperPearson,
    /// Student's t.
    Student,
    /// No interval could be made; the note says why.
    None,
}

impl Method {
    /// The method's name in a sentence or a table's footnote.
    pub fn label(self) -> &'static str {
        match self {
            Self::Percentile => "percentile bootstrap",
            Self::Basic => "basic bootstrap",
            Self::Bca => "BCa bootstrap",
            Self::ClusterBootstrap => "cluster bootstrap (BCa)",
            Self::CrossedBootstrap => "crossed bootstrap over seeds and prompts",
            Self::TwoWayBootstrap => "crossed bootstrap over users and captions",
            Self::ProfileLikelihood => "profile-likelihood interval",
            Self::Jackknife => "jackknife over users",
            Self::Fieller => "Fieller interval",
            Self::Wilson => "Wilson interval",
            Self::WilsonCorrected => "Wilson interval with continuity correction",
            Self::ClopperPearson => "Clopper-Pearson interval",
            Self::Student => "Student's t interval",
            Self::None => "no interval",
        }
    }
}

/// JSON has no infinity: an absent end of an interval is written as the text `-inf` or `inf`.
mod bound {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() {
            serializer.serialize_f64(*value)
        } else {
            serializer.serialize_str(&value.to_string())
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Bound {
            Number(f64),
            Text(String),
        }
        match Bound::deserialize(deserializer)? {
            Bound::Number(number) => Ok(number),
            Bound::Text(text) => text.parse().map_err(|_| {
                de::Error::custom(format!(
                    "the end of an interval must be a number, `inf` or `-inf`, got `{text}`"
                ))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_json_with_and_without_ends() {
        let finite = Estimate::new(0.1 + 0.2, (0.1, 1.0 / 3.0), 0.95, Method::CrossedBootstrap);
        let open = Estimate::new(1.0, (f64::NEG_INFINITY, f64::INFINITY), 0.9, Method::None)
            .with_note("one prompt")
            .with_note("conditional");
        for estimate in [finite, open] {
            let json = serde_json::to_string(&estimate).expect("an estimate is plain data");
            assert_eq!(serde_json::from_str::<Estimate>(&json).expect("it reads back"), estimate, "{json}");
        }
        assert!(
            serde_json::from_str::<Estimate>(r#"{"value":1,"low":"x","high":2,"level":0.9,"method":"bca"}"#)
                .is_err()
        );
    }

    #[test]
    fn remarks_add_up_and_ends_are_cut() {
        let estimate = Estimate::new(0.99, (0.9, 1.2), 0.95, Method::Wilson).with_note("a").with_note("b");
        assert_eq!(estimate.note.as_deref(), Some("a; b"));
        let cut = estimate.clamped(0.0, 1.0);
        assert_eq!(cut.high, 1.0);
        assert!(cut.covers(1.0) && !cut.covers(0.5));
    }
}
