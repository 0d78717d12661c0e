//! What the peer's clock says: when data arrived, and so how long it waited on the way there and not on the way back.

use core::time::Duration;

use crate::base::Instant;

/// How long a smallest delay counts, halved: clocks drift apart by up to 0.1 ms a second.
const HALF_LIFE: Duration = Duration::from_secs(8);
/// One unit of the clock that arrivals are told on.
const TICK: Duration = Duration::from_micros(100);

/// A point in time on the clock that arrivals are told on: units of 100 µs, modulo 2³².
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Tick(pub(in super::super) u32);

impl Tick {
    /// `at` on a clock that began at `start`.
    pub(in super::super) fn of(at: Instant, start: u32) -> Self {
        let ticks = u128::from(at.as_nanos()).checked_div(TICK.as_nanos()).unwrap_or_default();
        Self(start.wrapping_add(u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or_default()))
    }

    /// The time since `earlier`; zero if that is later.
    pub(super) fn since(self, earlier: Self) -> Duration {
        time(self.0.wrapping_sub(earlier.0).cast_signed())
    }
}

fn time(ticks: i32) -> Duration {
    TICK.saturating_mul(u32::try_from(ticks).unwrap_or_default())
}

/// The delay of data on its way to the peer, beyond the smallest.
#[derive(Default)]
pub(super) struct Forward {
    /// The first delay, of which the others are told as differences: the clocks have different starts.
    origin: Option<Tick>,
    /// The smallest of this half and of the one before.
    smallest: [i32; 2],
    since: Option<Instant>,
}

impl Forward {
    /// Takes in that what was sent at `sent_at` arrived at `arrived`. Gives how much longer than the smallest that took.
    pub(super) fn measured(&mut self, now: Instant, sent_at: Instant, arrived: Tick) -> Duration {
        let delay = Tick(arrived.0.wrapping_sub(Tick::of(sent_at, 0).0));
        let origin = self.origin.get_or_insert(delay);
        let delay = delay.0.wrapping_sub(origin.0).cast_signed();
        let [current, _] = self.smallest;
        match self.since {
            Some(since) if now.since(since) < HALF_LIFE => self.smallest[0] = current.min(delay),
            Some(_) => (self.since, self.smallest) = (Some(now), [delay, current]),
            None => (self.since, self.smallest) = (Some(now), [delay, delay]),
        }
        let [current, previous] = self.smallest;
        time(delay.saturating_sub(current.min(previous)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Instant {
        Instant::from_nanos(milliseconds * 1_000_000)
    }

    #[test]
    fn a_delay_is_what_exceeds_the_smallest_whatever_the_clocks() {
        for start in [0, 5, u32::MAX - 100, 1 << 31] {
            let mut forward = Forward::default();
            for (sent, took, beyond) in [(0, 30, 0), (10, 25, 0), (20, 60, 35), (30, 25, 0), (40, 26, 1)] {
                let arrived = Tick::of(at(sent + took), start);
                let measured = forward.measured(at(sent + 100), at(sent), arrived);
                assert_eq!(measured, Duration::from_millis(beyond), "start {start}");
            }
        }
    }

    #[test]
    fn a_path_that_has_become_longer_is_believed_after_two_half_lives() {
        let mut forward = Forward::default();
        let mut measured = |now: u64, took: u64| forward.measured(at(now), at(now - took), Tick::of(at(now), 7));
        assert_eq!(measured(100, 20), Duration::ZERO);
        for second in 1..=40 {
            let beyond = measured(second * 1000, 50);
            assert_eq!(beyond, Duration::from_millis(if second <= 16 { 30 } else { 0 }), "after {second} s");
        }
    }

    #[test]
    fn no_clock_makes_a_time_that_does_not_exist() {
        let mut forward = Forward::default();
        for arrived in [0, u32::MAX, 1 << 31, 1, (1 << 31) - 1] {
            assert!(forward.measured(at(5), at(1), Tick(arrived)) < Duration::from_secs(1 << 19));
        }
        assert_eq!(Tick(3).since(Tick(4)), Duration::ZERO);
        assert_eq!(Tick(3).since(Tick(u32::MAX)), TICK * 4);
    }
}
