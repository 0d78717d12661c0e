//! Reasons why an exit refuses a request, for the exit's statistics and for the answer to the client.
//!
//! The exit answers a refused HTTP request itself, with the field `Proxy-Status` (RFC 9209). Targets can't forge this
//! field, because the exit removes it from their responses.

/// The start of the `Proxy-Status` value: the name of the intermediary, and the parameter's name.
const PREFIX: &str = "umbel; error=";

/// Why an exit did not perform or did not complete a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The request is malformed or truncated.
    #[error("the exit received a malformed request")]
    Malformed,
    /// The request exceeds the exit's cap.
    #[error("the request exceeds the exit's maximum size")]
    RequestTooLarge,
    /// The exit doesn't offer the host, the method or the engine.
    #[error("the exit does not offer this host or method")]
    NotOffered,
    /// The circuit, its owner or the exit has reached its rate of requests, or the circuit or its owner its maximum
    /// number of concurrent requests.
    #[error("the exit has reached its rate limit; try again later")]
    RateLimited,
    /// The exit has the maximum number of concurrent requests in total, or lacks a parser or a file descriptor. At that
    /// maximum, another request may also have displaced this one.
    #[error("the exit has no capacity for a further request; try again later")]
    Busy,
    /// The exit's policy forbids the target's address.
    #[error("the exit's policy forbids the target's address")]
    Prohibited,
    /// The host has no address.
    #[error("the host has no address")]
    NoName,
    /// The target refused the connection.
    #[error("the target refused the connection")]
    ConnectionRefused,
    /// The target can't be reached.
    #[error("the exit can't reach the target")]
    Unreachable,
    /// The target did not accept a connection within the time limit.
    #[error("the target did not answer the exit in time")]
    ConnectionTimedOut,
    /// The certificate doesn't authenticate the target.
    #[error("the target's certificate is not valid for its name")]
    Certificate,
    /// TLS with the target failed.
    #[error("the exit's TLS handshake with the target failed")]
    Tls,
    /// The target did not answer within the time limit.
    #[error("the target accepted the request but did not answer in time")]
    ResponseTimedOut,
    /// The answer isn't HTTP.
    #[error("the target's answer is not HTTP")]
    NotHttp,
    /// The head of the answer exceeds the exit's cap.
    #[error("the head of the target's answer exceeds the exit's maximum size")]
    HeadTooLarge,
    /// The body of the answer exceeds the exit's cap.
    #[error("the target's answer exceeds the exit's maximum size")]
    AnswerTooLarge,
    /// The target closed the connection before the end of its answer.
    #[error("the target closed the connection before the end of its answer")]
    Broken,
    /// The client closed the stream or stopped reading.
    #[error("the client closed the stream")]
    ClientGone,
    /// The engine blocked the exit, failed, or sent an unreadable answer. The client receives the exact reason as a
    /// `SearchRefusal`.
    #[error("the engine returned no results")]
    NoResults,
    /// The exit's configuration is incomplete. Also the substitute for an unknown reason of a newer exit.
    #[error("the exit's configuration is incomplete, or the reason is unknown to this version")]
    Misconfigured,
}

/// Status code and error type (RFC 9209 §2.3) of each refusal. Each pair occurs once.
const ANSWERS: [(Refusal, u16, &str); 20] = [
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
    (Refusal::ResponseTimedOut, 504, "http_response_timeout"),
    (Refusal::NotHttp, 502, "http_protocol_error"),
    (Refusal::HeadTooLarge, 502, "http_response_header_section_size"),
    (Refusal::AnswerTooLarge, 502, "http_response_body_size"),
    (Refusal::Broken, 502, "http_response_incomplete"),
    (Refusal::ClientGone, 400, "connection_terminated"),
    (Refusal::NoResults, 502, "proxy_internal_response"),
    (Refusal::Misconfigured, 500, "proxy_configuration_error"),
];

impl Refusal {
    /// All refusals.
    pub fn all() -> impl Iterator<Item = Self> {
        ANSWERS.into_iter().map(|(refusal, ..)| refusal)
    }

    /// The name in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
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
            Self::ResponseTimedOut => "response-timed-out",
            Self::NotHttp => "not-http",
            Self::HeadTooLarge => "head-too-large",
            Self::AnswerTooLarge => "answer-too-large",
            Self::Broken => "broken",
            Self::ClientGone => "client-gone",
            Self::NoResults => "no-results",
            Self::Misconfigured => "misconfigured",
        }
    }

    /// Status code and `Proxy-Status` value of a response with this refusal.
    #[must_use]
    pub fn to_answer(self) -> (u16, String) {
        let answer = ANSWERS.into_iter().find(|(refusal, ..)| *refusal == self);
        answer.map_or((502, String::new()), |(_, status, error)| (status, format!("{PREFIX}{error}")))
    }

    /// The refusal in a response with this status code and `Proxy-Status` value; `None` if the value has another form
    /// than an exit's. An unknown error type becomes [`Self::Misconfigured`].
    #[must_use]
    pub fn of_answer(status: u16, proxy_status: &str) -> Option<Self> {
        let error = proxy_status.strip_prefix(PREFIX)?;
        let known = ANSWERS.into_iter().find(|(_, code, text)| *code == status && *text == error);
        // A newer exit may have other reasons.
        Some(known.map_or(Self::Misconfigured, |(refusal, ..)| refusal))
    }
}
