//! The trust anchors by which an exchange verifies TLS certificates.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::HttpsError;

/// The start of a PEM block. A comment may precede the block.
const PEM_START: &[u8] = b"-----BEGIN ";

/// The trusted issuers: Mozilla's roots and further anchors. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Mozilla's roots and `anchors`, each a certificate in DER, or one or more certificates in PEM.
    ///
    /// # Errors
    /// [`HttpsError::Anchor`] if an anchor is invalid or contains no certificate.
    pub fn new<'a>(anchors: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, HttpsError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for anchor in anchors {
            if !anchor.windows(PEM_START.len()).any(|window| window == PEM_START) {
                roots.add(CertificateDer::from(anchor)).map_err(|_| HttpsError::Anchor)?;
                continue;
            }
            let count_before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(anchor) {
                let certificate = certificate.map_err(|_| HttpsError::Anchor)?;
                roots.add(certificate).map_err(|_| HttpsError::Anchor)?;
            }
            if roots.len() == count_before {
                return Err(HttpsError::Anchor);
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| HttpsError::Incompatible)?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}
