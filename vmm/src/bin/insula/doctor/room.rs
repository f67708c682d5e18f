//! Room: disk space where images and guests are kept, and memory.

use std::fs;
use std::path::Path;

use images::Cache;
use vmm::guest::{RunRoot, Size};

use super::Finding;

/// What building every image takes, with the kernel's source and objects.
const CACHE_NEED: Size = Size::mib(6 * 1024);
/// What a few guests' consoles and small disks take.
const RUN_NEED: Size = Size::mib(64);
/// What the lab and a guest or two in it take.
const MEMORY_NEED: Size = Size::mib(2 * 1024);

/// Looks at all of them.
pub(super) fn check() -> Vec<Finding> {
    vec![cache(), run_directory(), memory()]
}

fn cache() -> Finding {
    const WHAT: &str = "image cache";
    match Cache::user() {
        Ok(cache) => space(
            WHAT,
            cache.root(),
            CACHE_NEED,
            "free some (insula image prune), or set INSULA_CACHE to a directory on another disk",
        ),
        Err(error) => Finding::bad(WHAT, error.to_string(), "export HOME or INSULA_CACHE"),
    }
}

fn run_directory() -> Finding {
    const WHAT: &str = "guests' directory";
    match RunRoot::for_user() {
        Ok(root) => space(
            WHAT,
            root.path(),
            RUN_NEED,
            "free some, or set INSULA_RUN to a directory on another disk",
        ),
        Err(error) => Finding::bad(
            WHAT,
            error.to_string(),
            "set INSULA_RUN to a directory of your own",
        ),
    }
}

/// Room in the file system that `path` is in, or will be in.
fn space(what: &'static str, path: &Path, need: Size, cure: &str) -> Finding {
    let there = path
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    let free = match rustix::fs::statvfs(there) {
        Ok(stat) => Size::new(stat.f_bavail.saturating_mul(stat.f_frsize)),
        Err(error) => {
            return Finding::lacking(what, format!("{} ({error})", path.display()), cure);
        }
    };
    let found = format!("{}, {free} free", path.display());
    if free >= need {
        Finding::good(what, found)
    } else {
        Finding::lacking(what, format!("{found}, of {need} that may be needed"), cure)
    }
}

fn memory() -> Finding {
    const WHAT: &str = "memory";
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .trim()
                .strip_suffix(" kB")
        })
        .and_then(|kib| kib.trim().parse::<u64>().ok())
    else {
        return Finding::lacking(WHAT, "/proc/meminfo does not say", "mount /proc");
    };
    let available = Size::new(available << 10);
    let found = format!("{available} available");
    if available >= MEMORY_NEED {
        Finding::good(WHAT, found)
    } else {
        let found = format!("{found}, of {MEMORY_NEED} that the lab with its guests may need");
        Finding::lacking(WHAT, found, "end other programs")
    }
}
