//! Caps on the relays at one address, in one network and in one block of addresses.
//!
//! One operator can run many relays at little cost, but addresses in many networks are costly.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use core::{
    net::{IpAddr, SocketAddr},
    ops::Bound,
};

use crate::base::{AddressPrefix, Counter as _, RelayId, WallTime};

/// A cap for each kind of prefix: source, network and block.
pub(super) type CrowdCaps = [(fn(IpAddr) -> AddressPrefix, usize); 3];

/// Caps on proved relays.
pub(super) const PROVED_CAPS: CrowdCaps =
    [(AddressPrefix::source, 8), (AddressPrefix::network, 32), (AddressPrefix::block, 256)];
/// Caps on listed relays.
pub(super) const LISTED_CAPS: CrowdCaps =
    [(AddressPrefix::source, 4), (AddressPrefix::network, 16), (AddressPrefix::block, 128)];

/// Counts of relays by the prefixes of their addresses.
pub(super) struct Crowds {
    caps: &'static CrowdCaps,
    counts: HashMap<AddressPrefix, usize>,
}

impl Crowds {
    pub(super) fn new(caps: &'static CrowdCaps) -> Self {
        Self { caps, counts: HashMap::new() }
    }

    /// Counts a relay with these addresses, unless a cap is reached for one of them. Returns whether it was counted.
    pub(super) fn admit(&mut self, addresses: &[SocketAddr]) -> bool {
        let fits = prefixes(self.caps, addresses)
            .all(|(prefix, cap)| self.counts.get(&prefix).is_none_or(|count| *count < cap));
        for (prefix, _) in prefixes(self.caps, addresses).filter(|_| fits) {
            self.counts.entry(prefix).or_default().increment();
        }
        fits
    }
}

/// Relays by the prefixes of their addresses, and the blocks by the numbers of their relays. A change of a relay
/// causes no iteration over other relays.
#[derive(Default)]
pub(super) struct RelaysByPrefix {
    /// The relays of each prefix, the longest known first.
    by_prefix: HashMap<AddressPrefix, BTreeSet<(WallTime, RelayId)>>,
    /// The blocks by the number of their relays, each with the time since which its youngest relay is known.
    by_count: BTreeMap<usize, BTreeSet<(WallTime, AddressPrefix)>>,
}

impl RelaysByPrefix {
    pub(super) fn insert(&mut self, relay: RelayId, known_since: WallTime, addresses: &[SocketAddr]) {
        for address in addresses {
            self.change(address.ip(), |relays| _ = relays.insert((known_since, relay)));
        }
    }

    pub(super) fn remove(&mut self, relay: RelayId, known_since: WallTime, addresses: &[SocketAddr]) {
        for address in addresses {
            self.change(address.ip(), |relays| _ = relays.remove(&(known_since, relay)));
        }
    }

    /// The number of relays of a prefix.
    pub(super) fn count(&self, prefix: &AddressPrefix) -> usize {
        self.by_prefix.get(prefix).map_or(0, BTreeSet::len)
    }

    /// The youngest relay of a prefix.
    pub(super) fn youngest(&self, prefix: &AddressPrefix) -> Option<RelayId> {
        self.by_prefix.get(prefix)?.last().map(|(_, relay)| *relay)
    }

    /// The youngest relay of the most crowded block, of those with more than `count` relays whose youngest relay has a
    /// known time that meets `is_eligible`. A relay that is known for less time than an eligible one must be eligible
    /// too. Of blocks with equal numbers, chooses the one with the youngest relay.
    pub(super) fn youngest_of_most_crowded(
        &self,
        count: usize,
        is_eligible: impl Fn(WallTime) -> bool,
    ) -> Option<RelayId> {
        // The numbers of relays add up to at most two for each relay, so the iteration over different numbers is short.
        let crowded = self.by_count.range((Bound::Excluded(count), Bound::Unbounded)).rev();
        let mut youngest = crowded.filter_map(|(_, blocks)| blocks.last());
        let (_, block) = youngest.find(|(known_since, _)| is_eligible(*known_since))?;
        self.youngest(block)
    }

    /// Changes the relays of the prefixes of `address`.
    fn change(&mut self, address: IpAddr, change: impl Fn(&mut BTreeSet<(WallTime, RelayId)>)) {
        let block = AddressPrefix::block(address);
        if let Some((count, youngest)) = self.order_of(&block)
            && let Some(blocks) = self.by_count.get_mut(&count)
        {
            blocks.remove(&(youngest, block));
            if blocks.is_empty() {
                self.by_count.remove(&count);
            }
        }
        for prefix in [AddressPrefix::source(address), AddressPrefix::network(address), block] {
            let relays = self.by_prefix.entry(prefix).or_default();
            change(relays);
            if relays.is_empty() {
                self.by_prefix.remove(&prefix);
            }
        }
        if let Some((count, youngest)) = self.order_of(&block) {
            self.by_count.entry(count).or_default().insert((youngest, block));
        }
    }

    /// The number of a block's relays, and the time since which its youngest relay is known.
    fn order_of(&self, block: &AddressPrefix) -> Option<(usize, WallTime)> {
        let relays = self.by_prefix.get(block)?;
        relays.last().map(|(youngest, _)| (relays.len(), *youngest))
    }
}

/// The prefixes of a relay's `addresses`, with their caps. No two are equal, because a relay has at most one address of
/// each family.
pub(super) fn prefixes<'a>(
    caps: &'a CrowdCaps,
    addresses: &'a [SocketAddr],
) -> impl Iterator<Item = (AddressPrefix, usize)> + 'a {
    addresses.iter().flat_map(move |address| caps.iter().map(move |(prefix, cap)| (prefix(address.ip()), *cap)))
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn the_youngest_relay_of_the_most_crowded_block_is_found_after_any_changes(
            changes in proptest::collection::vec((0..40_u8, 0..30_u64, 0..5_u8), 1..150)
        ) {
            let mut relays = RelaysByPrefix::default();
            let mut expected = BTreeMap::<RelayId, (WallTime, [SocketAddr; 2])>::new();
            for (number, known_since, block) in changes {
                let relay = RelayId::from_bytes([number; 32]);
                if let Some((known_since, addresses)) = expected.remove(&relay) {
                    relays.remove(relay, known_since, &addresses);
                } else {
                    let ipv6 = format!("[2606:{}::1]:1", block / 2).parse().unwrap();
                    let addresses = [([20, block, 0, number], 1).into(), ipv6];
                    let known_since = WallTime::from_unix(known_since);
                    relays.insert(relay, known_since, &addresses);
                    expected.insert(relay, (known_since, addresses));
                }
                for (above, since) in [(0, 0), (3, 0), (0, 15), (2, 20)].map(|(above, since)| (above, WallTime::from_unix(since))) {
                    let crowding = |(_, addresses): &(WallTime, [SocketAddr; 2])| {
                        let count = |address: &SocketAddr| relays.count(&AddressPrefix::block(address.ip()));
                        addresses.iter().map(count).max().unwrap()
                    };
                    let eligible = expected.values().filter(|entry| entry.0 >= since && crowding(entry) > above);
                    let best = eligible.map(|entry| (crowding(entry), entry.0)).max();
                    let found = relays.youngest_of_most_crowded(above, |known_since| known_since >= since);
                    prop_assert_eq!(found.map(|relay| (crowding(&expected[&relay]), expected[&relay].0)), best);
                }
            }
            for (relay, (known_since, addresses)) in expected {
                relays.remove(relay, known_since, &addresses);
            }
            prop_assert!(relays.by_prefix.is_empty() && relays.by_count.is_empty());
        }
    }
}
