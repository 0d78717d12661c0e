//! Header fields of delegated requests and responses: which pass, and which are the same for all clients.
//!
//! Field names only, in lower case. The owner of the fields removes those that must not pass: the client before
//! sending a request, and the exit again. Governed by `proto/09-delegated.md` §6.

/// The `User-Agent` of every delegated request.
pub const USER_AGENT: &str = "Mozilla/5.0 (compatible; Umbel)";
/// Fields with the same value in every delegated request.
pub const FIXED: [(&str, &str); 2] = [("user-agent", USER_AGENT), ("accept-encoding", "identity")];
/// Fields of a delegated request, with the value where the client sends none.
pub const DEFAULTS: [(&str, &str); 2] = [("accept", "*/*"), ("accept-language", "en")];
/// The field that carries only an exit's refusal.
pub const PROXY_STATUS: &str = "proxy-status";

/// Fields that reveal the client, its location or its intermediaries.
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
    "expect",
    "fastly-client-ip",
    "forwarded",
    "forwarded-for",
    "from",
    "host",
    "http2-settings",
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
const IDENTIFYING_PREFIXES: &[&str] =
    &["sec-", "proxy-", "x-b3-", "x-forwarded", "x-real-", "x-client-", "x-device", "cf-"];

/// Fields that make some servers treat a request as one of another method or address than the exit checked.
const OVERRIDING: &[&str] =
    &["x-host", "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"];

/// Hop-by-hop fields (RFC 9110 §7.6.1), with those of older drafts.
const HOP_BY_HOP: &[&str] =
    &["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Response fields that make a client store state or send requests by itself.
const REMEMBERED: &[&str] = &["alt-svc", "nel", "report-to", "reporting-endpoints", "set-cookie", "set-cookie2"];

/// Whether a field is hop-by-hop. Fields named in `Connection` are too, but aren't checked here.
#[must_use]
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Whether a request's field reveals the sender, or changes the method or address of the request.
#[must_use]
pub fn is_identifying(name: &str) -> bool {
    IDENTIFYING.contains(&name)
        || OVERRIDING.contains(&name)
        || IDENTIFYING_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a response's field makes a client store state, or is reserved for the exit.
#[must_use]
pub fn is_remembered(name: &str) -> bool {
    REMEMBERED.contains(&name) || name == PROXY_STATUS
}
