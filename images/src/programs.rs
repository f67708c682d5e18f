//! Static programs that run in guests, built from this checkout with cargo: the
//! agent, and the workloads of the comparison.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::{Cache, Entry, Inputs, Kind};
use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::packages;
use crate::progress::Progress;

/// The compiler that built this library and will build the programs.
const RUSTC: &str = env!("IMAGES_RUSTC");

/// What the programs are built for: musl where it is installed, else glibc.
const TARGET: &str = env!("IMAGES_STATIC_TARGET");

/// Raise it when the recipe below changes what comes out of it.
const RECIPE: &str = "3";

/// A static program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Program {
    /// PID 1 of guests and the partitioning engine.
    Agent,
    /// What instances run in the comparison.
    Workload,
}

impl Program {
    /// The binary's name, in the cache entry as well.
    pub fn binary(self) -> &'static str {
        self.recipe().binary
    }

    fn recipe(self) -> Recipe {
        match self {
            Self::Agent => Recipe {
                kind: Kind::Agent,
                name: "agent",
                package: "guest-agent",
                binary: "insula-agent",
                profile: "agent",
                features: &["--no-default-features", "--features=agent"],
                sources: &["guest-agent/Cargo.toml", "guest-agent/src"],
                expected_crates: 22,
            },
            Self::Workload => Recipe {
                kind: Kind::Workload,
                name: "workload",
                package: "insula-benches",
                binary: "insula-workload",
                profile: "release",
                features: &["--no-default-features"],
                sources: &["benches/Cargo.toml", "benches/src/bin"],
                expected_crates: 3,
            },
        }
    }
}

struct Recipe {
    kind: Kind,
    name: &'static str,
    package: &'static str,
    binary: &'static str,
    profile: &'static str,
    features: &'static [&'static str],
    /// What it is built from, beside the workspace's manifest and lock file.
    sources: &'static [&'static str],
    /// How many crates cargo compiles, for the progress bar.
    expected_crates: u64,
}

/// The checkout to build from: `$INSULA_SOURCE`, else the one that this library was
/// built in.
///
/// # Errors
/// [`Error::NoSource`] when it is not there (any more).
fn checkout(what: &'static str) -> Result<PathBuf> {
    let path = std::env::var_os("INSULA_SOURCE").map_or_else(
        || {
            let images = Path::new(env!("CARGO_MANIFEST_DIR"));
            images.parent().unwrap_or(images).to_path_buf()
        },
        PathBuf::from,
    );
    if path.join("guest-agent/Cargo.toml").exists() {
        return Ok(path);
    }
    Err(Error::NoSource { what, path })
}

/// The program, built if it is not in the cache.
///
/// # Errors
/// When the checkout is not there, or cargo fails (with its last lines).
pub fn ensure(cache: &Cache, program: Program, progress: &Progress) -> Result<Entry> {
    let recipe = program.recipe();
    if cache.sealed()?.is_some() {
        return cache.ensure(recipe.kind, recipe.name, &Inputs::new(), progress, |_| {
            Ok(())
        });
    }
    let checkout = checkout(recipe.binary)?;
    let inputs = inputs(&recipe, &checkout)?;
    cache.ensure(recipe.kind, recipe.name, &inputs, progress, |out| {
        packages::ensure(
            packages::STATIC_PROGRAMS,
            "linking static programs",
            progress,
        )?;
        let built = build(cache, &recipe, &checkout, progress)?;
        let to = out.join(recipe.binary);
        fs::copy(&built, &to).at("copy the built program to", &to)?;
        Ok(())
    })
}

fn inputs(recipe: &Recipe, checkout: &Path) -> Result<Inputs> {
    let mut inputs = Inputs::new()
        .text("recipe", RECIPE)
        .text("rustc", RUSTC)
        .text("target", TARGET)
        .text("features", recipe.features.join(" "))
        .file("Cargo.toml", &checkout.join("Cargo.toml"))?
        .file("Cargo.lock", &checkout.join("Cargo.lock"))?;
    for source in recipe.sources {
        let path = checkout.join(source);
        inputs = if path.is_dir() {
            inputs.tree(source, &path)?
        } else {
            inputs.file(*source, &path)?
        };
    }
    Ok(inputs)
}

fn build(cache: &Cache, recipe: &Recipe, checkout: &Path, progress: &Progress) -> Result<PathBuf> {
    // A target directory of its own: nobody waits for a build in the checkout,
    // and other flags there do not make cargo build everything again.
    let target_dir = cache.work_dir("cargo-target")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .arg("build")
        .arg("--manifest-path")
        .arg(checkout.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&target_dir);
    cargo.args(["--target", TARGET, "--profile", recipe.profile]);
    cargo
        .args(["--package", recipe.package, "--bin", recipe.binary])
        .args(recipe.features);
    cargo.args(["--color", "never"]);
    // The checkout's path must not show in the program, and nobody debugs it in a guest.
    let remap = format!("--remap-path-prefix={}=insula", checkout.display());
    let flags = [
        "-Ctarget-feature=+crt-static",
        "-Cstrip=symbols",
        // A bit for each pointer that is moved with the program, where it was 24 bytes.
        "-Clink-arg=-Wl,-z,pack-relative-relocs",
        &remap,
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // Set by a cargo that runs this one, for its own package.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_CFG_") {
            cargo.env_remove(&name);
        }
    }
    cargo
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET");
    cargo.stdin(Stdio::null());
    let title = format!("building {}", recipe.binary);
    let task = progress.task(&title, Some(recipe.expected_crates));
    let mut crates = 0;
    command::run_lines(&mut cargo, |line| {
        if let Some(name) = line.trim_start().strip_prefix("Compiling ") {
            crates += 1;
            task.set(crates);
            task.note(name);
        }
    })?;
    task.done();
    let profile_dir = if recipe.profile == "dev" {
        "debug"
    } else {
        recipe.profile
    };
    Ok(target_dir
        .join(TARGET)
        .join(profile_dir)
        .join(recipe.binary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_and_target_are_known() {
        assert!(RUSTC.starts_with("rustc 1."), "{RUSTC}");
        assert!(TARGET.starts_with("x86_64-unknown-linux-"));
    }

    #[test]
    fn every_program_is_built_from_sources_that_are_there() {
        let checkout = checkout("the test").unwrap();
        for program in [Program::Agent, Program::Workload] {
            let recipe = program.recipe();
            for source in recipe.sources {
                assert!(checkout.join(source).exists(), "{source}");
            }
            let hash = inputs(&recipe, &checkout).unwrap().hash();
            assert_eq!(hash, inputs(&recipe, &checkout).unwrap().hash());
        }
    }
}
