//! Circuits that wait for a channel to their next hop, with the CREATEs to send over it.

use std::collections::{BTreeMap, HashMap};

use crate::base::{AddressPrefix, AtCap, Counter as _, Instant, Owner, RelayId};

use super::{owners::Owned, table::CircuitKey};

/// Cap on relays that are dialled for the circuits of a source, because the number of a node's dials is limited.
const MAX_DIALS_OF_SOURCE: usize = 16;
/// Cap on relays that are dialled for the circuits of a listed relay.
const MAX_DIALS_OF_RELAY: usize = 64;

/// The circuits of a network or a listed relay may take up to the number of free dials divided by this divisor. So each
/// further network or listed relay finds free dials, until about 23 of them dial relays that don't answer.
const FREE_DIVISOR: usize = 4;

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
    /// The sums of these relays over the sources of each network.
    dials_of_network: HashMap<AddressPrefix, usize>,
}

impl Dialling {
    pub(super) fn new(cap: usize) -> Self {
        let (dials, dials_of_network) = (HashMap::new(), HashMap::new());
        Self { relays: BTreeMap::new(), owned: Owned::new(cap), dials, dials_of_network }
    }

    /// Whether a circuit of `owner` may wait for a channel to `relay`, if the node may start `free` further dials.
    pub(super) fn has_room(&self, owner: &Owner, relay: &RelayId, free: usize) -> bool {
        let cap = match owner {
            Owner::Source(..) => MAX_DIALS_OF_SOURCE,
            Owner::Relay(_) => MAX_DIALS_OF_RELAY,
        };
        let dialled = self.dials.get(owner);
        let is_below = dialled.is_none_or(|dialled| dialled.contains_key(relay) || dialled.len() < cap);
        let in_all = match owner.network() {
            Some(network) => self.dials_of_network.get(&network).copied().unwrap_or_default(),
            None => dialled.map_or(0, BTreeMap::len),
        };
        let may_dial = self.relays.contains_key(relay) || in_all < (free / FREE_DIVISOR).max(1);
        is_below && may_dial && self.owned.check(owner) != Err(AtCap::Share)
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
        let circuits = self.dials.entry(owner).or_default().entry(relay).or_default();
        circuits.increment();
        if *circuits == 1
            && let Some(network) = owner.network()
        {
            self.dials_of_network.entry(network).or_default().increment();
        }
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
                if let Some(network) = waiting.owner.network()
                    && let Some(dials) = self.dials_of_network.get_mut(&network)
                {
                    dials.decrement();
                    if *dials == 0 {
                        self.dials_of_network.remove(&network);
                    }
                }
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
        self.relays.is_empty()
            && self.dials.is_empty()
            && self.dials_of_network.is_empty()
            && self.owned.len() == (0, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn each_listed_relay_and_each_network_takes_up_to_a_quarter_of_the_free_dials() {
        let mut dialling = Dialling::new(4096);
        let relay = |number: u16| {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            RelayId::from_bytes(bytes)
        };
        let mut keys = 0;
        let mut dialled = 0_usize;
        let mut dial = |owner: Owner, tries: usize| {
            let mut started = 0_usize;
            for _ in 0..tries {
                keys += 1;
                let target = relay(keys);
                if dialling.has_room(&owner, &target, 256 - dialled) {
                    let key = CircuitKey::numbered(keys.into());
                    assert!(dialling.insert(Instant::START, target, key, owner, Vec::new()));
                    started += 1;
                    dialled += 1;
                }
            }
            started
        };
        let owners = (1..=10).map(|number| Owner::Relay(relay(60_000 + number)));
        let of_relays: Vec<_> = owners.map(|owner| dial(owner, 80)).collect();
        assert_eq!(of_relays[..3], [51, 41, 33]);
        let of_network: usize = (1..=30).map(|host| dial(Owner::of_address([10, 0, 1, host].into()), 20)).sum();
        assert!(of_network <= of_relays[9], "{of_network}");
        assert!(dial(Owner::of_address([10, 0, 2, 1].into()), 20) > 0, "another network finds a free dial");
        for key in 1..=keys {
            dialling.remove(&relay(key), CircuitKey::numbered(key.into()));
        }
        assert!(dialling.is_empty());
    }
}
