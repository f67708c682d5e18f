//! What KVM counts of a virtual processor: its binary statistics
//! (`Documentation/virt/kvm/api.rst`, `KVM_GET_STATS_FD`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use super::Vcpu;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// What has happened on virtual processors since they were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorCounts {
    /// Times that guest mode was left, to KVM or to this process.
    pub exits: u64,
    /// Instructions that KVM has emulated: few where the processor runs the
    /// guest's kernel, all of the kernel's on a PVM host.
    pub emulated_instructions: u64,
}

impl ProcessorCounts {
    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            exits: self.exits.wrapping_add(other.exits),
            emulated_instructions: self
                .emulated_instructions
                .wrapping_add(other.emulated_instructions),
        }
    }
}

/// Reads what KVM counts of one processor, from whatever thread.
#[derive(Debug)]
pub struct Statistics {
    file: File,
}

/// Where the counts are.
#[derive(Debug)]
struct Places {
    exits: Option<u64>,
    emulated_instructions: Option<u64>,
}

/// Sizes of the header and of a descriptor without its name, in bytes.
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;
/// More than any KVM has, for descriptors and for the lengths of their names.
const MAX_DESCRIPTORS: u32 = 4096;
const MAX_NAME: u32 = 4096;

impl Statistics {
    /// # Errors
    /// What the system says.
    pub fn open(vcpu: &Vcpu) -> io::Result<Self> {
        // SAFETY: the descriptor is a live virtual processor's, and the request
        // takes no argument.
        let fd = unsafe { ioctl(&vcpu.fd, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        debug_assert!(file.as_raw_fd() > 2, "a descriptor of our own");
        Ok(Self { file })
    }

    /// Looks where the counts are: only when somebody asks, as every guest
    /// waits for its start.
    fn places(&self) -> io::Result<Places> {
        let file = &self.file;
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let field = |index: usize| word(&header, index * 4);
        let (name_size, count, descriptors, data) = (field(1), field(2), field(4), field(5));
        if count > MAX_DESCRIPTORS || name_size > MAX_NAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let size = DESCRIPTOR + name_size as usize;
        let mut table = vec![0; size * count as usize];
        file.read_exact_at(&mut table, u64::from(descriptors))?;
        let place = |name: &str| {
            table
                .chunks_exact(size)
                .find(|descriptor| is_named(&descriptor[DESCRIPTOR..], name))
                .map(|descriptor| u64::from(data) + u64::from(word(descriptor, 8)))
        };
        Ok(Places {
            exits: place("exits"),
            emulated_instructions: place("insn_emulation"),
        })
    }

    /// The counts now. What this KVM does not count is 0.
    pub fn read(&self) -> ProcessorCounts {
        let at = |place: Option<u64>| {
            let mut value = [0; 8];
            place
                .and_then(|place| self.file.read_exact_at(&mut value, place).ok())
                .map_or(0, |()| u64::from_ne_bytes(value))
        };
        self.places().map_or_else(
            |_| ProcessorCounts::default(),
            |places| ProcessorCounts {
                exits: at(places.exits),
                emulated_instructions: at(places.emulated_instructions),
            },
        )
    }
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    bytes
        .get(offset..offset + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// Whether a field that is padded with zeros holds this name.
fn is_named(field: &[u8], name: &str) -> bool {
    field
        .strip_prefix(name.as_bytes())
        .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole() {
        assert!(is_named(b"exits\0\0", "exits"));
        assert!(is_named(b"exits", "exits"));
        assert!(!is_named(b"exits_now\0", "exits"));
        assert!(!is_named(b"exit\0", "exits"));
    }

    #[test]
    fn a_new_processor_has_done_nothing() {
        let Ok(kvm) = crate::kvm::open() else {
            return; // no KVM here to ask
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = Vcpu::new(&vm, 0).unwrap();
        let statistics = Statistics::open(&vcpu).unwrap();
        assert!(statistics.places().unwrap().exits.is_some());
        assert_eq!(statistics.read(), ProcessorCounts::default());
    }
}
