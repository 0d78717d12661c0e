//! Checks for tests and fuzzing: the invariants of an authority that hold after each turn.

use super::{Authority, MAX_HELD, MAX_PROOFS};
use crate::{
    base::WallTime,
    directory::{MAX_RELAYS, MAX_VOLUNTEERS},
};

impl Authority {
    /// Asserts that the caps hold, and that the schedule of proofs agrees with the relays after a turn at `now`.
    pub(crate) fn assert_sound(&self, now: WallTime) {
        assert!(self.events.is_empty(), "the authority is not drained");
        assert!(self.relays.len() <= MAX_HELD && self.relays.proved() <= MAX_RELAYS, "relays");
        assert!(self.volunteers.len() <= MAX_VOLUNTEERS, "volunteers");
        self.relays.assert_scheduled(now, MAX_PROOFS);
    }

    /// The numbers of relays and of volunteers.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.relays.len(), self.volunteers.len())
    }
}
