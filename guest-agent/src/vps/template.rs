//! Templates: read-only root file systems, mounted once and shared by all
//! VPSs that start from them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::{Error, mounts};

/// Where a template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    /// A block device, or a file, with an EROFS image.
    Erofs(PathBuf),
    /// A directory of a file system that can be ID-mapped.
    Directory(PathBuf),
}

/// A template, ready to start VPSs from.
#[derive(Debug)]
pub struct Template {
    tree: Tree,
}

#[derive(Debug)]
enum Tree {
    /// A directory of an attached mount, of which every VPS gets a copy.
    Shared(OwnedFd),
    /// A mount for one VPS only.
    Once(OwnedFd),
}

impl Template {
    /// Mounts a template read-only at `mount_point` (which is made), where it
    /// stays, for any number of VPSs. The caller's mount namespace should be
    /// its own: see [`super::own_mounts`].
    ///
    /// # Errors
    /// It does not exist, or is not what it is said to be.
    pub fn open(source: &TemplateSource, mount_point: &Path) -> Result<Self, Error> {
        let directory = match source {
            TemplateSource::Directory(path) => path.as_path(),
            TemplateSource::Erofs(image) => {
                std::fs::create_dir_all(mount_point).map_err(Error::io(
                    "make mount point",
                    mount_point.display().to_string(),
                ))?;
                let mount = mount_erofs(image)?;
                let on = open_directory(mount_point)?;
                mounts::attach(&mount, &on)
                    .map_err(Error::system("mount on", mount_point.display().to_string()))?;
                mount_point
            }
        };
        Ok(Self {
            tree: Tree::Shared(open_directory(directory)?),
        })
    }

    /// Mounts a template for the one and only start of one VPS: nothing is
    /// left behind, whatever happens.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_once(source: &TemplateSource) -> Result<Self, Error> {
        let tree = match source {
            TemplateSource::Directory(path) => Tree::Shared(open_directory(path)?),
            TemplateSource::Erofs(image) => Tree::Once(mount_erofs(image)?),
        };
        Ok(Self { tree })
    }

    /// A mount of it that can be ID-mapped for one VPS.
    pub(crate) fn copy(&self) -> Result<OwnedFd, Error> {
        match &self.tree {
            Tree::Shared(directory) => {
                copy_tree(directory).map_err(Error::system("copy mount of", "template"))
            }
            Tree::Once(mount) => mount
                .try_clone()
                .map_err(Error::io("duplicate", "template")),
        }
    }
}

/// A detached copy of the mount that `directory` is in, rooted there.
pub(crate) fn copy_tree(directory: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, "", flags)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(Error::system("open directory", path.display().to_string()))
}

/// Mounts an EROFS image; the mount is attached nowhere.
fn mount_erofs(image: &Path) -> Result<OwnedFd, Error> {
    let name = image.display().to_string();
    let mounted = match try_erofs(image) {
        // A kernel before 6.12, one without EROFS_FS_BACKED_BY_FILE, or a file
        // in memory.
        Err(Errno::NOTBLK) => {
            let device = super::loop_device::attach(image)
                .map_err(Error::system("attach a loop device to", &*name))?;
            try_erofs(Path::new(&format!("/dev/loop{}", device.number)))
        }
        result => result,
    };
    mounted.map_err(|errno| match errno {
        Errno::INVAL => Error::Invalid(format!(
            "{name} is not an EROFS image, or is damaged ({errno}): build it again"
        )),
        Errno::NODEV => Error::Invalid(format!(
            "this kernel has no EROFS ({errno}): modprobe erofs, before mounting {name}"
        )),
        errno => Error::system("mount EROFS image", name)(errno),
    })
}

fn try_erofs(source: &Path) -> Result<OwnedFd, Errno> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}
