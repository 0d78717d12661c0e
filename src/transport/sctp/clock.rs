//! The clock for data arrival times that the ends of an association send each other.

use core::time::Duration;

use rand::{CryptoRng, RngExt as _};

use crate::base::Instant;

/// One unit of an arrival time.
const TICK: Duration = Duration::from_micros(100);
/// Nominal rate of the clock, in millionths of the computer's clock rate.
const RATE: u32 = 1_000_000;
/// Largest deviation from the nominal rate, in millionths.
const MAX_DEVIATION: u32 = 100;

/// The clock of this end's arrival times. Start and rate are random for each association, so that peers can't
/// attribute several associations to one computer by its clock.
#[derive(Clone, Copy)]
pub(super) struct ArrivalClock {
    /// In nanoseconds.
    start: u64,
    /// In millionths of the computer's clock rate.
    rate: u32,
}

impl ArrivalClock {
    /// The unmodified clock of this computer. Its times are never sent.
    pub(super) const LOCAL: Self = Self { start: 0, rate: RATE };

    /// A clock with random start and rate.
    pub(super) fn new(rng: &mut impl CryptoRng) -> Self {
        Self { start: rng.random(), rate: rng.random_range(RATE - MAX_DEVIATION..=RATE + MAX_DEVIATION) }
    }

    /// The time `at` on this clock.
    pub(super) fn tick(self, at: Instant) -> Tick {
        let nanos = u128::from(at.as_nanos()).saturating_mul(self.rate.into()).checked_div(RATE.into());
        let ticks = nanos.unwrap_or_default().saturating_add(self.start.into()).checked_div(TICK.as_nanos());
        Tick(u32::try_from(ticks.unwrap_or_default() & u128::from(u32::MAX)).unwrap_or_default())
    }

    /// A clock with this start, in nanoseconds, and the computer's rate.
    #[cfg(test)]
    pub(super) const fn from_start(start: u64) -> Self {
        Self { start, rate: RATE }
    }
}

/// An arrival time: units of 100 µs, modulo 2³².
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tick(pub(super) u32);

impl Tick {
    /// The time since `earlier`; zero if `earlier` is later.
    pub(super) fn since(self, earlier: Self) -> Duration {
        duration_of(self.0.wrapping_sub(earlier.0).cast_signed())
    }
}

/// The duration of `ticks` units; zero for a negative number.
pub(super) fn duration_of(ticks: i32) -> Duration {
    TICK.saturating_mul(u32::try_from(ticks).unwrap_or_default())
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
    fn the_time_since_a_later_tick_is_zero() {
        assert_eq!(Tick(3).since(Tick(4)), Duration::ZERO);
        assert_eq!(Tick(3).since(Tick(u32::MAX)), TICK * 4);
    }

    #[test]
    fn clocks_differ_in_start_and_rate_within_the_largest_deviation() {
        let mut rng = StdRng::seed_from_u64(1);
        let clocks: Vec<_> = (0..50).map(|_| ArrivalClock::new(&mut rng)).collect();
        let hour = 3_600_000;
        let hourly = |clock: &ArrivalClock| clock.tick(at(hour)).0.wrapping_sub(clock.tick(at(0)).0);
        let rates: BTreeSet<_> = clocks.iter().map(hourly).collect();
        // The largest deviation: 100 millionths of an hour, in units of 100 µs.
        assert!(rates.len() > 25 && rates.iter().all(|ticks| ticks.abs_diff(36_000_000) <= 3_601), "{rates:?}");
        let phases: BTreeSet<_> = clocks.iter().map(|clock| clock.start % 100_000 / 1_000).collect();
        assert!(phases.len() > 30, "{phases:?}");
    }
}
