//! Volunteers: relays that can't be dialled, reached over channels that they keep to gateways.
//!
//! Contains a volunteer's statement about itself ([`VolunteerDescriptor`]), the directory's answer
//! ([`Registration`]), the ranking of its gateways ([`gateway_ranking`]), the gateways' reports ([`Presence`]), and
//! the resulting list ([`VolunteerList`]). Governed by `proto/07-directory.md`, "Volunteers". Volunteers can't choose
//! their gateways, nor gateways their volunteers.

mod list;
mod presence;
mod ranking;
mod registration;

use core::fmt;

use prost::Message;

use super::{
    DescriptorError, MAX_VOLUNTEER_LEN, MAX_VOLUNTEER_PROFILE_LEN,
    bounded::{self, Bounds},
    descriptor::{check_published, is_stale},
    profile::{
        Impossible, Statement, decode_family, decode_identity, decode_offer, decode_onion_key, encode_identities,
        encode_offer, exactly, require,
    },
    schema,
};
use crate::{
    base::{RelayId, WallTime},
    crypto::{self, IdentityKey, OnionPublic},
    delegated::Offer,
    handshake::RelayKeys,
};

pub use list::{
    MAX_GATEWAYS, SignedVolunteerList, UnverifiedVolunteerList, Volunteer, VolunteerList, VolunteerListError,
};
pub use presence::{Counted, MAX_COUNTED_LEN, MAX_PRESENT, Presence, PresenceError, UnverifiedPresence};
pub use ranking::{RANKED_GATEWAYS, gateway_ranking};
pub use registration::{Registration, RegistrationError};

pub(super) const CONTEXT: &str = "directory volunteer";
const BOUNDS: Bounds = Bounds { len: MAX_VOLUNTEER_LEN, fields: &[] };
const MAX_FAMILY: usize = 8;

/// A volunteer's profile, at most [`MAX_VOLUNTEER_PROFILE_LEN`] bytes when encoded. Prints its identity only.
#[derive(Clone, PartialEq, Eq)]
pub struct VolunteerProfile {
    /// Its long-term key.
    pub identity: RelayId,
    /// Its current onion key.
    pub onion_key: OnionPublic,
    /// Relays and volunteers under the same control by its statement, at most 8.
    pub family: Vec<RelayId>,
    /// Its operator, empty if not stated: at most 64 bytes of printable ASCII.
    pub operator: String,
    /// The delegated requests that it performs; empty for none.
    pub offer: Offer,
    /// Its software: at most 32 bytes of printable ASCII.
    pub version: String,
}

impl VolunteerProfile {
    /// Its keys for a handshake.
    #[must_use]
    pub fn keys(&self) -> RelayKeys {
        RelayKeys { identity: self.identity, onion_key: self.onion_key }
    }

    /// Whether its encoding is within [`MAX_VOLUNTEER_PROFILE_LEN`].
    #[must_use]
    pub fn fits(&self) -> bool {
        self.encode().encoded_len() <= MAX_VOLUNTEER_PROFILE_LEN
    }

    fn check(&self) -> Result<(), Impossible> {
        let Self { identity, onion_key, family, operator, offer, version } = self;
        Statement { identity, onion_key, family, operator, offer, version }.check()?;
        require(family.len() <= MAX_FAMILY, "the family of a volunteer has more than 8 relays")?;
        require(self.fits(), "the description of a volunteer has more than 400 bytes; reduce its offer or its family")
    }

    fn encode(&self) -> schema::VolunteerProfile {
        schema::VolunteerProfile {
            identity: self.identity.as_bytes().to_vec(),
            onion_key: self.onion_key.0.to_vec(),
            family: encode_identities(&self.family),
            operator: self.operator.clone(),
            offer: encode_offer(&self.offer),
            version: self.version.clone(),
        }
    }

    fn decode(profile: schema::VolunteerProfile) -> Result<Self, Impossible> {
        let decoded = Self {
            identity: decode_identity(&profile.identity).ok_or(Impossible("the identity is not 32 bytes"))?,
            onion_key: decode_onion_key(&profile.onion_key)?,
            family: decode_family(&profile.family)?,
            operator: profile.operator,
            offer: decode_offer(profile.offer)?,
            version: profile.version,
        };
        decoded.check()?;
        Ok(decoded)
    }
}

impl fmt::Debug for VolunteerProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolunteerProfile").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A signed volunteer descriptor with an unverified signature.
#[derive(Clone)]
pub struct UnverifiedVolunteer {
    signed: schema::SignedVolunteer,
    claimed: VolunteerDescriptor,
}

impl UnverifiedVolunteer {
    /// Decodes a `SignedVolunteer`.
    ///
    /// # Errors
    /// [`DescriptorError::Malformed`] and [`DescriptorError::Impossible`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DescriptorError> {
        let signed: schema::SignedVolunteer = bounded::decode(bytes, &BOUNDS)?;
        let document: schema::VolunteerDescriptor = bounded::decode(&signed.volunteer, &BOUNDS)?;
        let profile = VolunteerProfile::decode(document.profile.ok_or(Impossible("the profile is missing"))?)?;
        let claimed = VolunteerDescriptor { profile, published: WallTime::from_unix(document.published) };
        Ok(Self { signed, claimed })
    }

    /// Its unverified content: to recognise or refuse it before its signature is verified.
    #[must_use]
    pub const fn claimed(&self) -> &VolunteerDescriptor {
        &self.claimed
    }

    /// SHA-256 of the signed bytes and the signature: the same for the same registration in any encoding.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        // The part of fixed length comes first, so that no byte can move between the parts. The signature is
        // included, because otherwise anyone who can guess the content could repeat the registration.
        crypto::sha256_parts(&[&crypto::sha256(&self.signed.volunteer), &self.signed.signature])
    }

    /// The descriptor, if its volunteer has signed it and it counts at `now`.
    ///
    /// # Errors
    /// When it is badly signed, stale or from the future.
    pub fn verify(self, now: WallTime) -> Result<VolunteerDescriptor, DescriptorError> {
        let signature = exactly(&self.signed.signature).ok_or(DescriptorError::BadSignature)?;
        crypto::verify(&self.claimed.profile.identity, CONTEXT, &self.signed.volunteer, &signature)
            .map_err(|_| DescriptorError::BadSignature)?;
        check_published(self.claimed.published, now)?;
        Ok(self.claimed)
    }
}

/// A volunteer's statement about itself: verified, or made by this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolunteerDescriptor {
    /// Its content.
    pub profile: VolunteerProfile,
    /// Its date.
    pub published: WallTime,
}

impl VolunteerDescriptor {
    /// The encoded, signed descriptor, as it is registered.
    ///
    /// # Errors
    /// [`DescriptorError::Impossible`] when the profile is invalid, or its identity isn't `key`'s.
    pub fn sign(&self, key: &IdentityKey) -> Result<Vec<u8>, DescriptorError> {
        self.profile.check()?;
        if key.id() != self.profile.identity {
            return Err(Impossible("the identity is not the signer's").into());
        }
        let profile = Some(self.profile.encode());
        let volunteer = schema::VolunteerDescriptor { profile, published: self.published.as_unix() }.encode_to_vec();
        let signature = key.sign(CONTEXT, &volunteer).to_vec();
        Ok(schema::SignedVolunteer { volunteer, signature }.encode_to_vec())
    }

    /// Whether it is too old to count at `now`.
    #[must_use]
    pub fn is_stale(&self, now: WallTime) -> bool {
        is_stale(self.published, now)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
