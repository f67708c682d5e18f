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
        return Err(Error::MissingPackages {
            why: why.to_owned(),
            command: format!(
                "sudo apt-get update && sudo apt-get install --no-install-recommends {}",
                missing.join(" ")
            ),
            packages: missing,
        });
    }
    progress.say(&format!(
        "{why} needs packages: installing {} with apt-get",
        missing.join(" ")
    ));
    if !have_package_lists() {
        update(progress)?;
    }
    if let Err(first) = install(&missing, progress) {
        // Lists that are out of date name packages that the mirror has replaced.
        update(progress)?;
        if install(&missing, progress).is_err() {
            match qemu_utils_downgrade(&missing)? {
                Some(version) => downgrade_qemu_utils(&missing, &version, progress)?,
                None => return Err(first),
            }
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

fn install(packages: &[String], progress: &Progress) -> Result<()> {
    install_with(&[], packages, progress)
}

fn install_with(options: &[&str], packages: &[String], progress: &Progress) -> Result<()> {
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

/// The version of `qemu-utils` that goes with the suite's `qemu-system-x86`, if
/// that package is wanted and a newer `qemu-utils` (from backports) stands in its way.
fn qemu_utils_downgrade(packages: &[String]) -> Result<Option<String>> {
    if !packages.iter().any(|p| p.starts_with("qemu-system")) {
        return Ok(None);
    }
    let mut policy = Command::new("apt-cache");
    policy
        .args(["policy", "qemu-system-x86", "qemu-utils"])
        .env("LC_ALL", "C");
    Ok(conflicting_qemu(&command::run(&mut policy)?))
}

/// Reads `apt-cache policy`: the candidate of qemu-system-x86, if qemu-utils is
/// installed in another version.
fn conflicting_qemu(policy: &str) -> Option<String> {
    let field = |package: &str, field: &str| {
        let of_package = policy.split_once(&format!("{package}:\n"))?.1;
        let value = of_package
            .lines()
            .find_map(|l| l.trim().strip_prefix(field))?;
        Some(value.trim().to_owned()).filter(|v| v != "(none)")
    };
    let system = field("qemu-system-x86", "Candidate:")?;
    let utils = field("qemu-utils", "Installed:")?;
    (system != utils).then_some(system)
}

fn downgrade_qemu_utils(packages: &[String], version: &str, progress: &Progress) -> Result<()> {
    progress.say(&format!(
        "the installed qemu-utils does not go with this suite's qemu-system-x86: \
         replacing it by version {version}"
    ));
    let mut all = packages.to_vec();
    all.push(format!("qemu-utils={version}"));
    install_with(&["--allow-downgrades"], &all, progress)
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
    fn a_qemu_utils_from_backports_is_found() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2\n  Version table:\n\
                      qemu-utils:\n  Installed: 1:10.0\n  Candidate: 1:10.0\n";
        assert_eq!(conflicting_qemu(policy).as_deref(), Some("1:7.2"));
        assert_eq!(
            conflicting_qemu(&policy.replace("Installed: 1:10.0", "Installed: 1:7.2")),
            None
        );
        let not_there = policy.replace("Installed: 1:10.0", "Installed: (none)");
        assert_eq!(conflicting_qemu(&not_there), None);
    }

    #[test]
    fn everything_that_is_needed_is_listed_once() {
        let all = all();
        assert!(all.contains(&KERNEL_SOURCE) && all.contains(&"busybox-static"));
        assert_eq!(all.iter().filter(|p| **p == "gcc").count(), 1);
    }
}
