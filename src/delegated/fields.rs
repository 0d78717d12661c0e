//! Lists of header fields of delegated requests and responses: fields to remove, and fields with fixed values.
//!
//! All names are in lower case. Client and exit both remove the fields of [`is_removed_from_requests`],
//! [`is_removed_from_responses`] and [`is_hop_by_hop`]. Governed by `proto/09-delegated.md` §6.

/// The `User-Agent` of every delegated request.
pub const USER_AGENT: &str = "Mozilla/5.0 (compatible; Umbel)";
/// Fields with the same value in every delegated request.
pub const FIXED: [(&str, &str); 2] = [("user-agent", USER_AGENT), ("accept-encoding", "identity")];
/// Fields of every delegated request, with their values for a client that sends none.
pub const DEFAULTS: [(&str, &str); 2] = [("accept", "*/*"), ("accept-language", "en")];
/// The field in which an exit sends its refusal (RFC 9209). Exits remove it from answers of targets.
pub const PROXY_STATUS: &str = "proxy-status";

/// Request fields that may identify the client, its network or its intermediaries.
const IDENTIFYING: &[&str] = &[
    "alt-svc",
    "alt-used",
    "b3",
    "baggage",
    "client-ip",
    "cookie",
    "cookie2",
    "correlation-context",
    "device-memory",
    "dnt",
    "downlink",
    "dpr",
    "early-data",
    "ect",
    "fastly-client-ip",
    "forwarded",
    "forwarded-for",
    "from",
    "last-event-id",
    "max-forwards",
    "origin",
    "priority",
    "purpose",
    "referer",
    "request-id",
    "rtt",
    "save-data",
    "service-worker",
    "traceparent",
    "tracestate",
    "true-client-ip",
    "upgrade-insecure-requests",
    "via",
    "viewport-width",
    "wl-proxy-client-ip",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "x-cluster-client-ip",
    "x-correlation-id",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-request-id",
    "x-requested-with",
    "x-wap-profile",
];
/// Prefixes of the names of further identifying request fields.
const IDENTIFYING_PREFIXES: &[&str] =
    &["sec-", "proxy-", "x-b3-", "x-forwarded", "x-real-", "x-client-", "x-device", "cf-"];

/// Request fields that belong to the connection between exit and target. The exit sets those that it needs.
const TARGET_CONNECTION: &[&str] = &["expect", "host", "http2-settings"];

/// Request fields by which some servers replace the method or the address that the exit checked.
const OVERRIDING: &[&str] =
    &["x-host", "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"];

/// Hop-by-hop fields (RFC 9110 §7.6.1), and `Trailer` (RFC 2616 §13.5.1).
const HOP_BY_HOP: &[&str] =
    &["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Response fields that make a client store state or send reports.
const STATEFUL: &[&str] = &["alt-svc", "nel", "report-to", "reporting-endpoints", "set-cookie", "set-cookie2"];

/// Whether a field is hop-by-hop. Fields named in `Connection` are hop-by-hop too; the caller checks those.
#[must_use]
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Whether a request field is removed: it may identify the client, it may override the request's method or address, or
/// it belongs to the connection between exit and target.
#[must_use]
pub fn is_removed_from_requests(name: &str) -> bool {
    IDENTIFYING.contains(&name)
        || OVERRIDING.contains(&name)
        || TARGET_CONNECTION.contains(&name)
        || IDENTIFYING_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a response field is removed: it makes a client store state or send reports, or is reserved for the exit.
#[must_use]
pub fn is_removed_from_responses(name: &str) -> bool {
    STATEFUL.contains(&name) || name == PROXY_STATUS
}
