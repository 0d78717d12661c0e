//! Pacing: a token bucket that spreads packets over time at the controller's rate.
//!
//! Packets leave in bursts of one quantum: the bytes of a millisecond, but at least two packets, and at most the bytes
//! of one system call. Finer spacing would need a timer for each packet.

use core::time::Duration;

use crate::base::Instant;

/// Duration of a burst at the pacing rate.
const QUANTUM: Duration = Duration::from_millis(1);
/// Depth of the bucket, as time at the pacing rate. It compensates for late timers.
const DEPTH: Duration = Duration::from_millis(4);
/// Largest burst in bytes: one GSO call.
const MAX_QUANTUM: u64 = 53 * 1_200;

/// The token bucket. Tokens are bytes of payload.
pub(super) struct Pacer {
    tokens: i64,
    refilled: Instant,
    /// Largest payload of a packet, in bytes; the smallest burst has two packets.
    segment: u64,
    /// Largest burst at any rate, in bytes: less than the socket buffer if the peer is a browser.
    max_burst: u64,
}

impl Pacer {
    pub(super) fn new(now: Instant, segment: u64, max_burst: u64) -> Self {
        let tokens = segment.saturating_mul(10).min(max_burst);
        Self { tokens: i64::try_from(tokens).unwrap_or(i64::MAX), refilled: now, segment, max_burst }
    }

    fn quantum(&self, rate: u64) -> u64 {
        let quantum = in_time(rate, QUANTUM).clamp(self.segment.saturating_mul(2), MAX_QUANTUM);
        quantum.min(self.max_burst)
    }

    /// Whether a packet may leave at `now`; if not, the time of the next burst.
    pub(super) fn poll(&mut self, now: Instant, rate: u64) -> Result<(), Instant> {
        let quantum = self.quantum(rate);
        let depth = in_time(rate, DEPTH).max(quantum.saturating_mul(2)).min(self.max_burst);
        let depth = i64::try_from(depth).unwrap_or(i64::MAX);
        let gained = i64::try_from(in_time(rate, now.since(self.refilled))).unwrap_or(i64::MAX);
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(depth);
            self.refilled = now;
        }
        if self.tokens > 0 {
            return Ok(());
        }
        let missing = i64::try_from(quantum).unwrap_or(i64::MAX).saturating_sub(self.tokens);
        let missing = u64::try_from(missing).unwrap_or_default();
        let wait = u128::from(missing).saturating_mul(1_000_000_000).checked_div(u128::from(rate.max(1)));
        let wait = Duration::from_nanos(wait.and_then(|wait| u64::try_from(wait).ok()).unwrap_or(u64::MAX));
        Err(self.refilled.after(wait))
    }

    /// Bytes that may leave at the time of the last [`Self::poll`].
    pub(super) fn tokens(&self) -> u64 {
        u64::try_from(self.tokens).unwrap_or(0)
    }

    /// Removes the tokens of a sent packet.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// Bytes in `time` at `rate` bytes a second.
fn in_time(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate).saturating_mul(time.as_nanos()).checked_div(1_000_000_000);
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes sent in a second at `rate`, with each timer late by `timer_delay`.
    fn sent(rate: u64, timer_delay: Duration) -> u64 {
        let mut pacer = Pacer::new(Instant::START, 1_164, u64::MAX);
        let (mut now, mut bytes) = (Instant::START, 0);
        while now < Instant::from_nanos(1_000_000_000) {
            match pacer.poll(now, rate) {
                Ok(()) => {
                    pacer.spend(1_164);
                    bytes += 1_164;
                }
                Err(at) => now = at.after(timer_delay),
            }
        }
        bytes
    }

    #[test]
    fn the_pacing_rate_holds_with_prompt_and_late_timers() {
        for rate in [100_000, 6_250_000, 100_000_000] {
            for timer_delay in [0, 1_000, 2_500] {
                let bytes = sent(rate, Duration::from_micros(timer_delay));
                assert!(
                    (bytes as f64 / rate as f64 - 1.0).abs() < 0.15,
                    "{bytes} at {rate}, timers {timer_delay} µs late"
                );
            }
        }
    }
}
