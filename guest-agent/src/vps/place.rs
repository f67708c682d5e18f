//! Where the engine's process itself has to be.

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};
use rustix::thread::UnshareFlags;

use super::{Error, raw};

/// Gives the process a mount namespace of its own, so that what the engine
/// mounts goes with it, and nobody else sees it. What the host mounts later is
/// still seen.
///
/// # Errors
/// The kernel's: most likely for want of privileges.
pub fn own_mounts() -> Result<(), Error> {
    let own = || {
        raw::unshare(UnshareFlags::NEWNS)?;
        mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
    };
    own().map_err(Error::system("make a mount namespace for", "the engine"))
}

/// Moves the process off the initramfs: to a second mount of the same files,
/// on top. For PID 1 of a guest, before [`super::Engine::new`].
///
/// `pivot_root` refuses to replace the initramfs itself, since nothing is
/// below it. And a VPS's copy of the second mount is locked onto the first, so
/// that no VPS can ever uncover it.
///
/// # Errors
/// The kernel's.
pub fn leave_initramfs() -> Result<(), Error> {
    let leave = || {
        let directory = rustix::process::getcwd(Vec::new())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let root = open_tree(CWD, "/", flags)?;
        move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        rustix::process::chdir(directory.as_c_str())
    };
    leave().map_err(Error::system("leave", "the initramfs"))
}

/// Whether the process's root is one that `pivot_root` can't replace.
pub(crate) fn on_initramfs() -> Result<bool, Errno> {
    // Its line in mountinfo is its own parent's: "1 1 0:2 / / rw - rootfs …".
    // Only in-memory file systems can be one.
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let magic = rustix::fs::statfs("/")?.f_type as u64;
    if magic != TMPFS && magic != RAMFS {
        return Ok(false);
    }
    let text = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(text.lines().any(is_bottom))
}

/// Whether a line of mountinfo is of a root with nothing below.
fn is_bottom(line: &str) -> bool {
    let fields: Vec<&str> = line.split(' ').collect();
    matches!(fields[..], [id, parent, _, "/", "/", ..] if id == parent)
        || matches!(fields[..], [_, "0", _, "/", "/", ..])
}

/// Signals that are waited for instead of delivered.
#[derive(Debug)]
pub(crate) struct HeldSignals(u64);

/// Holds back the signals that end a command, and that of an ended child.
pub(crate) fn hold_signals() -> HeldSignals {
    let held = [
        libc::SIGCHLD,
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
    ];
    let mask = held.iter().fold(0, |mask, signal| mask | 1 << (signal - 1));
    raw::set_signal_mask(raw::signal_mask() | mask);
    HeldSignals(mask)
}

impl HeldSignals {
    /// Waits for the next one.
    pub(crate) fn next(&self) -> i32 {
        loop {
            let signal = raw::wait_signal(self.0);
            if signal > 0 {
                return signal;
            }
        }
    }
}

/// Waits, in a test's process, for one of the signals in `mask`.
#[cfg(test)]
pub(crate) fn await_signals(mask: u64) {
    raw::set_signal_mask(mask);
    raw::wait_signal(mask);
}

/// Which process group the terminal's foreground belonged to.
#[derive(Debug)]
pub(crate) struct Foreground(Option<rustix::process::Pid>);

impl Foreground {
    /// Notes it, before a job takes the foreground.
    pub(crate) fn note() -> Self {
        Self(rustix::termios::tcgetpgrp(rustix::stdio::stdin()).ok())
    }

    /// Gives it back.
    pub(crate) fn restore(&self) {
        if let Some(group) = self.0 {
            // Else SIGTTOU stops us, who are in the background now.
            raw::set_signal_mask(raw::signal_mask() | 1 << (libc::SIGTTOU - 1));
            let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initramfs_is_told_from_a_root_on_top_of_it() {
        assert!(is_bottom("1 1 0:2 / / rw - rootfs rootfs rw"));
        assert!(!is_bottom(
            "26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
        ));
        assert!(!is_bottom("30 26 0:5 / /dev rw - devtmpfs devtmpfs rw"));
        assert!(!is_bottom(""));
    }
}
