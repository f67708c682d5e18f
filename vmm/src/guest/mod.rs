//! Guests as processes: run directories, launching, listing, stopping.
//!
//! A guest is one `insula-vmm` process and one directory, which holds all that
//! there is of it: `/run/insula/NAME/` for root, `$XDG_RUNTIME_DIR/insula/NAME/`
//! for others. There is no daemon; the directory's [`lock`](GuestDir::lock_path)
//! says whether the guest lives. The kernel drops the lock with the process,
//! however it ends, so what a killed guest left is recognised and removed by
//! whoever comes next.
//!
//! ```no_run
//! use vmm::guest::{GuestSpec, RunRoot};
//!
//! # fn main() -> Result<(), vmm::guest::GuestError> {
//! let root = RunRoot::for_user()?;
//! let reservation = root.reserve(&"main".parse().map_err(vmm::guest::GuestError::Name)?)?;
//! let spec = GuestSpec::new("/path/to/vmlinux".into(), "console=ttyS0 reboot=k panic=-1");
//! let guest = reservation.start(&spec, None)?;
//! guest.stop(std::time::Duration::from_secs(10))?;
//! # Ok(())
//! # }
//! ```

mod boot_segment;
mod child;
mod control;
mod error;
mod launch;
mod memory_use;
mod process;
mod profile;
mod ready_pipe;
mod restore;
mod rundir;
mod running;
mod size;
mod snapshot;
mod spawn;
mod spec;
mod starts_log;
mod status;
mod symbols;
mod usage;

pub use error::{Ended, GuestError, StartFailure};
pub use launch::Reservation;
pub use memory_use::{GuestMemoryUse, MemoryUse};
pub use restore::RestoreSpec;
pub use rundir::{GuestDir, RUN_ENV, RunRoot};
pub use running::Guest;
pub use size::{ParseSizeError, Size};
pub use snapshot::SnapshotOptions;
pub use spawn::{VMM_ENV, find_vmm};
pub use spec::{Drive, GuestSpec};
pub use starts_log::{STARTS_LOG_ENV, StartKind, StartRecord};
pub use status::{GuestRecord, GuestState, GuestStatus};
pub use symbols::{Symbols, SymbolsError};

#[cfg(test)]
mod tests;
