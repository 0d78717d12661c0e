//! The due proofs of unproved relays, in turns of their publishers.
//!
//! The networks of publishers take turns, and the sources of a network take turns within it. Neither the number of
//! publishers nor that of their relays affects the time of a turn, because new identities and descriptors cost nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use core::ops::Bound;

use crate::{
    base::{AddressPrefix, Counter as _, RelayId, WallTime},
    directory::authority::Publisher,
};

/// A prefix with its last turn, 0 for none: its place in the order of turns.
pub(super) type TurnOrder = (u64, AddressPrefix);

/// The waiting relays of a source, the longest due first.
type DueRelays = BTreeSet<(WallTime, RelayId)>;

/// The unproved relays whose proofs are due and wait for a place.
#[derive(Default)]
pub(super) struct UnprovedQueue {
    /// The last turns of networks and sources, also of some without a waiting relay.
    last_turns: HashMap<AddressPrefix, u64>,
    /// The number of turns so far.
    turns: u64,
    /// The networks with waiting relays, the one with the oldest turn first.
    order: BTreeSet<TurnOrder>,
    networks: HashMap<AddressPrefix, WaitingNetwork>,
}

/// The sources of a network with waiting relays, the one with the oldest turn first.
#[derive(Default)]
struct WaitingNetwork(BTreeMap<TurnOrder, DueRelays>);

impl UnprovedQueue {
    /// The place of a prefix in the order of turns.
    fn place(&self, prefix: AddressPrefix) -> TurnOrder {
        (self.last_turns.get(&prefix).copied().unwrap_or_default(), prefix)
    }

    /// Adds a relay of `publisher` whose proof is due since `at`.
    pub(super) fn insert(&mut self, publisher: &Publisher, at: WallTime, relay: RelayId) {
        let (network, source) = (self.place(publisher.network), self.place(publisher.source));
        self.order.insert(network);
        self.networks.entry(publisher.network).or_default().0.entry(source).or_default().insert((at, relay));
    }

    /// Removes a relay.
    pub(super) fn remove(&mut self, publisher: &Publisher, at: WallTime, relay: RelayId) {
        let (network, source) = (self.place(publisher.network), self.place(publisher.source));
        let Some(waiting) = self.networks.get_mut(&publisher.network) else { return };
        if let Some(due) = waiting.0.get_mut(&source) {
            due.remove(&(at, relay));
            if due.is_empty() {
                waiting.0.remove(&source);
            }
        }
        if waiting.0.is_empty() {
            self.networks.remove(&publisher.network);
            self.order.remove(&network);
        }
    }

    /// The network whose turn is next after that of `last`; the first one if there was none.
    pub(super) fn next_network(&self, last: Option<TurnOrder>) -> Option<TurnOrder> {
        self.order.range((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)).next().copied()
    }

    /// The waiting relays of a network, in the order of turns of their sources, then the longest due first.
    pub(super) fn of_network(&self, network: AddressPrefix) -> impl Iterator<Item = &(WallTime, RelayId)> {
        self.networks.get(&network).into_iter().flat_map(|waiting| waiting.0.values().flatten())
    }

    /// Records a turn of the publisher: its network, and its source within the network, are the last ones now.
    pub(super) fn take_turn(&mut self, publisher: &Publisher) {
        let (network, source) = (self.place(publisher.network), self.place(publisher.source));
        self.turns.increment();
        self.last_turns.insert(publisher.network, self.turns);
        self.last_turns.insert(publisher.source, self.turns);
        if self.order.remove(&network) {
            self.order.insert(self.place(publisher.network));
        }
        let last = self.place(publisher.source);
        if let Some(WaitingNetwork(sources)) = self.networks.get_mut(&publisher.network)
            && let Some(due) = sources.remove(&source)
        {
            sources.insert(last, due);
        }
    }

    /// The number of prefixes with a turn.
    pub(super) fn turns_len(&self) -> usize {
        self.last_turns.len()
    }

    /// Removes the turns of prefixes that `is_known` doesn't contain. Those of waiting relays must be known.
    pub(super) fn retain_turns(&mut self, is_known: impl Fn(&AddressPrefix) -> bool) {
        self.last_turns.retain(|prefix, _| is_known(prefix));
    }
}

#[cfg(any(test, fuzzing))]
impl UnprovedQueue {
    /// Whether the relay waits in the turn of `publisher`.
    pub(super) fn contains(&self, publisher: &Publisher, at: WallTime, relay: RelayId) -> bool {
        let waiting =
            self.networks.get(&publisher.network).filter(|_| self.order.contains(&self.place(publisher.network)));
        let due = waiting.and_then(|waiting| waiting.0.get(&self.place(publisher.source)));
        due.is_some_and(|due| due.contains(&(at, relay)))
    }

    /// The number of waiting relays. Asserts that the networks agree with their order.
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.order.len(), self.networks.len());
        self.networks.keys().map(|network| self.of_network(*network).count()).sum()
    }
}
