//! Counts of accepted links for each source and network, so that no single one can exhaust the caps of an endpoint.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use super::EndpointCaps;
use crate::base::{AddressPrefix, Counter as _};

/// Ratio of a network's cap to a source's cap.
const NETWORK_FACTOR: usize = 4;

#[derive(Clone, Copy, Default)]
struct LinkCounts {
    links: usize,
    half_open: usize,
}

impl LinkCounts {
    fn add(&mut self) {
        self.links.increment();
        self.half_open.increment();
    }

    fn subtract(&mut self, half_open: bool) {
        self.links.decrement();
        self.half_open = self.half_open.saturating_sub(usize::from(half_open));
    }
}

/// The counts. A source or network without links has no entry, so the map has at most twice as many entries as links.
#[derive(Default)]
pub(super) struct Sources {
    /// The counts of each source and each network.
    by_prefix: HashMap<AddressPrefix, LinkCounts>,
    all: LinkCounts,
}

impl Sources {
    /// Counts a new half-open link from `address`; `false` if a cap is reached. If the link replaces one from the same
    /// address and port, `replaced` states whether that link is half-open. The replaced link does not count against the
    /// caps.
    pub(super) fn admit(&mut self, caps: &EndpointCaps, address: IpAddr, replaced: Option<bool>) -> bool {
        let without_replaced = |count: LinkCounts| LinkCounts {
            links: count.links.saturating_sub(usize::from(replaced.is_some())),
            half_open: count.half_open.saturating_sub(usize::from(replaced == Some(true))),
        };
        let full = |count: LinkCounts, links: usize, half_open: usize| {
            let count = without_replaced(count);
            count.links >= links || count.half_open >= half_open
        };
        let count = |prefix| self.by_prefix.get(&prefix).copied().unwrap_or_default();
        let (links, half_open) = (caps.links_per_source, caps.half_open_per_source);
        if full(self.all, caps.links, caps.half_open)
            || full(count(AddressPrefix::source(address)), links, half_open)
            || full(
                count(AddressPrefix::network(address)),
                links.saturating_mul(NETWORK_FACTOR),
                half_open.saturating_mul(NETWORK_FACTOR),
            )
        {
            return false;
        }
        self.all.add();
        for prefix in [AddressPrefix::source(address), AddressPrefix::network(address)] {
            self.by_prefix.entry(prefix).or_default().add();
        }
        true
    }

    /// Handles the opening of a half-open link from `address`.
    pub(super) fn opened(&mut self, address: IpAddr) {
        self.all.half_open.decrement();
        for prefix in [AddressPrefix::source(address), AddressPrefix::network(address)] {
            if let Some(count) = self.by_prefix.get_mut(&prefix) {
                count.half_open.decrement();
            }
        }
    }

    /// Removes a link from `address` from the counts.
    pub(super) fn remove(&mut self, address: IpAddr, half_open: bool) {
        self.all.subtract(half_open);
        for prefix in [AddressPrefix::source(address), AddressPrefix::network(address)] {
            if let Entry::Occupied(mut entry) = self.by_prefix.entry(prefix) {
                entry.get_mut().subtract(half_open);
                if entry.get().links == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// Numbers of accepted links and of half-open ones among them.
    pub(super) fn all(&self) -> (usize, usize) {
        (self.all.links, self.all.half_open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_use_up_the_half_open_links() {
        let caps = EndpointCaps { half_open: 5, half_open_per_source: 3, ..EndpointCaps::default() };
        let mut sources = Sources::default();
        // One /64 is one source.
        let admitted =
            (0..10).filter(|n| sources.admit(&caps, format!("2001:db8::{n}").parse().unwrap(), None)).count();
        assert_eq!(admitted, 3);
        let other = "192.0.2.1".parse().unwrap();
        assert!(sources.admit(&caps, other, None) && sources.admit(&caps, other, None));
        assert!(!sources.admit(&caps, "192.0.2.2".parse().unwrap(), None), "the total cap");
        sources.opened(other);
        assert!(sources.admit(&caps, "192.0.2.2".parse().unwrap(), None));
    }

    #[test]
    fn a_source_without_links_has_no_entry() {
        let caps = EndpointCaps::default();
        let mut sources = Sources::default();
        let address = "192.0.2.1".parse().unwrap();
        assert!(sources.admit(&caps, address, None) && sources.admit(&caps, address, None));
        sources.opened(address);
        sources.remove(address, false);
        sources.remove(address, true);
        assert_eq!(sources.all(), (0, 0));
        assert!(sources.by_prefix.is_empty());
    }

    #[test]
    fn many_sources_of_one_network_cannot_use_up_the_half_open_links() {
        let caps = EndpointCaps { half_open: 1_000, half_open_per_source: 3, ..EndpointCaps::default() };
        let mut sources = Sources::default();
        let admitted = (0..100).filter(|n| sources.admit(&caps, format!("2001:db8:0:{n:x}::1").parse().unwrap(), None));
        assert_eq!(admitted.count(), 12);
        assert!(sources.admit(&caps, "2001:db8:1::1".parse().unwrap(), None));
        let admitted = (0..100).filter(|n| sources.admit(&caps, format!("192.0.2.{n}").parse().unwrap(), None));
        assert_eq!(admitted.count(), 12);
        assert!(sources.admit(&caps, "192.0.3.1".parse().unwrap(), None));
    }

    #[test]
    fn a_replaced_link_does_not_count_against_its_successor() {
        let caps = EndpointCaps { links: 1, ..EndpointCaps::default() };
        let mut sources = Sources::default();
        let address = "192.0.2.1".parse().unwrap();
        assert!(sources.admit(&caps, address, None) && !sources.admit(&caps, address, None));
        assert!(sources.admit(&caps, address, Some(true)));
        sources.remove(address, true);
        assert_eq!(sources.all(), (1, 1));
    }
}
