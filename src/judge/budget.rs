//! What calls may cost, what they are expected to cost, and what they cost.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cache::Answer;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// What all calls for one table may cost together, those of earlier runs included; nothing is unlimited unless it is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Calls.
    pub calls: Option<u64>,
    /// Tokens, read and written.
    pub tokens: Option<u64>,
    /// Money, in the unit of the prices.
    pub cost: Option<f64>,
}

/// What tokens cost, in any one unit of money.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Price {
    /// A million tokens that the judge reads.
    pub input_per_million: f64,
    /// A million tokens that it writes.
    pub output_per_million: f64,
}

impl Price {
    /// # Errors
    /// Where a price is negative or no number.
    pub(super) fn check(&self) -> Result<()> {
        match [self.input_per_million, self.output_per_million]
            .into_iter()
            .find(|price| price.is_nan() || *price < 0.0)
        {
            Some(price) => {
                Err(Error::Spec(format!("a price of {price} a million tokens; expected at least 0")))
            }
            None => Ok(()),
        }
    }
}

/// What some calls cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Calls that were answered, or may have been.
    pub calls: u64,
    /// Tokens that the judge read.
    pub tokens_in: u64,
    /// Tokens that it wrote.
    pub tokens_out: u64,
    /// Money.
    pub cost: f64,
}

impl Spent {
    /// One call with these tokens.
    pub(super) fn call(tokens_in: u64, tokens_out: u64, price: &Price) -> Self {
        let cost = tokens_in as f64 * price.input_per_million + tokens_out as f64 * price.output_per_million;
        Self { calls: 1, tokens_in, tokens_out, cost: cost / 1e6 }
    }

    /// What an answer cost; its estimate where it does not say.
    pub(super) fn answer(answer: &Answer, estimate: &Self, price: &Price) -> Self {
        let tokens_in = answer.tokens_in.unwrap_or(estimate.tokens_in);
        Self::call(tokens_in, answer.tokens_out.unwrap_or(estimate.tokens_out), price)
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            tokens_in: self.tokens_in + other.tokens_in,
            tokens_out: self.tokens_out + other.tokens_out,
            cost: self.cost + other.cost,
        }
    }

    /// This without a part of it.
    fn minus(self, other: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(other.calls),
            tokens_in: self.tokens_in.saturating_sub(other.tokens_in),
            tokens_out: self.tokens_out.saturating_sub(other.tokens_out),
            cost: (self.cost - other.cost).max(0.0),
        }
    }

    /// Whichever is larger, count by count.
    fn at_least(self, other: Self) -> Self {
        Self {
            calls: self.calls.max(other.calls),
            tokens_in: self.tokens_in.max(other.tokens_in),
            tokens_out: self.tokens_out.max(other.tokens_out),
            cost: self.cost.max(other.cost),
        }
    }
}

impl Caps {
    /// The first cap that `spent` is above, in words.
    fn exceeded(&self, spent: &Spent) -> Option<String> {
        let tokens = spent.tokens_in + spent.tokens_out;
        if let Some(cap) = self.calls.filter(|cap| spent.calls > *cap) {
            return Some(format!("the cap of {cap} calls is reached; a larger --max-calls asks the rest"));
        }
        if let Some(cap) = self.tokens.filter(|cap| tokens > *cap) {
            return Some(format!("the cap of {cap} tokens is reached; a larger --max-tokens asks the rest"));
        }
        let cap = self.cost.filter(|cap| spent.cost > *cap)?;
        Some(format!("the cap of {cap} on the cost is reached; a larger --max-cost asks the rest"))
    }
}

/// Keeps calls below the caps: each is reserved at what it may cost, and settled at what it cost.
pub(super) struct Budget {
    caps: Caps,
    state: Mutex<State>,
    settled: Condvar,
}

struct State {
    used: Spent,
    reserved: Spent,
    /// The dearest call so far: an estimate that was too low does not stay so.
    dearest: Spent,
}

impl Budget {
    /// Caps, of which `used` is used up already.
    pub(super) fn new(caps: Caps, used: Spent) -> Self {
        let state = State { used, reserved: Spent::default(), dearest: Spent::default() };
        Self { caps, state: Mutex::new(state), settled: Condvar::new() }
    }

    /// Takes what a call may cost, waiting where calls on their way may turn out cheaper.
    ///
    /// # Errors
    /// The cap, in words, that the call would exceed; [`None`] where the work is to stop.
    pub(super) fn reserve(&self, estimate: &Spent, progress: &Progress) -> Result<Spent, Option<String>> {
        let mut state = self.state();
        loop {
            if progress.stopping() {
                return Err(None);
            }
            let wanted = estimate.at_least(state.dearest);
            if let Some(cap) = self.caps.exceeded(&state.used.plus(wanted)) {
                return Err(Some(cap));
            }
            if self.caps.exceeded(&state.used.plus(state.reserved).plus(wanted)).is_none() {
                state.reserved = state.reserved.plus(wanted);
                return Ok(wanted);
            }
            let waited = self.settled.wait_timeout(state, Duration::from_millis(50));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives a reservation back for what the call cost; nothing where it cannot have cost anything.
    pub(super) fn settle(&self, reserved: Spent, cost: Option<Spent>) {
        let mut state = self.state();
        state.reserved = state.reserved.minus(reserved);
        if let Some(cost) = cost {
            state.used = state.used.plus(cost);
            state.dearest = state.dearest.at_least(cost);
        }
        self.settled.notify_all();
    }

    /// What was used, that of earlier runs included.
    pub(super) fn used(&self) -> Spent {
        self.state().used
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_stay_below_every_cap() {
        let price = Price { input_per_million: 10.0, output_per_million: 100.0 };
        let call = Spent::call(1000, 10, &price);
        assert!((call.cost - 0.011).abs() < 1e-12);
        for (caps, calls, word) in [
            (Caps { calls: Some(3), ..Caps::default() }, 3, "--max-calls"),
            (Caps { tokens: Some(3500), ..Caps::default() }, 3, "--max-tokens"),
            (Caps { cost: Some(0.025), ..Caps::default() }, 2, "--max-cost"),
        ] {
            let budget = Budget::new(caps, Spent::default());
            let mut count = 0;
            let refused = loop {
                match budget.reserve(&call, &Progress::silent()) {
                    Ok(reserved) => budget.settle(reserved, Some(call)),
                    Err(refused) => break refused.unwrap(),
                }
                count += 1;
            };
            assert!(count == calls && refused.contains(word), "{count}: {refused}");
            assert_eq!(budget.used().calls, calls);
            // The next run with the same cap has nothing left.
            assert!(Budget::new(caps, budget.used()).reserve(&call, &Progress::silent()).is_err());
        }
    }

    #[test]
    fn what_cost_nothing_is_given_back_and_what_was_dearer_is_remembered() {
        let call = Spent::call(100, 0, &Price::default());
        let budget = Budget::new(Caps { tokens: Some(1000), ..Caps::default() }, Spent::default());
        let reserved = budget.reserve(&call, &Progress::silent()).unwrap();
        budget.settle(reserved, None);
        assert_eq!(budget.used(), Spent::default());
        let reserved = budget.reserve(&call, &Progress::silent()).unwrap();
        budget.settle(reserved, Some(Spent::call(700, 0, &Price::default())));
        // Another 700 would be too much, whatever the estimate says.
        assert!(budget.reserve(&call, &Progress::silent()).is_err());
    }
}
