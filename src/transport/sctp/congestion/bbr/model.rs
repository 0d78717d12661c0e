//! Filters of BBR's path model: bandwidth, round trip, aggregation, loss and full-pipe detection.
//!
//! Each filter is a few integers. Section numbers are those of draft-ietf-ccwg-bbr-06.

use crate::base::Counter as _;

use super::super::{RateSample, SECOND, nanos, scale};

/// Smallest number of packets over which a loss rate is judged: two random losses among 50 packets are not significant.
pub(super) const MIN_LOSS_PACKETS: u64 = 250;

/// Half the window, in rounds, of the filter for the excess of acknowledged bytes.
const EXCESS_HALF_ROUNDS: u64 = 5;

/// Time after which ProbeRTT measures the lowest round trip again (`ProbeRTTInterval`), in nanoseconds.
const PROBE_RTT_INTERVAL: u64 = 5 * SECOND;

/// Lifetime of the model's lowest round trip (`MinRTTFilterLen`), in nanoseconds.
const MIN_RTT_LIFETIME: u64 = 15 * SECOND;

/// Rounds without growth that show a full pipe (§5.3.1.2).
const FULL_ROUNDS: u8 = 3;

/// A delivery-rate sample in the model's form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Bytes a second; zero if the interval is too short to be reliable (§4.1.2.3).
    pub(super) rate: u64,
    /// Bytes delivered from the packet's transmission to its acknowledgement.
    pub(super) delivered: u64,
    /// Bytes delivered before the packet was sent.
    pub(super) prior_delivered: u64,
    /// Bytes in flight when the packet was sent, itself included.
    pub(super) tx_in_flight: u64,
    /// Bytes lost before the packet was sent.
    pub(super) prior_lost: u64,
    /// The sender, or ProbeRTT, limited the rate.
    pub(super) limited: bool,
}

impl Sample {
    /// Converts `sample`, given the lowest round trip in nanoseconds and the delivery count up to which ProbeRTT
    /// limited the rate.
    pub(super) fn new(sample: &RateSample, min_rtt: Option<u64>, limited_until: u64) -> Self {
        let interval = nanos(sample.interval);
        let reliable = interval > 0 && min_rtt.is_none_or(|min_rtt| interval >= min_rtt);
        Self {
            rate: if reliable { scale(sample.delivered, SECOND, interval) } else { 0 },
            delivered: sample.delivered,
            prior_delivered: sample.prior_delivered,
            tx_in_flight: sample.tx_in_flight,
            prior_lost: sample.prior_lost,
            limited: sample.app_limited || sample.prior_delivered < limited_until,
        }
    }
}

/// Highest delivery rate of the current and the previous probing cycle (§5.5.5), in bytes a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MaxBandwidth {
    current: u64,
    previous: u64,
}

impl MaxBandwidth {
    /// The estimate; zero before the first sample.
    pub(super) fn value(&self) -> u64 {
        self.current.max(self.previous)
    }

    /// Adds a sample. A limited sample counts only if it raises the estimate.
    pub(super) fn update(&mut self, sample: &Sample) {
        if sample.rate >= self.value() || !sample.limited {
            self.current = self.current.max(sample.rate);
        }
    }

    /// Starts a new cycle, unless the current one has no sample. So the estimate remains after an application-limited
    /// cycle.
    pub(super) fn advance(&mut self) {
        if self.current > 0 {
            self.previous = self.current;
            self.current = 0;
        }
    }
}

/// Lowest round trip, by two filters (§5.3.4.3): one schedules ProbeRTT, the other feeds the model. Nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct MinRtt {
    /// The model's lowest round trip, and its time.
    value: u64,
    stamp: u64,
    /// Lowest round trip since ProbeRTT was last due, and the time from which the next interval counts.
    probe_value: u64,
    probe_stamp: u64,
    /// Lowest round trip ever.
    lowest: u64,
    /// Time at which the path was last found empty, or ProbeRTT last ended.
    drained: u64,
    /// Round trips measured by the last two ProbeRTTs.
    probed: [u64; 2],
    expired: bool,
}

impl MinRtt {
    pub(super) fn new(now: u64) -> Self {
        Self {
            value: u64::MAX,
            stamp: now,
            probe_value: u64::MAX,
            probe_stamp: now,
            lowest: u64::MAX,
            drained: now,
            probed: [0; 2],
            expired: false,
        }
    }

    /// The lowest round trip; `None` before the first sample.
    pub(super) fn value(&self) -> Option<u64> {
        (self.value != u64::MAX).then_some(self.value)
    }

    /// Whether ProbeRTT is due.
    pub(super) fn expired(&self) -> bool {
        self.expired
    }

    /// Adds a sample. `short_path` is the round trip below which differences are ignored.
    pub(super) fn update(&mut self, rtt: Option<u64>, now: u64, short_path: u64) {
        self.expired = now > self.probe_stamp.saturating_add(PROBE_RTT_INTERVAL);
        let Some(rtt) = rtt else { return };
        self.lowest = self.lowest.min(rtt);
        // The path is empty, so ProbeRTT is not needed. The reference is the lowest round trip ever: a full drop-tail
        // queue would confirm a recent minimum that includes the queue.
        if rtt < short_path || rtt <= self.lowest.saturating_add(self.lowest >> 6) {
            self.drained = now;
            self.probe_stamp = now;
        }
        // A large decrease shows that other senders are in ProbeRTT. Senders that restart their intervals at this time
        // enter the next ProbeRTT together. The limit of two intervals is for a slowly shrinking queue, which must not
        // delay ProbeRTT indefinitely.
        let dip = rtt < self.probe_value.saturating_sub(self.probe_value >> 4)
            && now < self.drained.saturating_add(PROBE_RTT_INTERVAL.saturating_mul(2));
        if self.expired || dip {
            self.probe_stamp = now;
        }
        self.probe_value = if self.expired { rtt } else { self.probe_value.min(rtt) };
        if self.probe_value <= self.value || now > self.stamp.saturating_add(MIN_RTT_LIFETIME) {
            self.value = self.probe_value;
            self.stamp = self.probe_stamp;
        }
    }

    /// Handles the end of ProbeRTT. The next one is due after an interval.
    pub(super) fn end_probe_rtt(&mut self, now: u64) {
        self.probe_stamp = now;
        self.expired = false;
        self.drained = now;
        let [_, last] = self.probed;
        self.probed = [last, self.probe_value];
    }

    /// Whether the last two ProbeRTTs found a queue of more than `queue` nanoseconds, as with a loss-based sender at
    /// the same bottleneck.
    pub(super) fn has_persistent_queue(&self, queue: u64) -> bool {
        let limit = self.lowest.saturating_add(queue.max(self.lowest >> 2));
        self.probed.iter().all(|probed| *probed > limit)
    }
}

/// Bytes acknowledged in excess of the estimated bandwidth, by aggregation of acknowledgements (§5.5.9).
#[derive(Clone, Copy, Debug)]
pub(super) struct Aggregation {
    /// Start of the measurement, in nanoseconds.
    since: u64,
    /// Bytes acknowledged since the start.
    acked: u64,
    /// Largest excess in the current half window.
    current: u64,
    /// Largest excess in the previous half window.
    previous: u64,
    /// Round in which the current half window began.
    half_started: u64,
}

impl Aggregation {
    pub(super) fn new(now: u64) -> Self {
        Self { since: now, acked: 0, current: 0, previous: 0, half_started: 0 }
    }

    /// The largest excess of the last rounds, in bytes.
    pub(super) fn excess(&self) -> u64 {
        self.current.max(self.previous)
    }

    /// Restarts the measurement after idle time.
    pub(super) fn restart(&mut self, now: u64) {
        self.since = now;
        self.acked = 0;
    }

    /// Adds `acked` bytes at an estimated bandwidth of `bandwidth` bytes a second. The excess is at most `window`.
    pub(super) fn update(&mut self, now: u64, acked: u64, bandwidth: u64, window: u64, round: u64, startup: bool) {
        let half = if startup { 1 } else { EXCESS_HALF_ROUNDS };
        if round >= self.half_started.saturating_add(half) {
            self.previous = if startup { 0 } else { self.current };
            self.current = 0;
            self.half_started = round;
        }
        let mut expected = scale(bandwidth, now.saturating_sub(self.since), SECOND);
        if self.acked <= expected {
            self.restart(now);
            expected = 0;
        }
        self.acked = self.acked.saturating_add(acked);
        let excess = self.acked.saturating_sub(expected).min(window);
        self.current = self.current.max(excess);
    }
}

/// Detects that faster sending no longer raises the delivery rate (§5.3.1.2).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FullPipe {
    /// Delivery rate from which growth is measured, in bytes a second.
    baseline: u64,
    /// Highest delivery rate of the current round.
    round_rate: u64,
    /// Consecutive rounds without growth.
    rounds: u8,
    /// The pipe is full in the current probe.
    full: bool,
    /// The pipe has been full at least once.
    pub(super) reached: bool,
}

impl FullPipe {
    /// Starts again from a baseline of `rate` bytes a second.
    pub(super) fn restart(&mut self, rate: u64) {
        self.baseline = rate;
        self.round_rate = 0;
        self.rounds = 0;
        self.full = false;
    }

    /// Whether the pipe is full in the current probe.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Whether the rate did not grow in at least one round.
    pub(super) fn is_slowing(&self) -> bool {
        self.rounds > 0
    }

    /// Adds a sample; `round_started` if it begins a round, which completes the round before.
    pub(super) fn update(&mut self, sample: &Sample, round_started: bool) {
        if round_started {
            self.end_round();
        }
        if !sample.limited {
            self.round_rate = self.round_rate.max(sample.rate);
        }
    }

    fn end_round(&mut self) {
        let rate = core::mem::take(&mut self.round_rate);
        if self.full || rate == 0 {
            return;
        }
        if rate >= self.baseline.saturating_add(self.baseline >> 2) {
            self.restart(rate);
            return;
        }
        self.rounds.increment();
        if self.rounds >= FULL_ROUNDS {
            self.full = true;
            self.reached = true;
        }
    }
}

/// Losses and deliveries over one or more rounds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LossCount {
    /// Bytes lost.
    pub(super) lost: u64,
    /// Bytes acknowledged.
    pub(super) acked: u64,
    /// Rounds before the current one.
    pub(super) rounds: u64,
}

impl LossCount {
    /// The bytes among `in_flight` that would be delivered at this loss rate.
    pub(super) fn delivered_of(&self, in_flight: u64) -> u64 {
        scale(in_flight, self.acked, self.volume().max(1))
    }

    /// Mean bytes acknowledged in a round.
    pub(super) fn acked_in_round(&self) -> u64 {
        self.acked.checked_div(self.rounds).unwrap_or(self.acked)
    }

    /// Counts `bytes` as late instead of lost.
    pub(super) fn count_as_late(&mut self, bytes: u64) {
        self.lost = self.lost.saturating_sub(bytes);
        self.acked = self.acked.saturating_add(bytes);
    }

    /// Whether the loss rate exceeds 2 % by two standard deviations: `lost - 2 * sqrt(lost)` is more than 2 % of the
    /// volume, which is at least `volume` bytes and 250 segments.
    pub(super) fn is_too_high(&self, volume: u64, segment: u64) -> bool {
        self.exceeds(2, volume.max(segment.saturating_mul(MIN_LOSS_PACKETS)), segment)
    }

    /// Whether the loss rate exceeds 8 % with the same confidence, over any volume.
    pub(super) fn is_heavy(&self, segment: u64) -> bool {
        self.exceeds(8, 0, segment)
    }

    fn exceeds(&self, hundredths: u64, volume: u64, segment: u64) -> bool {
        let packets = |bytes: u64| bytes.checked_div(segment).unwrap_or(0);
        let lost = packets(self.lost);
        if lost == 0 {
            return false;
        }
        let volume = packets(self.volume().max(volume));
        // Both sides in hundredths of a packet: 2 * sqrt(lost) * 100 = sqrt(40,000 * lost).
        lost.saturating_mul(100).saturating_sub(lost.saturating_mul(40_000).isqrt()) > volume.saturating_mul(hundredths)
    }

    /// Ends a round. The count continues until it covers 250 segments, then restarts.
    pub(super) fn end_round(&mut self, segment: u64) {
        if self.volume() >= segment.saturating_mul(MIN_LOSS_PACKETS) {
            *self = Self::default();
        } else {
            self.rounds.increment();
        }
    }

    fn volume(&self) -> u64 {
        self.lost.saturating_add(self.acked)
    }
}

/// Deterministic random numbers (SplitMix64) for probe intervals. Not secret.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`; zero if `bound` is zero.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).checked_rem(bound).unwrap_or(0)
    }
}
