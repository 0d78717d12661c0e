//! Caps on the relays at one address, in one network and in one block of addresses.
//!
//! One operator can run many relays at little cost, but addresses in many networks are costly.

use std::{collections::HashMap, net::SocketAddr};

use core::net::IpAddr;

use crate::base::{AddressPrefix, Counter as _};

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

/// Whether other relays, whose addresses are `others`, have reached a cap for one of `addresses`.
pub(super) fn is_crowded<'a>(
    caps: &CrowdCaps,
    addresses: &[SocketAddr],
    others: impl Iterator<Item = &'a [SocketAddr]>,
) -> bool {
    let mut counts: Vec<_> = prefixes(caps, addresses).map(|(prefix, cap)| (prefix, cap, 0_usize)).collect();
    for (prefix, _) in others.flat_map(|addresses| prefixes(caps, addresses)) {
        for (_, _, count) in counts.iter_mut().filter(|(own, ..)| *own == prefix) {
            count.increment();
        }
    }
    counts.iter().any(|(_, cap, count)| count >= cap)
}

/// The prefixes of a relay's `addresses`, with their caps. No two are equal, because a relay has at most one address of
/// each family.
pub(super) fn prefixes<'a>(
    caps: &'a CrowdCaps,
    addresses: &'a [SocketAddr],
) -> impl Iterator<Item = (AddressPrefix, usize)> + 'a {
    addresses.iter().flat_map(move |address| caps.iter().map(move |(prefix, cap)| (prefix(address.ip()), *cap)))
}
