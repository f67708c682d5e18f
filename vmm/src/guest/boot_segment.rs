//! The initramfs segment that carries a guest's boot configuration.
//!
//! A plain cpio archive in the "newc" form (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`): a 110-byte
//! header of hexadecimal fields, the name, the data, each padded to 4 bytes.

use guest_agent::protocol::{BOOT_CONFIG_PATH, BootConfig};

/// Mode of a directory that only root may enter.
const DIRECTORY: u32 = 0o040_700;
/// Mode of a file that only root may read.
const FILE: u32 = 0o100_600;

/// The archive that puts `config` at [`BOOT_CONFIG_PATH`].
pub(super) fn boot_segment(config: &BootConfig) -> Vec<u8> {
    let mut body = Vec::new();
    // Writing to a vector cannot fail, and our own types always encode.
    let encoded = minicbor::encode(config, &mut body);
    debug_assert!(encoded.is_ok(), "our own configuration encodes");

    let path = BOOT_CONFIG_PATH.trim_start_matches('/');
    let mut archive = Vec::with_capacity(1024);
    let mut inode = 1;
    for (end, _) in path.match_indices('/') {
        entry(&mut archive, inode, DIRECTORY, &path[..end], &[]);
        inode += 1;
    }
    entry(&mut archive, inode, FILE, path, &body);
    entry(&mut archive, 0, 0, "TRAILER!!!", &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, inode: u32, mode: u32, name: &str, data: &[u8]) {
    let links = if mode & 0o170_000 == DIRECTORY & 0o170_000 {
        2
    } else {
        1
    };
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let fields = [
        inode,
        mode,
        0,
        0,
        links,
        0,
        data.len() as u32,
        0,
        0,
        0,
        0,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn config() -> BootConfig {
        BootConfig {
            nonce: [7; 16],
            hostname: "main".parse().unwrap(),
            disks: Vec::new(),
            wall_clock_ns: 1,
            machine_root: None,
        }
    }

    #[test]
    fn holds_the_configuration_once() {
        let config = config();
        let archive = boot_segment(&config);
        assert_eq!(archive.len() % 4, 0);
        let body = minicbor::to_vec(&config).unwrap();
        let at = archive
            .windows(body.len())
            .position(|window| window == body)
            .unwrap();
        assert_eq!(at % 4, 0);
    }

    #[test]
    fn cpio_lists_what_is_in_it() {
        let Ok(mut cpio) = Command::new("cpio")
            .arg("-t")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            return; // no cpio here to judge by
        };
        cpio.stdin
            .take()
            .unwrap()
            .write_all(&boot_segment(&config()))
            .unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "etc\netc/insula\netc/insula/boot.cbor\n"
        );
    }
}
