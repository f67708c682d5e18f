//! The partitioning of a Linux kernel into virtual private servers.
//!
//! The same code runs as part of PID 1 in a guest and as a service, or one
//! shot, on a bare host. It belongs in a **single-threaded** process: between
//! `clone3` and `execve` the child runs ordinary Rust.
//!
//! Waiting is the caller's: every [`Process`] is a direct child of the
//! calling process, whose one waiter reaps it (`waitid`), reads the status
//! with [`exit::from_wait`] and then tells the engine. Processes that the
//! engine forks for itself are reaped inside its own calls, except the
//! remover of [`Engine::destroy`], whose end the waiter may ignore.

mod bpf;
mod cgroup;
mod devices;
pub mod engine;
pub mod error;
pub(crate) mod exec;
pub mod exit;
mod files;
mod freezer;
mod handshake;
pub(crate) mod identity;
pub mod idmap;
mod init;
pub(crate) mod launch;
mod limits;
mod loop_device;
mod mounts;
pub mod place;
pub mod process;
mod raw;
mod root;
mod seccomp;
mod session;
mod start;
pub mod step;
pub mod template;
mod users;

pub(crate) use devices::bound as bound_devices;
pub use engine::{Engine, EngineConfig, Io, Running, Start, Vps};
pub use error::Error;
pub(crate) use freezer::Freezer;
pub use idmap::IdRange;
pub use place::{leave_initramfs, own_mounts};
pub use process::Process;
pub use step::Step;
pub use template::{Template, TemplateSource};

/// What programs in a VPS are told to be in (`container=`).
const CONTAINER: &str = "insula";
