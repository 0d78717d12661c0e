//! NAT64 prefixes: a translator delivers a packet for an address of such a prefix to the embedded IPv4 address.

use core::{
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The bits of the IPv6 prefixes under which an IPv4 address can be embedded (RFC 6052 §2.2).
const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];
/// The octet that the embedded address skips (RFC 6052 §2.2).
const RESERVED_OCTET: usize = 8;
/// The addresses of `ipv4only.arpa` (RFC 7050 §8.2).
const IPV4_ONLY: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The text of a NAT64 prefix that is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no NAT64 prefix: write an IPv6 address whose bits after the prefix are zero, with a length of 32, 40, 48, \
     56, 64 or 96, as in \"2001:db8:64::/96\""
)]
pub struct InvalidNat64Prefix(String);

/// The IPv6 prefix of a NAT64 translator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat64Prefix {
    /// The first address: all bits after `length` are zero.
    first_address: Ipv6Addr,
    /// One of [`LENGTHS`].
    length: u8,
}

impl FromStr for Nat64Prefix {
    type Err = InvalidNat64Prefix;

    fn from_str(text: &str) -> Result<Self, InvalidNat64Prefix> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            let (first_address, length): (Ipv6Addr, u8) = (address.parse().ok()?, length.parse().ok()?);
            let prefix = Self { first_address, length };
            (LENGTHS.contains(&length) && Self::at(first_address, length) == prefix).then_some(prefix)
        };
        parse().ok_or_else(|| InvalidNat64Prefix(text.to_owned()))
    }
}

impl Nat64Prefix {
    /// The prefix of this length of an address.
    fn at(address: Ipv6Addr, length: u8) -> Self {
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
        Self { first_address: Ipv6Addr::from_bits(address.to_bits() & mask), length }
    }

    /// The prefixes under which `address`, an IPv6 address of `ipv4only.arpa`, embeds one of the IPv4 addresses of that
    /// name (RFC 7050 §3).
    pub fn of_ipv4_only(address: Ipv6Addr) -> impl Iterator<Item = Self> {
        let prefixes = LENGTHS.into_iter().map(move |length| Self::at(address, length));
        prefixes.filter(move |prefix| prefix.embedded(address).is_some_and(|ip| IPV4_ONLY.contains(&ip)))
    }

    /// The IPv4 address that is embedded in `address`; `None` if `address` isn't in this prefix.
    pub(super) fn embedded(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        if Self::at(address, self.length) != *self {
            return None;
        }
        let octets = address.octets().into_iter().enumerate();
        let behind = octets.skip(usize::from(self.length / 8)).filter(|(at, _)| *at != RESERVED_OCTET);
        let embedded = behind.take(4).fold(0_u32, |bits, (_, octet)| bits << 8 | u32::from(octet));
        Some(Ipv4Addr::from_bits(embedded))
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn prefix(text: &str) -> Nat64Prefix {
        text.parse().unwrap()
    }

    /// The examples of RFC 6052 §2.4.
    const EXAMPLES: [(&str, &str); 6] = [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ];

    #[test]
    fn the_embedded_address_is_that_of_the_examples_of_rfc_6052() {
        for (text, address) in EXAMPLES {
            let embedded = prefix(text).embedded(address.parse().unwrap());
            assert_eq!(embedded, Some(Ipv4Addr::new(192, 0, 2, 33)), "{text}");
            assert_eq!(prefix(text).embedded("2606:4700::1".parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn a_prefix_has_one_of_six_lengths_and_no_further_bits() {
        for text in ["2001:db8::/33", "2001:db8::/128", "2001:db8::1/96", "2001:db8::", "1.2.3.4/32", "", "/96", "::/x"]
        {
            let error = text.parse::<Nat64Prefix>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("\"{text}\" is no NAT64 prefix")), "{error}");
        }
    }

    #[test]
    fn a_prefix_is_found_by_the_addresses_of_ipv4only_arpa() {
        let found = |address: &str| Nat64Prefix::of_ipv4_only(address.parse().unwrap()).collect::<Vec<_>>();
        for (address, text) in [
            ("64:ff9b::192.0.0.170", "64:ff9b::/96"),
            ("2001:db8:64::192.0.0.171", "2001:db8:64::/96"),
            ("2001:db8:c000:aa::", "2001:db8::/32"),
            ("2001:db8:1c0:0:aa::", "2001:db8:100::/40"),
            ("2001:db8:122:c000:0:aa00::", "2001:db8:122::/48"),
            ("2001:db8:122:3c0:0:aa::", "2001:db8:122:300::/56"),
            ("2001:db8:122:344:c0:0:ab00::", "2001:db8:122:344::/64"),
        ] {
            assert_eq!(found(address), [prefix(text)], "{address}");
        }
        assert!(found("2606:4700::1").is_empty() && found("2001:db8:64::192.0.2.1").is_empty());
    }
}
