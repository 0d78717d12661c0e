//! Encodes refusals as HTTP responses, and finds them in responses.

use hyper::{
    HeaderMap, Response, StatusCode,
    header::{HeaderName, HeaderValue},
};

pub use crate::delegated::Refusal;
use crate::delegated::fields;

/// The header field of a refusal.
pub(crate) const PROXY_STATUS: HeaderName = HeaderName::from_static(fields::PROXY_STATUS);

impl Refusal {
    /// The response for the client.
    pub(crate) fn response(self) -> Response<()> {
        let mut response = Response::new(());
        let (status, told) = self.to_answer();
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        if let Ok(value) = HeaderValue::try_from(told) {
            response.headers_mut().insert(PROXY_STATUS, value);
        }
        response
    }

    /// The refusal in a response, if it contains one.
    pub(crate) fn told(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        Self::of_answer(status.as_u16(), headers.get(PROXY_STATUS)?.to_str().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_told_so_that_the_client_knows_it_again() {
        for refusal in Refusal::all() {
            let response = refusal.response();
            assert_eq!(Refusal::told(response.status(), response.headers()), Some(refusal));
        }
        assert_eq!(Refusal::told(StatusCode::OK, &HeaderMap::new()), None);
    }
}
