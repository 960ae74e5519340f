//! What each reward says about each picture of a set of pairs: `scores.csv` beside the pairs.
//!
//! One line for each pair, in the pairs' order, keyed by `ranking_id`; two columns for each reward, `clip_0` and
//! `clip_1`. Pick-a-Pic's schema has no place for them, and relabelling needs nothing else. `scores.json` beside it says
//! by which weights each reward scored.

use std::collections::BTreeMap;
use std::path::Path;

use crate::data::Preference;
use crate::error::{Error, Result, nearest};
use crate::units::Digest;

/// The scores of some rewards on both pictures of each pair.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    rewards: Vec<String>,
    /// One list for each reward, one entry for each pair.
    values: Vec<Vec<[f64; 2]>>,
}

impl Scores {
    /// No reward yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a reward, or replaces it; `values` hold one entry for each pair.
    ///
    /// Scores are kept in single precision, as the rewards compute them and the file holds them, so that a choice
    /// never depends on whether the scores came from the disk.
    ///
    /// # Errors
    /// [`Error::Shape`] where the number of pairs is not that of the rewards already there; [`Error::NonFinite`],
    /// with the pair as its place, where a score is not finite.
    pub fn insert(&mut self, reward: &str, values: Vec<[f64; 2]>) -> Result<()> {
        if let Some(first) = self.values.first()
            && first.len() != values.len()
        {
            return Err(Error::Shape(format!(
                "the reward {reward} scores {} pairs, the others score {}",
                values.len(),
                first.len()
            )));
        }
        let broken = |(pair, scores): (usize, &[f64; 2])| {
            scores.iter().find(|score| !score.is_finite()).map(|score| (pair, *score))
        };
        if let Some((pair, value)) = values.iter().enumerate().find_map(broken) {
            let (what, place) = (format!("the score {reward}"), format!("pair {pair}"));
            return Err(Error::NonFinite { what, value, place });
        }
        let values = values.into_iter().map(|sides| sides.map(|score| f64::from(score as f32))).collect();
        match self.rewards.iter().position(|name| name == reward) {
            Some(place) => self.values[place] = values,
            None => {
                self.rewards.push(reward.to_owned());
                self.values.push(values);
            }
        }
        Ok(())
    }

    /// The rewards, in the file's order.
    pub fn rewards(&self) -> &[String] {
        &self.rewards
    }

    /// How many pairs are scored.
    pub fn len(&self) -> usize {
        self.values.first().map_or(0, Vec::len)
    }

    /// The scores of the first `count` pairs.
    pub fn truncated(mut self, count: usize) -> Self {
        self.values.iter_mut().for_each(|values| values.truncate(count));
        self
    }

    /// Whether nothing is scored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One reward's scores.
    ///
    /// # Errors
    /// [`Error::Spec`] where there is no such reward.
    pub fn get(&self, reward: &str) -> Result<&[[f64; 2]]> {
        match self.rewards.iter().position(|name| name == reward) {
            Some(place) => Ok(&self.values[place]),
            None => {
                let near = nearest(reward, self.rewards.iter().map(String::as_str));
                let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
                Err(Error::Spec(format!(
                    "the pairs have no scores of the reward {reward:?}, only of {}{hint}",
                    if self.rewards.is_empty() { "none".into() } else { self.rewards.join(", ") }
                )))
            }
        }
    }
}

/// Writes scores beside their pairs.
///
/// # Errors
/// [`Error::Shape`] where pairs and scores are not as many; [`Error::Io`] where the file cannot be written.
pub fn write(path: impl AsRef<Path>, pairs: &[Preference], scores: &Scores) -> Result<()> {
    let path = path.as_ref();
    if scores.len() != pairs.len() {
        return Err(Error::Shape(format!("{} pairs, but scores of {}", pairs.len(), scores.len())));
    }
    let mut text = String::from("ranking_id");
    for reward in &scores.rewards {
        text.push_str(&format!(",{reward}_0,{reward}_1"));
    }
    text.push('\n');
    for (index, pair) in pairs.iter().enumerate() {
        text.push_str(&key(pair, index).to_string());
        for values in &scores.values {
            text.push_str(&format!(",{},{}", values[index][0] as f32, values[index][1] as f32));
        }
        text.push('\n');
    }
    let partial = path.with_extension("csv.part");
    std::fs::write(&partial, text).map_err(Error::io("write", &partial))?;
    std::fs::rename(&partial, path).map_err(Error::io("write", path))
}

/// Reads the scores of `pairs`.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read; [`Error::Data`], with the line, where it is not such a table or
/// belongs to other pairs.
pub fn read(path: impl AsRef<Path>, pairs: &[Preference]) -> Result<Scores> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let fault = |message: String| Error::data(path, format!("{message}; score the pairs again"));
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let rewards: Option<Vec<String>> = header[1..]
        .chunks(2)
        .map(|sides| match sides {
            [first, second] => {
                let name = first.strip_suffix("_0")?;
                (second.strip_suffix("_1")? == name && !name.is_empty()).then(|| name.to_owned())
            }
            _ => None,
        })
        .collect();
    let rewards =
        rewards.filter(|rewards| header[0] == "ranking_id" && !rewards.is_empty()).ok_or_else(|| {
            fault(format!(
                "line 1: expected ranking_id and two columns for each reward (clip_0,clip_1), got {header:?}"
            ))
        })?;
    let mut values = vec![Vec::with_capacity(pairs.len()); rewards.len()];
    let mut count = 0;
    for (index, line) in lines.enumerate() {
        let number = index + 2;
        let fields: Vec<&str> = line.split(',').collect();
        if fields.len() != header.len() {
            return Err(fault(format!(
                "line {number}: expected {} fields, got {}",
                header.len(),
                fields.len()
            )));
        }
        let pair = pairs.get(index).ok_or_else(|| {
            fault(format!("line {number}: expected {} pairs, as many as there are, got more", pairs.len()))
        })?;
        let expected = key(pair, index);
        if fields[0] != expected.to_string() {
            return Err(fault(format!(
                "line {number}: expected ranking_id {expected}, as in the pairs, got {}: these scores belong to \
                 other pairs",
                fields[0]
            )));
        }
        for (reward, sides) in fields[1..].chunks(2).enumerate() {
            let mut scores = [0.0; 2];
            for (score, field) in scores.iter_mut().zip(sides) {
                *score =
                    field.parse().ok().filter(|value: &f32| value.is_finite()).map(f64::from).ok_or_else(
                        || {
                            fault(format!(
                                "line {number}: expected a number for {}, got {field:?}",
                                rewards[reward]
                            ))
                        },
                    )?;
            }
            values[reward].push(scores);
        }
        count += 1;
    }
    if count != pairs.len() {
        return Err(fault(format!(
            "expected the scores of {} pairs, got {count}: the file is cut short",
            pairs.len()
        )));
    }
    let mut scores = Scores::new();
    for (reward, values) in rewards.iter().zip(values) {
        if scores.rewards.contains(reward) {
            return Err(fault(format!("line 1: the reward {reward} stands there twice")));
        }
        scores.insert(reward, values)?;
    }
    Ok(scores)
}

/// What identifies a pair: its `ranking_id`, or its place where the dataset has none.
/// Writes by which weights each reward scored, beside the scores.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written.
pub fn write_judges(scores: &Path, judges: &BTreeMap<String, Digest>) -> Result<()> {
    let path = scores.with_extension("json");
    let text = serde_json::to_string_pretty(judges).expect("names and digests print as JSON") + "\n";
    std::fs::write(&path, text).map_err(Error::io("write", &path))
}

/// By which weights each reward scored; nothing where nobody wrote it down.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read, [`Error::Data`] where it is no list of digests.
pub fn read_judges(scores: &Path) -> Result<BTreeMap<String, Digest>> {
    let path = scores.with_extension("json");
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|fault| {
            Error::data(&path, format!("is no list of digests: {fault}; make it again with `ppd data score`"))
        }),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(fault) => Err(Error::io("read", &path)(fault)),
    }
}

fn key(pair: &Preference, index: usize) -> i64 {
    pair.ranking_id.unwrap_or(index as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(ids: &[i64]) -> Vec<Preference> {
        ids.iter().map(|&id| Preference { ranking_id: Some(id), ..Preference::default() }).collect()
    }

    #[test]
    fn scores_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.csv");
        let pairs = pairs(&[7, 9]);
        let mut scores = Scores::new();
        scores.insert("clip", vec![[0.25, 0.1], [-3.0, 1e-7]]).unwrap();
        scores.insert("hps-twin", vec![[1.0, 2.0], [3.0, 4.0]]).unwrap();
        write(&path, &pairs, &scores).unwrap();
        assert_eq!(read(&path, &pairs).unwrap(), scores);
        let message = scores.get("hps").unwrap_err().to_string();
        assert!(message.contains("clip, hps-twin"), "{message}");
    }

    #[test]
    fn scores_of_other_pairs_and_torn_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.csv");
        let message = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path, &pairs(&[7, 9])).unwrap_err().to_string()
        };
        let cases = [
            ("ranking_id,clip_0,clip_1\n7,1,2\n8,1,2\n", "line 3: expected ranking_id 9"),
            ("ranking_id,clip_0,clip_1\n7,1,2\n", "got 1: the file is cut short"),
            ("ranking_id,clip_0,clip_1\n7,1,2\n9,1\n", "line 3: expected 3 fields"),
            ("ranking_id,clip_0,clip_1\n7,1,2\n9,1,NaN\n", "line 3: expected a number for clip"),
            ("ranking_id,clip_0,clip_1\n7,1,2\n9,1,2\n10,1,2\n", "got more"),
            ("ranking_id,clip_0,hps_1\n", "line 1"),
            ("", "line 1"),
        ];
        for (text, part) in cases {
            let message = message(text);
            assert!(message.contains(part) && message.contains("score the pairs again"), "{message}");
        }
    }

    #[test]
    fn what_is_not_a_score_is_refused() {
        let mut scores = Scores::new();
        scores.insert("clip", vec![[0.0, 1.0]]).unwrap();
        assert!(scores.insert("hps", vec![[0.0, 1.0]; 2]).is_err());
        assert!(scores.insert("hps", vec![[0.0, f64::NAN]]).is_err());
    }
}
