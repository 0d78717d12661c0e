//! Counts of an authority's relays by addresses and by publishers, for its caps and evictions.
//!
//! New identities and descriptors cost nothing, so each descriptor must cost little time: it causes an iteration over
//! at most the unproved relays of its own networks.

use std::collections::{BTreeSet, HashMap};

use core::{cmp::Reverse, net::SocketAddr};

use super::{PROVED_CAPS, RelayEntry};
use crate::{
    base::{AddressPrefix, Counter as _, RelayId, WallTime},
    directory::authority::crowding::{RelaysByPrefix, prefixes},
};

/// The counts of all held relays.
pub(super) struct RelayCounts {
    counted: HashMap<RelayId, CountedRelay>,
    /// The number of proved relays.
    proved: usize,
    proved_by_prefix: RelaysByPrefix,
    /// The unproved relays by the networks of their addresses; empty if `uncapped` is set.
    unproved_by_network: HashMap<AddressPrefix, BTreeSet<RelayId>>,
    /// The unproved relays by the networks of their publishers.
    unproved_by_publisher: HashMap<AddressPrefix, UnprovedRelays>,
    /// The candidates for an eviction: the first candidate of each publishers' network, after the number of its
    /// unproved relays. The last one is evicted first.
    evictions: BTreeSet<(usize, Candidate)>,
    /// Whether the caps for each address, network and block are off, as in a testnet.
    uncapped: bool,
}

/// A relay as it is counted.
#[derive(PartialEq, Eq)]
struct CountedRelay {
    addresses: Vec<SocketAddr>,
    state: CountedState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CountedState {
    Proved {
        known_since: WallTime,
    },
    Unproved {
        /// The network of the publisher.
        publisher: AddressPrefix,
        /// `None` while the relay is being proved, because a running proof must stay counted.
        candidate: Option<Candidate>,
    },
}

/// An unproved relay that may be evicted. The greatest candidate of a publishers' network is evicted first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// The number of unproved relays in the network with the most, of the networks of the relay's addresses.
    of_network: usize,
    /// The number of failed proofs.
    failures: u32,
    /// The time of the first descriptor.
    added_at: Reverse<WallTime>,
    relay: RelayId,
}

/// The unproved relays of a publishers' network.
#[derive(Default)]
struct UnprovedRelays {
    /// The number of the relays, including those that are being proved.
    count: usize,
    candidates: BTreeSet<Candidate>,
}

impl CountedRelay {
    fn of(entry: &RelayEntry) -> Self {
        let state = if entry.is_proved() {
            CountedState::Proved { known_since: entry.known_since() }
        } else {
            let (relay, failures, added_at) = (entry.identity(), entry.failures, Reverse(entry.added_at));
            let candidate = Candidate { of_network: 0, failures, added_at, relay };
            let candidate = Some(candidate).filter(|_| !entry.is_being_proved());
            CountedState::Unproved { publisher: entry.publisher.network, candidate }
        };
        Self { addresses: entry.addresses().to_vec(), state }
    }

    fn networks(&self) -> Vec<AddressPrefix> {
        self.addresses.iter().map(|address| AddressPrefix::network(address.ip())).collect()
    }

    const fn is_proved(&self) -> bool {
        matches!(self.state, CountedState::Proved { .. })
    }
}

impl RelayCounts {
    pub(super) fn new(uncapped: bool) -> Self {
        Self {
            counted: HashMap::new(),
            proved: 0,
            proved_by_prefix: RelaysByPrefix::default(),
            unproved_by_network: HashMap::new(),
            unproved_by_publisher: HashMap::new(),
            evictions: BTreeSet::new(),
            uncapped,
        }
    }

    /// The number of proved relays.
    pub(super) const fn proved(&self) -> usize {
        self.proved
    }

    /// The proved relays by the prefixes of their addresses.
    pub(super) const fn proved_by_prefix(&self) -> &RelaysByPrefix {
        &self.proved_by_prefix
    }

    /// Updates the counts after a change of the relay.
    pub(super) fn update(&mut self, entry: &RelayEntry) {
        let relay = entry.identity();
        self.remove(&relay);
        let counted = CountedRelay::of(entry);
        match counted.state {
            CountedState::Proved { known_since } => {
                self.proved.increment();
                self.proved_by_prefix.insert(relay, known_since, &counted.addresses);
                self.counted.insert(relay, counted);
            }
            CountedState::Unproved { publisher, candidate } => {
                let networks = counted.networks();
                self.counted.insert(relay, counted);
                self.change_publisher(publisher, |unproved| {
                    unproved.count.increment();
                    unproved.candidates.extend(candidate);
                });
                let uncapped = self.uncapped;
                for network in networks.into_iter().filter(|_| !uncapped) {
                    self.unproved_by_network.entry(network).or_default().insert(relay);
                    self.recount(network);
                }
            }
        }
    }

    /// Removes a relay from the counts.
    pub(super) fn remove(&mut self, relay: &RelayId) {
        let Some(counted) = self.counted.remove(relay) else { return };
        match counted.state {
            CountedState::Proved { known_since } => {
                self.proved.decrement();
                self.proved_by_prefix.remove(*relay, known_since, &counted.addresses);
            }
            CountedState::Unproved { publisher, candidate } => {
                self.change_publisher(publisher, |unproved| {
                    unproved.count.decrement();
                    if let Some(candidate) = &candidate {
                        unproved.candidates.remove(candidate);
                    }
                });
                for network in counted.networks() {
                    if let Some(relays) = self.unproved_by_network.get_mut(&network) {
                        relays.remove(relay);
                        if relays.is_empty() {
                            self.unproved_by_network.remove(&network);
                        }
                    }
                    self.recount(network);
                }
            }
        }
    }

    /// Whether proved relays other than `relay` have reached a cap at one of `addresses`, in its network or in its
    /// block.
    pub(super) fn is_crowded(&self, relay: &RelayId, addresses: &[SocketAddr]) -> bool {
        let own = self.counted.get(relay).filter(|counted| counted.is_proved());
        let own = own.map_or(&[][..], |counted| &counted.addresses);
        let others = |prefix: AddressPrefix| {
            let is_own = prefixes(&PROVED_CAPS, own).any(|(own, _)| own == prefix);
            self.proved_by_prefix.count(&prefix).saturating_sub(usize::from(is_own))
        };
        !self.uncapped && prefixes(&PROVED_CAPS, addresses).any(|(prefix, cap)| others(prefix) >= cap)
    }

    /// The unproved relay that is evicted first, by these criteria in order:
    /// 1. Its publishers' network has the most unproved relays.
    /// 2. One of its addresses is in the network with the most unproved relays.
    /// 3. It has the most failures.
    /// 4. It was held for longest.
    pub(super) fn first_eviction(&self) -> Option<RelayId> {
        self.evictions.last().map(|(_, candidate)| candidate.relay)
    }

    /// The number of unproved relays at addresses in `network`, without `relay`.
    pub(super) fn others_unproved(&self, network: &AddressPrefix, relay: &RelayId) -> usize {
        let relays = self.unproved_by_network.get(network);
        relays.map_or(0, |relays| relays.len().saturating_sub(usize::from(relays.contains(relay))))
    }

    /// The unproved relay other than `relay` at an address in `network` that is evicted first. The criteria are those
    /// of [`Self::first_eviction`] without the second.
    pub(super) fn first_eviction_in(&self, network: &AddressPrefix, relay: &RelayId) -> Option<RelayId> {
        let candidates = self.unproved_by_network.get(network)?.iter().filter(|other| *other != relay);
        let candidates = candidates.filter_map(|other| match self.counted.get(other)?.state {
            CountedState::Unproved { publisher, candidate: Some(candidate) } => {
                Some((self.unproved_by_publisher.get(&publisher)?.count, Candidate { of_network: 0, ..candidate }))
            }
            _ => None,
        });
        candidates.max().map(|(_, candidate)| candidate.relay)
    }

    /// Changes the unproved relays of a publishers' network, and its place in the order of evictions.
    fn change_publisher(&mut self, publisher: AddressPrefix, change: impl FnOnce(&mut UnprovedRelays)) {
        let unproved = self.unproved_by_publisher.entry(publisher).or_default();
        if let Some(candidate) = unproved.candidates.last() {
            self.evictions.remove(&(unproved.count, *candidate));
        }
        change(unproved);
        if let Some(candidate) = unproved.candidates.last() {
            self.evictions.insert((unproved.count, *candidate));
        }
        if unproved.count == 0 {
            self.unproved_by_publisher.remove(&publisher);
        }
    }

    /// Updates the candidates at addresses in `network` after a change of the number of unproved relays there.
    fn recount(&mut self, network: AddressPrefix) {
        let relays: Vec<RelayId> = self.unproved_by_network.get(&network).into_iter().flatten().copied().collect();
        for relay in relays {
            let Some(counted) = self.counted.get(&relay) else { continue };
            let count = |network| self.unproved_by_network.get(&network).map_or(0, BTreeSet::len);
            let of_network = counted.networks().into_iter().map(count).max().unwrap_or_default();
            let CountedState::Unproved { publisher, candidate: Some(old) } = counted.state else { continue };
            if old.of_network == of_network {
                continue;
            }
            let new = Candidate { of_network, ..old };
            if let Some(counted) = self.counted.get_mut(&relay) {
                counted.state = CountedState::Unproved { publisher, candidate: Some(new) };
            }
            self.change_publisher(publisher, |unproved| {
                unproved.candidates.remove(&old);
                unproved.candidates.insert(new);
            });
        }
    }
}

#[cfg(any(test, fuzzing))]
impl RelayCounts {
    /// Asserts that the counts agree with `entries`, by an iteration over all relays.
    pub(super) fn assert_counted(&self, entries: &std::collections::BTreeMap<RelayId, RelayEntry>) {
        use super::{MAX_UNPROVED_OF_NETWORK, count_prefixes};

        let proved = || entries.values().filter(|entry| entry.is_proved());
        let unproved = || entries.values().filter(|entry| !entry.is_proved());
        assert_eq!((self.counted.len(), self.proved), (entries.len(), proved().count()));
        for prefix in [AddressPrefix::source, AddressPrefix::network, AddressPrefix::block] {
            for (prefix, count) in count_prefixes(proved().flat_map(|entry| entry.prefixes(prefix))) {
                assert_eq!(self.proved_by_prefix.count(&prefix), count);
            }
        }
        let by_network = count_prefixes(unproved().flat_map(RelayEntry::networks));
        let by_publisher = count_prefixes(unproved().map(|entry| entry.publisher.network));
        assert_eq!(self.unproved_by_publisher.len(), by_publisher.len());
        let of_publisher = |entry: &RelayEntry| by_publisher.get(&entry.publisher.network);
        let evictable = || unproved().filter(|entry| !entry.is_being_proved());
        let of_network = |entry: &RelayEntry| entry.networks().map(|network| by_network.get(&network)).max();
        let first = evictable().max_by_key(|entry| {
            let of_network = of_network(entry).filter(|_| !self.uncapped);
            (of_publisher(entry), of_network, entry.failures, Reverse(entry.added_at), entry.identity())
        });
        assert_eq!(self.first_eviction(), first.map(RelayEntry::identity));
        if self.uncapped {
            return assert!(self.unproved_by_network.is_empty());
        }
        let none = RelayId::from_bytes([0; 32]);
        assert_eq!(self.unproved_by_network.len(), by_network.len());
        for (network, count) in &by_network {
            assert_eq!(self.others_unproved(network, &none), *count);
            let inside = evictable().filter(|entry| entry.networks().any(|other| other == *network));
            let first = inside
                .max_by_key(|entry| (of_publisher(entry), entry.failures, Reverse(entry.added_at), entry.identity()));
            assert_eq!(self.first_eviction_in(network, &none), first.map(RelayEntry::identity));
            let of_network = proved().filter(|entry| entry.networks().any(|other| other == *network)).count();
            assert!(count.saturating_add(of_network) <= 2 * MAX_UNPROVED_OF_NETWORK + 4, "{count}");
        }
    }
}
