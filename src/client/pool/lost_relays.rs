//! Relays of circuits that were lost recently.
//!
//! One of them may be unreachable. A request prefers circuits without them, which causes no traffic by itself. A probe
//! of other circuits would show their exits that all belong to one client.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::base::{Instant, RelayId};

/// Time for which requests prefer circuits without these relays.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The time of the last loss for each relay. At most the relays behind the guards of circuits lost in ten seconds.
#[derive(Default)]
pub(super) struct LostRelays(BTreeMap<RelayId, Instant>);

impl LostRelays {
    /// A circuit over `path` was lost. Its guard is left out, because the end of a channel shows the loss of a guard.
    pub(super) fn handle_lost(&mut self, now: Instant, path: impl IntoIterator<Item = RelayId>) {
        self.0.retain(|_, at| now.since(*at) < REMEMBERED);
        self.0.extend(path.into_iter().skip(1).map(|relay| (relay, now)));
    }

    /// Whether a circuit over `relay` was lost recently.
    pub(super) fn contains(&self, now: Instant, relay: &RelayId) -> bool {
        self.0.get(relay).is_some_and(|at| now.since(*at) < REMEMBERED)
    }
}
