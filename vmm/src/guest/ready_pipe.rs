//! The pipe on which a machine process says how its start went.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::process::timespec;

/// Longest line on the pipe.
const MAX_READY_LINE: u64 = 64 * 1024;

/// How waiting for a guest went.
pub(super) enum Ready {
    /// It is ready; when it reached each step.
    Yes(BTreeMap<String, u64>),
    /// It never will be, for the reason that was given, if one was.
    No(String),
    /// It said nothing in time.
    Late,
    /// Somebody gave up waiting.
    Interrupted,
}

/// Waits for the line on the ready pipe: `{"ready":…}` or `{"error":…}`. The
/// pipe's end without a line is a process that ended.
pub(super) fn wait_ready(
    ready: &File,
    patience: Duration,
    interrupt: Option<BorrowedFd<'_>>,
) -> Ready {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(ready, PollFlags::IN)];
        if let Some(interrupt) = &interrupt {
            fds.push(PollFd::new(interrupt, PollFlags::IN));
        }
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => return Ready::Late,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Ready::No(format!("waiting for it failed: {error}")),
        }
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            return Ready::Interrupted;
        }
        if !fds[0].revents().is_empty() {
            let mut line = String::new();
            // The process closes the pipe after its line, so this ends.
            if let Err(error) = ready.take(MAX_READY_LINE).read_to_string(&mut line) {
                return Ready::No(format!("its answer cannot be read: {error}"));
            }
            return ready_line(&line);
        }
    }
}

fn ready_line(line: &str) -> Ready {
    let Ok(answer) = serde_json::from_str::<serde_json::Value>(line) else {
        return Ready::No(String::new());
    };
    if let Some(ready) = answer.get("ready") {
        let spans = ready.get("spans").and_then(|spans| spans.as_object());
        let reached = spans.into_iter().flatten();
        return Ready::Yes(
            reached
                .filter_map(|(step, ns)| Some((step.clone(), ns.as_u64()?)))
                .collect(),
        );
    }
    let error = answer.get("error");
    let message = error
        .and_then(|error| error.as_str().or_else(|| error.get("message")?.as_str()))
        .unwrap_or_default();
    Ready::No(message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_lines_are_told_apart() {
        assert!(matches!(
            ready_line("{\"ready\":{\"spans\":{\"init\":1,\"kvm_ready\":null}}}\n"),
            Ready::Yes(spans) if spans.len() == 1 && spans["init"] == 1
        ));
        for line in ["{\"error\":{\"message\":\"no\"}}\n", "{\"error\":\"no\"}\n"] {
            assert!(matches!(ready_line(line), Ready::No(message) if message == "no"));
        }
        for line in ["", "garbage", "{}"] {
            assert!(matches!(ready_line(line), Ready::No(message) if message.is_empty()));
        }
    }
}
