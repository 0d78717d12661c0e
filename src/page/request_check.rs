//! Access control of the search page. Only the user's browser and command line may use the page; requests from pages of
//! other sites are refused.
//!
//! | refused request | reason |
//! |---|---|
//! | `Host` other than the listener's | DNS rebinding: a foreign name that resolves to this listener |
//! | absolute-form request target (RFC 9112 §3.2.2) | only proxies receive this form |
//! | `Sec-Fetch-Site` other than `same-origin` and `none`; a foreign `Origin` or `Referer` | request by another site |
//! | prefetching, prerendering | a speculative request must cause no query or visit |
//! | `/api` with a browser's header fields, or without `Umbel-Api` | the API is only for the command line |
//!
//! Every response forbids framing, referrers, content sniffing, caching, embedding by other sites, and (by default)
//! subresources.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

/// The header field that the command line sets.
pub(crate) const API_FIELD: &str = "umbel-api";

const FETCH_SITE: &str = "sec-fetch-site";
/// Header fields of speculative requests.
const SPECULATIVE_FIELDS: [&str; 3] = ["sec-purpose", "purpose", "x-moz"];

/// Header fields of every response, unless the handler sets them.
const RESPONSE_FIELDS: [(HeaderName, &str); 8] = [
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

/// Passes a permitted request to the handler, and refuses others with the reason. Adds the missing [`RESPONSE_FIELDS`]
/// to every response.
pub(super) async fn restrict_access(
    State(local_address): State<Arc<SocketAddr>>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match check(*local_address, &request) {
        Ok(()) => next.run(request).await,
        Err((status, reason)) => (status, reason).into_response(),
    };
    let fields = response.headers_mut();
    for (name, value) in RESPONSE_FIELDS {
        // Handlers of pages set `Content-Security-Policy` themselves.
        fields.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The status and text of a refusal, if the request is not permitted.
fn check(local_address: SocketAddr, request: &Request) -> Result<(), (StatusCode, String)> {
    let fields = request.headers();
    let Some(host) = text(fields, header::HOST)
        .filter(|host| names_local_address(host, local_address) && request.uri().authority().is_none())
    else {
        let reason = format!("Umbel's search page is available only at its own address: http://{local_address}/\n");
        return Err((StatusCode::MISDIRECTED_REQUEST, reason));
    };
    if SPECULATIVE_FIELDS.iter().any(|name| fields.contains_key(*name)) {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "This page can't be prefetched.\n".to_owned()));
    }
    let origin = format!("http://{host}");
    if !is_same_origin(fields, &origin) {
        let reason = format!(
            "The request was refused, because another site's page sent it. To open the search page, type its address: \
             {origin}/\n"
        );
        return Err((StatusCode::FORBIDDEN, reason));
    }
    if request.uri().path().starts_with("/api/") && !is_command_line(fields) {
        let reason = format!(
            "The request was refused, because the API is only for Umbel's command line. Use `umbel search`, or the search \
             page at {origin}/\n"
        );
        return Err((StatusCode::FORBIDDEN, reason));
    }
    Ok(())
}

/// Whether the `Host` field `host` names `local_address`.
///
/// Names other than `localhost` are refused: their owner can make them resolve to this listener (DNS rebinding).
/// A listener on the unspecified address accepts any IP address.
fn names_local_address(host: &str, local_address: SocketAddr) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') || authority.port_u16().unwrap_or(80) != local_address.port() {
        return false;
    }
    let is_local = local_address.ip().is_loopback() || local_address.ip().is_unspecified();
    match authority.host() {
        "localhost" => is_local,
        host => match host.trim_start_matches('[').trim_end_matches(']').parse::<core::net::IpAddr>() {
            Ok(ip) => ip == local_address.ip() || local_address.ip().is_unspecified(),
            Err(_) => false,
        },
    }
}

/// Whether the user or a page of `origin` sent the request.
///
/// `Origin`, if present, must be `origin`. `Sec-Fetch-Site` must be `same-origin` or `none`. Without
/// `Sec-Fetch-Site`, as from an old browser, a `Referer` must be a URL of `origin`.
fn is_same_origin(fields: &HeaderMap, origin: &str) -> bool {
    let is_absent_or = |name: HeaderName, condition: &dyn Fn(&str) -> bool| {
        fields.get(name).is_none_or(|value| value.to_str().is_ok_and(condition))
    };
    let origin_allowed = is_absent_or(header::ORIGIN, &|value| value == origin);
    let is_of_origin = |referrer: &str| referrer.strip_prefix(origin).is_some_and(|path| path.starts_with('/'));
    match fields.get(FETCH_SITE).map(HeaderValue::as_bytes) {
        Some(b"same-origin" | b"none") => origin_allowed,
        Some(_) => false,
        None => origin_allowed && is_absent_or(header::REFERER, &is_of_origin),
    }
}

fn is_command_line(fields: &HeaderMap) -> bool {
    fields.contains_key(API_FIELD) && !fields.contains_key(header::ORIGIN) && !fields.contains_key(FETCH_SITE)
}

fn text(fields: &HeaderMap, name: HeaderName) -> Option<&str> {
    fields.get(name)?.to_str().ok()
}
