//! Circuits that wait for a channel to their next hop, with the CREATEs to send over it.

use std::collections::{BTreeMap, HashMap};

use crate::base::{AtCap, Counter as _, Instant, Owner, RelayId};

use super::{owners::Owned, table::CircuitKey};

/// Cap on relays that are dialled for the circuits of a source, because the number of a node's dials is limited.
const MAX_DIALS_OF_SOURCE: usize = 16;
/// Cap on relays that are dialled for the circuits of a listed relay.
const MAX_DIALS_OF_RELAY: usize = 64;

/// A waiting circuit.
struct Waiting {
    owner: Owner,
    since: Instant,
    /// The request of the CREATE.
    request: Vec<u8>,
}

/// All waiting circuits, by the relay that is dialled.
pub(super) struct Dialling {
    relays: BTreeMap<RelayId, BTreeMap<CircuitKey, Waiting>>,
    /// The share of each owner, with the circuits ordered by the time since which they wait.
    owned: Owned<Instant, CircuitKey>,
    /// The relays that are dialled for the circuits of an owner, with the number of circuits.
    dials: HashMap<Owner, BTreeMap<RelayId, usize>>,
}

impl Dialling {
    pub(super) fn new(cap: usize) -> Self {
        Self { relays: BTreeMap::new(), owned: Owned::new(cap), dials: HashMap::new() }
    }

    /// Whether a circuit of `owner` may wait for a channel to `relay`.
    pub(super) fn has_room(&self, owner: &Owner, relay: &RelayId) -> bool {
        let cap = match owner {
            Owner::Source(..) => MAX_DIALS_OF_SOURCE,
            Owner::Relay(_) => MAX_DIALS_OF_RELAY,
        };
        let dialled = self.dials.get(owner);
        let may_dial = dialled.is_none_or(|dialled| dialled.contains_key(relay) || dialled.len() < cap);
        may_dial && self.owned.check(owner) != Err(AtCap::Share)
    }

    /// The circuit to end so that one more may wait: of the owner closest to its share, the circuit that has waited
    /// longest. `None` if the cap isn't reached.
    pub(super) fn to_evict(&self, owner: &Owner) -> Option<CircuitKey> {
        self.owned.check(owner).err().and_then(|_| self.owned.lowest()).map(|(_, key)| key)
    }

    /// Adds a circuit that waits for a channel to `relay`. Returns false if the share of its owner, or the cap, is
    /// reached.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        relay: RelayId,
        key: CircuitKey,
        owner: Owner,
        request: Vec<u8>,
    ) -> bool {
        if self.owned.insert(owner, now, key).is_err() {
            return false;
        }
        self.dials.entry(owner).or_default().entry(relay).or_default().increment();
        self.relays.entry(relay).or_default().insert(key, Waiting { owner, since: now, request });
        true
    }

    /// Removes a circuit that has ended.
    pub(super) fn remove(&mut self, relay: &RelayId, key: CircuitKey) {
        let Some(circuits) = self.relays.get_mut(relay) else { return };
        let waiting = circuits.remove(&key);
        if circuits.is_empty() {
            self.relays.remove(relay);
        }
        if let Some(waiting) = waiting {
            self.release(relay, key, &waiting);
        }
    }

    /// Removes and returns the circuits that wait for `relay`, each with the request of its CREATE.
    pub(super) fn take(&mut self, relay: &RelayId) -> Vec<(CircuitKey, Vec<u8>)> {
        let circuits = self.relays.remove(relay).unwrap_or_default();
        let removed = circuits.into_iter().map(|(key, waiting)| {
            self.release(relay, key, &waiting);
            (key, waiting.request)
        });
        removed.collect()
    }

    /// Releases the shares of a removed circuit.
    fn release(&mut self, relay: &RelayId, key: CircuitKey, waiting: &Waiting) {
        self.owned.remove(&waiting.owner, waiting.since, key);
        let Some(dialled) = self.dials.get_mut(&waiting.owner) else { return };
        if let Some(circuits) = dialled.get_mut(relay) {
            circuits.decrement();
            if *circuits == 0 {
                dialled.remove(relay);
            }
        }
        if dialled.is_empty() {
            self.dials.remove(&waiting.owner);
        }
    }

    /// The number of all waiting circuits.
    #[cfg(any(test, fuzzing))]
    pub(super) fn total(&self) -> usize {
        self.owned.len().0
    }

    /// The number of circuits that wait for `relay`.
    #[cfg(test)]
    pub(super) fn len(&self, relay: &RelayId) -> usize {
        self.relays.get(relay).map_or(0, BTreeMap::len)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_empty(&self) -> bool {
        self.relays.is_empty() && self.dials.is_empty() && self.owned.len() == (0, 0, 0)
    }
}
