//! What a VPS on the bare host costs, from creation to destruction.
//!
//! Runs, in turns: `insula-agent run`, the C program `micro/bare_vps.c` (the
//! same namespaces, mounts and limits, and nothing else), `crun run` and `runc
//! run`, each with `true` on the same root. Prints medians and ratios of
//! elapsed time. The goals: at most 2x the C program, at least 8x cheaper than
//! `runc` and 1.5x cheaper than `crun`. In the lab with `--icount` a nanosecond
//! is an instruction, of kernel and programs together.
//!
//! As root on a machine with cgroup v2:
//! `bench-host-vps --root DIR [--agent FILE] [--bare FILE] [--crun FILE]
//! [--runc FILE] [--template EROFS] [--runs N] [--json FILE]`. `DIR` holds a
//! root file system with `/bin/true`; without `--bare` the C program is
//! compiled with `cc` first; `--template` measures the agent on that EROFS
//! image too. `crun` and `runc` are left out when they are not installed.
//!
//! Only libc and the standard library, so that it builds in seconds:
//! `cargo build --release -p insula-benches --no-default-features --bin
//! bench-host-vps`.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// The C program's source, compiled where the bench runs.
const BARE_SOURCE: &str = include_str!("../../micro/bare_vps.c");

/// Limits that every contestant sets: bytes, CPUs, processes.
const MEMORY: u64 = 64 << 20;
const PIDS: u32 = 64;

/// At most this many times the C program.
const GOAL_BARE: f64 = 2.0;
/// At least this many times cheaper than the others.
const GOAL_RUNC: f64 = 8.0;
const GOAL_CRUN: f64 = 1.5;

type Result<T> = std::result::Result<T, String>;

struct Options {
    root: PathBuf,
    agent: PathBuf,
    template: Option<PathBuf>,
    bare: Option<PathBuf>,
    crun: PathBuf,
    runc: PathBuf,
    runs: usize,
    json: Option<PathBuf>,
}

/// One program, and what it took.
struct Contestant {
    name: &'static str,
    command: Command,
    elapsed_ns: Vec<u64>,
}

fn main() -> ExitCode {
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-host-vps: {error}");
            ExitCode::from(2)
        }
    }
}

fn bench() -> Result<bool> {
    let options = parse()?;
    let dir = env::temp_dir().join(format!("insula-bench-host-vps-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
    let contestants = contestants(&options, &dir).and_then(|mut contestants| {
        for run in 0..=options.runs {
            for contestant in &mut contestants {
                let elapsed = measure(contestant)?;
                // The first of each finds its pages on disk: not counted.
                if run > 0 {
                    contestant.elapsed_ns.push(elapsed);
                }
            }
        }
        Ok(contestants)
    });
    // Only ours, and in a place for temporary files.
    let _ = fs::remove_dir_all(&dir);
    let contestants = contestants?;
    let (text, met) = report(&contestants);
    print!("{text}");
    if let Some(path) = &options.json {
        fs::write(path, json(&contestants, met)).map_err(failed("write", path))?;
    }
    Ok(met)
}

fn contestants(options: &Options, dir: &Path) -> Result<Vec<Contestant>> {
    let new = |name, command| Contestant {
        name,
        command,
        elapsed_ns: Vec::new(),
    };
    let agent = |flag: &str, path: &Path| {
        let mut command = Command::new(&options.agent);
        command.args(["run".as_ref(), flag.as_ref(), path.as_os_str()]);
        command.args(["--memory", &MEMORY.to_string(), "--cpus", "1"]);
        command.args(["--pids", &PIDS.to_string(), "--", "/bin/true"]);
        command
    };
    let bare = match &options.bare {
        Some(path) => path.clone(),
        None => compile(dir)?,
    };
    let mut plain = Command::new(bare);
    plain.arg(&options.root).arg("/bin/true");
    let mut contestants = vec![
        new("insula-agent run", agent("--root", &options.root)),
        new("bare C", plain),
    ];
    if let Some(template) = &options.template {
        contestants.push(new("insula-agent erofs", agent("--template", template)));
    }
    for (name, program) in [("crun run", &options.crun), ("runc run", &options.runc)] {
        if !program.is_file() {
            eprintln!("{} does not exist: {name} is left out", program.display());
            continue;
        }
        let bundle = dir.join(name);
        fs::create_dir_all(&bundle).map_err(failed("make", &bundle))?;
        let config = bundle.join("config.json");
        fs::write(&config, oci_config(&options.root)).map_err(failed("write", &config))?;
        let mut command = Command::new(program);
        // Their state below the bench's directory, not the system's.
        command
            .arg("--root")
            .arg(dir.join("state"))
            .arg("run")
            .arg("--bundle")
            .arg(bundle);
        command.arg(format!("insula-bench-{}", std::process::id()));
        contestants.push(new(name, command));
    }
    Ok(contestants)
}

/// Runs a program to its end.
fn measure(contestant: &mut Contestant) -> Result<u64> {
    let name = contestant.name;
    let start = Instant::now();
    let status = contestant
        .command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run {name}: {error}"))?;
    let elapsed = start.elapsed().as_nanos() as u64;
    if status.success() {
        Ok(elapsed)
    } else {
        Err(format!(
            "{name} failed ({status}): run it by hand: {:?}",
            contestant.command
        ))
    }
}

fn sorted(values: &[u64]) -> Vec<u64> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values
}

fn median(contestant: &Contestant) -> u64 {
    let values = sorted(&contestant.elapsed_ns);
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// How many times `a`'s median is `b`'s, when both ran.
fn ratio(contestants: &[Contestant], a: &str, b: &str) -> Option<f64> {
    let of = |name: &str| contestants.iter().find(|c| c.name == name).map(median);
    Some(of(a)? as f64 / of(b)?.max(1) as f64)
}

/// The goals: what, the ratio, the bound, and whether it holds.
fn verdicts(contestants: &[Contestant]) -> Vec<(&'static str, f64, f64, bool)> {
    let ours = "insula-agent run";
    let mut verdicts = Vec::new();
    if let Some(r) = ratio(contestants, ours, "bare C") {
        verdicts.push((
            "insula-agent run / bare C, at most",
            r,
            GOAL_BARE,
            r <= GOAL_BARE,
        ));
    }
    if let Some(r) = ratio(contestants, "runc run", ours) {
        verdicts.push((
            "runc run / insula-agent run, at least",
            r,
            GOAL_RUNC,
            r >= GOAL_RUNC,
        ));
    }
    if let Some(r) = ratio(contestants, "crun run", ours) {
        verdicts.push((
            "crun run / insula-agent run, at least",
            r,
            GOAL_CRUN,
            r >= GOAL_CRUN,
        ));
    }
    verdicts
}

fn report(contestants: &[Contestant]) -> (String, bool) {
    let mut text = format!(
        "{:<20} {:>6} {:>12} {:>12} {:>12}\n",
        "program", "runs", "median ms", "least", "most"
    );
    let ms = |ns: Option<&u64>| ns.copied().unwrap_or(0) as f64 / 1e6;
    for contestant in contestants {
        let values = sorted(&contestant.elapsed_ns);
        let _ = writeln!(
            text,
            "{:<20} {:>6} {:>12.3} {:>12.3} {:>12.3}",
            contestant.name,
            values.len(),
            median(contestant) as f64 / 1e6,
            ms(values.first()),
            ms(values.last()),
        );
    }
    let verdicts = verdicts(contestants);
    for (what, ratio, goal, met) in &verdicts {
        let verdict = if *met { "met" } else { "MISSED" };
        let _ = writeln!(text, "{what} {goal}: {ratio:.2} {verdict}");
    }
    text.push_str("(with --icount a millisecond is a million instructions)\n");
    let met = verdicts.iter().all(|(.., met)| *met);
    (text, met)
}

fn json(contestants: &[Contestant], met: bool) -> String {
    let programs: Vec<String> = contestants
        .iter()
        .map(|c| {
            format!(
                "{{\"name\":{:?},\"elapsed_ns\":{:?}}}",
                c.name, c.elapsed_ns
            )
        })
        .collect();
    let goals: Vec<String> = verdicts(contestants)
        .iter()
        .map(|(what, ratio, goal, met)| {
            format!("{{\"what\":{what:?},\"ratio\":{ratio},\"goal\":{goal},\"met\":{met}}}")
        })
        .collect();
    format!(
        "{{\"bench\":\"host-vps\",\"version\":1,\"programs\":[{}],\"goals\":[{}],\"met\":{met}}}\n",
        programs.join(","),
        goals.join(",")
    )
}

/// A bundle's configuration: the same namespaces as far as OCI runtimes of
/// this version know them, and the same limits.
fn oci_config(root: &Path) -> String {
    let root = root.display().to_string();
    let ids = r#"[{"containerID":0,"hostID":1072693248,"size":65536}]"#;
    let namespaces: Vec<String> = ["pid", "network", "ipc", "uts", "mount", "cgroup", "user"]
        .iter()
        .map(|kind| format!("{{\"type\":\"{kind}\"}}"))
        .collect();
    let mount = |on: &str, kind: &str, options: &str| {
        format!(
            r#"{{"destination":"{on}","type":"{kind}","source":"{kind}","options":[{options}]}}"#
        )
    };
    let plain = r#""nosuid","noexec","nodev""#;
    let mounts = [
        mount("/proc", "proc", ""),
        mount("/dev", "tmpfs", r#""nosuid","strictatime","mode=755""#),
        mount(
            "/dev/pts",
            "devpts",
            r#""nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5""#,
        ),
        mount("/dev/shm", "tmpfs", &format!(r#"{plain},"mode=1777""#)),
        mount("/dev/mqueue", "mqueue", plain),
        mount("/sys", "sysfs", &format!(r#"{plain},"ro""#)),
        mount("/sys/fs/cgroup", "cgroup", plain),
        mount("/run", "tmpfs", r#""nosuid","nodev","mode=755""#),
    ];
    format!(
        r#"{{"ociVersion":"1.0.2","hostname":"vps","process":{{"terminal":false,"cwd":"/",
"user":{{"uid":0,"gid":0}},"args":["/bin/true"],
"env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}},
"root":{{"path":{root:?},"readonly":false}},"mounts":[{}],
"linux":{{"uidMappings":{ids},"gidMappings":{ids},"namespaces":[{}],
"resources":{{"memory":{{"limit":{MEMORY}}},"cpu":{{"quota":100000,"period":100000}},
"pids":{{"limit":{PIDS}}}}}}}}}"#,
        mounts.join(","),
        namespaces.join(",")
    )
}

fn compile(dir: &Path) -> Result<PathBuf> {
    let (source, program) = (dir.join("bare_vps.c"), dir.join("bare_vps"));
    fs::write(&source, BARE_SOURCE).map_err(failed("write", &source))?;
    let status = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .args([&program, &source])
        .status()
        .map_err(|error| {
            format!("cannot run cc ({error}): install gcc, or give a compiled program with --bare")
        })?;
    status
        .success()
        .then_some(program)
        .ok_or_else(|| "cc could not compile bare_vps.c".into())
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let text = format!("cannot {what} {}", path.display());
    move |error| format!("{text}: {error}")
}

fn parse() -> Result<Options> {
    let own = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut root = None;
    let mut options = Options {
        root: PathBuf::new(),
        agent: own.with_file_name("insula-agent"),
        template: None,
        bare: None,
        crun: "/usr/bin/crun".into(),
        runc: "/usr/sbin/runc".into(),
        runs: 20,
        json: None,
    };
    let mut arguments = env::args_os().skip(1);
    while let Some(option) = arguments.next() {
        let value: OsString = arguments
            .next()
            .ok_or_else(|| format!("{} needs a value", option.display()))?;
        match option.to_str() {
            Some("--root") => root = Some(PathBuf::from(value)),
            Some("--agent") => options.agent = value.into(),
            Some("--template") => options.template = Some(value.into()),
            Some("--bare") => options.bare = Some(value.into()),
            Some("--crun") => options.crun = value.into(),
            Some("--runc") => options.runc = value.into(),
            Some("--json") => options.json = Some(value.into()),
            Some("--runs") => {
                let runs = value.to_str().and_then(|text| text.parse().ok());
                options.runs = runs
                    .filter(|n| *n > 0)
                    .ok_or("--runs needs a positive number")?;
            }
            _ => {
                return Err(format!(
                    "unknown option {}: --root DIR, --agent, --template, --bare, --crun, --runc, \
                     --json FILE, --runs N",
                    option.display()
                ));
            }
        }
    }
    options.root = root
        .ok_or("give --root DIR, a root file system with /bin/true")?
        .canonicalize()
        .map_err(|error| format!("cannot find the directory of --root: {error}"))?;
    if options.agent.is_file() {
        Ok(options)
    } else {
        Err(format!(
            "{} does not exist: give --agent FILE",
            options.agent.display()
        ))
    }
}
