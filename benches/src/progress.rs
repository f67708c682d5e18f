//! How far a run is, on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// How far a run is. On a terminal a bar with the time left; else a line for
/// each turn of a model.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    /// On standard error.
    pub fn on_stderr() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            bar,
            lines: !terminal,
        }
    }

    /// Nowhere.
    pub fn hidden() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            lines: false,
        }
    }

    /// Something that happens before the bar has a length.
    pub fn say(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        if self.lines {
            eprintln!("{text}");
        }
    }

    /// The run begins: so many turns, in about so many seconds.
    pub fn start(&self, turns: u64, estimate_s: u64) {
        self.bar.set_length(turns);
        let template = "[{elapsed_precise}] {bar:20} {pos}/{len}, {left} left · {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            let estimate = Duration::from_secs(estimate_s);
            let left = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let left = left(
                    estimate,
                    state.elapsed(),
                    state.pos(),
                    state.len().unwrap_or(0),
                );
                // Drawn on what cannot fail.
                let _ = write!(out, "{}", minutes(left));
            };
            self.bar.set_style(style.with_key("left", left));
        }
        self.bar.reset_elapsed();
    }

    /// A model's turn begins.
    pub fn turn(&self, block: u32, blocks: u32, model: &str, estimate_s: u64) {
        if self.lines {
            let left = left(
                Duration::from_secs(estimate_s),
                self.bar.elapsed(),
                self.bar.position(),
                self.bar.length().unwrap_or(0),
            );
            eprintln!(
                "block {block}/{blocks}, {model}: about {} left",
                minutes(left)
            );
        }
    }

    /// What is being done now.
    pub fn doing(&self, text: String) {
        self.bar.set_message(text);
    }

    /// A turn is over.
    pub fn visited(&self) {
        self.bar.inc(1);
    }

    /// The run is over.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Writes a line without disturbing the bar.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

/// How long the rest takes: at first what was estimated, and more and more what
/// the turns took until now.
fn left(estimate: Duration, elapsed: Duration, done: u64, all: u64) -> Duration {
    let share = if all == 0 {
        0.0
    } else {
        done as f64 / all as f64
    };
    if share <= 0.0 {
        return estimate.saturating_sub(elapsed);
    }
    let planned = estimate.mul_f64(1.0 - share);
    let seen = elapsed.mul_f64((1.0 - share) / share);
    planned.mul_f64(1.0 - share) + seen.mul_f64(share)
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds >= 60 {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_the_estimate_and_then_what_was_seen() {
        let seconds = Duration::from_secs;
        assert_eq!(left(seconds(100), seconds(20), 0, 10), seconds(80));
        // Half done in thrice the time: between both.
        assert_eq!(left(seconds(100), seconds(150), 5, 10), seconds(100));
        assert_eq!(left(seconds(100), seconds(300), 10, 10), seconds(0));
        assert_eq!(left(seconds(7), seconds(1), 0, 0), seconds(6));
        assert_eq!(minutes(seconds(125)), "2 min 05 s");
        assert_eq!(minutes(seconds(5)), "5 s");
    }
}
