//! How good a judge is: accuracy where the truth is known or labelled, and what it does whatever the truth.
//!
//! Calls of one user share her taste and the pairs shown of her, so each interval resamples whole users
//! ([`Clusters`]). Only calls with a verdict belong here: an answer that could not be read is neither right
//! nor wrong, and is counted elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::win_rate::Interval;
use crate::error::{Error, Result};
use crate::stats::bootstrap::Resamples;
use crate::stats::inference::Shape;
use crate::stats::sample::is_constant;
use crate::stats::{Clusters, Estimate, Inference, Replicates};

/// One verdict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// Whose preference was asked for.
    pub user: u64,
    /// Which pair of hers; two users have no pair in common.
    pub pair: u64,
    /// Whether left stood in the first slot.
    pub left_first: bool,
    /// The number of this repetition of the question.
    pub repeat: u32,
    /// Whether the judge named the first slot.
    pub first: bool,
    /// Whether left is preferred in truth: 1 or 0, or the probability of it; none where it is not known.
    pub truth: Option<f64>,
}

impl Call {
    /// Whether the judge named left.
    pub fn left(&self) -> bool {
        self.left_first == self.first
    }
}

/// A share with its interval over users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The share.
    pub estimate: Estimate,
    /// What it is a share of.
    pub count: usize,
    /// How many users they belong to.
    pub users: usize,
}

impl Share {
    /// The mean of (user, value) rows; none where there is no row.
    fn of(rows: impl IntoIterator<Item = (u64, f64)>, interval: Interval) -> Result<Option<Self>> {
        let (users, values): (Vec<u64>, Vec<f64>) = rows.into_iter().unzip();
        if values.is_empty() {
            return Ok(None);
        }
        let clusters = Clusters::new(&values, &users)?;
        let inference = clusters.rate_inference(interval.resamples, interval.seed)?;
        let estimate = inference.estimate(interval.level).clamped(0.0, 1.0);
        Ok(Some(Self { estimate, count: values.len(), users: clusters.count() }))
    }
}

/// What a judge's calls say of it; each share is none where no call speaks of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Over calls of known truth, how often the judge names what is preferred. Where the truth is a probability, how often it would
    /// agree with one choice of the user's, which is below 1 for any judge.
    pub accuracy: Option<Share>,
    /// Over pairs with a verdict in both orders, how often both name the same image.
    pub consistency: Option<Share>,
    /// Over calls, how often the first slot is named: ½ for a judge without a favourite, where both orders are asked.
    pub first_slot: Option<Share>,
    /// Over questions (pair and order) that were repeated, the share of pairs of repetitions that agree.
    pub stability: Option<Share>,
}

impl Audit {
    /// The audit of calls.
    ///
    /// # Errors
    /// Where a truth is outside [0, 1], a pair belongs to two users, a question is answered twice under one repetition, the level
    /// is not in (0, 1), or no resample is asked for.
    pub fn of(calls: &[Call], interval: Interval) -> Result<Self> {
        interval.check()?;
        check(calls)?;
        let mut pairs = BTreeMap::<(u64, u32), Vec<&Call>>::new();
        let mut questions = BTreeMap::<(u64, bool), Vec<&Call>>::new();
        for call in calls {
            pairs.entry((call.pair, call.repeat)).or_default().push(call);
            questions.entry((call.pair, call.left_first)).or_default().push(call);
        }
        let agreed = |truth: f64, call: &Call| if call.left() { truth } else { 1.0 - truth };
        let both = |orders: &Vec<&Call>| match orders[..] {
            [one, other] => Some((one.user, f64::from(u8::from(one.left() == other.left())))),
            _ => None,
        };
        let stable = |repeats: &Vec<&Call>| {
            let count = repeats.len() as f64;
            let left = repeats.iter().filter(|call| call.left()).count() as f64;
            let right = count - left;
            let agreeing = left * (left - 1.0) + right * (right - 1.0);
            (repeats.len() > 1).then(|| (repeats[0].user, agreeing / (count * (count - 1.0))))
        };
        let known = calls.iter().filter_map(|call| Some((call.user, agreed(call.truth?, call))));
        Ok(Self {
            accuracy: Share::of(known, interval)?,
            consistency: Share::of(pairs.values().filter_map(both), interval)?,
            first_slot: Share::of(
                calls.iter().map(|call| (call.user, f64::from(u8::from(call.first)))),
                interval,
            )?,
            stability: Share::of(questions.values().filter_map(stable), interval)?,
        })
    }
}

fn check(calls: &[Call]) -> Result<()> {
    let (mut owners, mut asked) = (BTreeMap::new(), std::collections::BTreeSet::new());
    for call in calls {
        if let Some(truth) = call.truth.filter(|truth| !(0.0..=1.0).contains(truth)) {
            return Err(Error::Shape(format!(
                "the truth of a call is a probability, got {truth} for pair {}",
                call.pair
            )));
        }
        let owner = *owners.entry(call.pair).or_insert(call.user);
        if owner != call.user {
            let (pair, user) = (call.pair, call.user);
            return Err(Error::Shape(format!(
                "pair {pair} is of user {owner} and of user {user}; a pair has one user"
            )));
        }
        if !asked.insert((call.pair, call.left_first, call.repeat)) {
            return Err(Error::Shape(format!(
                "pair {} is answered twice in one order as repetition {}",
                call.pair, call.repeat
            )));
        }
    }
    Ok(())
}

/// How far two judges agree on the questions that both answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The share of questions to which both name the same image.
    pub raw: Share,
    /// Cohen's κ; none where both judges name one and the same side in every question.
    pub kappa: Option<Estimate>,
}

/// The counts of one user's questions that κ is made of.
#[derive(Debug, Clone, Copy, Default)]
struct Table {
    questions: f64,
    agreed: f64,
    one_left: f64,
    other_left: f64,
}

impl Table {
    /// p_e.
    fn by_chance(&self) -> f64 {
        let [one, other] = [self.one_left, self.other_left].map(|sum| sum / self.questions);
        one * other + (1.0 - one) * (1.0 - other)
    }

    /// (p_o − p_e) / (1 − p_e); not finite where p_e is 1.
    fn kappa(&self) -> f64 {
        let by_chance = self.by_chance();
        (self.agreed / self.questions - by_chance) / (1.0 - by_chance)
    }
}

impl Agreement {
    /// The agreement of two judges' calls: on the pairs, orders and repetitions that both have; none where that is none.
    ///
    /// # Equation
    /// κ = (p_o − p_e) / (1 − p_e) with p_o the share of agreement and p_e = p₁p₂ + (1 − p₁)(1 − p₂) what two judges that name left
    /// in shares p₁ and p₂ agree on by chance.
    ///
    /// # Source
    /// Cohen 1960, "A coefficient of agreement for nominal scales". Its interval resamples users (BCa).
    ///
    /// # Errors
    /// As [`Audit::of`], for either judge's calls.
    pub fn of(one: &[Call], other: &[Call], interval: Interval) -> Result<Option<Self>> {
        interval.check()?;
        check(one)?;
        check(other)?;
        let question = |call: &Call| (call.user, call.pair, call.left_first, call.repeat);
        let others: BTreeMap<_, bool> = other.iter().map(|call| (question(call), call.left())).collect();
        let both: Vec<(u64, bool, bool)> = one
            .iter()
            .filter_map(|call| Some((call.user, call.left(), *others.get(&question(call))?)))
            .collect();
        let agreed = both.iter().map(|(user, one, other)| (*user, f64::from(u8::from(one == other))));
        let Some(raw) = Share::of(agreed, interval)? else { return Ok(None) };
        let mut tables = BTreeMap::<u64, Table>::new();
        for (user, one, other) in &both {
            let table = tables.entry(*user).or_default();
            table.questions += 1.0;
            table.agreed += f64::from(u8::from(one == other));
            table.one_left += f64::from(u8::from(*one));
            table.other_left += f64::from(u8::from(*other));
        }
        let kappa = kappa(&tables.into_values().collect::<Vec<_>>(), &raw.estimate, interval)?;
        Ok(Some(Self { raw, kappa }))
    }
}

fn kappa(users: &[Table], raw: &Estimate, interval: Interval) -> Result<Option<Estimate>> {
    let columns =
        [|t: &Table| t.questions, |t: &Table| t.agreed, |t: &Table| t.one_left, |t: &Table| t.other_left]
            .map(|column: fn(&Table) -> f64| users.iter().map(column).collect::<Vec<f64>>());
    let table = |[questions, agreed, one_left, other_left]: [f64; 4]| Table {
        questions,
        agreed,
        one_left,
        other_left,
    };
    let whole = [0, 1, 2, 3].map(|at| columns[at].iter().sum::<f64>());
    let value = table(whole).kappa();
    if !value.is_finite() {
        return Ok(None);
    }
    if users.len() < 2 {
        return Ok(Some(Inference::unknown(value, "a single user: no interval").estimate(interval.level)));
    }
    let drawn = Resamples::draw(users.len(), interval.resamples, interval.seed, "bootstrap clusters");
    let sums = [0, 1, 2, 3].map(|at| drawn.sums(&columns[at]));
    let mut values: Vec<f64> =
        (0..interval.resamples).map(|at| table([0, 1, 2, 3].map(|sum| sums[sum][at])).kappa()).collect();
    values.retain(|value| value.is_finite());
    let undefined = interval.resamples - values.len();
    let left_out: Vec<f64> = (0..users.len())
        .map(|user| table([0, 1, 2, 3].map(|at| whole[at] - columns[at][user])).kappa())
        .filter(|value| value.is_finite())
        .collect();
    if values.is_empty() || is_constant(&values) {
        // Whoever agrees on everything has a κ of 1 in every resample: the bounds are those of the share of agreement.
        let by_chance = table(whole).by_chance();
        let ends = [raw.low, raw.high].map(|share| (share - by_chance) / (1.0 - by_chance));
        let estimate = Estimate::new(value, (ends[0], ends[1]), interval.level, raw.method);
        return Ok(Some(
            estimate.clamped(-1.0, 1.0).with_note("no resample differs: from the interval of the share"),
        ));
    }
    let replicates = Replicates::new(value, values)?;
    let inference = match replicates.bca_correction(&left_out) {
        Some(correction) => Inference::new(replicates, Shape::Bca { correction, units: users.len() }),
        None => Inference::new(replicates, Shape::Percentile { units: users.len() })
            .with_note("BCa is undefined on this sample, percentile interval instead"),
    };
    let estimate = inference.estimate(interval.level).clamped(-1.0, 1.0);
    Ok(Some(match undefined {
        0 => estimate,
        _ => estimate
            .with_note(format!("kappa is undefined in {undefined} of {} resamples", interval.resamples)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::stats::Method;
    use crate::units::Seed;

    const INTERVAL: Interval = Interval { level: 0.95, resamples: 499, seed: Seed::new(8) };

    fn call(user: u64, pair: u64, left_first: bool, repeat: u32, left: bool, truth: Option<f64>) -> Call {
        Call { user, pair, left_first, repeat, first: left == left_first, truth }
    }

    #[test]
    fn each_share_counts_its_own() {
        let calls = [
            // Consistent and right; repeated, with another answer in one order.
            call(1, 10, true, 0, true, Some(1.0)),
            call(1, 10, false, 0, true, Some(1.0)),
            call(1, 10, true, 1, false, Some(1.0)),
            // The first slot twice, of a pair that nobody has labelled.
            call(2, 20, true, 0, true, None),
            call(2, 20, false, 0, false, None),
            // A probability.
            call(2, 21, true, 0, false, Some(0.3)),
        ];
        let audit = Audit::of(&calls, INTERVAL).unwrap();
        let value = |share: &Option<Share>| {
            share.as_ref().map(|share| (share.estimate.value, share.count, share.users))
        };
        assert_eq!(value(&audit.accuracy), Some(((1.0 + 1.0 + 0.0 + 0.7) / 4.0, 4, 2)));
        assert_eq!(value(&audit.consistency), Some((0.5, 2, 2)));
        // First, second, second; first, first; second.
        assert_eq!(value(&audit.first_slot), Some((0.5, 6, 2)));
        assert_eq!(value(&audit.stability), Some((0.0, 1, 1)));
        let none = Audit::of(&[], INTERVAL).unwrap();
        assert_eq!((none.accuracy, none.first_slot), (None, None));
    }

    #[test]
    fn users_are_the_unit() {
        // Twenty users, the judge right in all of a user's fifty calls or in none: as wide as of twenty calls.
        let calls: Vec<Call> =
            (0..1000).map(|i| call(i / 50, i, true, 0, i / 50 % 2 == 0, Some(1.0))).collect();
        let accuracy = Audit::of(&calls, INTERVAL).unwrap().accuracy.unwrap();
        assert_eq!(accuracy.users, 20);
        assert!(accuracy.estimate.half_width() > 0.2, "{accuracy:?}");
        let right: Vec<Call> = calls.iter().map(|c| Call { first: true, ..*c }).collect();
        let sure = Audit::of(&right, INTERVAL).unwrap().accuracy.unwrap();
        assert_eq!((sure.estimate.method, sure.estimate.value), (Method::Wilson, 1.0));
    }

    #[test]
    fn two_judges_agree_as_cohen_counts() {
        // 20 both left, 5 and 10 one of them, 15 both right: p_o = 0.7, p_e = 0.5, κ = 0.4 (Cohen's own kind of table).
        let cells = [(20, true, true), (5, true, false), (10, false, true), (15, false, false)];
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for (count, a, b) in cells {
            for _ in 0..count {
                let pair = one.len() as u64;
                one.push(call(pair % 10, pair, true, 0, a, None));
                other.push(call(pair % 10, pair, true, 0, b, None));
            }
        }
        // What one alone was asked is not compared.
        other.push(call(3, 99, true, 0, true, None));
        let agreement = Agreement::of(&one, &other, INTERVAL).unwrap().unwrap();
        assert_eq!((agreement.raw.estimate.value, agreement.raw.count), (0.7, 50));
        let kappa = agreement.kappa.unwrap();
        assert!(
            (kappa.value - 0.4).abs() < 1e-12 && kappa.low < 0.4 && kappa.high > 0.4 && kappa.low > -0.2,
            "{kappa:?}"
        );
        // With itself: everything, and no less than the share's interval says.
        let itself = Agreement::of(&one, &one, INTERVAL).unwrap().unwrap();
        let kappa = itself.kappa.unwrap();
        assert_eq!((kappa.value, kappa.high), (1.0, 1.0));
        assert!(kappa.low < itself.raw.estimate.low && kappa.low > 0.0, "{kappa:?}");
        // Judges that always say left agree, but by nothing that chance would not give.
        let always: Vec<Call> = (0..9).map(|i| call(i, i, true, 0, true, None)).collect();
        assert_eq!(Agreement::of(&always, &always, INTERVAL).unwrap().unwrap().kappa, None);
        assert!(Agreement::of(&one[..1], &other[1..], INTERVAL).unwrap().is_none());
    }

    #[test]
    fn tables_that_do_not_fit_together_are_refused() {
        let good = call(1, 1, true, 0, true, Some(0.5));
        assert!(Audit::of(&[Call { truth: Some(1.5), ..good }], INTERVAL).is_err());
        assert!(Audit::of(&[good, good], INTERVAL).unwrap_err().to_string().contains("twice"));
        let message =
            Audit::of(&[good, Call { user: 2, repeat: 1, ..good }], INTERVAL).unwrap_err().to_string();
        assert!(message.contains("one user"), "{message}");
        assert!(Audit::of(&[good], Interval { level: 0.0, ..INTERVAL }).is_err());
    }

    #[test]
    fn accuracy_and_kappa_cover() {
        const STUDIES: u64 = 300;
        let (mut accuracy, mut kappa) = (0, 0);
        for study in 0..STUDIES {
            let mut draws = stream(Seed::new(study), "audit coverage", 0);
            let (mut one, mut other) = (Vec::new(), Vec::new());
            for user in 0..60 {
                // Users differ in how easy they are: 0.8 on average.
                let easy = draws.between(0.6, 1.0);
                for pair in 0..4 {
                    let left = draws.chance(0.5);
                    let truth = Some(f64::from(u8::from(left)));
                    let mut said = || left == draws.chance(easy);
                    one.push(call(user, 4 * user + pair, true, 0, said(), truth));
                    other.push(call(user, 4 * user + pair, true, 0, said(), truth));
                }
            }
            let interval = Interval { seed: Seed::new(study), ..INTERVAL };
            accuracy += i32::from(Audit::of(&one, interval).unwrap().accuracy.unwrap().estimate.covers(0.8));
            // p_o = E[e² + (1 − e)²] = 1 − 2 E[e] + 2 E[e²] for e uniform on [0.6, 1], and p_e = ½: κ = 2 p_o − 1.
            let second = 0.8f64.powi(2) + 0.4f64.powi(2) / 12.0;
            let truth = 2.0 * (1.0 - 2.0 * 0.8 + 2.0 * second) - 1.0;
            let found = Agreement::of(&one, &other, interval).unwrap().unwrap().kappa.unwrap();
            kappa += i32::from(found.covers(truth));
        }
        let slack = 3.0 * (STUDIES as f64 * 0.95 * 0.05).sqrt();
        for covered in [accuracy, kappa] {
            assert!((f64::from(covered) - 0.95 * STUDIES as f64).abs() < slack, "{covered}");
        }
    }
}
