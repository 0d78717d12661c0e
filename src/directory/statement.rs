//! Statements that a node signs, of any kind: decoding, signature, date and encoding.
//!
//! Bytes are decoded as an [`UnverifiedStatement`], whose verification returns the statement that the directory
//! uses. Each kind of statement implements [`Statement`]. Governed by `proto/07-directory.md` §1.

use prost::Message;

use super::{
    bounded::{self, BoundError, Bounds},
    profile::{Impossible, require, to_array},
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
    /// The reason why a statement is refused.
    type Error: From<BoundError> + From<Impossible>;
    /// The error for a signature that isn't the signer's.
    const BAD_SIGNATURE: Self::Error;

    /// The node that signs the statement.
    fn signer(&self) -> &RelayId;

    /// Checks the content.
    ///
    /// # Errors
    /// When the content is invalid.
    fn check(&self) -> Result<(), Impossible>;

    /// Checks the date at the time `now`.
    ///
    /// # Errors
    /// When the statement is too old, or its date is in the future.
    fn check_date(&self, now: WallTime) -> Result<(), Self::Error>;

    /// The statement in a decoded message. The caller calls [`Self::check`] afterwards.
    ///
    /// # Errors
    /// When a part is missing or malformed.
    fn decode(document: Self::Schema) -> Result<Self, Impossible>;

    /// The message of the statement.
    fn encode(&self) -> Self::Schema;
}

/// An encoded statement with its signature: the common schema of all kinds.
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
/// [`Impossible`] when the content is invalid, or `key` is not the signer's.
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
    /// When the bytes are not a statement of this kind, or the content is invalid.
    pub fn decode(bytes: &[u8]) -> Result<Self, S::Error> {
        let envelope: StatementEnvelope = bounded::decode(bytes, &Bounds { len: S::MAX_LEN, fields: &[] })?;
        let bounds = Bounds { len: S::MAX_LEN, fields: S::REPEATED };
        let claimed = S::decode(bounded::decode(&envelope.statement, &bounds)?)?;
        claimed.check()?;
        Ok(Self { envelope, claimed })
    }

    /// The unverified content, by which the directory may recognise or refuse the statement before it verifies the
    /// signature.
    #[must_use]
    pub const fn claimed(&self) -> &S {
        &self.claimed
    }

    /// SHA-256 over the signed bytes and the signature. The digest doesn't depend on the encoding around them.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        // The first part has a fixed length, so that the boundary between the parts is unambiguous. The digest includes
        // the signature. Otherwise a node without the key could repeat a statement whose content it has guessed.
        crypto::sha256_parts(&[&crypto::sha256(&self.envelope.statement), &self.envelope.signature])
    }

    /// Returns the statement if its date is valid at `now` and the signature is the signer's.
    ///
    /// # Errors
    /// When the statement is too old, from the future, or not signed by its signer.
    pub fn verify(self, now: WallTime) -> Result<S, S::Error> {
        self.claimed.check_date(now)?;
        let signature = to_array(&self.envelope.signature).ok_or(S::BAD_SIGNATURE)?;
        crypto::verify(self.claimed.signer(), S::PURPOSE, &self.envelope.statement, &signature)
            .map_err(|_| S::BAD_SIGNATURE)?;
        Ok(self.claimed)
    }
}
