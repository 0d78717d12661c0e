//! HyStart++: ends slow start when round trips increase, before packets are lost (RFC 9406).

use crate::base::Counter as _;

/// Lower bound of the round-trip increase that counts as a queue (`MIN_RTT_THRESH`), in nanoseconds.
const MIN_INCREASE: u64 = 4_000_000;
/// Upper bound of that increase (`MAX_RTT_THRESH`), in nanoseconds.
const MAX_INCREASE: u64 = 16_000_000;

/// Smallest number of samples in a round for the round's minimum to count (`N_RTT_SAMPLE`).
const MIN_SAMPLES: u32 = 8;

/// Divisor of growth in conservative slow start (`CSS_GROWTH_DIVISOR`).
const CONSERVATIVE_DIVISOR: u64 = 4;

/// Rounds of conservative slow start before slow start ends (`CSS_ROUNDS`).
const CONSERVATIVE_ROUNDS: u32 = 5;

/// Conservative slow start, which checks whether the round-trip increase persists.
#[derive(Clone, Copy, Debug)]
struct Conservative {
    /// Round trip below which the increase has not persisted, in nanoseconds.
    baseline: u64,
    rounds: u32,
}

/// State of HyStart++ over the rounds of one slow start. Round trips are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct HyStart {
    /// The acknowledgement of a packet sent at or after this count of delivered bytes begins the next round.
    round_end: u64,
    last_min: u64,
    current_min: u64,
    samples: u32,
    conservative: Option<Conservative>,
}

impl Default for HyStart {
    fn default() -> Self {
        Self { round_end: 0, last_min: u64::MAX, current_min: u64::MAX, samples: 0, conservative: None }
    }
}

impl HyStart {
    /// Handles the acknowledgement of a packet sent when `prior_delivered` bytes had been delivered. Returns `true` if
    /// slow start ends.
    pub(super) fn on_ack(&mut self, rtt: Option<u64>, prior_delivered: u64, delivered: u64) -> bool {
        let mut exit = false;
        if prior_delivered >= self.round_end {
            self.round_end = delivered;
            self.last_min = self.current_min;
            self.current_min = u64::MAX;
            self.samples = 0;
            if let Some(conservative) = &mut self.conservative {
                conservative.rounds.increment();
                exit = conservative.rounds >= CONSERVATIVE_ROUNDS;
            }
        }
        let Some(rtt) = rtt else { return exit };
        self.current_min = self.current_min.min(rtt);
        self.samples.increment();
        if self.samples < MIN_SAMPLES || self.last_min == u64::MAX {
            return exit;
        }
        match self.conservative {
            None => {
                let increase = (self.last_min >> 3).clamp(MIN_INCREASE, MAX_INCREASE);
                if self.current_min >= self.last_min.saturating_add(increase) {
                    self.conservative = Some(Conservative { baseline: self.current_min, rounds: 0 });
                }
            }
            Some(conservative) if self.current_min < conservative.baseline => self.conservative = None,
            Some(_) => {}
        }
        exit
    }

    /// Window growth in bytes for `acked` bytes.
    pub(super) fn growth(&self, acked: u64) -> u64 {
        if self.conservative.is_some() { acked / CONSERVATIVE_DIVISOR } else { acked }
    }

    /// Whether slow start is conservative because the round trip has increased.
    pub(super) fn is_conservative(&self) -> bool {
        self.conservative.is_some()
    }
}
