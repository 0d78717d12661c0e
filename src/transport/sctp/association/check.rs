//! Invariants of an association between calls, and setters for tests.

use super::{Association, AssociationState, SendConfig, SendHalf, stock_peer};
use crate::{base::Instant, transport::sctp::send::check::SendingState};

impl Association {
    /// Asserts the invariants and returns the state of the sending half. `all` extends the check to every fragment.
    pub(in super::super) fn check(&self, all: bool) -> SendingState {
        if let Some(receive) = self.receive.as_ref().filter(|_| all && !matches!(self.state, AssociationState::Ended)) {
            receive.check();
        }
        if all && !matches!(self.state, AssociationState::Ended) {
            self.send.check();
        }
        self.send.standing()
    }

    /// Most bytes that may be held for incomplete messages.
    pub(in super::super) fn bound(&self) -> usize {
        self.receive.as_ref().map_or(0, |receive| receive.bound())
    }

    /// Asserts the invariants and that at most [`Self::bound`] bytes are held.
    pub(crate) fn assert_sound(&self) {
        self.check(true);
        assert!(self.held() <= self.bound(), "{} bytes held, {} allowed", self.held(), self.bound());
    }

    /// Sets the first TSN. Call it before the first packet.
    pub(in super::super) fn set_first_tsn(&mut self, now: Instant, tsn: u32) {
        let config = SendConfig {
            packet: self.config.packet,
            algorithm: self.config.algorithm,
            seed: 1,
            max_window: self.config.send_window_max,
        };
        self.local_tsn = tsn;
        self.send = SendHalf::new(now, config, stock_peer(), tsn);
    }
}
