//! The TLS client for targets (`rustls`): root certificates and handshake.
//!
//! Used by an exit for delegated requests, and by a client for TLS over a stream through the overlay. Certificates
//! are verified against the system's roots and further ones that the operator of a private network configures.
//! Session resumption is disabled, because a resumed session would link two requests.

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

/// The reason why a file of root certificates can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: not a PEM file of certificates: {reason}", path.display())]
pub(crate) struct RootsError {
    path: PathBuf,
    reason: String,
}

/// The reason why a TLS handshake failed. The text names no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// There are no root certificates.
    #[error("this machine has no root certificates; install them (on Debian: ca-certificates)")]
    NoRoots,
    /// The certificate is not valid for the target.
    #[error("the target's certificate is not valid for its name")]
    Certificate,
    /// The target doesn't use TLS, or only unsupported versions or ciphers.
    #[error("the TLS handshake with the target failed")]
    Handshake,
    /// The stream ended during the handshake.
    #[error("the target closed the stream during the TLS handshake")]
    Broken,
}

/// Makes TLS streams. Cheap to clone; the system's roots are read at first use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    roots: Arc<[CertificateDer<'static>]>,
    config: Arc<OnceCell<Arc<ClientConfig>>>,
}

impl Tls {
    /// A client that trusts the system's roots and those in the PEM files `more`.
    ///
    /// # Errors
    /// When a file can't be read or contains no certificate.
    pub(crate) fn new<P: AsRef<Path>>(more: impl IntoIterator<Item = P>) -> Result<Self, RootsError> {
        let mut roots = Vec::new();
        for path in more {
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

    /// Opens a TLS stream over `stream` to `host`, a name or an address, for which the certificate must be valid.
    ///
    /// # Errors
    /// When the handshake fails. The caller sets its time limit.
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
        // Blocking, because it reads files.
        let made = tokio::task::spawn_blocking(move || client_config(roots.iter().cloned()));
        made.await.ok().and_then(Result::ok).map(Arc::new).ok_or(TlsError::NoRoots)
    }
}

fn client_config(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        // "Dangerous" only in name: the verifier checks against the system's roots, which the platform library finds.
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
