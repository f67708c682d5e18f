//! A processor's view of time, for machines that stand still for a while.

use kvm_bindings::{Msrs, kvm_msr_entry};

use super::Vcpu;
use crate::kvm::{KvmError, refused};

/// The time stamp counter (Intel SDM 4, 2.1).
const MSR_IA32_TSC: u32 = 0x10;

impl Vcpu {
    /// Its time stamp counter, as the guest would read it now.
    ///
    /// # Errors
    /// [`KvmError::Request`].
    pub fn time_stamp_counter(&self) -> Result<u64, KvmError> {
        let mut msrs = counter(0)?;
        self.fd
            .get_msrs(&mut msrs)
            .map_err(refused("read a time stamp counter"))?;
        Ok(msrs.as_slice().first().map_or(0, |msr| msr.data))
    }

    /// Lets its time stamp counter go on from `value`. KVM takes a value less
    /// than a second from what the counter shows as an attempt to keep several
    /// of them in step, and lets it go on as it is.
    ///
    /// # Errors
    /// [`KvmError::Request`].
    pub fn set_time_stamp_counter(&self, value: u64) -> Result<(), KvmError> {
        self.fd
            .set_msrs(&counter(value)?)
            .map_err(refused("set a time stamp counter"))?;
        Ok(())
    }

    /// Tells the guest's watchdogs that it did not run for a while.
    pub fn tell_of_pause(&self) {
        // Refused where the guest does not use kvm-clock: it cannot be told.
        let _ = self.fd.kvmclock_ctrl();
    }
}

fn counter(data: u64) -> Result<Msrs, KvmError> {
    let entry = kvm_msr_entry {
        index: MSR_IA32_TSC,
        data,
        ..kvm_msr_entry::default()
    };
    Msrs::from_entries(&[entry])
        // One entry always fits.
        .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
        .map_err(refused("list an MSR"))
}
