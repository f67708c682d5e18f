//! The emulated host's image: Debian's kernel, its modules, and a small Debian root.
//!
//! Packages are downloaded by `apt-get` as if nothing were installed (an empty
//! dpkg status file), so that their dependencies are complete, and unpacked;
//! none of it is installed on this machine, and nothing is mounted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::apt::{Apt, KERNELS, only_file, unpack};
use super::modules;
use crate::cache::{Cache, Entry, Inputs, Kind};
use crate::command::run;
use crate::cpio::Archive;
use crate::error::{IoContext, Result};
use crate::packages::{self, tool};
use crate::progress::{Progress, Task};

/// Packages of this machine that the lab needs.
pub const PACKAGES: &[&str] = &[
    "e2fsprogs",
    "qemu-system-x86",
    "qemu-utils",
    "tar",
    "util-linux",
    "xz-utils",
];

/// What is in its root beside what these need.
const CONTENT: [&str; 21] = [
    "bash",
    "busybox-static",
    "coreutils",
    "crun",
    "dash",
    "e2fsprogs",
    "erofs-utils",
    "findutils",
    "grep",
    "gzip",
    "iproute2",
    "kmod",
    "libc-bin",
    "libgcc-s1",
    "mount",
    "nftables",
    "procps",
    "runc",
    "sed",
    "tar",
    "util-linux",
];

/// Not unpacked: nobody reads it there.
const LEFT_OUT: [&str; 5] = [
    "./usr/share/doc",
    "./usr/share/info",
    "./usr/share/locale",
    "./usr/share/man",
    "./boot",
];

/// Size of its root file system; the file is sparse.
const ROOT_SIZE: &str = "8G";

/// Increased when this recipe changes.
const RECIPE: &str = "2";

/// The image's kernel.
pub(super) const KERNEL: &str = "vmlinuz";
/// The image's initramfs: modules and busybox; the program that uses them
/// comes in a segment of its own (see `boot`).
pub(super) const INITRAMFS: &str = "initramfs.cpio";
/// The image's root disk.
pub const ROOT: &str = "root.qcow2";

/// How many steps a build reports.
const STEPS: u64 = 8;

/// The image from the cache, built if need be (about ten seconds, and a
/// download of 60 MB).
///
/// The image is known by what it is made of, not by the packages' versions:
/// these are the newest of the suite when it is built, listed in its
/// `packages.txt`.
///
/// # Errors
/// Packages are missing, cannot be downloaded or unpacked; the file system fails.
pub fn ensure(cache: &Cache, progress: &Progress) -> Result<Entry> {
    let inputs = Inputs::new()
        .text("recipe", RECIPE)
        .text("suite", suite())
        .text("kernels", KERNELS.join(" "))
        .text("content", CONTENT.join(" "))
        .text("modules", modules::WANTED.join(" "))
        .text("root size", ROOT_SIZE);
    cache.ensure(Kind::LabHost, "lab-host", &inputs, progress, |out| {
        packages::ensure(PACKAGES, "building the lab's host", progress)?;
        // In the entry to be, so that an interrupted build's goes with it.
        let work = tempfile::tempdir_in(out).at("create a directory in", out)?;
        build(work.path(), out, progress)?;
        work.close()
            .at("remove the files of the lab's host in", out)
    })
}

/// `VERSION_CODENAME` of the distribution that the packages come from.
fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.unwrap_or("unknown").trim_matches('"').to_owned()
}

fn build(work: &Path, out: &Path, progress: &Progress) -> Result<()> {
    let task = progress.task("building the lab's host", Some(STEPS));
    let mut steps = Steps {
        task: &task,
        done: 0,
    };

    let apt = Apt::new(work)?;
    steps.next("choosing a kernel");
    let kernel = Apt::kernel()?;
    steps.next("downloading the kernel");
    let kernel_deb = apt.download_one(&kernel)?;
    steps.next("downloading the root's packages");
    let debs = apt.download_closure(&CONTENT, |line| task.note(line))?;

    steps.next("unpacking");
    let root = work.join("root");
    lay_out(&root)?;
    for deb in &debs {
        unpack(deb, &root, &LEFT_OUT)?;
    }
    let kernel_tree = work.join("kernel");
    fs::create_dir(&kernel_tree).at("create", &kernel_tree)?;
    unpack(&kernel_deb, &kernel_tree, &[])?;
    let vmlinuz = only_file(&kernel_tree.join("boot"), "vmlinuz-")?;
    fs::copy(&vmlinuz, out.join(KERNEL)).at("copy", &vmlinuz)?;
    // Debian's newer packages have them in /usr already.
    let modules_dir = [
        kernel_tree.join("usr/lib/modules"),
        kernel_tree.join("lib/modules"),
    ]
    .into_iter()
    .find(|dir| dir.is_dir())
    .unwrap_or_else(|| kernel_tree.join("lib/modules"));
    let release_dir = only_file(&modules_dir, "")?;
    let installed = root.join("usr/lib/modules");
    fs::create_dir_all(&installed).at("create", &installed)?;
    let release = release_dir.file_name().unwrap_or_default().to_owned();
    let target = installed.join(&release);
    fs::rename(&release_dir, &target).at("move", &release_dir)?;
    steps.next("indexing modules");
    depmod(&root, &release.to_string_lossy())?;
    finish_root(&root)?;

    steps.next("collecting modules");
    initramfs(&root, &target, &out.join(INITRAMFS))?;
    steps.next("making the root disk");
    root_disk(&root, work, &out.join(ROOT))?;
    let mut names: Vec<_> = debs
        .iter()
        .chain([&kernel_deb])
        .filter_map(|d| d.file_name())
        .collect();
    names.sort_unstable();
    let names = names.join(std::ffi::OsStr::new(
        "
",
    ));
    let list = out.join("packages.txt");
    fs::write(&list, names.as_encoded_bytes()).at("write", &list)?;
    task.done();
    Ok(())
}

struct Steps<'a> {
    task: &'a Task,
    done: u64,
}

impl Steps<'_> {
    fn next(&mut self, what: &str) {
        self.task.note(what);
        self.task.set(self.done);
        self.done += 1;
    }
}

/// An empty root with `/usr` merged, as every Debian since 12 has it.
fn lay_out(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let dir = root.join("usr").join(name);
        fs::create_dir_all(&dir).at("create the directory", &dir)?;
        let link = root.join(name);
        symlink(format!("usr/{name}"), &link).at("create the link", &link)?;
    }
    Ok(())
}

/// Makes the module index, with the root's own tool and libraries, so that it
/// does not matter which this machine has.
fn depmod(root: &Path, release: &str) -> Result<()> {
    let mut depmod = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
    depmod
        .args(["--argv0", "depmod", "--library-path"])
        .arg(root.join("usr/lib/x86_64-linux-gnu"))
        .arg(root.join("usr/bin/kmod"))
        .arg("-b")
        .arg(root)
        .arg(release);
    run(&mut depmod).map(drop)
}

/// What the packages' scripts, which are not run, would have made.
fn finish_root(root: &Path) -> Result<()> {
    let files = [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        ("etc/hosts", "127.0.0.1 localhost lab\n::1 localhost\n"),
        ("etc/hostname", "lab\n"),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ),
        ("etc/subuid", "root:100000:65536\n"),
        ("etc/subgid", "root:100000:65536\n"),
        ("root/.profile", "PS1='lab# '\n"),
    ];
    for (path, content) in files {
        let path = root.join(path);
        fs::write(&path, content).at("write", &path)?;
    }
    for dir in [
        "opt/busybox",
        "var/lib/insula",
        "var/lib/insula-lab",
        "usr/local/sbin",
    ] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).at("create the directory", &dir)?;
    }
    busybox_links(root)?;
    let shell = root.join("usr/bin/sh");
    if shell.symlink_metadata().is_err() {
        symlink("dash", &shell).at("create the link", &shell)?;
    }
    Ok(())
}

/// Busybox fills in, at the end of the lab's `PATH`, for what is not installed.
fn busybox_links(root: &Path) -> Result<()> {
    let applets = run(Command::new(root.join("usr/bin/busybox")).arg("--list"))?;
    // A program must not choose where it is linked to.
    let names = applets.lines().map(str::trim);
    for name in names.filter(|name| !matches!(*name, "" | "." | "..") && !name.contains('/')) {
        let link = root.join("opt/busybox").join(name);
        symlink("/usr/bin/busybox", &link).at("create the link", &link)?;
    }
    Ok(())
}

/// Modules, their order, and busybox to load them with.
fn initramfs(root: &Path, modules_dir: &Path, to: &Path) -> Result<()> {
    let busybox = root.join("usr/bin/busybox");
    let busybox = fs::read(&busybox).at("read", &busybox)?;
    let modules = modules::collect(modules_dir)?;
    let write = || -> std::io::Result<()> {
        let sink = std::io::BufWriter::new(fs::File::create(to)?);
        let mut archive = Archive::new(sink);
        for dir in ["bin", "modules", "lab"] {
            archive.directory(dir)?;
        }
        archive.file("bin/busybox", 0o755, &busybox)?;
        let mut order = String::new();
        for module in &modules {
            let file = format!("{}.ko", module.name);
            archive.file(&format!("modules/{file}"), 0o644, &module.object)?;
            order.push_str(&file);
            order.push('\n');
        }
        archive.file("modules/order", 0o644, order.as_bytes())?;
        archive.finish(4)?;
        Ok(())
    };
    write().at("write", to)
}

fn root_disk(root: &Path, work: &Path, to: &Path) -> Result<()> {
    let raw = work.join("root.ext4");
    run(Command::new(tool("mkfs.ext4", "e2fsprogs")?)
        .args(["-q", "-F", "-L", "lab-root", "-O", "quota,project"])
        .args([
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,nodiscard",
        ])
        .arg("-d")
        .args([root, &raw])
        .arg(ROOT_SIZE))?;
    run(Command::new(tool("qemu-img", "qemu-utils")?)
        .args(["convert", "-q", "-f", "raw", "-O", "qcow2"])
        .args([&raw, to]))?;
    Ok(())
}
