//! Guest kernels, built from Debian's kernel source with our configuration.

mod config;
mod leftovers;
mod source;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Entry, Inputs, Kind, Lock};
use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::packages;
use crate::progress::Progress;
use config::Foundation;
pub(crate) use leftovers::prune;

/// The kernel's file in a cache entry: an ELF image without debug information.
pub const VMLINUX: &str = "vmlinux";

/// The file with the kernel's symbols and their addresses.
pub const SYSTEM_MAP: &str = "System.map";

/// The file with the complete configuration.
pub const CONFIG: &str = "config";

/// What is put on the command line of guests, whatever their kernel, beside what
/// the machine needs: the panic policy, no quiet devices that nobody asked for
/// (`ip link` makes them where they are wanted), and grace periods that do not wait
/// for timer ticks, as VPSs come and go.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 \
     dummy.numdummies=0 ifb.numifbs=0 rcupdate.rcu_expedited=1";

/// Compiler flags that change nothing in what comes out: the C compiler does not
/// follow each word through the macros that it came from, which costs a seventh of
/// its time and would only be shown in warnings.
const QUICKER: &str = "-ftrack-macro-expansion=0";

/// Raise it when the recipe below changes what comes out of it.
const RECIPE: &str = "1";

/// The top of the kernel's configuration language in a build directory, where it is
/// not the kernel's own.
const KCONFIG: &str = "Kconfig.top";

/// What the names of build directories in the cache's work directory start with;
/// flavour and hash follow, as in the names of their locks.
const BUILD_DIR: &str = "kernel-";

/// What the names of the locks of build directories start with.
const BUILD_LOCK: &str = "build-";

/// Which guest kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavour {
    /// The one to run guests on, on VT-x and SVM: trimmed, with all mitigations.
    Hardware,
    /// The one for PVM hosts, which emulate the kernel's code: as few instructions
    /// as can be, and without mitigations.
    Pvm,
    /// The same for guests with one processor, which execute far fewer without the
    /// code for several.
    PvmUp,
    /// The same features, untrimmed: what boot times are compared with.
    Yardstick,
}

impl Flavour {
    /// Every flavour.
    pub const ALL: [Self; 4] = [Self::Hardware, Self::Pvm, Self::PvmUp, Self::Yardstick];

    /// The one for guests with so many processors on a PVM host.
    pub fn for_pvm(vcpus: u8) -> Self {
        if vcpus <= 1 { Self::PvmUp } else { Self::Pvm }
    }

    /// The flavour's name on the command line and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Pvm => "pvm",
            Self::PvmUp => "pvm-up",
            Self::Yardstick => "yardstick",
        }
    }

    /// Its command line, beside what the machine needs.
    pub fn command_line(self) -> &'static str {
        match self {
            Self::Hardware | Self::Yardstick => COMMAND_LINE,
            // Linux looks each argument up ten times while it boots, 38,000
            // instructions: the configuration has the others' values. A ramfs takes
            // the agent in with fewer than a tmpfs.
            Self::Pvm => {
                "dummy.numdummies=0 ifb.numifbs=0 rcupdate.rcu_expedited=1 noreplace-smp \
                 rootfstype=ramfs"
            }
            // Its grace periods wait for nobody.
            Self::PvmUp => "dummy.numdummies=0 ifb.numifbs=0 rootfstype=ramfs",
        }
    }

    /// Compiler flags beside the kernel's own.
    fn compiler_flags(self) -> &'static str {
        match self {
            // GCC copies short ends of functions to where they are jumped from. Every
            // copy is one more return that the kernel decodes and patches at each boot:
            // without copies there are a sixth fewer.
            Self::Hardware => "--param=max-grow-copy-bb-insns=0",
            // Code that goes on where it would call, and copies by one instruction
            // where it would loop, executes fewer.
            Self::Pvm | Self::PvmUp => {
                "-O3 -minline-all-stringops -mmemcpy-strategy=rep_8byte:-1:noalign \
                 -mmemset-strategy=rep_8byte:-1:noalign"
            }
            Self::Yardstick => "",
        }
    }

    /// Frequency of the timer tick, where it is none that the kernel's menu offers.
    fn hertz(self) -> Option<u32> {
        match self {
            // Each is a thousand emulated instructions, and a machine with other work
            // to do gets nothing else done. Below 50, parts of the kernel divide by
            // zero (HZ / 50).
            Self::Pvm | Self::PvmUp => Some(50),
            Self::Hardware | Self::Yardstick => None,
        }
    }

    /// How many lines of work `make` reports, for the progress bar.
    fn expected_steps(self) -> u64 {
        match self {
            Self::Hardware => 1857,
            Self::Pvm => 1815,
            Self::PvmUp => 1730,
            Self::Yardstick => 4020,
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kernel of this flavour, built if it is not in the cache.
///
/// # Errors
/// When packages are missing and cannot be installed, when the configuration loses
/// a required option, or when the build fails (with its last lines).
pub fn ensure(cache: &Cache, flavour: Flavour, progress: &Progress) -> Result<Entry> {
    if cache.sealed()?.is_some() {
        return cache.ensure(
            Kind::Kernel,
            flavour.name(),
            &Inputs::new(),
            progress,
            |_| Ok(()),
        );
    }
    let tarball = source::tarball();
    if !tarball.exists() {
        packages::ensure(packages::KERNEL_BUILD, "building a guest kernel", progress)?;
    }
    let sha256 = cache.file_sha256(&tarball)?;
    let mut inputs = Inputs::new()
        .text("recipe", RECIPE)
        .text("compiler flags", flavour.compiler_flags())
        .digest("source", sha256.clone());
    if let Some(hertz) = flavour.hertz() {
        inputs = inputs.text("hertz", hertz.to_string());
    }
    for tool in ["gcc", "ld"] {
        let path = packages::tool(tool, "gcc")?;
        let path = path.canonicalize().at("resolve", &path)?;
        inputs = inputs.digest(tool, cache.file_sha256(&path)?);
    }
    for (n, fragment) in flavour.fragments().iter().enumerate() {
        inputs = inputs.text(format!("fragment {n}"), fragment);
    }
    cache.ensure(Kind::Kernel, flavour.name(), &inputs, progress, |out| {
        packages::ensure(packages::KERNEL_BUILD, "building a guest kernel", progress)?;
        // Named by the inputs, so that an interrupted build is resumed by the next.
        let name = format!("{flavour}-{}", inputs.hash());
        let build = cache.work_dir(&format!("{BUILD_DIR}{name}"))?;
        // Before the source is looked for: pruning spares it while a build is locked.
        let lock = cache.lock(&format!("{BUILD_LOCK}{name}"), || {
            progress.say("waiting for the make of an interrupted build to end");
        })?;
        let source = source::unpacked(cache, &tarball, &sha256, progress)?;
        let make = Make {
            source: &source,
            build: &build,
            flavour,
            lock: &lock,
        };
        make.configure()?;
        make.compile(progress)?;
        make.install(out)?;
        fs::remove_dir_all(&build).at("remove", &build)
    })
}

/// A build of the kernel in a directory of its own.
struct Make<'a> {
    source: &'a Path,
    build: &'a Path,
    flavour: Flavour,
    /// Keeps two makes out of the build directory, also when this process is killed
    /// and leaves one behind.
    lock: &'a Lock,
}

impl Make<'_> {
    fn command(&self) -> Command {
        let mut make = Command::new("make");
        make.arg("-C")
            .arg(self.source)
            .arg(format!("O={}", self.build.display()));
        make.arg("ARCH=x86_64").arg(format!(
            "KCFLAGS={} {QUICKER}",
            self.flavour.compiler_flags()
        ));
        // What would make two builds of the same source differ.
        make.args([
            "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
            "KBUILD_BUILD_VERSION=1",
            "KBUILD_BUILD_USER=insula",
            "KBUILD_BUILD_HOST=insula",
        ]);
        if self.flavour.hertz().is_some() {
            make.env("KBUILD_KCONFIG", self.build.join(KCONFIG));
        }
        make.env("LC_ALL", "C")
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL");
        make
    }

    fn configure(&self) -> Result<()> {
        if let Some(hertz) = self.flavour.hertz() {
            let path = self.source.join("Kconfig");
            let own = fs::read_to_string(&path).at("read", &path)?;
            let with = config::with_frequency(&own, hertz).ok_or(Error::KernelOptions {
                flavour: self.flavour.name(),
                options: vec![format!("CONFIG_HZ={hertz}")],
            })?;
            let path = self.build.join(KCONFIG);
            fs::write(&path, with).at("write", &path)?;
        }
        let wanted = self.flavour.fragments().join("\n");
        let config = self.build.join(".config");
        match self.flavour.foundation() {
            Foundation::Nothing => {
                let fragment = self.build.join("wanted.config");
                fs::write(&fragment, &wanted).at("write", &fragment)?;
                let mut make = self.command();
                make.arg(format!("KCONFIG_ALLCONFIG={}", fragment.display()))
                    .arg("allnoconfig");
                command::run(&mut make)?;
            }
            Foundation::Defaults(targets) => {
                command::run(self.command().args(targets))?;
                let mut text = fs::read_to_string(&config).at("read", &config)?;
                // Of two settings of an option the later one counts.
                text.push_str(&wanted);
                fs::write(&config, text).at("write", &config)?;
            }
        }
        command::run(self.command().arg("olddefconfig"))?;
        let got = fs::read_to_string(&config).at("read", &config)?;
        let options = config::lost(self.flavour.fragments(), &got);
        if options.is_empty() {
            return Ok(());
        }
        Err(Error::KernelOptions {
            flavour: self.flavour.name(),
            options,
        })
    }

    fn compile(&self, progress: &Progress) -> Result<()> {
        let title = format!("building the guest kernel ({})", self.flavour);
        let task = progress.task(&title, Some(self.flavour.expected_steps()));
        // One more than there are processors: there is always one that waits.
        let jobs = 1 + std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut make = self.command();
        make.arg(format!("-j{jobs}")).arg(VMLINUX);
        make.stdin(self.lock.as_stdin().at("share the lock on", self.build)?);
        let mut steps = 0;
        command::run_lines(&mut make, |line| {
            if let Some(object) = step(line) {
                steps += 1;
                task.set(steps);
                task.note(object);
            }
        })?;
        task.done();
        Ok(())
    }

    /// Puts what is kept into `out`.
    fn install(&self, out: &Path) -> Result<()> {
        let copy = |from: &str, to: &str| -> Result<PathBuf> {
            let to = out.join(to);
            fs::copy(self.build.join(from), &to).at("copy the built kernel to", &to)?;
            Ok(to)
        };
        let vmlinux = copy(VMLINUX, VMLINUX)?;
        copy(SYSTEM_MAP, SYSTEM_MAP)?;
        copy(".config", CONFIG)?;
        // System.map has the symbols; in the image they would only be read and hashed.
        let mut strip = Command::new("strip");
        strip.arg("--strip-all").arg(&vmlinux);
        command::run(&mut strip).map(|_| ())
    }
}

/// What a line of make's output says is being made, if it does: `  CC      fs/open.o`.
fn step(line: &str) -> Option<&str> {
    let (verb, object) = line.strip_prefix("  ")?.split_once(' ')?;
    let is_verb = verb.len() > 1 && verb.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    is_verb.then(|| object.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_other_lines() {
        assert_eq!(step("  CC      fs/open.o"), Some("fs/open.o"));
        assert_eq!(
            step("  HOSTCC  scripts/basic/fixdep"),
            Some("scripts/basic/fixdep")
        );
        for line in [
            "make[1]: Entering directory",
            "  warning: x",
            "",
            "fs/open.c:3: error",
        ] {
            assert_eq!(step(line), None, "{line}");
        }
    }
}
