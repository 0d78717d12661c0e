//! The DTLS certificate of an endpoint: self-signed, ECDSA P-256, identified by its SHA-256.

use core::fmt;

use dimpl::{DtlsCertificate, crypto::aws_lc_rs};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A certificate with its private key.
pub struct Certificate {
    certificate: Vec<u8>,
    private_key: Zeroizing<Vec<u8>>,
}

/// Reason for which a certificate can't be created or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Key or certificate generation failed.
    #[error("can't generate a certificate")]
    Generate,
    /// The bytes are not the output of [`Certificate::to_bytes`], or a certificate is too long for that format.
    #[error("the bytes are not a certificate with its private key")]
    Malformed,
}

impl Certificate {
    /// Generates a key and its certificate from the system's randomness. Takes about 0.1 ms.
    ///
    /// # Errors
    /// [`CertificateError::Generate`] if the system's cryptography fails.
    pub fn generate() -> Result<Self, CertificateError> {
        let generated =
            dimpl::certificate::generate_self_signed_certificate().map_err(|_| CertificateError::Generate)?;
        Ok(Self { certificate: generated.certificate, private_key: Zeroizing::new(generated.private_key) })
    }

    /// The certificate and its key as one secret byte string: the certificate's length (2 bytes), certificate, key.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`] if the certificate has 64 KiB or more. Generated certificates are shorter.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, CertificateError> {
        let length = u16::try_from(self.certificate.len()).map_err(|_| CertificateError::Malformed)?;
        let mut bytes = Zeroizing::new(Vec::new());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.certificate);
        bytes.extend_from_slice(&self.private_key);
        Ok(bytes)
    }

    /// Parses the output of [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`CertificateError::Malformed`] if the bytes have another format, or DTLS can't use the key or certificate.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CertificateError> {
        let (length, rest) = bytes.split_first_chunk::<2>().ok_or(CertificateError::Malformed)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (certificate, private_key) = rest.split_at_checked(length).ok_or(CertificateError::Malformed)?;
        // With an unparsable key, DTLS would panic later.
        aws_lc_rs::default_provider()
            .key_provider
            .load_private_key(private_key)
            .map_err(|_| CertificateError::Malformed)?;
        dimpl::crypto::cert_named_group(certificate).map_err(|_| CertificateError::Malformed)?;
        Ok(Self { certificate: certificate.to_vec(), private_key: Zeroizing::new(private_key.to_vec()) })
    }

    /// SHA-256 of the certificate (DER), as in the descriptor.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// Certificate and key in the format of `dimpl`, which holds a copy of the key during a handshake and does not
    /// erase it.
    pub(super) fn to_dtls(&self) -> DtlsCertificate {
        DtlsCertificate { certificate: self.certificate.clone(), private_key: self.private_key.to_vec() }
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate in DER.
pub(super) fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_unchanged_by_encoding_and_decoding() {
        let certificate = Certificate::generate().unwrap();
        let decoded = Certificate::from_bytes(&certificate.to_bytes().unwrap()).unwrap();
        assert_eq!(certificate.fingerprint(), decoded.fingerprint());
    }

    #[test]
    fn damaged_certificate_bytes_are_rejected() {
        let bytes = Certificate::generate().unwrap().to_bytes().unwrap();
        for cut in [0, 1, 2, 40, bytes.len() - 1] {
            assert!(Certificate::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut damaged = bytes.to_vec();
        damaged[1] ^= 1;
        assert!(Certificate::from_bytes(&damaged).is_err());
    }
}
