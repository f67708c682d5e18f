//! Bringing files into the lab, by way of its second disk.
//!
//! That disk is a file that QEMU reads through the page cache: an archive is
//! written to its beginning here and unpacked from the device there, at about
//! 100 MB/s; the emulated network would be several times slower. Files are kept in the lab under the names of their
//! contents and linked to where they are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::process::Command as Process;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::error::{LabError, Result};
use super::payload::{Item, Payload};
use super::session::Command;
use super::snapshot::TRANSFER_SIZE;
use super::{Lab, SYNC_LOCK};
use crate::command::run;
use crate::cpio::Archive;
use crate::error::IoContext;
use crate::packages::tool;

/// Where the lab keeps what was brought in.
const STORE: &str = "/var/lib/insula-lab/store";
/// Unit in which the transfer disk is written and emptied.
const BLOCK: u64 = 1 << 20;
/// Programs smaller than this are sent as they are.
const WORTH_STRIPPING: u64 = 1 << 20;
/// How long another process's transfer may take.
const WAIT: Duration = Duration::from_mins(2);
/// How long unpacking may take; counting instructions makes it slow.
const UNPACK_TIME: Duration = Duration::from_mins(3);
/// Record of what is there.
const RECORD: &str = "payload.json";

/// What is in the lab: target -> object.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    placed: BTreeMap<String, String>,
}

/// What a transfer did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    /// Files that are new or changed in the lab.
    pub files: usize,
    /// Bytes that were sent for that.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Contents that the lab does not have: object -> target of one that needs it.
    send: BTreeMap<String, String>,
    /// Files to be linked: target -> object.
    place: BTreeMap<String, String>,
}

fn plan(wanted: &BTreeMap<String, String>, record: &Record) -> Plan {
    let there: BTreeSet<_> = record.placed.values().collect();
    let mut plan = Plan::default();
    for (target, object) in wanted {
        if record.placed.get(target) != Some(object) {
            plan.place.insert(target.clone(), object.clone());
            if !there.contains(object) {
                plan.send.insert(object.clone(), target.clone());
            }
        }
    }
    plan
}

/// What a shell in the lab does once the archive of `bytes` is on the disk.
fn script(plan: &Plan, bytes: u64) -> String {
    let mut script = String::from("set -eu\n");
    if bytes > 0 {
        script.push_str("/usr/local/lib/insula-lab/unpack\n");
    }
    let dirs: BTreeSet<_> = plan
        .place
        .keys()
        .filter_map(|target| Some(target.rsplit_once('/')?.0))
        .collect();
    script.push_str("mkdir -p");
    for dir in dirs {
        let _ = write!(
            script,
            " {}",
            quoted(if dir.is_empty() { "/" } else { dir })
        );
    }
    script.push('\n');
    for (target, object) in &plan.place {
        let target = quoted(target);
        let _ = writeln!(
            script,
            "[ {STORE}/{object} -ef {target} ] || ln -f {STORE}/{object} {target}"
        );
    }
    // What nothing links to any more.
    let _ = writeln!(script, "find {STORE} -type f -links 1 -delete");
    script
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl Lab {
    /// Brings in what the lab does not have yet.
    ///
    /// # Errors
    /// A file cannot be read, the lab's disk is full, or the lab has died.
    pub fn sync(&self, payload: &mut Payload) -> Result<Synced> {
        let started = Instant::now();
        let items = payload.complete()?.clone();
        let mut wanted = BTreeMap::new();
        for (target, item) in &items {
            wanted.insert(target.clone(), item.object(&self.cache)?);
        }
        let what = "bringing files into the lab";
        let _lock = self.place.lock(SYNC_LOCK, false, WAIT, what)?;
        let mut record: Record = self.place.read(RECORD)?.unwrap_or_default();
        let plan = plan(&wanted, &record);
        if plan.place.is_empty() {
            return Ok(Synced {
                took: started.elapsed(),
                ..Synced::default()
            });
        }
        let transfer = self.instance.scratch.join("transfer");
        let bytes = if plan.send.is_empty() {
            0
        } else {
            write(&transfer, &plan, &items)?
        };
        let unpacked = self.capture(
            &Command::new(["/bin/sh"]),
            script(&plan, bytes).as_bytes(),
            UNPACK_TIME,
        );
        empty(&transfer, bytes)?;
        let unpacked = unpacked?;
        if unpacked.exit.shell_code() != 0 {
            return Err(LabError::Inside {
                what,
                code: unpacked.exit.shell_code(),
                output: String::from_utf8_lossy(&unpacked.stderr).trim().to_owned(),
            });
        }
        let files = plan.place.len();
        record.placed.extend(plan.place);
        self.place.write(RECORD, &record)?;
        Ok(Synced {
            files,
            bytes,
            took: started.elapsed(),
        })
    }
}

/// Writes the archive and returns its length.
fn write(transfer: &Path, plan: &Plan, items: &BTreeMap<String, Item>) -> Result<u64> {
    let file = File::options()
        .write(true)
        .open(transfer)
        .at("open", transfer)?;
    let mut archive = Archive::new(BufWriter::with_capacity(BLOCK as usize, file));
    let mut total = 0;
    for (object, target) in &plan.send {
        let Some(item) = items.get(target) else {
            continue;
        };
        let stripped = strip(item)?;
        let source = stripped
            .as_ref()
            .map_or(item.source.as_path(), |file| file.path());
        let mut content = File::open(source).at("open", source)?;
        let size = content.metadata().at("examine", source)?.len();
        total += size;
        if total > TRANSFER_SIZE / 2 {
            let reason = format!("more than {} GiB at once", TRANSFER_SIZE >> 31);
            return Err(LabError::Payload {
                path: item.source.clone(),
                reason,
            });
        }
        archive
            .stream(object, item.mode, size, &mut content)
            .at("copy to the lab's transfer disk", source)?;
    }
    let (sink, length) = archive.finish(BLOCK).at("write", transfer)?;
    drop(sink);
    Ok(length)
}

/// A copy without debug information, where that is worth it and works.
fn strip(item: &Item) -> Result<Option<tempfile::NamedTempFile>> {
    let size = fs::metadata(&item.source)
        .at("examine", &item.source)?
        .len();
    if !item.strip || size < WORTH_STRIPPING {
        return Ok(None);
    }
    let Ok(strip) = tool("strip", "binutils") else {
        return Ok(None);
    };
    let copy = tempfile::NamedTempFile::new();
    let copy = copy.at("create a temporary file in", &std::env::temp_dir())?;
    let stripped = run(Process::new(strip)
        .arg("--strip-debug")
        .arg("-o")
        .args([copy.path(), item.source.as_path()]));
    // What strip does not understand goes as it is.
    Ok(stripped.is_ok().then_some(copy))
}

/// Gives the archive's room back.
fn empty(transfer: &Path, bytes: u64) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let file = File::options()
        .write(true)
        .open(transfer)
        .at("open", transfer)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if fallocate(&file, flags, 0, bytes).is_err() {
        // Not every file system has holes: make the file anew in length.
        file.set_len(0).at("empty", transfer)?;
        file.set_len(TRANSFER_SIZE).at("size", transfer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn only_what_is_not_there_is_sent() {
        let record = Record {
            placed: map(&[("/bin/a", "1"), ("/bin/b", "2")]),
        };
        let wanted = map(&[
            ("/bin/a", "1"),
            ("/bin/b", "3"),
            ("/bin/c", "2"),
            ("/bin/d", "3"),
        ]);
        let plan = plan(&wanted, &record);
        assert_eq!(
            plan.place,
            map(&[("/bin/b", "3"), ("/bin/c", "2"), ("/bin/d", "3")])
        );
        assert_eq!(plan.send.keys().collect::<Vec<_>>(), ["3"]);
    }

    #[test]
    fn the_script_survives_odd_names() {
        let plan = Plan {
            place: map(&[("/o'clock/a b", "1")]),
            ..Plan::default()
        };
        let text = script(&plan, 0);
        assert!(text.contains(r"mkdir -p '/o'\''clock'"), "{text}");
        assert!(
            text.contains(r"ln -f /var/lib/insula-lab/store/1 '/o'\''clock/a b'"),
            "{text}"
        );
        assert!(!text.contains("unpack"));
        assert!(script(&plan, BLOCK).contains("/unpack\n"));
    }

    #[test]
    fn an_archive_is_written_over_the_disk_and_taken_off_again() {
        let dir = tempfile::tempdir().unwrap();
        let transfer = dir.path().join("transfer");
        File::create(&transfer)
            .unwrap()
            .set_len(TRANSFER_SIZE)
            .unwrap();
        let source = dir.path().join("source");
        fs::write(&source, "content").unwrap();
        let item = Item {
            source,
            mode: 0o644,
            strip: true,
        };
        let items = BTreeMap::from([("/a".to_owned(), item)]);
        let plan = Plan {
            send: map(&[("object", "/a")]),
            ..Plan::default()
        };
        let length = write(&transfer, &plan, &items).unwrap();
        assert_eq!(length, BLOCK);
        let head = |n: usize| {
            let mut bytes = vec![0; n];
            std::io::Read::read_exact(&mut File::open(&transfer).unwrap(), &mut bytes).unwrap();
            bytes
        };
        assert!(head(6) == b"070701");
        empty(&transfer, length).unwrap();
        assert_eq!(head(6), [0; 6]);
        assert_eq!(fs::metadata(&transfer).unwrap().len(), TRANSFER_SIZE);
    }
}
