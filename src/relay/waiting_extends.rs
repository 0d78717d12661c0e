//! Circuits that wait for their CREATE to the next hop: for the channel, for the rate at which that relay accepts
//! CREATEs, or for the answers to earlier CREATEs.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::base::{
    Allowances, AtCap, Counter as _, Deadlines, Instant, Owned, Owner, OwnerTurns, Rate, RelayId, Shares,
};

use super::table::CircuitKey;

/// Cap on relays that are dialled for the circuits of a source, because the number of a node's dials is limited. A relay
/// with an open channel, for whose rate or window circuits wait, doesn't count.
const MAX_DIALS_OF_SOURCE: usize = 16;
/// Cap on relays that are dialled for the circuits of a listed relay.
const MAX_DIALS_OF_RELAY: usize = 64;

/// The circuits of a network or a listed relay may take up to the number of free dials divided by this divisor. So each
/// further network or listed relay finds free dials, until about 23 of them dial relays that don't answer.
const FREE_DIVISOR: usize = 4;
/// While the oldest circuit of an owner has waited longer, the owner's newest circuit is next. The circuits of a listed
/// relay are those of many clients. In the order of their age, all of them would wait for the longest backlog that one
/// client can cause.
const MAX_ORDERED_WAIT: Duration = Duration::from_millis(500);

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
    /// The turns of the sources.
    sources: OwnerTurns,
    /// The turns of the listed relays.
    relays: OwnerTurns,
    /// Whether a listed relay is next. Sources and listed relays take turns, because many listed relays may carry
    /// circuits of one attacker.
    is_relay_next: bool,
    /// Whether the relay has no open channel, so that the circuits wait for a dial.
    is_dialled: bool,
}

impl Queue {
    fn insert(&mut self, key: CircuitKey, extend: WaitingExtend) {
        let circuits = self.by_owner.entry(extend.owner).or_default();
        circuits.insert((extend.since, key));
        if circuits.len() == 1 {
            self.turns(&extend.owner).add(extend.owner);
        }
        self.circuits.insert(key, extend);
    }

    fn remove(&mut self, key: CircuitKey) -> Option<WaitingExtend> {
        let extend = self.circuits.remove(&key)?;
        if let Some(circuits) = self.by_owner.get_mut(&extend.owner) {
            circuits.remove(&(extend.since, key));
            if circuits.is_empty() {
                self.by_owner.remove(&extend.owner);
                self.turns(&extend.owner).remove(&extend.owner);
            }
        }
        Some(extend)
    }

    const fn turns(&mut self, owner: &Owner) -> &mut OwnerTurns {
        match owner {
            Owner::Source(..) => &mut self.sources,
            Owner::Relay(_) => &mut self.relays,
        }
    }

    /// The circuit whose turn it is: the one of its owner that has waited longest, or, if that has waited for longer than
    /// [`MAX_ORDERED_WAIT`], the newest one.
    fn next(&mut self, now: Instant) -> Option<CircuitKey> {
        let Self { sources, relays, .. } = self;
        let (first, second) = if self.is_relay_next { (relays, sources) } else { (sources, relays) };
        let owner = first.next_owner().or_else(|| second.next_owner())?;
        self.is_relay_next = matches!(owner, Owner::Source(..));
        let circuits = self.by_owner.get(&owner)?;
        let oldest = circuits.first()?;
        let next = if now.since(oldest.0) > MAX_ORDERED_WAIT { circuits.last()? } else { oldest };
        Some(next.1)
    }
}

/// All waiting circuits, by the relay for which they wait.
pub(super) struct WaitingExtends {
    relays: BTreeMap<RelayId, Queue>,
    /// The share of each owner, with the circuits ordered by the time since which they wait.
    owned: Owned<Instant, CircuitKey>,
    /// The relays for which the circuits of an owner wait, with the number of circuits.
    waits: HashMap<Owner, BTreeMap<RelayId, usize>>,
    /// The number of these relays that are dialled, by owner. Without a cap of its own.
    dials: Shares,
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
            dials: Shares::new(0),
            rates: Allowances::new(rate, rate),
            due: Deadlines::default(),
        }
    }

    /// Whether a CREATE may be sent to `relay` now, ahead of no waiting circuit. Counts it towards the rate.
    pub(super) fn may_create(&mut self, now: Instant, relay: &RelayId) -> bool {
        !self.relays.contains_key(relay) && self.rates.take(now, &Owner::Relay(*relay))
    }

    /// Whether a circuit of `owner` may start a dial to `relay`, if the node may start `free` further dials.
    pub(super) fn may_dial(&self, owner: &Owner, relay: &RelayId, free: usize) -> bool {
        let cap = match owner {
            Owner::Source(..) => MAX_DIALS_OF_SOURCE,
            Owner::Relay(_) => MAX_DIALS_OF_RELAY,
        };
        let waits = self.waits.get(owner).is_some_and(|relays| relays.contains_key(relay));
        let is_below = waits || self.dials.held(owner) < cap;
        let in_network = self.dials.held_in_network(owner);
        is_below && (self.relays.contains_key(relay) || in_network < (free / FREE_DIVISOR).max(1))
    }

    /// The circuit to end so that one more of `owner` may wait. Its owner is as in [`Owned::to_evict`], but a listed relay
    /// at its share loses one of its own circuits: else one of the clients behind it could refuse all others. Of the
    /// owner's circuits for the relay for which most of them wait, the one that has waited longest ends. So circuits to
    /// a relay that doesn't answer end first.
    ///
    /// # Errors
    /// As [`Owned::to_evict`]: no circuit of the source `owner` may wait.
    pub(super) fn to_evict(&self, owner: &Owner) -> Result<Option<CircuitKey>, AtCap> {
        let loser = match (self.owned.loser(owner), owner) {
            (Err(AtCap::Share), Owner::Relay(_)) => Some(*owner),
            (loser, _) => loser?,
        };
        Ok(loser.and_then(|loser| {
            let (relay, _) = self.waits.get(&loser)?.iter().max_by_key(|(_, circuits)| **circuits)?;
            self.relays.get(relay)?.by_owner.get(&loser)?.first().map(|(_, key)| *key)
        }))
    }

    /// Adds a circuit that waits for `relay`, which has an open channel or else is dialled. Returns false if the share of
    /// its owner, or the cap, is reached.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        (relay, is_dialled): (RelayId, bool),
        key: CircuitKey,
        owner: Owner,
        request: Vec<u8>,
    ) -> bool {
        if self.owned.insert(owner, now, key).is_err() {
            return false;
        }
        self.relays.entry(relay).or_default().insert(key, WaitingExtend { owner, since: now, request });
        let circuits = self.waits.entry(owner).or_default().entry(relay).or_default();
        circuits.increment();
        if *circuits == 1 && self.is_dialled(&relay) {
            self.dials.add(&owner, 1);
        }
        self.set_dialled(&relay, is_dialled);
        true
    }

    fn is_dialled(&self, relay: &RelayId) -> bool {
        self.relays.get(relay).is_some_and(|queue| queue.is_dialled)
    }

    /// Sets whether `relay` has no open channel, so that the circuits that wait for it wait for a dial.
    pub(super) fn set_dialled(&mut self, relay: &RelayId, is_dialled: bool) {
        let Some(queue) = self.relays.get_mut(relay).filter(|queue| queue.is_dialled != is_dialled) else { return };
        queue.is_dialled = is_dialled;
        for owner in queue.by_owner.keys() {
            if is_dialled { self.dials.add(owner, 1) } else { self.dials.release(owner) }
        }
    }

    /// Removes a circuit that has ended.
    pub(super) fn remove(&mut self, relay: &RelayId, key: CircuitKey) {
        let Some(queue) = self.relays.get_mut(relay) else { return };
        let Some(extend) = queue.remove(key) else { return };
        self.release(relay, key, &extend);
        if self.remove_empty(relay) {
            self.due.remove(*relay);
        }
    }

    /// Removes and returns the circuits that wait for `relay`.
    pub(super) fn take(&mut self, relay: &RelayId) -> Vec<CircuitKey> {
        self.due.remove(*relay);
        self.set_dialled(relay, false);
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
        let key = queue.next(now)?;
        let extend = queue.remove(key)?;
        self.release(relay, key, &extend);
        self.remove_empty(relay);
        Some((key, extend.request))
    }

    /// Removes the queue of `relay` if it is empty. Returns whether it was.
    fn remove_empty(&mut self, relay: &RelayId) -> bool {
        let is_empty = self.relays.get(relay).is_some_and(|queue| queue.circuits.is_empty());
        if is_empty {
            self.relays.remove(relay);
        }
        is_empty
    }

    /// Releases the shares of a removed circuit.
    fn release(&mut self, relay: &RelayId, key: CircuitKey, extend: &WaitingExtend) {
        self.owned.remove(&extend.owner, extend.since, key);
        let is_dialled = self.is_dialled(relay);
        let Some(relays) = self.waits.get_mut(&extend.owner) else { return };
        if let Some(circuits) = relays.get_mut(relay) {
            circuits.decrement();
            if *circuits == 0 {
                relays.remove(relay);
                if is_dialled {
                    self.dials.release(&extend.owner);
                }
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

    /// The number of all waiting circuits.
    #[cfg(any(test, fuzzing))]
    pub(super) fn total(&self) -> usize {
        self.owned.len()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_empty(&self) -> bool {
        self.relays.is_empty()
            && self.waits.is_empty()
            && self.dials.is_empty()
            && self.due.is_empty()
            && self.owned.counts() == (0, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn each_listed_relay_and_each_network_takes_up_to_a_quarter_of_the_free_dials() {
        let mut waiting = WaitingExtends::new(4096, Rate { per_second: 450, burst: 500 });
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
                if waiting.may_dial(&owner, &target, 256 - dialled) {
                    let key = CircuitKey::numbered(keys.into());
                    assert!(waiting.insert(Instant::START, (target, true), key, owner, Vec::new()));
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
            waiting.remove(&relay(key), CircuitKey::numbered(key.into()));
        }
        assert!(waiting.is_empty());
    }

    #[test]
    fn relays_with_an_open_channel_count_as_no_dials() {
        let mut waiting = WaitingExtends::new(4096, Rate { per_second: 450, burst: 500 });
        let relay = |number: u8| RelayId::from_bytes([number; 32]);
        for owner in [Owner::Relay(relay(200)), Owner::of_address([10, 0, 1, 1].into())] {
            for number in 1..=80 {
                let key = CircuitKey::numbered(number.into());
                assert!(waiting.insert(Instant::START, (relay(number), false), key, owner, Vec::new()));
            }
            assert!(waiting.may_dial(&owner, &relay(100), 4), "no relay is dialled");
            waiting.set_dialled(&relay(1), true);
            assert!(waiting.may_dial(&owner, &relay(1), 4), "it is dialled already");
            assert!(!waiting.may_dial(&owner, &relay(100), 4), "a quarter of the free dials");
            waiting.remove(&relay(1), CircuitKey::numbered(1));
            assert!(waiting.may_dial(&owner, &relay(100), 4), "the dialled relay has no waiting circuit");
            (2..=80).for_each(|number| waiting.set_dialled(&relay(number), true));
            assert!(!waiting.may_dial(&owner, &relay(100), 4096));
            waiting.set_dialled(&relay(2), true);
            (2..=80).for_each(|number| waiting.set_dialled(&relay(number), number % 2 == 0));
            (2..=80).for_each(|number| assert_eq!(waiting.take(&relay(number)).len(), 1));
            assert!(waiting.is_empty());
        }
    }
}
