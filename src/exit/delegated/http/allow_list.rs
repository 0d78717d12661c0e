//! The operator's list of allowed requests: hosts, each with its methods.

use hyper::{Method, Uri};

use crate::{
    delegated::{MAX_HOSTS, message::METHODS},
    http_exchange::http1::target_of,
    wire::{Host, Target},
};

/// The reason why the list is invalid, with the text of an invalid entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AllowListError {
    /// The entry isn't two words.
    #[error("allowed request \"{0}\": not methods and a host as in \"GET,HEAD example.org\"")]
    Form(String),
    /// The entry has an unsupported method.
    #[error(
        "allowed request \"{0}\": unknown method; write some of GET, HEAD, POST, PUT, DELETE, PATCH and OPTIONS, separated by commas"
    )]
    Method(String),
    /// The host is invalid.
    #[error("allowed request \"{0}\": not a host as in \"example.org\", \"example.org:8443\" or \"http://192.0.2.1\"")]
    Host(String),
    /// There are more hosts than a descriptor allows.
    #[error("the number of allowed hosts exceeds {MAX_HOSTS}")]
    TooMany,
}

/// The allowed methods at one host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AllowRule {
    methods: Vec<Method>,
    secure: bool,
    target: Target,
}

impl AllowRule {
    /// Parses the operator's list. An entry consists of methods, separated by commas, then white space and a host. The
    /// scheme is `https` unless the host begins with `http://`.
    ///
    /// # Errors
    /// When an entry is malformed, or there are more hosts than an exit may offer.
    pub(crate) fn parse_all<S: AsRef<str>>(entries: impl IntoIterator<Item = S>) -> Result<Vec<Self>, AllowListError> {
        let parsed = entries.into_iter().map(|entry| Self::parse(entry.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if hosts(&parsed).len() > MAX_HOSTS { Err(AllowListError::TooMany) } else { Ok(parsed) }
    }

    fn parse(entry: &str) -> Result<Self, AllowListError> {
        let mut words = entry.split_whitespace();
        let (Some(methods), Some(address), None) = (words.next(), words.next(), words.next()) else {
            return Err(AllowListError::Form(entry.to_owned()));
        };
        let method = |text: &str| METHODS.contains(&text).then(|| text.parse().ok()).flatten();
        let methods: Option<Vec<Method>> = methods.split(',').map(method).collect();
        let methods = methods.ok_or_else(|| AllowListError::Method(entry.to_owned()))?;
        let address = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        let uri = address.parse::<Uri>().ok().filter(|uri| uri.path() == "/" && uri.query().is_none());
        let address = uri.as_ref().and_then(target_of);
        let (secure, target) = address.ok_or_else(|| AllowListError::Host(entry.to_owned()))?;
        Ok(Self { methods, secure, target: Target { host: lower(&target.host), port: target.port } })
    }

    /// Whether the rule allows this request.
    pub(super) fn matches(&self, method: &Method, secure: bool, target: &Target) -> bool {
        let same_target = self.secure == secure && self.target.port == target.port;
        same_target && self.target.host == lower(&target.host) && self.methods.contains(method)
    }
}

fn lower(host: &Host) -> Host {
    match host {
        Host::Name(name) => Host::Name(name.to_ascii_lowercase()),
        Host::Ip(ip) => Host::Ip(*ip),
    }
}

/// The hosts of `list`, ascending, each once.
pub(super) fn hosts(list: &[AllowRule]) -> Vec<String> {
    let mut hosts: Vec<String> = list.iter().map(|rule| rule.target.host.to_text()).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(entry: &str, method: Method, address: &str) -> bool {
        let (secure, target) = target_of(&address.parse().unwrap()).unwrap();
        AllowRule::parse(entry).unwrap().matches(&method, secure, &target)
    }

    #[test]
    fn an_entry_allows_its_methods_at_its_host_and_port_by_https() {
        let entry = "GET,HEAD Example.org";
        assert!(allows(entry, Method::GET, "https://example.org/path?query"));
        assert!(allows(entry, Method::HEAD, "https://EXAMPLE.org:443/"));
        assert!(!allows(entry, Method::POST, "https://example.org/"));
        assert!(!allows(entry, Method::GET, "http://example.org/"));
        assert!(!allows(entry, Method::GET, "http://example.org:443/"));
        assert!(!allows(entry, Method::GET, "https://example.org:8443/"));
        assert!(!allows(entry, Method::GET, "https://www.example.org/"));
        assert!(!allows(entry, Method::GET, "https://example.org.evil.example/"));
        assert!(allows("GET http://192.0.2.1:8080", Method::GET, "http://192.0.2.1:8080/"));
        assert!(allows("POST [2001:db8::1]:8443", Method::POST, "https://[2001:db8:0::1]:8443/"));
    }

    #[test]
    fn an_invalid_entry_is_an_error_with_its_text() {
        for entry in [
            "",
            "GET",
            "example.org",
            "GET example.org x",
            "get example.org",
            "CONNECT example.org",
            "GET, example.org",
            "GET ftp://example.org",
            "GET me@example.org",
            "GET example.org/path",
            "GET example.org:0",
            "TRACE example.org",
        ] {
            let error = AllowRule::parse_all([entry]).unwrap_err().to_string();
            assert!(error.contains(&format!("\"{entry}\"")), "{error}");
        }
        let many: Vec<String> = (0..=MAX_HOSTS).map(|number| format!("GET host{number}.example")).collect();
        assert_eq!(AllowRule::parse_all(many), Err(AllowListError::TooMany));
    }

    #[test]
    fn the_offer_has_each_host_once() {
        let list = AllowRule::parse_all(["GET b.example", "POST B.example:8443", "GET a.example"]).unwrap();
        assert_eq!(hosts(&list), ["a.example", "b.example"]);
    }
}
