//! The images that a guest needs, built when they are not there.

use std::path::{Path, PathBuf};

use images::kernel::Flavour;
use images::templates::Template;
use images::{Request, Store, disks};
use vmm::guest::Size;

use crate::failure::Failure;
use crate::output::Output;

/// The user's images.
#[derive(Debug)]
pub(crate) struct Assets<'a> {
    store: Store,
    output: &'a Output,
}

impl<'a> Assets<'a> {
    /// The images in the user's cache.
    pub(crate) fn open(output: &'a Output) -> Result<Self, Failure> {
        Ok(Self {
            store: Store::user()?,
            output,
        })
    }

    /// The file of a kernel.
    pub(crate) fn kernel(&self, flavour: Flavour) -> Result<PathBuf, Failure> {
        self.file(Request::Kernel(flavour))
    }

    /// The file of the initramfs with the agent.
    pub(crate) fn initramfs(&self) -> Result<PathBuf, Failure> {
        self.file(Request::Initramfs)
    }

    /// The agent's file.
    pub(crate) fn agent(&self) -> Result<PathBuf, Failure> {
        self.file(Request::Agent)
    }

    /// A template's file.
    pub(crate) fn template(&self, name: &str) -> Result<PathBuf, Failure> {
        self.file(Request::Template(template(name)?))
    }

    fn file(&self, request: Request) -> Result<PathBuf, Failure> {
        Ok(self.store.ensure(request, &self.output.progress())?.path)
    }
}

/// The template of that name.
pub(crate) fn template(name: &str) -> Result<Template, Failure> {
    Template::ALL
        .into_iter()
        .find(|template| template.name() == name)
        .ok_or_else(|| {
            let known = Template::ALL.map(Template::name);
            Failure::new(format!(
                "there is no template {name}; there are: {}",
                known.join(", ")
            ))
        })
}

/// Makes an empty data disk.
pub(crate) fn make_data_disk(path: &Path, size: Size) -> Result<(), Failure> {
    Ok(disks::create_ext4(path, size.bytes(), "insula-data")?)
}
