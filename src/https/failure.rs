//! Errors of an HTTPS exchange.

use rustls::{CertificateError, Error};

/// The reason why a response failed or is truncated. The text is for the user and contains no part of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpsError {
    /// A trust anchor is not a valid certificate.
    #[error("The trust anchor is not a certificate in PEM or DER.")]
    Anchor,
    /// The URL is not a valid `https` URL.
    #[error("The URL is not an https URL of a host.")]
    Address,
    /// The method or a header field is not allowed, or the URL is too long.
    #[error("The method or a header field is not allowed, or the URL is too long.")]
    Request,
    /// The certificate has expired.
    #[error("The site’s certificate has expired, or this computer’s clock is wrong. No part of the request was sent.")]
    Expired,
    /// The certificate is not valid yet.
    #[error(
        "The site’s certificate is not valid yet, or this computer’s clock is wrong. No part of the request was sent."
    )]
    NotYetValid,
    /// The certificate is for another host.
    #[error("The certificate is for another site. No part of the request was sent.")]
    OtherName,
    /// No trusted authority has issued the certificate.
    #[error("No authority that browsers trust has issued the site’s certificate. No part of the request was sent.")]
    UnknownIssuer,
    /// The certificate, or the proof of its key, is invalid in another way.
    #[error("The site’s certificate is invalid. No part of the request was sent.")]
    Certificate,
    /// The site ended TLS with an alert.
    #[error("The site refused or aborted TLS.")]
    Alert,
    /// The site supports no accepted version or cipher suite of TLS.
    #[error("The site supports neither TLS 1.2 nor TLS 1.3 with a secure cipher suite.")]
    Incompatible,
    /// The received bytes are not TLS, or were modified.
    #[error("The received data is not TLS, or was modified in transit.")]
    NotTls,
    /// The received bytes are not HTTP, or a cap on the bytes of a head or of a response is exceeded.
    #[error("The answer is not HTTP, or its head is too large.")]
    NotHttp,
    /// The stream ended before the response did.
    #[error("The answer is truncated.")]
    Broken,
}

impl HttpsError {
    /// The kind of the failure, as in `UmbelError.kind` of `web/src/umbel/failure.ts`.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Anchor | Self::Address | Self::Request => "bad-input",
            Self::Expired | Self::NotYetValid | Self::OtherName | Self::UnknownIssuer | Self::Certificate => {
                "certificate"
            }
            Self::Alert | Self::Incompatible | Self::NotTls | Self::NotHttp | Self::Broken => "target",
        }
    }
}

impl From<&Error> for HttpsError {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::OtherName,
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                _ => Self::Certificate,
            },
            Error::NoCertificatesPresented | Error::UnsupportedNameType => Self::Certificate,
            Error::AlertReceived(_) => Self::Alert,
            Error::PeerIncompatible(_) => Self::Incompatible,
            _ => Self::NotTls,
        }
    }
}

impl From<hyper::Error> for HttpsError {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() { Self::NotHttp } else { Self::Broken }
    }
}
