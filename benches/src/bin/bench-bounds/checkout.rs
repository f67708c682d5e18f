//! Building what is measured, from this checkout.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The package that this program belongs to.
const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

/// Builds all programs in the release profile, and says where they are.
pub(crate) fn build_programs() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(PACKAGE)
        .args(["build", "--release", "--quiet", "--bins"])
        .args(["--package", "vmm", "--package", "insula-benches"])
        .status()
        .context("cannot run cargo")?;
    ensure!(
        status.success(),
        "building the programs to be measured failed"
    );
    let own = env::current_exe().context("cannot find this program's own file")?;
    let profile = own.parent().context("this program is in no directory")?;
    let target = profile
        .parent()
        .context("this program is in no build directory")?;
    Ok(target.join("release"))
}

/// Compiles `micro/NAME.c` as a static program into `dir`: what the same work
/// costs without us.
pub(crate) fn compile_bare(name: &str, dir: &Path) -> Result<PathBuf> {
    let source = Path::new(PACKAGE)
        .join("micro")
        .join(name)
        .with_extension("c");
    let program = dir.join(name);
    let status = Command::new("cc")
        .args(["-O2", "-static", "-Wall", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .context("cannot run cc; install it with `apt-get install gcc libc6-dev`")?;
    ensure!(status.success(), "compiling {} failed", source.display());
    Ok(program)
}
