//! Errors of an HTTPS exchange.

use rustls::{CertificateError, Error};

/// Why a response failed or broke off, as a sentence for the user. It contains nothing of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpsError {
    /// A certificate given as an anchor is invalid.
    #[error("What should be trusted is no certificate, neither in PEM nor in DER.")]
    Anchor,
    /// The URL is no valid `https` URL.
    #[error("The address is not one of a web server that is reached by https.")]
    Address,
    /// The method or a header field is not allowed.
    #[error("A request can’t have this method, or one of these header fields.")]
    Request,
    /// The certificate has expired.
    #[error("The site’s certificate has expired, or this computer’s clock is wrong. Nothing of the request was sent.")]
    Expired,
    /// The certificate is not valid yet.
    #[error(
        "The site’s certificate isn’t valid yet, or this computer’s clock is wrong. Nothing of the request was sent."
    )]
    NotYetValid,
    /// The certificate names another host.
    #[error("The certificate that came is for another site. Nothing of the request was sent.")]
    OtherName,
    /// No trusted authority has issued the certificate.
    #[error("The site’s certificate is vouched for by nobody whom browsers trust. Nothing of the request was sent.")]
    UnknownIssuer,
    /// The certificate, or the proof of its key, is invalid in another way.
    #[error("The site’s certificate doesn’t prove who it is. Nothing of the request was sent.")]
    Certificate,
    /// The site ended TLS with an alert.
    #[error("The site refused or broke off TLS.")]
    Alert,
    /// The site supports no accepted version or cipher suite of TLS.
    #[error("The site speaks no TLS that is good enough: 1.2 or 1.3.")]
    Incompatible,
    /// The received bytes are no TLS, or were modified.
    #[error("What came is not TLS, or was changed on the way.")]
    NotTls,
    /// The received bytes are no HTTP, or the head is too large.
    #[error("What came is not an answer in HTTP, or its head is too large.")]
    NotHttp,
    /// The stream ended before the response did.
    #[error("The answer broke off before it was whole.")]
    Broken,
}

impl HttpsError {
    /// The kind of the failure; the names are `UmbelError.kind` of `web/src/umbel/failure.ts`.
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
