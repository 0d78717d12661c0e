//! Refusals of delegated requests as HTTP responses: encoding and decoding.

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
        let (status, proxy_status) = self.to_answer();
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        if let Ok(value) = HeaderValue::try_from(proxy_status) {
            response.headers_mut().insert(PROXY_STATUS, value);
        }
        response
    }

    /// The refusal in a response, if the response contains one.
    pub(crate) fn from_response(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        Self::of_answer(status.as_u16(), headers.get(PROXY_STATUS)?.to_str().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_decodes_as_encoded() {
        for refusal in Refusal::all() {
            let response = refusal.response();
            assert_eq!(Refusal::from_response(response.status(), response.headers()), Some(refusal));
        }
        assert_eq!(Refusal::from_response(StatusCode::OK, &HeaderMap::new()), None);
    }
}
