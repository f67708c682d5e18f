//! A processor under the hands of a test.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuExit;

use super::Vcpu;

impl Vcpu {
    /// Sets RDI, clears RCX, and sets an MSR.
    pub(crate) fn set_for_test(&self, rdi: u64, msr: (u32, u64)) {
        let mut regs = self.fd.get_regs().unwrap();
        (regs.rdi, regs.rcx) = (rdi, 0);
        self.fd.set_regs(&regs).unwrap();
        let entry = kvm_msr_entry {
            index: msr.0,
            data: msr.1,
            ..kvm_msr_entry::default()
        };
        let msrs = Msrs::from_entries(&[entry]).unwrap();
        assert_eq!(self.fd.set_msrs(&msrs).unwrap(), 1);
    }

    /// Enters guest mode once; with `only_finish` only to finish the
    /// instruction that the last exit was for.
    pub(crate) fn run_for_test(
        &mut self,
        only_finish: bool,
    ) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        self.fd.set_kvm_immediate_exit(u8::from(only_finish));
        self.fd.run()
    }
}
