//! The programs under test.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

/// The path of the `insula` binary, built in the release profile with its
/// companions first, as the README's commands build it; the images that guests
/// need are built then, too. What is done is said on the real standard error,
/// past the test runner's capture: the first time takes minutes.
///
/// # Panics
/// If a build fails: there is nothing to test then.
pub fn insula() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    say("building the programs under test (minutes the first time)");
    let mut programs = Command::new(cargo);
    programs
        .current_dir(&workspace)
        .args(["build", "--release", "--quiet", "--locked", "--bins"])
        .args(["--package", "vmm", "--package", "insula-benches"]);
    succeed(programs);

    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), PathBuf::from)
        .join("release/insula");
    let insula = target
        .canonicalize()
        .unwrap_or_else(|error| panic!("the build left no {}: {error}", target.display()));
    say("building what guests are made of (minutes the first time, for the kernel)");
    let mut images = Command::new(&insula);
    images.args(["image", "build", "--json"]);
    succeed(images);
    insula
}

/// Runs a command to its end, with our standard error.
fn succeed(mut command: Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    assert!(
        status.as_ref().is_ok_and(ExitStatus::success),
        "{command:?} failed: {status:?}"
    );
}

fn say(what: &str) {
    // Nobody can be told that nobody can be told.
    let _ = writeln!(io::stderr(), "end-to-end tests: {what}");
}
