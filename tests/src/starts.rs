//! How many guests the tests started, how, and how long each took: said when
//! all tests are done, past the test runner's capture.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::at_exit::at_exit;

/// The variable by which `insula` learns where to note the guests that it
/// starts.
pub(crate) const ENV: &str = "INSULA_STARTS_LOG";

static LOG: OnceLock<PathBuf> = OnceLock::new();

/// The file in which every guest's start is noted, by whichever process and in
/// whichever test.
pub(crate) fn log() -> &'static Path {
    LOG.get_or_init(|| {
        at_exit(report);
        env::temp_dir().join(format!("insula-starts-{}", std::process::id()))
    })
}

extern "C" fn report() {
    let Some(path) = LOG.get() else { return };
    let text = fs::read_to_string(path).unwrap_or_default();
    // Ours alone; it is not there when no guest was started.
    let _ = fs::remove_file(path);
    let _ = io::stderr().write_all(summary(&text).as_bytes());
}

/// One guest's start.
struct Start {
    name: String,
    how: String,
    ms: f64,
}

fn parse(line: &str) -> Option<Start> {
    let value: Value = serde_json::from_str(line).ok()?;
    Some(Start {
        name: value["name"].as_str()?.to_owned(),
        how: value["how"].as_str()?.to_owned(),
        ms: value["ms"].as_f64()?,
    })
}

/// The summary of a log. `.ci/run` finds it by its first and last line.
fn summary(log: &str) -> String {
    let mut starts: Vec<Start> = log.lines().filter_map(parse).collect();
    starts.sort_by(|a, b| a.how.cmp(&b.how).then(a.ms.total_cmp(&b.ms)));
    let mut text = format!("\nguests started by these tests: {}\n", starts.len());
    for kind in starts.chunk_by(|a, b| a.how == b.how) {
        let (Some(first), Some(last)) = (kind.first(), kind.last()) else {
            continue;
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {}: {}; to ready {:.0} ms at the median, {:.0} to {:.0} ms",
            first.how,
            kind.len(),
            kind[kind.len() / 2].ms,
            first.ms,
            last.ms
        );
        for start in kind {
            let _ = writeln!(text, "    {:>9.1} ms  {}", start.ms, start.name);
        }
    }
    text + "guests: that was all\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_summed_up_by_kind_and_listed() {
        let log = "\
{\"name\":\"web\",\"how\":\"cold\",\"ms\":900.0}
{\"name\":\"db\",\"how\":\"restored\",\"ms\":20.5}
not a line
{\"name\":\"api\",\"how\":\"cold\",\"ms\":800.0}
{\"name\":\"one\",\"how\":\"cold\",\"ms\":1000.0}
";
        assert_eq!(
            summary(log),
            "
guests started by these tests: 4
  cold: 3; to ready 900 ms at the median, 800 to 1000 ms
        800.0 ms  api
        900.0 ms  web
       1000.0 ms  one
  restored: 1; to ready 20 ms at the median, 20 to 20 ms
         20.5 ms  db
guests: that was all
"
        );
        assert!(summary("").contains(": 0\n"));
    }
}
