//! `insula guest top`: what guests do, as they do it.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use vmm::control::Counts;
use vmm::guest::{GuestDir, GuestState, RunRoot};

use crate::failure::{Failure, Outcome};
use crate::output::{Output, table};

/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// What has been counted of a guest.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Figures {
    /// Processor time of its virtual processors, in milliseconds.
    vcpu_time_ms: Option<u64>,
    #[serde(flatten)]
    counts: Option<Counts>,
}

impl Figures {
    /// Of a guest, as far as it can be asked.
    pub(crate) fn of(dir: &GuestDir) -> Self {
        Self {
            vcpu_time_ms: dir.vcpu_time().map(|time| time.as_millis() as u64),
            counts: dir.counts().ok(),
        }
    }
}

/// A guest in the table.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    state: GuestState,
    #[serde(flatten)]
    figures: Figures,
}

/// Shows all guests, again and again unless it is `once`.
pub(crate) fn main(once: bool, interval: Duration, output: &Output) -> Outcome {
    let mut before = BTreeMap::new();
    let mut since = Instant::now();
    loop {
        let rows = rows()?;
        let elapsed = since.elapsed();
        since = Instant::now();
        // Counts are of the whole life where there is nothing to compare with.
        let shown = show(&rows, &before, elapsed);
        let live = !once && !output.is_json() && io::stdout().is_terminal();
        if live {
            let written = io::stdout()
                .write_all(format!("{CLEAR}{shown}\n").as_bytes())
                .and_then(|()| io::stdout().flush());
            match written {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
                Err(error) => return Err(Failure::new(format!("cannot show guests: {error}"))),
                Ok(()) => {}
            }
        } else {
            output.result(&rows, || shown)?;
        }
        if once {
            return Ok(0);
        }
        before = rows
            .into_iter()
            .map(|row| (row.name, row.figures))
            .collect();
        thread::sleep(interval);
    }
}

fn rows() -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for dir in RunRoot::for_user()?.guests()? {
        let status = dir.status()?;
        rows.push(Row {
            figures: Figures::of(&dir),
            name: status.name,
            state: status.state,
        });
    }
    Ok(rows)
}

fn show(rows: &[Row], before: &BTreeMap<String, Figures>, elapsed: Duration) -> String {
    if rows.is_empty() {
        return "no guest is running".to_owned();
    }
    let mut table = table(&[
        "name",
        "state",
        "vcpu time",
        "vcpu",
        "exits",
        "exits/s",
        "emulated",
        "emulated/s",
    ]);
    for row in rows {
        let old = before.get(&row.name);
        let rate = |value: fn(&Figures) -> Option<u64>| {
            let (now, then) = (value(&row.figures)?, value(old?)?);
            let seconds = elapsed.as_secs_f64().max(1e-3);
            Some(now.saturating_sub(then) as f64 / seconds)
        };
        let time = |figures: &Figures| figures.vcpu_time_ms;
        let exits = |figures: &Figures| figures.counts.map(|c| c.processors.exits);
        let emulated =
            |figures: &Figures| figures.counts.map(|c| c.processors.emulated_instructions);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            row.name.clone(),
            row.state.to_string(),
            or_dash(time(&row.figures).map(|ms| format!("{:.1} s", ms as f64 / 1000.0))),
            or_dash(rate(time).map(|ms| format!("{:.0} %", ms / 10.0))),
            or_dash(exits(&row.figures).map(|count| count.to_string())),
            or_dash(rate(exits).map(|count| format!("{count:.0}"))),
            or_dash(emulated(&row.figures).map(|count| count.to_string())),
            or_dash(rate(emulated).map(|count| format!("{count:.0}"))),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use vmm::vcpu::ProcessorCounts;

    use super::*;

    fn row(time: u64, emulated: u64) -> Row {
        Row {
            name: "main".to_owned(),
            state: GuestState::Running,
            figures: Figures {
                vcpu_time_ms: Some(time),
                counts: Some(Counts {
                    processors: ProcessorCounts {
                        exits: 7,
                        emulated_instructions: emulated,
                    },
                    repairs: None,
                }),
            },
        }
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let before = BTreeMap::from([("main".to_owned(), row(1000, 100).figures)]);
        let text = show(&[row(2000, 4100)], &before, Duration::from_secs(2));
        for word in ["2.0 s", "50 %", "4100", "2000", "running"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        let first = show(&[row(2000, 4100)], &BTreeMap::new(), Duration::ZERO);
        assert!(first.contains('-'), "{first}");
    }

    #[test]
    fn figures_are_flat_in_json() {
        let value = serde_json::to_value(row(5, 6)).unwrap();
        assert_eq!(value["emulated_instructions"], 6);
        assert_eq!(value["vcpu_time_ms"], 5);
        assert_eq!(value["exits"], 7);
    }
}
