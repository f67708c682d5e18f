//! Debian packages: which are missing, and installing them.

use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// The package with the source of the guest kernel.
pub const KERNEL_SOURCE: &str = "linux-source-6.12";

/// What building a kernel needs.
pub const KERNEL_BUILD: &[&str] = &[
    "bc",
    "bison",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "xz-utils",
    KERNEL_SOURCE,
];

/// What building templates needs.
pub const TEMPLATES: &[&str] = &["busybox-static", "erofs-utils"];

/// What making data disks needs.
pub const DISKS: &[&str] = &["e2fsprogs"];

/// What linking the static agent needs, beside Rust.
pub const STATIC_PROGRAMS: &[&str] = &["gcc", "libc6-dev"];

/// Everything that `insula image build` needs.
pub fn all() -> Vec<&'static str> {
    let mut all: Vec<_> = [KERNEL_BUILD, TEMPLATES, DISKS, STATIC_PROGRAMS]
        .into_iter()
        .flatten()
        .copied()
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Those of `packages` that are not installed, in the same order.
///
/// # Errors
/// When `dpkg-query` cannot be run: this is not a Debian system.
pub fn missing(packages: &[&str]) -> Result<Vec<String>> {
    let mut query = Command::new("dpkg-query");
    query
        .args([
            "--show",
            "--showformat=${binary:Package} ${db:Status-Status}\n",
        ])
        .args(packages);
    let output = query.output().map_err(|source| Error::Spawn {
        program: "dpkg-query".to_owned(),
        source,
        hint: "; images are built from Debian's packages, on Debian or a derivative".to_owned(),
    })?;
    let installed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(not_installed(packages, &installed))
}

/// `report` has a line `name[:arch] status` for each package that dpkg knows.
fn not_installed(packages: &[&str], report: &str) -> Vec<String> {
    let is_installed = |package: &str| {
        report
            .lines()
            .filter_map(|line| line.split_once(' '))
            .any(|(name, status)| {
                status == "installed" && name.split(':').next().is_some_and(|name| name == package)
            })
    };
    packages
        .iter()
        .filter(|p| !is_installed(p))
        .map(|p| (*p).to_owned())
        .collect()
}

/// Sees to it that `packages` are installed: as root by `apt-get`, after saying so.
/// `why` names what needs them ("building the kernel").
///
/// # Errors
/// [`Error::MissingPackages`] with the exact command when not run as root, and
/// apt's own words when it fails.
pub fn ensure(packages: &[&str], why: &str, progress: &Progress) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        // Without lists apt knows no versions; then its own words have to do.
        let older = older_qemu(&missing).unwrap_or_default();
        return Err(Error::MissingPackages {
            why: why.to_owned(),
            command: by_hand(&missing, &older),
            packages: missing,
        });
    }
    let installed = install_as_root(&missing, why, progress);
    installed.map_err(|source| Error::Install {
        why: why.to_owned(),
        command: by_hand(&missing, &older_qemu(&missing).unwrap_or_default()),
        packages: missing,
        source: Box::new(source),
    })
}

/// Installs what is missing, and what has to change for it.
fn install_as_root(missing: &[String], why: &str, progress: &Progress) -> Result<()> {
    if missing.iter().any(|p| p == "busybox-static") && self::missing(&["busybox"])?.is_empty() {
        progress.say("busybox-static takes the place of the package busybox, as its static form");
    }
    progress.say(&format!(
        "{why} needs packages: installing {} with apt-get",
        missing.join(" ")
    ));
    if !have_package_lists() {
        update(progress)?;
    }
    // Where versions conflict, apt would remove what is in the way and call it success.
    let careful: &[&str] = if older_qemu(missing)?.is_empty() {
        &[]
    } else {
        &["--no-remove"]
    };
    if let Err(first) = install(careful, missing, progress) {
        // Lists that are out of date name packages that the mirror has replaced.
        update(progress)?;
        if install(careful, missing, progress).is_err() {
            let older = older_qemu(missing)?;
            if older.is_empty() {
                return Err(first);
            }
            progress.say(&format!(
                "what is installed of QEMU does not go with this suite's qemu-system-x86: \
                 replacing it by {}",
                older.join(" ")
            ));
            let all = [missing, &older].concat();
            install(&["--allow-downgrades"], &all, progress)?;
        }
    }
    Ok(())
}

/// Whether apt has ever fetched its lists here.
fn have_package_lists() -> bool {
    let Ok(items) = std::fs::read_dir("/var/lib/apt/lists") else {
        return false;
    };
    items
        .flatten()
        .any(|item| item.file_name().to_string_lossy().contains("_Packages"))
}

fn update(progress: &Progress) -> Result<()> {
    let task = progress.task("apt-get update", None);
    apt_get(&["update"], |line| task.note(line))?;
    task.done();
    Ok(())
}

fn install(options: &[&str], packages: &[String], progress: &Progress) -> Result<()> {
    let task = progress.task("apt-get install", None);
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(options);
    args.extend(packages.iter().map(String::as_str));
    apt_get(&args, |line| task.note(line))?;
    task.done();
    Ok(())
}

fn apt_get(args: &[&str], line: impl FnMut(&str)) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["--quiet", "-o", "DPkg::Lock::Timeout=300"])
        .args(args);
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    apt.stdin(std::process::Stdio::null());
    command::run_lines(&mut apt, line)
}

/// The command that does by hand what [`ensure`] does for root.
fn by_hand(missing: &[String], older: &[String]) -> String {
    let mut words = vec!["sudo apt-get update && sudo apt-get install --no-install-recommends"];
    if !older.is_empty() {
        words.push("--allow-downgrades");
    }
    words.extend(missing.iter().chain(older).map(String::as_str));
    words.join(" ")
}

/// What is installed beside `qemu-system-x86` in the version of another suite (as
/// backports, for its tools alone) stands in that package's way.
const QEMU_TOOLS: [&str; 2] = ["qemu-utils", "qemu-block-extra"];

/// The versions (`package=version`) of QEMU's tools that go with the suite's
/// `qemu-system-x86`, if that package is wanted and others are installed.
fn older_qemu(packages: &[String]) -> Result<Vec<String>> {
    if !packages.iter().any(|p| p.starts_with("qemu-system")) {
        return Ok(Vec::new());
    }
    let mut policy = Command::new("apt-cache");
    policy
        .args(["policy", "qemu-system-x86"])
        .args(QEMU_TOOLS)
        .env("LC_ALL", "C");
    Ok(conflicting_qemu(&command::run(&mut policy)?))
}

/// Reads `apt-cache policy` for [`older_qemu`].
fn conflicting_qemu(policy: &str) -> Vec<String> {
    let field = |package: &str, field: &str| {
        let of_package = policy.split_once(&format!("{package}:\n"))?.1;
        let value = of_package
            .lines()
            .find_map(|l| l.trim().strip_prefix(field))?;
        Some(value.trim()).filter(|v| *v != "(none)")
    };
    let Some(system) = field("qemu-system-x86", "Candidate:") else {
        return Vec::new();
    };
    QEMU_TOOLS
        .into_iter()
        .filter(|tool| field(tool, "Installed:").is_some_and(|installed| installed != system))
        .map(|tool| format!("{tool}={system}"))
        .collect()
}

/// The path of a tool that belongs to a package: in `PATH`, or where
/// administrators' tools are.
///
/// # Errors
/// [`Error::MissingPackages`] when it is nowhere.
pub fn tool(name: &str, package: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Path::new);
    std::env::split_paths(&path)
        .chain(sbin.map(Path::to_path_buf))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::MissingPackages {
            why: format!("'{name}'"),
            packages: vec![package.to_owned()],
            command: format!("sudo apt-get install --no-install-recommends {package}"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let report = "libelf-dev:amd64 installed\nflex installed\nbison config-files\n";
        assert_eq!(
            not_installed(&["flex", "bison", "libelf-dev", "bc"], report),
            ["bison", "bc"]
        );
    }

    #[test]
    fn qemu_tools_from_backports_are_found() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2\n  Version table:\n\
                      qemu-utils:\n  Installed: 1:10.0\n  Candidate: 1:10.0\n\
                      qemu-block-extra:\n  Installed: (none)\n  Candidate: 1:7.2\n";
        assert_eq!(conflicting_qemu(policy), ["qemu-utils=1:7.2"]);
        let both = policy.replace(
            "Installed: (none)\n  Candidate: 1:7.2\n",
            "Installed: 1:10.0\n",
        );
        assert!(
            conflicting_qemu(&both).is_empty(),
            "no candidate: nothing to go with"
        );
        let fits = policy.replace("Installed: 1:10.0", "Installed: 1:7.2");
        assert!(conflicting_qemu(&fits).is_empty());
        let not_there = policy.replace("Installed: 1:10.0", "Installed: (none)");
        assert!(conflicting_qemu(&not_there).is_empty());
        assert!(conflicting_qemu("").is_empty());
    }

    #[test]
    fn the_command_by_hand_allows_downgrades_only_where_it_takes_them() {
        let missing = ["qemu-system-x86".to_owned()];
        assert!(by_hand(&missing, &[]).ends_with("--no-install-recommends qemu-system-x86"));
        let command = by_hand(&missing, &["qemu-utils=1:7.2".to_owned()]);
        assert!(command.ends_with("--allow-downgrades qemu-system-x86 qemu-utils=1:7.2"));
    }

    #[test]
    fn everything_that_is_needed_is_listed_once() {
        let all = all();
        assert!(all.contains(&KERNEL_SOURCE) && all.contains(&"busybox-static"));
        assert_eq!(all.iter().filter(|p| **p == "gcc").count(), 1);
    }
}
