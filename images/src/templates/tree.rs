//! Writing the files of a template.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::{IoContext, Result};

/// A directory that becomes the root of a template. Paths are relative to it.
pub(super) struct Tree<'a> {
    root: &'a Path,
}

impl<'a> Tree<'a> {
    /// The tree in the empty directory `root`.
    pub(super) fn create(root: &'a Path) -> Result<Self> {
        chmod(root, 0o755)?;
        Ok(Self { root })
    }

    /// Creates a directory.
    pub(super) fn directory(&self, path: &str, mode: u32) -> Result<()> {
        let path = self.root.join(path);
        fs::create_dir(&path).at("create the directory", &path)?;
        chmod(&path, mode)
    }

    /// Writes a file.
    pub(super) fn file(&self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = self.root.join(path);
        fs::write(&path, content).at("write", &path)?;
        chmod(&path, mode)
    }

    /// Copies a file from outside.
    pub(super) fn copy(&self, path: &str, mode: u32, from: &Path) -> Result<()> {
        let path = self.root.join(path);
        fs::copy(from, &path).at("copy to", &path)?;
        chmod(&path, mode)
    }

    /// Creates a symbolic link.
    pub(super) fn symlink(&self, path: &str, target: &str) -> Result<()> {
        let path = self.root.join(path);
        symlink(target, &path).at("create the link", &path)
    }

    /// Links one of busybox's applets (as `sbin/init`) to it, by a relative link:
    /// it means the same wherever the tree is mounted.
    pub(super) fn link_applet(&self, applet: &str) -> Result<()> {
        if self.root.join(applet).exists() {
            return Ok(());
        }
        let up = "../".repeat(applet.matches('/').count());
        self.symlink(applet, &format!("{up}bin/busybox"))
    }
}

/// The applets of this busybox, as relative paths. Only those in the usual four
/// directories: a program must not choose where in the tree it writes.
pub(super) fn applets(busybox: &Path) -> Result<Vec<String>> {
    let list = command::run(Command::new(busybox).arg("--list-full"))?;
    Ok(wanted_applets(&list))
}

fn wanted_applets(list: &str) -> Vec<String> {
    let is_wanted = |path: &&str| {
        let Some((dir, name)) = path.rsplit_once('/') else {
            return false;
        };
        let usual = matches!(dir, "bin" | "sbin" | "usr/bin" | "usr/sbin");
        usual && !name.is_empty() && name != "busybox"
    };
    list.lines()
        .map(str::trim)
        .filter(is_wanted)
        .map(str::to_owned)
        .collect()
}

fn chmod(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode)).at("set the permissions of", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applets_stay_in_their_directories() {
        let list = "usr/bin/[\nsbin/init\nbin/busybox\nlinuxrc\n../etc/x\n/bin/x\nbin/\n";
        assert_eq!(wanted_applets(list), ["usr/bin/[", "sbin/init"]);
    }

    #[test]
    fn links_lead_to_busybox_from_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::create(dir.path()).unwrap();
        for path in ["bin", "usr", "usr/bin"] {
            tree.directory(path, 0o755).unwrap();
        }
        tree.file("bin/busybox", 0o755, b"x").unwrap();
        for applet in ["bin/ls", "usr/bin/env"] {
            tree.link_applet(applet).unwrap();
            assert_eq!(fs::read(dir.path().join(applet)).unwrap(), b"x");
        }
    }
}
