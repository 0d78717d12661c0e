//! The directory: signed descriptors of relays, and the authorities' consensus.
//!
//! Documents are Protocol Buffers signed as bytes. Each document is decoded as an `Unverified…` type, whose
//! verification returns the type that the rest of the node uses. This module owns the document types and the core of
//! an [`authority`]. Files (`io`), store and HTTP (`directory_http`) are separate modules. Driven by documents and
//! wall-clock time from the caller. Governed by `proto/07-directory.md`. Threats addressed (`threat-model.md`): relays
//! with false statements about themselves, up to half of the authorities, and an adversary between a node and the
//! directory.

pub mod authority;
mod bounded;
mod consensus;
mod counting;
mod dates;
mod descriptor;
mod document;
#[cfg(any(test, fuzzing))]
pub(crate) mod fixture;
pub mod follow;
mod parameters;
mod profile;
pub(crate) mod schema;
mod statement;
mod steady_clock;
#[cfg(test)]
mod vectors;
mod volunteer;

use core::{fmt, str::FromStr, time::Duration};

pub use authority::{Authority, AuthorityConfig, AuthorityEvent, ClockMismatch, ProofError, Publisher};
pub use consensus::{
    Consensus, ConsensusBody, ConsensusRelay, Flags, KnownRelays, SignedConsensus, UnverifiedConsensus,
};
pub use counting::NotCounted;
pub use dates::Dates;
pub use descriptor::{
    DESCRIPTOR_LIFETIME, Described, Descriptor, DescriptorError, NodeDescriptor, UnverifiedDescriptor,
};
pub use document::{Document, DocumentError, DocumentKind, SignedDocument, UnverifiedDocument};
pub use parameters::{ParameterError, Parameters};
pub(crate) use profile::decode_identity;
pub use profile::{Impossible, Profile};
pub use statement::{Statement, UnverifiedStatement};
pub use steady_clock::SteadyClock;
pub use volunteer::{
    Counted, MAX_COUNTED_LEN, MAX_GATEWAYS, MAX_PRESENT, Presence, PresenceError, RANKED_GATEWAYS, Registration,
    RegistrationError, SignedVolunteerList, UnverifiedPresence, UnverifiedVolunteer, UnverifiedVolunteerList,
    Volunteer, VolunteerDescriptor, VolunteerList, VolunteerListBody, VolunteerProfile, gateway_ranking,
};

use crate::base::RelayId;

/// Maximum bytes of a signed consensus.
pub const MAX_CONSENSUS_LEN: usize = 8 << 20;
/// Maximum bytes of a signed descriptor.
pub const MAX_DESCRIPTOR_LEN: usize = 16 << 10;
/// Maximum relays of a consensus.
pub const MAX_RELAYS: usize = 10_000;
/// Maximum bytes of a signed volunteer list.
pub const MAX_VOLUNTEER_LIST_LEN: usize = 2 << 20;
/// Maximum bytes of a signed volunteer descriptor.
pub const MAX_VOLUNTEER_LEN: usize = 1 << 10;
/// Maximum bytes of a volunteer's profile. [`MAX_VOLUNTEERS`] such profiles with their gateways fit into one list.
pub const MAX_VOLUNTEER_PROFILE_LEN: usize = 400;
/// Maximum volunteers of a list.
pub const MAX_VOLUNTEERS: usize = 4_096;
/// Maximum clock difference of two nodes: the maximum time for which a document may be dated in the future.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// A directory authority's ed25519 public key (RFC 8032), configured in every node.
///
/// Its text form is 52 characters of base 32, as `umbel keys directory` prints. Parsing ignores case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorityId(RelayId);

impl AuthorityId {
    /// The authority of the public key `bytes`.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(RelayId::from_bytes(bytes))
    }

    /// The key bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The public key.
    const fn key(&self) -> &RelayId {
        &self.0
    }
}

impl From<RelayId> for AuthorityId {
    fn from(key: RelayId) -> Self {
        Self(key)
    }
}

impl fmt::Display for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_base32())
    }
}

impl fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthorityId({self})")
    }
}

impl FromStr for AuthorityId {
    type Err = NotAnAuthority;

    fn from_str(text: &str) -> Result<Self, NotAnAuthority> {
        RelayId::from_base32(text).map(Self).ok_or(NotAnAuthority)
    }
}

/// The error for a text that is not an [`AuthorityId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an authority's key; a key is 52 characters of base 32, as `umbel keys directory` prints")]
pub struct NotAnAuthority;
