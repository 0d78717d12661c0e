//! The header fields of delegated requests and responses: removal of identifying ones, by the rules of
//! `delegated::fields`.
//!
//! The client removes identifying fields before it sends a request, so that the exit gets none. The exit removes them
//! again, so that the target gets none from a faulty client.

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use crate::{
    delegated::fields::{self, is_removed_from_requests, is_removed_from_responses},
    http_exchange::http1::remove_hop_by_hop,
};

/// The `User-Agent` of every delegated request.
pub(crate) const USER_AGENT: HeaderValue = HeaderValue::from_static(fields::USER_AGENT);

/// Makes the fields of a request uniform: removes hop-by-hop and identifying fields, and sets common fields to fixed or
/// default values.
pub(crate) fn fix_request(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove(headers, is_removed_from_requests);
    for (name, value) in fields::FIXED {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in fields::DEFAULTS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// Removes hop-by-hop fields from a response, and fields with an effect beyond its request.
pub(crate) fn fix_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove(headers, is_removed_from_responses);
}

fn remove(headers: &mut HeaderMap, is_removed: impl Fn(&str) -> bool) {
    let removed: Vec<HeaderName> = headers.keys().filter(|name| is_removed(name.as_str())).cloned().collect();
    for name in removed {
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
    fn identifying_and_hop_by_hop_fields_are_removed_and_common_ones_are_uniform() {
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
        let mut empty = HeaderMap::new();
        fix_request(&mut headers);
        fix_request(&mut empty);
        assert_eq!(headers, empty);
        assert_eq!(headers.len(), 4);
    }

    #[test]
    fn fields_for_the_target_are_kept() {
        let mut headers = fields(&[("authorization", "Bearer x"), ("accept-language", "ja"), ("x-api-key", "1")]);
        fix_request(&mut headers);
        for (name, value) in [("authorization", "Bearer x"), ("accept-language", "ja"), ("x-api-key", "1")] {
            assert_eq!(headers.get(name).unwrap(), value);
        }
    }

    #[test]
    fn fields_that_set_state_and_proxy_status_are_removed_from_a_response() {
        let mut headers = fields(&[("set-cookie", "id=1"), ("proxy-status", "umbel; error=x"), ("etag", "1")]);
        fix_response(&mut headers);
        assert_eq!(headers, fields(&[("etag", "1")]));
    }
}
