//! The TLS client for targets (`rustls`): root certificates and handshake.
//!
//! An exit uses this TLS for delegated requests, and a client uses it over a stream through the overlay. Certificates
//! are verified against the system's roots, and further roots that the operator of a private network configures.
//! Session resumption is disabled, since a resumed session would link two requests.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls_platform_verifier::Verifier;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OnceCell,
};
pub(crate) use tokio_rustls::client::TlsStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig,
        client::Resumption,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

/// Reason for which a file of root certificates can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: not a PEM file of certificates: {reason}", path.display())]
pub(crate) struct RootsError {
    path: PathBuf,
    reason: String,
}

/// Reason for the failure of a TLS handshake. The text names no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// There are no root certificates.
    #[error("this machine has no root certificates; install them (on Debian: ca-certificates)")]
    NoRoots,
    /// The certificate is not valid for the target.
    #[error("the target's certificate is not valid for its name")]
    Certificate,
    /// The target does not use TLS, or supports only other versions or cipher suites.
    #[error("the TLS handshake with the target failed")]
    Handshake,
    /// The stream ended during the handshake.
    #[error("the target closed the stream during the TLS handshake")]
    Broken,
}

/// A factory of TLS streams. Clones are cheap. The system's roots are read at first use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    roots: Arc<[CertificateDer<'static>]>,
    config: Arc<OnceCell<Arc<ClientConfig>>>,
}

impl Tls {
    /// A client with the system's roots and those in the PEM files `extra`.
    ///
    /// # Errors
    /// When a file can't be read or contains no certificate.
    pub(crate) fn new<P: AsRef<Path>>(extra: impl IntoIterator<Item = P>) -> Result<Self, RootsError> {
        let mut roots = Vec::new();
        for path in extra {
            let path = path.as_ref();
            let failed = |reason: String| RootsError { path: path.to_owned(), reason };
            let before = roots.len();
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))? {
                roots.push(certificate.map_err(|error| failed(error.to_string()))?);
            }
            if roots.len() == before {
                return Err(failed("the file has no certificate".to_owned()));
            }
        }
        Ok(Self { roots: roots.into(), config: Arc::default() })
    }

    /// Opens a TLS stream over `stream`. The certificate must be valid for `host`, a name or an address.
    ///
    /// # Errors
    /// When the handshake fails. The caller sets a timeout.
    pub(crate) async fn connect<S>(&self, host: &str, stream: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Certificate)?;
        let config = Arc::clone(self.config.get_or_try_init(|| self.configure()).await?);
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| failure(&error))
    }

    async fn configure(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let roots = Arc::clone(&self.roots);
        // `client_config` reads the system's files.
        let config = tokio::task::spawn_blocking(move || client_config(roots.iter().cloned()));
        config.await.ok().and_then(Result::ok).map(Arc::new).ok_or(TlsError::NoRoots)
    }
}

fn client_config(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        // rustls requires this call for every custom verifier. This verifier checks against the system's roots.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn failure(error: &io::Error) -> TlsError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => TlsError::Certificate,
        Some(_) => TlsError::Handshake,
        None => TlsError::Broken,
    }
}
