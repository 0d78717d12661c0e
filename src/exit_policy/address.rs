//! Classification of IP addresses: global, host, metadata service.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether `ip` is globally reachable: not private, loopback, link-local (with most metadata services of clouds),
/// shared, reserved, documentation, multicast, nor an IPv6 form of such an IPv4 address.
#[must_use]
pub fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

/// Whether `ip` is the metadata service of a cloud, which gives machines their credentials. Some metadata services have
/// addresses that count as global.
pub(super) fn is_metadata(ip: IpAddr) -> bool {
    // AWS, Google, Azure and others; Amazon's containers (two); Alibaba; Oracle; Azure's agent.
    const V4: [[u8; 4]; 6] = [
        [169, 254, 169, 254],
        [169, 254, 170, 2],
        [169, 254, 170, 23],
        [100, 100, 100, 200],
        [192, 0, 0, 192],
        [168, 63, 129, 16],
    ];
    // AWS; Amazon's containers.
    const V6: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)];
    match ip {
        IpAddr::V4(ip) => V4.contains(&ip.octets()),
        IpAddr::V6(ip) => V6.contains(&ip) || embedded_v4(ip).any(|ip| is_metadata(IpAddr::V4(ip))),
    }
}

/// Whether `ip` is the address of a single host: not multicast, broadcast, or unspecified. On Linux, a connection to
/// the unspecified address reaches the machine itself.
pub(super) fn is_host(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.octets()[0] == 0 || ip.is_multicast() || ip.is_broadcast()),
        IpAddr::V6(ip) if ip.is_loopback() => true,
        IpAddr::V6(ip) => {
            !(ip.is_unspecified() || ip.is_multicast()) && embedded_v4(ip).all(|ip| is_host(IpAddr::V4(ip)))
        }
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let reserved = a == 0 || a == 127 || a >= 224;
    let private = a == 10 || matches!((a, b), (100, 64..=127) | (169, 254) | (172, 16..=31) | (192, 168));
    let testing = matches!((a, b), (198, 18 | 19));
    let special = matches!((a, b, c), (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113));
    !(reserved || private || testing || special)
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    if !embedded_v4(ip).all(is_global_v4) {
        return false;
    }
    let [a, b, c, d, e, f, ..] = ip.segments();
    // Mapped addresses, and the NAT64 prefix whose translators are public (RFC 6052).
    if [a, b, c, d, e, f] == [0, 0, 0, 0, 0, 0xffff] || [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return true;
    }
    // Global unicast is 2000::/3, except Teredo and other protocol assignments (2001::/23) and documentation
    // (2001:db8::/32, 3fff::/20).
    let protocol_assignment = a == 0x2001 && b < 0x0200;
    let documentation = (a == 0x2001 && b == 0x0db8) || (a == 0x3fff && b < 0x1000);
    a & 0xe000 == 0x2000 && !protocol_assignment && !documentation
}

/// The IPv4 addresses to which a packet for `ip` may go, through a translator or a tunnel.
pub(super) fn embedded_v4(ip: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    let [a, b, c, d, e, f, high, low] = ip.segments();
    let [first, second] = match [a, b, c, d, e, f] {
        // IPv4-compatible (::/96), mapped (::ffff:0:0/96) and translated (::ffff:0:0:0/96).
        [0, 0, 0, 0, 0, 0 | 0xffff] | [0, 0, 0, 0, 0xffff, 0] => [Some(from(high, low)), None],
        // NAT64 (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0] => [Some(from(high, low)), None],
        // NAT64 of a local network (RFC 8215) with a prefix of 96 or of 48 bits.
        [0x64, 0xff9b, 1, ..] => {
            let ([_, third], [fourth, _]) = (e.to_be_bytes(), f.to_be_bytes());
            [Some(from(high, low)), Some(from(d, u16::from_be_bytes([third, fourth])))]
        }
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => [Some(from(high, low)), None],
        // Teredo (RFC 4380): the server, and the client with its bits inverted.
        [0x2001, 0, high_of_server, low_of_server, ..] => {
            [Some(from(high_of_server, low_of_server)), Some(from(!high, !low))]
        }
        _ => [None, None],
    };
    // ISATAP (RFC 5214), behind any prefix.
    let isatap = (matches!(e, 0 | 0x200) && f == 0x5efe).then(|| from(high, low));
    [first, second, isatap].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn private_and_special_addresses_are_not_global() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "64:ff9b:1::1",
            "64:ff9b:1::1.1.1.1",
            "::ffff:0:1.1.1.1",
            "2606:4700::5efe:10.0.0.1",
            "2606:4700::200:5efe:127.0.0.1",
            "100::1",
            "::127.0.0.1",
            "3fff::1",
        ] {
            assert!(!is_global(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_global() {
        for text in [
            "1.1.1.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "2606:4700::1111",
            "64:ff9b::101:101",
            "2002:101:101::1",
            "::ffff:1.1.1.1",
            "2606:4700::5efe:1.1.1.1",
        ] {
            assert!(is_global(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn metadata_services_are_recognised_in_every_form() {
        for text in [
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "169.254.170.2",
            "169.254.170.23",
            "fd00:ec2::23",
            "64:ff9b:1::169.254.170.2",
            "2001:0:101:101::5601:55fd",
        ] {
            assert!(is_metadata(text.parse().unwrap()), "{text}");
        }
        assert!(!is_metadata("169.254.169.253".parse().unwrap()));
    }

    #[test]
    fn no_host_has_an_unspecified_multicast_or_broadcast_address() {
        for text in ["0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "::ffff:0.0.0.0"] {
            assert!(!is_host(text.parse().unwrap()), "{text}");
        }
        for text in ["127.0.0.1", "::1", "10.0.0.1", "1.1.1.1"] {
            assert!(is_host(text.parse().unwrap()), "{text}");
        }
    }
}
