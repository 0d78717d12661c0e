//! Measurements over one round trip: round-trip times, and acknowledged cells.

use core::time::Duration;

use crate::base::{Counter as _, Instant};

const NANOS: u128 = 1_000_000_000;

/// Statistics of the round-trip times of some tags.
#[derive(Clone, Copy)]
pub(super) struct RttSamples {
    pub(super) count: u32,
    pub(super) min: Duration,
    sum: Duration,
}

impl RttSamples {
    pub(super) const NONE: Self = Self { count: 0, min: Duration::MAX, sum: Duration::ZERO };

    pub(super) fn add(&mut self, rtt: Duration) {
        self.count.increment();
        self.min = self.min.min(rtt);
        self.sum = self.sum.saturating_add(rtt);
    }

    /// The mean round-trip time minus the smallest.
    pub(super) fn jitter(&self) -> Duration {
        self.sum.checked_div(self.count).unwrap_or_default().saturating_sub(self.min)
    }
}

/// One round. It ends with the SENDME of the first tag sent after the round began.
pub(super) struct WindowRound {
    pub(super) began: Instant,
    /// DATA cells acknowledged before the round began.
    acknowledged: u64,
    /// Number of tags acknowledged in the round for which the window was full, when the tag was sent or later.
    pub(super) full_samples: u32,
    /// Round-trip times of the tags acknowledged in the round.
    pub(super) rtt: RttSamples,
}

impl WindowRound {
    pub(super) const fn new(began: Instant, acknowledged: u64) -> Self {
        Self { began, acknowledged, full_samples: 0, rtt: RttSamples::NONE }
    }

    /// Whether the window, not the application, limited the sender: the window was full for at least half of the
    /// acknowledged tags.
    pub(super) const fn is_window_limited(&self) -> bool {
        self.full_samples.saturating_mul(2) >= self.rtt.count
    }

    /// Cells acknowledged a second from the beginning of the round to `now`. `acknowledged` is the total at `now`.
    pub(super) fn delivery_rate(&self, now: Instant, acknowledged: u64) -> u64 {
        let cells = u128::from(acknowledged.saturating_sub(self.acknowledged));
        let rate = cells.saturating_mul(NANOS).checked_div(now.since(self.began).as_nanos()).unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

/// The number of cells in `time` at `rate` cells a second.
pub(super) fn cells_in(rate: u64, time: Duration) -> u64 {
    let cells = u128::from(rate).saturating_mul(time.as_nanos()) / NANOS;
    u64::try_from(cells).unwrap_or(u64::MAX)
}

/// The time in which `cells` are delivered at `rate` cells a second; zero without a rate.
pub(super) fn duration_of(rate: u64, cells: u64) -> Duration {
    let nanos = u128::from(cells).saturating_mul(NANOS).checked_div(rate.into()).unwrap_or(0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// `time` divided by `parts`.
pub(super) fn part(time: Duration, parts: u32) -> Duration {
    time.checked_div(parts).unwrap_or_default()
}
