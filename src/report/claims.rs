//! Claims that were fixed before looking, and what the records say about them.
//!
//! Every claim is a conjunction of parts (one reward, one rival, one pair of users); it holds where all parts hold (an
//! intersection-union test, so its p-value is the largest of theirs), and Holm's correction runs across the claims. A
//! part on a reward with a twin brings a second part on the twin, which must exclude the null but owes no smallest
//! effect. Effects are paired image by image and in the base's standard deviations between images of one prompt; the tests are
//! one-sided at 2.5 %, as the ends of a 95 % interval are.

use super::fig4::Surface;
use super::study::{BOOTSTRAP, LEVEL, Method, RESAMPLES, Study, Values, reward_label, twin};
use super::table::{Cell, Kind, Table};
use super::{Output, Result};
use crate::spec::claim::{Claim, Expected, Test};
use crate::stats::contrast::{holm, one_sided_alpha};
use crate::stats::{Direction, Estimate, Inference, Rule, Verdict};

/// One part of a claim with its evidence.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What is compared, in a few words.
    pub name: String,
    /// The quantity with its interval.
    pub estimate: Estimate,
    /// What the interval must exclude.
    pub threshold: String,
    /// The one-sided p-value.
    pub p: f64,
    /// What the interval says, before any correction.
    pub verdict: Verdict,
}

/// A claim with its verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The claim.
    pub claim: Claim,
    /// Its parts.
    pub parts: Vec<Part>,
    /// Its p-value after Holm's correction; `None` where rows are missing.
    pub adjusted_p: Option<f64>,
    /// The verdict; `None` where rows are missing.
    pub verdict: Option<Verdict>,
    /// What the records lack.
    pub missing: Option<String>,
}

impl Judged {
    /// Whether the claim holds.
    pub fn holds(&self) -> bool {
        self.verdict == Some(Verdict::Holds)
    }

    /// The verdict in a table's words.
    pub fn label(&self) -> &'static str {
        self.verdict.map_or("no records", Verdict::label)
    }
}

/// The verdict on every claim of the study, in the file's order.
///
/// # Errors
/// Where rows that are there cannot be compared.
pub fn judge(study: &Study) -> Result<Vec<Judged>> {
    use rayon::prelude::*;
    let evidence: Vec<std::result::Result<Vec<Part>, String>> =
        study.design.claims.par_iter().map(|claim| parts(study, claim)).collect::<Result<_>>()?;
    let raw: Vec<f64> =
        evidence.iter().flatten().map(|parts| parts.iter().map(|part| part.p).fold(0.0, f64::max)).collect();
    let mut adjusted = holm(&raw).into_iter();
    let judged = study.design.claims.iter().zip(evidence).map(|(claim, evidence)| match evidence {
        Err(missing) => Judged {
            claim: claim.clone(),
            parts: Vec::new(),
            adjusted_p: None,
            verdict: None,
            missing: Some(missing),
        },
        Ok(parts) => {
            let adjusted_p = adjusted.next();
            let verdict = Verdict::all(parts.iter().map(|part| part.verdict)).map(|verdict| {
                // The intervals may hold one by one where the number of claims takes it back.
                let significant = adjusted_p.is_some_and(|p| p <= one_sided_alpha(LEVEL));
                if verdict == Verdict::Holds && !significant { Verdict::Underpowered } else { verdict }
            });
            Judged { claim: claim.clone(), parts, adjusted_p, verdict, missing: None }
        }
    });
    Ok(judged.collect())
}

/// The evidence on a claim, or what the records lack.
type Evidence = std::result::Result<Vec<Part>, String>;

fn parts(study: &Study, claim: &Claim) -> Result<Evidence> {
    let mut parts = Vec::new();
    for reward in claim.test.rewards() {
        // A score without a twin in the records (measured pixels) stands alone.
        let twin = Some(twin(reward)).filter(|twin| study.scores.contains(twin));
        for score in std::iter::once(reward.to_owned()).chain(twin) {
            match parts_on(study, &claim.test, reward, &score)? {
                Ok(found) => parts.extend(found),
                Err(missing) => return Ok(Err(missing)),
            }
        }
    }
    Ok(Ok(parts))
}

/// The evidence on one score: a reward, or the twin of `reward`.
fn parts_on(study: &Study, test: &Test, reward: &str, score: &str) -> Result<Evidence> {
    let look = Lookup { study, reward, score };
    let is_twin = reward != score;
    // What a reward owes in size, its twin owes in sign only.
    let owed = |smallest: f64| if is_twin { 0.0 } else { smallest };
    let toward = |expected: &Expected| match expected {
        Expected::Greater => Direction::Greater,
        Expected::Less => Direction::Less,
    };
    let evidence = (|| -> std::result::Result<Vec<Question>, Missing> {
        Ok(match test {
            Test::HigherMean { method, condition, over, smallest_effect, expected, .. } => {
                let ours = match condition {
                    Some(condition) => look.under(method, condition)?,
                    None => look.own(method)?,
                };
                let difference = look.scaled(&ours, &look.own(over)?)?;
                let rule =
                    Rule { direction: toward(expected), null: 0.0, smallest_effect: owed(*smallest_effect) };
                vec![Question::Mean(format!("{method} − {over}"), difference, rule)]
            }
            Test::WinRate { method, over, smallest_effect, expected, .. } => {
                let wins = look.own(method)?.wins_over(&look.own(over)?);
                let rule =
                    Rule { direction: toward(expected), null: 0.5, smallest_effect: owed(*smallest_effect) };
                vec![Question::Rate(format!("{method} against {over}"), wins, rule)]
            }
            Test::Diagonal { method, rewards, smallest_effect } => {
                let own = look.under(method, reward)?;
                let rule = Rule {
                    direction: Direction::Greater,
                    null: 0.0,
                    smallest_effect: owed(*smallest_effect),
                };
                let others = rewards.iter().filter(|other| *other != reward);
                others
                    .map(|other| {
                        let difference = look.scaled(&own, &look.under(method, other)?)?;
                        Ok(Question::Mean(format!("user {reward} − user {other}"), difference, rule))
                    })
                    .collect::<std::result::Result<_, Missing>>()?
            }
            Test::NonInferior { method, specialists, margin } => {
                let specialist = specialists.get(reward).map(String::as_str).unwrap_or_default();
                let difference = look.scaled(&look.own(method)?, &look.own(specialist)?)?;
                vec![Question::Mean(
                    format!("{method} − {specialist}"),
                    difference,
                    Rule::non_inferior(*margin),
                )]
            }
            Test::NoEffect { method, over, largest_effect, .. } => {
                let difference = look.scaled(&look.own(method)?, &look.own(over)?)?;
                vec![Question::Within(format!("{method} − {over}"), difference, *largest_effect)]
            }
            Test::NoDiagonal { method, rewards, largest_effect } => {
                let mut others = rewards.iter().filter(|other| *other != reward);
                let count = others.clone().count() as f64;
                let first = others.next().map(String::as_str).unwrap_or_default();
                let mut sum = look.under(method, first)?;
                for other in others {
                    sum = sum.combine(&look.under(method, other)?, |a, b| a + b);
                }
                let difference = look.scaled(&look.under(method, reward)?, &sum.scaled(1.0 / count))?;
                vec![Question::Within(format!("user {reward} − other users"), difference, *largest_effect)]
            }
            Test::Correlation { method, least, .. } => vec![Question::Surface(method.clone(), *least)],
        })
    })();
    match evidence {
        Err(Missing(what)) => Ok(Err(what)),
        Ok(questions) => {
            let label = reward_label(score);
            let mut parts = Vec::new();
            for question in questions {
                match question.answer(&look, &label)? {
                    Ok(found) => parts.extend(found),
                    Err(missing) => return Ok(Err(missing)),
                }
            }
            Ok(Ok(parts))
        }
    }
}

/// Something that the records do not hold.
struct Missing(String);

/// Finds values on one score.
struct Lookup<'a> {
    study: &'a Study,
    reward: &'a str,
    score: &'a str,
}

impl Lookup<'_> {
    fn under(&self, method: &str, condition: &str) -> std::result::Result<Values, Missing> {
        let missing = || Missing(format!("no rows of {method} under {condition} with {}", self.score));
        self.study.values(method, condition, self.score).ok_or_else(missing)
    }

    /// Under the condition that speaks for the reward.
    fn own(&self, method: &str) -> std::result::Result<Values, Missing> {
        let condition =
            self.study.design.method(method).map_or("none", |known| known.condition_for(self.reward));
        self.under(method, condition)
    }

    /// Paired differences in the base's standard deviations between images of one prompt.
    fn scaled(&self, ours: &Values, theirs: &Values) -> std::result::Result<Values, Missing> {
        match self.study.deviation(self.score) {
            Some(deviation) => Ok(ours.minus(theirs).scaled(1.0 / deviation)),
            None => Err(Missing(format!(
                "no prompt with two images of the base that have {}, so effects have no unit",
                self.score
            ))),
        }
    }
}

/// A quantity with what is asked of it.
enum Question {
    /// A mean on one side of a threshold.
    Mean(String, Values, Rule),
    /// A rate on one side of a threshold.
    Rate(String, Values, Rule),
    /// A mean within a bound on both sides.
    Within(String, Values, f64),
    /// Correlations over the simplex.
    Surface(String, f64),
}

impl Question {
    fn answer(self, look: &Lookup<'_>, label: &str) -> Result<Evidence> {
        let ruled = |name: String, inference: &Inference, rule: Rule, unit: &str| {
            let estimate = inference.estimate(LEVEL);
            let sign = if rule.direction == Direction::Greater { '>' } else { '<' };
            let owed = if rule.smallest_effect > 0.0 {
                format!(", at least {}", rule.smallest_effect)
            } else {
                String::new()
            };
            Part {
                name: format!("{label}: {name}{unit}"),
                threshold: format!("{sign} {}{owed}", super::panel::number(rule.null, 2)),
                p: rule.p(inference),
                verdict: rule.verdict(&estimate, None),
                estimate,
            }
        };
        Ok(Ok(match self {
            Self::Mean(name, values, rule) => vec![ruled(name, &values.inference()?, rule, " (SD)")],
            Self::Rate(name, values, rule) => vec![ruled(name, &values.rate_inference()?, rule, "")],
            Self::Within(name, values, bound) => {
                let inference = values.inference()?;
                let estimate = inference.estimate(LEVEL);
                let verdict = if estimate.low > bound || estimate.high < -bound {
                    Verdict::DoesNotHold
                } else if estimate.low > -bound && estimate.high < bound {
                    Verdict::Holds
                } else {
                    Verdict::Underpowered
                };
                vec![Part {
                    name: format!("{label}: {name} (SD)"),
                    threshold: format!("within ±{bound}"),
                    p: inference.p_greater(-bound).max(inference.p_less(bound)),
                    verdict,
                    estimate,
                }]
            }
            Self::Surface(method, least) => {
                let study = look.study;
                let known: Option<&Method> = study.design.method(&method);
                let surface = known.map(|known| Surface::of(study, known, look.score)).transpose()?.flatten();
                let index = study.design.rewards.iter().position(|reward| reward == look.reward);
                let Some((surface, index)) = surface.zip(index) else {
                    return Ok(Err(format!(
                        "no rows of {method} under mixtures of users with {}",
                        look.score
                    )));
                };
                let within = surface.within(index)?.inference(RESAMPLES, BOOTSTRAP)?;
                let above_zero = Rule { direction: Direction::Greater, null: 0.0, smallest_effect: 0.0 };
                let mut parts = vec![ruled("Spearman within a prompt".into(), &within, above_zero, "")];
                if let Some((estimate, p)) = surface.of_curve(index, least)? {
                    let rule = Rule { direction: Direction::Greater, null: least, smallest_effect: 0.0 };
                    parts.push(Part {
                        name: format!("{label}: Spearman of the mean curve"),
                        threshold: format!("> {least}"),
                        p,
                        verdict: rule.verdict(&estimate, None),
                        estimate,
                    });
                }
                parts
            }
        }))
    }
}

/// Renders the verdicts and their evidence; `None` where the study claims nothing or has no rows.
///
/// # Errors
/// Where rows that are there cannot be compared.
pub fn render(study: &Study) -> Result<Option<Output>> {
    if study.design.claims.is_empty() || study.rows().is_empty() {
        return Ok(None);
    }
    let judged = judge(study)?;
    let words =
        |heads: &[&str]| heads.iter().map(|head| ((*head).to_owned(), Kind::Words)).collect::<Vec<_>>();
    let mut verdicts = Table::new(
        format!("Claims, fixed before looking, and their verdicts ({}).", study.scale()),
        [words(&["Claim", "Verdict"]), vec![("p (Holm)".into(), Kind::Words)], words(&["Weakest part"])]
            .concat(),
    );
    let heads = [
        words(&["Claim", "Part"]),
        vec![("Estimate".into(), Kind::Estimates)],
        words(&["Must be", "Verdict", "p"]),
    ]
    .concat();
    let mut evidence = Table::new("The parts of each claim; all must hold.", heads);
    let mut control_seen = false;
    for one in &judged {
        if one.claim.control && !control_seen {
            verdicts.rule();
            control_seen = true;
        }
        evidence.rule();
        let weakest = one.parts.iter().max_by(|a, b| {
            let rank = |part: &Part| match part.verdict {
                Verdict::DoesNotHold => 2,
                Verdict::Underpowered => 1,
                Verdict::Holds => 0,
            };
            rank(a).cmp(&rank(b)).then(a.p.total_cmp(&b.p))
        });
        let shown = weakest.map_or(one.missing.clone().unwrap_or_default(), |part| {
            let Estimate { value, low, high, .. } = &part.estimate;
            let number = |value: &f64| super::panel::number(*value, 2);
            format!(
                "{}: {} [{}, {}], must be {}",
                part.name,
                number(value),
                number(low),
                number(high),
                part.threshold
            )
        });
        let text =
            if one.claim.control { format!("Control: {}", one.claim.text) } else { one.claim.text.clone() };
        verdicts.push(vec![
            Cell::text(text),
            if one.holds() { Cell::text(one.label()) } else { Cell::strong(one.label()) },
            one.adjusted_p.map_or(Cell::Missing, |p| Cell::text(p_text(p))),
            Cell::text(shown),
        ]);
        for part in &one.parts {
            evidence.push(vec![
                Cell::text(one.claim.id.clone()),
                Cell::text(part.name.clone()),
                Cell::estimate(Some(part.estimate.clone()), 3),
                Cell::text(part.threshold.clone()),
                Cell::text(part.verdict.label()),
                Cell::text(p_text(part.p)),
            ]);
        }
    }
    verdicts.note(
        "Holds: the 95 % interval of every part lies on the claimed side, the p-value survives Holm's correction across \
         claims (one-sided, 2.5 %), and each reward's twin agrees. Does not hold: an interval excludes the smallest \
         effect of interest. Underpowered: neither.",
    );
    verdicts.note("SD: the base's standard deviation between images of one prompt on that score.");
    if judged.iter().flat_map(|one| &one.parts).any(|part| {
        part.estimate.note.as_deref().is_some_and(|note| note.contains(crate::stats::crossed::CONDITIONAL))
    }) {
        verdicts.note(format!(
            "Fewer than {} training seeds: verdicts are {}.",
            crate::stats::crossed::LEAST_SEEDS,
            crate::stats::crossed::CONDITIONAL
        ));
    }
    let tables = vec![("claims".into(), verdicts), ("claims-evidence".into(), evidence)];
    Ok(Some(Output { name: "claims".into(), tables, ..Output::default() }))
}

fn p_text(p: f64) -> String {
    if p < 0.001 { format!("{p:.1e}").replace('-', "−") } else { format!("{p:.3}") }
}

#[cfg(test)]
pub(super) mod tests;
