//! The part of the emulated host that changes often: its first programs and
//! the daemon, as an initramfs segment after the image's own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::shape::Shape;
use crate::cpio::Archive;
use crate::error::{IoContext, Result};

/// First program, in the initramfs.
const INIT: &str = include_str!("system/init.sh");
/// System start, on the root disk.
const SETUP: &str = include_str!("system/setup.sh");
/// What is started and kept running.
const INITTAB: &str = include_str!("system/inittab");
/// Unpacks what is on the transfer disk.
const UNPACK: &str = include_str!("system/unpack.sh");

/// All of the above, for the key of a snapshot.
pub(super) fn system_text() -> String {
    [INIT, SETUP, INITTAB, UNPACK].concat()
}

/// Writes the whole initramfs to `to`: the image's (`base`) and then ours.
pub(super) fn initramfs(
    base: &Path,
    agent: &Path,
    token: &str,
    shape: &Shape,
    qemu: &str,
    to: &Path,
) -> Result<()> {
    let mut sink = File::create(to).at("create", to)?;
    io::copy(&mut File::open(base).at("open", base)?, &mut sink).at("copy", base)?;
    let agent = fs::read(agent).at("read", agent)?;
    let segment = segment(&agent, token, &description(shape, qemu)).at("write", to)?;
    sink.write_all(&segment).at("write", to)
}

/// `/etc/insula-lab.json`: tells programs in the lab where they are.
fn description(shape: &Shape, qemu: &str) -> String {
    let description = json!({
        "version": 1,
        "icount": shape.icount,
        "cpus": shape.cpus,
        "memory_mib": shape.memory_mib,
        "qemu": qemu,
    });
    format!("{description}\n")
}

fn segment(agent: &[u8], token: &str, description: &str) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("lab/setup", 0o755, SETUP.as_bytes())?;
    archive.file("lab/unpack", 0o755, UNPACK.as_bytes())?;
    archive.file("lab/inittab", 0o644, INITTAB.as_bytes())?;
    archive.file("lab/insula-agent", 0o755, agent)?;
    archive.file("lab/insula-token", 0o600, token.as_bytes())?;
    archive.file("lab/insula-lab.json", 0o644, description.as_bytes())?;
    Ok(archive.finish(4)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_follows_the_image_and_is_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let mut base = Archive::new(Vec::new());
        base.directory("bin").unwrap();
        fs::write(file("base"), base.finish(4).unwrap().0).unwrap();
        fs::write(file("agent"), "agent").unwrap();
        let shape = Shape {
            icount: true,
            cpus: 1,
            memory_mib: 2048,
        };
        initramfs(
            &file("base"),
            &file("agent"),
            "secret",
            &shape,
            "7.2",
            &file("out"),
        )
        .unwrap();
        let bytes = fs::read(file("out")).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("lab/insula-token") && text.contains("secret"));
        assert!(text.contains(r#""icount":true"#));
        let second = fs::metadata(file("base")).unwrap().len() as usize;
        assert!(second.is_multiple_of(4) && bytes[second..].starts_with(b"070701"));
    }
}
