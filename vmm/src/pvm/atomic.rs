//! Atomic exchanges in guest memory, which the guest's other processors may be
//! writing to.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemory;

/// Replaces the eight bytes at `place` if they are `old`; what they were.
/// `None` where there is no memory or it is not aligned.
pub(super) fn compare_exchange_8(
    memory: &GuestMemory,
    place: GuestAddress,
    old: u64,
    new: u64,
) -> Option<u64> {
    let slice = memory.get_slice(place, size_of::<u64>()).ok()?;
    let guard = slice.ptr_guard_mut();
    // Checked to be aligned right here.
    #[allow(clippy::cast_ptr_alignment)]
    let pointer = guard.as_ptr().cast::<u64>();
    if !pointer.is_aligned() {
        return None;
    }
    // SAFETY: the slice is eight bytes of a live mapping that the borrowed
    // memory keeps, and they are aligned. Other processors access them at the
    // same time, but none of them through a Rust reference.
    let cell = unsafe { AtomicU64::from_ptr(pointer) };
    let was = match cell.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(was) | Err(was) => was,
    };
    slice.bitmap().mark_dirty(0, size_of::<u64>());
    Some(was)
}

/// The same for sixteen bytes. `None` also where this processor has no
/// CMPXCHG16B.
pub(super) fn compare_exchange_16(
    memory: &GuestMemory,
    place: GuestAddress,
    old: u128,
    new: u128,
) -> Option<u128> {
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return None;
    }
    let slice = memory.get_slice(place, size_of::<u128>()).ok()?;
    let guard = slice.ptr_guard_mut();
    #[allow(clippy::cast_ptr_alignment)]
    let pointer = guard.as_ptr().cast::<u128>();
    if !pointer.is_aligned() {
        return None;
    }
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: as above, for sixteen bytes; the processor has the instruction.
    // RBX, which the compiler keeps for itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{pointer}]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            pointer = in(reg) pointer,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    let was = u128::from(high) << 64 | u128::from(low);
    slice.bitmap().mark_dirty(0, size_of::<u128>());
    Some(was)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::layout;

    #[test]
    fn exchanges_happen_only_when_the_old_value_is_there() {
        let memory = GuestMemory::from_ranges(&layout::ram_ranges(1 << 20)).unwrap();
        let place = GuestAddress(0x1000);
        memory.write_obj(7u64, place).unwrap();
        assert_eq!(compare_exchange_8(&memory, place, 6, 9), Some(7));
        assert_eq!(compare_exchange_8(&memory, place, 7, 9), Some(7));
        assert_eq!(memory.read_obj::<u64>(place).unwrap(), 9);
        assert_eq!(compare_exchange_16(&memory, place, 9, u128::MAX), Some(9));
        assert_eq!(compare_exchange_16(&memory, place, 9, 1), Some(u128::MAX));
        assert_eq!(memory.read_obj::<u128>(place).unwrap(), u128::MAX);
    }

    #[test]
    fn neither_outside_of_memory_nor_unaligned() {
        let memory = GuestMemory::from_ranges(&layout::ram_ranges(1 << 20)).unwrap();
        for place in [1 << 20, (1 << 20) - 4, 0x1004, u64::MAX] {
            let place = GuestAddress(place);
            assert_eq!(compare_exchange_16(&memory, place, 0, 0), None);
        }
        assert_eq!(
            compare_exchange_8(&memory, GuestAddress(0x1004), 0, 0),
            None
        );
    }
}
