//! QEMU as a process of its own that outlives the command that started it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::LabConfig;
use super::error::{LabError, Result};
use super::place::Place;
use super::qmp::Monitor;
use super::shape::{Shape, Start, Wiring, arguments};
use crate::command::run;
use crate::error::IoContext;
use crate::packages::tool;

/// QEMU's program and the package that has it.
const PROGRAM: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");
/// How long QEMU may take to offer its monitor.
const MONITOR_TIME: Duration = Duration::from_secs(20);
/// How long it may take to end when it is asked to.
pub(super) const END_TIME: Duration = Duration::from_secs(5);
/// Somebody else may take a port between our looking and QEMU's binding.
const PORT_ATTEMPTS: usize = 5;
/// What QEMU says then.
const PORT_TAKEN: &str = "Could not set up host forwarding rule";

/// Ends QEMU when nobody has used the lab for a while. `$1` is the instance's
/// directory, `$2` the time in minutes.
const WATCHDOG: &str = r#"
cd "$1" || exit
while [ -e qemu.lock ]; do
    flock --wait 20 --shared qemu.lock true && exit
    [ -z "$(find last-used -mmin "-$2")" ] || continue
    flock --nonblock --exclusive sessions.lock sh -c 'kill "$(cat qemu.pid)"' && exit
done
"#;

/// QEMU's version, such as `7.2.22`.
pub(super) fn version() -> Result<String> {
    let answer = run(Command::new(tool(PROGRAM.0, PROGRAM.1)?).arg("--version"))?;
    let version = answer
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1);
    Ok(version.unwrap_or("unknown").to_owned())
}

/// Disks and memory of a process to be started.
#[derive(Debug)]
pub(super) struct Files<'a> {
    /// File behind the memory.
    pub(super) memory: &'a Path,
    /// Root disk.
    pub(super) root: &'a Path,
    /// Transfer disk.
    pub(super) transfer: &'a Path,
    /// Working directory, for names that the monitor is given.
    pub(super) directory: &'a Path,
}

/// A QEMU that has been started.
#[derive(Debug)]
pub(super) struct Started {
    /// Its monitor.
    pub(super) monitor: Monitor,
    /// Port that leads to the daemon.
    pub(super) port: u16,
    /// Its PID.
    pub(super) pid: u32,
}

/// Starts QEMU, detached from this process and its terminal. It ends when it
/// has not been used for as long as `config` says.
pub(super) fn start(
    place: &Place,
    config: &LabConfig,
    files: &Files<'_>,
    how: Start<'_>,
) -> Result<Started> {
    let within = config.time(MONITOR_TIME);
    for attempt in 1.. {
        let port = free_port()?;
        spawn(place, &config.shape, files, how, port)?;
        let deadline = Instant::now() + within;
        match Monitor::connect(&place.monitor(), deadline, || place.alive()) {
            Ok(monitor) => {
                let pid = pid(place)?;
                // From now on: whoever starts it may be interrupted.
                watch(place, config.idle)?;
                return Ok(Started { monitor, port, pid });
            }
            Err(_) if !place.alive() => {
                let log = place.last_words();
                if attempt < PORT_ATTEMPTS && log.contains(PORT_TAKEN) {
                    continue;
                }
                return Err(LabError::Qemu {
                    while_what: "was being started",
                    log,
                });
            }
            Err(error) => {
                end(place)?;
                return Err(LabError::NotUp {
                    within,
                    reason: error.to_string(),
                    log: place.last_words(),
                });
            }
        }
    }
    Err(LabError::Busy {
        what: "taking every free port",
        waited: within,
    })
}

fn spawn(place: &Place, shape: &Shape, files: &Files<'_>, how: Start<'_>, port: u16) -> Result<()> {
    for name in [place.monitor(), place.pid_file(), place.console()] {
        let _ = fs::remove_file(name);
    }
    let lock = place.lock("qemu.lock", false, END_TIME, "starting the lab")?;
    let log_path = place.qemu_log();
    let log = File::create(&log_path).at("create", &log_path)?;
    let (monitor, console, pid_file) = (place.monitor(), place.console(), place.pid_file());
    let wiring = Wiring {
        name: place.name(),
        memory: files.memory,
        root: files.root,
        transfer: files.transfer,
        port,
        monitor: &monitor,
        console: &console,
        pid_file: &pid_file,
    };
    let mut command = Command::new(tool("setsid", "util-linux")?);
    command
        .arg("--fork")
        .arg(tool(PROGRAM.0, PROGRAM.1)?)
        .args(arguments(shape, &wiring, how))
        .current_dir(files.directory)
        .stdout(log.try_clone().at("open", &log_path)?)
        .stderr(log)
        // QEMU never reads it: its open file is what holds the lock.
        .stdin(lock);
    let status = command.status().at("run", Path::new("setsid"))?;
    // Closes our copy of the lock.
    drop(command);
    if status.success() {
        return Ok(());
    }
    Err(LabError::Qemu {
        while_what: "was being started",
        log: place.last_words(),
    })
}

fn pid(place: &Place) -> Result<u32> {
    let path = place.pid_file();
    let text = fs::read_to_string(&path).at("read", &path)?;
    let pid = text.trim().parse();
    Ok(pid
        .map_err(std::io::Error::other)
        .at("read the number in", &path)?)
}

fn free_port() -> Result<u16> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    Ok(port
        .at("find a free port of", Path::new("127.0.0.1"))?
        .port())
}

/// Starts what ends an idle QEMU; it goes with it.
fn watch(place: &Place, idle: Duration) -> Result<()> {
    let minutes = idle.as_secs().div_ceil(60).max(1);
    let mut command = Command::new(tool("setsid", "util-linux")?);
    command
        .args(["--fork", "sh", "-c", WATCHDOG, "insula-lab-watchdog"])
        .arg(place.dir())
        .arg(minutes.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    run(&mut command)?;
    Ok(())
}

/// Ends QEMU, by force if it does not go by itself.
pub(super) fn end(place: &Place) -> Result<()> {
    if !place.alive() {
        return Ok(());
    }
    let deadline = Instant::now() + END_TIME;
    if let Ok(monitor) = Monitor::connect(&place.monitor(), deadline, || place.alive()) {
        monitor.quit();
    }
    if place.wait_for_end(END_TIME) {
        return Ok(());
    }
    // By its lock, not by the PID that it wrote: it may not have come that far.
    for pid in place.lock_holders() {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    if place.wait_for_end(END_TIME) {
        return Ok(());
    }
    Err(LabError::Busy {
        what: "ending QEMU",
        waited: END_TIME,
    })
}
