//! Signatures of authorities, the threshold that a document requires, and the reasons for which a document doesn't
//! count (`proto/07-directory.md` §4).

use super::{AuthorityId, profile::to_array, schema};
use crate::crypto::{self, IdentityKey};

/// Maximum signatures of a document.
pub(super) const MAX_SIGNATURES: usize = 64;
/// Maximum bytes of one encoded signature.
pub(super) const MAX_SIGNATURE_LEN: usize = 128;

/// Why a well-formed document of the authorities does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCounted {
    /// No authority is configured, so no document counts.
    #[error("no authority key is configured")]
    NoAuthorities,
    /// At most half of the configured authorities have signed the document.
    #[error("signed by {signed} of {configured} configured authorities; more than half are required")]
    TooFewSignatures {
        /// The number of configured authorities with valid signatures.
        signed: usize,
        /// The number of configured authorities.
        configured: usize,
    },
    /// The document is no longer valid.
    #[error("expired; check the clock, and that the directory works")]
    Expired,
    /// The document is not valid yet.
    #[error("not valid yet; check the clock")]
    NotYetValid,
    /// A newer document is in use.
    #[error("older than the one in use")]
    Older,
    /// A different document with the same date is in use: the authorities have signed both.
    #[error("differs from the document in use, which has the same date; the authorities contradict themselves")]
    Conflicting,
}

/// Signs an encoded document for `purpose` with the keys of authorities.
pub(super) fn sign<'a>(
    purpose: &str,
    document: &[u8],
    keys: impl IntoIterator<Item = &'a IdentityKey>,
) -> Vec<schema::AuthoritySignature> {
    let sign = |key: &IdentityKey| schema::AuthoritySignature {
        authority: key.id().as_bytes().to_vec(),
        signature: key.sign(purpose, document).to_vec(),
    };
    keys.into_iter().map(sign).collect()
}

/// Checks that more than half of `authorities` have signed `document` for `purpose`. Each authority counts once, and
/// only its first signature is checked.
///
/// # Errors
/// [`NotCounted::NoAuthorities`] and [`NotCounted::TooFewSignatures`].
pub(super) fn check_signatures(
    authorities: &[AuthorityId],
    purpose: &str,
    document: &[u8],
    signatures: &[schema::AuthoritySignature],
) -> Result<(), NotCounted> {
    let mut configured: Vec<&AuthorityId> = Vec::new();
    // There are few authorities, so a linear search is sufficient.
    authorities.iter().for_each(|authority| {
        if !configured.contains(&authority) {
            configured.push(authority);
        }
    });
    if configured.is_empty() {
        return Err(NotCounted::NoAuthorities);
    }
    let has_signed = |authority: &&&AuthorityId| {
        let found = signatures.iter().find(|signature| signature.authority == authority.as_bytes());
        let signature = found.and_then(|signature| to_array(&signature.signature));
        signature.is_some_and(|signature| crypto::verify(authority.key(), purpose, document, &signature).is_ok())
    };
    let signed = configured.iter().filter(has_signed).count();
    if signed <= configured.len() / 2 {
        return Err(NotCounted::TooFewSignatures { signed, configured: configured.len() });
    }
    Ok(())
}
