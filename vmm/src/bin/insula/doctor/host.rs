//! What the host's kernel offers for VPSs on it (host-vps): cgroups,
//! namespaces, file systems, tun. Guests bring their own.

use std::fs;
use std::path::Path;

use super::Finding;

/// Controllers that limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Namespaces that a VPS has: name in `/proc/self/ns` and in
/// `/proc/sys/user/max_*_namespaces`.
const NAMESPACES: [&str; 8] = ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup", "time"];
/// File systems that a VPS is made of.
const FILE_SYSTEMS: [&str; 2] = ["overlay", "erofs"];

/// Looks at all of them.
pub(super) fn check() -> Vec<Finding> {
    vec![cgroups(), namespaces(), file_systems(), tun()]
}

fn cgroups() -> Finding {
    const WHAT: &str = "cgroups";
    let cure = "host-vps only, not guests: boot with systemd.unified_cgroup_hierarchy=1, or \
                cgroup_no_v1=all";
    let root = Path::new("/sys/fs/cgroup");
    let (root, mixed) = if root.join("cgroup.controllers").exists() {
        (root.to_owned(), false)
    } else if root.join("unified/cgroup.controllers").exists() {
        (root.join("unified"), true)
    } else {
        let found = if root.join("memory").exists() {
            "version 1"
        } else {
            "not mounted"
        };
        return Finding::lacking(WHAT, found, cure);
    };
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<_> = CONTROLLERS
        .iter()
        .filter(|wanted| !controllers.split_whitespace().any(|have| have == **wanted))
        .copied()
        .collect();
    match (missing.as_slice(), mixed) {
        ([], false) => Finding::good(WHAT, format!("version 2, with {}", controllers.trim())),
        ([], true) => Finding::lacking(WHAT, "versions 1 and 2 side by side", cure),
        (missing, _) => Finding::lacking(
            WHAT,
            format!("version 2, without the controllers {}", missing.join(", ")),
            cure,
        ),
    }
}

fn namespaces() -> Finding {
    const WHAT: &str = "namespaces";
    let mut missing = Vec::new();
    let mut forbidden = Vec::new();
    for name in NAMESPACES {
        if !Path::new("/proc/self/ns").join(name).exists() {
            missing.push(name);
            continue;
        }
        let limit = fs::read_to_string(format!("/proc/sys/user/max_{name}_namespaces"));
        if limit.is_ok_and(|limit| limit.trim() == "0") {
            forbidden.push(name);
        }
    }
    if !missing.is_empty() {
        let found = format!("the kernel has no {} namespace", missing.join(", "));
        return Finding::lacking(
            WHAT,
            found,
            "host-vps only, not guests: boot a newer kernel",
        );
    }
    if let Some(first) = forbidden.first() {
        let found = format!("none allowed of: {}", forbidden.join(", "));
        let cure =
            format!("host-vps only, not guests: sysctl -w user.max_{first}_namespaces=10000");
        return Finding::lacking(WHAT, found, cure);
    }
    Finding::good(WHAT, "all eight")
}

fn file_systems() -> Finding {
    const WHAT: &str = "file systems";
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let is_known = |name: &str| {
        known
            .lines()
            .any(|line| line.split_whitespace().last() == Some(name))
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim());
    let is_module = |name: &str| {
        fs::read_to_string(modules.join("modules.dep")).is_ok_and(|modules| {
            modules.lines().any(|line| {
                line.split(':')
                    .next()
                    .is_some_and(|path| path.contains(&format!("/{name}.ko")))
            })
        })
    };
    let missing: Vec<_> = FILE_SYSTEMS
        .into_iter()
        .filter(|name| !is_known(name) && !is_module(name))
        .collect();
    if missing.is_empty() {
        Finding::good(WHAT, FILE_SYSTEMS.join(", "))
    } else {
        Finding::lacking(
            WHAT,
            format!("without {}", missing.join(", ")),
            "host-vps only, not guests: boot a kernel that has them (Debian's has)",
        )
    }
}

fn tun() -> Finding {
    const WHAT: &str = "tun";
    match fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        Ok(_) => Finding::good(WHAT, "/dev/net/tun opens"),
        Err(error) => Finding::lacking(
            WHAT,
            format!("/dev/net/tun cannot be opened ({error})"),
            "needed for guests' networks, which are not there yet: modprobe tun",
        ),
    }
}
