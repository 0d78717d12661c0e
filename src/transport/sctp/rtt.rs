//! Round-trip times: smoothed round trip and variation (RFC 9260 §6.3.1), and the minimum.

use core::time::Duration;

use crate::base::Instant;

/// Age of the smallest round trip from which any new sample replaces it.
const MIN_RTT_LIFETIME: Duration = Duration::from_secs(30);
/// Largest retransmission timeout that backoff causes. With a low cap a link continues soon after an outage of the
/// line.
const MAX_TIMEOUT: Duration = Duration::from_secs(3);
/// Round trip assumed before the first sample.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(333);

/// The round trip of one path.
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    min: Duration,
    min_at: Instant,
}

impl RoundTrip {
    pub(super) const fn new() -> Self {
        Self { smoothed: None, variation: Duration::ZERO, min: Duration::MAX, min_at: Instant::START }
    }

    pub(super) fn add_sample(&mut self, now: Instant, sample: Duration) {
        let sample = sample.max(Duration::from_nanos(1));
        if sample <= self.min || now.since(self.min_at) > MIN_RTT_LIFETIME {
            self.min = sample;
            self.min_at = now;
        }
        let Some(smoothed) = self.smoothed else {
            self.smoothed = Some(sample);
            self.variation = sample.checked_div(2).unwrap_or_default();
            return;
        };
        let deviation = smoothed.abs_diff(sample);
        let weighted = |old: Duration, new: Duration, parts: u32| {
            let old = old.saturating_mul(parts.saturating_sub(1)).saturating_add(new);
            old.checked_div(parts).unwrap_or_default()
        };
        self.variation = weighted(self.variation, deviation, 4);
        self.smoothed = Some(weighted(smoothed, sample, 8));
    }

    /// The smoothed round trip; [`INITIAL_ROUND_TRIP`] before the first sample.
    pub(super) fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(INITIAL_ROUND_TRIP)
    }

    /// Whether there has been a sample.
    pub(super) const fn is_known(&self) -> bool {
        self.smoothed.is_some()
    }

    /// The smallest recent round trip; [`INITIAL_ROUND_TRIP`] before the first sample.
    pub(super) fn min(&self) -> Duration {
        if self.min == Duration::MAX { self.smoothed() } else { self.min }
    }

    /// The retransmission timeout after `backoff` consecutive timeouts; `min` bounds it before the backoff.
    pub(super) fn timeout(&self, ack_delay: Duration, min: Duration, backoff: u32) -> Duration {
        let margin = self.variation.saturating_mul(4).max(ack_delay);
        let base = self.smoothed().saturating_add(margin).max(min);
        base.saturating_mul(1_u32.checked_shl(backoff.min(8)).unwrap_or(u32::MAX)).min(MAX_TIMEOUT.max(base))
    }
}
