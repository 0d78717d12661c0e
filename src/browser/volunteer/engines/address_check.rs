//! Checks whether a page may query an engine at the address in the engine's description.

use core::net::IpAddr;

use super::bad;
use crate::{
    browser::{failure::PageFailure, js},
    delegated::{EngineName, url::Url},
    engine::Engine,
    exit_policy::is_global,
    path::SpecialHost,
};

/// The engine of a description.
///
/// # Errors
/// When the name or the description is invalid, or a page may not query the engine.
pub(in crate::browser) fn describe(name: &str, description: &str) -> Result<Engine, PageFailure> {
    let engine_name = EngineName::parse(name)
        .ok_or_else(|| bad(format!("\"{name}\" is not a name of a search engine: at most 32 of a-z, 0-9 and -")))?;
    let engine = Engine::describe_for_page(description.as_bytes(), Some(engine_name))
        .map_err(|error| bad(format!("the description of \"{name}\" is invalid: {error}")))?;
    // A page from a public host may not query local addresses. Otherwise a malicious description could make a visitor's
    // browser send requests to the visitor's local network.
    if !is_local(&js::own_host()) && engine.origins().iter().any(|origin| is_local(&host(origin))) {
        return Err(bad(format!("the search engine \"{name}\" has an address of your own machine or network")));
    }
    Ok(engine)
}

fn host(origin: &str) -> String {
    Url::parse(origin).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

/// Whether `host`, as browsers serialise it, is on this machine or the local network, or has no public name. Only the
/// text is checked, because a page can't see the address to which a name resolves.
fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => !is_global(ip),
        Err(_) => !bare.is_empty() && SpecialHost::of_name(bare) == Some(SpecialHost::Private),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_of_the_visitors_network_are_local() {
        for host in [
            "localhost",
            "a.localhost",
            "printer.local",
            "router",
            "router.",
            "nas.lan",
            "fritz.box",
            "wiki.home.arpa",
            "search.internal",
            "local",
            "127.0.0.1",
            "192.168.1.1",
            "10.0.0.1",
            "169.254.169.254",
            "[::1]",
            "[fe80::1]",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in ["engine.org", "localhost.org", "notfritz.box", "engine.onion", "1.1.1.1", "[2606:4700::1111]", ""]
        {
            assert!(!is_local(host), "{host}");
        }
        assert_eq!(host("http://127.0.0.1:8080"), "127.0.0.1");
        assert_eq!(host("https://[::1]"), "[::1]");
    }
}
