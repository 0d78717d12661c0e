//! Special-use hosts: names that no public name server has, and addresses that aren't global.
//!
//! A client sends these hosts to no exit, because they would reveal the client's network (`proto/08-paths.md` §6).
//! There are reserved and private hosts. A network may allow private hosts as targets
//! (`path::Relays::allow_private_targets`).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{exit_policy::is_global, wire::Host};

/// Names outside the DNS: RFC 7686, RFC 6761 §6.4, RFC 9476.
const RESERVED: [&str; 3] = ["onion", "invalid", "alt"];

/// Names of private networks and of tests. RFC 6761 (`localhost`, `test`, `example`), RFC 6762 with its appendix G,
/// RFC 8375 and ICANN's `internal` (local networks), RFC 9462, RFC 9665 and RFC 8880 (discovery), and further names of
/// local networks, operating systems and routers.
const PRIVATE: [&str; 17] = [
    "localhost",
    "test",
    "example",
    "local",
    "intranet",
    "internal",
    "private",
    "corp",
    "home",
    "lan",
    "mail",
    "home.arpa",
    "resolver.arpa",
    "service.arpa",
    "ipv4only.arpa",
    "localdomain",
    "fritz.box",
];

/// A host that is not sent to an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpecialHost {
    /// A name outside the DNS.
    Reserved,
    /// A name or address of a private network.
    Private,
}

impl SpecialHost {
    /// The kind of `host`; `None` for a public one.
    pub(crate) fn of(host: &Host) -> Option<Self> {
        match host {
            Host::Ip(ip) => (!is_global(ip.to_canonical())).then_some(Self::Private),
            Host::Name(name) => Self::of_name(name),
        }
    }

    /// The kind of the name `name`; `None` for a public one.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_under =
            |suffix: &str| name.strip_suffix(suffix).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        if RESERVED.into_iter().any(is_under) {
            return Some(Self::Reserved);
        }
        let last_label = name.rsplit('.').next().unwrap_or_default();
        // No top-level domain is a number. A name that ends with a number is an address in another form.
        let is_number = last_label.bytes().all(|byte| byte.is_ascii_digit()) || last_label.starts_with("0x");
        let is_private = !name.contains('.')
            || is_number
            || PRIVATE.into_iter().any(is_under)
            || address_in_reverse_zone(&name).is_some_and(|ip| !is_global(ip));
        is_private.then_some(Self::Private)
    }
}

/// One address of the reverse zone `name` in `in-addr.arpa` or `ip6.arpa`; `None` for other names.
fn address_in_reverse_zone(name: &str) -> Option<IpAddr> {
    /// Value of the parts that the zone's name doesn't determine. With zeros, the address could be special although the
    /// zone has global addresses: 192.0.0.0 in `192.in-addr.arpa`.
    const UNDETERMINED: u8 = 1;
    let parts = |labels: &str, radix| -> Option<Vec<u8>> {
        labels.rsplit('.').map(|label| u8::from_str_radix(label, radix).ok()).collect()
    };
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [UNDETERMINED; 4];
        octets.iter_mut().zip(parts(labels, 10)?).for_each(|(octet, part)| *octet = part);
        return Some(Ipv4Addr::from(octets).into());
    }
    let mut nibbles = [UNDETERMINED; 32];
    nibbles.iter_mut().zip(parts(name.strip_suffix(".ip6.arpa")?, 16)?).for_each(|(nibble, part)| *nibble = part);
    let bits = nibbles.iter().fold(0_u128, |bits, nibble| bits << 4 | u128::from(nibble & 0xF));
    Some(IpAddr::from(Ipv6Addr::from(bits)).to_canonical())
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn special_names_are_recognised_in_upper_and_lower_case_and_with_a_final_dot() {
        for name in ["onion", "abc.onion", "ABC.Onion.", "x.invalid", "x.alt"] {
            assert_eq!(SpecialHost::of_name(name), Some(SpecialHost::Reserved), "{name}");
        }
        for name in [
            "localhost",
            "a.localhost.",
            "printer",
            "printer.",
            "PRINTER.LOCAL",
            "box.lan",
            "x.home.arpa",
            "wiki.corp",
            "x.internal",
            "nas.home",
            "site.test",
            "site.example",
            "fritz.box",
            "_dns.resolver.arpa",
            "127.1",
            "10.0.0.1.2",
            "a.0x7f",
            "1.0.0.10.in-addr.arpa",
            "10.in-addr.arpa",
            "168.192.in-addr.arpa",
            "1.1.127.in-addr.arpa",
            "d.f.ip6.arpa",
            "0.8.e.f.ip6.arpa",
        ] {
            assert_eq!(SpecialHost::of_name(name), Some(SpecialHost::Private), "{name}");
        }
        for name in [
            "example.org",
            "localhost.example.org",
            "www.test.com",
            "notlocal.com",
            "onion.example.org",
            "1.1.1.1.in-addr.arpa",
            "1.in-addr.arpa",
            "7.4.6.0.6.2.ip6.arpa",
            "x.in-addr.arpa",
            "0x.org",
            "1e100.net",
        ] {
            assert_eq!(SpecialHost::of_name(name), None, "{name}");
        }
    }

    #[test]
    fn private_addresses_are_special() {
        for (text, expected) in [
            ("10.1.2.3", Some(SpecialHost::Private)),
            ("::1", Some(SpecialHost::Private)),
            ("::ffff:192.168.1.1", Some(SpecialHost::Private)),
            ("1.1.1.1", None),
            ("2606:4700::1111", None),
        ] {
            assert_eq!(SpecialHost::of(&Host::parse(text).unwrap()), expected, "{text}");
        }
    }
}
