//! Statements that a node signs about itself: decoding, signature, date and encoding, the same for each kind.
//!
//! Bytes are decoded as an [`UnverifiedStatement`], whose verification returns the statement that the directory
//! trusts. A kind of statement implements [`Statement`]. Governed by `proto/07-directory.md`.

use prost::Message;

use super::{
    bounded::{self, BoundError, Bounds},
    profile::{Impossible, exactly, require},
};
use crate::{
    base::{RelayId, WallTime},
    crypto::{self, IdentityKey},
};

/// A kind of statement: its schema and its limits.
pub trait Statement: Sized {
    /// The purpose of the signature.
    const PURPOSE: &'static str;
    /// Maximum bytes of the statement, signed or not.
    const MAX_LEN: usize;
    /// Repeated fields of the statement: field number, maximum elements, maximum bytes of one element.
    const REPEATED: &'static [(u32, usize, usize)];
    /// The statement's schema.
    type Schema: Message + Default;
    /// Why a statement is refused.
    type Error: From<BoundError> + From<Impossible>;
    /// The signature is not the signer's.
    const BAD_SIGNATURE: Self::Error;

    /// The node that signs it.
    fn signer(&self) -> &RelayId;

    /// Checks the content.
    ///
    /// # Errors
    /// When it contradicts itself or the specification.
    fn check(&self) -> Result<(), Impossible>;

    /// Checks that the statement counts at `now`.
    ///
    /// # Errors
    /// When it is too old, or its date is in the future.
    fn check_date(&self, now: WallTime) -> Result<(), Self::Error>;

    /// The statement of a decoded document; the caller checks the content.
    ///
    /// # Errors
    /// When a part is missing or malformed.
    fn decode(document: Self::Schema) -> Result<Self, Impossible>;

    /// The document, to be encoded.
    fn encode(&self) -> Self::Schema;
}

/// An encoded statement with its signature. The schemas of all kinds have these fields.
#[derive(Clone, PartialEq, Message)]
struct StatementEnvelope {
    #[prost(bytes = "vec", tag = "1")]
    statement: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
}

/// Encodes a statement and signs it.
///
/// # Errors
/// [`Impossible`] when the content is invalid, or the signer isn't the owner of `key`.
pub(super) fn sign<S: Statement>(statement: &S, key: &IdentityKey) -> Result<Vec<u8>, Impossible> {
    statement.check()?;
    require(key.id() == *statement.signer(), "the identity is not the signer's")?;
    let encoded = statement.encode().encode_to_vec();
    let signature = key.sign(S::PURPOSE, &encoded).to_vec();
    Ok(StatementEnvelope { statement: encoded, signature }.encode_to_vec())
}

/// A statement with an unverified signature.
#[derive(Clone)]
pub struct UnverifiedStatement<S> {
    envelope: StatementEnvelope,
    claimed: S,
}

impl<S: Statement> UnverifiedStatement<S> {
    /// Decodes a signed statement.
    ///
    /// # Errors
    /// When the bytes are no statement of this kind, or the content is invalid.
    pub fn decode(bytes: &[u8]) -> Result<Self, S::Error> {
        let envelope: StatementEnvelope = bounded::decode(bytes, &Bounds { len: S::MAX_LEN, fields: &[] })?;
        let bounds = Bounds { len: S::MAX_LEN, fields: S::REPEATED };
        let claimed = S::decode(bounded::decode(&envelope.statement, &bounds)?)?;
        claimed.check()?;
        Ok(Self { envelope, claimed })
    }

    /// Its unverified content: to recognise or refuse it before its signature is verified.
    #[must_use]
    pub const fn claimed(&self) -> &S {
        &self.claimed
    }

    /// SHA-256 of the signed bytes and the signature: the same for the same statement in any encoding.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        // The part of fixed length comes first, so that no byte can move between the parts. The signature is
        // included, because otherwise anyone who can guess the content could repeat the statement.
        crypto::sha256_parts(&[&crypto::sha256(&self.envelope.statement), &self.envelope.signature])
    }

    /// The statement, if its signer has signed it and it counts at `now`.
    ///
    /// # Errors
    /// When it is too old, from the future or badly signed.
    pub fn verify(self, now: WallTime) -> Result<S, S::Error> {
        self.claimed.check_date(now)?;
        let signature = exactly(&self.envelope.signature).ok_or(S::BAD_SIGNATURE)?;
        crypto::verify(self.claimed.signer(), S::PURPOSE, &self.envelope.statement, &signature)
            .map_err(|_| S::BAD_SIGNATURE)?;
        Ok(self.claimed)
    }
}
