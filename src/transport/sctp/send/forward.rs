//! What the peer's clock says: when data arrived, and so how long it waited on the way there and not on the way back.

use core::time::Duration;

use rand::{CryptoRng, RngExt as _};

use crate::base::Instant;

/// How long a smallest delay counts, halved. Clocks drift apart by up to 0.3 ms a second, which is less than a standing queue in
/// that time.
const HALF_LIFE: Duration = Duration::from_secs(12);
/// One unit of the clock that arrivals are told on.
const TICK: Duration = Duration::from_micros(100);
/// Nominal rate of that clock, and the largest deviation.
const RATE: u32 = 1_000_000;
const DEVIATION: u32 = 100;

/// The clock on which this end tells when data arrived. Start and rate are random for each association: the drift of a
/// computer's clock would tell its associations from those of others, and the start those of one computer from each other.
#[derive(Clone, Copy)]
pub(in super::super) struct Clock {
    /// In nanoseconds.
    start: u64,
    /// In millionths of the computer's.
    rate: u32,
}

impl Clock {
    pub(in super::super) fn new(rng: &mut impl CryptoRng) -> Self {
        Self { start: rng.random(), rate: rng.random_range(RATE - DEVIATION..=RATE + DEVIATION) }
    }

    pub(in super::super) fn tick(self, at: Instant) -> Tick {
        let nanos = u128::from(at.as_nanos()).saturating_mul(self.rate.into()).checked_div(RATE.into());
        let ticks = nanos.unwrap_or_default().saturating_add(self.start.into()).checked_div(TICK.as_nanos());
        Tick(u32::try_from(ticks.unwrap_or_default() & u128::from(u32::MAX)).unwrap_or_default())
    }

    /// The clock of this computer, which nobody is told.
    const OWN: Self = Self { start: 0, rate: RATE };
}

/// A point in time on the clock that arrivals are told on: units of 100 µs, modulo 2³².
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Tick(pub(in super::super) u32);

impl Tick {
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
        let delay = Tick(arrived.0.wrapping_sub(Clock::OWN.tick(sent_at).0));
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
    use std::collections::BTreeSet;

    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const fn at(milliseconds: u64) -> Instant {
        Instant::from_nanos(milliseconds * 1_000_000)
    }

    #[test]
    fn a_delay_is_what_exceeds_the_smallest_whatever_the_clocks() {
        for start in [0, 5, u64::MAX, 429_496_729_600_000 - 50_000_000, 1 << 47] {
            let clock = Clock { start, rate: RATE };
            let mut forward = Forward::default();
            for (sent, took, beyond) in [(0, 30, 0), (10, 25, 0), (20, 60, 35), (30, 25, 0), (40, 26, 1)] {
                let measured = forward.measured(at(sent + 100), at(sent), clock.tick(at(sent + took)));
                assert_eq!(measured, Duration::from_millis(beyond), "start {start}");
            }
        }
    }

    #[test]
    fn a_path_that_has_become_longer_is_believed_after_two_half_lives() {
        let mut forward = Forward::default();
        let mut measured = |now: u64, took: u64| forward.measured(at(now), at(now - took), Clock::OWN.tick(at(now)));
        assert_eq!(measured(100, 20), Duration::ZERO);
        for second in 1..=40 {
            let beyond = measured(second * 1000, 50);
            assert_eq!(beyond, Duration::from_millis(if second <= 24 { 30 } else { 0 }), "after {second} s");
        }
    }

    #[test]
    fn clocks_differ_in_start_phase_and_rate_and_none_runs_off_by_more_than_it_may() {
        let mut rng = StdRng::seed_from_u64(1);
        let clocks: Vec<_> = (0..50).map(|_| Clock::new(&mut rng)).collect();
        let hour = 3_600_000;
        let ran = |clock: &Clock| clock.tick(at(hour)).0.wrapping_sub(clock.tick(at(0)).0);
        let rates: BTreeSet<_> = clocks.iter().map(ran).collect();
        // 100 millionths of an hour in units of 100 microseconds.
        assert!(rates.len() > 25 && rates.iter().all(|ran| ran.abs_diff(36_000_000) <= 3_601), "{rates:?}");
        let phases: BTreeSet<_> = clocks.iter().map(|clock| clock.start % 100_000 / 1_000).collect();
        assert!(phases.len() > 30, "{phases:?}");
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
