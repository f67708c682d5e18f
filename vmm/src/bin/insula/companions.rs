//! The programs that belong to this one: `insula-vmm` and `insula-compare`.
//!
//! They are found beside it. In a checkout, where cargo may have built only
//! `insula`, they are built.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::output::Output;

/// Where this program was built.
const SOURCE: &str = env!("CARGO_MANIFEST_DIR");

/// A program of ours.
#[derive(Debug, Clone, Copy)]
struct Companion {
    program: &'static str,
    package: &'static str,
}

const MACHINE_PROCESS: Companion = Companion {
    program: "insula-vmm",
    package: "vmm",
};
const COMPARE: Companion = Companion {
    program: "insula-compare",
    package: "insula-benches",
};

/// The machine process' program.
pub(crate) fn machine_process(output: &Output) -> Result<PathBuf, Failure> {
    if let Some(path) = env::var_os(vmm::guest::VMM_ENV).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    find(MACHINE_PROCESS, output)
}

/// The comparison's program.
pub(crate) fn compare(output: &Output) -> Result<PathBuf, Failure> {
    find(COMPARE, output)
}

/// This program.
pub(crate) fn own() -> Result<PathBuf, Failure> {
    env::current_exe()
        .map_err(|error| Failure::new(format!("cannot find this program's own file: {error}")))
}

fn find(companion: Companion, output: &Output) -> Result<PathBuf, Failure> {
    let own = own()?;
    let beside = own.with_file_name(companion.program);
    let target = Target::of(&own);
    // Run by cargo, this program is up to date, and so should they be.
    let by_cargo = env::var_os("CARGO_MANIFEST_DIR").is_some_and(|dir| dir == SOURCE);
    match target {
        Some(target) if by_cargo || !beside.is_file() => {
            target.build(companion, output)?;
            Ok(beside)
        }
        _ if beside.is_file() => Ok(beside),
        _ => Err(Failure::new(format!(
            "there is no {} beside {}; build it with `cargo build --release --package {}` in \
             insula's source and put it there",
            companion.program,
            own.display(),
            companion.package
        ))),
    }
}

/// A build directory of the checkout that this program was built from.
#[derive(Debug)]
struct Target {
    dir: PathBuf,
    profile: String,
}

impl Target {
    /// The build directory that `program` is in, if it is one.
    fn of(program: &Path) -> Option<Self> {
        let profile_dir = program.parent()?;
        let dir = profile_dir.parent()?;
        let is_build = dir.join("CACHEDIR.TAG").is_file();
        let has_source = Path::new(SOURCE).join("Cargo.toml").is_file();
        let profile = profile_dir.file_name()?.to_str()?;
        (is_build && has_source).then(|| Self {
            dir: dir.to_owned(),
            // Cargo's one directory that is not called as its profile.
            profile: if profile == "debug" { "dev" } else { profile }.to_owned(),
        })
    }

    fn build(&self, companion: Companion, output: &Output) -> Result<(), Failure> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let spinner = output.spinner(format!("building {}", companion.program));
        let built = Command::new(&cargo)
            .current_dir(SOURCE)
            .args(["build", "--quiet", "--profile", &self.profile])
            .args(["--package", companion.package, "--bin", companion.program])
            .arg("--target-dir")
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        drop(spinner);
        let built = built.map_err(|error| {
            Failure::new(format!(
                "cannot run {} to build {}: {error}",
                cargo.display(),
                companion.program
            ))
        })?;
        if built.status.success() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "building {} failed:\n{}",
            companion.program,
            String::from_utf8_lossy(&built.stderr).trim()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_program_is_in_no_build_directory() {
        assert!(Target::of(Path::new("/usr/bin/insula")).is_none());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("CACHEDIR.TAG"), "").unwrap();
        let target = Target::of(&dir.path().join("debug/insula")).unwrap();
        assert_eq!(
            (target.profile.as_str(), target.dir.as_path()),
            ("dev", dir.path())
        );
        let target = Target::of(&dir.path().join("release/insula")).unwrap();
        assert_eq!(target.profile, "release");
    }
}
