//! The consensus: the list of relays that every node uses, with its verification and dates.

use std::sync::Arc;

use core::{fmt, time::Duration};

use prost::Message;
use rand::CryptoRng;

use super::{
    AuthorityId, MAX_CONSENSUS_LEN, MAX_DESCRIPTOR_LEN, MAX_RELAYS, ParameterError, Parameters,
    bounded::{self, BoundError, Bounds},
    counting::{Dates, MAX_SIGNATURE_LEN, MAX_SIGNATURES, NotCounted, check_signatures, sign},
    profile::{Impossible, Profile},
    schema,
};
use crate::{
    base::{DialTarget, RelayId, WallTime},
    crypto::{self, IdentityKey},
    handshake::RelayKeys,
};

const CONTEXT: &str = "directory consensus";
const LONGEST_VALIDITY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const SIGNED_BOUNDS: Bounds =
    Bounds { len: MAX_CONSENSUS_LEN, fields: &[(1, 1, MAX_CONSENSUS_LEN), (2, MAX_SIGNATURES, MAX_SIGNATURE_LEN)] };
const BOUNDS: Bounds = Bounds { len: MAX_CONSENSUS_LEN, fields: &[(4, 256, 96), (5, MAX_RELAYS, MAX_DESCRIPTOR_LEN)] };

/// Why a consensus is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsensusError {
    /// The bytes are no consensus.
    #[error("consensus: {0}")]
    Malformed(#[from] BoundError),
    /// Too few authorities have signed it, or its dates exclude it.
    #[error("consensus: {0}")]
    NotCounted(#[from] NotCounted),
    /// It contradicts itself or the specification.
    #[error("consensus: {0}")]
    Impossible(#[from] Impossible),
    /// A parameter is invalid.
    #[error("consensus: {0}")]
    Parameter(#[from] ParameterError),
}

/// A published consensus: an encoded `SignedConsensus`.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedConsensus(Vec<u8>);

impl SignedConsensus {
    /// The bytes of a verified consensus.
    pub(super) fn from_verified(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Converts it into its bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl fmt::Debug for SignedConsensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedConsensus({} bytes)", self.0.len())
    }
}

/// A signed consensus with unverified signatures.
#[derive(Clone)]
pub struct UnverifiedConsensus {
    signed: schema::SignedConsensus,
}

impl UnverifiedConsensus {
    /// Decodes a `SignedConsensus`.
    ///
    /// # Errors
    /// [`ConsensusError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ConsensusError> {
        Ok(Self { signed: bounded::decode(bytes, &SIGNED_BOUNDS)? })
    }

    /// The consensus, if more than half of `authorities` have signed it, it is valid at `now` and not older than
    /// `previous`, the one in use.
    ///
    /// # Errors
    /// One for each reason (`proto/07-directory.md`, "When a consensus counts").
    pub fn verify(
        self,
        authorities: &[AuthorityId],
        now: WallTime,
        previous: Option<&Consensus>,
    ) -> Result<Consensus, ConsensusError> {
        let consensus = self.verify_signatures(authorities)?;
        let previous = previous.map(|previous| (&previous.dates, &previous.digest));
        consensus.dates.check(&consensus.digest, now, previous)?;
        Ok(consensus)
    }

    /// The consensus, if more than half of `authorities` have signed it, with any dates.
    pub(super) fn verify_signatures(&self, authorities: &[AuthorityId]) -> Result<Consensus, ConsensusError> {
        let Self { signed } = self;
        check_signatures(authorities, CONTEXT, &signed.consensus, &signed.signatures)?;
        Consensus::decode(&signed.consensus)
    }
}

/// The authorities' flags of a relay. Bits as in `ListedRelay.flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// May be a guard.
    pub const GUARD: Self = Self(1);
    /// Forwards to some ports.
    pub const EXIT: Self = Self(2);
    /// Has been known for long enough, compared with others, to be relied on.
    pub const STABLE: Self = Self(4);

    /// Whether all of `flags` are set.
    #[must_use]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These flags, with `flags` added if `condition` is true.
    #[must_use]
    pub const fn with_if(self, flags: Self, condition: bool) -> Self {
        if condition { Self(self.0 | flags.0) } else { self }
    }
}

impl core::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A relay of the consensus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsensusRelay {
    /// The relay's statement about itself.
    pub profile: Profile,
    /// The authorities' flags.
    pub flags: Flags,
    /// Its weight in path selection, relative to others.
    pub weight: u32,
}

impl ConsensusRelay {
    /// Its long-term key.
    #[must_use]
    pub const fn identity(&self) -> RelayId {
        self.profile.identity
    }

    /// Its dial target.
    #[must_use]
    pub fn dial_target(&self) -> DialTarget {
        self.profile.dial_target()
    }

    /// Its keys for a handshake.
    #[must_use]
    pub fn keys(&self) -> RelayKeys {
        self.profile.keys()
    }
}

/// A consensus: verified, or made by this authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Consensus {
    dates: Dates,
    parameters: Parameters,
    relays: Vec<ConsensusRelay>,
    /// SHA-256 of the signed bytes.
    digest: [u8; 32],
}

impl Consensus {
    /// A consensus of `relays`, in any order, at most [`MAX_RELAYS`], with its encoding.
    ///
    /// # Errors
    /// When the dates are out of order or too far apart, or a relay is listed twice.
    pub(super) fn new(
        (valid_after, fresh_until, valid_until): (WallTime, WallTime, WallTime),
        parameters: &Parameters,
        relays: impl IntoIterator<Item = ConsensusRelay>,
    ) -> Result<(Self, Vec<u8>), ConsensusError> {
        let mut relays: Vec<_> = relays.into_iter().collect();
        relays.sort_unstable_by_key(ConsensusRelay::identity);
        let encode = |relay: &ConsensusRelay| schema::ListedRelay {
            profile: Some(relay.profile.encode()),
            flags: relay.flags.0,
            weight: relay.weight,
        };
        let encoded = schema::Consensus {
            valid_after: valid_after.as_unix(),
            fresh_until: fresh_until.as_unix(),
            valid_until: valid_until.as_unix(),
            parameters: parameters.encode(),
            relays: relays.iter().map(encode).collect(),
        }
        .encode_to_vec();
        // A consensus that others would reject must not be signed.
        Ok((Self::decode(&encoded)?, encoded))
    }

    /// Signs the encoding of a consensus with the keys of authorities.
    pub(super) fn sign<'a>(encoded: Vec<u8>, keys: impl IntoIterator<Item = &'a IdentityKey>) -> SignedConsensus {
        let signatures = sign(CONTEXT, &encoded, keys);
        SignedConsensus(schema::SignedConsensus { consensus: encoded, signatures }.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<Self, ConsensusError> {
        let document: schema::Consensus = bounded::decode(bytes, &BOUNDS)?;
        let decode = |relay: schema::ListedRelay| {
            let profile = Profile::decode(relay.profile.ok_or(Impossible("a relay has no profile"))?)?;
            Ok(ConsensusRelay { profile, flags: Flags(relay.flags), weight: relay.weight })
        };
        let dates = (document.valid_after, document.fresh_until, document.valid_until);
        let consensus = Self {
            dates: Dates::decode(dates, LONGEST_VALIDITY)?,
            parameters: Parameters::decode(document.parameters)?,
            relays: document.relays.into_iter().map(decode).collect::<Result<_, Impossible>>()?,
            digest: crypto::sha256(bytes),
        };
        if !consensus.relays.is_sorted_by(|one, next| one.identity() < next.identity()) {
            return Err(Impossible("relays are out of order or duplicated").into());
        }
        Ok(consensus)
    }

    /// Start of its validity.
    #[must_use]
    pub const fn valid_after(&self) -> WallTime {
        self.dates.valid_after
    }

    /// Time from which on a newer one should be fetched.
    #[must_use]
    pub const fn fresh_until(&self) -> WallTime {
        self.dates.fresh_until
    }

    /// End of its validity.
    #[must_use]
    pub const fn valid_until(&self) -> WallTime {
        self.dates.valid_until
    }

    /// Whether its validity has ended at `now`.
    #[must_use]
    pub fn is_expired(&self, now: WallTime) -> bool {
        self.dates.is_expired(now)
    }

    /// Time of the next fetch: random within half an interval after `fresh_until`, so that the fetches of nodes are
    /// spread.
    pub fn next_fetch<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> WallTime {
        self.dates.next_fetch(rng)
    }

    /// Its parameters.
    #[must_use]
    pub const fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Every relay, ascending by identity.
    #[must_use]
    pub fn relays(&self) -> &[ConsensusRelay] {
        &self.relays
    }

    /// The relay with this identity.
    #[must_use]
    pub fn relay(&self, identity: &RelayId) -> Option<&ConsensusRelay> {
        let position = self.relays.binary_search_by(|relay| relay.identity().cmp(identity)).ok()?;
        self.relays.get(position)
    }

    /// SHA-256 of the signed bytes: identical for identical consensuses.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl fmt::Debug for Consensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consensus")
            .field("valid_after", &self.dates.valid_after)
            .field("valid_until", &self.dates.valid_until)
            .field("relays", &self.relays.len())
            .finish_non_exhaustive()
    }
}

/// The relays to which a relay extends circuits: those of its current consensus, and of the previous one, which
/// clients may still use.
#[derive(Clone, Debug, Default)]
pub struct KnownRelays {
    current: Option<Arc<Consensus>>,
    previous: Option<Arc<Consensus>>,
}

impl KnownRelays {
    /// Sets a new consensus; the one in use becomes the previous. The same consensus again has no effect.
    pub fn update(&mut self, consensus: Arc<Consensus>) {
        if self.current.as_ref().is_some_and(|current| current.digest == consensus.digest) {
            return;
        }
        self.previous = self.current.replace(consensus);
    }

    /// The current consensus.
    #[must_use]
    pub fn current(&self) -> Option<&Consensus> {
        self.current.as_deref()
    }

    /// The relay with this identity, from the current consensus, or else from the previous one.
    #[must_use]
    pub fn relay(&self, identity: &RelayId) -> Option<&ConsensusRelay> {
        [&self.current, &self.previous].into_iter().flatten().find_map(|consensus| consensus.relay(identity))
    }
}

#[cfg(test)]
mod tests;
