//! Debian packages as files: chosen, downloaded and unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::{run, run_lines};
use crate::error::{Error, IoContext, Result};
use crate::packages::tool;

/// Its kernel, first choice first: the guests' own version, else the suite's.
pub(super) const KERNELS: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];

/// Stands in for a merge of `/usr` that would need Perl.
const MERGED_USR: &str = "usr-is-merged";

/// `apt-get` with directories of our own, so that it needs no root and leaves
/// the machine's own state alone.
pub(super) struct Apt {
    dir: PathBuf,
}

impl Apt {
    pub(super) fn new(work: &Path) -> Result<Self> {
        let dir = work.join("apt");
        for sub in ["archives/partial", "cache"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).at("create the directory", &sub)?;
        }
        let status = dir.join("status");
        fs::write(&status, "").at("write", &status)?;
        Ok(Self { dir })
    }

    fn command(&self) -> Result<Command> {
        let mut apt = Command::new(tool("apt-get", "apt")?);
        let option = |name: &str, file: &str| format!("{name}={}", self.dir.join(file).display());
        apt.env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args([
                "--quiet=1",
                "-o",
                "APT::Sandbox::User=root",
                "-o",
                "Debug::NoLocking=1",
                "-o",
                &option("Dir::State::status", "status"),
                "-o",
                &option("Dir::Cache", "cache"),
                "-o",
                &option("Dir::Cache::archives", "archives"),
            ]);
        Ok(apt)
    }

    /// The package with the kernel that the first available of [`KERNELS`] stands for.
    pub(super) fn kernel() -> Result<String> {
        for meta in KERNELS {
            let mut show = Command::new(tool("apt-cache", "apt")?);
            show.env("LC_ALL", "C")
                .args(["show", "--no-all-versions", meta]);
            if let Ok(record) = run(&mut show)
                && let Some(package) = kernel_package(&record)
            {
                return Ok(package);
            }
        }
        Err(Error::Invalid {
            what: "the lab's kernel",
            reason: format!(
                "apt knows none of the packages {}; run 'apt-get update' (as root), and see \
                 that the distribution's own archive is among apt's sources",
                KERNELS.join(", ")
            ),
        })
    }

    pub(super) fn download_one(&self, package: &str) -> Result<PathBuf> {
        let dir = self.dir.join("kernel");
        fs::create_dir_all(&dir).at("create the directory", &dir)?;
        run(self
            .command()?
            .current_dir(&dir)
            .args(["download", package]))?;
        only_file(&dir, package)
    }

    pub(super) fn download_closure(
        &self,
        packages: &[&str],
        line: impl FnMut(&str),
    ) -> Result<Vec<PathBuf>> {
        let mut install = self.command()?;
        install.args([
            "install",
            "--yes",
            "--download-only",
            "--no-install-recommends",
        ]);
        install.arg(MERGED_USR).args(packages);
        install.stdin(Stdio::null());
        run_lines(&mut install, line)?;
        let archives = self.dir.join("archives");
        let mut debs = Vec::new();
        for item in fs::read_dir(&archives).at("list", &archives)? {
            let path = item.at("list", &archives)?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                debs.push(path);
            }
        }
        debs.sort();
        Ok(debs)
    }
}

/// The kernel image among a meta package's dependencies.
fn kernel_package(record: &str) -> Option<String> {
    let depends = record
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    let names = depends
        .split([',', '|'])
        .filter_map(|d| d.split_whitespace().next());
    names
        .map(str::to_owned)
        .find(|name| name.starts_with("linux-image-"))
}

/// Unpacks a package into `into`, without the paths `left_out`.
pub(super) fn unpack(deb: &Path, into: &Path, left_out: &[&str]) -> Result<()> {
    let mut content = Command::new(tool("dpkg-deb", "dpkg")?)
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .at("unpack", deb)?;
    let Some(stream) = content.stdout.take() else {
        return Err(Error::Invalid {
            what: "dpkg-deb",
            reason: "it has no output".to_owned(),
        });
    };
    let mut tar = Command::new(tool("tar", "tar")?);
    tar.args([
        "--extract",
        "--keep-directory-symlink",
        "--preserve-permissions",
    ]);
    tar.args(left_out.iter().map(|path| format!("--exclude={path}")));
    let output = tar
        .arg("--directory")
        .arg(into)
        .stdin(stream)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .at("unpack", deb)?;
    let status = content.wait().at("unpack", deb)?;
    if status.success() && output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("dpkg-deb --fsys-tarfile {} | tar --extract", deb.display()),
        status: format!("{status}, {}", output.status),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The only entry of `dir` whose name starts with `prefix`.
pub(super) fn only_file(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).at("list", dir)? {
        let item = item.at("list", dir)?;
        if item.file_name().to_string_lossy().starts_with(prefix) {
            found.push(item.path());
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        other => Err(Error::Invalid {
            what: "a package of the lab's host",
            reason: format!(
                "{} entries of {} begin with '{prefix}' where one was expected",
                other.len(),
                dir.display()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_package_names_its_kernel() {
        let record = "Package: linux-image-6.12-cloud-amd64\nVersion: 6.12.1\n\
                      Depends: linux-base, linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1)\n";
        assert_eq!(
            kernel_package(record).as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(kernel_package("Package: x\n"), None);
    }

    #[test]
    fn only_one_file_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(only_file(dir.path(), "vmlinuz-").is_err());
        fs::write(dir.path().join("vmlinuz-6"), "").unwrap();
        assert!(
            only_file(dir.path(), "vmlinuz-")
                .unwrap()
                .ends_with("vmlinuz-6")
        );
        fs::write(dir.path().join("vmlinuz-7"), "").unwrap();
        assert!(only_file(dir.path(), "vmlinuz-").is_err());
    }
}
