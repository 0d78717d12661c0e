//! How many accepted links each source has, so that no one source can use up an endpoint.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
};

use super::Caps;

/// A source: an IPv4 address, or the /64 of an IPv6 address, which is what one machine is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Source(Ipv6Addr);

impl Source {
    fn of(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)),
        })
    }
}

#[derive(Clone, Copy, Default)]
struct Count {
    links: usize,
    half_open: usize,
}

/// The counts. Holds no entry for a source without links, so it never outgrows the cap on links.
#[derive(Default)]
pub(super) struct Sources {
    by_source: HashMap<Source, Count>,
    all: Count,
}

impl Sources {
    /// Counts one more half-open link from `address`, unless a cap forbids it.
    pub(super) fn admit(&mut self, caps: &Caps, address: IpAddr) -> bool {
        let source = Source::of(address);
        let count = self.by_source.get(&source).copied().unwrap_or_default();
        if self.all.links >= caps.links
            || self.all.half_open >= caps.half_open
            || count.links >= caps.links_per_source
            || count.half_open >= caps.half_open_per_source
        {
            return false;
        }
        for count in [&mut self.all, self.by_source.entry(source).or_default()] {
            count.links = count.links.saturating_add(1);
            count.half_open = count.half_open.saturating_add(1);
        }
        true
    }

    /// A half-open link from `address` has opened.
    pub(super) fn opened(&mut self, address: IpAddr) {
        for count in [Some(&mut self.all), self.by_source.get_mut(&Source::of(address))].into_iter().flatten() {
            count.half_open = count.half_open.saturating_sub(1);
        }
    }

    /// A link from `address` is gone.
    pub(super) fn gone(&mut self, address: IpAddr, half_open: bool) {
        let less = |count: &mut Count| {
            count.links = count.links.saturating_sub(1);
            count.half_open = count.half_open.saturating_sub(usize::from(half_open));
        };
        less(&mut self.all);
        if let Entry::Occupied(mut entry) = self.by_source.entry(Source::of(address)) {
            less(entry.get_mut());
            if entry.get().links == 0 {
                entry.remove();
            }
        }
    }

    /// Accepted links, and those of them not open yet.
    pub(super) fn all(&self) -> (usize, usize) {
        (self.all.links, self.all.half_open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_use_up_the_half_open_links() {
        let caps = Caps { half_open: 5, half_open_per_source: 3, ..Caps::default() };
        let mut sources = Sources::default();
        // One /64 is one source.
        let admitted = (0..10).filter(|n| sources.admit(&caps, format!("2001:db8::{n}").parse().unwrap())).count();
        assert_eq!(admitted, 3);
        let other = "192.0.2.1".parse().unwrap();
        assert!(sources.admit(&caps, other) && sources.admit(&caps, other));
        assert!(!sources.admit(&caps, "192.0.2.2".parse().unwrap()), "the cap in all");
        sources.opened(other);
        assert!(sources.admit(&caps, "192.0.2.2".parse().unwrap()));
    }

    #[test]
    fn a_source_without_links_is_forgotten() {
        let caps = Caps::default();
        let mut sources = Sources::default();
        let address = "192.0.2.1".parse().unwrap();
        assert!(sources.admit(&caps, address) && sources.admit(&caps, address));
        sources.opened(address);
        sources.gone(address, false);
        sources.gone(address, true);
        assert_eq!(sources.all(), (0, 0));
        assert!(sources.by_source.is_empty());
    }
}
