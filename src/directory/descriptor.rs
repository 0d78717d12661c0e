//! Descriptors: a relay's statements about itself, signed by its identity.

use core::time::Duration;

use prost::Message;

use super::{
    CLOCK_SKEW, MAX_DESCRIPTOR_LEN,
    bounded::{self, BoundError, Bounds},
    profile::{Impossible, Profile, exactly},
    schema,
};
use crate::{
    base::WallTime,
    crypto::{self, IdentityKey},
};

/// Time for which a descriptor counts. Relays publish a new one well before.
pub const DESCRIPTOR_LIFETIME: Duration = Duration::from_secs(18 * 60 * 60);

pub(super) const CONTEXT: &str = "directory descriptor";
// So short that decoding it takes little memory; counts are checked afterwards.
const BOUNDS: Bounds = Bounds { len: MAX_DESCRIPTOR_LEN, fields: &[] };

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
    #[error("descriptor: made too long ago; check the relay's clock")]
    Stale,
    /// Its date is in the future.
    #[error("descriptor: made in the future; check the relay's clock")]
    FromTheFuture,
    /// It contradicts itself or the specification.
    #[error("descriptor: {0}")]
    Impossible(#[from] Impossible),
    /// A descriptor of the same relay, at least as new, is stored.
    #[error("descriptor: not newer than the known one")]
    Older,
    /// Its addresses aren't globally reachable.
    #[error("descriptor: the address is private or reserved, and this network lists public addresses only")]
    PrivateAddress,
    /// The relay has an address in the consensus, so it is no volunteer.
    #[error("descriptor: a volunteer has no address")]
    Public,
    /// The directory has reached its cap on relays.
    #[error("descriptor: the directory is full")]
    Full,
}

/// A signed descriptor with an unverified signature.
#[derive(Clone)]
pub struct UnverifiedDescriptor {
    signed: schema::SignedDescriptor,
}

impl UnverifiedDescriptor {
    /// Decodes a `SignedDescriptor`.
    ///
    /// # Errors
    /// [`DescriptorError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DescriptorError> {
        Ok(Self { signed: bounded::decode(bytes, &BOUNDS)? })
    }

    /// The descriptor, if its relay has signed it and it counts at `now`.
    ///
    /// # Errors
    /// When it is malformed, impossible, badly signed, stale or from the future.
    pub fn verify(self, now: WallTime) -> Result<Descriptor, DescriptorError> {
        let document: schema::Descriptor = bounded::decode(&self.signed.descriptor, &BOUNDS)?;
        let profile = Profile::decode(document.profile.ok_or(Impossible("the profile is missing"))?)?;
        let signature = exactly(&self.signed.signature).ok_or(DescriptorError::BadSignature)?;
        crypto::verify(&profile.identity, CONTEXT, &self.signed.descriptor, &signature)
            .map_err(|_| DescriptorError::BadSignature)?;
        let published = WallTime::from_unix(document.published);
        check_published(published, now)?;
        Ok(Descriptor { profile, published })
    }
}

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
        self.profile.check()?;
        if key.id() != self.profile.identity {
            return Err(Impossible("the identity is not the signer's").into());
        }
        let document = schema::Descriptor { profile: Some(self.profile.encode()), published: self.published.as_unix() };
        let descriptor = document.encode_to_vec();
        let signature = key.sign(CONTEXT, &descriptor).to_vec();
        Ok(schema::SignedDescriptor { descriptor, signature }.encode_to_vec())
    }

    /// Whether it is too old to count at `now`.
    #[must_use]
    pub fn is_stale(&self, now: WallTime) -> bool {
        is_stale(self.published, now)
    }
}

/// Checks that a statement with the date `published` counts at `now`.
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
