//! Software: packages, our other programs, the lab.

use images::lab::host;
use images::{Cache, Kind, packages};

use super::Finding;
use crate::place;

/// Looks at all of it but the lab.
pub(super) fn check() -> Vec<Finding> {
    if place::is_lab() {
        return vec![images()]; // which are brought in; nothing is built here
    }
    vec![
        missing_packages("packages for images", &packages::all()),
        images(),
    ]
}

/// The lab, and whether it can be started.
pub(super) fn lab() -> (Finding, bool) {
    const WHAT: &str = "lab";
    if place::is_lab() {
        return (Finding::good(WHAT, "this is it"), false);
    }
    if crate::lab::is_up() {
        return (Finding::good(WHAT, "up"), true);
    }
    let finding = missing_packages(WHAT, host::PACKAGES);
    // As root, what is missing is installed by the first command that needs it.
    let works = finding.cure.is_none() || rustix::process::geteuid().is_root();
    let finding = match finding.cure {
        None => Finding::good(WHAT, "can be started: insula lab start"),
        Some(_) => finding,
    };
    (finding, works)
}

fn missing_packages(what: &'static str, wanted: &[&str]) -> Finding {
    match packages::missing(wanted) {
        Ok(missing) if missing.is_empty() => Finding::good(what, "installed"),
        Ok(missing) => {
            let is_root = rustix::process::geteuid().is_root();
            let names = missing.join(" ");
            let found = format!("missing: {names}");
            let command =
                format!("apt-get update && apt-get install --no-install-recommends {names}");
            if is_root {
                Finding::lacking(
                    what,
                    found,
                    format!("done by itself when needed, or: {command}"),
                )
            } else {
                Finding::bad(what, found, format!("sudo sh -c '{command}'"))
            }
        }
        Err(error) => Finding::bad(what, error.to_string(), "use Debian 12 or newer"),
    }
}

fn images() -> Finding {
    const WHAT: &str = "images";
    let wanted = [Kind::Kernel, Kind::Initramfs, Kind::Template];
    let entries = match Cache::user().and_then(|cache| cache.list()) {
        Ok(entries) => entries,
        Err(error) => return Finding::lacking(WHAT, error.to_string(), "insula image build"),
    };
    let missing: Vec<_> = wanted
        .iter()
        .filter(|kind| !entries.iter().any(|entry| entry.manifest().kind == **kind))
        .map(ToString::to_string)
        .collect();
    if missing.is_empty() {
        return Finding::good(WHAT, "built");
    }
    Finding::lacking(
        WHAT,
        format!("not built yet: {}", missing.join(", ")),
        "done by itself when needed (some minutes), or: insula image build",
    )
}
