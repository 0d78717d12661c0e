//! Exit policies: the operator's rules, and the decision on one address and port.

use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use super::{
    Nat64Prefix, Summary,
    address::{embedded_v4, is_global, is_host, is_metadata},
};

/// Cap on rules of one policy.
const MAX_RULES: usize = 256;

/// Why an exit policy is invalid, with the text of an invalid rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The first word is neither `accept` nor `reject`.
    #[error("exit rule \"{0}\": the first word is neither \"accept\" nor \"reject\"")]
    Verb(String),
    /// The address is invalid.
    #[error(
        "exit rule \"{0}\": the address is neither \"*\" nor an address, with or without a prefix length as in \"192.0.2.0/24\""
    )]
    Address(String),
    /// The ports are invalid.
    #[error("exit rule \"{0}\": the port is neither \"*\" nor a port from 1 to 65535 nor a range as in \"80-443\"")]
    Ports(String),
    /// There are too many words, or too few.
    #[error(
        "exit rule \"{0}\": not a rule; write it as \"accept 443\", \"reject 192.0.2.0/24\" or \"accept [2001:db8::]/32:80-443\""
    )]
    Form(String),
    /// There are too many rules.
    #[error("the number of exit rules exceeds {MAX_RULES}")]
    TooMany,
}

/// The targets of an exit: the first rule that matches decides, and a target without a matching rule is refused.
///
/// | rule | matches |
/// |---|---|
/// | `accept *` | everything |
/// | `accept 443`, `accept 80-443` | those ports at any address |
/// | `reject 192.0.2.0/24`, `reject 2001:db8::/32` | those addresses at any port |
/// | `accept 192.0.2.1:80`, `accept [2001:db8::]/32:443`, `accept *:443` | address and port |
///
/// Rules can't lift two restrictions. Addresses that aren't global ([`super::is_global`]) and the exit's addresses
/// ([`Policy::refusing_own`]) are refused unless the policy was made with `private_addresses`. Unspecified, multicast
/// and broadcast addresses, and those of cloud metadata services, are always refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    private_addresses: bool,
    /// The exit's addresses.
    own_addresses: Vec<IpAddr>,
    /// The NAT64 prefixes of the exit's network that its operator names.
    nat64: Vec<Nat64Prefix>,
}

impl Policy {
    /// The policy that refuses everything.
    #[must_use]
    pub const fn refuse_all() -> Self {
        Self { rules: Vec::new(), private_addresses: false, own_addresses: Vec::new(), nat64: Vec::new() }
    }

    /// Parses `rules`, in order, at most 256. With `private_addresses` the rules also decide on private, loopback and
    /// link-local addresses, which are refused otherwise.
    ///
    /// # Errors
    /// When a rule is invalid, or there are too many.
    pub fn parse<S: AsRef<str>>(
        rules: impl IntoIterator<Item = S>,
        private_addresses: bool,
    ) -> Result<Self, PolicyError> {
        let mut parsed = Vec::new();
        for text in rules {
            if parsed.len() == MAX_RULES {
                return Err(PolicyError::TooMany);
            }
            parsed.push(Rule::parse(text.as_ref())?);
        }
        Ok(Self { rules: parsed, private_addresses, own_addresses: Vec::new(), nat64: Vec::new() })
    }

    /// Decides on an address of a NAT64 prefix like on the embedded IPv4 address too, as it always does for the prefixes
    /// 64:ff9b::/96 and 64:ff9b:1::/48. A further prefix allows no further address.
    #[must_use]
    pub fn with_nat64(mut self, prefixes: impl IntoIterator<Item = Nat64Prefix>) -> Self {
        self.nat64.extend(prefixes);
        self
    }

    /// Refuses the exit's addresses like private addresses. A connection to such an address would have the exit's
    /// machine as its source, which a service on this machine may trust.
    #[must_use]
    pub fn refusing_own(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.own_addresses.extend(addresses.into_iter().map(|ip| ip.to_canonical()));
        self
    }

    /// Whether the exit may connect to `port` at `ip`. Port 0 is always refused.
    #[must_use]
    pub fn allows(&self, ip: IpAddr, port: u16) -> bool {
        self.allows_in_network(ip, port, Some(&[]))
    }

    /// Like [`Self::allows`], also by the NAT64 prefixes that the exit's network has `revealed` since the start. While
    /// these are unknown (`None`), each IPv6 address may lead to a private IPv4 address. A policy without private
    /// addresses then refuses all IPv6 addresses.
    #[must_use]
    pub fn allows_in_network(&self, ip: IpAddr, port: u16, revealed: Option<&[Nat64Prefix]>) -> bool {
        // IPv4 addresses mapped into IPv6 count as IPv4.
        let ip = ip.to_canonical();
        if port == 0 || !is_target(ip) || (ip.is_ipv6() && revealed.is_none() && !self.private_addresses) {
            return false;
        }
        // A translator or a tunnel may deliver a packet for an IPv6 address to an IPv4 address embedded in it.
        let embedded = match ip {
            IpAddr::V6(ip) if !ip.is_loopback() => Some(embedded_v4(ip)),
            _ => None,
        };
        let translated = |prefix: &Nat64Prefix| match ip {
            IpAddr::V6(ip) => prefix.embedded(ip).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let mut destinations = [ip].into_iter().chain(embedded.into_iter().flatten().map(IpAddr::V4));
        let mut prefixes = self.nat64.iter().chain(revealed.unwrap_or_default());
        destinations.all(|ip| self.allows_destination(ip, port))
            && prefixes
                .all(|prefix| translated(prefix).is_none_or(|ip| is_target(ip) && self.allows_destination(ip, port)))
    }

    /// Whether the rules also decide on private addresses and the exit's own.
    #[must_use]
    pub const fn private_addresses(&self) -> bool {
        self.private_addresses
    }

    fn allows_destination(&self, ip: IpAddr, port: u16) -> bool {
        let public = is_global(ip) && !self.own_addresses.contains(&ip);
        (self.private_addresses || public)
            && self.rules.iter().find(|rule| rule.matches(ip, port)).is_some_and(|rule| rule.accept)
    }

    /// The ports accepted at almost every address, for path selection. Rules on part of an address family are left out:
    /// if such a rule refuses a target, the client tries another exit.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let ports = |covers: fn(&Subnet) -> bool| {
            let rules: Vec<&Rule> = self.rules.iter().filter(|rule| covers(&rule.subnet)).collect();
            Summary::ranges(
                (1..=u16::MAX)
                    .filter(|port| rules.iter().find(|rule| rule.ports.contains(port)).is_some_and(|rule| rule.accept)),
            )
        };
        Summary::new(ports(Subnet::covers_v4), ports(Subnet::covers_v6), self.private_addresses)
    }
}

/// Whether the rules may decide on `ip`.
fn is_target(ip: IpAddr) -> bool {
    is_host(ip) && !is_metadata(ip)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    accept: bool,
    subnet: Subnet,
    ports: RangeInclusive<u16>,
}

impl Rule {
    fn parse(text: &str) -> Result<Self, PolicyError> {
        let mut words = text.split_whitespace();
        let (Some(verb), Some(pattern), None) = (words.next(), words.next(), words.next()) else {
            return Err(PolicyError::Form(text.to_owned()));
        };
        let accept = match verb {
            "accept" => true,
            "reject" => false,
            _ => return Err(PolicyError::Verb(text.to_owned())),
        };
        let (subnet, ports) = split(pattern);
        Ok(Self {
            accept,
            subnet: Subnet::parse(subnet).ok_or_else(|| PolicyError::Address(text.to_owned()))?,
            ports: parse_ports(ports).ok_or_else(|| PolicyError::Ports(text.to_owned()))?,
        })
    }

    fn matches(&self, ip: IpAddr, port: u16) -> bool {
        self.ports.contains(&port) && self.subnet.contains(ip)
    }
}

/// Address part and port part of a rule; `*` for a missing part.
fn split(pattern: &str) -> (&str, &str) {
    let only_ports = !pattern.is_empty() && pattern.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if only_ports {
        return ("*", pattern);
    }
    // The colon between an IPv6 address and a port follows a bracket.
    let ipv6_without_port = !pattern.contains(']') && pattern.bytes().filter(|byte| *byte == b':').count() > 1;
    match pattern.rsplit_once(':') {
        Some((subnet, ports)) if !ipv6_without_port && !ports.contains(']') => (subnet, ports),
        _ => (pattern, "*"),
    }
}

fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    if text == "*" {
        return Some(1..=u16::MAX);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first >= 1 && first <= last).then_some(first..=last)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subnet {
    Any,
    V4(Ipv4Addr, u8),
    V6(Ipv6Addr, u8),
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        match bare.parse().ok()? {
            IpAddr::V4(ip) => Some(Self::V4(ip, length.unwrap_or(32))).filter(|_| length.unwrap_or(0) <= 32),
            IpAddr::V6(ip) => Some(Self::V6(ip, length.unwrap_or(128))).filter(|_| length.unwrap_or(0) <= 128),
        }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match (self, ip) {
            (Self::Any, _) => true,
            (Self::V4(network, length), IpAddr::V4(ip)) => {
                let differs = network.to_bits() ^ ip.to_bits();
                differs.leading_zeros() >= u32::from(*length)
            }
            (Self::V6(network, length), IpAddr::V6(ip)) => {
                let differs = network.to_bits() ^ ip.to_bits();
                differs.leading_zeros() >= u32::from(*length)
            }
            _ => false,
        }
    }

    fn covers_v4(&self) -> bool {
        matches!(self, Self::Any | Self::V4(_, 0))
    }

    fn covers_v6(&self) -> bool {
        // Global unicast is 2000::/3.
        matches!(self, Self::Any | Self::V6(_, 0)) || matches!(self, Self::V6(ip, 1..=3) if ip.segments()[0] == 0x2000)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use proptest::prelude::*;

    use super::*;

    fn policy(rules: &[&str]) -> Policy {
        Policy::parse(rules, false).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_matching_rule_decides_and_a_target_without_one_is_refused() {
        let policy = policy(&["reject 1.2.3.0/24", "reject *:25", "accept 1-1024"]);
        assert!(policy.allows(ip("1.1.1.1"), 443));
        assert!(policy.allows(ip("2606:4700::1"), 443));
        assert!(!policy.allows(ip("1.2.3.4"), 443));
        assert!(!policy.allows(ip("1.1.1.1"), 25));
        assert!(!policy.allows(ip("1.1.1.1"), 8080));
        assert!(!policy.allows(ip("1.1.1.1"), 0));
        assert!(!Policy::refuse_all().allows(ip("1.1.1.1"), 443));
    }

    #[test]
    fn addresses_with_ports_are_parsed_in_both_families() {
        let policy = policy(&[
            "accept 1.2.3.4:80",
            "accept [2606:4700::]/32:443",
            "accept 2606:4701::/32",
            "accept [2606:4702::1]:8443",
        ]);
        assert!(policy.allows(ip("1.2.3.4"), 80));
        assert!(!policy.allows(ip("1.2.3.4"), 81));
        assert!(policy.allows(ip("2606:4700:1::1"), 443));
        assert!(!policy.allows(ip("2606:4700:1::1"), 80));
        assert!(policy.allows(ip("2606:4701::9"), 80));
        assert!(policy.allows(ip("2606:4702::1"), 8443));
        assert!(!policy.allows(ip("2606:4702::2"), 8443));
    }

    #[test]
    fn private_addresses_are_refused_under_any_rules_unless_allowed() {
        let rules = ["accept *", "accept 10.0.0.0/8"];
        let (strict, lenient) = (Policy::parse(rules, false).unwrap(), Policy::parse(rules, true).unwrap());
        for text in ["10.0.0.1", "127.0.0.1", "169.254.1.1", "::1", "fe80::1", "::ffff:127.0.0.1", "fd00::1"] {
            assert!(!strict.allows(ip(text), 80), "{text}");
            assert!(lenient.allows(ip(text), 80), "{text}");
        }
        for text in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "169.254.169.254", "fd00:ec2::254"] {
            assert!(!lenient.allows(ip(text), 80), "{text}");
        }
    }

    #[test]
    fn the_exits_own_addresses_are_refused_on_every_port_unless_private_addresses_are_allowed() {
        let own = ["1.2.3.4", "2606:4700::1"].map(ip);
        let policy = |private| Policy::parse(["accept *"], private).unwrap().refusing_own(own);
        for text in ["1.2.3.4", "2606:4700::1", "::ffff:1.2.3.4"] {
            assert!([1, 22, 9051].iter().all(|port| !policy(false).allows(ip(text), *port)), "{text}");
            assert!(policy(true).allows(ip(text), 22), "{text}");
        }
        assert!(policy(false).allows(ip("1.2.3.5"), 22));
    }

    #[test]
    fn an_ipv4_rule_matches_the_address_mapped_into_ipv6() {
        let policy = policy(&["reject 1.2.3.4", "accept *"]);
        assert!(!policy.allows(ip("::ffff:1.2.3.4"), 80));
    }

    /// Every IPv6 form of an IPv4 address.
    fn forms(ip: Ipv4Addr) -> Vec<Ipv6Addr> {
        let [a, b, c, d] = ip.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        vec![
            ip.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, high, c, d << 8, 0, 0),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0xfefe, 0xfefe),
            Ipv6Addr::new(0x2001, 0, 0x101, 0x101, 0, 0, !high, !low),
            Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0x5efe, high, low),
            Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0x200, 0x5efe, high, low),
        ]
    }

    #[test]
    fn the_policy_decides_on_every_form_of_an_address_as_on_the_address() {
        let policy = |private| {
            let policy = Policy::parse(["reject 192.31.0.0/16", "accept *"], private).unwrap();
            policy.refusing_own([ip("9.8.7.6")])
        };
        for text in
            ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "169.254.170.2", "9.8.7.6", "192.31.4.5"]
        {
            for form in forms(text.parse().unwrap()) {
                assert!(!policy(false).allows(form.into(), 80), "{text} as {form}");
            }
        }
        for text in ["169.254.169.254", "169.254.170.2", "169.254.170.23", "192.31.4.5", "0.0.0.0", "224.0.0.1"] {
            for form in forms(text.parse().unwrap()) {
                assert!(!policy(true).allows(form.into(), 80), "{text} as {form}, with private addresses allowed");
            }
        }
        for form in ["64:ff9b::1.1.1.1", "2002:101:101::1", "::ffff:1.1.1.1"] {
            assert!(policy(false).allows(ip(form), 80), "{form}");
        }
    }

    #[test]
    fn an_address_of_a_nat64_prefix_is_judged_like_the_embedded_address() {
        let prefixes = ["2606:64::/96", "2606:65::/32", "fd00:64::/96"].map(|text| text.parse().unwrap());
        let policy = |private, prefixes: &[Nat64Prefix]| {
            let policy = Policy::parse(["reject 192.31.0.0/16", "accept *"], private).unwrap();
            policy.refusing_own([ip("9.8.7.6")]).with_nat64(prefixes.iter().copied())
        };
        let embed = |ip: Ipv4Addr| {
            let [a, b, c, d] = ip.octets();
            let last = format!("{:x}:{:x}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            [format!("2606:64::{last}"), format!("2606:65:{last}::1"), format!("fd00:64::{last}")]
        };
        for text in ["127.0.0.1", "10.1.2.3", "169.254.169.254", "9.8.7.6", "192.31.4.5", "0.0.0.0", "224.0.0.1"] {
            for address in embed(text.parse().unwrap()) {
                assert!(!policy(false, &prefixes).allows(ip(&address), 80), "{text} as {address}");
            }
        }
        for text in ["169.254.169.254", "192.31.4.5", "0.0.0.0", "255.255.255.255"] {
            for address in embed(text.parse().unwrap()) {
                assert!(!policy(true, &prefixes).allows(ip(&address), 80), "{text} as {address}");
            }
        }
        // A prefix only refuses: each allowed address is allowed without the prefix too.
        for (text, expected) in [("1.1.1.1", [true, true, false]), ("10.1.2.3", [false; 3])] {
            let addresses = embed(text.parse().unwrap()).map(|address| ip(&address));
            assert_eq!(addresses.map(|ip| policy(false, &prefixes).allows(ip, 80)), expected, "{text}");
            assert_eq!(addresses.map(|ip| policy(false, &[]).allows(ip, 80)), [true, true, false], "{text}");
        }
        assert!(policy(false, &prefixes).allows(ip("2606:4700::a00:1"), 80), "another prefix");
    }

    #[test]
    fn without_known_prefixes_ipv6_addresses_are_refused_unless_private_ones_are_allowed() {
        let prefix: [Nat64Prefix; 1] = ["2606:64::/96".parse().unwrap()];
        let allows = |private, text, revealed| {
            let policy = Policy::parse(["accept *"], private).unwrap();
            policy.allows_in_network(ip(text), 80, revealed)
        };
        for (text, unknown, none, one) in [
            ("1.1.1.1", true, true, true),
            ("::ffff:1.1.1.1", true, true, true),
            ("2606:4700::1", false, true, true),
            ("2606:64::a00:1", false, true, false),
        ] {
            let found = [None, Some(&[][..]), Some(&prefix[..])].map(|revealed| allows(false, text, revealed));
            assert_eq!(found, [unknown, none, one], "{text}");
        }
        assert!(allows(true, "2606:4700::1", None) && allows(true, "::1", None));
    }

    #[test]
    fn an_invalid_rule_is_an_error_with_its_text_and_the_cause() {
        let error = |rule: &str| Policy::parse([rule], false).unwrap_err();
        assert_eq!(error("allow 80"), PolicyError::Verb("allow 80".into()));
        assert_eq!(error("accept"), PolicyError::Form("accept".into()));
        assert_eq!(error("accept 80 443"), PolicyError::Form("accept 80 443".into()));
        assert_eq!(error("accept 0"), PolicyError::Ports("accept 0".into()));
        assert_eq!(error("accept 443-80"), PolicyError::Ports("accept 443-80".into()));
        assert_eq!(error("accept 70000"), PolicyError::Ports("accept 70000".into()));
        assert_eq!(error("reject 10.0.0.0/33"), PolicyError::Address("reject 10.0.0.0/33".into()));
        assert_eq!(error("reject example.org"), PolicyError::Address("reject example.org".into()));
        assert_eq!(Policy::parse(["accept *"; 257], false).unwrap_err(), PolicyError::TooMany);
    }

    #[test]
    fn the_summary_has_the_ports_that_are_open_at_almost_every_address() {
        let summary = policy(&[
            "reject 1.2.3.0/24",
            "accept 80",
            "accept 443",
            "accept 8000-8002",
            "reject 8003",
            "accept [::]/0:9000",
        ])
        .summary();
        let open = |range: &PortRangePair| (range.0, range.1);
        let v4: Vec<_> = summary.ipv4().iter().map(|range| (range.first(), range.last())).collect();
        assert_eq!(v4, [(80, 80), (443, 443), (8000, 8002)].iter().map(open).collect::<Vec<_>>());
        assert!(summary.ipv6().iter().any(|range| range.first() == 9000));
        let all = policy(&["accept *"]).summary();
        assert_eq!(all.ipv4().iter().map(|range| (range.first(), range.last())).collect::<Vec<_>>(), [(1, 65535)]);
        assert!(policy(&["accept 1.2.3.4:80"]).summary().is_empty());
        assert!(Policy::refuse_all().summary().is_empty());
    }

    type PortRangePair = (u16, u16);

    proptest! {
        #[test]
        fn no_form_of_a_private_address_is_allowed(bits in any::<u32>(), network in 0..4_usize) {
            let networks = [(0x0a00_0000, 8), (0x7f00_0000, 8), (0xac10_0000, 12), (0xc0a8_0000, 16)];
            let (network, length) = networks[network];
            for form in forms(Ipv4Addr::from_bits(network | bits >> length)) {
                prop_assert!(!policy(&["accept *"]).allows(form.into(), 80), "{}", form);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = Policy::parse([text], false);
        }

        #[test]
        fn summary_and_policy_agree_at_an_ordinary_address(
            rules in proptest::collection::vec((any::<bool>(), 1u16..2000, 0u16..500), 0..8),
            port in 1u16..2500,
        ) {
            let rules = rules.into_iter().map(|(accept, first, more)| {
                format!("{} {first}-{}", if accept { "accept" } else { "reject" }, first + more)
            });
            let policy = Policy::parse(rules, false).unwrap();
            let summary = policy.summary();
            let accepted = summary.ipv4().iter().any(|range| range.contains(port));
            prop_assert_eq!(accepted, policy.allows(ip("1.1.1.1"), port));
        }
    }
}
