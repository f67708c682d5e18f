//! One machine as a process: `insula-vmm --dir DIR` or `insula-vmm --config FILE`.
//!
//! Slim on purpose, since every guest is one of these: no command line
//! framework, nothing allocated that is not needed.

#![cfg_attr(not(test), no_main)]

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use guest_agent::protocol::Name;
use vmm::config::MachineConfig;
use vmm::machine::boot_timer::{BootTimer, now_ns};
use vmm::machine::report::{ExitReport, Reporter};
use vmm::machine::{BuildError, Ending, Machine, RestoreOptions};
use vmm::snapshot::Snapshot;

const USAGE: &str = "\
usage: insula-vmm --dir DIR | --config FILE
       [--restore SNAPSHOT --hostname NAME [--prefetch] [--force] [--passing]]
       [--ready-fd N] [--lock-fd N] [--start-ns NANOSECONDS] [--profile FILE]
       [--new-session] [--end-with PID]
       insula-vmm --probe

Runs one machine to its end. DIR holds machine.json and gets status.json,
control.sock, a socket that takes orders, and profile.sock, one that serves
profiles. --profile samples the instruction
pointers of the boot, and writes their counts to FILE as JSON.
--restore goes on from the snapshot in a directory instead of booting, with the
paths of the configuration, and tells the guest its new host name; --prefetch
loads the pages at once that such a guest needs first; --force accepts another
processor model where that can be safe; --passing says that the snapshot may be
removed meanwhile, so that no later one builds on it.
--new-session leaves the starter's session and terminal; --end-with ends with the
starter's thread, of the process PID.
--probe says in JSON what kind of KVM the host has.

exit codes: 0 powered off, 20 panicked or reset, 21 triple fault, 22 KVM or
program error, 23 bad configuration, 24 never ready, 25 bad snapshot, 128+N ended by signal N";

const BAD_CONFIGURATION: u8 = 23;
/// Lines of the console that go with an error.
const CONSOLE_LINES: usize = 20;

struct Options {
    config: PathBuf,
    restore: Option<(PathBuf, RestoreOptions)>,
    /// Where profiles are served.
    profile_socket: Option<PathBuf>,
    /// Where orders are taken.
    control_socket: Option<PathBuf>,
    /// Where the boot's profile goes.
    boot_profile: Option<PathBuf>,
    /// Leave the starter's session.
    new_session: bool,
    reporter: Reporter,
    start_ns: u64,
}

enum Request {
    Run(Options),
    Probe,
    Help,
}

/// Entered by the C library: what the standard library does before its `main`
/// (a handler for overflows of the first thread's stack, for which it reads the
/// process' memory map) takes as long as a tenth of a restore.
///
/// # Safety
/// `arguments` must be as `main` gets them.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn main(_count: c_int, arguments: *const *const c_char) -> c_int {
    // SAFETY: no other thread runs yet, and no handler is installed. Writing to
    // a connection that is gone is an error, not an end.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    #[cfg(target_env = "gnu")]
    // Threads share the first one's heap: they hardly ever allocate, and a heap
    // of their own takes them five system calls and some pages.
    // SAFETY: a number is set; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
    // SAFETY: they are those of `main`, which last as long as the process.
    let arguments = unsafe { Arguments::new(arguments) };
    c_int::from(run_program(arguments))
}

/// The strings that the C library gives to `main`, without copies of them.
struct Arguments(*const *const c_char);

impl Arguments {
    /// # Safety
    /// `list` must be of pointers to strings that last and end with a zero
    /// byte, and end with a null pointer.
    unsafe fn new(list: *const *const c_char) -> Self {
        Self(list)
    }
}

impl Iterator for Arguments {
    type Item = &'static OsStr;

    fn next(&mut self) -> Option<&'static OsStr> {
        // SAFETY: see `new`; and the pointer never goes beyond the end.
        unsafe {
            let argument = *self.0;
            if argument.is_null() {
                return None;
            }
            self.0 = self.0.add(1);
            Some(OsStr::from_bytes(CStr::from_ptr(argument).to_bytes()))
        }
    }
}

fn run_program(arguments: Arguments) -> u8 {
    let started_ns = now_ns();
    allow_signals();
    let mut options = match parse(arguments.skip(1), started_ns) {
        Ok(Request::Run(options)) => options,
        Ok(Request::Help) => {
            println!("{USAGE}");
            return 0;
        }
        Ok(Request::Probe) => {
            println!("{}", serde_json::json!(vmm::probe::probe()));
            return 0;
        }
        Err(message) => {
            eprintln!("insula-vmm: {message}\n{USAGE}");
            return BAD_CONFIGURATION;
        }
    };
    let timer = Arc::new(BootTimer::new(options.start_ns));
    let exit = run(&mut options, &timer);
    if exit.code != 0 {
        eprintln!("insula-vmm: {}", exit.message);
    }
    let code = exit.code;
    options.reporter.ended(timer.spans(), exit);
    code
}

/// Our starter blocks them all for its own sake (`vmm::guest`).
fn allow_signals() {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is made empty before it is read, and the old one is not
    // asked for. That cannot fail.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

fn run(options: &mut Options, timer: &Arc<BootTimer>) -> ExitReport {
    let failed = |code, message: String| ExitReport {
        code,
        message,
        console: String::new(),
    };
    let config = match MachineConfig::from_file(&options.config) {
        Ok(config) => config,
        Err(error) => return failed(BAD_CONFIGURATION, error.to_string()),
    };
    // Taken apart when the guest runs: there is much of it.
    let mut opened = None;
    let built = match &options.restore {
        None => Machine::build(&config, Arc::clone(timer)),
        Some((snapshot, how)) => {
            Snapshot::open(snapshot)
                .map_err(BuildError::from)
                .and_then(|snapshot| {
                    let snapshot = opened.insert(snapshot);
                    Machine::restore(&config, snapshot, how, Arc::clone(timer))
                })
        }
    };
    let mut machine = match built {
        Ok(machine) => machine,
        Err(error) => return failed(error.exit_code(), error.to_string()),
    };
    if let Some(path) = options.boot_profile.take() {
        machine.profile_boot(path);
    }
    let (profiles, control) = (&options.profile_socket, &options.control_socket);
    let new_session = options.new_session;
    let attend = |machine: &mut Machine| {
        drop(opened);
        if new_session && let Err(error) = rustix::process::setsid() {
            eprintln!("insula-vmm: cannot begin a session: {error}");
        }
        if let Some(path) = profiles
            && let Err(error) = machine.serve_profiles(path)
        {
            eprintln!(
                "insula-vmm: cannot serve profiles on {}: {error}",
                path.display()
            );
        }
        if let Some(path) = control
            && let Err(error) = machine.serve_control(path)
        {
            eprintln!(
                "insula-vmm: cannot take orders on {}: {error}",
                path.display()
            );
        }
    };
    match machine.run(&mut options.reporter, attend) {
        Err(error) => failed(error.exit_code(), error.to_string()),
        Ok(ending) => {
            let console = match ending {
                Ending::PowerOff => String::new(),
                _ => machine.console_tail(CONSOLE_LINES),
            };
            ExitReport {
                code: ending.exit_code(),
                message: ending.to_string(),
                console,
            }
        }
    }
}

fn parse(
    mut arguments: impl Iterator<Item = &'static OsStr>,
    started_ns: u64,
) -> Result<Request, String> {
    let mut config = None;
    let mut profile_socket = None;
    let mut control_socket = None;
    let mut boot_profile = None;
    let mut snapshot = None;
    let mut hostname = None;
    let (mut prefetch, mut force, mut passing) = (false, false, false);
    let mut new_session = false;
    let mut reporter = Reporter::default();
    let mut start_ns = started_ns;
    while let Some(option) = arguments.next() {
        let option = option.to_string_lossy();
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{option} needs a value"))
        };
        match &*option {
            "--help" | "-h" => return Ok(Request::Help),
            "--probe" => return Ok(Request::Probe),
            "--config" => config = Some(PathBuf::from(value()?)),
            "--dir" => {
                let dir = PathBuf::from(value()?);
                reporter.status_path = Some(dir.join("status.json"));
                profile_socket = Some(dir.join("profile.sock"));
                control_socket = Some(dir.join("control.sock"));
                config = Some(dir.join("machine.json"));
            }
            "--new-session" => new_session = true,
            "--end-with" => end_with(number(&option, value()?)?)?,
            "--ready-fd" => reporter.ready_pipe = Some(inherited(number(&option, value()?)?)?),
            // Whoever holds this file open holds the guest's lock: never closed.
            // Standard input is not anyway.
            "--lock-fd" => match number(&option, value()?)? {
                0 => {}
                fd => std::mem::forget(inherited(fd)?),
            },
            "--profile" => boot_profile = Some(PathBuf::from(value()?)),
            "--restore" => snapshot = Some(PathBuf::from(value()?)),
            "--hostname" => {
                let name = value()?.to_string_lossy().into_owned();
                hostname = Some(name.parse::<Name>().map_err(|error| error.to_string())?);
            }
            "--prefetch" => prefetch = true,
            "--force" => force = true,
            "--passing" => passing = true,
            "--start-ns" => start_ns = number(&option, value()?)?,
            other => return Err(format!("unknown option {other}")),
        }
    }
    let config = config.ok_or("one of --dir and --config is needed")?;
    let restore = match (snapshot, hostname) {
        (None, _) => None,
        (Some(_), None) => return Err("--restore needs --hostname".to_owned()),
        (Some(snapshot), Some(hostname)) => {
            reporter.restored = true;
            let how = RestoreOptions {
                hostname,
                prefetch,
                force,
                passing,
            };
            Some((snapshot, how))
        }
    };
    Ok(Request::Run(Options {
        config,
        restore,
        profile_socket,
        control_socket,
        boot_profile,
        new_session,
        reporter,
        start_ns,
    }))
}

fn number<T: std::str::FromStr>(option: &str, value: &OsStr) -> Result<T, String> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("{option} needs a number, not {}", value.to_string_lossy()))
}

/// Ends with the thread that started this process, of process `starter`.
fn end_with(starter: i32) -> Result<(), String> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("cannot ask to end with process {starter}: {error}"))?;
    // Gone before that: nobody would tell us any more.
    if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(starter) {
        return Err(format!(
            "process {starter}, which started this one, is gone"
        ));
    }
    Ok(())
}

/// Takes over a descriptor that the starter left open for us. In place of
/// standard output comes standard error, so that nothing else gets its number.
fn inherited(fd: RawFd) -> Result<File, String> {
    let not_open = || format!("descriptor {fd} is not open, or is standard input or error");
    if fd != 1 && fd <= 2 {
        return Err(not_open());
    }
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes any number, and fails for one
    // that is not open.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(not_open());
    }
    if fd == 1 {
        // SAFETY: dup2 takes any numbers, and standard output has no owner
        // that would mind.
        unsafe { libc::dup2(2, fd) };
    } else {
        // SAFETY: it is open and belongs to whoever started us, who gave it to
        // us by its number; nothing in this program has it.
        unsafe { libc::close(fd) };
    }
    // SAFETY: the duplicate is new and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(own) })
}
