//! The bytes sent on one stream, and the limits on the peer's CREDIT for them (`proto/06-flow.md` §1).

use super::INITIAL_CREDIT;
use crate::base::Counter as _;

/// Minimum bytes that a receiver reads before each CREDIT: a quarter of the initial credit.
const MIN_BYTES_PER_CREDIT: u64 = INITIAL_CREDIT as u64 / 4;
/// Maximum credit beyond the initial credit and the read bytes: the largest valid value of `flow.stream-credit`.
const MAX_EXTRA_CREDIT: u64 = 16 << 20;

/// The bytes sent on a stream, and the credit received for them.
#[derive(Clone, Copy, Default)]
pub(super) struct SentBytes {
    /// Bytes sent.
    sent: u64,
    /// Number of received CREDITs.
    credits: u64,
    /// Bytes granted by all received CREDITs.
    credited: u64,
}

impl SentBytes {
    /// Bytes that this end may still send.
    pub(super) const fn credit(&self) -> u64 {
        self.credited.saturating_add(INITIAL_CREDIT as u64).saturating_sub(self.sent)
    }

    /// Counts `bytes` sent by this end, at most the credit.
    pub(super) fn handle_sent(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Handles a CREDIT of the peer; `false` if no reader of the sent bytes can grant it.
    pub(super) fn handle_credit(&mut self, bytes: u32) -> bool {
        self.credits.increment();
        self.credited = self.credited.saturating_add(bytes.into());
        self.credits.saturating_mul(MIN_BYTES_PER_CREDIT) <= self.sent
            && self.credited <= self.sent.saturating_add(MAX_EXTRA_CREDIT)
    }
}
