//! The reverse proxies in front of a directory, and the addresses of the clients behind these.
//!
//! A trusted proxy appends the address of its client to `X-Forwarded-For`. The field of any other peer is ignored,
//! because each peer could otherwise choose its address, and so escape the caps for sources and networks. Each machine at
//! an address in a trusted prefix can do so, even as a client of a proxy: its own entry counts as one of a proxy.

use core::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The text of a proxy's address or prefix that is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("trusted proxy \"{0}\": neither an address nor an address with a prefix length as in \"192.0.2.0/24\"")]
pub struct InvalidProxy(String);

/// The addresses of trusted reverse proxies. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    prefixes: Arc<[IpNet]>,
}

impl TrustedProxies {
    /// Parses addresses and prefixes of proxies.
    ///
    /// # Errors
    /// When a text is neither an address nor a prefix.
    pub fn parse<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Self, InvalidProxy> {
        let parse = |text: S| {
            let text = text.as_ref();
            let address = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
            text.parse().or_else(|_| address()).map_err(|_| InvalidProxy(text.to_owned()))
        };
        Ok(Self { prefixes: texts.into_iter().map(parse).collect::<Result<_, _>>()? })
    }

    /// The lengths of the prefixes that contain more than one address.
    pub(crate) fn wide_prefix_lengths(&self) -> impl Iterator<Item = u8> {
        self.prefixes.iter().filter(|prefix| prefix.prefix_len() < prefix.max_prefix_len()).map(IpNet::prefix_len)
    }

    /// Whether `address` is that of a trusted proxy.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    /// The address of the client that sent a request with these `headers` over a connection of `peer`: the last entry
    /// of `X-Forwarded-For` that is no trusted proxy. If `peer` is no trusted proxy, or the field is absent or has a
    /// malformed entry there, it is `peer`.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.contains(peer) {
            return peer;
        }
        // Some proxies add a field of their own behind the client's.
        let fields = headers.get_all(X_FORWARDED_FOR).iter().rev();
        // The entries of the client come first, so they can't hide the entry of the proxy.
        let mut entries = fields.flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b',')).map(parse_entry);
        let client = entries.find(|entry| entry.is_none_or(|address| !self.contains(address)));
        client.flatten().unwrap_or(peer)
    }
}

/// The address of an entry, with or without a port; `None` if it is malformed.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = core::str::from_utf8(entry).ok()?.trim();
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address = text.parse().ok().or_else(in_brackets);
    let address = address.or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// The client of a request from `peer` with these fields.
    fn client(proxies: &[&str], peer: &str, fields: &[&str]) -> String {
        let fields = fields.iter().map(|field| (X_FORWARDED_FOR, HeaderValue::from_str(field).unwrap()));
        let mut headers = HeaderMap::new();
        fields.for_each(|(name, value)| _ = headers.append(name, value));
        let proxies = TrustedProxies::parse(proxies).unwrap();
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_field_of_a_peer_that_is_no_trusted_proxy_is_ignored() {
        for proxies in [&[][..], &["10.0.0.1"], &["10.0.0.0/24", "2001:db8::/32"]] {
            assert_eq!(client(proxies, "20.0.0.1", &["30.0.0.1"]), "20.0.0.1");
        }
    }

    #[test]
    fn the_client_is_the_last_entry_that_is_no_trusted_proxy() {
        let proxies = ["10.0.0.0/8", "2001:db8::1"];
        for (peer, fields, expected) in [
            ("10.0.0.1", &["30.0.0.1"][..], "30.0.0.1"),
            ("::ffff:10.0.0.1", &["30.0.0.1"], "30.0.0.1"),
            ("2001:db8::1", &["2606:4700::1"], "2606:4700::1"),
            ("10.0.0.1", &["40.0.0.1, 30.0.0.1"], "30.0.0.1"),
            ("10.0.0.1", &["garbage,30.0.0.1 , 10.0.0.2,2001:db8::1"], "30.0.0.1"),
            ("10.0.0.1", &["40.0.0.1", "30.0.0.1"], "30.0.0.1"),
            ("10.0.0.1", &["30.0.0.1:4711"], "30.0.0.1"),
            ("10.0.0.1", &["[2606:4700::1]"], "2606:4700::1"),
            ("10.0.0.1", &["[2606:4700::1]:4711"], "2606:4700::1"),
            ("10.0.0.1", &["::ffff:30.0.0.1"], "30.0.0.1"),
        ] {
            assert_eq!(client(&proxies, peer, fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn without_a_valid_entry_the_client_is_the_proxy() {
        for fields in [
            &[][..],
            &[""],
            &["30.0.0.1,"],
            &["30.0.0.1, unknown"],
            &["30.0.0.1", "30.0.0"],
            &["30.0.0.1 30.0.0.2"],
            &["10.0.0.2, 10.0.0.3"],
        ] {
            assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", fields), "10.0.0.1", "{fields:?}");
        }
    }

    #[test]
    fn a_client_in_the_prefix_of_trusted_proxies_can_claim_any_address() {
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &["30.0.0.1, 10.0.0.66"]), "30.0.0.1");
        assert_eq!(client(&["10.0.0.1"], "10.0.0.1", &["30.0.0.1, 10.0.0.66"]), "10.0.0.66");
    }

    #[test]
    fn prefixes_of_more_than_one_address_are_found() {
        let proxies =
            TrustedProxies::parse(["10.0.0.1", "10.0.0.0/24", "2001:db8::1/128", "2001:db8::/64", "10.0.0.2/32"]);
        assert_eq!(proxies.unwrap().wide_prefix_lengths().collect::<Vec<_>>(), [24, 64]);
    }

    #[test]
    fn an_invalid_proxy_is_an_error_that_names_it() {
        for text in ["proxy.example", "10.0.0.0/33", "10.0.0", ""] {
            let error = TrustedProxies::parse([text]).unwrap_err();
            assert!(error.to_string().contains(&format!("\"{text}\"")), "{error}");
        }
    }
}
