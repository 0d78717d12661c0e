//! Documents that authorities sign, of any kind: decoding, signatures, validity and encoding.
//!
//! Bytes are decoded as an [`UnverifiedDocument`], whose verification returns the [`Document`] that the rest of the
//! node uses. [`Document::sign`] returns the [`SignedDocument`] that an authority publishes. Each kind of document
//! implements [`DocumentKind`]. Governed by `proto/07-directory.md` §4.

use core::{fmt, marker::PhantomData, time::Duration};

use prost::Message;
use rand::CryptoRng;

use super::{
    AuthorityId, CLOCK_SKEW, Dates, ParameterError,
    bounded::{self, BoundError, Bounds},
    counting::{MAX_SIGNATURE_LEN, MAX_SIGNATURES, NotCounted, check_signatures, sign},
    profile::Impossible,
    schema,
};
use crate::{
    base::WallTime,
    crypto::{self, IdentityKey},
};

/// A kind of document: its content without the dates, its schema and its limits.
pub trait DocumentKind: Sized {
    /// The name in the log.
    const NAME: &'static str;
    /// The purpose of the signatures.
    const PURPOSE: &'static str;
    /// Maximum bytes of the document, signed or not.
    const MAX_LEN: usize;
    /// Maximum time from the start of the validity to its end.
    const MAX_VALIDITY: Duration;
    /// Repeated fields of the document: field number, maximum elements, maximum bytes of one element.
    const REPEATED: &'static [(u32, usize, usize)];
    /// The document's schema.
    type Schema: Message + Default;

    /// The content and the dates of a decoded document. The dates are not checked yet.
    ///
    /// # Errors
    /// When the content is invalid.
    fn decode(document: Self::Schema) -> Result<(Self, Dates), DocumentError>;

    /// The document with these dates, as a Protocol Buffers message.
    fn encode(&self, dates: &Dates) -> Self::Schema;
}

/// Why a document is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// The bytes are not a document of this kind within its bounds.
    #[error(transparent)]
    Malformed(#[from] BoundError),
    /// Too few authorities have signed the document, its dates exclude it, or it conflicts with the document in use.
    #[error(transparent)]
    NotCounted(#[from] NotCounted),
    /// The content is invalid.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// A parameter is invalid.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
}

/// An encoded document with its signatures: the common schema of all kinds.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Envelope {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) document: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub(super) signatures: Vec<schema::AuthoritySignature>,
}

/// The bytes of a published document.
pub struct SignedDocument<B> {
    bytes: Vec<u8>,
    kind: PhantomData<B>,
}

impl<B: DocumentKind> SignedDocument<B> {
    /// Wraps the encoding of a signed document, without checks.
    pub(crate) const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes, kind: PhantomData }
    }

    /// The encoding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the signed bytes, as in [`Document::digest`]. For a malformed encoding, the digest of no bytes.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        crypto::sha256(&Envelope::decode(self.bytes.as_slice()).unwrap_or_default().document)
    }

    /// Converts into the encoding.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl<B: DocumentKind> fmt::Debug for SignedDocument<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, signed, {} bytes", B::NAME, self.bytes.len())
    }
}

/// A document with unverified signatures.
#[derive(Clone)]
pub struct UnverifiedDocument<B> {
    envelope: Envelope,
    kind: PhantomData<B>,
}

impl<B: DocumentKind> UnverifiedDocument<B> {
    const BOUNDS: Bounds =
        Bounds { len: B::MAX_LEN, fields: &[(1, 1, B::MAX_LEN), (2, MAX_SIGNATURES, MAX_SIGNATURE_LEN)] };

    /// Decodes a signed document.
    ///
    /// # Errors
    /// [`DocumentError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        Ok(Self { envelope: bounded::decode(bytes, &Self::BOUNDS)?, kind: PhantomData })
    }

    /// Returns the document if more than half of `authorities` have signed it and it is valid at `now`. It must not be
    /// older than the document `in_use`, or differ from it with the same date.
    ///
    /// # Errors
    /// A separate error for each reason (`proto/07-directory.md` §4).
    pub fn verify(
        self,
        authorities: &[AuthorityId],
        now: WallTime,
        in_use: Option<&Document<B>>,
    ) -> Result<Document<B>, DocumentError> {
        let document = self.verify_signatures(authorities)?;
        document.check(now, in_use)?;
        Ok(document)
    }

    /// Returns the document if more than half of `authorities` have signed it. The dates aren't compared with the
    /// clock.
    ///
    /// # Errors
    /// When there are too few signatures, or the content is invalid.
    pub(super) fn verify_signatures(&self, authorities: &[AuthorityId]) -> Result<Document<B>, DocumentError> {
        let Envelope { document, signatures } = &self.envelope;
        check_signatures(authorities, B::PURPOSE, document, signatures)?;
        Document::decode(document)
    }
}

/// A document that was verified, or created by this authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Document<B> {
    dates: Dates,
    body: B,
    /// SHA-256 of the signed bytes.
    digest: [u8; 32],
}

impl<B: DocumentKind> Document<B> {
    const BOUNDS: Bounds = Bounds { len: B::MAX_LEN, fields: B::REPEATED };

    /// A document and its encoding. The encoding is decoded again, so that an authority signs no invalid document.
    ///
    /// # Errors
    /// When the dates are out of order or too far apart, or the body is invalid or too long.
    pub(super) fn new(dates: &Dates, body: &B) -> Result<(Self, Vec<u8>), DocumentError> {
        let encoded = body.encode(dates).encode_to_vec();
        Ok((Self::decode(&encoded)?, encoded))
    }

    /// Signs an encoded document with the keys of authorities.
    pub(super) fn sign<'a>(encoded: Vec<u8>, keys: impl IntoIterator<Item = &'a IdentityKey>) -> SignedDocument<B> {
        let signatures = sign(B::PURPOSE, &encoded, keys);
        SignedDocument::from_bytes(Envelope { document: encoded, signatures }.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        let (body, dates) = B::decode(bounded::decode(bytes, &Self::BOUNDS)?)?;
        dates.check(B::MAX_VALIDITY)?;
        Ok(Self { dates, body, digest: crypto::sha256(bytes) })
    }

    /// Checks that the document is valid at `now`, not older than the document `in_use`, and not different from it with
    /// the same date.
    fn check(&self, now: WallTime, in_use: Option<&Self>) -> Result<(), NotCounted> {
        if self.valid_after() > now.after(CLOCK_SKEW) {
            return Err(NotCounted::NotYetValid);
        }
        if self.is_expired(now) {
            return Err(NotCounted::Expired);
        }
        match in_use {
            Some(in_use) if self.valid_after() < in_use.valid_after() => Err(NotCounted::Older),
            Some(in_use) if self.valid_after() == in_use.valid_after() && self.digest != in_use.digest => {
                Err(NotCounted::Conflicting)
            }
            _ => Ok(()),
        }
    }

    /// The content.
    pub(super) const fn body(&self) -> &B {
        &self.body
    }

    /// The start of validity.
    #[must_use]
    pub const fn valid_after(&self) -> WallTime {
        self.dates.valid_after
    }

    /// The end of freshness, after which nodes fetch a newer document.
    #[must_use]
    pub const fn fresh_until(&self) -> WallTime {
        self.dates.fresh_until
    }

    /// The end of validity.
    #[must_use]
    pub const fn valid_until(&self) -> WallTime {
        self.dates.valid_until
    }

    /// Whether the validity has ended at `now`.
    #[must_use]
    pub fn is_expired(&self, now: WallTime) -> bool {
        now >= self.dates.valid_until
    }

    /// The time of the next fetch: random within half an interval after `fresh_until`, so that nodes don't fetch at the
    /// same time.
    pub fn next_fetch<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> WallTime {
        self.dates.next_fetch(rng)
    }

    /// SHA-256 of the signed bytes.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl<B: DocumentKind + fmt::Debug> fmt::Debug for Document<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(B::NAME).field("dates", &self.dates).field("body", &self.body).finish_non_exhaustive()
    }
}
