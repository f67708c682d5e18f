//! Drives the partitioning engine on the kernel that it runs on, as root, and
//! checks what it promises.
//!
//! ```text
//! vps_check run …                   the one-shot, as insula-agent run
//! vps_check probe                   inside of a VPS: what its kernel refuses
//! vps_check all TEMPLATE STATE      everything else; TEMPLATE is an EROFS image
//!                                   with busybox, STATE a directory on ext4
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program"
)]

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest_agent::protocol::{
    Exec, Exit, Init, Limits, Name, RestartPolicy, Target, Terminal, VpsSpec,
};
use guest_agent::vps::{
    Engine, EngineConfig, Error, Io, Process, Running, Start, Template, TemplateSource, Vps, exit,
    own_mounts,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(role) if role == "run" => ExitCode::from(guest_agent::oneshot::main(args)),
        Some(role) if role == "probe" => {
            probe();
            ExitCode::SUCCESS
        }
        Some(role) if role == "all" => {
            let template = PathBuf::from(args.next().expect("TEMPLATE"));
            let state = PathBuf::from(args.next().expect("STATE"));
            all(&template, &state);
            println!("all checks passed");
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(2),
    }
}

/// An init that reaps.
const INIT: &str = "while true; do sleep 1; done";

/// An engine with one template, .
struct Bench {
    engine: Engine,
    template: Template,
}

fn spec(name: &str, command: &str, limits: Limits) -> VpsSpec {
    VpsSpec {
        name: Name::new(name).unwrap(),
        template: Name::new("busybox").unwrap(),
        hostname: None,
        init: Init::Command(["sh", "-c", command].map(String::from).to_vec()),
        limits,
        autostart: false,
        restart: RestartPolicy::AllowReboot,
    }
}

fn wait(process: &Process, what: &str) -> rustix::process::WaitIdStatus {
    let begin = Instant::now();
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Some(status) = waitid(WaitId::PidFd(process.pidfd.as_fd()), options).unwrap() {
            return status;
        }
        assert!(begin.elapsed() < Duration::from_mins(1), "{what} hangs");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Bench {
    fn start(&self, vps: &Vps) -> Running {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let io = Io::Files([null.as_fd(), null.as_fd(), null.as_fd()]);
        self.engine
            .start(vps, &self.template, &Start { env: &[], io })
            .unwrap()
    }

    /// Runs `command` in a running VPS by its shell: its output and exit.
    fn exec(
        &self,
        vps: &Vps,
        running: &Running,
        user: Option<&str>,
        command: &str,
    ) -> (String, Exit) {
        self.exec_argv(vps, running, &request(user, command))
    }

    fn exec_argv(&self, vps: &Vps, running: &Running, exec: &Exec) -> (String, Exit) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = File::open("/dev/null").unwrap();
        let io = Io::Files([null.as_fd(), write.as_fd(), write.as_fd()]);
        let process = self.engine.exec(vps, running, exec, &io).unwrap();
        drop(write);
        let mut output = String::new();
        File::from(read).read_to_string(&mut output).unwrap();
        (
            output,
            exit::from_wait(&wait(&process, &exec.argv.join(" "))),
        )
    }

    fn ended(&self, vps: &Vps, running: &Running) -> Exit {
        let exit = exit::of_init(&wait(&running.init, vps.spec.name.as_str()));
        assert!(
            self.engine.teardown(vps).unwrap(),
            "processes left in {vps:?}"
        );
        exit
    }
}

fn request(user: Option<&str>, command: &str) -> Exec {
    Exec {
        target: Target::Machine,
        argv: ["sh", "-c", command].map(String::from).to_vec(),
        env: vec!["EXTRA=1".into()],
        cwd: None,
        user: user.map(String::from),
        terminal: None,
    }
}

fn all(image: &Path, state: &Path) {
    own_mounts().unwrap();
    let config = EngineConfig {
        state_dir: Some(state.to_owned()),
        cgroup_root: "/sys/fs/cgroup/vps".into(),
        oom_score_adj: Some(0),
    };
    let engine = Engine::new(config).unwrap();
    let source = TemplateSource::Erofs(image.to_owned());
    let template = Template::open(&source, Path::new("/run/insula/templates/busybox")).unwrap();
    let mut bench = Bench { engine, template };
    let limits = Limits {
        memory_bytes: Some(48 << 20),
        cpu_milli: Some(1000),
        cpu_weight: Some(200),
        pids: Some(24),
    };
    let web = bench.engine.create(spec("web", INIT, limits)).unwrap();
    let db = bench
        .engine
        .create(spec("db", INIT, Limits::default()))
        .unwrap();
    let other = bench.start(&db);
    let running = bench.start(&web);

    apart(&bench, &web, &running, &db, &other);
    inside(&bench, &web, &running);
    users(&bench, &web, &running, state);
    terminal(&bench, &web, &running);
    limits_hold(&bench, &web, &running);
    bad_commands(&mut bench, &web, &running);

    // Reboot: the pid namespace ends, the neighbour does not, files stay.
    bench.exec(
        &web,
        &running,
        None,
        "echo kept > /etc/kept; mkdir /sys/fs/cgroup/a /sys/fs/cgroup/a/b",
    );
    let (_, exit) = bench.exec(&web, &running, None, "reboot -f; sleep 5");
    assert_eq!(exit, Exit::Signal(9), "a session ends with its VPS");
    assert_eq!(bench.ended(&web, &running), Exit::Reboot);
    let running = bench.start(&web);
    assert_eq!(
        bench.exec(&web, &running, None, "cat /etc/kept").0,
        "kept\n"
    );
    assert_eq!(
        bench
            .exec(
                &web,
                &running,
                None,
                "cat /sys/fs/cgroup/cgroup.type; ls -d /sys/fs/cgroup/a"
            )
            .1,
        Exit::Code(1)
    );
    let limit = std::fs::read_to_string("/sys/fs/cgroup/vps/web/memory.max").unwrap();
    assert_eq!(limit.trim(), (48 << 20).to_string());
    bench.exec(&web, &running, None, "poweroff -f; sleep 5");
    assert_eq!(bench.ended(&web, &running), Exit::Halt);
    let running = bench.start(&web);
    bench.engine.kill(&web).unwrap();
    assert_eq!(bench.ended(&web, &running), Exit::Signal(9));
    assert_eq!(bench.exec(&db, &other, None, "echo alive").0, "alive\n");
    println!("reboot, halt, kill: ok");

    bench.engine.destroy(&web).unwrap();
    bench.engine.kill(&db).unwrap();
    assert_eq!(bench.ended(&db, &other), Exit::Signal(9));
    bench.engine.destroy(&db).unwrap();
    assert!(!Path::new("/sys/fs/cgroup/vps/web").exists());
    assert!(!state.join("vps/web").exists());
    let begin = Instant::now();
    while std::fs::read_dir(state.join("trash"))
        .unwrap()
        .next()
        .is_some()
    {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the trash stays full"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("destroy: ok");
}

/// Checks, inside of a VPS, what is refused there, and what is not.
fn probe() {
    let call = |number: libc::c_long, args: [libc::c_long; 5]| {
        // SAFETY: numbers and null pointers only; every call is to fail, or
        // to open a socket.
        let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
        if result < 0 {
            std::io::Error::last_os_error().raw_os_error().unwrap()
        } else {
            0
        }
    };
    let socket = |family: i32, kind: i32, protocol: i32| {
        call(
            libc::SYS_socket,
            [family.into(), kind.into(), protocol.into(), 0, 0],
        )
    };
    assert_eq!(
        socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        libc::EAFNOSUPPORT
    );
    assert_eq!(
        socket(libc::AF_NETLINK, libc::SOCK_RAW, 9),
        libc::EAFNOSUPPORT
    );
    assert_eq!(socket(libc::AF_NETLINK, libc::SOCK_RAW, 0), 0);
    assert_eq!(socket(libc::AF_INET, libc::SOCK_STREAM, 0), 0);
    for number in [
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
    ] {
        assert_eq!(call(number, [0; 5]), libc::ENOSYS, "{number}");
    }
    for number in [
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_swapon,
        libc::SYS_iopl,
    ] {
        assert_eq!(call(number, [0; 5]), libc::EPERM, "{number}");
    }
    for file in [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
    ] {
        assert!(
            File::options().write(true).open(file).is_err(),
            "{file} is writable"
        );
    }
    // SAFETY: a sysinfo for the kernel to fill.
    let uptime = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        libc::sysinfo(&raw mut info);
        info.uptime
    };
    assert!(uptime < 30, "uptime {uptime}");
    println!("probe: ok");
}

fn apart(bench: &Bench, web: &Vps, running: &Running, db: &Vps, other: &Running) {
    for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        let command =
            format!("readlink /proc/1/ns/{namespace}; readlink /proc/self/ns/{namespace}");
        let (a, _) = bench.exec(web, running, None, &command);
        let (b, _) = bench.exec(db, other, None, &command);
        let host = std::fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        let lines: Vec<&str> = a.lines().collect();
        assert_eq!(lines.len(), 2, "{a}");
        assert_eq!(
            lines[0], lines[1],
            "a session is where init is: {namespace}"
        );
        assert_ne!(a, b, "{namespace} is shared");
        assert_ne!(
            lines[0],
            host.to_str().unwrap(),
            "{namespace} is the host's"
        );
    }
    println!("namespaces: ok");
}

fn inside(bench: &Bench, web: &Vps, running: &Running) {
    let run = |command: &str| bench.exec(web, running, None, command).0;
    assert_eq!(run("hostname"), "web\n");
    assert_eq!(run("cat /proc/1/comm"), "sh\n");
    let map = run("cat /proc/self/uid_map");
    let expected = web.ids.base().to_string();
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", expected.as_str(), "65536"]
    );
    assert_eq!(run("cat /proc/self/cgroup"), "0::/\n");
    let mounts = run("cut -d' ' -f5 /proc/self/mountinfo | sort");
    let expected = "/\n/dev\n/dev/mqueue\n/dev/pts\n/dev/shm\n/proc\n/run\n/sys\n/sys/fs/cgroup\n";
    assert_eq!(mounts, expected, "nothing of the host is mounted");
    assert_eq!(
        run("find /proc/self/fd /proc/1/fd -type l | wc -l"),
        "7\n",
        "three each, and find's own"
    );
    assert_eq!(
        run("echo x > /dev/null && dd if=/dev/zero bs=4 count=1 2>/dev/null | od -An -tx4"),
        " 00000000\n"
    );
    assert_eq!(
        run("cat /proc/self/oom_score_adj /proc/1/oom_score_adj"),
        "0\n0\n"
    );
    let status = run("grep -E 'Sig(Blk|Ign)|CapBnd|Seccomp:' /proc/1/status /proc/self/status");
    assert_eq!(
        status.matches("SigBlk:\t0000000000000000").count(),
        2,
        "{status}"
    );
    assert_eq!(status.matches("Seccomp:\t2").count(), 2, "{status}");
    assert_eq!(
        status.matches("CapBnd:\t000001df9fffffff").count(),
        2,
        "{status}"
    );
    assert_eq!(
        run("umask; pwd; echo $EXTRA$HOME$container"),
        "0022\n/\n1/rootinsula\n"
    );
    // Without a shell between: it ignores signals of its own.
    let direct = ["grep", "SigIgn", "/proc/self/status"]
        .map(String::from)
        .to_vec();
    let (ignored, _) = bench.exec_argv(
        web,
        running,
        &Exec {
            argv: direct,
            ..request(None, "")
        },
    );
    assert_eq!(ignored, "SigIgn:\t0000000000000000\n");
    assert_eq!(run("cat /run/host/container-manager"), "insula\n");
    assert_eq!(run("mkdir /sys/fs/cgroup/x && echo made; rmdir /sys/fs/cgroup/x; echo 1 > /sys/fs/cgroup/memory.max || echo no").lines().next(), Some("made"));
    assert_eq!(
        run("mknod /tmp/b b 8 0 2>&1; mknod /dev/b b 8 0 2>&1; ls /tmp /dev | grep -c '^b$'"),
        run(
            "echo mknod: /tmp/b: Operation not permitted; echo mknod: /dev/b: Operation not permitted; echo 0"
        )
    );
    let uptime: f64 = run("cut -d' ' -f1 /proc/uptime").trim().parse().unwrap();
    assert!(uptime < 60.0, "uptime {uptime} is the machine's");
    assert_eq!(run("cat /sys/class/net/lo/flags"), "0x9\n", "lo is up");
    println!("inside: ok");
}

fn users(bench: &Bench, web: &Vps, running: &Running, state: &Path) {
    use std::os::unix::fs::MetadataExt;
    let (output, exit) = bench.exec(
        web,
        running,
        Some("www"),
        "id -u; id -g; pwd; touch /tmp/mine",
    );
    assert_eq!((output.as_str(), exit), ("33\n33\n/var\n", Exit::Code(0)));
    let (_, exit) = bench.exec(
        web,
        running,
        None,
        "chown 12:34 /tmp/mine; chmod 1777 /tmp; exit 41",
    );
    assert_eq!(exit, Exit::Code(41));
    let file = std::fs::metadata(state.join("vps/web/upper/tmp/mine")).unwrap();
    assert_eq!(
        (file.uid(), file.gid()),
        (12, 34),
        "files are neutral on the disk"
    );
    let (_, exit) = bench.exec(web, running, None, "kill -TERM $$");
    assert_eq!(exit, Exit::Signal(15));
    println!("users, exits, files: ok");
}

fn terminal(bench: &Bench, web: &Vps, running: &Running) {
    let size = Terminal {
        rows: 33,
        columns: 77,
    };
    let exec = request(
        Some("www"),
        "tty; stty size; echo to-tty > /dev/tty; cat /proc/self/stat | cut -d' ' -f7",
    );
    let process = bench
        .engine
        .exec(web, running, &exec, &Io::Terminal(size))
        .unwrap();
    let mut output = Vec::new();
    let mut master = File::from(process.terminal.as_ref().unwrap().try_clone().unwrap());
    let mut part = [0; 512];
    // The terminal's end is EIO.
    while let Ok(n) = master.read(&mut part) {
        if n == 0 {
            break;
        }
        output.extend_from_slice(&part[..n]);
    }
    let output = String::from_utf8(output).unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..3], ["/dev/pts/0", "33 77", "to-tty"], "{output}");
    assert_ne!(lines[3], "0", "no controlling terminal: {output}");
    assert_eq!(exit::from_wait(&wait(&process, "tty")), Exit::Code(0));
    println!("terminal: ok");
}

fn limits_hold(bench: &Bench, web: &Vps, running: &Running) {
    let (output, exit) = bench.exec(
        web,
        running,
        None,
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=100; echo not reached",
    );
    let usage = bench.engine.usage(web).unwrap();
    assert!(usage.oom_kills >= 1, "{usage:?} {output} {exit}");
    bench.exec(web, running, None, "rm -f /dev/shm/x");
    bench.exec(
        web,
        running,
        None,
        "for i in $(yes | head -60); do sleep 2 & done 2>/dev/null",
    );
    let usage = bench.engine.usage(web).unwrap();
    assert!(usage.pids_refused >= 1 && usage.pids <= 24, "{usage:?}");
    assert!(
        usage.cpu_us > 0 && usage.memory_peak_bytes > 40 << 20,
        "{usage:?}"
    );
    let begin = Instant::now();
    while bench.engine.usage(web).unwrap().pids > 2 {
        assert!(begin.elapsed() < Duration::from_secs(20), "the bomb lasts");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        bench.exec(web, running, None, "echo still here").0,
        "still here\n"
    );
    println!("limits: ok ({usage:?})");
}

fn bad_commands(bench: &mut Bench, web: &Vps, running: &Running) {
    let null = File::open("/dev/null").unwrap();
    let io = || Io::Files([null.as_fd(), null.as_fd(), null.as_fd()]);
    let mut exec = request(None, "");
    exec.argv = vec!["no-such-program".into()];
    let error = bench.engine.exec(web, running, &exec, &io()).unwrap_err();
    assert!(matches!(error, Error::CommandNotFound { .. }), "{error}");
    exec.argv = vec!["/etc/passwd".into()];
    let error = bench.engine.exec(web, running, &exec, &io()).unwrap_err();
    assert!(
        matches!(error, Error::CommandNotExecutable { .. }),
        "{error}"
    );
    let error = bench
        .engine
        .exec(web, running, &request(Some("nobody-here"), ""), &io())
        .unwrap_err();
    assert!(error.to_string().contains("user"), "{error}");
    let broken = bench
        .engine
        .create(spec("broken", "true", Limits::default()))
        .unwrap();
    let mut absent = broken.clone();
    absent.spec.init = Init::Template;
    let start = Start { env: &[], io: io() };
    let error = bench
        .engine
        .start(&absent, &bench.template, &start)
        .unwrap_err();
    assert!(matches!(error, Error::CommandNotFound { .. }), "{error}");
    assert!(
        !Path::new("/sys/fs/cgroup/vps/broken").exists(),
        "a failed start leaves a cgroup"
    );
    assert!(
        bench
            .engine
            .create(spec("web", "true", Limits::default()))
            .is_err()
    );
    bench.engine.destroy(&broken).unwrap();
    println!("bad commands: ok");
}
