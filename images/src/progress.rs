//! How builds tell the user where they are.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where progress goes: bars on a terminal, plain lines to a file or pipe, or
/// nowhere. All of it goes to standard error; results belong to standard output.
#[derive(Debug)]
pub struct Progress {
    style: Style,
}

#[derive(Debug)]
enum Style {
    Bars(MultiProgress),
    Lines,
    Silent,
}

impl Progress {
    /// Bars if standard error is a terminal, else a line now and then.
    pub fn stderr() -> Self {
        let style = if std::io::stderr().is_terminal() {
            Style::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
        } else {
            Style::Lines
        };
        Self { style }
    }

    /// Says nothing at all.
    pub fn silent() -> Self {
        Self {
            style: Style::Silent,
        }
    }

    /// Prints one line, above the bars if there are any.
    pub fn say(&self, line: &str) {
        match &self.style {
            Style::Bars(bars) => bars.suspend(|| eprintln!("{line}")),
            Style::Lines => eprintln!("{line}"),
            Style::Silent => {}
        }
    }

    /// Starts a task of `total` steps, or of unknown length.
    pub fn task(&self, title: &str, total: Option<u64>) -> Task {
        let bar = match &self.style {
            Style::Bars(bars) => bars.add(ProgressBar::no_length()),
            Style::Lines | Style::Silent => ProgressBar::hidden(),
        };
        bar.set_style(bar_style(total.is_some()));
        bar.set_prefix(title.to_owned());
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        let lines = matches!(self.style, Style::Lines);
        if lines {
            eprintln!("{title} …");
        }
        Task {
            bar,
            title: title.to_owned(),
            started: Instant::now(),
            lines: lines.then(|| {
                Mutex::new(LineState {
                    last: Instant::now(),
                })
            }),
        }
    }
}

fn bar_style(counted: bool) -> ProgressStyle {
    let template = if counted {
        "{spinner} {prefix} [{bar:30}] {percent:>3}% {elapsed} (about {eta} left) {msg}"
    } else {
        "{spinner} {prefix} {elapsed} {msg}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One thing that takes a while. Dropping it removes its bar.
#[derive(Debug)]
pub struct Task {
    bar: ProgressBar,
    title: String,
    started: Instant,
    lines: Option<Mutex<LineState>>,
}

#[derive(Debug)]
struct LineState {
    last: Instant,
}

/// How often a task says where it is when there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

impl Task {
    /// Says how many of the task's steps are done.
    pub fn set(&self, done: u64) {
        // A total is an estimate: never show more than all of it.
        let shown = self.bar.length().map_or(done, |total| done.min(total));
        self.bar.set_position(shown);
        let Some(state) = &self.lines else { return };
        let mut state = state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.last.elapsed() >= LINE_INTERVAL {
            state.last = Instant::now();
            match self.bar.length() {
                Some(total) if total > 0 => {
                    eprintln!("{}: {} %", self.title, shown.saturating_mul(100) / total);
                }
                _ => eprintln!("{}: {} s", self.title, self.started.elapsed().as_secs()),
            }
        }
    }

    /// Shows what the task is at, beside its bar.
    pub fn note(&self, note: impl Into<String>) {
        self.bar.set_message(note.into());
    }

    /// Ends the task and says how long it took.
    pub fn done(self) {
        if self.lines.is_some() {
            eprintln!(
                "{}: done in {:.1} s",
                self.title,
                self.started.elapsed().as_secs_f64()
            );
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_never_shows_more_than_its_total() {
        let task = Progress::silent().task("x", Some(10));
        task.set(25);
        assert_eq!(task.bar.position(), 10);
    }

    #[test]
    fn the_bar_templates_are_valid() {
        for counted in [true, false] {
            let _ = bar_style(counted);
        }
        assert!(ProgressStyle::with_template("{bar:30} {percent:>3} {elapsed} {eta}").is_ok());
    }
}
