//! A wall clock that ignores jumps of the machine's clock.
//!
//! A directory signs dates, and drops relays by the ages of their descriptors. After a jump, a directory would drop
//! relays, or sign a consensus with a future date, which clients replace only by a consensus with a later date. A clock
//! that was wrong at the start is corrected by a restart: the deadlines and dates of the running authority follow the
//! wrong clock, and the restart compares the new time with the last consensus.

use core::time::Duration;

use crate::base::{Instant, WallTime};

/// Maximum difference of the wall clock and the monotonic clock that isn't a jump.
const MAX_DIFFERENCE: Duration = Duration::from_secs(60);
/// A gradual correction of the wall clock may add a thousandth of the time since the start to the difference.
const CORRECTION_DIVISOR: u32 = 1_000;

/// A wall clock that is checked against the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    /// The start, by the wall clock and by the monotonic clock.
    start: (WallTime, Instant),
    has_jumped: bool,
}

impl SteadyClock {
    /// A clock that starts at `wall`, the wall-clock time at the monotonic time `now`.
    #[must_use]
    pub const fn new(wall: WallTime, now: Instant) -> Self {
        Self { start: (wall, now), has_jumped: false }
    }

    /// The wall-clock time at the monotonic time `now`. Returns `wall` if the wall clock agrees with the monotonic
    /// clock. Otherwise returns the start plus the monotonic time since then.
    pub fn read(&mut self, wall: WallTime, now: Instant) -> WallTime {
        let (start, began) = self.start;
        let passed = now.since(began);
        let expected = start.after(passed);
        let difference = wall.since(expected).max(expected.since(wall));
        let has_jumped =
            difference > MAX_DIFFERENCE.saturating_add(passed.checked_div(CORRECTION_DIVISOR).unwrap_or_default());
        if has_jumped && !self.has_jumped {
            tracing::warn!(
                seconds = difference.as_secs(),
                "the machine's clock jumped; ignoring it. Set the clock, or restart the directory if the clock is now right"
            );
        } else if self.has_jumped && !has_jumped {
            tracing::info!("the machine's clock agrees with the monotonic clock again");
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
    fn a_clock_that_jumped_is_ignored_until_it_agrees_again() {
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
    fn many_small_steps_are_detected_as_one_jump() {
        let mut clock = SteadyClock::new(START, at(0));
        let last = (1..100).map(|step| clock.read(wall(step * 60), at(step))).last().unwrap();
        assert_eq!((last, clock.has_jumped()), (wall(99), true));
    }
}
