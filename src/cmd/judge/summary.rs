//! What is said of a table of judgements: what it may cost, what it cost, and what it says.

use serde_json::json;

use crate::judge::{Estimate, Judged, Spent};
use crate::judgement::{Calls, Outcome, Row, Tally, pairs};

fn amount(spent: &Spent) -> String {
    let money = if spent.cost > 0.0 { format!(", cost {:.4}", spent.cost) } else { String::new() };
    format!("{} calls, {} + {} tokens{money}", spent.calls, spent.tokens_in, spent.tokens_out)
}

/// What asking would take.
pub(super) fn estimate(estimate: &Estimate, as_json: bool) -> String {
    let Estimate { rows, answered, missing, spent } = estimate;
    if as_json {
        return json!({"rows": rows, "answered": answered, "missing": missing, "spent": spent}).to_string();
    }
    match rows == answered {
        true => format!("{rows} rows, all answered before: nothing to ask"),
        false => {
            format!("{rows} rows, {answered} answered before; at most {} for the others", amount(missing))
        }
    }
}

/// What asking took.
pub(super) fn cost(judged: &Judged) -> String {
    format!("asked: {}; answered before: {}", amount(&judged.spent), amount(&judged.before))
}

/// What the rows say.
pub(super) fn rows(rows: &[Row], as_json: bool) -> String {
    let (pairs, calls) = (pairs(rows), Calls::of(rows));
    let tally = Tally::of(&pairs);
    let states: Vec<(&str, u64)> = Outcome::STATES.into_iter().zip(calls.states).collect();
    if as_json {
        let states: serde_json::Map<_, _> =
            states.into_iter().map(|(name, count)| (name.into(), count.into())).collect();
        return json!({
            "pairs": tally.asked(),
            "judged": tally.judged(),
            "ties_as_half": tally.ties_as_half(),
            "ties_as_half_bounds": tally.ties_as_half_bounds(),
            "strict": tally.strict(),
            "consistency": tally.consistency(),
            "probability": tally.probability(),
            "with_probability": tally.with_probability,
            "first_slot": calls.first_slot_rate(),
            "calls": states,
        })
        .to_string();
    }
    let percent = |rate: Option<f64>| rate.map_or("none".to_owned(), |rate| format!("{:.1} %", 100.0 * rate));
    let consistent = tally.left + tally.right;
    let mut lines = vec![
        format!(
            "win rate of left, ties as half   {} of {} judged pairs",
            percent(tally.ties_as_half()),
            tally.judged()
        ),
        format!("  consistent pairs only          {} of {consistent}", percent(tally.strict())),
        format!(
            "  by log-probabilities           {} of {}",
            percent(tally.probability()),
            tally.with_probability
        ),
        format!("consistent in both orders        {}", percent(tally.consistency())),
        format!(
            "verdicts for the first slot      {} of {}",
            percent(calls.first_slot_rate()),
            calls.verdicts()
        ),
    ];
    if let Some((low, high)) = tally.ties_as_half_bounds().filter(|_| tally.not_judged > 0) {
        lines.insert(
            1,
            format!(
                "  had the other {} pairs been lost or won: {} to {}",
                tally.not_judged,
                percent(Some(low)),
                percent(Some(high))
            ),
        );
    }
    let states = states.iter().map(|(name, count)| format!("{count} {name}"));
    lines.push(format!("calls: {}", states.collect::<Vec<_>>().join(", ")));
    lines.join("\n")
}
