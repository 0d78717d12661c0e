//! The confirmation before a URL is opened outside the overlay: the consequences, the proxy check, and the redirect.
//!
//! The page contains the URL of the redirect instead of the target's. Browsers resolve the host names of a page's URLs
//! in advance, and the lookup of a planted name would reveal this machine.

use std::net::SocketAddr;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use maud::html;
use url::Url;

use super::{
    check::ProxyCheck,
    layout::{PageKind, address, brand, foot, page},
};

/// The confirmation for `url`. `socks` is the address of the client's SOCKS port.
pub(super) fn confirm(url: &Url, check: ProxyCheck, socks: SocketAddr) -> Response {
    let host = url.host_str().unwrap_or_default();
    let body = html! {
        header.top { (brand()) }
        main.words {
            h1 { "Open this page directly in your browser?" }
            p.target { (url) }
            p.check {
                "Does this browser use the overlay? " br;
                img src=(check.url()) alt="No, it does not.";
            }
            p {
                "If not, " b { (host) } " sees your own address, and your network's provider sees that you visit it. The URL comes "
                "from an exit, which could have made it up for this one search: then its target would link the query with "
                "your address."
            }
            p { "If it does, " b { (host) } " sees the address of an exit instead of yours, and everything that your browser discloses." }
            div.choices {
                a.button href=(address("/read", &[("url", url.as_str())])) { "Read it through the overlay" }
                a.button.quiet href=(address("/go", &[("url", url.as_str())])) rel="noreferrer" { "Open it in this browser" }
            }
            details {
                summary { "How to make this browser use the overlay" }
                p {
                    "In its network settings, choose a SOCKS5 proxy at address " code { (socks.ip()) } " and port "
                    code { (socks.port()) } ", and let the proxy resolve names (in Firefox: “Proxy DNS when using SOCKS v5”). Then "
                    "reload this page. A separate browser profile for this purpose discloses less about you."
                }
            }
        }
        (foot())
    };
    page(PageKind::Leave, StatusCode::OK, "Leaving the overlay · Umbel", &body)
}

/// The redirect to `url`.
pub(super) fn go(url: &Url) -> Response {
    match HeaderValue::from_str(url.as_str()) {
        Ok(location) => (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}
