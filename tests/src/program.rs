//! The programs under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of the `insula` binary, built in the release profile with its
/// companions first, as the README's commands build it.
///
/// # Panics
/// If the build fails: there is nothing to test then.
pub fn insula() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(&workspace)
        .args(["build", "--release", "--quiet", "--locked", "--bins"])
        .args(["--package", "vmm", "--package", "insula-benches"])
        .status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "building the programs under test failed: {status:?}"
    );
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    target
        .join("release/insula")
        .canonicalize()
        .unwrap_or_else(|error| {
            panic!(
                "the build left no {}: {error}",
                target.join("release/insula").display()
            )
        })
}
