//! A guest's timer, while the guest boots.
//!
//! A tick of Linux is some two thousand instructions, and comes in real time: a
//! kernel that is emulated spends a seventh of its boot on ticks. While it boots
//! there is nobody whom a tick could make wait less, so most are held back. Each
//! is asked for on its own, by writing the TSC deadline MSR (Intel SDM volume 3,
//! 11.5.4.1), and Linux makes up for those that it has missed when the next one
//! comes.

/// When the local APIC's timer fires next, in the guest's time stamp counter.
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Between two interrupts of the timer while a guest boots, in milliseconds. A boot
/// waits for nothing but itself, as far as was seen, and no longer than this.
const QUIET_MS: u64 = 3000;

/// The timer of one processor.
#[derive(Debug, Default)]
pub(super) struct BootTimer {
    /// It does not fire before, in the guest's time stamp counter.
    quiet_until: u64,
    /// What the guest has set it to, where it was given a later deadline.
    held_back: Option<u64>,
}

impl BootTimer {
    /// The deadline to set in place of `wanted`, for a guest whose time stamp
    /// counter shows `now` and counts `khz` thousand a second.
    ///
    /// However often a deadline is set anew, the timer fires once in each period of
    /// quiet.
    pub(super) fn deadline(&mut self, wanted: u64, now: u64, khz: u32) -> u64 {
        if wanted == 0 {
            // The timer is stopped.
            self.held_back = None;
            return 0;
        }
        if now >= self.quiet_until {
            self.quiet_until = now.saturating_add(QUIET_MS * u64::from(khz));
        }
        self.held_back = (wanted < self.quiet_until).then_some(wanted);
        wanted.max(self.quiet_until)
    }

    /// The deadline that the guest believes in, if it was given a later one: once. It
    /// may be over, and the timer have fired since, which does no harm a second time.
    pub(super) fn release(&mut self) -> Option<u64> {
        self.held_back.take()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KHZ: u32 = 2_000_000;
    const QUIET: u64 = QUIET_MS * KHZ as u64;

    #[test]
    fn a_tick_waits_for_the_end_of_the_quiet() {
        let mut timer = BootTimer::default();
        assert_eq!(timer.deadline(1_000, 500, KHZ), 500 + QUIET);
        // Set anew, it fires no later.
        assert_eq!(timer.deadline(9_000, 8_000, KHZ), 500 + QUIET);
        let fired = 500 + QUIET;
        assert_eq!(timer.deadline(fired + 9, fired, KHZ), fired + QUIET);
    }

    #[test]
    fn what_was_held_back_is_released_once() {
        let mut timer = BootTimer::default();
        timer.deadline(1_000, 500, KHZ);
        timer.deadline(2_000, 600, KHZ);
        assert_eq!(timer.release(), Some(2_000));
        assert_eq!(timer.release(), None);
        timer.deadline(3_000, 700, KHZ);
        timer.deadline(0, 800, KHZ);
        assert_eq!(timer.release(), None);
        timer.deadline(9 * QUIET, 900, KHZ);
        assert_eq!(timer.release(), None);
    }

    #[test]
    fn what_is_far_off_and_what_is_stopped_stays() {
        let mut timer = BootTimer::default();
        assert_eq!(timer.deadline(3 * QUIET, 1, KHZ), 3 * QUIET);
        assert_eq!(timer.deadline(0, 2, KHZ), 0);
        assert_eq!(timer.deadline(u64::MAX, u64::MAX - 1, KHZ), u64::MAX);
    }

    proptest! {
        /// However a guest sets it, the timer fires at most once in a period, and
        /// never later than it would have, or than the period's end.
        #[test]
        fn never_sooner_than_wanted_nor_much_later(
            steps in prop::collection::vec((1..2 * QUIET, 0..2 * QUIET), 1..100)
        ) {
            let mut timer = BootTimer::default();
            let (mut now, mut pending, mut last) = (1, None::<u64>, None::<u64>);
            for (passed, ahead) in steps {
                now += passed;
                if let Some(fired) = pending.take_if(|deadline| *deadline <= now) {
                    prop_assert!(last.is_none_or(|last| fired - last >= QUIET));
                    last = Some(fired);
                }
                let wanted = now + ahead;
                let given = timer.deadline(wanted, now, KHZ);
                prop_assert!(given >= wanted && given <= wanted.max(now + QUIET));
                pending = Some(given);
            }
        }
    }
}
