//! Descriptors: a relay's statements about itself, signed by its identity.

use core::time::Duration;

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

/// Time for which a descriptor counts. Relays publish a new one well before.
pub const DESCRIPTOR_LIFETIME: Duration = Duration::from_secs(18 * 60 * 60);

/// Why a descriptor is refused. Every text may be shown to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// The bytes are no descriptor.
    #[error("descriptor: {0}")]
    Malformed(#[from] BoundError),
    /// Its identity has not signed it.
    #[error("descriptor: not signed by the identity in it")]
    BadSignature,
    /// It is too old.
    #[error("descriptor: made too long ago; is the relay's clock right?")]
    Stale,
    /// Its date is in the future.
    #[error("descriptor: made in the future; is the relay's clock right?")]
    FromTheFuture,
    /// It contradicts itself or the specification.
    #[error("descriptor: {0}")]
    Impossible(#[from] Impossible),
    /// A descriptor of the same relay, at least as new, is stored.
    #[error("descriptor: older than the one known already")]
    Older,
    /// Its addresses aren't globally reachable.
    #[error("descriptor: address is private or reserved; this network lists public addresses only")]
    PrivateAddress,
    /// The relay has an address in the consensus, so it is no volunteer.
    #[error("descriptor: a relay with an address of its own is no volunteer")]
    Public,
    /// The directory has reached its cap on relays.
    #[error("descriptor: the directory is full")]
    Full,
}

/// A signed descriptor with an unverified signature.
pub type UnverifiedDescriptor = UnverifiedStatement<Descriptor>;

/// A relay's statement about itself: verified, or made by this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its content.
    pub profile: Profile,
    /// Its date.
    pub published: WallTime,
}

impl Descriptor {
    /// The encoded, signed descriptor, as it is published.
    ///
    /// # Errors
    /// [`DescriptorError::Impossible`] when the profile is invalid, or its identity isn't `key`'s.
    pub fn sign(&self, key: &IdentityKey) -> Result<Vec<u8>, DescriptorError> {
        Ok(statement::sign(self, key)?)
    }

    /// Whether it is too old to count at `now`.
    #[must_use]
    pub fn is_stale(&self, now: WallTime) -> bool {
        is_stale(self.published, now)
    }
}

impl Statement for Descriptor {
    const PURPOSE: &'static str = "directory descriptor";
    const MAX_LEN: usize = MAX_DESCRIPTOR_LEN;
    // So short that decoding it takes little memory; counts are checked afterwards.
    const REPEATED: &'static [(u32, usize, usize)] = &[];
    type Schema = schema::Descriptor;
    type Error = DescriptorError;
    const BAD_SIGNATURE: DescriptorError = DescriptorError::BadSignature;

    fn signer(&self) -> &RelayId {
        &self.profile.identity
    }

    fn check(&self) -> Result<(), Impossible> {
        self.profile.check()
    }

    fn check_date(&self, now: WallTime) -> Result<(), DescriptorError> {
        check_published(self.published, now)
    }

    fn decode(document: schema::Descriptor) -> Result<Self, Impossible> {
        let profile = Profile::decode(document.profile.ok_or(Impossible("the profile is missing"))?)?;
        Ok(Self { profile, published: WallTime::from_unix(document.published) })
    }

    fn encode(&self) -> schema::Descriptor {
        schema::Descriptor { profile: Some(self.profile.encode()), published: self.published.as_unix() }
    }
}

/// Checks that a descriptor with the date `published` counts at `now`.
pub(super) fn check_published(published: WallTime, now: WallTime) -> Result<(), DescriptorError> {
    if published > now.after(CLOCK_SKEW) {
        return Err(DescriptorError::FromTheFuture);
    }
    if is_stale(published, now) { Err(DescriptorError::Stale) } else { Ok(()) }
}

pub(super) fn is_stale(published: WallTime, now: WallTime) -> bool {
    now.since(published) > DESCRIPTOR_LIFETIME
}

#[cfg(test)]
mod tests;
