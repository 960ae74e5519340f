//! What a study's judges said, read beside its records, with what is true of the same pairs.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::error::{Error, Result};
use crate::judgement::truth::{self, Truth};
use crate::judgement::{self, Order, Outcome, Row, Slot};
use crate::record;
use crate::spec::users::Judge;
use crate::stats::judging::Call;

/// The folder of judgements beside a study's cells.
pub const FOLDER: &str = "judged";
/// The set of questions about the study's images.
pub const PAIRS: &str = "pairs";
/// Choices of users, foreseen after their own.
pub const OWN: &str = "own";
/// The same after somebody else's.
pub const MISMATCHED: &str = "mismatched";
/// The same after none.
pub const NONE: &str = "none";

/// What one judge said of one set of questions.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// The judge.
    pub judge: Judge,
    /// The set.
    pub set: String,
    /// A row for each call.
    pub rows: Vec<Row>,
    /// What is true of each pair; a pair stands once for each comparison that it belongs to.
    pub truths: Vec<Truth>,
}

impl Said {
    /// Reads what is there below a study's folder, in the order of `judges`.
    ///
    /// # Errors
    /// Where a table is damaged, or holds judgements without their truth.
    pub fn read_all(judges: &[Judge], folder: &Path) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for judge in judges {
            for set in [PAIRS, OWN, MISMATCHED, NONE] {
                let path = |end: &str| folder.join(FOLDER).join(&judge.name).join(format!("{set}{end}.csv"));
                if !record::is_there(&path("")) {
                    continue;
                }
                let text = |path: &Path| {
                    String::from_utf8(record::read_packed(path)?)
                        .map_err(|fault| Error::data(path, format!("is not text: {fault}")))
                };
                let (rows, truths) = (path(""), path(".truth"));
                let rows = judgement::read(&text(&rows)?, &rows.display().to_string())?;
                let truths = truth::read(&text(&truths)?, &truths.display().to_string())?;
                all.push(Self { judge: judge.clone(), set: set.to_owned(), rows, truths });
            }
        }
        Ok(all)
    }

    /// Every verdict about a pair of `kept` truths, the pairs numbered in their order; the truth is what `of` says.
    pub fn calls(&self, kept: &[&Truth], of: impl Fn(&Truth) -> Option<f64>) -> Vec<Call> {
        let mut places: HashMap<(&str, &str, &str, &str), u64> = HashMap::with_capacity(kept.len());
        for (place, truth) in kept.iter().enumerate() {
            places.entry(truth.key()).or_insert(place as u64);
        }
        let mut users: BTreeMap<&str, u64> = BTreeMap::new();
        for truth in kept {
            let next = users.len() as u64;
            users.entry(&truth.user).or_insert(next);
        }
        let call = |row: &Row| {
            let Outcome::Verdict { slot, .. } = row.outcome else { return None };
            let pair = *places.get(&(&*row.user, &*row.prompt, &*row.left, &*row.right))?;
            let truth = kept[pair as usize];
            Some(Call {
                user: users[truth.user.as_str()],
                pair,
                left_first: row.order == Order::LeftFirst,
                repeat: row.repeat,
                first: slot == Slot::A,
                truth: of(truth),
            })
        };
        self.rows.iter().filter_map(call).collect()
    }
}
