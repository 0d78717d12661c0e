//! Access checks of the search page: only the user's browser and command line may use it, and no page of another site.
//!
//! | refused request | reason |
//! |---|---|
//! | `Host` other than the listener's | DNS rebinding, by which a foreign page would have the origin of this page |
//! | `Sec-Fetch-Site` other than `same-origin` and `none`; a foreign `Origin` or `Referer` | sent by another site |
//! | prefetching, prerendering | a speculative request must not cause a query or a visit |
//! | `/api` with a browser's header fields, or without `Umbel-Api` | for the command line only |
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
/// Header fields of speculative requests.
const PURPOSES: [&str; 3] = ["sec-purpose", "purpose", "x-moz"];

/// Header fields of every answer.
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

/// Passes a permitted request to the handler, and refuses others with the reason. Adds [`FIELDS`] to every answer.
pub(super) async fn guard(State(listener): State<Arc<SocketAddr>>, request: Request, next: Next) -> Response {
    let mut response = match check(*listener, &request) {
        Ok(()) => next.run(request).await,
        Err((status, reason)) => (status, reason).into_response(),
    };
    let fields = response.headers_mut();
    for (name, value) in FIELDS {
        // Handlers of pages set `Content-Security-Policy` themselves.
        fields.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The status and text of a refusal, if the request is not permitted.
fn check(own: SocketAddr, request: &Request) -> Result<(), (StatusCode, String)> {
    let fields = request.headers();
    let Some(host) = text(fields, header::HOST).filter(|host| is_own(host, own) && request.uri().authority().is_none())
    else {
        let reason = format!("Umbel's search page is available at its own address only: http://{own}/\n");
        return Err((StatusCode::MISDIRECTED_REQUEST, reason));
    };
    if PURPOSES.iter().any(|purpose| fields.contains_key(*purpose)) {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "This page can't be prefetched.\n".to_owned()));
    }
    let origin = format!("http://{host}");
    let is_api = request.uri().path().starts_with("/api/");
    if !is_same_origin(fields, &origin) || is_api && !is_command_line(fields) {
        let reason = format!(
            "The request came from another site's page and was refused, so that no site can search or read in your name. \
             Type the address yourself: {origin}/\n"
        );
        return Err((StatusCode::FORBIDDEN, reason));
    }
    Ok(())
}

/// Whether the `Host` field `host` identifies the listener at `own`. Names other than `localhost` are refused, because
/// their owner could change their address to this one (DNS rebinding).
fn is_own(host: &str, own: SocketAddr) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') || authority.port_u16().unwrap_or(80) != own.port() {
        return false;
    }
    let is_local = own.ip().is_loopback() || own.ip().is_unspecified();
    match authority.host() {
        "localhost" => is_local,
        host => match host.trim_start_matches('[').trim_end_matches(']').parse::<core::net::IpAddr>() {
            Ok(ip) => ip == own.ip() || own.ip().is_unspecified(),
            Err(_) => false,
        },
    }
}

/// Whether the user or a page of this origin sent the request. Without `Sec-Fetch-Site`, as in old browsers, `Origin`
/// and `Referer` determine this.
fn is_same_origin(fields: &HeaderMap, origin: &str) -> bool {
    let is_absent_or = |name: HeaderName, condition: &dyn Fn(&str) -> bool| {
        fields.get(name).is_none_or(|value| value.to_str().is_ok_and(condition))
    };
    let has_origin = is_absent_or(header::ORIGIN, &|value| value == origin);
    let is_below = |referrer: &str| referrer.strip_prefix(origin).is_some_and(|path| path.starts_with('/'));
    match fields.get(SITE).map(HeaderValue::as_bytes) {
        Some(b"same-origin" | b"none") => has_origin,
        Some(_) => false,
        None => has_origin && is_absent_or(header::REFERER, &is_below),
    }
}

fn is_command_line(fields: &HeaderMap) -> bool {
    fields.contains_key(API_FIELD) && !fields.contains_key(header::ORIGIN) && !fields.contains_key(SITE)
}

fn text(fields: &HeaderMap, name: HeaderName) -> Option<&str> {
    fields.get(name)?.to_str().ok()
}
