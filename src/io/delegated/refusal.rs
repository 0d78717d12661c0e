//! Why an exit did not do what a client asked: what it counts, and what it tells.
//!
//! A client is told by an answer of the exit's own with the field `Proxy-Status` (RFC 9209), which no target can forge: the
//! exit removes it from targets' answers.

use hyper::{
    HeaderMap, Response, StatusCode,
    header::{HeaderName, HeaderValue},
};

use crate::{
    io::{exchange::ExchangeError, outbound::OutboundError, tls::TlsError},
    wire::EndReason,
};

/// The field that carries a refusal.
pub(crate) const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// How the exit calls itself in it.
const SELF: &str = "umbel; error=";

/// Why an exit did not perform a request, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// What came is no request, or it broke off.
    #[error("the exit could not read the request")]
    Malformed,
    /// The request is larger than the exit takes.
    #[error("the request is larger than the exit takes")]
    RequestTooLarge,
    /// The exit doesn't offer this: the host, the method, the engine.
    #[error("the exit does not offer this host or method")]
    NotOffered,
    /// Too many requests of late.
    #[error("the exit takes no more requests at this rate; try again in a while")]
    RateLimited,
    /// Too many requests at a time.
    #[error("the exit is busy")]
    Busy,
    /// The target's address is one that the exit doesn't connect to.
    #[error("the exit's policy forbids the target's address")]
    Prohibited,
    /// The host has no address.
    #[error("the host has no address")]
    NoName,
    /// The target refused the connection.
    #[error("the target refused the connection")]
    ConnectionRefused,
    /// The target can't be reached.
    #[error("the target can't be reached from the exit")]
    Unreachable,
    /// No connection within the time.
    #[error("the target did not answer the exit in time")]
    ConnectionTimedOut,
    /// The certificate doesn't prove the target.
    #[error("the target's certificate does not prove who it is")]
    Certificate,
    /// No TLS.
    #[error("the exit found no common TLS with the target")]
    Tls,
    /// No answer within the time.
    #[error("the target took the request but did not answer in time")]
    Silent,
    /// No HTTP.
    #[error("the target did not answer in HTTP")]
    NotHttp,
    /// A head larger than the exit takes.
    #[error("the head of the target's answer is larger than the exit takes")]
    HeadTooLarge,
    /// A body larger than the exit takes.
    #[error("the target's answer is larger than the exit takes")]
    AnswerTooLarge,
    /// The target broke off.
    #[error("the target closed the connection before its answer was whole")]
    Broken,
    /// The client went away or stopped reading.
    #[error("the client is gone")]
    ClientGone,
    /// The engine kept the exit out, failed, or answered what can't be read; the client is told which.
    #[error("the engine gave no results")]
    NoResults,
    /// The exit itself lacks something.
    #[error("the exit is not set up for this")]
    Misconfigured,
}

/// Each with its status and its error type (RFC 9209 §2.3); a pair stands once.
const TOLD: [(Refusal, u16, &str); 20] = [
    (Refusal::Malformed, 400, "http_request_error"),
    (Refusal::RequestTooLarge, 413, "http_request_error"),
    (Refusal::NotOffered, 403, "http_request_denied"),
    (Refusal::RateLimited, 429, "http_request_denied"),
    (Refusal::Busy, 503, "connection_limit_reached"),
    (Refusal::Prohibited, 403, "destination_ip_prohibited"),
    (Refusal::NoName, 502, "dns_error"),
    (Refusal::ConnectionRefused, 502, "connection_refused"),
    (Refusal::Unreachable, 502, "destination_unavailable"),
    (Refusal::ConnectionTimedOut, 504, "connection_timeout"),
    (Refusal::Certificate, 502, "tls_certificate_error"),
    (Refusal::Tls, 502, "tls_protocol_error"),
    (Refusal::Silent, 504, "http_response_timeout"),
    (Refusal::NotHttp, 502, "http_protocol_error"),
    (Refusal::HeadTooLarge, 502, "http_response_header_section_size"),
    (Refusal::AnswerTooLarge, 502, "http_response_body_size"),
    (Refusal::Broken, 502, "http_response_incomplete"),
    (Refusal::ClientGone, 400, "connection_terminated"),
    (Refusal::NoResults, 502, "proxy_internal_response"),
    (Refusal::Misconfigured, 500, "proxy_configuration_error"),
];

impl Refusal {
    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        TOLD.into_iter().map(|(refusal, ..)| refusal)
    }

    /// A word for the log.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::RequestTooLarge => "request-too-large",
            Self::NotOffered => "not-offered",
            Self::RateLimited => "rate-limited",
            Self::Busy => "busy",
            Self::Prohibited => "prohibited-address",
            Self::NoName => "no-name",
            Self::ConnectionRefused => "connection-refused",
            Self::Unreachable => "unreachable",
            Self::ConnectionTimedOut => "connection-timed-out",
            Self::Certificate => "certificate",
            Self::Tls => "tls",
            Self::Silent => "silent",
            Self::NotHttp => "not-http",
            Self::HeadTooLarge => "head-too-large",
            Self::AnswerTooLarge => "answer-too-large",
            Self::Broken => "broken",
            Self::ClientGone => "client-gone",
            Self::NoResults => "no-results",
            Self::Misconfigured => "misconfigured",
        }
    }

    /// The answer that tells a client.
    pub(crate) fn response(self) -> Response<()> {
        let mut response = Response::new(());
        if let Some((_, status, error)) = TOLD.into_iter().find(|(refusal, ..)| *refusal == self) {
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            if let Ok(value) = HeaderValue::try_from(format!("{SELF}{error}")) {
                response.headers_mut().insert(PROXY_STATUS, value);
            }
        }
        response
    }

    /// The refusal that an answer tells, if it does.
    pub(crate) fn told(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let error = headers.get(PROXY_STATUS)?.to_str().ok()?.strip_prefix(SELF)?;
        let told = TOLD.into_iter().find(|(_, code, text)| *code == status.as_u16() && *text == error);
        // An exit may know reasons that we don't.
        Some(told.map_or(Self::Misconfigured, |(refusal, ..)| refusal))
    }
}

impl From<OutboundError> for Refusal {
    fn from(error: OutboundError) -> Self {
        match error {
            OutboundError::Address => Self::Malformed,
            OutboundError::Connect(reason) => match reason {
                EndReason::Policy => Self::Prohibited,
                EndReason::NotFound => Self::NoName,
                EndReason::Refused => Self::ConnectionRefused,
                EndReason::TimedOut => Self::ConnectionTimedOut,
                EndReason::ResourceLimit => Self::Busy,
                EndReason::Unreachable | EndReason::Done | EndReason::Reset | EndReason::Failed => Self::Unreachable,
            },
            OutboundError::Tls(TlsError::Certificate) => Self::Certificate,
            OutboundError::Tls(TlsError::NoRoots) => Self::Misconfigured,
            OutboundError::Tls(TlsError::Handshake | TlsError::Broken) => Self::Tls,
            OutboundError::Exchange(error) => match error {
                ExchangeError::Silent => Self::Silent,
                ExchangeError::NotHttp => Self::NotHttp,
                ExchangeError::TooLarge => Self::HeadTooLarge,
                ExchangeError::Broken => Self::Broken,
                ExchangeError::Cancelled => Self::Malformed,
            },
        }
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
