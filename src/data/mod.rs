//! Preference pairs: what a person (or a simulated one) saw, and which picture they chose.
//!
//! [`Preference`] is one row of Pick-a-Pic v2, whose schema is also what the desk's own pairs are stored in, so both
//! profiles read the same files. The paper's relabelling (Sec. 5.1) is in [`labels`]: it never changes a pair, it
//! only says which side each label source chooses. What this module does not do: score pictures, or make them.

pub mod album;
pub mod census;
pub mod desk;
pub mod few_shot;
pub mod gallery;
pub mod images;
pub mod labels;
pub mod own;
pub mod pairs;
pub mod pick_a_pic;
pub mod prompts;
pub mod recorded;
pub mod scores;
pub mod shots;
pub mod show;
pub mod splits;
pub mod to_judge;
pub mod to_score;

use std::path::Path;

use crate::error::{Error, Result};
use crate::image::{self, JpegDecoder};
use crate::pixels::Image;

/// One row of Pick-a-Pic v2. A column that a mirror lacks, or an empty place in one, is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preference {
    /// The prompt that both pictures answer.
    pub caption: String,
    /// The two pictures as they are stored, PNG or JPEG (`jpg_0`, `jpg_1`); `None` where they were not asked for.
    pub images: Option<[Vec<u8>; 2]>,
    /// How much of the choice fell on each picture: `[1, 0]`, `[0, 1]`, or `[0.5, 0.5]` for a tie.
    pub label: Option<[f64; 2]>,
    /// Who chose.
    pub user_id: Option<i64>,
    /// Which ranking the pair comes from.
    pub ranking_id: Option<i64>,
    /// The pictures' own identifiers. Equal identifiers are the same picture, across shards too.
    pub image_uids: [Option<String>; 2],
    /// Where the pictures came from.
    pub image_urls: [Option<String>; 2],
    /// Which model made each picture.
    pub models: [Option<String>; 2],
    /// The identifier of the chosen picture, or `tie`.
    pub best_image_uid: Option<String>,
    /// Whether the two pictures differ.
    pub are_different: Option<bool>,
    /// Whether somebody chose.
    pub has_label: Option<bool>,
    /// When, in nanoseconds since 1970.
    pub created_at: Option<i64>,
    /// How many rows share this caption.
    pub num_example_per_prompt: Option<i64>,
    /// The row's number in its maker's table (`__index_level_0__`).
    pub index: Option<i64>,
}

/// What a label source says about a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The picture with this index, 0 or 1.
    Side(usize),
    /// Neither.
    Tie,
}

impl Choice {
    /// The side with the higher score; equal scores tie.
    pub fn by_score(scores: [f64; 2]) -> Self {
        match scores[0].total_cmp(&scores[1]) {
            _ if scores[0] == scores[1] => Self::Tie,
            std::cmp::Ordering::Greater => Self::Side(0),
            _ => Self::Side(1),
        }
    }

    /// The chosen side, where there is one.
    pub fn side(self) -> Option<usize> {
        match self {
            Self::Side(side) => Some(side),
            Self::Tie => None,
        }
    }

    /// `label_0` and `label_1` of this choice.
    pub fn label(self) -> [f64; 2] {
        match self {
            Self::Side(0) => [1.0, 0.0],
            Self::Side(_) => [0.0, 1.0],
            Self::Tie => [0.5, 0.5],
        }
    }
}

impl Preference {
    /// What the stored label says, where there is one.
    ///
    /// Only `label_0` and `label_1` are asked, never `has_label`, as in Diffusion-DPO's own code.
    pub fn choice(&self) -> Option<Choice> {
        self.label.map(Choice::by_score)
    }

    /// Decodes the picture of one side; `origin` (the dataset's path) names it in messages.
    ///
    /// # Errors
    /// [`Error::Data`] where pictures were not read, or the bytes are not a whole PNG or JPEG.
    pub fn image(&self, side: usize, origin: impl AsRef<Path>) -> Result<Image> {
        let place = || {
            let ranking =
                self.ranking_id.map_or_else(|| "without ranking_id".into(), |id| format!("ranking_id {id}"));
            origin.as_ref().join(format!("pair {ranking}, jpg_{side}"))
        };
        let images = self.images.as_ref().ok_or_else(|| {
            Error::data(place(), "the pictures were not read; read the pairs with their pictures")
        })?;
        let decoder = JpegDecoder::of_model(self.models[side].as_deref());
        image::decode_by(decoder, &images[side], place())
    }

    /// The same pair with its sides exchanged, label and all.
    pub fn swapped(mut self) -> Self {
        if let Some(images) = &mut self.images {
            images.swap(0, 1);
        }
        if let Some(label) = &mut self.label {
            label.swap(0, 1);
        }
        self.image_uids.swap(0, 1);
        self.image_urls.swap(0, 1);
        self.models.swap(0, 1);
        self
    }
}

/// The parts that Pick-a-Pic is published in; a file belongs to the part that its name begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What methods train on.
    Train,
    /// What settings are chosen on.
    Validation,
    /// What results are reported on.
    Test,
    /// Validation with one pair for each prompt.
    ValidationUnique,
    /// Test with one pair for each prompt.
    TestUnique,
}

impl Split {
    /// All parts.
    pub const ALL: &'static [Self] =
        &[Self::Train, Self::Validation, Self::Test, Self::ValidationUnique, Self::TestUnique];

    /// The part's name, as its files begin.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
            Self::ValidationUnique => "validation_unique",
            Self::TestUnique => "test_unique",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_and_its_label_say_the_same() {
        for choice in [Choice::Side(0), Choice::Side(1), Choice::Tie] {
            assert_eq!(Choice::by_score(choice.label()), choice);
        }
        assert_eq!(Choice::by_score([-0.0, 0.0]), Choice::Tie);
    }

    #[test]
    fn swapping_exchanges_the_sides_and_the_choice() {
        let pair = Preference {
            caption: "a red circle".into(),
            images: Some([vec![1], vec![2]]),
            label: Some([1.0, 0.0]),
            image_uids: [Some("a".into()), Some("b".into())],
            ..Preference::default()
        };
        let swapped = pair.clone().swapped();
        assert_eq!(swapped.choice(), Some(Choice::Side(1)));
        assert_eq!(swapped.images.as_ref().map(|images| images[0].clone()), Some(vec![2]));
        assert_eq!(swapped.swapped(), pair);
    }

    #[test]
    fn a_picture_that_is_absent_or_broken_is_named() {
        let mut pair = Preference { ranking_id: Some(12), ..Preference::default() };
        let message = pair.image(1, "pairs.parquet").unwrap_err().to_string();
        assert!(message.contains("pairs.parquet") && message.contains("were not read"), "{message}");
        pair.images = Some([vec![], b"no picture".to_vec()]);
        let message = pair.image(1, "pairs.parquet").unwrap_err().to_string();
        assert!(message.contains("ranking_id 12, jpg_1") && message.contains("PNG or JPEG"), "{message}");
    }
}
