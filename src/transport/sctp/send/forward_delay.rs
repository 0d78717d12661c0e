//! Queueing delay on the forward path alone, computed from the peer's arrival times.

use core::time::Duration;

use super::super::clock::{ArrivalClock, Tick, duration_of};
use crate::base::Instant;

/// Half of the window over which the smallest delay is the baseline. Clocks drift apart by up to 0.3 ms a second. Over
/// the window, the drift is less than a standing queue.
const HALF_WINDOW: Duration = Duration::from_secs(12);

/// The filter for the smallest delay of data to the peer.
#[derive(Default)]
pub(super) struct ForwardDelay {
    /// The first delay, including the offset of the clocks. Other delays are stored relative to it.
    origin: Option<Tick>,
    /// The smallest delays of the current and of the previous half window, in units of the clock.
    smallest: [i32; 2],
    /// Start of the current half window.
    since: Option<Instant>,
}

impl ForwardDelay {
    /// The delay, beyond the smallest, of data that was sent at `sent_at` and arrived at `arrived`. Adds it to the
    /// filter.
    pub(super) fn queueing_delay(&mut self, now: Instant, sent_at: Instant, arrived: Tick) -> Duration {
        let delay = Tick(arrived.0.wrapping_sub(ArrivalClock::LOCAL.tick(sent_at).0));
        let origin = self.origin.get_or_insert(delay);
        let delay = delay.0.wrapping_sub(origin.0).cast_signed();
        let [current, _] = self.smallest;
        match self.since {
            Some(since) if now.since(since) < HALF_WINDOW => self.smallest[0] = current.min(delay),
            Some(_) => (self.since, self.smallest) = (Some(now), [delay, current]),
            None => (self.since, self.smallest) = (Some(now), [delay, delay]),
        }
        let [current, previous] = self.smallest;
        duration_of(delay.saturating_sub(current.min(previous)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Instant {
        Instant::from_nanos(milliseconds * 1_000_000)
    }

    #[test]
    fn queueing_delay_is_the_excess_over_the_smallest_delay_with_any_clock() {
        for start in [0, 5, u64::MAX, 429_496_729_600_000 - 50_000_000, 1 << 47] {
            let clock = ArrivalClock::from_start(start);
            let mut forward = ForwardDelay::default();
            for (sent, delay, expected) in [(0, 30, 0), (10, 25, 0), (20, 60, 35), (30, 25, 0), (40, 26, 1)] {
                let measured = forward.queueing_delay(at(sent + 100), at(sent), clock.tick(at(sent + delay)));
                assert_eq!(measured, Duration::from_millis(expected), "start {start}");
            }
        }
    }

    #[test]
    fn a_longer_path_becomes_the_baseline_after_two_half_windows() {
        let mut forward = ForwardDelay::default();
        let mut measured =
            |now: u64, delay: u64| forward.queueing_delay(at(now), at(now - delay), ArrivalClock::LOCAL.tick(at(now)));
        assert_eq!(measured(100, 20), Duration::ZERO);
        for second in 1..=40 {
            let queueing = measured(second * 1000, 50);
            assert_eq!(queueing, Duration::from_millis(if second <= 24 { 30 } else { 0 }), "after {second} s");
        }
    }

    #[test]
    fn no_arrival_time_overflows_the_queueing_delay() {
        let mut forward = ForwardDelay::default();
        for arrived in [0, u32::MAX, 1 << 31, 1, (1 << 31) - 1] {
            assert!(forward.queueing_delay(at(5), at(1), Tick(arrived)) < Duration::from_secs(1 << 19));
        }
    }
}
