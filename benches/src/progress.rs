//! How far a run is, on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
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
    pub fn start(&self, turns: u64, _estimate_s: u64) {
        self.bar.set_length(turns);
        let template = "[{elapsed_precise}] {bar:30} {pos}/{len} turns, {eta} left · {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.reset_elapsed();
        self.bar.reset_eta();
    }

    /// What is being done now.
    pub fn doing(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        if self.lines && text.ends_with("launching") {
            eprintln!("{text}");
        }
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
