//! Offers of exits for delegated requests, and the request that a circuit's exit must perform.

use core::fmt;

use crate::wire::Service;

/// Cap on the number of engines in one exit's offer.
pub const MAX_ENGINES: usize = 32;
/// Cap on the number of hosts in one exit's offer.
pub const MAX_HOSTS: usize = 64;

const MAX_NAME_LEN: usize = 32;
const MAX_HOST_LEN: usize = 253;

/// The short name of a search engine, the same at all exits that offer it: 1 to 32 of `a`–`z`, `0`–`9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineName(String);

impl EngineName {
    /// The name, if it is valid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ((1..=MAX_NAME_LEN).contains(&text.len()) && text.bytes().all(fits)).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The HTTP requests that an exit performs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HttpOffer {
    /// None.
    #[default]
    None,
    /// Requests to these hosts: 1 to 64 names or addresses, ascending, each once. Each has 1 to 253 of `a`–`z`,
    /// `0`–`9`, `-`, `.`, `:` and `_`.
    Hosts(Vec<String>),
    /// Requests to any host.
    Open,
}

/// An exit's offer of delegated requests; empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Engines that the exit searches: at most 32, ascending, each once.
    pub engines: Vec<EngineName>,
    /// HTTP requests that the exit performs.
    pub requests: HttpOffer,
}

impl Offer {
    /// Whether the offer contains no engine and no requests.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.engines.is_empty() && self.requests == HttpOffer::None
    }

    /// Whether counts, lengths, characters and order are as stated at the fields.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let is_ascending = self.engines.is_sorted_by(|one, next| one < next);
        let has_valid_hosts = match &self.requests {
            HttpOffer::None | HttpOffer::Open => true,
            HttpOffer::Hosts(hosts) => {
                (1..=MAX_HOSTS).contains(&hosts.len())
                    && hosts.is_sorted_by(|one, next| one < next)
                    && hosts.iter().all(|host| is_host(host))
            }
        };
        is_ascending && self.engines.len() <= MAX_ENGINES && has_valid_hosts
    }
}

fn is_host(host: &str) -> bool {
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b':' | b'_');
    (1..=MAX_HOST_LEN).contains(&host.len()) && host.bytes().all(fits)
}

/// The request that a circuit's exit must perform. Prints without the host.
#[derive(Clone, PartialEq, Eq)]
pub enum Delegation {
    /// Search this engine.
    Search(EngineName),
    /// Perform an HTTP request to this host.
    Http {
        /// A name or address in lower case.
        host: String,
    },
}

impl Delegation {
    /// The kind of the request, as REQUEST states it.
    #[must_use]
    pub const fn service(&self) -> Service {
        match self {
            Self::Search(_) => Service::Search,
            Self::Http { .. } => Service::Http,
        }
    }

    /// Whether an exit with this offer performs the request.
    #[must_use]
    pub fn is_offered(&self, offer: &Offer) -> bool {
        match (self, &offer.requests) {
            (Self::Search(engine), _) => offer.engines.contains(engine),
            (Self::Http { .. }, HttpOffer::None) => false,
            (Self::Http { host }, HttpOffer::Hosts(hosts)) => hosts.contains(host),
            (Self::Http { .. }, HttpOffer::Open) => true,
        }
    }
}

impl fmt::Debug for Delegation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Search(engine) => write!(f, "Search({engine})"),
            Self::Http { .. } => f.write_str("Http([redacted])"),
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn engine(name: &str) -> EngineName {
        EngineName::parse(name).unwrap()
    }

    fn hosts(hosts: &[&str]) -> HttpOffer {
        HttpOffer::Hosts(hosts.iter().map(|host| (*host).to_owned()).collect())
    }

    #[test]
    fn engine_names_are_short_and_have_lower_case_letters_digits_and_hyphens_only() {
        for bad in ["", "Wiki", "wiki pedia", "wikipédia", "a/b", "a\n", &"a".repeat(33)] {
            assert_eq!(EngineName::parse(bad), None, "{bad:?}");
        }
        assert_eq!(engine("kiwix-2").as_str(), "kiwix-2");
    }

    #[test]
    fn an_offer_with_a_wrong_order_count_or_host_is_invalid() {
        let good = Offer { engines: vec![engine("a"), engine("b")], requests: hosts(&["a.example", "b.example"]) };
        assert!(good.is_valid());
        let many = (0..33).map(|number| engine(&format!("e{number:02}"))).collect();
        for bad in [
            Offer { engines: vec![engine("b"), engine("a")], ..good.clone() },
            Offer { engines: vec![engine("a"), engine("a")], ..good.clone() },
            Offer { engines: many, ..good.clone() },
            Offer { requests: hosts(&[]), ..good.clone() },
            Offer { requests: hosts(&["b.example", "a.example"]), ..good.clone() },
            Offer { requests: hosts(&["A.example"]), ..good.clone() },
            Offer { requests: hosts(&["a b"]), ..good },
        ] {
            assert!(!bad.is_valid(), "{bad:?}");
        }
    }

    #[test]
    fn a_request_is_offered_by_exits_that_list_its_host_or_accept_any() {
        let wanted = Delegation::Http { host: "a.example".into() };
        let offer = |requests| Offer { engines: vec![engine("a")], requests };
        assert!(!wanted.is_offered(&offer(HttpOffer::None)));
        assert!(!wanted.is_offered(&offer(hosts(&["b.example"]))));
        assert!(wanted.is_offered(&offer(hosts(&["a.example", "b.example"]))));
        assert!(wanted.is_offered(&offer(HttpOffer::Open)));
        assert!(Delegation::Search(engine("a")).is_offered(&offer(HttpOffer::None)));
        assert!(!Delegation::Search(engine("b")).is_offered(&offer(HttpOffer::Open)));
    }

    #[test]
    fn an_http_delegation_prints_redacted() {
        let printed = format!("{:?}", Delegation::Http { host: "a.example".into() });
        assert!(!printed.contains("example"), "{printed}");
    }
}
