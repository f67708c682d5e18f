//! The environment of a run: everything readable that can change a result.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Says that this is a lab: an emulated host.
const LAB_MARK: &str = "/etc/insula-lab.json";

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it belongs to: `kernel`, `cpu`, …
    pub group: String,
    /// What it is, with its source where that is not plain.
    pub name: String,
    /// As read; `None` where it can't be read here.
    pub value: Option<String>,
}

/// How far from hardware the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// No hypervisor in sight.
    BareMetal,
    /// The host is a virtual machine itself: guests on it are nested.
    Virtual,
    /// The host is emulated: times are a cost model.
    Emulated,
    /// Emulated, and the clock counts instructions: 1 ns each.
    EmulatedIcount,
    /// Guests' programs run on the processor, their kernels are emulated.
    Pvm,
}

impl HostKind {
    /// Whether figures say nothing about hardware.
    pub fn is_emulated(self) -> bool {
        matches!(self, Self::Emulated | Self::EmulatedIcount | Self::Pvm)
    }

    /// What every page says about it; `None` when there is nothing to say.
    pub fn mark(self) -> Option<&'static str> {
        match self {
            Self::BareMetal => None,
            Self::Virtual => Some("nested host"),
            Self::Emulated => Some("emulated host"),
            Self::EmulatedIcount => Some("emulated host, 1 ns = 1 instruction"),
            Self::Pvm => Some("PVM emulation of guest kernels"),
        }
    }

    /// What that means for the reader.
    pub fn explanation(self) -> Option<&'static str> {
        match self {
            Self::BareMetal => None,
            Self::Virtual => Some(
                "The host is a virtual machine itself, so guests are nested: their exits cost \
                 several times what they cost on bare metal. Do not put these figures beside \
                 those of bare-metal hosts.",
            ),
            Self::Emulated => Some(
                "The host is emulated in software (QEMU TCG). Times are those of the emulator: \
                 they tell how much there is to do, not how long hardware takes. Caches, TLBs \
                 and the cost of a VM exit are not modelled. No verdict about hardware follows.",
            ),
            Self::EmulatedIcount => Some(
                "The host is emulated in software (QEMU TCG with -icount), and its clock \
                 advances by one nanosecond an instruction: times are instruction counts. \
                 Caches, TLBs and the cost of a VM exit are not modelled. No verdict about \
                 hardware follows.",
            ),
            Self::Pvm => Some(
                "The host's KVM is of the PVM kind: programs in guests run at full speed, but \
                 guests' kernels are emulated, about half a microsecond an instruction, so that \
                 every system call, fault and interrupt in a guest costs hundreds of times what \
                 it costs on VT-x or SVM. Models without a guest run as they do on hardware. No \
                 verdict about hardware follows.",
            ),
        }
    }
}

/// The environment of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// How far from hardware the host is.
    pub host: HostKind,
    /// CPUs that may be used.
    pub cpus: u32,
    /// `MemTotal`, in bytes.
    pub memory_bytes: u64,
    /// Everything else.
    pub facts: Vec<Fact>,
}

impl Environment {
    /// Reads the environment. What can't be read is a fact without a value.
    pub fn capture() -> Self {
        let mut facts = Facts::default();
        kernel(&mut facts);
        let hypervisor = cpu(&mut facts);
        memory(&mut facts);
        kvm(&mut facts);
        virtualization(&mut facts, hypervisor);
        host_state(&mut facts);
        tools(&mut facts);
        Self {
            host: host_kind(hypervisor),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            memory_bytes: memory_field("MemTotal").unwrap_or(0),
            facts: facts.0,
        }
    }
}

/// A field of `/proc/meminfo`, in bytes.
pub fn memory_field(name: &str) -> Option<u64> {
    field_bytes(Path::new("/proc/meminfo"), name)
}

/// A field in kB of a file of lines `Name: N kB`, in bytes.
pub fn field_bytes(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The load averages.
pub fn load() -> Option<String> {
    read(Path::new("/proc/loadavg"))
}

/// `2026-01-31T12-30-00Z` for seconds since the Unix epoch: a time that can be
/// a directory's name.
pub fn utc_stamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, in eras of 400 years, so that leap days
    // come last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}Z")
}

fn host_kind(hypervisor: bool) -> HostKind {
    match fs::read_to_string(LAB_MARK) {
        Ok(text) => lab_kind(&text),
        Err(_) if hypervisor => HostKind::Virtual,
        Err(_) => HostKind::BareMetal,
    }
}

/// What the lab's mark says. A mark that can't be read is still a mark.
fn lab_kind(text: &str) -> HostKind {
    let mark: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    if mark.get("icount").and_then(serde_json::Value::as_bool) == Some(true) {
        HostKind::EmulatedIcount
    } else {
        HostKind::Emulated
    }
}

#[derive(Default)]
struct Facts(Vec<Fact>);

impl Facts {
    fn add(&mut self, group: &str, name: &str, value: Option<String>) {
        self.0.push(Fact {
            group: group.into(),
            name: name.into(),
            value,
        });
    }

    fn file(&mut self, group: &str, name: &str, path: &str) {
        self.add(group, name, read(Path::new(path)));
    }
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim().replace('\n', "; ");
    (!text.is_empty()).then_some(text)
}

fn kernel(facts: &mut Facts) {
    facts.file("kernel", "release", "/proc/sys/kernel/osrelease");
    facts.file("kernel", "version", "/proc/version");
    facts.file("kernel", "command line", "/proc/cmdline");
    let distribution = fs::read_to_string("/etc/os-release").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(line.trim_matches('"').to_owned())
    });
    facts.add("kernel", "distribution", distribution);
    facts.file(
        "kernel",
        "clock source",
        "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    );
}

/// Returns whether the CPU says that there is a hypervisor under it.
fn cpu(facts: &mut Facts) -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    for name in [
        "model name",
        "cpu family",
        "model",
        "stepping",
        "microcode",
        "cache size",
    ] {
        facts.add("cpu", name, field(name));
    }
    facts.file("cpu", "online", "/sys/devices/system/cpu/online");
    facts.file("cpu", "SMT", "/sys/devices/system/cpu/smt/control");
    facts.file("cpu", "NUMA nodes", "/sys/devices/system/node/online");
    let frequency = "/sys/devices/system/cpu/cpu0/cpufreq";
    for (name, file) in [
        ("governor", "scaling_governor"),
        ("least frequency (kHz)", "scaling_min_freq"),
        ("most frequency (kHz)", "scaling_max_freq"),
        ("energy preference", "energy_performance_preference"),
    ] {
        facts.file("cpu", name, &format!("{frequency}/{file}"));
    }
    facts.file("cpu", "boost", "/sys/devices/system/cpu/cpufreq/boost");
    facts.file(
        "cpu",
        "idle driver",
        "/sys/devices/system/cpu/cpuidle/current_driver",
    );
    let vulnerabilities = Path::new("/sys/devices/system/cpu/vulnerabilities");
    let mut names: Vec<_> = fs::read_dir(vulnerabilities)
        .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()))
        .map(Iterator::collect)
        .unwrap_or_default();
    names.sort();
    for name in names {
        let value = read(&vulnerabilities.join(&name));
        facts.add("mitigations", &name, value);
    }
    field("flags").is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

fn memory(facts: &mut Facts) {
    for name in ["MemTotal", "MemAvailable", "SwapTotal"] {
        let mib = memory_field(name).map(|bytes| format!("{} MiB", bytes >> 20));
        facts.add("memory", name, mib);
    }
    facts.file(
        "memory",
        "transparent huge pages",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    );
    facts.file("memory", "KSM", "/sys/kernel/mm/ksm/run");
    facts.file("memory", "swappiness", "/proc/sys/vm/swappiness");
    facts.file("memory", "overcommit", "/proc/sys/vm/overcommit_memory");
    facts.file("memory", "huge pages", "/proc/sys/vm/nr_hugepages");
}

fn kvm(facts: &mut Facts) {
    let present = Path::new("/dev/kvm").exists();
    facts.add(
        "kvm",
        "/dev/kvm",
        Some(if present { "present" } else { "absent" }.into()),
    );
    let module = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .find(|module| Path::new("/sys/module").join(module).exists());
    facts.add("kvm", "module", module.map(str::to_owned));
    let Some(module) = module else { return };
    for parameter in ["nested", "npt", "ept", "avic", "enable_apicv", "vls"] {
        let path = format!("/sys/module/{module}/parameters/{parameter}");
        if Path::new(&path).exists() {
            facts.file("kvm", parameter, &path);
        }
    }
    facts.file(
        "kvm",
        "halt_poll_ns",
        "/sys/module/kvm/parameters/halt_poll_ns",
    );
}

fn virtualization(facts: &mut Facts, hypervisor: bool) {
    facts.add(
        "virtualization",
        "hypervisor CPU flag",
        Some(hypervisor.to_string()),
    );
    facts.file(
        "virtualization",
        "DMI vendor",
        "/sys/class/dmi/id/sys_vendor",
    );
    facts.file(
        "virtualization",
        "DMI product",
        "/sys/class/dmi/id/product_name",
    );
    facts.add(
        "virtualization",
        "systemd-detect-virt",
        output("systemd-detect-virt", &[]),
    );
    facts.file("virtualization", "lab", LAB_MARK);
}

fn host_state(facts: &mut Facts) {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    facts.add(
        "cgroup",
        "version",
        Some(if unified { "2" } else { "1 or mixed" }.into()),
    );
    facts.file("cgroup", "controllers", "/sys/fs/cgroup/cgroup.controllers");
    facts.file("cgroup", "ours", "/proc/self/cgroup");
    facts.add("load", "load averages before", load());
    for resource in ["cpu", "memory", "io"] {
        let name = format!("{resource} pressure before");
        facts.file("load", &name, &format!("/proc/pressure/{resource}"));
    }
    let root = rustix::process::geteuid().is_root();
    facts.add("process", "run as root", Some(root.to_string()));
    for limit in ["Max open files", "Max locked memory", "Max processes"] {
        let value = fs::read_to_string("/proc/self/limits")
            .ok()
            .and_then(|text| {
                let line = text.lines().find_map(|line| line.strip_prefix(limit))?;
                line.split_whitespace().next().map(str::to_owned)
            });
        facts.add("process", limit, value);
    }
}

fn tools(facts: &mut Facts) {
    facts.add(
        "tools",
        "insula-compare",
        Some(env!("CARGO_PKG_VERSION").into()),
    );
    facts.add("tools", "git commit", git_commit());
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    facts.add("tools", "build", Some(build.into()));
}

/// The commit of this program: `$INSULA_GIT`, which the lab is told, else that
/// of the checkout which it was built in, if that is still there.
pub fn git_commit() -> Option<String> {
    if let Ok(commit) = std::env::var("INSULA_GIT") {
        return Some(commit);
    }
    output(
        "git",
        &[
            "-C",
            env!("CARGO_MANIFEST_DIR"),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
        ],
    )
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_what_there_is() {
        let environment = Environment::capture();
        assert!(environment.cpus >= 1);
        assert!(environment.memory_bytes > 1 << 20);
        let release = environment
            .facts
            .iter()
            .find(|fact| fact.name == "release")
            .unwrap();
        assert!(release.value.is_some());
        let json = serde_json::to_string(&environment).unwrap();
        assert_eq!(
            serde_json::from_str::<Environment>(&json).unwrap(),
            environment
        );
    }

    #[test]
    fn stamps_are_those_of_the_calendar() {
        // date -u -d @N +%FT%H-%M-%SZ
        for (seconds, stamp) in [
            (0, "1970-01-01T00-00-00Z"),
            (951_782_399, "2000-02-28T23-59-59Z"),
            (951_868_800, "2000-03-01T00-00-00Z"),
            (1_709_164_800, "2024-02-29T00-00-00Z"),
            (4_107_542_400, "2100-03-01T00-00-00Z"),
        ] {
            assert_eq!(utc_stamp(seconds), stamp);
        }
    }

    #[test]
    fn a_lab_is_an_emulated_host() {
        assert_eq!(lab_kind("{\"icount\":true}"), HostKind::EmulatedIcount);
        assert_eq!(lab_kind("{\"icount\":false}"), HostKind::Emulated);
        assert_eq!(lab_kind("garbage"), HostKind::Emulated);
        assert!(HostKind::Emulated.is_emulated() && !HostKind::Virtual.is_emulated());
        assert!(HostKind::Pvm.is_emulated());
        assert!(
            HostKind::Pvm
                .mark()
                .is_some_and(|mark| mark.contains("PVM"))
        );
        assert!(
            HostKind::EmulatedIcount
                .mark()
                .unwrap()
                .starts_with("emulated host")
        );
    }
}
