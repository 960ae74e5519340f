//! What of a preference data set is used, and why the rest is not: every pair is kept or counted under one reason.
//!
//! The paper and Diffusion-DPO's code leave out ties; the rest here is about mirrors, which hold pairs twice, broken
//! pictures, or labels that contradict the chosen picture's name. Pick-a-Pic has no column that says what is unsafe to
//! show, and this program brings no list of words: without [`Policy::unwanted`] nothing is left out for its content,
//! and a list of words only finds captions that use them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::data::{Choice, Preference};
use crate::error::{Error, Result};

/// Why a pair is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There is no caption.
    NoCaption,
    /// Nobody chose.
    Unlabelled,
    /// The two halves of the label are not one choice: they do not sum to one.
    OddLabel,
    /// The choice fell on neither.
    Tie,
    /// The two pictures are the same one.
    SamePicture,
    /// The label names one side, `best_image_uid` the other or a tie.
    Swapped,
    /// The same person chose among the same two pictures before, in this or another shard, in the same way.
    Duplicate,
    /// The same person chose among the same two pictures before, and chose the other one.
    Contradiction,
    /// The caption holds a word of the list.
    Unwanted,
    /// A picture cannot be decoded.
    BrokenPicture,
}

impl Reason {
    /// All of them, in the order in which a pair is asked.
    pub const ALL: &'static [Self] = &[
        Self::NoCaption,
        Self::Unlabelled,
        Self::OddLabel,
        Self::Tie,
        Self::SamePicture,
        Self::Swapped,
        Self::Duplicate,
        Self::Contradiction,
        Self::Unwanted,
        Self::BrokenPicture,
    ];

    /// What to say of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCaption => "no caption",
            Self::Unlabelled => "no label",
            Self::OddLabel => "label that is no choice",
            Self::Tie => "tie",
            Self::SamePicture => "twice the same picture",
            Self::Swapped => "label and best_image_uid disagree",
            Self::Duplicate => "duplicate",
            Self::Contradiction => "duplicate with the other choice",
            Self::Unwanted => "unwanted word in the caption",
            Self::BrokenPicture => "broken picture",
        }
    }
}

/// What happens to a pair whose label and `best_image_uid` disagree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disagreement {
    /// It is left out.
    #[default]
    LeaveOut,
    /// The label counts, as in Diffusion-DPO's code.
    ByLabel,
    /// The picture's name counts, as in the code of the paper's user embeddings.
    ByName,
}

/// Which pairs are used.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Where label and name disagree.
    pub disagreement: Disagreement,
    /// Whether a person's second choice among the same pictures is used too.
    pub keep_duplicates: bool,
    /// Words that a caption must not hold.
    pub unwanted: Option<Words>,
    /// Whether pictures are decoded to find broken ones; it takes most of the time.
    pub decode: bool,
}

/// Words and phrases, found whole and in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(Vec<String>);

impl Words {
    /// One word or phrase a line; empty lines and those that begin with `#` are nothing.
    ///
    /// # Errors
    /// Where the file cannot be read or holds no word.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let words: Vec<String> = lines.map(spaced).filter(|word| !word.trim().is_empty()).collect();
        if words.is_empty() {
            return Err(Error::data(path, "expected one word or phrase a line, got none"));
        }
        Ok(Self(words))
    }

    /// Whether a text holds one of them.
    pub fn are_in(&self, text: &str) -> bool {
        let text = spaced(text);
        self.0.iter().any(|word| text.contains(word.as_str()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A text's words in lower case, each between spaces.
fn spaced(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let mut spaced = String::from(" ");
    for word in words {
        spaced.push_str(&word.to_lowercase());
        spaced.push(' ');
    }
    spaced
}

/// How many pairs there were, and what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Pairs that were read.
    pub read: u64,
    /// Pairs that are used.
    pub kept: u64,
    /// Pairs that are not, by reason; a reason without a pair is there with 0.
    pub left_out: BTreeMap<Reason, u64>,
    /// Pairs that are used although label and name disagree.
    pub settled: u64,
    /// Of the used ones: those without a user.
    pub without_user: u64,
    /// Of the used ones: those with a picture without a name, of which duplicates and leaks are not found.
    pub without_image_uid: u64,
    /// Of the used ones: those whose `has_label` is false; the label counts, as in Diffusion-DPO's code.
    pub has_label_false: u64,
}

/// A pair that is used, and whether its label and name disagree; or why it is not.
type Judged = std::result::Result<(Preference, bool), Reason>;

/// Asks pair after pair whether it is used. It remembers 24 bytes of each, to find duplicates.
#[derive(Debug)]
pub struct Census {
    policy: Policy,
    counts: Counts,
    /// Who chose among which two pictures, and whether the first by name was chosen.
    seen: HashMap<[u8; 16], bool>,
}

impl Census {
    /// Nothing asked yet.
    pub fn new(policy: Policy) -> Self {
        let left_out = Reason::ALL.iter().map(|reason| (*reason, 0)).collect();
        Self { policy, counts: Counts { left_out, ..Counts::default() }, seen: HashMap::new() }
    }

    /// The pair where it is used; else it is counted under its reason. `origin` names the data set in messages.
    pub fn admit(&mut self, pair: Preference, origin: &Path) -> Option<Preference> {
        let judged = self.judge(pair, origin);
        self.count(judged)
    }

    fn count(&mut self, judged: Judged) -> Option<Preference> {
        self.counts.read += 1;
        match judged {
            Ok((pair, settled)) => {
                self.counts.kept += 1;
                self.counts.settled += u64::from(settled);
                self.counts.without_user += u64::from(pair.user_id.is_none());
                self.counts.without_image_uid += u64::from(pair.image_uids.iter().any(Option::is_none));
                self.counts.has_label_false += u64::from(pair.has_label == Some(false));
                Some(pair)
            }
            Err(reason) => {
                *self.counts.left_out.entry(reason).or_default() += 1;
                None
            }
        }
    }

    /// The same of several pairs, whose pictures are decoded on all cores.
    pub fn admit_all(&mut self, pairs: Vec<Preference>, origin: &Path) -> Vec<Preference> {
        let whole = |pair: &Preference| (0..2).all(|side| pair.image(side, origin).is_ok());
        let decode = std::mem::take(&mut self.policy.decode);
        let judged: Vec<_> = pairs.into_iter().map(|pair| self.judge(pair, origin)).collect();
        self.policy.decode = decode;
        let judged: Vec<_> = judged
            .into_par_iter()
            .map(|judged| match judged {
                Ok((pair, _)) if decode && !whole(&pair) => Err(Reason::BrokenPicture),
                judged => judged,
            })
            .collect();
        judged.into_iter().filter_map(|judged| self.count(judged)).collect()
    }

    /// What became of all pairs so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    fn judge(&mut self, mut pair: Preference, origin: &Path) -> Judged {
        if pair.caption.trim().is_empty() {
            return Err(Reason::NoCaption);
        }
        let label = pair.label.ok_or(Reason::Unlabelled)?;
        if (label[0] + label[1] - 1.0).abs() > 1e-6 {
            return Err(Reason::OddLabel);
        }
        let mut settled = false;
        let mut chosen = Choice::by_score(label).side().ok_or(Reason::Tie)?;
        let same = matches!((&pair.image_uids[0], &pair.image_uids[1]), (Some(a), Some(b)) if a == b);
        if pair.are_different == Some(false) || same {
            return Err(Reason::SamePicture);
        }
        if let Some(best) = pair.best_image_uid.as_deref().filter(|best| !best.is_empty()) {
            let named = pair.image_uids.iter().position(|uid| uid.as_deref() == Some(best));
            let disagrees = match named {
                Some(side) => side != chosen,
                None => best == "tie",
            };
            if disagrees {
                match (self.policy.disagreement, named) {
                    (Disagreement::ByLabel, _) => {}
                    (Disagreement::ByName, Some(side)) => {
                        chosen = side;
                        pair.label = Some(Choice::Side(side).label());
                    }
                    _ => return Err(Reason::Swapped),
                }
                settled = true;
            }
        }
        if let Some((key, first)) = comparison(&pair, chosen)
            && let Some(before) = self.seen.insert(key, first)
            && !self.policy.keep_duplicates
        {
            // The first choice stands, however often it is repeated.
            self.seen.insert(key, before);
            return Err(if before == first { Reason::Duplicate } else { Reason::Contradiction });
        }
        if self.policy.unwanted.as_ref().is_some_and(|words| words.are_in(&pair.caption)) {
            return Err(Reason::Unwanted);
        }
        if self.policy.decode && (0..2).any(|side| pair.image(side, origin).is_err()) {
            return Err(Reason::BrokenPicture);
        }
        Ok((pair, settled))
    }
}

/// Who chose among which two pictures, whatever their order, and whether the first by name was chosen. Pictures without
/// names are told by their bytes, where those were read.
fn comparison(pair: &Preference, chosen: usize) -> Option<([u8; 16], bool)> {
    let picture = |side: usize| {
        let bytes = match (&pair.image_uids[side], &pair.images) {
            (Some(uid), _) => uid.as_bytes(),
            (None, Some(images)) => images[side].as_slice(),
            (None, None) => return None,
        };
        Some(Sha256::digest(bytes))
    };
    let pictures = [picture(0)?, picture(1)?];
    let first = usize::from(pictures[1] < pictures[0]);
    let mut hasher = Sha256::new();
    hasher.update(pair.user_id.map_or([0; 9], |user| {
        let mut told = [1; 9];
        told[1..].copy_from_slice(&user.to_le_bytes());
        told
    }));
    hasher.update(pictures[first]);
    hasher.update(pictures[1 - first]);
    let mut key = [0; 16];
    key.copy_from_slice(&hasher.finalize()[..16]);
    Some((key, chosen == first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(uids: [&str; 2], label: [f64; 2]) -> Preference {
        Preference {
            caption: "a cat".into(),
            label: Some(label),
            user_id: Some(7),
            image_uids: uids.map(|uid| Some(uid.to_owned())),
            ..Preference::default()
        }
    }

    #[test]
    fn every_pair_is_kept_or_counted_under_one_reason() {
        let good = pair(["a", "b"], [1.0, 0.0]);
        let named = |best: &str, pair: Preference| Preference { best_image_uid: Some(best.into()), ..pair };
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("words.txt");
        std::fs::write(&list, "# a list\nnude\ntwo words\n").unwrap();
        let picture = crate::image::encode(
            &crate::pixels::Image::new(1, 1, vec![9; 3]),
            crate::image::Format::Jpeg(90),
        );
        let picture = picture.unwrap();
        let with = |pair: Preference, bytes: [Vec<u8>; 2]| Preference { images: Some(bytes), ..pair };
        let whole = [picture.clone(), picture.clone()];
        let cases = [
            (good.clone(), None),
            (Preference { caption: " ".into(), ..good.clone() }, Some(Reason::NoCaption)),
            (Preference { label: None, ..good.clone() }, Some(Reason::Unlabelled)),
            (pair(["a", "c"], [1.0, 1.0]), Some(Reason::OddLabel)),
            (pair(["a", "c"], [0.5, 0.5]), Some(Reason::Tie)),
            (pair(["a", "a"], [1.0, 0.0]), Some(Reason::SamePicture)),
            (named("d", pair(["c", "d"], [1.0, 0.0])), Some(Reason::Swapped)),
            (named("c", pair(["c", "d"], [1.0, 0.0])), None),
            (pair(["b", "a"], [0.0, 1.0]), Some(Reason::Duplicate)),
            (pair(["a", "b"], [0.0, 1.0]), Some(Reason::Contradiction)),
            (pair(["a", "b"], [1.0, 0.0]), Some(Reason::Duplicate)),
            (Preference { user_id: Some(8), ..good.clone() }, None),
            (
                Preference { caption: "a Nude.".into(), ..pair(["e", "f"], [1.0, 0.0]) },
                Some(Reason::Unwanted),
            ),
            (
                Preference { caption: "two-words denude".into(), ..pair(["e", "g"], [1.0, 0.0]) },
                Some(Reason::Unwanted),
            ),
            (Preference { caption: "denude".into(), ..pair(["e", "h"], [1.0, 0.0]) }, None),
            (
                with(pair(["i", "j"], [1.0, 0.0]), [picture.clone(), picture[..20].to_vec()]),
                Some(Reason::BrokenPicture),
            ),
        ];
        let policy =
            Policy { unwanted: Some(Words::read(&list).unwrap()), decode: true, ..Policy::default() };
        let mut together = Census::new(policy.clone());
        let mut all = Vec::new();
        let mut census = Census::new(policy);
        let mut expected = Counts { left_out: census.counts().left_out.clone(), ..Counts::default() };
        for (pair, reason) in cases {
            let pair = if pair.images.is_some() { pair } else { with(pair, whole.clone()) };
            all.push(pair.clone());
            let kept = census.admit(pair.clone(), Path::new("x"));
            assert_eq!(kept.is_none(), reason.is_some(), "{pair:?}");
            expected.read += 1;
            match reason {
                Some(reason) => *expected.left_out.get_mut(&reason).unwrap() += 1,
                None => expected.kept += 1,
            }
        }
        assert_eq!(*census.counts(), expected);
        assert_eq!(together.admit_all(all, Path::new("x")).len() as u64, expected.kept);
        assert_eq!(*together.counts(), expected);
        assert_eq!(expected.kept + expected.left_out.values().sum::<u64>(), expected.read);
        assert!(expected.left_out.values().all(|count| *count > 0), "every reason occurs");
    }

    #[test]
    fn policies_keep_what_they_say() {
        let swapped = Preference { best_image_uid: Some("b".into()), ..pair(["a", "b"], [1.0, 0.0]) };
        let admit =
            |policy: Policy, pair: &Preference| Census::new(policy).admit(pair.clone(), Path::new("x"));
        let by = |disagreement| Policy { disagreement, ..Policy::default() };
        assert_eq!(admit(by(Disagreement::LeaveOut), &swapped), None);
        assert_eq!(admit(by(Disagreement::ByLabel), &swapped).unwrap().choice(), Some(Choice::Side(0)));
        assert_eq!(admit(by(Disagreement::ByName), &swapped).unwrap().choice(), Some(Choice::Side(1)));
        let mut census = Census::new(Policy { keep_duplicates: true, ..Policy::default() });
        for _ in 0..3 {
            assert!(census.admit(pair(["a", "b"], [1.0, 0.0]), Path::new("x")).is_some());
        }
        let unnamed = Preference { image_uids: [None, None], user_id: None, ..pair(["", ""], [1.0, 0.0]) };
        census.admit(unnamed, Path::new("x")).unwrap();
        assert_eq!((census.counts().without_user, census.counts().without_image_uid), (1, 1));
    }
}
