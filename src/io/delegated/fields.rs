//! Which header fields of a delegated request and its response pass, and which are the same for everyone.
//!
//! The client applies this before a request leaves it, and the exit again: the one so that the exit learns nothing needless,
//! the other so that no client's carelessness goes further.

use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};

use crate::io::exchange::strip;

/// What every delegated request says that it is.
pub(crate) const USER_AGENT: HeaderValue = HeaderValue::from_static("Mozilla/5.0 (compatible; Umbel)");

/// Fields that tell about who asks, from where, or through whom.
const IDENTIFYING: [HeaderName; 49] = [
    header::COOKIE,
    header::REFERER,
    header::ORIGIN,
    header::FORWARDED,
    header::VIA,
    header::FROM,
    header::DNT,
    header::HOST,
    header::EXPECT,
    header::ALT_SVC,
    header::MAX_FORWARDS,
    header::UPGRADE_INSECURE_REQUESTS,
    HeaderName::from_static("alt-used"),
    HeaderName::from_static("b3"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("client-ip"),
    HeaderName::from_static("cookie2"),
    HeaderName::from_static("correlation-context"),
    HeaderName::from_static("device-memory"),
    HeaderName::from_static("downlink"),
    HeaderName::from_static("dpr"),
    HeaderName::from_static("early-data"),
    HeaderName::from_static("ect"),
    HeaderName::from_static("fastly-client-ip"),
    HeaderName::from_static("forwarded-for"),
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("priority"),
    HeaderName::from_static("purpose"),
    HeaderName::from_static("request-id"),
    HeaderName::from_static("rtt"),
    HeaderName::from_static("save-data"),
    HeaderName::from_static("service-worker"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("viewport-width"),
    HeaderName::from_static("wl-proxy-client-ip"),
    HeaderName::from_static("x-amzn-trace-id"),
    HeaderName::from_static("x-cloud-trace-context"),
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("x-correlation-id"),
    HeaderName::from_static("x-original-forwarded-for"),
    HeaderName::from_static("x-originating-ip"),
    HeaderName::from_static("x-remote-addr"),
    HeaderName::from_static("x-remote-ip"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-requested-with"),
    HeaderName::from_static("x-wap-profile"),
];
const IDENTIFYING_PREFIXES: [&str; 8] =
    ["sec-", "proxy-", "x-b3-", "x-forwarded", "x-real-", "x-client-", "x-device", "cf-"];

/// Fields by which some servers take a request for one of another method or address than it is: than the exit judged.
const OVERRIDING: [HeaderName; 6] = [
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

/// Fields of a response that would have a client remember something, or do something by itself.
const REMEMBERED: [HeaderName; 7] = [
    header::SET_COOKIE,
    header::ALT_SVC,
    HeaderName::from_static("set-cookie2"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
    HeaderName::from_static("reporting-endpoints"),
    super::refusal::PROXY_STATUS,
];

/// Makes a request's fields such as every client could have sent them: hop-by-hop and identifying ones are removed, the
/// others that most clients send are fixed.
pub(crate) fn fix_request(headers: &mut HeaderMap) {
    strip(headers);
    for name in IDENTIFYING.iter().chain(&OVERRIDING) {
        headers.remove(name);
    }
    let prefixed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| IDENTIFYING_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix)))
        .cloned()
        .collect();
    for name in prefixed {
        headers.remove(name);
    }
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers.entry(header::ACCEPT_LANGUAGE).or_insert(HeaderValue::from_static("en"));
}

/// Removes from a response what isn't for this one request.
pub(crate) fn fix_response(headers: &mut HeaderMap) {
    strip(headers);
    for name in &REMEMBERED {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn identifying_and_hop_by_hop_fields_are_removed_and_common_ones_are_the_same_for_all() {
        let mut headers = fields(&[
            ("cookie", "id=1"),
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-real-ip", "192.0.2.1"),
            ("sec-ch-ua", "this one"),
            ("user-agent", "this one"),
            ("referer", "http://a.example/"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic x"),
            ("x-request-id", "1"),
            ("x-b3-traceid", "1"),
            ("x-device-id", "1"),
            ("x-http-method-override", "DELETE"),
            ("x-original-url", "/admin"),
        ]);
        let mut nothing = HeaderMap::new();
        fix_request(&mut headers);
        fix_request(&mut nothing);
        assert_eq!(headers, nothing);
        assert_eq!(headers.len(), 4);
    }

    #[test]
    fn what_a_person_says_to_the_target_stays() {
        let mut headers = fields(&[("authorization", "Bearer x"), ("accept-language", "ja"), ("x-api-key", "1")]);
        fix_request(&mut headers);
        for (name, value) in [("authorization", "Bearer x"), ("accept-language", "ja"), ("x-api-key", "1")] {
            assert_eq!(headers.get(name).unwrap(), value);
        }
    }

    #[test]
    fn a_response_leaves_nothing_to_remember_and_can_not_speak_for_the_exit() {
        let mut headers = fields(&[("set-cookie", "id=1"), ("proxy-status", "umbel; error=x"), ("etag", "1")]);
        fix_response(&mut headers);
        assert_eq!(headers, fields(&[("etag", "1")]));
    }
}
