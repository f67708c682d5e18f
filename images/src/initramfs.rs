//! What a guest boots from: the agent, and what it is told at this boot.
//!
//! Linux unpacks any number of archives that follow each other in memory. The
//! first has only the agent and is the same for all guests; the second is made
//! for one boot of one guest.

use std::fs::{self, File};
use std::io::BufWriter;

use guest_agent::protocol::BOOT_CONFIG_PATH;

use crate::cache::{Cache, Entry, Inputs, Kind};
use crate::cpio::Archive;
use crate::error::{IoContext, Result};
use crate::programs::{self, Program};
use crate::progress::Progress;

/// The archive's file in a cache entry: cpio in "newc" form, not compressed, as a
/// guest unpacks nothing faster than what is only copied.
pub const ARCHIVE: &str = "initramfs.cpio";

/// The name of the initramfs with the agent.
pub const NAME: &str = "agent";

/// Raise it when the recipe below changes what comes out of it.
const RECIPE: &str = "1";

/// Archives are padded to this, so that the next one is aligned wherever it is put.
const ALIGNMENT: u64 = 512;

/// The initramfs with the agent as `/init`, built if it is not in the cache.
///
/// # Errors
/// When the agent cannot be built, or the archive not be written.
pub fn ensure(cache: &Cache, progress: &Progress) -> Result<Entry> {
    if cache.sealed()?.is_some() {
        return cache.ensure(Kind::Initramfs, NAME, &Inputs::new(), progress, |_| Ok(()));
    }
    let agent = programs::ensure(cache, Program::Agent, progress)?;
    let inputs = Inputs::new()
        .text("recipe", RECIPE)
        .text("agent", agent.manifest().hash.as_str());
    cache.ensure(Kind::Initramfs, NAME, &inputs, progress, |out| {
        let binary = agent.path(Program::Agent.binary());
        let content = fs::read(&binary).at("read", &binary)?;
        let path = out.join(ARCHIVE);
        let file = File::create(&path).at("create", &path)?;
        let mut archive = Archive::new(BufWriter::new(file));
        archive.file("init", 0o755, &content).at("write", &path)?;
        archive.finish(ALIGNMENT).at("write", &path)?;
        Ok(())
    })
}

/// The archive that tells the agent about this boot: `boot_config` (a CBOR-encoded
/// `guest_agent::protocol::BootConfig`) as a file that only root can read. It
/// follows the cached archive in the guest's memory.
///
/// # Errors
/// When `boot_config` is longer than a cpio archive can hold (4 GiB).
pub fn boot_segment(boot_config: &[u8]) -> Result<Vec<u8>> {
    let path = BOOT_CONFIG_PATH.trim_start_matches('/');
    let write = || -> std::io::Result<Vec<u8>> {
        let mut archive = Archive::new(Vec::new());
        for (at, _) in path.match_indices('/') {
            archive.directory(path.get(..at).unwrap_or_default())?;
        }
        archive.file(path, 0o400, boot_config)?;
        Ok(archive.finish(ALIGNMENT)?.0)
    };
    write().at(
        "make the archive for",
        std::path::Path::new(BOOT_CONFIG_PATH),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a newc archive as Linux does: names, modes and contents.
    fn parse(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut items = Vec::new();
        loop {
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let data = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return items;
            }
            items.push((name, mode, bytes[data..data + size].to_vec()));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn the_boot_segment_has_the_directories_and_the_file() {
        let segment = boot_segment(b"cbor").unwrap();
        assert_eq!(segment.len() as u64 % ALIGNMENT, 0);
        let items = parse(&segment);
        let names: Vec<_> = items.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["etc", "etc/insula", "etc/insula/boot.cbor"]);
        assert_eq!(items[0].1, 0o040_755);
        assert_eq!(items[2].1, 0o100_400);
        assert_eq!(items[2].2, b"cbor");
    }
}
