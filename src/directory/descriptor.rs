//! Descriptors: statements of relays and volunteers about themselves, signed with their identity keys
//! (`proto/07-directory.md` §3).

use core::time::Duration;

use prost::Message;

use super::{
    CLOCK_SKEW, MAX_DESCRIPTOR_LEN,
    bounded::BoundError,
    profile::{Impossible, Profile},
    schema,
    statement::{self, Statement, UnverifiedStatement},
};
use crate::{
    base::{RelayId, WallTime},
    crypto::IdentityKey,
};

/// Time for which a descriptor is valid. Relays publish a new descriptor at least every six hours.
pub const DESCRIPTOR_LIFETIME: Duration = Duration::from_secs(18 * 60 * 60);

/// Why a descriptor is refused. The messages may be shown to the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// The bytes are not a descriptor within its bounds.
    #[error("descriptor: {0}")]
    Malformed(#[from] BoundError),
    /// The signature is not of the identity in the descriptor.
    #[error("descriptor: not signed by the identity in it")]
    BadSignature,
    /// The descriptor is older than [`DESCRIPTOR_LIFETIME`].
    #[error("descriptor: made too long ago; check the relay's clock")]
    Stale,
    /// The date is more than [`CLOCK_SKEW`] in the future.
    #[error("descriptor: made in the future; check the relay's clock")]
    FromTheFuture,
    /// The content is invalid.
    #[error("descriptor: {0}")]
    Impossible(#[from] Impossible),
    /// The stored descriptor of the same relay is as new or newer.
    #[error("descriptor: not newer than the known one")]
    Older,
    /// An address is not global.
    #[error("descriptor: the address is private or reserved, and this network lists public addresses only")]
    PrivateAddress,
    /// A volunteer's identity is that of a relay in the consensus.
    #[error("descriptor: the consensus lists this identity as a relay; a volunteer needs another identity")]
    Public,
    /// The cap on proved relays is reached at one of the relay's addresses, in its network or in its block.
    #[error("descriptor: too many relays at this address, in its network or in its block")]
    Crowded,
    /// The relay changes its descriptor too often.
    #[error("descriptor: changed too often; try again in a minute")]
    TooSoon,
    /// The directory has reached its cap on relays or volunteers.
    #[error("descriptor: the directory is full")]
    Full,
}

/// A profile that a node publishes in a descriptor.
pub trait Described: Sized {
    /// The purpose of the signature.
    const PURPOSE: &'static str;
    /// Maximum bytes of the descriptor, signed or not. This maximum also bounds the memory for decoding, because the
    /// counts of elements are checked only afterwards.
    const MAX_LEN: usize;
    /// The descriptor's schema.
    type Schema: Message + Default;

    /// The node's long-term key.
    fn identity(&self) -> &RelayId;

    /// Checks the profile.
    ///
    /// # Errors
    /// When the profile is invalid.
    fn check(&self) -> Result<(), Impossible>;

    /// The profile in a document, and the document's date in Unix seconds.
    ///
    /// # Errors
    /// When a part is missing or malformed.
    fn of_document(document: Self::Schema) -> Result<(Self, u64), Impossible>;

    /// The document with this profile and date.
    fn document(&self, published: u64) -> Self::Schema;
}

/// A node's dated profile: verified, or created by this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDescriptor<P> {
    /// The profile.
    pub profile: P,
    /// The time of creation.
    pub published: WallTime,
}

/// A relay's statement about itself.
pub type Descriptor = NodeDescriptor<Profile>;
/// A signed descriptor with an unverified signature.
pub type UnverifiedDescriptor = UnverifiedStatement<Descriptor>;

impl<P: Described> NodeDescriptor<P> {
    /// The encoded, signed descriptor.
    ///
    /// # Errors
    /// [`DescriptorError::Impossible`] when the profile is invalid, or its identity isn't `key`'s.
    pub fn sign(&self, key: &IdentityKey) -> Result<Vec<u8>, DescriptorError> {
        Ok(statement::sign(self, key)?)
    }

    /// Whether the descriptor is older than [`DESCRIPTOR_LIFETIME`] at `now`.
    #[must_use]
    pub fn is_stale(&self, now: WallTime) -> bool {
        now.since(self.published) > DESCRIPTOR_LIFETIME
    }
}

impl<P: Described> Statement for NodeDescriptor<P> {
    const PURPOSE: &'static str = P::PURPOSE;
    const MAX_LEN: usize = P::MAX_LEN;
    const REPEATED: &'static [(u32, usize, usize)] = &[];
    type Schema = P::Schema;
    type Error = DescriptorError;
    const BAD_SIGNATURE: DescriptorError = DescriptorError::BadSignature;

    fn signer(&self) -> &RelayId {
        self.profile.identity()
    }

    fn check(&self) -> Result<(), Impossible> {
        self.profile.check()
    }

    fn check_date(&self, now: WallTime) -> Result<(), DescriptorError> {
        if self.published > now.after(CLOCK_SKEW) {
            return Err(DescriptorError::FromTheFuture);
        }
        if self.is_stale(now) { Err(DescriptorError::Stale) } else { Ok(()) }
    }

    fn decode(document: P::Schema) -> Result<Self, Impossible> {
        let (profile, published) = P::of_document(document)?;
        Ok(Self { profile, published: WallTime::from_unix(published) })
    }

    fn encode(&self) -> P::Schema {
        self.profile.document(self.published.as_unix())
    }
}

impl Described for Profile {
    const PURPOSE: &'static str = "directory descriptor";
    const MAX_LEN: usize = MAX_DESCRIPTOR_LEN;
    type Schema = schema::Descriptor;

    fn identity(&self) -> &RelayId {
        &self.identity
    }

    fn check(&self) -> Result<(), Impossible> {
        self.check()
    }

    fn of_document(document: schema::Descriptor) -> Result<(Self, u64), Impossible> {
        let profile = document.profile.ok_or(Impossible("the profile is missing"))?;
        Ok((Self::decode(profile)?, document.published))
    }

    fn document(&self, published: u64) -> schema::Descriptor {
        schema::Descriptor { profile: Some(self.encode()), published }
    }
}

#[cfg(test)]
mod tests;
