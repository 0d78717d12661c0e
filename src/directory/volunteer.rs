//! Documents about volunteers: relays that can't be dialled, but are reached over their channels to gateways.
//!
//! Contains a volunteer's descriptor ([`VolunteerDescriptor`]), the directory's answer ([`Registration`]), the ranking
//! of gateways ([`gateway_ranking`]), the gateways' reports ([`Presence`]), and the resulting list ([`VolunteerList`]).
//! Governed by `proto/07-directory.md` §9. Threat addressed: volunteers can't choose their gateways, and gateways can't
//! choose their volunteers.

mod list;
mod presence;
mod ranking;
mod registration;

use core::fmt;

use prost::Message;

use super::{
    Described, MAX_VOLUNTEER_LEN, MAX_VOLUNTEER_PROFILE_LEN, NodeDescriptor, UnverifiedStatement,
    profile::{
        Impossible, ProfileFields, decode_family, decode_identity, decode_offer, decode_onion_key, encode_identities,
        encode_offer, require,
    },
    schema,
};
use crate::{base::RelayId, crypto::OnionPublic, delegated::Offer, handshake::RelayKeys};

pub use list::{
    MAX_GATEWAYS, SignedVolunteerList, UnverifiedVolunteerList, Volunteer, VolunteerList, VolunteerListBody,
};
pub use presence::{Counted, MAX_COUNTED_LEN, MAX_PRESENT, Presence, PresenceError, UnverifiedPresence};
pub use ranking::{RANKED_GATEWAYS, gateway_ranking};
pub use registration::{Registration, RegistrationError};

/// Maximum identities in a volunteer's family.
const MAX_FAMILY: usize = 8;

/// A volunteer's profile, at most [`MAX_VOLUNTEER_PROFILE_LEN`] bytes when encoded. `Debug` prints the identity only.
#[derive(Clone, PartialEq, Eq)]
pub struct VolunteerProfile {
    /// The volunteer's long-term key.
    pub identity: RelayId,
    /// The current onion key.
    pub onion_key: OnionPublic,
    /// Relays and volunteers of the same operator, at most 8.
    pub family: Vec<RelayId>,
    /// The operator, empty if not stated: at most 64 bytes of printable ASCII.
    pub operator: String,
    /// The delegated requests that the volunteer performs; empty for none.
    pub offer: Offer,
    /// The software and its version: at most 32 bytes of printable ASCII.
    pub version: String,
}

impl VolunteerProfile {
    /// The volunteer's keys for a handshake.
    #[must_use]
    pub fn keys(&self) -> RelayKeys {
        RelayKeys { identity: self.identity, onion_key: self.onion_key }
    }

    /// Whether the encoding has at most [`MAX_VOLUNTEER_PROFILE_LEN`] bytes.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.encode().encoded_len() <= MAX_VOLUNTEER_PROFILE_LEN
    }

    fn check(&self) -> Result<(), Impossible> {
        let Self { identity, onion_key, family, operator, offer, version } = self;
        ProfileFields { identity, onion_key, family, operator, offer, version }.check()?;
        require(family.len() <= MAX_FAMILY, "the family of a volunteer has more than 8 relays")?;
        require(self.fits(), "the profile of a volunteer has more than 400 bytes; reduce its offer or its family")
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

/// A volunteer's descriptor.
pub type VolunteerDescriptor = NodeDescriptor<VolunteerProfile>;
/// A signed volunteer descriptor with an unverified signature.
pub type UnverifiedVolunteer = UnverifiedStatement<VolunteerDescriptor>;

impl Described for VolunteerProfile {
    const PURPOSE: &'static str = "directory volunteer";
    const MAX_LEN: usize = MAX_VOLUNTEER_LEN;
    type Schema = schema::VolunteerDescriptor;

    fn identity(&self) -> &RelayId {
        &self.identity
    }

    fn check(&self) -> Result<(), Impossible> {
        self.check()
    }

    fn of_document(document: schema::VolunteerDescriptor) -> Result<(Self, u64), Impossible> {
        let profile = document.profile.ok_or(Impossible("the profile is missing"))?;
        Ok((Self::decode(profile)?, document.published))
    }

    fn document(&self, published: u64) -> schema::VolunteerDescriptor {
        schema::VolunteerDescriptor { profile: Some(self.encode()), published }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
