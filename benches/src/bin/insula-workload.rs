//! `insula-workload`: the small fixed pieces of work that the comparison runs
//! in every isolation model.
//!
//! One static binary without dependencies, so that exactly the same
//! instructions run everywhere:
//!
//! ```text
//! insula-workload cpu.prime   [--work N | --budget-ms N]   primes below 20 000, N times
//! insula-workload sys.null    [--work N | --budget-ms N]   getppid(2), N times
//! insula-workload proc.fork   [--work N | --budget-ms N]   fork, _exit, wait, N times
//! insula-workload proc.exec   [--work N | --budget-ms N]   fork, exec of itself, wait, N times
//! insula-workload mem.fault   [--work N | --budget-ms N]   mmap, touch, munmap of N MiB in all
//! insula-workload hello                                    one line, for cold starts
//! insula-workload idle                                     one line, then sleeps until killed
//! ```
//!
//! With `--work` the work is fixed, so that the host can time the whole from
//! outside; `--work 0` starts and ends and does nothing, which is what the
//! host takes off. With `--budget-ms` the program finds out by itself how much
//! work fits. Either way it prints one line of JSON with what it did, what it
//! should have done, and its own clock's opinion.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// What a piece of work came to.
struct Outcome {
    /// Operations done: sieves, calls, processes, pages.
    operations: u64,
    /// What the work should have produced.
    expected: u64,
    /// What it produced.
    actual: u64,
}

/// A piece of work that can be repeated.
struct Workload {
    name: &'static str,
    unit: &'static str,
    /// Nanoseconds per operation into `unit`.
    convert: fn(f64) -> f64,
    run: fn(u64) -> Result<Outcome, String>,
}

const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "cpu.prime",
        unit: "events/s",
        convert: |ns| 1e9 / ns,
        run: cpu_prime,
    },
    Workload {
        name: "sys.null",
        unit: "ns/call",
        convert: |ns| ns,
        run: sys_null,
    },
    Workload {
        name: "proc.fork",
        unit: "us",
        convert: |ns| ns / 1e3,
        run: proc_fork,
    },
    Workload {
        name: "proc.exec",
        unit: "us",
        convert: |ns| ns / 1e3,
        run: proc_exec,
    },
    Workload {
        name: "mem.fault",
        unit: "ns/page",
        convert: |ns| ns,
        run: mem_fault,
    },
];

/// Primes are counted below this limit; there are [`PRIMES`] of them.
const PRIME_LIMIT: u32 = 20_000;
const PRIMES: u64 = 2262;

/// One mapping of `mem.fault`: enough pages to outweigh the two calls.
const MAPPING: usize = 1 << 20;
const PAGE: usize = 4096;

/// How much work one round of self-calibration may grow by.
const GROWTH: u64 = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("insula-workload: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[&str]) -> Result<(), String> {
    match words {
        // What `proc.exec` executes: the cheapest life of a process.
        ["exit"] => Ok(()),
        ["hello"] => say("hello\n"),
        ["idle"] => {
            say("idle\n")?;
            loop {
                // SAFETY: pause(2) takes no arguments and touches no memory.
                unsafe { libc::pause() };
            }
        }
        [name, option, number] => {
            let workload = WORKLOADS
                .iter()
                .find(|workload| workload.name == *name)
                .ok_or_else(|| format!("there is no workload {name:?}; see --help"))?;
            let number: u64 = number
                .parse()
                .map_err(|_| format!("{option} takes a whole number, not {number:?}"))?;
            match *option {
                "--work" => measure(workload, number),
                "--budget-ms" => calibrate(workload, number),
                _ => Err(format!(
                    "unknown option {option:?}: use --work or --budget-ms"
                )),
            }
        }
        _ => {
            let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
            Err(format!(
                "usage: insula-workload hello | idle | {} --work N | --budget-ms N",
                names.join("|")
            ))
        }
    }
}

fn say(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| format!("writing to standard output: {error}"))
}

/// Does `work` and prints how it went.
fn measure(workload: &Workload, work: u64) -> Result<(), String> {
    let started = Instant::now();
    let outcome = (workload.run)(work)?;
    report(workload, work, &outcome, started.elapsed().as_nanos())
}

/// Grows the work until a run fills the budget, and prints that run.
fn calibrate(workload: &Workload, budget_ms: u64) -> Result<(), String> {
    let budget = u128::from(budget_ms.clamp(1, 600_000)) * 1_000_000;
    let mut work = 1_u64;
    loop {
        let started = Instant::now();
        let outcome = (workload.run)(work)?;
        let took = started.elapsed().as_nanos().max(1);
        if took >= budget * 8 / 10 {
            return report(workload, work, &outcome, took);
        }
        let wanted = u128::from(work) * budget / took;
        let most = work.saturating_mul(GROWTH);
        work = u64::try_from(wanted).unwrap_or(most).clamp(work + 1, most);
    }
}

fn report(workload: &Workload, work: u64, outcome: &Outcome, ns: u128) -> Result<(), String> {
    let value = match outcome.operations {
        0 => "null".to_owned(),
        operations => format!("{:.4}", (workload.convert)(ns as f64 / operations as f64)),
    };
    say(&format!(
        "{{\"v\":1,\"workload\":\"{}\",\"value\":{value},\"unit\":\"{}\",\"work\":{work},\
         \"iterations\":{},\"expected\":{},\"actual\":{},\"inside_ns\":{ns}}}\n",
        workload.name, workload.unit, outcome.operations, outcome.expected, outcome.actual
    ))
}

/// Counts primes by trial division, as `sysbench cpu` does.
#[expect(clippy::unnecessary_wraps, reason = "all workloads are of one type")]
fn cpu_prime(work: u64) -> Result<Outcome, String> {
    let mut found = 0_u64;
    for _ in 0..work {
        let mut candidate = 2_u32;
        // The limit is hidden from the optimiser, or it would count once.
        let limit = std::hint::black_box(PRIME_LIMIT);
        while candidate < limit {
            found += u64::from(is_prime(candidate));
            candidate += 1;
        }
    }
    Ok(Outcome {
        operations: work,
        expected: PRIMES * work,
        actual: found,
    })
}

fn is_prime(candidate: u32) -> bool {
    let mut divisor = 2;
    while divisor * divisor <= candidate {
        if candidate.is_multiple_of(divisor) {
            return false;
        }
        divisor += 1;
    }
    true
}

/// Enters the kernel and leaves it: `getppid`, which no libc caches.
#[expect(clippy::unnecessary_wraps, reason = "all workloads are of one type")]
fn sys_null(work: u64) -> Result<Outcome, String> {
    // SAFETY: getppid takes no arguments, touches no memory and cannot fail.
    let parent = unsafe { libc::syscall(libc::SYS_getppid) };
    let mut same = 0_u64;
    for _ in 0..work {
        // SAFETY: as above.
        let now = unsafe { libc::syscall(libc::SYS_getppid) };
        same += u64::from(now == parent);
    }
    Ok(Outcome {
        operations: work,
        expected: work,
        actual: same,
    })
}

fn proc_fork(work: u64) -> Result<Outcome, String> {
    processes(work, || {
        // SAFETY: ends this (forked, single-threaded) process at once.
        unsafe { libc::_exit(0) }
    })
}

fn proc_exec(work: u64) -> Result<Outcome, String> {
    let path = c"/proc/self/exe";
    let arguments = [
        c"insula-workload".as_ptr(),
        c"exit".as_ptr(),
        std::ptr::null(),
    ];
    let environment = [std::ptr::null()];
    processes(work, || {
        // SAFETY: the path and both null-terminated arrays outlive the call;
        // when it returns, it failed, and `_exit` ends the forked process.
        unsafe {
            libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            libc::_exit(127)
        }
    })
}

/// Forks, lets `child` run in the new process, and waits; `work` times.
fn processes(work: u64, child: impl Fn()) -> Result<Outcome, String> {
    let mut well = 0_u64;
    for _ in 0..work {
        // SAFETY: this program has one thread, so the child may do anything.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            child();
        }
        if pid < 0 {
            return Err(format!("fork: {}", std::io::Error::last_os_error()));
        }
        let mut status = 0;
        // SAFETY: `status` is a valid place for the status.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if waited != pid {
            return Err(format!("waitpid: {}", std::io::Error::last_os_error()));
        }
        well += u64::from(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
    }
    Ok(Outcome {
        operations: work,
        expected: work,
        actual: well,
    })
}

/// Maps, touches every page of, and unmaps one MiB, `work` times.
fn mem_fault(work: u64) -> Result<Outcome, String> {
    let pages = (MAPPING / PAGE) as u64;
    let mut touched = 0_u64;
    for _ in 0..work {
        // SAFETY: a fresh anonymous mapping, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAPPING,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(format!("mmap: {}", std::io::Error::last_os_error()));
        }
        // One fault a page, whatever the machine thinks of huge pages.
        // SAFETY: the range is the mapping that was just made.
        unsafe { libc::madvise(start, MAPPING, libc::MADV_NOHUGEPAGE) };
        for page in 0..MAPPING / PAGE {
            // Written first: a read would cost a fault of its own.
            // SAFETY: inside the mapping, which nothing else refers to.
            touched += unsafe {
                let byte = start.cast::<u8>().add(page * PAGE);
                byte.write_volatile(1);
                u64::from(byte.read_volatile())
            };
        }
        // SAFETY: exactly the mapping made above, no longer referred to.
        unsafe { libc::munmap(start, MAPPING) };
    }
    Ok(Outcome {
        operations: work * pages,
        expected: work * pages,
        actual: touched,
    })
}
