//! What must hold of an association between calls, and what tests set in it.

use super::{Association, SendConfig, SendHalf, State, stock_peer};
use crate::{base::Instant, transport::sctp::send::check::Standing};

impl Association {
    /// How sending stands. Panics if anything is wrong; `whole`: looks at each fragment.
    pub(in super::super) fn check(&self, whole: bool) -> Standing {
        if let Some(receive) = self.receive.as_ref().filter(|_| whole && !matches!(self.state, State::Ended)) {
            receive.check();
        }
        if whole && !matches!(self.state, State::Ended) {
            self.send.check();
        }
        self.send.standing()
    }

    /// Bytes that may be held for messages that are not whole.
    pub(in super::super) fn bound(&self) -> usize {
        self.receive.as_ref().map_or(0, |receive| receive.bound())
    }

    /// Panics if anything is wrong, or more is held than may be.
    pub(crate) fn assert_sound(&self) {
        self.check(true);
        assert!(self.held() <= self.bound(), "{} bytes held, {} allowed", self.held(), self.bound());
    }

    /// Has its TSNs begin here. Before anything has been sent.
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
