//! The directory: who the relays are, as their descriptors and the authorities' consensus say.
//!
//! Documents are Protocol Buffers signed as bytes. Each comes as an `Unverified…` value, which can only be verified, and
//! leaves as one that the rest of the node may believe. Owns the document types and the [`authority`] core; files, store
//! and HTTP are outside (`io`). Driven by documents and wall time handed in. Governed by `proto/07-directory.md`. It
//! stands against relays that lie about themselves, against fewer than half of the authorities, and against whoever
//! stands between a node and the directory (`threat-model.md`).

pub mod authority;
mod bounded;
mod consensus;
mod counting;
mod descriptor;
#[cfg(any(test, fuzzing))]
pub(crate) mod fixture;
mod parameters;
mod profile;
pub(crate) mod schema;
#[cfg(test)]
mod vectors;
mod volunteer;

use core::{fmt, time::Duration};

pub use authority::{Authority, AuthorityConfig, AuthorityEvent, ProofError};
pub use consensus::{
    Consensus, ConsensusError, ConsensusRelay, Flags, KnownRelays, SignedConsensus, UnverifiedConsensus,
};
pub use counting::NotCounted;
pub use descriptor::{DESCRIPTOR_LIFETIME, Descriptor, DescriptorError, UnverifiedDescriptor};
pub use parameters::{ParameterError, Parameters};
pub(crate) use profile::decode_identity;
pub use profile::{Impossible, Profile};
pub use volunteer::{
    Counted, MAX_COUNTED_LEN, MAX_GATEWAYS, MAX_PRESENT, Presence, PresenceError, RANKED_GATEWAYS, Registration,
    RegistrationError, SignedVolunteerList, UnverifiedPresence, UnverifiedVolunteer, UnverifiedVolunteerList,
    Volunteer, VolunteerDescriptor, VolunteerList, VolunteerListError, VolunteerProfile, gateway_ranking,
};

use crate::base::RelayId;

/// Bytes of a signed consensus at the most.
pub const MAX_CONSENSUS_LEN: usize = 8 << 20;
/// Bytes of a signed descriptor at the most.
pub const MAX_DESCRIPTOR_LEN: usize = 16 << 10;
/// Relays in a consensus at the most.
pub const MAX_RELAYS: usize = 10_000;
/// Bytes of a signed volunteer list at the most.
pub const MAX_VOLUNTEER_LIST_LEN: usize = 2 << 20;
/// Bytes of a signed volunteer at the most.
pub const MAX_VOLUNTEER_LEN: usize = 1 << 10;
/// Bytes of a volunteer's profile at the most: as many as there may be, with their gateways, fit into one list.
pub const MAX_VOLUNTEER_PROFILE_LEN: usize = 400;
/// Volunteers in a list at the most.
pub const MAX_VOLUNTEERS: usize = 4_096;
/// How far apart the clocks of two nodes may be: a document may be valid from as far in the future.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// An authority's ed25519 public key. Configured in every node; prints in full, base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorityId(RelayId);

impl AuthorityId {
    /// The authority with these key bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(RelayId::from_bytes(bytes))
    }

    /// The key bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The authority written as by `Display`, in either case.
    #[must_use]
    pub fn from_base32(text: &str) -> Option<Self> {
        RelayId::from_base32(text).map(Self)
    }

    const fn key(&self) -> &RelayId {
        &self.0
    }
}

impl From<RelayId> for AuthorityId {
    /// The same key, seen as an authority's.
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
