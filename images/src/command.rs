//! Running the programs that build things.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// How many of the last lines of a failed program are shown.
const LAST_LINES: usize = 25;

/// Runs a program to its end and returns what it printed to standard output.
/// Standard input is empty.
///
/// # Errors
/// When it cannot be started or fails; with its last lines.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| spawn_error(command, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(Error::Command {
        command: shown,
        status: output.status.to_string(),
        output: last_lines(text.lines()),
    })
}

/// Runs a program to its end and hands each line that it prints, to either of
/// its outputs, to `line`. Its standard input is the command's (a terminal's, if
/// that was not set).
///
/// # Errors
/// As [`run`]; with its first line about an error, too.
pub fn run_lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<()> {
    let shown = show(command);
    let failed = |source| Error::Spawn {
        program: shown.clone(),
        source,
        hint: String::new(),
    };
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    command
        .stderr(writer.try_clone().map_err(failed)?)
        .stdout(writer);
    let spawned = command.spawn();
    // The command keeps the pipe's write ends, and the loop below ends only when all are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(|source| spawn_error(command, source))?;
    let mut kept = VecDeque::<String>::with_capacity(LAST_LINES);
    // What others that run beside it still print may push it out of the last lines.
    let mut complaint = None;
    for text in BufReader::new(reader).split(b'\n') {
        let Ok(text) = text else { break };
        let text = String::from_utf8_lossy(&text).into_owned();
        line(&text);
        if kept.len() == LAST_LINES
            && let Some(gone) = kept.pop_front()
            && complaint.is_none()
            && gone.contains("error:")
        {
            complaint = Some(gone);
        }
        kept.push_back(text);
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let mut output = last_lines(kept.iter().map(String::as_str));
    if let Some(complaint) = complaint {
        output.insert_str(0, &format!("{complaint}\n  …\n"));
    }
    Err(Error::Command {
        command: shown,
        status: status.to_string(),
        output,
    })
}

fn spawn_error(command: &Command, source: std::io::Error) -> Error {
    let program = command.get_program().to_string_lossy().into_owned();
    let hint = if source.kind() == std::io::ErrorKind::NotFound {
        "; is it installed and in PATH?".to_owned()
    } else {
        String::new()
    };
    Error::Spawn {
        program,
        source,
        hint,
    }
}

fn last_lines<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) -> String {
    let mut last: Vec<_> = lines
        .rev()
        .filter(|l| !l.trim().is_empty())
        .take(LAST_LINES)
        .collect();
    last.reverse();
    last.join("\n")
}

/// The command line as a user would type it, cut after a few words.
fn show(command: &Command) -> String {
    const WORDS: usize = 12;
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut shown: Vec<_> = words.map(|w| w.to_string_lossy().into_owned()).collect();
    if shown.len() > WORDS {
        shown.truncate(WORDS);
        shown.push("…".to_owned());
    }
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_command_its_status_and_its_last_lines() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo second >&2; exit 3"]);
        let message = run(&mut command).unwrap_err().to_string();
        assert!(
            message.contains("exit status: 3") && message.contains("second"),
            "{message}"
        );
        let mut lines = Vec::new();
        let message = run_lines(&mut command, |l| lines.push(l.to_owned())).unwrap_err();
        assert_eq!(lines, ["first", "second"]);
        assert!(message.to_string().contains("first\nsecond"), "{message}");
    }

    #[test]
    fn the_first_error_is_shown_however_much_is_printed_after_it() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'a.c:3: error: no'; seq 60; exit 2"]);
        let message = run_lines(&mut command, |_| {}).unwrap_err().to_string();
        assert!(message.contains("a.c:3: error: no\n  …\n36\n"), "{message}");
        assert!(message.ends_with("60"), "{message}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let message = run(&mut Command::new("no-such-program"))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("no-such-program") && message.contains("PATH"),
            "{message}"
        );
    }
}
