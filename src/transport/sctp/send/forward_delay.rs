//! Queueing delay on the forward path, from the peer's arrival times: excludes the delay on the return path.

use core::time::Duration;

use super::super::clock::{ArrivalClock, Tick, time};
use crate::base::Instant;

/// Half the time that a smallest delay is used. Clocks drift apart by up to 0.3 ms a second, which is less than a
/// standing queue in that time.
const HALF_LIFE: Duration = Duration::from_secs(12);
/// The delay of data on the way to the peer, beyond the smallest.
#[derive(Default)]
pub(super) struct ForwardDelay {
    /// The first delay. The others are stored as differences from it, since the clocks have different starts.
    origin: Option<Tick>,
    /// The smallest delay of the current half and of the one before.
    smallest: [i32; 2],
    since: Option<Instant>,
}

impl ForwardDelay {
    /// Takes the arrival at `arrived` of data sent at `sent_at`. Returns its delay beyond the smallest.
    pub(super) fn measured(&mut self, now: Instant, sent_at: Instant, arrived: Tick) -> Duration {
        let delay = Tick(arrived.0.wrapping_sub(ArrivalClock::OWN.tick(sent_at).0));
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
        for start in [0, 5, u64::MAX, 429_496_729_600_000 - 50_000_000, 1 << 47] {
            let clock = ArrivalClock::from_start(start);
            let mut forward = ForwardDelay::default();
            for (sent, took, beyond) in [(0, 30, 0), (10, 25, 0), (20, 60, 35), (30, 25, 0), (40, 26, 1)] {
                let measured = forward.measured(at(sent + 100), at(sent), clock.tick(at(sent + took)));
                assert_eq!(measured, Duration::from_millis(beyond), "start {start}");
            }
        }
    }

    #[test]
    fn a_path_that_has_become_longer_is_believed_after_two_half_lives() {
        let mut forward = ForwardDelay::default();
        let mut measured =
            |now: u64, took: u64| forward.measured(at(now), at(now - took), ArrivalClock::OWN.tick(at(now)));
        assert_eq!(measured(100, 20), Duration::ZERO);
        for second in 1..=40 {
            let beyond = measured(second * 1000, 50);
            assert_eq!(beyond, Duration::from_millis(if second <= 24 { 30 } else { 0 }), "after {second} s");
        }
    }

    #[test]
    fn no_clock_makes_a_time_that_does_not_exist() {
        let mut forward = ForwardDelay::default();
        for arrived in [0, u32::MAX, 1 << 31, 1, (1 << 31) - 1] {
            assert!(forward.measured(at(5), at(1), Tick(arrived)) < Duration::from_secs(1 << 19));
        }
    }
}
