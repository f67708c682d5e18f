//! Templates: read-only root file systems, mounted once and shared by all
//! VPSs that start from them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::Error;

/// Where a template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    /// A block device, or a file, with an EROFS image.
    Erofs(PathBuf),
    /// A directory of a file system that can be ID-mapped.
    Directory(PathBuf),
}

/// A template, mounted. The mount has no path, and lives as long as this.
#[derive(Debug)]
pub struct Template {
    pub(crate) tree: OwnedFd,
}

impl Template {
    /// Mounts a template read-only.
    ///
    /// # Errors
    /// It does not exist, or is not what it is said to be.
    pub fn open(source: &TemplateSource) -> Result<Self, Error> {
        Err(Error::Invalid(format!("{source:?}: not yet")))
    }
}
