//! Content codings of HTTP answers (RFC 9110 §12.5.3).

use reqwest::header::{ACCEPT_ENCODING, HeaderMap};

/// Whether the `request_headers` of a client accept `coding` by name; `*` is ignored.
pub(crate) fn is_accepted(request_headers: &HeaderMap, coding: &str) -> bool {
    let values = request_headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|offer| {
        let mut parts = offer.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(coding));
        // A weight of zero in any spelling: 0, 0.0, 0.000.
        let refused =
            parts.any(|part| part.strip_prefix("q=").is_some_and(|weight| weight.trim_matches(['0', '.']).is_empty()));
        named && !refused
    })
}
