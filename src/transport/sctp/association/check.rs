//! Checks for tests and fuzzing: the invariants of an association that hold after each public call, and a setter of the
//! first TSN.

use super::{Association, AssociationState, SendConfig, SendHalf, stock_peer};
use crate::{base::Instant, transport::sctp::send::check::SendingState};

impl Association {
    /// The state of the sending half.
    pub(in super::super) fn sending_state(&self) -> SendingState {
        self.send.sending_state()
    }

    /// Asserts the invariants of both halves, unless the association has ended.
    pub(in super::super) fn assert_invariants(&self) {
        if matches!(self.state, AssociationState::Ended) {
            return;
        }
        if let Some(receive) = &self.receive {
            receive.assert_invariants();
        }
        self.send.assert_invariants();
    }

    /// Maximum bytes held for incomplete messages and out-of-order fragments.
    pub(in super::super) fn max_held(&self) -> usize {
        self.receive.as_ref().map_or(0, |receive| receive.max_held())
    }

    /// Asserts the invariants and that at most [`Self::max_held`] bytes are held.
    pub(crate) fn assert_sound(&self) {
        self.assert_invariants();
        assert!(self.held() <= self.max_held(), "{} bytes held, {} allowed", self.held(), self.max_held());
    }

    /// Whether no step of the handshake is in progress.
    pub(crate) const fn is_settled(&self) -> bool {
        matches!(self.state, AssociationState::Listening | AssociationState::Established | AssociationState::Ended)
    }

    /// Sets the first TSN of this end by replacing its sending half. Call it before a packet is sent or received.
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
