//! Access checks of the search page: only the user's browser and command line may use it, no page of other sites.
//!
//! | refused | because |
//! |---|---|
//! | a `Host` other than the listener's | against DNS rebinding, which would give a foreign page this page's origin |
//! | `Sec-Fetch-Site` other than `same-origin` and `none`; a foreign `Origin` or `Referer` | another page sent it |
//! | prefetching, prerendering | a speculative request must not become a query or a visit |
//! | `/api` with a browser's header fields, or without `Umbel-Api` | command line only; no page can set that field |
//!
//! Every answer forbids framing, referrers, content sniffing, caching, and loading from other sites.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

/// The header field that the command line sets.
pub(crate) const API_FIELD: &str = "umbel-api";

const SITE: &str = "sec-fetch-site";
/// Header fields by which a browser marks a speculative request.
const PURPOSES: [&str; 3] = ["sec-purpose", "purpose", "x-moz"];

const FIELDS: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::X_DNS_PREFETCH_CONTROL, "off"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Passes a valid request on, or answers with the reason of the refusal. Adds the protective fields to every answer.
pub(super) async fn guard(State(own): State<Arc<SocketAddr>>, request: Request, next: Next) -> Response {
    let mut response = match judge(*own, &request) {
        Ok(()) => next.run(request).await,
        Err((status, why)) => (status, why).into_response(),
    };
    let fields = response.headers_mut();
    for (name, value) in FIELDS {
        // A page with another content policy has set its field already.
        fields.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn judge(own: SocketAddr, request: &Request) -> Result<(), (StatusCode, String)> {
    let fields = request.headers();
    let Some(host) = text(fields, header::HOST).filter(|host| is_own(host, own) && request.uri().authority().is_none())
    else {
        let why = format!("Umbel's search page is available at its own address only: http://{own}/\n");
        return Err((StatusCode::MISDIRECTED_REQUEST, why));
    };
    if PURPOSES.iter().any(|purpose| fields.contains_key(*purpose)) {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "This page can't be prefetched.\n".to_owned()));
    }
    let origin = format!("http://{host}");
    let api = request.uri().path().starts_with("/api/");
    if !comes_from_here(fields, &origin) || api && !is_command_line(fields) {
        let why = format!(
            "The request came from another site's page and was refused, so that no site can search or read in your name. \
             Type the address yourself: {origin}/\n"
        );
        return Err((StatusCode::FORBIDDEN, why));
    }
    Ok(())
}

/// Whether `host`, a `Host` field, names the listener at `own`. Names other than `localhost` are refused: they could
/// have been made to resolve to this address (DNS rebinding).
fn is_own(host: &str, own: SocketAddr) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') || authority.port_u16().unwrap_or(80) != own.port() {
        return false;
    }
    let local = own.ip().is_loopback() || own.ip().is_unspecified();
    match authority.host() {
        "localhost" => local,
        host => match host.trim_start_matches('[').trim_end_matches(']').parse::<core::net::IpAddr>() {
            Ok(ip) => ip == own.ip() || own.ip().is_unspecified(),
            Err(_) => false,
        },
    }
}

/// Whether the user or one of our pages sent the request. Without `Sec-Fetch-Site` (old browsers), `Origin` and
/// `Referer` decide.
fn comes_from_here(fields: &HeaderMap, origin: &str) -> bool {
    let absent_or = |name: HeaderName, fits: &dyn Fn(&str) -> bool| {
        fields.get(name).is_none_or(|value| value.to_str().is_ok_and(fits))
    };
    let ours = absent_or(header::ORIGIN, &|value| value == origin);
    let below = |referrer: &str| referrer.strip_prefix(origin).is_some_and(|path| path.starts_with('/'));
    match fields.get(SITE).map(HeaderValue::as_bytes) {
        Some(b"same-origin" | b"none") => ours,
        Some(_) => false,
        None => ours && absent_or(header::REFERER, &below),
    }
}

fn is_command_line(fields: &HeaderMap) -> bool {
    fields.contains_key(API_FIELD) && !fields.contains_key(header::ORIGIN) && !fields.contains_key(SITE)
}

fn text(fields: &HeaderMap, name: HeaderName) -> Option<&str> {
    fields.get(name)?.to_str().ok()
}
