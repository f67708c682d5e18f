//! The kernel's source: Debian's package, unpacked once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Lock};
use crate::command;
use crate::error::{IoContext, Result};
use crate::packages;
use crate::progress::Progress;

/// Bytes in a record of tar, its unit of counting.
const TAR_RECORD: u64 = 10 * 1024;

/// What no flavour is built from; half of the source. Configuration files and
/// makefiles stay, as the whole tree's are read.
const LEFT_OUT: &[&str] = &[
    "*/Documentation/*.rst",
    "*/Documentation/*.yaml",
    "*/Documentation/*.txt",
    "*/arch/a*/*.[chS]",
    "*/arch/[b-w]*/*.[chS]",
    "*/arch/xtensa/*.[chS]",
    "*/arch/*.dts",
    "*/arch/*.dtsi",
    "*/drivers/accel/*.[ch]",
    "*/drivers/comedi/*.[ch]",
    "*/drivers/gpu/drm/amd/*.[ch]",
    "*/drivers/gpu/drm/msm/*.[ch]",
    "*/drivers/gpu/drm/nouveau/*.[ch]",
    "*/drivers/gpu/drm/radeon/*.[ch]",
    "*/drivers/iio/*.[ch]",
    "*/drivers/infiniband/*.[ch]",
    "*/drivers/media/*.[ch]",
    "*/drivers/net/wireless/*.[ch]",
    "*/drivers/staging/*.[ch]",
    "*/sound/soc/*.[ch]",
    "*/tools/testing/*",
    "*/tools/perf/*",
];

/// Where the package puts the source.
pub(super) fn tarball() -> PathBuf {
    Path::new("/usr/src").join(format!("{}.tar.xz", packages::KERNEL_SOURCE))
}

/// What the names of the locks of unpacked sources start with; as much of the
/// tarball's SHA-256 as their directories' names have follows.
pub(super) const LOCK: &str = "source-";

fn short(sha256: &str) -> &str {
    sha256.get(..16).unwrap_or(sha256)
}

/// Where the source of the package that is installed is unpacked, if one is.
pub(super) fn current(cache: &Cache) -> Result<Option<PathBuf>> {
    let tarball = tarball();
    if !tarball.exists() {
        return Ok(None);
    }
    let sha256 = cache.file_sha256(&tarball)?;
    let dir = format!("work/source/linux-{}", short(&sha256));
    Ok(Some(cache.root().join(dir)))
}

/// The unpacked source of `tarball`, whose SHA-256 is given. It is written to
/// only here; builds put everything elsewhere.
pub(super) fn unpacked(
    cache: &Cache,
    tarball: &Path,
    sha256: &str,
    progress: &Progress,
) -> Result<PathBuf> {
    let short = short(sha256);
    let dir = cache.work_dir("source")?;
    let source = dir.join(format!("linux-{short}"));
    let lock = cache.lock(&format!("{LOCK}{short}"), || {
        progress.say("waiting for another insula that unpacks the kernel's source");
    })?;
    if source.exists() {
        return Ok(source);
    }
    let temporary = dir.join(format!(".tmp-linux-{short}"));
    if temporary.exists() {
        fs::remove_dir_all(&temporary).at("remove", &temporary)?;
    }
    fs::create_dir_all(&temporary).at("create the directory", &temporary)?;
    extract(tarball, &temporary, &lock, progress)?;
    fs::rename(&temporary, &source).at("rename to", &source)?;
    Ok(source)
}

fn extract(tarball: &Path, into: &Path, lock: &Lock, progress: &Progress) -> Result<()> {
    let records = uncompressed_size(tarball)?.map(|bytes| bytes / TAR_RECORD);
    let task = progress.task("unpacking the kernel's source", records);
    let mut tar = Command::new("tar");
    tar.arg("--extract")
        .arg("--file")
        .arg(tarball)
        .arg("--directory")
        .arg(into);
    tar.args(["--strip-components=1", "--no-same-owner"]);
    tar.args(["--checkpoint=500", "--checkpoint-action=echo=%u"]);
    tar.args(
        LEFT_OUT
            .iter()
            .map(|pattern| format!("--exclude={pattern}")),
    );
    tar.stdin(lock.as_stdin().at("share the lock on", into)?);
    command::run_lines(&mut tar, |line| {
        let count = line.rsplit(' ').next().and_then(|word| word.parse().ok());
        if let Some(count) = count {
            task.set(count);
        }
    })?;
    task.done();
    Ok(())
}

/// The length of the archive within, as xz's index has it.
fn uncompressed_size(tarball: &Path) -> Result<Option<u64>> {
    let listing = command::run(Command::new("xz").args(["--robot", "--list"]).arg(tarball))?;
    Ok(parse_listing(&listing))
}

fn parse_listing(listing: &str) -> Option<u64> {
    let totals = listing
        .lines()
        .find_map(|line| line.strip_prefix("totals\t"))?;
    totals.split('\t').nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_read_from_what_xz_prints() {
        let listing = "name\tx.tar.xz\nfile\t1\t65\t151000000\t1559000000\t0.097\tCRC64\t0\n\
                       totals\t1\t65\t151000000\t1559000000\t0.097\tCRC64\t0\t1\n";
        assert_eq!(parse_listing(listing), Some(1_559_000_000));
        assert_eq!(parse_listing("nonsense"), None);
    }
}
