//! What a VPS knows itself by: its machine identity, which it keeps for life,
//! and its boot's, which is another one at every start. A copy of a guest gives
//! its VPSs new ones.
//!
//! The kernel has one boot identity for all that runs on it. So a VPS finds a
//! file of its own in that one's place, in its `/proc`: like its `/run/host` it
//! belongs to nobody in there. It may take the file away and see the kernel's;
//! it then lies to itself alone.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Its name in `/run/host`.
pub(crate) const BOOT_ID: &str = "boot-id";
/// Where the kernel's is, in `/proc`.
pub(crate) const KERNEL_BOOT_ID: &str = "sys/kernel/random/boot_id";
/// Its name in `/run/host`.
pub(crate) const MACHINE_UUID: &str = "container-uuid";
/// Where systemd keeps what it made of that, in hexadecimal without dashes.
const MACHINE_ID: &str = "etc/machine-id";

/// An identity: 128 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity(pub(crate) [u8; 16]);

impl Identity {
    /// One that nobody else has (RFC 9562, version 4).
    pub(crate) fn draw() -> Result<Self, Errno> {
        let mut bytes = [0; 16];
        // So few bytes come whole.
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// As the kernel and systemd write it.
    pub(crate) fn text(self) -> String {
        let hex = self.hex();
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        [
            part(0, 8),
            part(8, 12),
            part(12, 16),
            part(16, 20),
            part(20, 32),
        ]
        .join("-")
    }

    /// As in `/etc/machine-id`.
    fn hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Writes an identity over another in a file of a VPS's `/run/host`.
pub(crate) fn rewrite(host: impl AsFd, name: &str, identity: Identity) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(host, name, flags, Mode::empty())?;
    // Of the same length: nobody ever reads a part of it.
    rustix::io::pwrite(file, identity.text().as_bytes(), 0).map(drop)
}

/// Replaces the machine identity that the VPS's init has written down, below
/// `root`, the private files of the VPS: if it is the `old` one, and not one
/// that somebody chose.
///
/// # Errors
/// The kernel's. That there is none is no error.
pub(crate) fn replace_machine_id(
    root: &OwnedFd,
    old: Identity,
    new: Identity,
) -> Result<(), Errno> {
    let open = openat2(
        root,
        MACHINE_ID,
        OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    );
    let file = match open {
        Ok(file) => file,
        // Whatever a tenant has put there instead is no identity.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
            return Ok(());
        }
        Err(errno) => return Err(errno),
    };
    let kind = rustix::fs::FileType::from_raw_mode(fstat(&file)?.st_mode);
    let mut text = [0; 33];
    if kind != rustix::fs::FileType::RegularFile {
        return Ok(());
    }
    let count = rustix::io::pread(&file, &mut text, 0)?;
    let found = text.get(..count).unwrap_or_default();
    if found.strip_suffix(b"\n").unwrap_or(found) != old.hex().as_bytes() {
        return Ok(());
    }
    rustix::io::pwrite(&file, new.hex().as_bytes(), 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn identities() -> (Identity, Identity) {
        (Identity::draw().unwrap(), Identity::draw().unwrap())
    }

    #[test]
    fn identities_differ_and_are_written_as_usual() {
        let (one, other) = identities();
        assert_ne!(one, other);
        let text = Identity([0xab; 16]).text();
        assert_eq!(text, "abababab-abab-abab-abab-abababababab");
        assert_eq!(one.text().as_bytes()[14], b'4');
    }

    #[test]
    fn only_what_came_from_us_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let root: OwnedFd = fs::File::open(directory.path()).unwrap().into();
        let (old, new) = identities();
        let replace = || replace_machine_id(&root, old, new).unwrap();
        replace();
        fs::create_dir(directory.path().join("etc")).unwrap();
        replace();
        let path = directory.path().join("etc/machine-id");
        let chosen = format!("{}\n", "0".repeat(32));
        for (before, after) in [
            (chosen.clone(), chosen),
            (String::new(), String::new()),
            (old.hex(), new.hex()),
            (format!("{}\n", old.hex()), format!("{}\n", new.hex())),
        ] {
            fs::write(&path, before).unwrap();
            replace();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
        // Never through a link, and never a device.
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, old.hex()).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        replace();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), old.hex());
    }

    #[test]
    fn a_file_is_rewritten_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let host = fs::File::open(directory.path()).unwrap();
        let (old, new) = identities();
        assert_eq!(rewrite(&host, BOOT_ID, new), Err(Errno::NOENT));
        let path = directory.path().join(BOOT_ID);
        fs::write(&path, format!("{}\n", old.text())).unwrap();
        rewrite(&host, BOOT_ID, new).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", new.text()));
    }
}
