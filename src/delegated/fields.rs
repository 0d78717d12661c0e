//! Which header fields of a delegated request and its response pass, and which are the same for everyone.
//!
//! Names only, in lower case: whoever holds the fields removes them, the client before a request leaves it, and the exit again.
//! Governed by `proto/09-delegated.md` §6.

/// What every delegated request says that it is.
pub const USER_AGENT: &str = "Mozilla/5.0 (compatible; Umbel)";
/// The field that carries an exit's refusal, and nothing else.
pub const PROXY_STATUS: &str = "proxy-status";

/// Fields that tell about who asks, from where, or through whom.
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

/// Fields by which some servers take a request for one of another method or address than it is: than the exit judged.
const OVERRIDING: &[&str] =
    &["x-host", "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"];

/// Fields that concern two neighbours only (RFC 9110 §7.6.1), with those of older drafts.
const HOP_BY_HOP: &[&str] =
    &["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Fields of a response that would have a client remember something, or do something by itself.
const REMEMBERED: &[&str] = &["alt-svc", "nel", "report-to", "reporting-endpoints", "set-cookie", "set-cookie2"];

/// Whether a field concerns two neighbours only. What a `Connection` field names does too.
#[must_use]
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Whether a request's field tells about the sender, or makes the request another than it is.
#[must_use]
pub fn is_identifying(name: &str) -> bool {
    IDENTIFYING.contains(&name)
        || OVERRIDING.contains(&name)
        || IDENTIFYING_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a response's field is there to be remembered, or speaks for the exit.
#[must_use]
pub fn is_remembered(name: &str) -> bool {
    REMEMBERED.contains(&name) || name == PROXY_STATUS
}
