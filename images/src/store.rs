//! Images by name: what the command line asks for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::cache::{Cache, Entry, InputHash, Kind, Pruned};
use crate::error::{Error, Result};
use crate::kernel::{self, Flavour};
use crate::programs::{self, Program};
use crate::progress::Progress;
use crate::templates::{self, Template};
use crate::{initramfs, lab, packages};

/// An image that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    /// A guest kernel.
    Kernel(Flavour),
    /// The agent's binary, also for the bare host.
    Agent,
    /// The initramfs with the agent.
    Initramfs,
    /// A template.
    Template(Template),
    /// The workload program, also for the bare host.
    Workload,
    /// The lab's emulated host.
    LabHost,
}

impl Request {
    /// What a plain `insula image build` makes: all that guests and the comparison
    /// need. The yardstick is left to those who measure, and the lab and the kernels for
    /// PVM hosts to machines that need them.
    pub const DEFAULT: [Self; 6] = [
        Self::Kernel(Flavour::Hardware),
        Self::Agent,
        Self::Initramfs,
        Self::Workload,
        Self::Template(Template::Busybox),
        Self::Template(Template::Bench),
    ];

    /// What a machine without hardware virtualization needs: the lab's host as well.
    pub const IN_LAB: [Self; 7] = {
        let [kernel, agent, initramfs, workload, busybox, bench] = Self::DEFAULT;
        [
            kernel,
            agent,
            initramfs,
            workload,
            busybox,
            bench,
            Self::LabHost,
        ]
    };

    /// Everything that can be asked for.
    pub const ALL: [Self; 10] = [
        Self::Kernel(Flavour::Hardware),
        Self::Kernel(Flavour::Pvm),
        Self::Kernel(Flavour::PvmUp),
        Self::Kernel(Flavour::Yardstick),
        Self::Agent,
        Self::Initramfs,
        Self::Workload,
        Self::Template(Template::Busybox),
        Self::Template(Template::Bench),
        Self::LabHost,
    ];

    /// What the image is.
    pub fn kind(self) -> Kind {
        match self {
            Self::Kernel(_) => Kind::Kernel,
            Self::Agent => Kind::Agent,
            Self::Initramfs => Kind::Initramfs,
            Self::Template(_) => Kind::Template,
            Self::Workload => Kind::Workload,
            Self::LabHost => Kind::LabHost,
        }
    }

    fn is_kernel(self) -> bool {
        matches!(self, Self::Kernel(_))
    }

    /// The file that the image is about, within its entry.
    fn main_file(self) -> &'static str {
        match self {
            Self::Kernel(_) => kernel::VMLINUX,
            Self::Agent => Program::Agent.binary(),
            Self::Initramfs => initramfs::ARCHIVE,
            Self::Template(_) => templates::IMAGE,
            Self::Workload => Program::Workload.binary(),
            Self::LabHost => lab::host::ROOT,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(flavour) => write!(f, "kernel/{flavour}"),
            Self::Template(template) => write!(f, "template/{template}"),
            Self::Agent | Self::Initramfs | Self::Workload | Self::LabHost => {
                f.write_str(self.kind().dir_name())
            }
        }
    }
}

/// Reads what [`Display`](fmt::Display) writes; the part after the slash will do
/// (`busybox`), `kernel` means the flavour to run guests on, and `lab` its host.
impl FromStr for Request {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "kernel" => return Ok(Self::Kernel(Flavour::Hardware)),
            "lab" => return Ok(Self::LabHost),
            _ => {}
        }
        let is_named = |request: &Self| {
            let name = request.to_string();
            name == text || name.split_once('/').is_some_and(|(_, short)| short == text)
        };
        Self::ALL
            .into_iter()
            .find(is_named)
            .ok_or_else(|| Error::UnknownImage {
                name: text.to_owned(),
                available: Self::ALL.map(|request| request.to_string()).join(", "),
            })
    }
}

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its main file: vmlinux, the binary, the archive, the file system image.
    pub path: PathBuf,
    /// The hash of its inputs.
    pub hash: InputHash,
    /// Everything about it.
    pub entry: Entry,
}

impl Image {
    /// Another file of the image, as a kernel's [`kernel::SYSTEM_MAP`].
    pub fn file(&self, name: &str) -> PathBuf {
        self.entry.path(name)
    }
}

/// Finds images by name, and builds them where they may be built.
#[derive(Debug, Clone)]
pub struct Store {
    cache: Cache,
}

impl Store {
    /// The images in the user's cache.
    ///
    /// # Errors
    /// [`Error::NoCacheDirectory`] when it is not known where that is.
    pub fn user() -> Result<Self> {
        Ok(Self::new(Cache::user()?))
    }

    /// The images in this cache.
    pub fn new(cache: Cache) -> Self {
        Self { cache }
    }

    /// The cache, for listing, verifying and pruning.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Removes what is not needed any more: interrupted builds, damaged images, of
    /// each image and snapshot of the lab all but the one used last, and kernel
    /// sources of which the package is gone. With `everything`, all that is in the
    /// cache. What is being built, and a lab that runs, stay, and are named.
    ///
    /// # Errors
    /// When something cannot be listed or removed, and in a sealed cache.
    pub fn prune(&self, everything: bool) -> Result<Pruned> {
        let mut pruned = self.cache.prune(everything)?;
        kernel::prune(&self.cache, everything, &mut pruned)?;
        lab::prune(&self.cache, everything, &mut pruned)?;
        if everything {
            self.cache.prune_frame(&mut pruned)?;
        }
        Ok(pruned)
    }

    /// The image, built if it is not there, and checked by its hash.
    ///
    /// # Errors
    /// When it cannot be built, is damaged, or a sealed cache does not have it.
    pub fn ensure(&self, request: Request, progress: &Progress) -> Result<Image> {
        let entry = match request {
            Request::Kernel(flavour) => kernel::ensure(&self.cache, flavour, progress)?,
            Request::Agent => programs::ensure(&self.cache, Program::Agent, progress)?,
            Request::Workload => programs::ensure(&self.cache, Program::Workload, progress)?,
            Request::Initramfs => initramfs::ensure(&self.cache, progress)?,
            Request::Template(template) => templates::ensure(&self.cache, template, progress)?,
            Request::LabHost => lab::host::ensure(&self.cache, progress)?,
        };
        let path = entry.path(request.main_file());
        Ok(Image {
            path,
            hash: entry.manifest().hash.clone(),
            entry,
        })
    }

    /// All of these images, after their packages have been installed in one go.
    ///
    /// Kernels are built one after the other, and what else there is beside them: much
    /// of it while a kernel's source is unpacked, which keeps one processor busy.
    ///
    /// # Errors
    /// As [`Store::ensure`], for the first in the order of `requests` that fails. What
    /// is being built beside it is built to its end, so that the next try has it.
    pub fn ensure_all(&self, requests: &[Request], progress: &Progress) -> Result<Vec<Image>> {
        if self.cache.sealed()?.is_none() {
            install_packages(requests, progress)?;
        }
        let has_kernel = requests.iter().any(|request| request.is_kernel());
        in_two_lanes(requests, |request| {
            let image = self.ensure(request, progress);
            if let (Err(error), true, false) = (&image, has_kernel, request.is_kernel()) {
                // The kernel may take minutes more before the caller can say it.
                progress.say(&format!("{request} cannot be built: {error}"));
            }
            image
        })
    }

    /// The root file system image that `template` means: the name of a template, or
    /// the path (with a slash in it) of an image of one's own.
    ///
    /// # Errors
    /// When there is no such template or file.
    pub fn template(&self, template: &str, progress: &Progress) -> Result<PathBuf> {
        if template.contains('/') {
            let path = Path::new(template);
            return match std::fs::metadata(path) {
                Ok(meta) if meta.is_file() => Ok(path.to_path_buf()),
                Ok(_) => Err(Error::BadFile {
                    what: "template",
                    path: path.to_path_buf(),
                    reason: "it is not a regular file".to_owned(),
                    cure: "give the path of an EROFS image, or the name of a template",
                }),
                Err(source) => Err(Error::Io {
                    action: "open the template",
                    path: path.to_path_buf(),
                    source,
                }),
            };
        }
        let known = Template::ALL.into_iter().find(|t| t.name() == template);
        let known = known.ok_or_else(|| Error::UnknownImage {
            name: template.to_owned(),
            available: Template::ALL.map(Template::name).join(", "),
        })?;
        Ok(self.ensure(Request::Template(known), progress)?.path)
    }
}

/// Installs what building these images needs.
fn install_packages(requests: &[Request], progress: &Progress) -> Result<()> {
    let mut needed: Vec<&str> = Vec::new();
    for request in requests {
        needed.extend(match request {
            Request::Kernel(_) => packages::KERNEL_BUILD,
            Request::Template(_) => packages::TEMPLATES,
            Request::LabHost => lab::host::PACKAGES,
            Request::Agent | Request::Initramfs | Request::Workload => packages::STATIC_PROGRAMS,
        });
    }
    needed.sort_unstable();
    needed.dedup();
    packages::ensure(&needed, "building images", progress)
}

/// Calls `build` for each request: for kernels one after the other, and beside them
/// for the others, each lane up to its first failure.
fn in_two_lanes<T: Send>(
    requests: &[Request],
    build: impl Fn(Request) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let lane = |kernels: bool| {
        let mut built = Vec::new();
        for &request in requests.iter().filter(|r| r.is_kernel() == kernels) {
            built.push(build(request));
            if built.last().is_some_and(Result::is_err) {
                break;
            }
        }
        built.into_iter()
    };
    let (mut kernels, mut others) = std::thread::scope(|scope| {
        let others = scope.spawn(|| lane(false));
        let kernels = lane(true);
        let others = others.join();
        let others = others.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (kernels, others)
    });
    // A lane that stopped ends with its error, which is where this stops as well.
    let in_order = requests.iter().map_while(|request| {
        if request.is_kernel() {
            kernels.next()
        } else {
            others.next()
        }
    });
    in_order.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Inputs;
    use crate::error::IoContext;

    #[test]
    fn names_are_read_as_they_are_written_and_shortened() {
        for request in Request::ALL {
            assert_eq!(request.to_string().parse::<Request>().unwrap(), request);
        }
        assert_eq!(
            "kernel".parse::<Request>().unwrap(),
            Request::Kernel(Flavour::Hardware)
        );
        assert_eq!("lab".parse::<Request>().unwrap(), Request::LabHost);
        assert_eq!(
            "busybox".parse::<Request>().unwrap(),
            Request::Template(Template::Busybox)
        );
        let message = "debian".parse::<Request>().unwrap_err().to_string();
        assert!(
            message.contains("debian") && message.contains("template/busybox"),
            "{message}"
        );
    }

    #[test]
    fn images_come_in_the_order_of_their_requests() {
        let built = in_two_lanes(&Request::IN_LAB, |request| Ok(request.to_string()));
        assert_eq!(built.unwrap(), Request::IN_LAB.map(|r| r.to_string()));
    }

    #[test]
    fn a_failure_ends_its_lane_only_and_is_told() {
        let tried = std::sync::Mutex::new(Vec::new());
        let failed = in_two_lanes(&Request::IN_LAB, |request| {
            tried.lock().unwrap().push(request);
            match request {
                Request::Initramfs => Err(Error::UnknownImage {
                    name: "x".to_owned(),
                    available: String::new(),
                }),
                _ => Ok(()),
            }
        });
        assert!(matches!(failed, Err(Error::UnknownImage { .. })));
        let tried = tried.into_inner().unwrap();
        assert_eq!(tried.len(), 3, "{tried:?}");
        assert!(tried.contains(&Request::Kernel(Flavour::Hardware)));
        assert!(!tried.contains(&Request::LabHost));
    }

    #[test]
    fn pruning_everything_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let build = |out: &Path| std::fs::write(out.join("x"), "x").at("write", out);
        let progress = Progress::silent();
        let inputs = Inputs::new();
        cache
            .ensure(Kind::Agent, "a", &inputs, &progress, build)
            .unwrap();
        for work in ["kernel-hardware-1", "source/linux-1", "cargo-target"] {
            cache.work_dir(work).unwrap();
        }
        for left in ["lab/running/1", "lab/snapshots/1", "lab/snapshots/.tmp-2-x"] {
            std::fs::create_dir_all(cache.root().join(left)).unwrap();
        }
        let store = Store::new(cache.clone());
        let building = cache.lock("agent-9", || {}).unwrap();
        let kept = store.prune(true).unwrap().kept;
        assert!(kept[0].0.ends_with("work"), "{kept:?}");
        assert!(cache.root().join("work/cargo-target").exists());
        drop(building);
        assert!(store.prune(true).unwrap().kept.is_empty());
        assert!(!cache.root().exists());
    }

    #[test]
    fn a_template_may_be_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Cache::at(dir.path().join("cache")));
        let image = dir.path().join("own.erofs");
        std::fs::write(&image, "x").unwrap();
        let progress = Progress::silent();
        let text = image.to_str().unwrap();
        assert_eq!(store.template(text, &progress).unwrap(), image);
        for bad in [dir.path().to_str().unwrap(), "/no/such/template", "nosuch"] {
            let message = store.template(bad, &progress).unwrap_err().to_string();
            assert!(message.contains(bad), "{message}");
        }
    }
}
