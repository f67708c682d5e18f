//! What a guest costs on a PVM host, in instructions of its kernel that KVM
//! emulates: this machine's own KVM, and no lab.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_agent::client::Client;
use guest_agent::protocol::{DiskRole, Exec, Message, Name, Target};
use images::kernel::Flavour;
use images::templates::Template;
use images::{Progress, Request, Store};
use serde_json::json;
use vmm::config::{HostKvm, MemSize};
use vmm::control::Counts;
use vmm::guest::{Drive, Guest, GuestSpec, RestoreSpec, RunRoot, SnapshotOptions};
use vmm::probe::{KvmKind, probe};

use super::Verdict;

/// The guest's kernel.
const KERNEL: Flavour = Flavour::PvmUp;
/// Most emulated instructions of a boot to the agent's hello, with one
/// processor and 128 MiB.
const BOOT: u64 = 12_000_000;
/// Most emulated instructions of a restored guest to its first answer.
const RESTORED: u64 = 300_000;
/// Most exits of a system call that is delivered.
const EXITS: f64 = 2.0;
/// How long dd may take, about a millisecond a system call.
const PATIENCE: Duration = Duration::from_mins(5);
/// Memory of the guest, in MiB.
const MEMORY_MIB: u64 = 128;
/// Blocks that are copied to count system calls: two each.
const BLOCKS: u64 = 1000;

pub(super) fn measure(runs: u32) -> Result<Verdict> {
    let rate = match probe().kind {
        KvmKind::Pvm {
            emulated_insn_per_s,
            ..
        } => emulated_insn_per_s,
        other => bail!("this machine's KVM is not of the PVM kind but {other}"),
    };
    println!(
        "pvm: this machine's KVM emulates {:.1} million instructions a second",
        rate as f64 / 1e6
    );
    let images = Images::ensure()?;
    let mut boots = Vec::new();
    let mut exits = 0.0f64;
    let mut restored = 0;
    for run in 0..runs {
        let guest = images.boot(run)?;
        let boot = counts(&guest)?;
        boots.push(boot.processors.emulated_instructions);
        if run == 0 {
            restored = restored_first_request(&guest)?;
            exits = exits_of_a_syscall(&guest)?;
        }
        guest.stop(Duration::ZERO).context("stopping the guest")?;
    }
    boots.sort_unstable();
    let median = boots.get(boots.len() / 2).copied().unwrap_or(0);
    println!(
        "  boot to agent ready, 1 vCPU, {MEMORY_MIB} MiB: {:.2} million emulated instructions \
         (median of {}; at most {:.0} million)",
        median as f64 / 1e6,
        boots.len(),
        BOOT as f64 / 1e6
    );
    println!(
        "  a restored guest to its first answer: {:.2} million emulated instructions (at most \
         {:.1} million)",
        restored as f64 / 1e6,
        RESTORED as f64 / 1e6
    );
    println!("  a repaired SYSCALL: {exits:.3} exits (at most {EXITS})");
    Ok(Verdict {
        holds: median <= BOOT && restored <= RESTORED && exits <= EXITS,
        figures: json!({
            "emulated_insn_per_s": rate,
            "boot_emulated_instructions": boots,
            "restored_emulated_instructions": restored,
            "exits_per_syscall": exits,
        }),
    })
}

fn counts(guest: &Guest) -> Result<Counts> {
    guest.dir().counts().context("asking the machine process")
}

/// Has a copy of the guest answer a request.
fn restored_first_request(guest: &Guest) -> Result<u64> {
    let directory = guest.dir().path().join("bounds-snapshot");
    guest
        .dir()
        .snapshot(&directory, SnapshotOptions::default())
        .context("taking a snapshot of the guest")?;
    let spec = RestoreSpec {
        snapshot: directory,
        hostname: None,
        prefetch: false,
        huge_pages: false,
        force: false,
        passing: false,
        ephemeral: true,
    };
    let name: Name = format!("bounds-{}-copy", std::process::id())
        .parse()
        .map_err(anyhow::Error::msg)?;
    let copy = RunRoot::for_user()?
        .reserve(&name)?
        .restore(&spec, None)
        .context("restoring a guest on this machine's KVM")?;
    Client::connect(&copy.endpoint())
        .and_then(|mut client| client.info())
        .context("asking the restored guest's agent")?;
    let counted = counts(&copy)?.processors.emulated_instructions;
    copy.stop(Duration::ZERO).context("stopping the copy")?;
    Ok(counted)
}

/// Has the guest make system calls, and counts exits.
fn exits_of_a_syscall(guest: &Guest) -> Result<f64> {
    let before = counts(guest)?.repairs.unwrap_or_default();
    let count = format!("count={BLOCKS}");
    let dd = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", &count];
    let exec = Exec {
        target: Target::Machine,
        argv: dd.map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
    };
    let mut session = Client::connect(&guest.endpoint())
        .context("calling the guest's agent")?
        .exec(exec);
    session.send(Message::StdinEof);
    loop {
        let said = session
            .next(Some(PATIENCE))
            .context("running dd in the guest")?;
        if let Message::Exited(exit) = said {
            if exit.shell_code() != 0 {
                bail!("dd in the guest failed with {}", exit.shell_code());
            }
            break;
        }
    }
    let after = counts(guest)?.repairs.unwrap_or_default();
    let syscalls = after.syscalls - before.syscalls;
    if syscalls < 2 * BLOCKS {
        bail!("dd made {syscalls} system calls, not {}", 2 * BLOCKS);
    }
    // What page faults took, at one exit each at least, is not theirs.
    let others = after.page_faults - before.page_faults;
    let exits = (after.debug_exits - before.debug_exits).saturating_sub(others);
    Ok(exits as f64 / syscalls as f64)
}

/// What the guest is made of.
struct Images {
    kernel: PathBuf,
    initramfs: PathBuf,
    template: PathBuf,
}

impl Images {
    fn ensure() -> Result<Self> {
        let store = Store::user()?;
        let find =
            |request| -> Result<PathBuf> { Ok(store.ensure(request, &Progress::silent())?.path) };
        Ok(Self {
            kernel: find(Request::Kernel(KERNEL))?,
            initramfs: find(Request::Initramfs)?,
            template: find(Request::Template(Template::Busybox))?,
        })
    }

    fn boot(&self, run: u32) -> Result<Guest> {
        let template: Name = "busybox".parse().map_err(anyhow::Error::msg)?;
        let mut spec = GuestSpec::new(self.kernel.clone(), KERNEL.command_line());
        spec.run_on(HostKvm::Pvm);
        spec.memory = MemSize::try_from(MEMORY_MIB).map_err(anyhow::Error::msg)?;
        spec.initrds = vec![self.initramfs.clone()];
        spec.drives = vec![Drive {
            role: DiskRole::Template(template.clone()),
            path: self.template.clone(),
        }];
        spec.machine_root = Some(template);
        spec.ephemeral = true;
        let name: Name = format!("bounds-{}-{run}", std::process::id())
            .parse()
            .map_err(anyhow::Error::msg)?;
        RunRoot::for_user()?
            .reserve(&name)?
            .start(&spec, None)
            .context("starting a guest on this machine's KVM")
    }
}
