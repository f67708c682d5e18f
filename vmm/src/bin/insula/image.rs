//! `insula image`

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use images::lab::{self, SnapshotRecord};
use images::{Cache, Entry, Request, Store};
use serde_json::{Value, json};
use vmm::guest::Size;

use crate::cli::ImageCommand;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, table};
use crate::warm::{WarmCache, WarmRecord};

/// Runs an `insula image` command.
pub(crate) fn main(command: &ImageCommand, output: &Output) -> Outcome {
    match command {
        ImageCommand::Build { names } => build(names, output),
        ImageCommand::List => list(output),
        ImageCommand::Verify => verify(output),
        ImageCommand::Prune { all } => prune(*all, output),
    }
}

fn build(names: &[String], output: &Output) -> Outcome {
    let requests = if names.is_empty() {
        Request::DEFAULT.to_vec()
    } else {
        names
            .iter()
            .map(|name| name.parse::<Request>())
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::from(error).with_code(2))?
    };
    let images = Store::user()?.ensure_all(&requests, &output.progress())?;
    let entries: Vec<_> = images.into_iter().map(|image| image.entry).collect();
    show(&entries, &[], &[], output)
}

fn list(output: &Output) -> Outcome {
    let cache = Cache::user()?;
    let warm = WarmCache::user()?.list();
    show(&cache.list()?, &lab::snapshots(&cache)?, &warm, output)
}

fn show(
    entries: &[Entry],
    snapshots: &[SnapshotRecord],
    warm: &[WarmRecord],
    output: &Output,
) -> Outcome {
    let value: Vec<_> = entries
        .iter()
        .map(describe)
        .chain(snapshots.iter().map(describe_snapshot))
        .chain(warm.iter().map(describe_warm))
        .collect();
    output.result(&value, || {
        if value.is_empty() {
            return "no images yet; `insula image build` makes them".to_owned();
        }
        let mut table = table(&["kind", "name", "size", "last used", "hash"]);
        for entry in entries {
            let manifest = entry.manifest();
            table.add_row([
                manifest.kind.to_string(),
                manifest.name.clone(),
                Size::new(entry.size()).to_string(),
                ago(entry.last_used()),
                short(manifest.hash.as_str()).to_owned(),
            ]);
        }
        for snapshot in snapshots {
            table.add_row([
                SNAPSHOT.to_owned(),
                snapshot.shape.instance().to_owned(),
                Size::new(snapshot.bytes).to_string(),
                ago(snapshot.last_used),
                short(&key(&snapshot.dir)).to_owned(),
            ]);
        }
        for start in warm {
            table.add_row([
                WARM.to_owned(),
                start.about.clone(),
                Size::new(start.bytes).to_string(),
                ago(start.last_used),
                short(&key(&start.dir)).to_owned(),
            ]);
        }
        table.to_string()
    })
}

/// What snapshots of fresh guests are called in listings.
const WARM: &str = "warm-start";
/// What snapshots of the lab are called in listings.
const SNAPSHOT: &str = "lab-snapshot";

fn key(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn describe_snapshot(snapshot: &SnapshotRecord) -> Value {
    json!({
        "kind": SNAPSHOT,
        "name": snapshot.shape.instance(),
        "hash": key(&snapshot.dir),
        "bytes": snapshot.bytes,
        "last_used": unix(snapshot.last_used),
        "directory": snapshot.dir,
        "files": [],
    })
}

fn describe_warm(start: &WarmRecord) -> Value {
    json!({
        "kind": WARM,
        "name": start.about,
        "hash": key(&start.dir),
        "bytes": start.bytes,
        "last_used": unix(start.last_used),
        "directory": start.dir,
        "files": [],
    })
}

fn describe(entry: &Entry) -> Value {
    let manifest = entry.manifest();
    json!({
        "kind": manifest.kind.dir_name(),
        "name": manifest.name,
        "hash": manifest.hash.as_str(),
        "bytes": entry.size(),
        "last_used": unix(entry.last_used()),
        "directory": entry.dir(),
        "files": manifest.files.iter().map(|file| json!({
            "path": file.path,
            "bytes": file.size,
            "sha256": file.sha256,
        })).collect::<Vec<_>>(),
    })
}

fn verify(output: &Output) -> Outcome {
    let spinner = output.spinner("checking images");
    let findings = Cache::user()?.verify()?;
    drop(spinner);
    let name = |dir: &Path, entry: Option<&Entry>| {
        entry.map_or_else(
            || dir.display().to_string(),
            |entry| format!("{} {}", entry.manifest().kind, entry.manifest().name),
        )
    };
    let value: Vec<_> = findings
        .iter()
        .map(|finding| {
            json!({
                "image": name(&finding.dir, finding.entry.as_ref()),
                "directory": finding.dir,
                "problem": finding.problem.as_ref().map(ToString::to_string),
            })
        })
        .collect();
    output.result(&value, || {
        let lines = findings.iter().map(|finding| {
            let name = name(&finding.dir, finding.entry.as_ref());
            match &finding.problem {
                None => format!("{name}: as it was built\n"),
                Some(problem) => format!("{name}: {problem}\n"),
            }
        });
        lines.collect()
    })?;
    let damaged = findings
        .iter()
        .filter(|finding| finding.problem.is_some())
        .count();
    match damaged {
        0 => Ok(0),
        count => Err(Failure::new(format!(
            "{count} of {} images are damaged; `insula image prune` removes them, and \
             `insula image build` makes them again",
            findings.len()
        ))),
    }
}

fn prune(all: bool, output: &Output) -> Outcome {
    let store = Store::user()?;
    // First: they are in the directory that goes when nothing is left. A
    // sealed cache is refused below.
    let (warm, used) = match store.cache().sealed()? {
        None => WarmCache::user()?.prune(),
        Some(_) => (Vec::new(), Vec::new()),
    };
    let mut pruned = store.prune(all)?;
    for (dir, bytes) in warm {
        pruned.removed.push(dir);
        pruned.bytes = pruned.bytes.saturating_add(bytes);
    }
    let used = used.into_iter().map(|dir| (dir, "is being used"));
    pruned.kept.extend(used);
    let kept: Vec<_> = pruned
        .kept
        .iter()
        .map(|(path, why)| json!({"directory": path, "why": why}))
        .collect();
    let value = json!({"removed": pruned.removed, "bytes": pruned.bytes, "kept": kept});
    output.result(&value, || {
        let removed = format!(
            "removed {} directories, {}",
            pruned.removed.len(),
            Size::new(pruned.bytes)
        );
        let kept = pruned.kept.iter();
        let kept = kept.map(|(path, why)| format!("left: {} {why}", path.display()));
        std::iter::once(removed)
            .chain(kept)
            .collect::<Vec<_>>()
            .join("\n")
    })
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn ago(time: SystemTime) -> String {
    match time.elapsed().map_or(0, |elapsed| elapsed.as_secs()) {
        0..60 => "now".to_owned(),
        seconds @ 60..3600 => format!("{} min ago", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// As much of a hash as people compare.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
