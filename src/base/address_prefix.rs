//! Prefixes of IP addresses. The addresses of a prefix share limits.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first bits of an IP address. All addresses of a prefix usually belong to the same party.
///
/// | prefix | IPv4 | IPv6 | assigned to | limits |
/// |---|---|---|---|---|
/// | [`source`](Self::source) | /32 | /64 | one machine | accepted links and their memory, channels, circuits, volunteers of a gateway, proved and listed relays |
/// | [`network`](Self::network) | /24 | /48 | one customer | accepted links and their memory, channels, circuits, volunteers of a gateway, connections of a directory, unproved, proved and listed relays, running proofs |
/// | [`block`](Self::block) | /16 | /32 | one provider | relays of one path, proved and listed relays, places in a full table |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressPrefix {
    /// The first address of the prefix: all bits after `length` are zero.
    first_address: IpAddr,
    length: u8,
}

impl AddressPrefix {
    /// The IPv4 address, or the /64 of the IPv6 address.
    #[must_use]
    pub fn source(address: IpAddr) -> Self {
        Self::new(address, 32, 64)
    }

    /// The /24 of the IPv4 address, or the /48 of the IPv6 address.
    #[must_use]
    pub fn network(address: IpAddr) -> Self {
        Self::new(address, 24, 48)
    }

    /// The /16 of the IPv4 address, or the /32 of the IPv6 address.
    #[must_use]
    pub fn block(address: IpAddr) -> Self {
        Self::new(address, 16, 32)
    }

    /// The block in which this prefix is.
    pub(super) fn of_block(&self) -> Self {
        Self::block(self.first_address)
    }

    fn new(address: IpAddr, ipv4_length: u8, ipv6_length: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(ipv4_length.into())).unwrap_or(0);
                Self { first_address: Ipv4Addr::from_bits(address.to_bits() & mask).into(), length: ipv4_length }
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(ipv6_length.into())).unwrap_or(0);
                Self { first_address: Ipv6Addr::from_bits(address.to_bits() & mask).into(), length: ipv6_length }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    /// Whether two addresses have the same source, the same network and the same block.
    fn shared_prefixes(one: &str, other: &str) -> [bool; 3] {
        let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
        [AddressPrefix::source, AddressPrefix::network, AddressPrefix::block].map(|prefix| prefix(one) == prefix(other))
    }

    #[test]
    fn addresses_of_one_family_with_the_same_first_bits_share_a_prefix() {
        for (one, other, expected) in [
            ("192.0.2.1", "192.0.2.1", [true, true, true]),
            ("192.0.2.1", "192.0.2.2", [false, true, true]),
            ("192.0.2.1", "192.0.3.1", [false, false, true]),
            ("192.0.2.1", "192.1.2.1", [false, false, false]),
            ("2001:db8::1", "2001:db8::ffff:0:0:2", [true, true, true]),
            ("2001:db8::1", "2001:db8:0:1::1", [false, true, true]),
            ("2001:db8::1", "2001:db8:1::1", [false, false, true]),
            ("2001:db8::1", "2001:db9::1", [false, false, false]),
            ("0.0.0.0", "::", [false, false, false]),
        ] {
            assert_eq!(shared_prefixes(one, other), expected, "{one} and {other}");
        }
    }

    #[test]
    fn prefixes_of_one_address_differ_by_length() {
        let address = "10.0.0.0".parse().unwrap();
        assert!(AddressPrefix::source(address) != AddressPrefix::network(address));
        assert!(AddressPrefix::network(address) != AddressPrefix::block(address));
    }
}
