//! What a freshly booted guest depends on.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use guest_agent::protocol::DiskRole;
use images::{Cache, InputHash, Inputs};
use vmm::config::HostKvm;
use vmm::guest::{GuestSpec, Size};
use vmm::snapshot::file;

use crate::failure::Failure;

/// Changes when snapshots of fresh guests mean something else.
const RECIPE: &str = "1";

/// What a snapshot depends on besides what is in files.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// The processor: maker, model, features.
    cpu: String,
    /// Release and build of the kernel.
    kernel: String,
    /// The builds of KVM's modules.
    kvm: String,
}

impl Host {
    /// This one, as far as it can be found out: what cannot be is what cannot
    /// change without something else.
    pub(super) fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: processor(&read("/proc/cpuinfo")),
            kernel: read("/proc/sys/kernel/osrelease") + &read("/proc/sys/kernel/version"),
            kvm: modules(Path::new("/sys/module")),
        }
    }
}

/// What `/proc/cpuinfo` says of the first processor that is the same at any
/// time.
fn processor(info: &str) -> String {
    const LASTING: [&str; 6] = [
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "flags",
    ];
    let first = info.lines().take_while(|line| !line.trim().is_empty());
    let lasting = first.filter(|line| {
        let label = line.split(':').next().unwrap_or_default().trim();
        LASTING.contains(&label)
    });
    lasting.collect::<Vec<_>>().join("\n")
}

/// KVM's modules, and which builds they are.
fn modules(root: &Path) -> String {
    let mut found: Vec<_> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.starts_with("kvm").then_some(name)
        })
        .collect();
    found.sort();
    let mut text = String::new();
    for name in found {
        let read = |file: &str| fs::read(root.join(&name).join(file)).unwrap_or_default();
        let version = [read("srcversion"), read("notes/.note.gnu.build-id")].concat();
        text.push_str(&name);
        for byte in version {
            // Writing to a string cannot fail.
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    text
}

/// The key of such guests: `spec` without its data disk, and the size of the
/// disk that is made for it; started by the program at `vmm`.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn of(
    spec: &GuestSpec,
    disk: Option<Size>,
    vmm: &Path,
    host: &Host,
    hashes: &Cache,
) -> Result<InputHash, Failure> {
    // All of its fields, so that none is forgotten which is added.
    let GuestSpec {
        host_kvm,
        vcpus,
        memory,
        kernel,
        initrds,
        drives,
        cmdline,
        ready_timeout,
        machine_root,
        // What a restored guest gets of its own.
        hostname: _,
        ephemeral: _,
        // A profile is one of a boot: such a guest is not restored.
        profile: _,
    } = spec;
    let number = |number: u64| number.to_string();
    let mut inputs = Inputs::new()
        .text("recipe", RECIPE)
        .text("snapshot format", number(file::VERSION.into()))
        .text("processor", &host.cpu)
        .text("host kernel", &host.kernel)
        .text("kvm", &host.kvm)
        .text(
            "kind of kvm",
            match host_kvm {
                HostKvm::Hardware => "hardware",
                HostKvm::Pvm => "pvm",
            },
        )
        .text("vcpus", number(vcpus.get().into()))
        .text("memory", number(memory.bytes()))
        .text("command line", cmdline)
        .text("ready timeout", number(ready_timeout.get().into()))
        .text(
            "machine root",
            machine_root.as_ref().map_or("", |name| name.as_str()),
        )
        .text(
            "data disk",
            disk.map_or_else(String::new, |size| number(size.bytes())),
        )
        .digest("machine process", hashes.file_sha256(vmm)?)
        .digest("kernel", hashes.file_sha256(kernel)?)
        // Of these files the snapshot has the place, not the content.
        .text("kernel's place", kernel.to_string_lossy());
    for (index, path) in initrds.iter().enumerate() {
        inputs = inputs.digest(format!("initramfs {index}"), hashes.file_sha256(path)?);
    }
    for (index, drive) in drives.iter().enumerate() {
        let role = match &drive.role {
            DiskRole::Template(name) => format!("template {name}"),
            DiskRole::Data => "data".to_owned(),
        };
        inputs = inputs
            .text(format!("drive {index}'s role"), role)
            .text(
                format!("drive {index}'s place"),
                drive.path.to_string_lossy(),
            )
            .digest(format!("drive {index}"), hashes.file_sha256(&drive.path)?);
    }
    Ok(inputs.hash())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vmm::config::{MemSize, ReadyTimeout, VcpuCount};
    use vmm::guest::Drive;

    use super::*;

    /// What a key is made of, in files of its own.
    #[derive(Clone)]
    struct Made<'a> {
        dir: &'a Path,
        spec: GuestSpec,
        disk: Option<Size>,
        host: Host,
    }

    impl<'a> Made<'a> {
        fn new(dir: &'a Path) -> Self {
            for file in ["vmm", "kernel", "initramfs", "template"] {
                fs::write(dir.join(file), file).unwrap();
            }
            let mut spec = GuestSpec::new(dir.join("kernel"), "console=ttyS0");
            spec.initrds = vec![dir.join("initramfs")];
            spec.drives = vec![Drive {
                role: DiskRole::Template("busybox".parse().unwrap()),
                path: dir.join("template"),
            }];
            let [cpu, kernel, kvm] = ["cpu", "kernel", "kvm"].map(str::to_owned);
            Self {
                dir,
                spec,
                disk: None,
                host: Host { cpu, kernel, kvm },
            }
        }

        fn key(&self) -> String {
            let hashes = Cache::at(self.dir.join("cache"));
            let vmm = self.dir.join("vmm");
            let key = of(&self.spec, self.disk, &vmm, &self.host, &hashes);
            key.map_err(|failure| failure.to_string())
                .unwrap()
                .to_string()
        }
    }

    #[test]
    fn every_input_counts() {
        let dir = tempfile::tempdir().unwrap();
        let base = Made::new(dir.path());
        let mut keys = BTreeSet::from([base.key()]);
        let changes: [fn(&mut Made<'_>); 18] = [
            |made| made.spec.host_kvm = HostKvm::Pvm,
            |made| made.spec.vcpus = VcpuCount::try_from(2).unwrap(),
            |made| made.spec.memory = MemSize::try_from(256).unwrap(),
            |made| made.spec.cmdline.push_str(" quiet"),
            |made| made.spec.ready_timeout = ReadyTimeout::try_from(1000).unwrap(),
            |made| made.spec.machine_root = Some("busybox".parse().unwrap()),
            |made| made.spec.kernel = made.dir.join("template"),
            |made| made.spec.initrds.push(made.dir.join("kernel")),
            |made| made.spec.drives[0].role = DiskRole::Data,
            |made| made.spec.drives[0].role = DiskRole::Template("other".parse().unwrap()),
            |made| made.spec.drives[0].path = made.dir.join("kernel"),
            |made| made.spec.drives.push(made.spec.drives[0].clone()),
            |made| made.spec.drives.clear(),
            |made| made.disk = Some(Size::mib(256)),
            |made| made.disk = Some(Size::mib(512)),
            |made| made.host.cpu.push('x'),
            |made| made.host.kernel.push('x'),
            |made| made.host.kvm.push('x'),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut made = base.clone();
            change(&mut made);
            assert!(keys.insert(made.key()), "change {index} does not count");
        }
        for file in ["vmm", "kernel", "initramfs", "template"] {
            fs::write(dir.path().join(file), format!("another {file}")).unwrap();
            assert!(keys.insert(base.key()), "{file} does not count");
        }
        // What a restored guest gets anew does not.
        let mut made = base.clone();
        made.spec.hostname = Some("web".parse().unwrap());
        made.spec.ephemeral = true;
        assert_eq!(made.key(), base.key());
        fs::remove_file(dir.path().join("kernel")).unwrap();
        let hashes = Cache::at(dir.path().join("cache"));
        assert!(
            of(
                &base.spec,
                None,
                &dir.path().join("vmm"),
                &base.host,
                &hashes
            )
            .is_err()
        );
    }

    #[test]
    fn of_a_processor_counts_what_lasts() {
        let info = "processor : 0\nvendor_id : V\nmodel : 7\ncpu MHz : 2000.1\nflags : a b\n\n\
                    processor : 1\nflags : c\n";
        assert_eq!(processor(info), "vendor_id : V\nmodel : 7\nflags : a b");
    }

    #[test]
    fn modules_of_kvm_are_told_apart_by_their_builds() {
        let dir = tempfile::tempdir().unwrap();
        for (module, version) in [("kvm", "A"), ("kvm_amd", "B"), ("loop", "C")] {
            fs::create_dir(dir.path().join(module)).unwrap();
            fs::write(dir.path().join(module).join("srcversion"), version).unwrap();
        }
        assert_eq!(modules(dir.path()), "kvm 41\nkvm_amd 42\n");
        assert_eq!(modules(Path::new("/nonexistent")), "");
    }
}
