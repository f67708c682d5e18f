//! What a machine process costs beyond the KVM calls that it must make.
//!
//! Runs `insula-vmm` and the C program `micro/bare_kvm.c` in turns, both with a
//! micro-guest that pulses the reset line at once, and prints the medians,
//! their ratio (the goal is at most 1.3), and the peak resident set
//! besides guest memory (the goal is at most 4 MB). In the lab with `--icount` a nanosecond is
//! an instruction, of host kernel, KVM and program together.
//!
//! `cargo run --release -p insula-benches --bin bench-vmm-cost -- [--runs N]
//! [--vmm FILE] [--bare FILE]`; without `--bare` the C program is compiled with
//! `cc` first, without `--vmm` the `insula-vmm` beside this program is taken.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

/// The C program's sources, compiled where the bench runs.
const BARE_SOURCES: [(&str, &str); 2] = [
    ("bare_kvm.c", include_str!("../../micro/bare_kvm.c")),
    ("micro_guest.h", include_str!("../../micro/micro_guest.h")),
];
const GOAL_RATIO: f64 = 1.3;
const GOAL_RESIDENT_KIB: u64 = 4 << 10;
/// After this time a machine process does nothing new.
const SETTLED: Duration = Duration::from_millis(500);

/// `mov al, 0xfe; out 0x64, al`: pulses the reset line.
const RESET_GUEST: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];
/// `pause; jmp` to itself.
const ENDLESS_GUEST: [u8; 4] = [0xf3, 0x90, 0xeb, 0xfc];
const MEMORY_MIB: u32 = 128;
/// What `insula-vmm` says of a guest that resets without a goodbye.
const RESET_CODE: i32 = 20;

struct Options {
    runs: usize,
    vmm: PathBuf,
    bare: Option<PathBuf>,
}

/// One run of a program.
#[derive(Clone, Copy)]
struct Sample {
    elapsed_ns: u64,
    cpu_us: u64,
}

/// Resident sets, in KiB.
struct Resident {
    peak: u64,
    guest: u64,
}

fn main() -> Result<ExitCode> {
    let options = parse()?;
    let dir = env::temp_dir().join(format!("insula-bench-vmm-cost-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let met = bench(&options, &dir);
    // Only ours, and in a place for temporary files.
    let _ = fs::remove_dir_all(&dir);
    Ok(if met? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn bench(options: &Options, dir: &Path) -> Result<bool> {
    let bare = match &options.bare {
        Some(path) => path.clone(),
        None => compile(dir)?,
    };
    let mut ours = Command::new(&options.vmm);
    ours.arg("--config")
        .arg(machine(dir, "reset", &RESET_GUEST)?);
    let mut theirs = Command::new(&bare);
    let (mut insula, mut plain) = (Vec::new(), Vec::new());
    for run in 0..=options.runs {
        let samples = (measure(&mut ours, RESET_CODE)?, measure(&mut theirs, 0)?);
        // The first of each finds its pages on disk: not counted.
        if run > 0 {
            insula.push(samples.0);
            plain.push(samples.1);
        }
    }
    let endless = machine(dir, "endless", &ENDLESS_GUEST)?;
    let resident = resident_kib(Command::new(&options.vmm).arg("--config").arg(endless))?;
    Ok(report(&insula, &plain, &resident))
}

/// Writes a machine that runs `code`, and says where its configuration is.
fn machine(dir: &Path, name: &str, code: &[u8]) -> Result<PathBuf> {
    let kernel = dir.join(name);
    fs::write(&kernel, micro_guest(code))?;
    let config = dir.join(format!("{name}.json"));
    let machine = json!({
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
        "boot-source": {"kernel_image_path": kernel},
    });
    fs::write(&config, machine.to_string())?;
    Ok(config)
}

fn report(insula: &[Sample], plain: &[Sample], resident: &Resident) -> bool {
    println!(
        "{:<16} {:>14} {:>14}",
        "program", "elapsed ms", "user+sys ms"
    );
    for (name, samples) in [("insula-vmm", insula), ("bare KVM calls", plain)] {
        println!(
            "{name:<16} {:>14.3} {:>14.3}",
            median(samples, |s| s.elapsed_ns) as f64 / 1e6,
            median(samples, |s| s.cpu_us) as f64 / 1e3,
        );
    }
    let ratio =
        |of: fn(&Sample) -> u64| median(insula, of) as f64 / median(plain, of).max(1) as f64;
    let (elapsed, cpu) = (ratio(|s| s.elapsed_ns), ratio(|s| s.cpu_us));
    let own_kib = resident.peak.saturating_sub(resident.guest);
    let met = cpu <= GOAL_RATIO && own_kib <= GOAL_RESIDENT_KIB;
    // Elapsed time has KVM's waits for other processors in it, which cost nothing.
    println!(
        "ratio over {} runs: user+sys {cpu:.3}, elapsed {elapsed:.3}",
        insula.len()
    );
    println!(
        "peak resident set of insula-vmm: {own_kib} KiB, and {} KiB of guest memory touched",
        resident.guest
    );
    println!(
        "goal: user+sys at most {GOAL_RATIO} (counted by --icount), resident at most \
         {GOAL_RESIDENT_KIB} KiB: {}",
        if met { "met" } else { "missed" }
    );
    met
}

/// The peak of a program whose guest never ends, once it runs, and what of it
/// is guest memory. (What `wait4` says of a child also counts its parent, at
/// the time of the fork.)
fn resident_kib(command: &mut Command) -> Result<Resident> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run it")?;
    thread::sleep(SETTLED);
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let files = (
        fs::read_to_string(proc.join("status")),
        fs::read_to_string(proc.join("smaps")),
    );
    // It runs for ever, or has ended already, which the texts show.
    let _ = child.kill();
    child.wait()?;
    let peak = files.0?.lines().find_map(|line| kib(line, "VmHWM:"));
    let smaps = files.1?;
    let guest = guest_resident_kib(&smaps);
    let peak = peak.context("insula-vmm ended before its memory could be read: run it by hand")?;
    Ok(Resident { peak, guest })
}

/// The number in a line such as `VmHWM:     1704 kB`.
fn kib(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// Runs a program to its end.
fn measure(command: &mut Command, expected: i32) -> Result<Sample> {
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let (status, usage) = wait(child.id())?;
    let elapsed_ns = start.elapsed().as_nanos() as u64;
    ensure!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == expected,
        "{name} ended with wait status {status:#x}, not with exit code {expected}: run it by hand"
    );
    let us = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
    Ok(Sample {
        elapsed_ns,
        cpu_us: us(usage.ru_utime) + us(usage.ru_stime),
    })
}

/// What is resident of guest memory, in KiB: of neighbouring mappings without a
/// file that have its size together. It is one mapping in the beginning, and
/// several once the host was advised about parts of it.
fn guest_resident_kib(smaps: &str) -> u64 {
    let (mut end, mut size, mut resident) = (0, 0, 0);
    for line in smaps.lines() {
        if let Some((from, to, is_anonymous)) = mapping(line) {
            if size >= u64::from(MEMORY_MIB) << 20 {
                break;
            }
            if from != end || !is_anonymous {
                (size, resident) = (0, 0);
            }
            end = to;
            size += if is_anonymous { to - from } else { 0 };
        } else if let Some(kib) = kib(line, "Rss:") {
            resident += kib;
        }
    }
    if size >= u64::from(MEMORY_MIB) << 20 {
        resident
    } else {
        0
    }
}

/// Where a mapping begins and ends, and whether it is writable and of no file,
/// if this is the line that says so.
fn mapping(line: &str) -> Option<(u64, u64, bool)> {
    let mut words = line.split_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    let address = |hex| u64::from_str_radix(hex, 16).ok();
    let is_writable = words.next()?.starts_with("rw-p");
    // Offset, device, inode, and the file's name.
    let is_anonymous = words.nth(3).is_none();
    Some((address(from)?, address(to)?, is_writable && is_anonymous))
}

/// Waits for a child of ours; its resources are only known this way.
fn wait(pid: u32) -> Result<(libc::c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live variables of the right types.
    let waited = unsafe { libc::wait4(pid as libc::pid_t, &raw mut status, 0, &raw mut usage) };
    if waited < 0 {
        bail!(
            "cannot wait for process {pid}: {}",
            std::io::Error::last_os_error()
        );
    }
    Ok((status, usage))
}

fn compile(dir: &Path) -> Result<PathBuf> {
    for (name, text) in BARE_SOURCES {
        fs::write(dir.join(name), text)?;
    }
    let (source, program) = (dir.join("bare_kvm.c"), dir.join("bare_kvm"));
    let status = Command::new("cc")
        .args(["-O2", "-o"])
        .args([&program, &source])
        .status()
        .context("cannot run cc: install gcc, or give a compiled program with --bare")?;
    ensure!(status.success(), "cc could not compile bare_kvm.c");
    Ok(program)
}

/// An ELF kernel of nothing but `code`.
fn micro_guest(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x20_0000;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    let mut put = |bytes: &[u8]| image.extend_from_slice(bytes);
    // ELF header: executable, x86-64, version, entry, program headers at 64.
    put(&2u16.to_le_bytes());
    put(&62u16.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&ADDRESS.to_le_bytes());
    put(&64u64.to_le_bytes());
    put(&[0; 12]);
    for half in [64u16, 56, 1, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    // Program header: load, all permissions, offset, addresses, sizes, alignment.
    put(&1u32.to_le_bytes());
    put(&7u32.to_le_bytes());
    let size = code.len() as u64;
    for word in [120, ADDRESS, ADDRESS, size, size, 16] {
        put(&word.to_le_bytes());
    }
    put(code);
    image
}

fn parse() -> Result<Options> {
    let own = env::current_exe().context("cannot find this program")?;
    let mut options = Options {
        runs: 20,
        vmm: own.with_file_name("insula-vmm"),
        bare: None,
    };
    let mut arguments = env::args_os().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{} needs a value", option.display()))?;
        match option.to_str() {
            Some("--runs") => {
                options.runs = value
                    .to_str()
                    .and_then(|n| n.parse().ok())
                    .context("--runs needs a number")?;
            }
            Some("--vmm") => options.vmm = value.into(),
            Some("--bare") => options.bare = Some(value.into()),
            _ => bail!(
                "unknown option {}: --runs N, --vmm FILE, --bare FILE",
                option.display()
            ),
        }
    }
    ensure!(options.runs > 0, "--runs must be at least 1");
    ensure!(
        options.vmm.is_file(),
        "{} does not exist: cargo build --release -p vmm, or give --vmm FILE",
        options.vmm.display()
    );
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_found_in_pieces() {
        let smaps = "\
7f9d8c021000-7f9d90000000 ---p 00000000 00:00 0 
Size:              65404 kB
Rss:                   0 kB
7f9d98e00000-7f9d99e00000 rw-p 00000000 00:00 0 
Size:              16384 kB
Rss:                8192 kB
7f9d99e00000-7f9d9b000000 rw-p 00000000 00:00 0 
Rss:               18432 kB
7f9d9b000000-7f9da0e00000 rw-p 00000000 00:00 0 
Rss:                6144 kB
7f9da0e00000-7f9da0eb0000 r--p 00000000 fe:00 2986                       /usr/local/bin/insula-vmm
Rss:                 384 kB
7f9da0eb0000-7f9da10ab000 rw-p 000af000 00:00 0                          [heap]
Rss:                2028 kB
";
        assert_eq!(guest_resident_kib(smaps), 8192 + 18432 + 6144);
        assert_eq!(guest_resident_kib(""), 0);
    }
}
