//! Relays of recently lost circuits.
//!
//! One relay of a lost circuit may be unreachable. Requests of the same isolation prefer circuits without these relays,
//! which causes no traffic by itself. Probes of other circuits would show their relays that the circuits belong to one
//! client. Preferences of other isolations would show it to the relays of the lost circuit.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::{
    base::{Instant, RelayId},
    client::Isolation,
};

/// Time for which requests prefer circuits without these relays.
const LOSS_LIFETIME: Duration = Duration::from_secs(10);

/// The time of the last loss for each isolation and relay. Contains only relays behind the guards of circuits lost
/// within ten seconds.
#[derive(Default)]
pub(super) struct LostRelays(BTreeMap<(Isolation, RelayId), Instant>);

impl LostRelays {
    /// A circuit of `isolation` over `path` was lost. The guard isn't recorded, because the end of its channel shows
    /// the loss of a guard.
    pub(super) fn handle_lost(&mut self, now: Instant, isolation: Isolation, path: impl IntoIterator<Item = RelayId>) {
        self.0.retain(|_, at| now.since(*at) < LOSS_LIFETIME);
        self.0.extend(path.into_iter().skip(1).map(|relay| ((isolation, relay), now)));
    }

    /// Whether a circuit of `isolation` over `relay` was lost recently.
    pub(super) fn contains(&self, now: Instant, isolation: Isolation, relay: RelayId) -> bool {
        self.0.get(&(isolation, relay)).is_some_and(|at| now.since(*at) < LOSS_LIFETIME)
    }
}
