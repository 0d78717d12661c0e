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

/// The entries of a consensus that are selected by their length.
struct Selection<'a> {
    /// The length and the addresses of each entry.
    entries: &'a [(usize, &'a [SocketAddr])],
    selected: Vec<bool>,
    len: usize,
    len_of_block: HashMap<AddressPrefix, usize>,
}

impl Selection<'_> {
    /// Selects an entry, unless its block would have more than `max_of_block` bytes, or all blocks more than `max_len`.
    fn admit(&mut self, index: usize, max_of_block: usize, max_len: usize) {
        let (Some(&(len, addresses)), Some(selected)) = (self.entries.get(index), self.selected.get_mut(index)) else {
            return;
        };
        let blocks = addresses.iter().map(|address| AddressPrefix::block(address.ip()));
        let sum = |before: usize| before.saturating_add(len);
        let of_block = |block| sum(self.len_of_block.get(&block).copied().unwrap_or_default());
        if *selected || sum(self.len) > max_len || blocks.clone().any(|block| of_block(block) > max_of_block) {
            return;
        }
        *selected = true;
        self.len = sum(self.len);
        for block in blocks {
            let of_block = self.len_of_block.entry(block).or_default();
            *of_block = sum(*of_block);
        }
    }
}

/// Selects entries of a consensus with at most `max_len` bytes. Each entry has its length and the relay's addresses; the
/// relay known for longest is first. If all entries are longer, the blocks with the most bytes lose entries, the longest
/// ones first. So long entries of old relays displace no entry of another block with fewer bytes. Returns whether each
/// entry is selected.
pub(super) fn select_by_length(entries: &[(usize, &[SocketAddr])], max_len: usize) -> Vec<bool> {
    let len = entries.iter().fold(0_usize, |sum, (len, _)| sum.saturating_add(*len));
    if len <= max_len {
        return vec![true; entries.len()];
    }
    let mut by_length: Vec<usize> = (0..entries.len()).collect();
    by_length.sort_by_key(|index| entries.get(*index).map(|(len, _)| *len));
    let mut max_of_block = len;
    loop {
        let last_max = max_of_block;
        max_of_block = max_of_block.saturating_sub(max_of_block.div_ceil(16));
        let (selected, len_of_block) = (vec![false; entries.len()], HashMap::new());
        let mut selection = Selection { entries, selected, len: 0, len_of_block };
        for index in &by_length {
            selection.admit(*index, max_of_block, usize::MAX);
        }
        if selection.len <= max_len {
            // Blocks at both limits share the rest by the age of their relays.
            for index in 0..entries.len() {
                selection.admit(index, last_max, max_len);
            }
            return selection.selected;
        }
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

    #[test]
    fn the_longest_entries_of_the_block_with_the_most_bytes_are_omitted_first() {
        let at = |block: u8, host: u8| [SocketAddr::from(([20, block, 0, host], 1))];
        // A block with long entries of old relays and a short one of a young relay, and one with a long entry.
        let addresses: Vec<_> = (0..10).map(|host| at(1, host)).chain([at(2, 1), at(1, 11)]).collect();
        let lengths = [1000; 11].into_iter().chain([100]);
        let entries: Vec<_> = lengths.zip(addresses.iter().map(|addresses| &addresses[..])).collect();
        assert_eq!(select_by_length(&entries, 11_100), [true; 12]);
        for max_len in [3000, 5000, 11_099] {
            let selected = select_by_length(&entries, max_len);
            let len: usize =
                entries.iter().zip(&selected).filter(|(_, selected)| **selected).map(|(entry, _)| entry.0).sum();
            assert!(len <= max_len && len + 1000 > max_len, "{len} of {max_len}");
            assert!(selected[10] && selected[11], "{selected:?}");
            assert!(selected[..10].is_sorted_by(|one, next| one >= next), "the relays known for longest stay");
        }
    }

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
