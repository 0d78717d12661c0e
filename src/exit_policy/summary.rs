//! The summary of an exit policy, in descriptors and in the consensus.

use core::net::IpAddr;

use super::is_global;

/// Cap on port ranges of a summary for each address family.
pub const MAX_RANGES: usize = 64;

/// TCP ports from `first` to `last` inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The range, unless it is empty or contains port 0.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last { None } else { Some(Self { first, last }) }
    }

    /// The lowest port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is in the range.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// The ports that an exit accepts at almost every address, by address family. A hint for path selection: the exit
/// decides on each target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    ipv4: Vec<PortRange>,
    ipv6: Vec<PortRange>,
    private_addresses: bool,
}

impl Summary {
    pub(crate) const fn new(ipv4: Vec<PortRange>, ipv6: Vec<PortRange>, private_addresses: bool) -> Self {
        Self { ipv4, ipv6, private_addresses }
    }

    /// Ascending, disjoint ranges of `ports` (ascending). Ranges beyond [`MAX_RANGES`] are left out, so that clients
    /// don't choose the exit for their ports.
    pub(super) fn ranges(ports: impl Iterator<Item = u16>) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = Vec::new();
        for port in ports {
            if let Some(range) = ranges.last_mut()
                && range.last.checked_add(1) == Some(port)
            {
                range.last = port;
            } else {
                ranges.push(PortRange { first: port, last: port });
            }
        }
        ranges.truncate(MAX_RANGES);
        ranges
    }

    /// This summary without IPv6 ports.
    #[must_use]
    pub fn without_ipv6(self) -> Self {
        Self { ipv6: Vec::new(), ..self }
    }

    /// Ports accepted at almost every IPv4 address, as ascending and disjoint ranges.
    #[must_use]
    pub fn ipv4(&self) -> &[PortRange] {
        &self.ipv4
    }

    /// Ports accepted at almost every IPv6 address, as ascending and disjoint ranges.
    #[must_use]
    pub fn ipv6(&self) -> &[PortRange] {
        &self.ipv6
    }

    /// Whether the exit's rules decide on addresses that aren't global, which are refused otherwise.
    #[must_use]
    pub const fn private_addresses(&self) -> bool {
        self.private_addresses
    }

    /// Whether no port is accepted, so that the relay is not an exit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }

    /// Whether the summary permits `port` at `ip`. The exit may still refuse the target.
    #[must_use]
    pub fn may_allow(&self, ip: IpAddr, port: u16) -> bool {
        let ip = ip.to_canonical();
        let ranges = if ip.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        (self.private_addresses || is_global(ip)) && ranges.iter().any(|range| range.contains(port))
    }

    /// Whether the summary permits `port` in either address family, for a name that only the exit resolves.
    #[must_use]
    pub fn may_allow_name(&self, port: u16) -> bool {
        self.ipv4.iter().chain(&self.ipv6).any(|range| range.contains(port))
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;
    use crate::exit_policy::Policy;

    #[test]
    fn a_name_is_permitted_if_either_address_family_is() {
        let summary = Policy::parse(["accept [::]/0:443"], false).unwrap().summary();
        assert!(summary.may_allow_name(443));
        assert!(!summary.may_allow_name(80));
        assert!(!summary.may_allow("1.1.1.1".parse().unwrap(), 443));
        assert!(summary.may_allow("2606:4700::1".parse().unwrap(), 443));
    }

    #[test]
    fn private_targets_are_accepted_only_by_exits_that_allow_them() {
        let loopback = "127.0.0.1".parse().unwrap();
        assert!(!Policy::parse(["accept *"], false).unwrap().summary().may_allow(loopback, 80));
        assert!(Policy::parse(["accept *"], true).unwrap().summary().may_allow(loopback, 80));
    }

    #[test]
    fn the_ranges_of_a_summary_are_capped() {
        let ranges = Summary::ranges((1..1000).filter(|port| port % 2 == 0));
        assert_eq!(ranges.len(), MAX_RANGES);
    }
}
