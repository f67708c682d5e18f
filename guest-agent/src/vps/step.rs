//! The steps of a new process on its way into a VPS: what it reports, as one
//! byte, when one fails.

use std::fmt;

use rustix::io::Errno;

macro_rules! steps {
    ($( $(#[$meta:meta])* $name:ident = $text:literal, )*) => {
        /// How far a new process came before it failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Step { $( $(#[$meta])* $name, )* }

        impl Step {
            const ALL: &[Self] = &[ $( Self::$name, )* ];

            /// The step behind a wire byte.
            pub(crate) fn from_code(code: u8) -> Self {
                Self::ALL.get(usize::from(code)).copied().unwrap_or(Self::Unknown)
            }

            fn text(self) -> &'static str {
                match self { $( Self::$name => $text, )* }
            }
        }
    };
}

steps! {
    /// Nobody knows.
    Unknown = "an unknown step",
    /// Signals, umask, parent's death.
    Inherit = "shedding what the agent's process handed down",
    /// `unshare(CLONE_NEWTIME)` and its offsets.
    Time = "giving it a time namespace",
    /// Waiting for the parent to write the ID maps.
    Handshake = "waiting for its ID maps",
    /// `setresuid` and so on.
    Credentials = "becoming its user",
    /// The user's name or group.
    User = "looking up its user",
    /// Staging directory with template and private files.
    Stage = "attaching template and private files",
    /// The overlay file system.
    Overlay = "mounting its root file system",
    /// `/proc`.
    Proc = "mounting /proc",
    /// `/sys`.
    Sysfs = "mounting /sys",
    /// `/sys/fs/cgroup`.
    Cgroup = "mounting /sys/fs/cgroup",
    /// `/dev` and what is below it.
    Dev = "mounting /dev",
    /// `/run`.
    Run = "mounting /run",
    /// `/proc/sys/kernel/random/boot_id`.
    BootId = "giving it a boot identity of its own",
    /// `pivot_root`.
    Pivot = "changing to its root",
    /// `sethostname`.
    Hostname = "setting its host name",
    /// The loopback device.
    Loopback = "bringing up its loopback device",
    /// Standard streams and the controlling terminal.
    Streams = "connecting its standard streams",
    /// The capability bounding set.
    Capabilities = "bounding its capabilities",
    /// The system call filter.
    Seccomp = "installing its system call filter",
    /// `setns`.
    Enter = "entering its namespaces",
    /// The second fork.
    Fork = "forking",
    /// The working directory.
    WorkingDirectory = "changing to its working directory",
    /// Closing inherited files.
    Files = "closing inherited files",
    /// `execve`.
    Exec = "executing its program",
}

impl Step {
    /// What to do about `errno` here, where there is something to say.
    pub(crate) fn hint(self, errno: Errno) -> &'static str {
        match (self, errno) {
            (Self::Overlay, Errno::NODEV) => "; the kernel lacks overlay: modprobe overlay",
            (Self::Proc | Self::Sysfs, Errno::PERM) => {
                "; parts of the host's /proc or /sys are hidden by other mounts, unmount them"
            }
            (Self::User, Errno::NOENT) => {
                "; give a name from its /etc/passwd (and /etc/group, after a colon), or a number"
            }
            (Self::User, Errno::PERM) => "; this agent does not run as root",
            (Self::Pivot, Errno::INVAL) => {
                "; the engine runs on an initramfs that it must leave first"
            }
            (Self::Proc | Self::Sysfs | Self::Dev | Self::Run, Errno::LOOP)
            | (_, Errno::NOTDIR) => "; the template has something other than a directory there",
            _ => "",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
