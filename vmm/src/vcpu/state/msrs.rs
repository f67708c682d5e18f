//! Which MSRs are saved, and in which order they are put back.

use std::ops::RangeInclusive;

/// How many KVM takes at once: fewer than its `MAX_IO_MSRS`, 256.
pub(super) const AT_ONCE: usize = 255;

/// Time stamp counter (Intel SDM volume 4).
const TSC: u32 = 0x10;
/// The LAPIC timer's deadline: only counts once the local APIC is in that mode
/// and the counter is right, so it comes last.
const TSC_DEADLINE: u32 = 0x6e0;
const MTRR_CAP_COUNT: RangeInclusive<u32> = 0x200..=0x20f;
const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
const MTRR_DEF_TYPE: u32 = 0x2ff;
const XSS: u32 = 0xda0;
/// Control, status, address and misc of each machine check bank that KVM has.
const MACHINE_CHECK_BANKS: RangeInclusive<u32> = 0x400..=0x47f;

/// What KVM has but does not list.
fn unlisted() -> impl Iterator<Item = u32> {
    MTRR_CAP_COUNT
        .chain(MTRR_FIXED)
        .chain([MTRR_DEF_TYPE, XSS])
        .chain(MACHINE_CHECK_BANKS)
}

/// What is no state: a write asks KVM to do something at once.
fn is_request(index: u32) -> bool {
    const WALL_CLOCK: u32 = 0x11;
    const WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
    const ASYNC_PF_ACK: u32 = 0x4b56_4d07;
    matches!(index, WALL_CLOCK | WALL_CLOCK_NEW | ASYNC_PF_ACK)
}

/// Hyper-V's, which no guest of ours is offered.
fn is_hyper_v(index: u32) -> bool {
    (0x4000_0000..=0x4000_01ff).contains(&index)
}

/// Selects what is saved of what KVM lists, in the order of restoring.
pub(super) fn select(listed: &[u32]) -> Vec<u32> {
    let mut selected: Vec<u32> = listed
        .iter()
        .copied()
        .chain(unlisted())
        .filter(|&index| !is_request(index) && !is_hyper_v(index))
        .collect();
    // The counter before what is told in its units: kvm-clock, the deadline.
    selected.sort_by_key(|&index| match index {
        TSC => (0, 0),
        TSC_DEADLINE => (2, 0),
        other => (1, other),
    });
    selected.dedup();
    selected
}

/// Whether a value is what a processor has from the start on whatever host, so
/// that it need not be put back. There are many of these, and a KVM that does
/// not have them refuses to write even that.
pub(super) fn is_initial(index: u32, value: u64) -> bool {
    value == 0
        && (MACHINE_CHECK_BANKS.contains(&index)
            || is_memory_type(index)
            || is_debug(index)
            || is_counter(index))
}

/// Memory types of ranges, without the default.
fn is_memory_type(index: u32) -> bool {
    MTRR_CAP_COUNT.contains(&index) || MTRR_FIXED.contains(&index)
}

/// Debug control and last branch records.
fn is_debug(index: u32) -> bool {
    matches!(index, 0x1d9 | 0x1db..=0x1de)
}

/// Performance counters and what they count: Intel's programmable and fixed
/// ones, AMD's old and new ones. (Not the control of all of them, which is not
/// always created as zero.)
fn is_counter(index: u32) -> bool {
    matches!(
        index,
        0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30b | 0xc001_0000..=0xc001_0007
            | 0xc001_0200..=0xc001_020b
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_is_first_and_deadline_last() {
        let selected = select(&[0x6e0, 0x174, 0x10, 0x4b56_4d01, 0x174]);
        assert_eq!(selected.first(), Some(&TSC));
        assert_eq!(selected.last(), Some(&TSC_DEADLINE));
        assert_eq!(selected.iter().filter(|&&index| index == 0x174).count(), 1);
        assert!(selected.contains(&MTRR_DEF_TYPE));
    }

    #[test]
    fn requests_and_hyper_v_are_no_state() {
        let selected = select(&[0x11, 0x4b56_4d00, 0x4b56_4d07, 0x4000_0000, 0x4000_0118]);
        assert!(selected.iter().all(|&index| index < 0x1000));
    }
}
