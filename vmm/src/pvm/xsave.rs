//! The area of XSAVE and XRSTOR in its standard form (Intel SDM volume 1, 13.4,
//! 13.7 and 13.8; AMD APM volume 2, 11.5).
//!
//! What KVM exchanges with us (`KVM_GET_XSAVE`) is such an area too, of this
//! processor's layout, which is the guest's: what is left to do is to copy the
//! components that are asked for.

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;

/// Bytes of the area that KVM exchanges.
pub(super) const AREA: usize = 4096;
/// An area begins at a multiple of this.
pub(super) const ALIGNMENT: u64 = 64;
/// Bytes of the legacy region and of the header behind it, which each area has.
pub(super) const LEGACY_AND_HEADER: usize = HEADER.end;

const LEGACY: usize = 512;
const HEADER: Range<usize> = LEGACY..LEGACY + 64;
/// `XSTATE_BV`: the components that are not in their initial state.
const STATE: Range<usize> = LEGACY..LEGACY + 8;
/// What has to be zero in the header of a standard form: `XCOMP_BV`, and more.
const RESERVED: Range<usize> = LEGACY + 8..LEGACY + 24;
const MXCSR: Range<usize> = 24..28;
const MXCSR_MASK: Range<usize> = 28..32;
/// What MXCSR's mask is where it is not said.
const DEFAULT_MXCSR_MASK: u32 = 0xffbf;

const X87: u32 = 0;
const SSE: u32 = 1;
const AVX: u32 = 2;
/// The components that MXCSR belongs to.
const WITH_MXCSR: u64 = 1 << SSE | 1 << AVX;
/// Where the form for 32-bit code has selectors, which processors have long
/// written as zero, and the form for 64-bit code the upper halves of pointers.
const SELECTORS: [Range<usize>; 2] = [12..16, 20..24];
/// Control word of the x87 unit after FNINIT.
const INITIAL_FCW: [u8; 2] = 0x37fu16.to_le_bytes();

/// Where the components lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Components from 2 on; an empty range where there is none.
    extended: [(usize, usize); 60],
}

/// The area does not hold a state: a general-protection fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl Layout {
    /// Of this processor.
    pub(super) fn of_host() -> Self {
        const LEAF: u32 = 0xd;
        let main = __cpuid_count(LEAF, 0);
        let supported = u64::from(main.edx) << 32 | u64::from(main.eax);
        let mut layout = Self {
            extended: [(0, 0); 60],
        };
        for (number, component) in (2..).zip(&mut layout.extended) {
            if supported >> number & 1 == 1 {
                let leaf = __cpuid_count(LEAF, number);
                *component = (leaf.ebx as usize, leaf.eax as usize);
            }
        }
        layout
    }

    /// The bytes of a component, without MXCSR, which belongs to two.
    fn ranges(&self, component: u32) -> [Range<usize>; 2] {
        match component {
            X87 => [0..24, 32..160],
            SSE => [160..416, 0..0],
            other => {
                let (offset, size) = self.extended[other as usize - 2];
                let end = offset.saturating_add(size).min(AREA);
                [offset.min(end)..end, 0..0]
            }
        }
    }

    /// Bytes of an area with these components.
    pub(super) fn size(&self, features: u64) -> usize {
        components(features)
            .filter(|component| *component > SSE)
            .map(|component| self.ranges(component)[0].end)
            .fold(HEADER.end, usize::max)
    }

    /// XSAVE: the parts of `now` that it writes for `features`, at the same
    /// places of the area. The header is among them only as `XSTATE_BV`, whose
    /// bits of other components stay what they are in `header_was`.
    pub(super) fn save(
        &self,
        now: &mut [u8; AREA],
        features: u64,
        state_was: u64,
        is_wide: bool,
    ) -> Vec<Range<usize>> {
        if !is_wide {
            drop_selectors(now);
        }
        let state = state_was & !features | state(now) & features;
        now[STATE].copy_from_slice(&state.to_le_bytes());
        let mut written: Vec<_> = components(features)
            .flat_map(|component| self.ranges(component))
            .collect();
        if features & WITH_MXCSR != 0 {
            written.extend([MXCSR, MXCSR_MASK]);
        }
        written.push(STATE);
        written.retain(|range| !range.is_empty());
        written
    }

    /// XRSTOR: takes the components of `features` from `area` into `now`, or
    /// their initial states. `enabled` are those of XCR0.
    pub(super) fn restore(
        &self,
        area: &mut [u8; AREA],
        features: u64,
        enabled: u64,
        is_wide: bool,
        now: &mut [u8; AREA],
    ) -> Result<(), Malformed> {
        let stated = state(area);
        if stated & !enabled != 0 || area[RESERVED].iter().any(|byte| *byte != 0) {
            return Err(Malformed);
        }
        if !is_wide {
            drop_selectors(area);
        }
        if features & WITH_MXCSR != 0 {
            let mask = match u32::from_le_bytes(bytes(&now[MXCSR_MASK])) {
                0 => DEFAULT_MXCSR_MASK,
                mask => mask,
            };
            if u32::from_le_bytes(bytes(&area[MXCSR])) & !mask != 0 {
                return Err(Malformed);
            }
            now[MXCSR].copy_from_slice(&area[MXCSR]);
        }
        for component in components(features) {
            let is_initial = stated >> component & 1 == 0;
            for range in self.ranges(component) {
                if is_initial {
                    now[range].fill(0);
                } else {
                    now[range.clone()].copy_from_slice(&area[range]);
                }
            }
            if is_initial && component == X87 {
                now[..2].copy_from_slice(&INITIAL_FCW);
            }
        }
        let mut in_use = state(now) & !features | stated & features;
        if features & WITH_MXCSR != 0 {
            // KVM takes MXCSR from us only with a component that it belongs to.
            in_use |= 1 << SSE;
        }
        now[STATE].copy_from_slice(&in_use.to_le_bytes());
        Ok(())
    }
}

/// `XSTATE_BV` of an area.
pub(super) fn state(area: &[u8; AREA]) -> u64 {
    u64::from_le_bytes(bytes(&area[STATE]))
}

/// Makes pointers of the x87 unit those of 32 bits, without their selectors.
fn drop_selectors(area: &mut [u8; AREA]) {
    for range in SELECTORS {
        area[range].fill(0);
    }
}

fn components(features: u64) -> impl Iterator<Item = u32> {
    // The two highest bits are no components.
    (0..62).filter(move |component| features >> component & 1 == 1)
}

fn bytes<const N: usize>(slice: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(slice);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout() -> Layout {
        let mut extended = [(0, 0); 60];
        extended[0] = (576, 256);
        // AVX-512, somewhere behind.
        extended[3] = (1088, 64);
        extended[5] = (1152, 1024);
        Layout { extended }
    }

    /// An area whose bytes are all `fill`, with a header of these components.
    fn area(fill: u8, state: u64) -> [u8; AREA] {
        let mut area = [fill; AREA];
        area[HEADER].fill(0);
        area[STATE].copy_from_slice(&state.to_le_bytes());
        area[MXCSR].copy_from_slice(&0x1f80u32.to_le_bytes());
        area[MXCSR_MASK].copy_from_slice(&0xffffu32.to_le_bytes());
        area
    }

    /// What XSAVE does to `memory`.
    fn save(now: &[u8; AREA], features: u64, is_wide: bool, memory: &mut [u8; AREA]) {
        let mut now = *now;
        let was = state(memory);
        for range in layout().save(&mut now, features, was, is_wide) {
            memory[range.clone()].copy_from_slice(&now[range]);
        }
    }

    fn restore(
        memory: &[u8; AREA],
        features: u64,
        enabled: u64,
        now: &mut [u8; AREA],
    ) -> Result<(), Malformed> {
        layout().restore(&mut { *memory }, features, enabled, true, now)
    }

    #[test]
    fn saving_writes_what_is_asked_for_and_nothing_else() {
        let now = area(1, 0b101);
        let mut memory = area(2, 0b010);
        save(&now, 0b100, true, &mut memory);
        assert_eq!(
            [0, 160, 416, 576, 831, 832].map(|at| memory[at]),
            [2, 2, 2, 1, 1, 2]
        );
        assert_eq!(state(&memory), 0b110);
        let mut memory = area(2, 0);
        save(&now, 1, true, &mut memory);
        assert_eq!([0, 23, 24, 32].map(|at| memory[at]), [1, 1, 0x80, 1]);
    }

    #[test]
    fn an_area_is_as_long_as_its_components() {
        assert_eq!(layout().size(0), 576);
        assert_eq!(layout().size(3), 576);
        assert_eq!(layout().size(7), 832);
        assert_eq!(layout().size(0b1010_0011), 2176);
        assert_eq!(layout().size(u64::MAX), 2176);
        let host = Layout::of_host();
        assert!(host.size(u64::MAX) <= AREA);
    }

    #[test]
    fn restoring_takes_components_or_their_initial_states() {
        let mut now = area(1, 7);
        let memory = area(2, 0b100);
        restore(&memory, 7, 7, &mut now).unwrap();
        assert_eq!([0, 1, 2, 160, 576].map(|at| now[at]), [0x7f, 3, 0, 0, 2]);
        assert_eq!(state(&now), 0b110);
        let mut now = area(1, 7);
        restore(&area(2, 7), 0b001, 7, &mut now).unwrap();
        assert_eq!([0, 160, 576].map(|at| now[at]), [2, 1, 1]);
    }

    #[test]
    fn mxcsr_comes_along_with_sse_or_avx_even_in_their_initial_states() {
        let mut memory = area(0, 0);
        memory[MXCSR].copy_from_slice(&0x1fa0u32.to_le_bytes());
        for features in [2, 4] {
            let mut now = area(1, 7);
            restore(&memory, features, 7, &mut now).unwrap();
            assert_eq!(now[MXCSR], 0x1fa0u32.to_le_bytes());
            assert_eq!(state(&now) & 2, 2);
        }
        let mut now = area(1, 7);
        restore(&memory, 1, 7, &mut now).unwrap();
        assert_eq!(now[MXCSR], 0x1f80u32.to_le_bytes());
    }

    #[test]
    fn pointers_of_32_bit_code_have_no_upper_halves() {
        let mut memory = area(0, 0);
        save(&area(1, 1), 1, false, &mut memory);
        assert_eq!(
            [8, 12, 15, 16, 20, 23].map(|at| memory[at]),
            [1, 0, 0, 1, 0, 0]
        );
        let mut now = area(2, 0);
        let done = layout().restore(&mut area(1, 1), 1, 1, false, &mut now);
        assert_eq!(done, Ok(()));
        assert_eq!(
            [8, 12, 15, 16, 20, 23, 32].map(|at| now[at]),
            [1, 0, 0, 1, 0, 0, 1]
        );
    }

    #[test]
    fn malformed_areas_are_faults() {
        let refused = |change: fn(&mut [u8; AREA])| {
            let mut memory = area(0, 7);
            change(&mut memory);
            restore(&memory, 7, 7, &mut area(1, 7))
        };
        // A component that is not enabled, the compacted form, MXCSR.
        assert_eq!(refused(|m| m[LEGACY] = 0xff), Err(Malformed));
        assert_eq!(refused(|m| m[LEGACY + 15] = 0x80), Err(Malformed));
        assert_eq!(refused(|m| m[LEGACY + 23] = 1), Err(Malformed));
        assert_eq!(refused(|m| m[27] = 1), Err(Malformed));
        assert_eq!(refused(|m| m[LEGACY + 24] = 1), Ok(()));
        assert_eq!(refused(|_| ()), Ok(()));
    }

    proptest! {
        /// Whatever one program leaves behind, the next one computes with what
        /// it had.
        #[test]
        fn what_was_saved_is_restored(
            mine in prop::collection::vec(any::<u8>(), AREA),
            other in prop::collection::vec(any::<u8>(), AREA),
            features: u64,
        ) {
            let enabled = 0b1010_0111;
            let fill = |from: &[u8]| {
                let mut filled = area(0, enabled);
                for component in components(enabled) {
                    for range in layout().ranges(component) {
                        filled[range.clone()].copy_from_slice(&from[range]);
                    }
                }
                filled
            };
            let (before, mut now) = (fill(&mine), fill(&other));
            let mut memory = [0; AREA];
            let features = features & enabled;
            save(&before, features, true, &mut memory);
            let kept = now;
            restore(&memory, features, enabled, &mut now).unwrap();
            for component in components(enabled) {
                let expected = if features >> component & 1 == 1 { &before } else { &kept };
                for range in layout().ranges(component) {
                    prop_assert_eq!(&now[range.clone()], &expected[range]);
                }
            }
        }

        #[test]
        fn no_area_breaks_it(
            header in prop::array::uniform32(any::<u8>()),
            features: u64, enabled: u64, is_wide: bool,
        ) {
            let mut memory = area(0, 0);
            memory[LEGACY..LEGACY + 32].copy_from_slice(&header);
            let mut now = area(1, 7);
            let before = now;
            let layout = layout();
            if layout.restore(&mut memory, features, enabled, is_wide, &mut now).is_err() {
                prop_assert_eq!(&now[..], &before[..]);
            }
            for range in layout.save(&mut now, features, u64::MAX, is_wide) {
                prop_assert!(range.end <= layout.size(features));
            }
        }
    }
}
