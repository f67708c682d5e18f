//! What the emulated host is made of, and QEMU's command line for it.

use std::ffi::OsString;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{LabError, Result};

/// The least memory with which guests can be started in the lab.
const LEAST_MEMORY_MIB: u32 = 1024;
/// Memory where there is plenty: room for a dozen guests, and what is not
/// touched costs nothing.
const MEMORY_MIB: u32 = 4096;
/// Processors of a lab that nobody asked to be larger.
///
/// QEMU before 8.1 may run a stale translation of code that one processor
/// patches while another translates it, and Linux dies of the breakpoint that it
/// patches with: `__schedule` and `apic_has_pending_timer` are where it did, in
/// minutes of virtual machines coming and going. The agent's role `steady` keeps
/// what toggles there from toggling; one processor needs no such care.
const MOST_CPUS: u32 = 1;
/// An EPYC of the first generation, as far as TCG emulates one.
const CPU: &str = "EPYC,+svm,+npt";

/// Kernel command line of the emulated host.
pub(super) const COMMAND_LINE: &str =
    "console=ttyS0 quiet reboot=t panic=-1 mitigations=off random.trust_cpu=on";

/// Port on which the lab's daemon listens, inside.
pub(super) const DAEMON_PORT: u16 = 7000;

/// Size of the emulated host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Time is the number of instructions executed: one processor, slower,
    /// and repeatable.
    pub icount: bool,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl Shape {
    /// A shape that suits this machine, from its processors and memory, or as
    /// `INSULA_LAB_CPUS` and `INSULA_LAB_MEMORY` (MiB) say.
    ///
    /// # Errors
    /// A variable that is no number in range.
    pub fn for_this_machine(icount: bool) -> Result<Self> {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut shape = Self::choose(icount, cpus, &meminfo);
        if let Some(memory_mib) = variable("INSULA_LAB_MEMORY", LEAST_MEMORY_MIB, 1 << 20)? {
            shape.memory_mib = memory_mib;
        }
        if let Some(cpus) = variable("INSULA_LAB_CPUS", 1, 64)?
            && !icount
        {
            shape.cpus = cpus;
        }
        Ok(shape)
    }

    fn choose(icount: bool, cpus: usize, meminfo: &str) -> Self {
        let cpus = u32::try_from(cpus).unwrap_or(MOST_CPUS).min(MOST_CPUS);
        let third = kib(meminfo, "MemTotal:") / 1024 / 3;
        let memory_mib = u32::try_from(third).unwrap_or(u32::MAX).min(MEMORY_MIB);
        // In large steps, so that the snapshot is good for the next start too.
        let memory_mib = (memory_mib / 512 * 512).max(2 * LEAST_MEMORY_MIB);
        Self {
            icount,
            cpus: if icount { 1 } else { cpus },
            memory_mib,
        }
    }

    /// Whether there is memory to start it. Most of it stays untouched, so
    /// half of it must be there.
    pub(super) fn check_memory(&self) -> Result<()> {
        self.check(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    fn check(&self, meminfo: &str) -> Result<()> {
        let available_mib = kib(meminfo, "MemAvailable:") / 1024;
        if available_mib < u64::from(self.memory_mib / 2) {
            return Err(LabError::Memory {
                wanted_mib: self.memory_mib,
                available_mib,
                least_mib: LEAST_MEMORY_MIB,
            });
        }
        Ok(())
    }

    /// The instance of this shape: `default` or `icount`.
    pub fn instance(&self) -> &'static str {
        instance_name(self.icount)
    }

    /// What of the command line decides whether a snapshot fits.
    pub(super) fn identity(&self) -> String {
        format!(
            "{} {} {COMMAND_LINE}",
            self.accelerator().join(" "),
            self.memory_mib
        )
    }

    fn accelerator(&self) -> Vec<String> {
        let mut args = vec!["-machine".to_owned(), "q35,memory-backend=ram".to_owned()];
        // A single processor gains nothing from the locks between several.
        let thread = if self.icount || self.cpus == 1 {
            "single"
        } else {
            "multi"
        };
        args.extend(["-accel".to_owned(), format!("tcg,thread={thread}")]);
        if self.icount {
            args.extend(["-icount".to_owned(), "shift=0,sleep=off".to_owned()]);
        }
        args.extend([
            "-cpu".to_owned(),
            CPU.to_owned(),
            "-smp".to_owned(),
            self.cpus.to_string(),
        ]);
        args
    }
}

/// Name of an instance.
pub(super) fn instance_name(icount: bool) -> &'static str {
    if icount { "icount" } else { "default" }
}

/// Value of a field of `/proc/meminfo`, in KiB; 0 if it is not there.
fn kib(meminfo: &str, field: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// A number from the environment.
pub(super) fn variable(name: &'static str, least: u32, most: u32) -> Result<Option<u32>> {
    let Ok(value) = std::env::var(name) else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
        _ => Err(LabError::Variable {
            name,
            value,
            wanted: format!("it must be a number from {least} to {most}"),
        }),
    }
}

/// How the emulated host begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a> {
    /// From its kernel. Its memory is the file that a snapshot keeps.
    Boot {
        /// Linux, as a bzImage.
        kernel: &'a Path,
        /// Its initramfs.
        initramfs: &'a Path,
    },
    /// From a snapshot, as soon as the monitor says where that is. Its memory
    /// is a private mapping of the snapshot's file.
    Snapshot,
}

/// Files and the port of one QEMU process.
#[derive(Debug)]
pub(super) struct Wiring<'a> {
    /// Shown in process lists.
    pub(super) name: &'a str,
    /// File behind the memory.
    pub(super) memory: &'a Path,
    /// Root disk, qcow2.
    pub(super) root: &'a Path,
    /// Transfer disk, raw.
    pub(super) transfer: &'a Path,
    /// Port of this machine that leads to the daemon.
    pub(super) port: u16,
    /// Monitor's socket.
    pub(super) monitor: &'a Path,
    /// Console's log.
    pub(super) console: &'a Path,
    /// Where QEMU writes its PID.
    pub(super) pid_file: &'a Path,
}

/// QEMU's arguments.
pub(super) fn arguments(shape: &Shape, wiring: &Wiring<'_>, start: Start<'_>) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    args.extend(shape.accelerator().into_iter().map(OsString::from));
    let share = if matches!(start, Start::Boot { .. }) {
        "on"
    } else {
        "off"
    };
    let memory = format!(
        "memory-backend-file,id=ram,size={}M,share={share}",
        shape.memory_mib
    );
    let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
    option("-m", shape.memory_mib.to_string().into());
    option("-object", with_path(&memory, "mem-path", wiring.memory));
    option("-name", format!("insula-lab-{}", wiring.name).into());
    option("-qmp", {
        let mut value = OsString::from("unix:");
        value.push(escaped(wiring.monitor));
        value.push(",server=on,wait=off");
        value
    });
    option("-serial", {
        let mut value = OsString::from("file:");
        value.push(wiring.console);
        value
    });
    option("-pidfile", wiring.pid_file.into());
    // Tells the kernel that it was resumed, so that it reseeds its random numbers.
    option("-device", "vmgenid,guid=auto".into());
    option("-device", "virtio-rng-pci".into());
    // Nothing on the root disk outlives the lab: there is nobody to flush for.
    let root = "driver=qcow2,node-name=root,cache.no-flush=on,discard=unmap,file.driver=file";
    option("-blockdev", with_path(root, "file.filename", wiring.root));
    // A full disk of this machine is an error there: halted, as QEMU would have
    // it, the lab would leave its users waiting.
    option(
        "-device",
        "virtio-blk-pci,drive=root,werror=report,rerror=report".into(),
    );
    // Read through the page cache, where what was just written to the file is.
    let transfer = "driver=raw,node-name=transfer,read-only=on,file.driver=file,file.locking=off";
    option(
        "-blockdev",
        with_path(transfer, "file.filename", wiring.transfer),
    );
    option("-device", "virtio-blk-pci,drive=transfer".into());
    let forward = format!("hostfwd=tcp:127.0.0.1:{}-:{DAEMON_PORT}", wiring.port);
    option(
        "-netdev",
        format!("user,id=net,restrict=on,{forward}").into(),
    );
    option("-device", "virtio-net-pci,netdev=net,romfile=".into());
    match start {
        Start::Boot { kernel, initramfs } => {
            option("-kernel", kernel.into());
            option("-initrd", initramfs.into());
            option("-append", COMMAND_LINE.into());
        }
        Start::Snapshot => option("-incoming", "defer".into()),
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        args.push(flag.into());
    }
    args.extend(["-display".into(), "none".into()]);
    args
}

/// `options,key=path`.
fn with_path(options: &str, key: &str, path: &Path) -> OsString {
    let mut value = OsString::from(format!("{options},{key}="));
    value.push(escaped(path));
    value
}

/// A path within a list of options, where commas are doubled.
fn escaped(path: &Path) -> OsString {
    path.to_string_lossy().replace(',', ",,").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:  24000000 kB\nMemFree: 1 kB\nMemAvailable: 20000000 kB\n";

    fn line(shape: &Shape, start: Start<'_>) -> String {
        let wiring = Wiring {
            name: "default",
            memory: Path::new("/c/memory"),
            root: Path::new("/c/a,b/root.qcow2"),
            transfer: Path::new("/c/transfer"),
            port: 4711,
            monitor: Path::new("/run/qmp"),
            console: Path::new("/run/console"),
            pid_file: Path::new("/run/pid"),
        };
        let words = arguments(shape, &wiring, start);
        words
            .iter()
            .map(|w| w.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_boot_shares_its_memory_and_a_snapshot_does_not() {
        let shape = Shape {
            cpus: 2,
            ..Shape::choose(false, 2, MEMINFO)
        };
        assert_eq!(shape.memory_mib, 4096);
        let boot = line(
            &shape,
            Start::Boot {
                kernel: Path::new("/k"),
                initramfs: Path::new("/i"),
            },
        );
        assert!(
            boot.contains("share=on") && boot.contains("-kernel /k -initrd /i"),
            "{boot}"
        );
        assert!(boot.contains("tcg,thread=multi") && !boot.contains("-icount"));
        assert!(boot.contains("hostfwd=tcp:127.0.0.1:4711-:7000"));
        assert!(boot.contains("file.filename=/c/a,,b/root.qcow2"));
        let resumed = line(&shape, Start::Snapshot);
        assert!(
            resumed.contains("share=off") && resumed.contains("-incoming defer"),
            "{resumed}"
        );
        assert!(!resumed.contains("-kernel"));
    }

    #[test]
    fn counting_instructions_takes_one_processor() {
        let shape = Shape::choose(true, 2, MEMINFO);
        assert_eq!(shape.cpus, 1);
        let line = line(&shape, Start::Snapshot);
        assert!(
            line.contains("-accel tcg,thread=single -icount shift=0,sleep=off"),
            "{line}"
        );
        assert_eq!(shape.instance(), "icount");
        assert_ne!(
            shape.identity(),
            Shape::choose(false, 2, MEMINFO).identity()
        );
    }

    #[test]
    fn the_size_follows_the_machine() {
        let small = "MemTotal: 8000000 kB\nMemAvailable: 900000 kB\n";
        let shape = Shape::choose(false, 64, small);
        assert_eq!((shape.cpus, shape.memory_mib), (MOST_CPUS, 2560));
        let error = shape.check(small).unwrap_err().to_string();
        assert!(
            error.contains("2560 MiB") && error.contains("INSULA_LAB_MEMORY"),
            "{error}"
        );
        assert!(shape.check(MEMINFO).is_ok());
    }
}
