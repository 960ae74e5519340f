//! What a person sees while work goes on: bars on a terminal, a line every ten seconds elsewhere, nothing where asked.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::progress::Observer;

/// How often a plain line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The observer that fits where standard error goes.
pub(super) fn observer(quiet: bool, no_color: bool) -> Arc<dyn Observer> {
    if quiet {
        Arc::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Arc::new(Bars::new(colored(no_color)))
    } else {
        Arc::new(Lines::default())
    }
}

/// Whether colours are wanted on standard error.
pub(super) fn colored(no_color: bool) -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_color && !forbidden && std::io::stderr().is_terminal()
}

/// Prints an error once, each cause that adds something on a line of its own.
pub(super) fn print_error(error: &anyhow::Error, no_color: bool) {
    let (red, plain) = if colored(no_color) { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let mut said = error.to_string();
    eprintln!("{red}error:{plain} {said}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !said.contains(&cause) {
            eprintln!("  because: {cause}");
        }
        said = cause;
    }
}

/// A line for the person, not part of the results.
pub(super) fn say(quiet: bool, text: &str) {
    if !quiet {
        eprintln!("{text}");
    }
}

/// Seconds as `45 s`, `12 min` or `3.5 h`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{:.0} s", s.max(1.0)),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Bytes as `12 kB` or `3.4 MB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        b if b < 1000 => format!("{b} B"),
        b if b < 1_000_000 => format!("{:.0} kB", b as f64 / 1e3),
        b if b < 1_000_000_000 => format!("{:.1} MB", b as f64 / 1e6),
        b => format!("{:.1} GB", b as f64 / 1e9),
    }
}

struct Quiet;

impl Observer for Quiet {
    fn enter(&self, _: &str) {}
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, text: &str) {
        eprintln!("{text}");
    }
}

/// One bar, redrawn: what, how far, how fast, how long still.
struct Bars {
    bar: ProgressBar,
    colors: bool,
}

impl Bars {
    fn new(colors: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
        bar.set_style(style(colors, "{pos}/{len} {per_sec}"));
        Self { bar, colors }
    }
}

/// How a bar looks whose counts are shown as `counts`.
fn style(colors: bool, counts: &str) -> ProgressStyle {
    let shape = if colors { "{wide_bar:.cyan/blue}" } else { "{wide_bar}" };
    let template = format!("{{prefix}} {{msg}} {shape} {counts}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("the template is a constant that parses");
    style.progress_chars("━╸ ")
}

impl Observer for Bars {
    fn enter(&self, name: &str) {
        self.bar.set_prefix(name.to_owned());
    }

    fn begin(&self, phase: &str, total: u64) {
        self.bar.set_style(style(self.colors, "{pos}/{len} {per_sec}"));
        self.bar.set_message(phase.to_owned());
        self.bar.set_length(total);
        self.bar.reset();
    }

    fn begin_bytes(&self, phase: &str, total: u64) {
        self.begin(phase, total);
        self.bar
            .set_style(style(self.colors, "{decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}"));
    }

    fn advance(&self, units: u64) {
        self.bar.inc(units);
    }

    fn note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Plain lines: at the start of a phase, then every ten seconds.
#[derive(Default)]
struct Lines {
    state: Mutex<Phase>,
}

#[derive(Default)]
struct Phase {
    name: String,
    phase: String,
    total: u64,
    done: u64,
    bytes: bool,
    clocks: Option<(Instant, Instant)>,
}

impl Phase {
    /// A count as it is shown.
    fn count(&self, units: u64) -> String {
        if self.bytes { size(units) } else { units.to_string() }
    }
}

impl Lines {
    fn state(&self) -> std::sync::MutexGuard<'_, Phase> {
        // A thread that panicked while it counted leaves a count that is still worth showing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, phase: &str, total: u64, bytes: bool) {
        let mut state = self.state();
        let now = Instant::now();
        *state = Phase {
            name: std::mem::take(&mut state.name),
            phase: phase.to_owned(),
            total,
            done: 0,
            bytes,
            clocks: Some((now, now)),
        };
        eprintln!("{} {phase}: {} to do", state.name, state.count(total));
    }
}

impl Observer for Lines {
    fn enter(&self, name: &str) {
        self.state().name = name.to_owned();
    }

    fn begin(&self, phase: &str, total: u64) {
        self.start(phase, total, false);
    }

    fn begin_bytes(&self, phase: &str, total: u64) {
        self.start(phase, total, true);
    }

    fn advance(&self, units: u64) {
        let mut state = self.state();
        state.done += units;
        let Some((began, said)) = state.clocks else { return };
        let now = Instant::now();
        if now - said < LINE_EVERY {
            return;
        }
        state.clocks = Some((began, now));
        let rate = state.done as f64 / (now - began).as_secs_f64();
        let left = state.total.saturating_sub(state.done) as f64 / rate;
        let per_second = if state.bytes { size(rate as u64) } else { format!("{rate:.1}") };
        eprintln!(
            "{} {}: {}/{}, {per_second}/s, {} left",
            state.name,
            state.phase,
            state.count(state.done),
            state.count(state.total),
            duration(left)
        );
    }

    fn note(&self, text: &str) {
        eprintln!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_short() {
        assert_eq!(duration(0.2), "1 s");
        assert_eq!(duration(240.0), "4 min");
        assert_eq!(duration(9000.0), "2.5 h");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(15_300_000), "15.3 MB");
    }
}
