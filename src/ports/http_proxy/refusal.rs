//! Refusals of the HTTP proxy port: a status and a text that says what was wrong.

use std::borrow::Cow;

use hyper::StatusCode;

use crate::{
    base::ErrorClass, client::StreamFailure, connector::ConnectError, http_exchange::http1::ExchangeError,
    wire::EndReason,
};

/// An answer of this port instead of the target's. The text never contains the host.
#[derive(Debug)]
pub(super) struct PortRefusal {
    pub(super) status: StatusCode,
    text: Cow<'static, str>,
}

impl PortRefusal {
    pub(super) const fn new(status: StatusCode, text: &'static str) -> Self {
        Self { status, text: Cow::Borrowed(text) }
    }

    pub(super) const fn bad_request(text: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// The refusal of a connection whose first byte belongs to another protocol than HTTP/1.1.
    pub(super) fn of_first_byte(byte: u8) -> Option<Self> {
        match byte {
            4 | 5 => Some(Self::bad_request(
                "these bytes are SOCKS, and this is Umbel's HTTP proxy port; use Umbel's SOCKS port, or set this port as \
                 an HTTP proxy",
            )),
            // The type of a TLS handshake record.
            0x16 => Some(Self::bad_request(
                "these bytes are TLS, and this port speaks plain HTTP; set it as a proxy with http://, not https://",
            )),
            _ => None,
        }
    }

    /// The answer to a request whose isolation already holds its share of the connections.
    pub(super) const fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the applications with these proxy credentials, or with none, use their share of this port's connections; \
             close some, or try again later",
        )
    }

    /// The message. Without the text in answer to HEAD.
    pub(super) fn to_bytes(&self, is_head: bool) -> Vec<u8> {
        let text = format!("Umbel: {}\n", self.text);
        let retry = if self.status == StatusCode::SERVICE_UNAVAILABLE { "Retry-After: 1\r\n" } else { "" };
        // Cross-Origin-Resource-Policy and X-Frame-Options hide from a probing web page whether this port answers.
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{retry}Connection: close\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\nX-Frame-Options: DENY\r\n\r\n",
            self.status,
            text.len()
        );
        let text = if is_head { "" } else { &text };
        [head.as_bytes(), text.as_bytes()].concat()
    }
}

impl From<ConnectError> for PortRefusal {
    fn from(error: ConnectError) -> Self {
        let status = match error {
            ConnectError::Stream(StreamFailure::Ended(EndReason::Policy)) => StatusCode::FORBIDDEN,
            ConnectError::Stream(StreamFailure::Ended(EndReason::TimedOut)) => StatusCode::GATEWAY_TIMEOUT,
            ConnectError::Stream(failure) => match failure.class() {
                ErrorClass::Network | ErrorClass::Limit => StatusCode::SERVICE_UNAVAILABLE,
                ErrorClass::Local => StatusCode::FORBIDDEN,
                ErrorClass::Peer | ErrorClass::Bug => StatusCode::BAD_GATEWAY,
            },
            ConnectError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { status, text: error.to_string().into() }
    }
}

impl From<ExchangeError> for PortRefusal {
    fn from(error: ExchangeError) -> Self {
        let status = match error {
            ExchangeError::RequestBody => StatusCode::BAD_REQUEST,
            ExchangeError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            ExchangeError::NotHttp | ExchangeError::TooLarge | ExchangeError::Broken => StatusCode::BAD_GATEWAY,
        };
        Self { status, text: error.to_string().into() }
    }
}
