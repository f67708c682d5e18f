//! Kernel parameters of a guest whose kernel tenants share.

use std::fs;
use std::io::ErrorKind;

use crate::server::log;

/// Below `/proc/sys`. Those that the kernel lacks are skipped: what they
/// guard is lacking too.
const TABLE: &[(&str, &str)] = &[
    // What tenants must not learn.
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/perf_event_paranoid", "3"),
    // What they must not reach.
    ("kernel/unprivileged_bpf_disabled", "2"),
    ("kernel/io_uring_disabled", "2"),
    ("kernel/yama/ptrace_scope", "1"),
    ("dev/tty/legacy_tiocsti", "0"),
    // Never a pipe: it would run outside of all VPSs.
    ("kernel/core_pattern", "core"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
    // A kernel that has gone wrong takes no more of its tenants' data along.
    ("kernel/panic_on_oops", "1"),
    ("kernel/pid_max", "4194304"),
];

pub(super) fn apply() {
    for (name, value) in TABLE {
        match fs::write(format!("/proc/sys/{name}"), value) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                log(&format!("cannot set sysctl {name} to {value}: {e}"));
            }
            _ => {}
        }
    }
}
