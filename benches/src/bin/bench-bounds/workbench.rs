//! The lab with `--icount`, and in it everything that is measured.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use images::kernel::Flavour;
use images::lab::{Command, Lab, LabConfig, Payload};
use images::{Cache, Image, Progress, Request, Store};

use crate::checkout;

/// Where files are put in the lab that are in no usual place.
const FILES: &str = "/root/bounds";
/// Longest time for one command in the lab, which is slow.
const PATIENCE: Duration = Duration::from_mins(15);

/// A lab that counts instructions, with our programs, the images, and the
/// programs that they are compared with.
pub(crate) struct Workbench {
    lab: Lab,
    /// The agent's image, here.
    pub(crate) agent: Image,
}

impl Workbench {
    /// Builds what is missing and brings it into the lab; the untrimmed
    /// kernel, whose build is long, only where it is wanted.
    pub(crate) fn set_up(with_yardstick: bool) -> Result<Self> {
        let progress = Progress::stderr();
        let programs = checkout::build_programs()?;
        let bare = tempfile::tempdir().context("cannot make a temporary directory")?;
        let store = Store::user()?;
        // In one go, as what can be is built side by side; the lab's host stays here.
        store.ensure_all(&Request::IN_LAB, &progress)?;
        let images = store.ensure_all(&Request::DEFAULT, &progress)?;
        let agent = store.ensure(Request::Agent, &progress)?;

        let lab = Lab::ensure(&LabConfig::new(true, Cache::user()?)?, &progress)?;
        let mut payload = Payload::new();
        for program in ["insula", "insula-vmm", "bench-vmm-cost", "bench-host-vps"] {
            payload.program(&programs.join(program))?;
        }
        for image in &images {
            payload.image(&image.entry)?;
        }
        if with_yardstick {
            let yardstick = store.ensure(Request::Kernel(Flavour::Yardstick), &progress)?;
            payload.file(&yardstick.path, &Self::place("yardstick"))?;
        }
        for name in ["bare_kvm", "bare_vps", "restore_floor", "nonzero_pages"] {
            let program: PathBuf = checkout::compile_bare(name, bare.path())?;
            payload.file(&program, &Self::place(name))?;
        }
        payload.file(Path::new(&agent.path), &Self::place("insula-agent"))?;
        lab.sync(&mut payload)?;
        Ok(Self { lab, agent })
    }

    /// Where a file that was brought along is in the lab.
    pub(crate) fn place(name: &str) -> String {
        format!("{FILES}/{name}")
    }

    /// Runs a command in the lab; its standard output.
    pub(crate) fn run(&self, argv: &[&str]) -> Result<String> {
        let (code, output) = self.run_any(argv)?;
        if code != 0 {
            bail!(
                "`{}` ended with exit code {code} in the lab: {output}",
                argv.join(" ")
            );
        }
        Ok(output)
    }

    /// Runs a command in the lab; its exit code, and its standard output, or
    /// what it complained about.
    pub(crate) fn run_any(&self, argv: &[&str]) -> Result<(u8, String)> {
        let command = Command::new(argv.iter().copied()).env("INSULA_ON", "hardware");
        let done = self.lab.capture(&command, b"", PATIENCE)?;
        let code = done.exit.shell_code();
        let text = if code == 0 || !done.stdout.is_empty() {
            &done.stdout
        } else {
            &done.stderr
        };
        Ok((code, String::from_utf8_lossy(text).into_owned()))
    }
}
