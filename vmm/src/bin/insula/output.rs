//! What is printed: results to standard output, all else to standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use images::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::Global;
use crate::failure::{Failure, Outcome};

/// How the user wants to be told things.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    verbose: bool,
}

impl Output {
    /// As the global options say.
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
        }
    }

    /// Whether results are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result: `value` as JSON, or what `human` makes of it.
    pub(crate) fn result<T: Serialize + ?Sized>(
        &self,
        value: &T,
        human: impl FnOnce() -> String,
    ) -> Outcome {
        let mut text = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|error| Failure::new(format!("cannot print the result: {error}")))?
        } else {
            human()
        };
        if !text.is_empty() {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            print(&text)?;
        }
        Ok(0)
    }

    /// Says what was done, to people who did not ask for quiet.
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("insula: {}", line.as_ref());
        }
    }

    /// Says what is being done, to people who want to know.
    pub(crate) fn detail(&self, line: impl AsRef<str>) {
        if self.verbose {
            eprintln!("insula: {}", line.as_ref());
        }
    }

    /// Where builds say how far they are.
    pub(crate) fn progress(&self) -> Progress {
        if self.quiet {
            Progress::silent()
        } else {
            Progress::stderr()
        }
    }

    /// Turns for as long as it lives, on a terminal.
    pub(crate) fn spinner(&self, message: impl Into<String>) -> Spinner {
        if self.quiet || !io::stderr().is_terminal() {
            return Spinner(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(message.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Spinner(bar)
    }
}

/// A sign of life on a terminal, gone when dropped.
#[derive(Debug)]
pub(crate) struct Spinner(ProgressBar);

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A window narrower than this is no help in laying out a table.
const LEAST_WIDTH: u16 = 60;

/// A table with this head.
pub(crate) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    // Lines are broken for a person's window only, and if it is worth one.
    let fits = table.is_tty() && table.width().is_some_and(|width| width >= LEAST_WIDTH);
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(if fits {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        })
        .set_header(head.iter().map(|word| word.to_uppercase()));
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 1));
    }
    table
}

/// Writes to standard output. A reader that went away is no error.
pub(crate) fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(0),
    }
}
