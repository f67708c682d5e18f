//! What can go wrong while images are built, cached or found.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this library. Every message says what was tried and with what;
/// where there is a cure, it says that too.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file system operation failed.
    #[error("cannot {action} {}: {source}{}", path.display(), io_hint(source))]
    Io {
        /// What was tried, as a verb ("read", "create the directory").
        action: &'static str,
        /// The file or directory it was tried on.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },

    /// No directory is known in which the cache could be.
    #[error(
        "no place for the image cache: none of INSULA_CACHE, XDG_CACHE_HOME and HOME is set; \
         set INSULA_CACHE to a directory"
    )]
    NoCacheDirectory,

    /// A persisted file is not what this version writes.
    #[error("{} is not a valid {what}: {reason}; {cure}", path.display())]
    BadFile {
        /// The kind of file that was expected.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        cure: &'static str,
    },

    /// An image's file is missing or is not what was built.
    #[error("{kind} '{name}' in the cache is damaged: {problem}; {cure}")]
    Damaged {
        /// The kind of image.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What is wrong with which file.
        problem: String,
        /// What to do.
        cure: &'static str,
    },

    /// The cache is sealed (as in the lab) and does not have the image.
    #[error(
        "the image cache at {} is sealed and has no {kind} '{name}' (it has: {available}); \
         build it outside the lab with 'insula image build', then stop and start the lab", cache.display()
    )]
    NotInSealedCache {
        /// The cache's directory.
        cache: PathBuf,
        /// The kind of image that was asked for.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the cache has.
        available: String,
    },

    /// No image has this name.
    #[error("no image is called '{name}'; there are: {available}")]
    UnknownImage {
        /// The name that was asked for.
        name: String,
        /// All known names.
        available: String,
    },

    /// Packages are missing and cannot be installed from here.
    #[error("{why} needs the packages {}, which are not installed; run: {command}", packages.join(" "))]
    MissingPackages {
        /// What they are needed for.
        why: String,
        /// The missing packages.
        packages: Vec<String>,
        /// The command that installs them.
        command: String,
    },

    /// Packages are missing, and `apt-get` did not install them.
    #[error(
        "{why} needs the packages {}, and installing them failed; see to it that this machine \
         reaches its package archive, or install them by hand: {command}\n{source}",
        packages.join(" ")
    )]
    Install {
        /// What they are needed for.
        why: String,
        /// The missing packages.
        packages: Vec<String>,
        /// The command that installs them.
        command: String,
        /// What `apt-get` said.
        source: Box<Error>,
    },

    /// A program could not be started.
    #[error("cannot run '{program}': {source}{hint}")]
    Spawn {
        /// The program.
        program: String,
        /// The system's answer.
        source: io::Error,
        /// What to do, starting with a separator, or nothing.
        hint: String,
    },

    /// A program ended with an error.
    #[error("'{command}' failed ({status}){}{}", if output.is_empty() { "" } else { ":\n" }, output)]
    Command {
        /// The command line, shortened.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines that it printed.
        output: String,
    },

    /// Options that the guest needs are not in the configured kernel.
    #[error(
        "the configuration of kernel '{flavour}' lost options that guests need: {}; \
         something that they depend on is off in this kernel version", options.join(", ")
    )]
    KernelOptions {
        /// The kernel's flavour.
        flavour: &'static str,
        /// `OPTION=wanted (has: value)` for each.
        options: Vec<String>,
    },

    /// The checkout that the agent and workloads are built from is not there.
    #[error(
        "cannot find insula's source tree at {} to build {what}; \
         set INSULA_SOURCE to a checkout", path.display()
    )]
    NoSource {
        /// What was to be built.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },

    /// A value is out of its range.
    #[error("{what}: {reason}")]
    Invalid {
        /// What the value is.
        what: &'static str,
        /// Why it is refused.
        reason: String,
    },
}

/// What this library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A sentence for the two file errors that users can cure at once.
fn io_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free space there ('insula image prune' removes old images), \
             or set INSULA_CACHE to a directory on another disk"
        }
        io::ErrorKind::PermissionDenied => {
            "; run as its owner, or set INSULA_CACHE to a directory of your own"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; set INSULA_CACHE to a writable directory",
        _ => "",
    }
}

/// Names action and path of a failed file system operation.
pub trait IoContext<T> {
    /// Turns an I/O error into [`Error::Io`].
    ///
    /// # Errors
    /// The error of `self`, with `action` and `path`.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            action,
            path: path.to_path_buf(),
            source: source.into(),
        })
    }
}

impl Error {
    pub(crate) fn from_errno(action: &'static str, path: &Path, errno: rustix::io::Errno) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            source: errno.into(),
        }
    }
}
