//! What is said of a table of judgements: what it may cost, what it cost, and what it says.

use serde_json::json;

use crate::error::Result;
use crate::judge::{Estimate, Judged, Spent};
use crate::judgement::{Calls, Outcome, Row, Tally, asked, calls as verdicts, pairs};
use crate::stats;
use crate::stats::judging::{Audit, Interval, Rate, Spread, WinRates};
use crate::units::Seed;

/// How the intervals are made.
const INTERVAL: Interval = Interval { level: 0.95, resamples: 2000, seed: Seed::new(0) };

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
pub(super) fn rows(rows: &[Row], as_json: bool) -> Result<String> {
    let (pairs, calls) = (pairs(rows), Calls::of(rows));
    let tally = Tally::of(&pairs);
    let asked = asked(&pairs);
    let rates = WinRates::of(&asked, INTERVAL)?;
    let audit = Audit::of(&verdicts(rows), INTERVAL)?;
    let spread = Spread::of_asked(&asked, INTERVAL.level)?;
    let states: Vec<(&str, u64)> = Outcome::STATES.into_iter().zip(calls.states).collect();
    if as_json {
        let states: serde_json::Map<_, _> =
            states.into_iter().map(|(name, count)| (name.into(), count.into())).collect();
        return Ok(json!({
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
            "rates": rates,
            "audit": audit,
            "spread": spread,
        })
        .to_string());
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
    if let Some(primary) = &rates.ties_as_half {
        lines.extend(intervals(&rates, primary, &audit, &spread));
    }
    Ok(lines.join("\n"))
}

/// The rates with their intervals, and how users differ.
fn intervals(rates: &WinRates, primary: &Rate, audit: &Audit, spread: &Spread) -> Vec<String> {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let between = |low: f64, high: f64| format!("[{}, {}]", percent(low), percent(high));
    let line = |name: &str, estimate: &stats::Estimate, more: &str| {
        let note = estimate.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
        let ends = between(estimate.low, estimate.high);
        format!("  {name:<31}{} % {ends}{more}{note}", percent(estimate.value))
    };
    let rate = |name: &str, rate: &Rate| {
        let effect = rate.design_effect.map(|effect| format!(", design effect {effect:.2}"));
        line(name, &rate.estimate, &effect.unwrap_or_default())
    };
    let mut lines = vec![
        format!(
            "{:.0} % intervals, {} users and {} captions resampled:",
            100.0 * primary.estimate.level,
            primary.users,
            primary.captions
        ),
        rate("ties as half", primary),
    ];
    if let Some(bounds) = &rates.bounds {
        let (low, high) = bounds.interval;
        let name = "over all asked pairs";
        let most = percent(bounds.high);
        lines.push(format!("  {name:<31}{} to {most} % {}", percent(bounds.low), between(low, high)));
    }
    let named = [
        ("consistent pairs only", &rates.strict),
        ("by log-probabilities", &rates.by_probability),
        ("consistent in both orders", &rates.consistency),
    ];
    lines.extend(named.into_iter().filter_map(|(name, of)| Some(rate(name, of.as_ref()?))));
    let shares = [
        ("verdicts for the first slot", &audit.first_slot),
        ("the same answer when repeated", &audit.stability),
    ];
    lines.extend(shares.into_iter().filter_map(|(name, of)| Some(line(name, &of.as_ref()?.estimate, ""))));
    lines.push(format!("how users differ: {spread}"));
    lines
}
