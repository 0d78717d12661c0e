//! Wall-clock time that a jump of the machine's clock doesn't change.
//!
//! A directory signs dates, and drops relays by the ages of their descriptors. A clock that jumps by a day would have
//! it drop all relays, and sign a consensus that clients can't replace afterwards.

use core::time::Duration;

use crate::base::{Instant, WallTime};

/// Greatest difference of the two clocks that isn't a jump.
const TOLERANCE: Duration = Duration::from_secs(60);
/// A clock that is corrected gradually may differ by a thousandth of the time that has passed.
const GRADUAL: u32 = 1_000;

/// The wall clock at the start, and the monotonic time since.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    start: (WallTime, Instant),
    has_jumped: bool,
}

impl SteadyClock {
    /// A clock that starts at `wall`, the wall-clock time at the monotonic time `now`.
    #[must_use]
    pub const fn new(wall: WallTime, now: Instant) -> Self {
        Self { start: (wall, now), has_jumped: false }
    }

    /// The time: `wall` while the wall clock agrees with the monotonic time since the start, and otherwise the time by
    /// the latter.
    pub fn read(&mut self, wall: WallTime, now: Instant) -> WallTime {
        let (start, began) = self.start;
        let passed = now.since(began);
        let expected = start.after(passed);
        let difference = wall.since(expected).max(expected.since(wall));
        let has_jumped = difference > TOLERANCE.saturating_add(passed.checked_div(GRADUAL).unwrap_or_default());
        if has_jumped && !self.has_jumped {
            tracing::warn!(
                seconds = difference.as_secs(),
                "the machine's clock jumped; ignoring it. Set the clock, or restart the directory if the clock is now right"
            );
        } else if self.has_jumped && !has_jumped {
            tracing::info!("the machine's clock is back in step");
        }
        self.has_jumped = has_jumped;
        if has_jumped { expected } else { wall }
    }

    /// Whether the wall clock disagreed with the monotonic time at the last reading.
    #[must_use]
    pub const fn has_jumped(&self) -> bool {
        self.has_jumped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: WallTime = WallTime::from_unix(1_800_000_000);

    fn at(seconds: u64) -> Instant {
        Instant::START.after(Duration::from_secs(seconds))
    }

    fn wall(seconds: u64) -> WallTime {
        START.after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_jump_of_the_clock_changes_no_time_until_it_is_back_in_step() {
        let mut clock = SteadyClock::new(START, at(0));
        assert_eq!(clock.read(wall(10), at(10)), wall(10));
        let year = 365 * 24 * 60 * 60;
        for jumped in [wall(20 + 10 * year), START.before(Duration::from_secs(10 * year)), wall(20 + 90)] {
            assert_eq!((clock.read(jumped, at(20)), clock.has_jumped()), (wall(20), true));
        }
        assert_eq!((clock.read(wall(80), at(21)), clock.has_jumped()), (wall(80), false), "within the tolerance");
        assert_eq!((clock.read(wall(30), at(30)), clock.has_jumped()), (wall(30), false));
    }

    #[test]
    fn a_clock_that_is_corrected_gradually_has_not_jumped() {
        let mut clock = SteadyClock::new(START, at(0));
        for day in 1..100 {
            let passed = day * 24 * 60 * 60;
            assert_eq!(clock.read(wall(passed + passed / 2_000), at(passed)), wall(passed + passed / 2_000));
            assert!(!clock.has_jumped());
        }
    }

    #[test]
    fn many_small_steps_are_noticed_as_one_jump() {
        let mut clock = SteadyClock::new(START, at(0));
        let last = (1..100).map(|step| clock.read(wall(step * 60), at(step))).last().unwrap();
        assert_eq!((last, clock.has_jumped()), (wall(99), true));
    }
}
