//! A processor's view of time, for machines that stand still for a while.

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Msrs, kvm_device_attr, kvm_msr_entry,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::Vcpu;
use crate::kvm::{KvmError, refused};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// The time stamp counter (Intel SDM 4, 2.1).
const MSR_IA32_TSC: u32 = 0x10;

impl Vcpu {
    /// Its time stamp counter, as the guest would read it now.
    ///
    /// # Errors
    /// [`KvmError::Request`].
    pub fn time_stamp_counter(&self) -> Result<u64, KvmError> {
        time_stamp_counter(&self.fd)
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

    /// Sets its time stamp counter back by so many cycles, exactly; `false` if
    /// this KVM (before Linux 5.16) has no way to do that.
    ///
    /// # Errors
    /// [`KvmError::Request`].
    pub fn set_back_time_stamp_counter(&self, cycles: u64) -> Result<bool, KvmError> {
        // What is added to the host's counter (Documentation/virt/kvm/devices/
        // vcpu.rst, 4.1).
        let mut offset = 0_u64;
        let attribute = |offset: &mut u64| kvm_device_attr {
            flags: 0,
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: std::ptr::from_mut(offset) as u64,
        };
        let place = attribute(&mut offset);
        // SAFETY: the descriptor is a live virtual processor's; KVM writes 8
        // bytes to the address, which is that of a u64 that nothing else uses.
        if unsafe { ioctl_with_ref(&self.fd, KVM_GET_DEVICE_ATTR(), &place) } != 0 {
            return Ok(false);
        }
        let mut offset = offset.wrapping_sub(cycles);
        let place = attribute(&mut offset);
        // SAFETY: as above, and KVM reads them.
        if unsafe { ioctl_with_ref(&self.fd, KVM_SET_DEVICE_ATTR(), &place) } != 0 {
            let source = kvm_ioctls::Error::last();
            return Err(refused("set back a time stamp counter")(source));
        }
        Ok(true)
    }

    /// Tells the guest's watchdogs that it did not run for a while.
    pub fn tell_of_pause(&self) {
        // Refused where the guest does not use kvm-clock: it cannot be told.
        let _ = self.fd.kvmclock_ctrl();
    }
}

/// The time stamp counter of a processor, as the guest would read it now.
///
/// # Errors
/// [`KvmError::Request`].
pub(crate) fn time_stamp_counter(vcpu: &VcpuFd) -> Result<u64, KvmError> {
    let mut msrs = counter(0)?;
    vcpu.get_msrs(&mut msrs)
        .map_err(refused("read a time stamp counter"))?;
    Ok(msrs.as_slice().first().map_or(0, |msr| msr.data))
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
