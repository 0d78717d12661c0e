//! Circuits that wait for their CREATE to the next hop: for the channel, or for the rate at which that relay accepts
//! CREATEs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::base::{Allowances, AtCap, Counter as _, Deadlines, Instant, Owner, Rate, RelayId};

use super::{owners::Owned, table::CircuitKey, turns::Turns};

/// Cap on relays for which the circuits of a source wait, because the number of a node's dials is limited.
const MAX_RELAYS_OF_SOURCE: usize = 16;
/// Cap on relays for which the circuits of a listed relay wait.
const MAX_RELAYS_OF_RELAY: usize = 64;

/// A waiting circuit.
struct WaitingExtend {
    owner: Owner,
    since: Instant,
    /// The request of the CREATE.
    request: Vec<u8>,
}

/// The circuits that wait for one relay, never empty.
#[derive(Default)]
struct Queue {
    circuits: BTreeMap<CircuitKey, WaitingExtend>,
    /// The circuits of each owner, ordered by the time since which they wait.
    by_owner: HashMap<Owner, BTreeSet<(Instant, CircuitKey)>>,
    turns: Turns,
}

impl Queue {
    fn insert(&mut self, key: CircuitKey, extend: WaitingExtend) {
        let circuits = self.by_owner.entry(extend.owner).or_default();
        if circuits.is_empty() {
            self.turns.add(extend.owner);
        }
        circuits.insert((extend.since, key));
        self.circuits.insert(key, extend);
    }

    fn remove(&mut self, key: CircuitKey) -> Option<WaitingExtend> {
        let extend = self.circuits.remove(&key)?;
        if let Some(circuits) = self.by_owner.get_mut(&extend.owner) {
            circuits.remove(&(extend.since, key));
            if circuits.is_empty() {
                self.by_owner.remove(&extend.owner);
                self.turns.remove(&extend.owner);
            }
        }
        Some(extend)
    }

    /// The circuit whose turn it is: the one of its owner that has waited longest.
    fn next(&mut self) -> Option<CircuitKey> {
        let owner = self.turns.next()?;
        self.by_owner.get(&owner)?.first().map(|(_, key)| *key)
    }
}

/// All waiting circuits, by the relay for which they wait.
pub(super) struct WaitingExtends {
    relays: BTreeMap<RelayId, Queue>,
    /// The share of each owner, with the circuits ordered by the time since which they wait.
    owned: Owned<Instant, CircuitKey>,
    /// The relays for which the circuits of an owner wait, with the number of circuits.
    waits: HashMap<Owner, BTreeMap<RelayId, usize>>,
    /// The rate of CREATEs to each relay.
    rates: Allowances,
    /// The time of the next CREATE to each relay that has an open channel and waiting circuits.
    due: Deadlines<RelayId>,
}

impl WaitingExtends {
    /// No waiting circuit; `rate` is the rate of CREATEs to each relay.
    pub(super) fn new(cap: usize, rate: Rate) -> Self {
        Self {
            relays: BTreeMap::new(),
            owned: Owned::new(cap),
            waits: HashMap::new(),
            rates: Allowances::new(rate, rate),
            due: Deadlines::default(),
        }
    }

    /// Whether a CREATE may be sent to `relay` now, ahead of no waiting circuit. Counts it towards the rate.
    pub(super) fn may_create(&mut self, now: Instant, relay: &RelayId) -> bool {
        !self.relays.contains_key(relay) && self.rates.take(now, &Owner::Relay(*relay))
    }

    /// Whether a circuit of `owner` may wait for `relay`.
    pub(super) fn has_room(&self, owner: &Owner, relay: &RelayId) -> bool {
        let cap = match owner {
            Owner::Source(..) => MAX_RELAYS_OF_SOURCE,
            Owner::Relay(_) => MAX_RELAYS_OF_RELAY,
        };
        let waits = self.waits.get(owner);
        let may_wait = waits.is_none_or(|relays| relays.contains_key(relay) || relays.len() < cap);
        may_wait && self.owned.check(owner) != Err(AtCap::Share)
    }

    /// The circuit to end so that one more may wait: of the owner closest to its share, the circuit that has waited
    /// longest. `None` if the cap isn't reached.
    pub(super) fn to_evict(&self, owner: &Owner) -> Option<CircuitKey> {
        self.owned.check(owner).err().and_then(|_| self.owned.lowest()).map(|(_, key)| key)
    }

    /// Adds a circuit that waits for `relay`. Returns false if the share of its owner, or the cap, is reached.
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
        self.waits.entry(owner).or_default().entry(relay).or_default().increment();
        self.relays.entry(relay).or_default().insert(key, WaitingExtend { owner, since: now, request });
        true
    }

    /// Removes a circuit that has ended.
    pub(super) fn remove(&mut self, relay: &RelayId, key: CircuitKey) {
        let Some(queue) = self.relays.get_mut(relay) else { return };
        let extend = queue.remove(key);
        if queue.circuits.is_empty() {
            self.relays.remove(relay);
            self.due.remove(*relay);
        }
        if let Some(extend) = extend {
            self.release(relay, key, &extend);
        }
    }

    /// Removes and returns the circuits that wait for `relay`.
    pub(super) fn take(&mut self, relay: &RelayId) -> Vec<CircuitKey> {
        self.due.remove(*relay);
        let queue = self.relays.remove(relay).unwrap_or_default();
        let removed = queue.circuits.into_iter().map(|(key, extend)| {
            self.release(relay, key, &extend);
            key
        });
        removed.collect()
    }

    /// Schedules the next CREATE to `relay`, which has an open channel, if a circuit waits for it.
    pub(super) fn schedule(&mut self, relay: RelayId) {
        if self.relays.contains_key(&relay) {
            self.due.set(relay, self.rates.available_at(&Owner::Relay(relay)));
        }
    }

    /// A relay whose next CREATE is due, for [`Self::pop`].
    pub(super) fn poll_due(&mut self, now: Instant) -> Option<RelayId> {
        self.due.pop_due(now)
    }

    /// The time of the next [`Self::poll_due`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.earliest()
    }

    /// Removes and returns the next circuit that waits for `relay`, in turns of the owners, with the request of its
    /// CREATE. `None` if there is none, or if the rate permits none now: then its time is scheduled.
    pub(super) fn pop(&mut self, now: Instant, relay: &RelayId) -> Option<(CircuitKey, Vec<u8>)> {
        let queue = self.relays.get_mut(relay)?;
        if !self.rates.take(now, &Owner::Relay(*relay)) {
            self.schedule(*relay);
            return None;
        }
        let key = queue.next()?;
        let extend = queue.remove(key)?;
        if queue.circuits.is_empty() {
            self.relays.remove(relay);
        }
        self.release(relay, key, &extend);
        Some((key, extend.request))
    }

    /// Releases the shares of a removed circuit.
    fn release(&mut self, relay: &RelayId, key: CircuitKey, extend: &WaitingExtend) {
        self.owned.remove(&extend.owner, extend.since, key);
        let Some(relays) = self.waits.get_mut(&extend.owner) else { return };
        if let Some(circuits) = relays.get_mut(relay) {
            circuits.decrement();
            if *circuits == 0 {
                relays.remove(relay);
            }
        }
        if relays.is_empty() {
            self.waits.remove(&extend.owner);
        }
    }

    /// The number of circuits that wait for `relay`.
    #[cfg(test)]
    pub(super) fn len(&self, relay: &RelayId) -> usize {
        self.relays.get(relay).map_or(0, |queue| queue.circuits.len())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.relays.is_empty() && self.waits.is_empty() && self.due.is_empty() && self.owned.len() == (0, 0, 0)
    }
}
