//! Templates: the read-only root file systems that VPSs and microVMs start from.

mod tree;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, Entry, Inputs, Kind};
use crate::erofs;
use crate::error::{Error, IoContext, Result};
use crate::packages;
use crate::programs::{self, Program};
use crate::progress::Progress;
use tree::Tree;

/// The image's file in a cache entry.
pub const IMAGE: &str = "root.erofs";

/// Raise it when the recipe below changes what comes out of it.
const RECIPE: &str = "1";

/// Where templates have the workload program.
pub const WORKLOAD_PATH: &str = "/usr/bin/insula-workload";

/// A template that this library can build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Template {
    /// Debian's static busybox with its init.
    Busybox,
    /// `Busybox` with the comparison's workload program at [`WORKLOAD_PATH`].
    Bench,
}

impl Template {
    /// Every template.
    pub const ALL: [Self; 2] = [Self::Busybox, Self::Bench];

    /// The template's name on the command line and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Bench => "bench",
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The files that are put beside busybox: path, permissions, content. What is
/// empty here is filled in when a VPS starts, or by its tenant.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/fstab", 0o644, ""),
    (
        "etc/group",
        0o644,
        include_str!("../../templates/busybox/group"),
    ),
    ("etc/hostname", 0o644, ""),
    (
        "etc/hosts",
        0o644,
        include_str!("../../templates/busybox/hosts"),
    ),
    (
        "etc/init.d/rcK",
        0o755,
        include_str!("../../templates/busybox/rcK"),
    ),
    (
        "etc/init.d/rcS",
        0o755,
        include_str!("../../templates/busybox/rcS"),
    ),
    (
        "etc/inittab",
        0o644,
        include_str!("../../templates/busybox/inittab"),
    ),
    ("etc/machine-id", 0o444, ""),
    (
        "etc/os-release",
        0o644,
        include_str!("../../templates/busybox/os-release"),
    ),
    (
        "etc/passwd",
        0o644,
        include_str!("../../templates/busybox/passwd"),
    ),
    (
        "etc/profile",
        0o644,
        include_str!("../../templates/busybox/profile"),
    ),
    ("etc/resolv.conf", 0o644, ""),
    (
        "etc/shadow",
        0o600,
        include_str!("../../templates/busybox/shadow"),
    ),
    ("etc/shells", 0o644, "/bin/sh\n"),
];

/// Directories: path and permissions.
const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/init.d", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/local/sbin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/spool/cron", 0o755),
    ("var/spool/cron/crontabs", 0o700),
    ("var/tmp", 0o1777),
    ("var/www", 0o755),
];

/// The template, built if it is not in the cache.
///
/// # Errors
/// When packages are missing and cannot be installed, or the image cannot be made.
pub fn ensure(cache: &Cache, template: Template, progress: &Progress) -> Result<Entry> {
    if cache.sealed()?.is_some() {
        return cache.ensure(
            Kind::Template,
            template.name(),
            &Inputs::new(),
            progress,
            |_| Ok(()),
        );
    }
    let busybox = busybox(progress)?;
    let mut inputs = Inputs::new()
        .text("recipe", RECIPE)
        .digest("busybox", cache.file_sha256(&busybox)?);
    for (path, mode, content) in FILES {
        inputs = inputs.text(format!("{path} {mode:o}"), content);
    }
    for (path, mode) in DIRECTORIES {
        inputs = inputs.text(format!("{path}/"), format!("{mode:o}"));
    }
    let workload = match template {
        Template::Busybox => None,
        Template::Bench => {
            let entry = programs::ensure(cache, Program::Workload, progress)?;
            inputs = inputs.text("workload", entry.manifest().hash.as_str());
            Some(entry.path(Program::Workload.binary()))
        }
    };
    cache.ensure(Kind::Template, template.name(), &inputs, progress, |out| {
        packages::ensure(packages::TEMPLATES, "building templates", progress)?;
        let task = progress.task(&format!("building template {template}"), None);
        let scratch = tempfile::tempdir_in(out).at("create a directory in", out)?;
        let tree = Tree::create(scratch.path())?;
        populate(&tree, &busybox, workload.as_deref())?;
        erofs::from_tree(scratch.path(), &out.join(IMAGE))?;
        scratch
            .close()
            .at("remove the files of the template in", out)?;
        task.done();
        Ok(())
    })
}

fn populate(tree: &Tree<'_>, busybox: &Path, workload: Option<&Path>) -> Result<()> {
    for (path, mode) in DIRECTORIES {
        tree.directory(path, *mode)?;
    }
    for (path, mode, content) in FILES {
        tree.file(path, *mode, content.as_bytes())?;
    }
    tree.symlink("var/run", "/run")?;
    tree.copy("bin/busybox", 0o755, busybox)?;
    for applet in tree::applets(busybox)? {
        tree.link_applet(&applet)?;
    }
    if let Some(workload) = workload {
        tree.copy(WORKLOAD_PATH.trim_start_matches('/'), 0o755, workload)?;
    }
    Ok(())
}

/// Debian's static busybox, installed if need be.
fn busybox(progress: &Progress) -> Result<PathBuf> {
    let path = Path::new("/bin/busybox");
    if !path.exists() {
        packages::ensure(packages::TEMPLATES, "building templates", progress)?;
    }
    let bytes = std::fs::read(path).at("read", path)?;
    if is_static(&bytes) {
        return Ok(path.to_path_buf());
    }
    Err(Error::MissingPackages {
        why: "building templates (the installed busybox is not the static one)".to_owned(),
        packages: vec!["busybox-static".to_owned()],
        command: "sudo apt-get install --no-install-recommends busybox-static".to_owned(),
    })
}

/// Whether a 64-bit ELF program needs no interpreter (no `PT_INTERP` header).
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?));
    let offset = || Some(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?));
    let check = || -> Option<bool> {
        if elf.get(..5)? != b"\x7fELF\x02" {
            return None;
        }
        let table = usize::try_from(offset()?).ok()?;
        let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
        let mut types = (0..count).map(|n| word(table.checked_add(n * size)?));
        Some(!types.any(|t| t == Some(PT_INTERP)))
    };
    check().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_has_its_directory_and_comes_after_it() {
        let mut made = BTreeSet::from([""]);
        for (path, _) in DIRECTORIES {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            assert!(made.contains(parent), "{path}");
            assert!(made.insert(path), "{path} is there twice");
        }
        for (path, _, _) in FILES {
            assert!(made.contains(path.rsplit_once('/').unwrap().0), "{path}");
        }
    }

    #[test]
    fn dynamic_programs_and_other_files_are_not_static() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&this));
        assert!(!is_static(b""));
        assert!(!is_static(b"\x7fELF\x02"));
        assert!(!is_static(&[0; 100]));
    }

    #[test]
    fn the_busybox_template_is_built_twice_alike() {
        let images = [(); 2].map(|()| {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::at(dir.path());
            let entry = ensure(&cache, Template::Busybox, &Progress::silent()).unwrap();
            assert_eq!(entry.manifest().files.len(), 1);
            assert_eq!(entry.manifest().files[0].path, IMAGE);
            std::fs::read(entry.path(IMAGE)).unwrap()
        });
        assert!(images[0] == images[1]);
    }
}
