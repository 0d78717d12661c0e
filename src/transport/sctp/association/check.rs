//! Invariants of an association between calls, and a setter for tests.

use super::{Association, AssociationState, SendConfig, SendHalf, stock_peer};
use crate::{base::Instant, transport::sctp::send::check::SendingState};

impl Association {
    /// Returns the state of the sending half. Asserts the invariants first if `with_invariants` is set.
    pub(in super::super) fn check(&self, with_invariants: bool) -> SendingState {
        if let Some(receive) =
            self.receive.as_ref().filter(|_| with_invariants && !matches!(self.state, AssociationState::Ended))
        {
            receive.check();
        }
        if with_invariants && !matches!(self.state, AssociationState::Ended) {
            self.send.check();
        }
        self.send.sending_state()
    }

    /// Most bytes that may be held for incomplete messages.
    pub(in super::super) fn max_held(&self) -> usize {
        self.receive.as_ref().map_or(0, |receive| receive.max_held())
    }

    /// Asserts the invariants and that at most [`Self::max_held`] bytes are held.
    pub(crate) fn assert_sound(&self) {
        self.check(true);
        assert!(self.held() <= self.max_held(), "{} bytes held, {} allowed", self.held(), self.max_held());
    }

    /// Sets the first TSN. Call it before the first packet.
    pub(in super::super) fn set_first_tsn(&mut self, now: Instant, tsn: u32) {
        let config = SendConfig {
            max_packet: self.config.max_packet,
            algorithm: self.config.algorithm,
            seed: 1,
            max_window: self.config.max_send_window,
        };
        self.local_tsn = tsn;
        self.send = SendHalf::new(now, config, stock_peer(), tsn);
    }
}
