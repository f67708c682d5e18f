//! The comparison in the lab: this program again, on an emulated host; its
//! samples come back here, where the report is made.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use images::lab::{Command, Lab, LabConfig, Payload};
use images::{Cache, Progress, Request, Store};

/// Directory of results in the lab.
const RESULTS: &str = "/root/compare-results";
/// How long clearing a directory may take.
const CHORE: Duration = Duration::from_secs(30);

/// Runs this program with `options` in the lab, and brings its samples into
/// `directory`. Returns its exit code. An interruption is passed on, and what
/// was measured until then is brought back all the same.
pub(crate) fn compare(options: &[String], directory: &Path) -> anyhow::Result<u8> {
    let progress = Progress::stderr();
    let cache = Cache::user()?;
    let store = Store::new(cache.clone());
    // In one go, as what can be is built side by side; the lab's host stays here.
    store.ensure_all(&Request::IN_LAB, &progress)?;
    let images = store.ensure_all(&Request::DEFAULT, &progress)?;
    let own = env::current_exe().context("cannot find this program's own file")?;
    let mut payload = Payload::new();
    payload.program(&own)?;
    payload.program(&machine_process(&own))?;
    for image in &images {
        payload.image(&image.entry)?;
    }
    let lab = Lab::ensure(&LabConfig::new(false, cache)?, &progress)?;
    lab.sync(&mut payload)?;
    drop(progress);

    let inside = format!("{RESULTS}/{}", std::process::id());
    let mut argv = vec!["insula-compare".to_owned()];
    argv.extend(options.iter().cloned());
    argv.extend(["--collect".into(), "--out".into(), inside.clone()]);
    let mut command = Command::new(argv).env("INSULA_ON", "hardware");
    if let Some(commit) = compare::environment::git_commit() {
        command = command.env("INSULA_GIT", commit);
    }
    command.terminal = true; // when we have one
    let code = lab
        .run(&command)
        .context("running the comparison in the lab")?;

    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let fetched = lab.fetch(
        &format!("{inside}/samples.jsonl"),
        &directory.join("samples.jsonl"),
    );
    // The lab's disk is not for keeping; a failure costs some room there.
    let _ = lab.capture(&Command::new(["rm", "-rf", &inside]), b"", CHORE);
    match (fetched, code) {
        (Ok(_), code) => Ok(code),
        (Err(error), 0) => Err(error).context("bringing the samples back from the lab"),
        // It has said why it measured nothing.
        (Err(_), code) => {
            // Empty then, unless the caller had something there.
            let _ = std::fs::remove_dir(directory);
            Err(io::Error::other(format!("the comparison in the lab ended with {code}")).into())
        }
    }
}

/// The machine process' program: `$INSULA_VMM`, else beside this one.
fn machine_process(own: &Path) -> PathBuf {
    env::var_os(vmm::guest::VMM_ENV)
        .filter(|path| !path.is_empty())
        .map_or_else(|| own.with_file_name("insula-vmm"), PathBuf::from)
}
