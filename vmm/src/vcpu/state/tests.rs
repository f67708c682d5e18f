use proptest::prelude::*;

use super::*;
use crate::kvm::plain::Plain;

/// A structure with these bytes, again and again.
fn filled<T: Plain + Default>(seed: &[u8]) -> Bytes<T> {
    let bytes: Vec<u8> = seed.iter().copied().cycle().take(size_of::<T>()).collect();
    let encoded = minicbor::to_vec(minicbor::bytes::ByteVec::from(bytes)).unwrap();
    minicbor::decode(&encoded).unwrap()
}

prop_compose! {
    /// Any state.
    pub(crate) fn any_state()(
        id in any::<u8>(),
        seed in any::<[u8; 32]>(),
        xsave in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..600)),
        msrs in proptest::collection::vec((any::<u32>(), any::<u64>()), 0..40),
        tsc_khz in any::<Option<u32>>(),
    ) -> VcpuState {
        let fpu = xsave.is_none().then(|| filled(&seed));
        let xcrs = xsave.is_some().then(|| filled(&seed));
        VcpuState {
            id,
            mp_state: filled(&seed),
            regs: filled(&seed),
            sregs: filled(&seed),
            xsave,
            fpu,
            xcrs,
            debug_regs: filled(&seed),
            lapic: filled(&seed),
            msrs: BytesList(
                msrs.into_iter()
                    .map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() })
                    .collect(),
            ),
            events: filled(&seed),
            tsc_khz,
        }
    }
}

proptest! {
    #[test]
    fn state_comes_back(state in any_state()) {
        let bytes = minicbor::to_vec(&state).unwrap();
        prop_assert_eq!(minicbor::decode::<VcpuState>(&bytes).unwrap(), state);
    }

    #[test]
    fn any_bytes_are_a_state_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = minicbor::decode::<VcpuState>(&bytes);
    }
}
