//! Round-trip times: the smoothed one and its variation (RFC 9260 §6.3.1), and the minimum.

use core::time::Duration;

use crate::base::Instant;

/// Time after which the smallest round trip is replaced.
const MIN_AGE: Duration = Duration::from_secs(30);
/// Longest retransmission timeout, so that a link soon detects that a line works again.
const MAX_TIMEOUT: Duration = Duration::from_secs(3);
/// Assumed before the first measurement.
const INITIAL: Duration = Duration::from_millis(333);

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

    /// Takes a measurement.
    pub(super) fn measured(&mut self, now: Instant, sample: Duration) {
        let sample = sample.max(Duration::from_nanos(1));
        if sample <= self.min || now.since(self.min_at) > MIN_AGE {
            self.min = sample;
            self.min_at = now;
        }
        let Some(smoothed) = self.smoothed else {
            self.smoothed = Some(sample);
            self.variation = sample.checked_div(2).unwrap_or_default();
            return;
        };
        let off = smoothed.abs_diff(sample);
        let weighted = |old: Duration, new: Duration, parts: u32| {
            let old = old.saturating_mul(parts.saturating_sub(1)).saturating_add(new);
            old.checked_div(parts).unwrap_or_default()
        };
        self.variation = weighted(self.variation, off, 4);
        self.smoothed = Some(weighted(smoothed, sample, 8));
    }

    /// The smoothed round trip; a guess before the first measurement.
    pub(super) fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(INITIAL)
    }

    /// Whether anything has been measured.
    pub(super) const fn is_known(&self) -> bool {
        self.smoothed.is_some()
    }

    /// The smallest of the last 30 seconds; the smoothed one before the first measurement.
    pub(super) fn min(&self) -> Duration {
        if self.min == Duration::MAX { self.smoothed() } else { self.min }
    }

    /// The retransmission timeout after `expired` consecutive timeouts.
    pub(super) fn timeout(&self, ack_delay: Duration, least: Duration, expired: u32) -> Duration {
        let margin = self.variation.saturating_mul(4).max(ack_delay);
        let once = self.smoothed().saturating_add(margin).max(least);
        once.saturating_mul(1_u32.checked_shl(expired.min(8)).unwrap_or(u32::MAX)).min(MAX_TIMEOUT.max(once))
    }
}
