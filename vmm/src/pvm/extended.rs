//! Carries out XSAVE, XRSTOR and XGETBV on a processor.

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::exception::{Done, Exception, fault};
use super::instruction::StateArea;
use super::paging::{Access, PageTables};
use super::xsave::{self, ALIGNMENT, AREA, LEGACY_AND_HEADER, Layout};
use crate::memory::GuestMemory;

const CR0_TASK_SWITCHED: u64 = 1 << 3;
const CR4_OSXSAVE: u64 = 1 << 18;

const NO_STATE: &str = "KVM does not hand out the extended state";
const NO_MEMORY: &str = "its area is not in memory";

/// What these instructions work on.
pub(super) struct ExtendedState<'a> {
    /// Guest memory.
    pub(super) memory: &'a GuestMemory,
    /// Where the components lie in an area.
    pub(super) layout: &'a Layout,
    /// The processor.
    pub(super) vcpu: &'a VcpuFd,
    /// Its system registers.
    pub(super) sregs: &'a kvm_sregs,
}

impl ExtendedState<'_> {
    /// XSAVE.
    pub(super) fn save(&self, area: StateArea, regs: &kvm_regs) -> Done {
        if let Some(exception) = self.unavailable().or_else(|| misaligned(area)) {
            return Done::Faulted(exception);
        }
        let (Some(enabled), Some(mut now)) = (self.enabled(), read(self.vcpu)) else {
            return Done::Not(NO_STATE);
        };
        let features = enabled & asked_for(regs);
        let length = self.layout.size(features);
        // All of it, before anything is written.
        let place = match self.place(area, length, regs, Access::Write) {
            Ok(place) => place,
            Err(done) => return done,
        };
        let mut was = [0; AREA];
        if place
            .read(self.memory, &mut was[..LEGACY_AND_HEADER])
            .is_none()
        {
            return Done::Not(NO_MEMORY);
        }
        let written = self
            .layout
            .save(&mut now, features, xsave::state(&was), area.is_wide);
        for range in written {
            if place.write(self.memory, range.start, &now[range]).is_none() {
                return Done::Not(NO_MEMORY);
            }
        }
        Done::Completed(None)
    }

    /// XRSTOR.
    pub(super) fn restore(&self, area: StateArea, regs: &kvm_regs) -> Done {
        if let Some(exception) = self.unavailable().or_else(|| misaligned(area)) {
            return Done::Faulted(exception);
        }
        let (Some(enabled), Some(mut now)) = (self.enabled(), read(self.vcpu)) else {
            return Done::Not(NO_STATE);
        };
        let features = enabled & asked_for(regs);
        // First the header: it says how much more there is.
        let mut stored = [0; AREA];
        let mut length = LEGACY_AND_HEADER;
        for _ in 0..2 {
            let place = match self.place(area, length, regs, Access::Read) {
                Ok(place) => place,
                Err(done) => return done,
            };
            if place.read(self.memory, &mut stored[..length]).is_none() {
                return Done::Not(NO_MEMORY);
            }
            length = self.layout.size(features & xsave::state(&stored));
        }
        let restored = self
            .layout
            .restore(&mut stored, features, enabled, area.is_wide, &mut now);
        if restored.is_err() {
            return Done::Faulted(Exception::PROTECTION);
        }
        match write(self.vcpu, &now) {
            Some(()) => Done::Completed(None),
            None => Done::Not("KVM does not take the extended state"),
        }
    }

    /// XGETBV: XCR0, or those of its components that are in use.
    pub(super) fn read_features(&self, regs: &mut kvm_regs) -> Done {
        if self.sregs.cr4 & CR4_OSXSAVE == 0 {
            return Done::Faulted(Exception::UNDEFINED);
        }
        let Some(enabled) = self.enabled() else {
            return Done::Not(NO_STATE);
        };
        let value = match regs.rcx as u32 {
            0 => enabled,
            1 => match read(self.vcpu) {
                Some(now) => enabled & xsave::state(&now),
                None => return Done::Not(NO_STATE),
            },
            _ => return Done::Faulted(Exception::PROTECTION),
        };
        (regs.rax, regs.rdx) = (value & 0xffff_ffff, value >> 32);
        Done::Completed(None)
    }

    /// Why they cannot be used now.
    fn unavailable(&self) -> Option<Exception> {
        if self.sregs.cr4 & CR4_OSXSAVE == 0 {
            Some(Exception::UNDEFINED)
        } else if self.sregs.cr0 & CR0_TASK_SWITCHED != 0 {
            Some(Exception::NO_DEVICE)
        } else {
            None
        }
    }

    /// XCR0.
    fn enabled(&self) -> Option<u64> {
        let registers = self.vcpu.get_xcrs().ok()?;
        let count = usize::try_from(registers.nr_xcrs).ok()?;
        let mut known = registers.xcrs.iter().take(count);
        known.find(|entry| entry.xcr == 0).map(|entry| entry.value)
    }

    fn place(
        &self,
        area: StateArea,
        length: usize,
        regs: &kvm_regs,
        access: Access,
    ) -> Result<Place, Done> {
        PageTables::new(self.memory, self.sregs, regs.rflags)
            .span(area.address, length, access)
            .map(Place)
            .map_err(|(error, address)| fault(error, address))
    }
}

/// Guest-physical pieces that are one in the guest's address space.
struct Place(Vec<(GuestAddress, usize)>);

impl Place {
    fn read(&self, memory: &GuestMemory, bytes: &mut [u8]) -> Option<()> {
        let mut rest = bytes;
        for &(address, length) in &self.0 {
            let (part, behind) = rest.split_at_mut(length.min(rest.len()));
            memory.read_slice(part, address).ok()?;
            rest = behind;
        }
        rest.is_empty().then_some(())
    }

    /// Writes `bytes`, which begin at `offset`.
    fn write(&self, memory: &GuestMemory, offset: usize, bytes: &[u8]) -> Option<()> {
        let (mut skipped, mut rest) = (offset, bytes);
        for &(address, length) in &self.0 {
            if skipped >= length {
                skipped -= length;
                continue;
            }
            let (part, behind) = rest.split_at((length - skipped).min(rest.len()));
            let at = GuestAddress(address.0 + skipped as u64);
            memory.write_slice(part, at).ok()?;
            (skipped, rest) = (0, behind);
        }
        rest.is_empty().then_some(())
    }
}

fn misaligned(area: StateArea) -> Option<Exception> {
    (!area.address.is_multiple_of(ALIGNMENT)).then_some(Exception::PROTECTION)
}

/// EDX:EAX.
fn asked_for(regs: &kvm_regs) -> u64 {
    regs.rdx << 32 | regs.rax & 0xffff_ffff
}

fn read(vcpu: &VcpuFd) -> Option<[u8; AREA]> {
    let state = vcpu.get_xsave().ok()?;
    let mut area = [0; AREA];
    for (bytes, word) in area.chunks_exact_mut(4).zip(state.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Some(area)
}

fn write(vcpu: &VcpuFd, area: &[u8; AREA]) -> Option<()> {
    let mut state = kvm_xsave::default();
    for (word, bytes) in state.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // SAFETY: KVM reads more than this structure only for features that a
    // program has to ask for (arch_prctl), which this one never does.
    unsafe { vcpu.set_xsave(&state) }.ok()
}
