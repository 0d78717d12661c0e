//! The consensus: the authorities' signed list of relays and parameters (`proto/07-directory.md` §4).

use std::sync::Arc;

use core::{fmt, time::Duration};

use super::{
    Dates, Document, DocumentError, DocumentKind, MAX_CONSENSUS_LEN, MAX_DESCRIPTOR_LEN, MAX_RELAYS, Parameters,
    SignedDocument, UnverifiedDocument,
    profile::{Impossible, Profile, require},
    schema,
};
use crate::{
    base::{DialTarget, RelayId},
    handshake::RelayKeys,
};

/// A consensus that was verified, or created by this authority.
pub type Consensus = Document<ConsensusBody>;
/// A published consensus: the encoded message `SignedConsensus` of `proto/directory.proto`.
pub type SignedConsensus = SignedDocument<ConsensusBody>;
/// A signed consensus with unverified signatures.
pub type UnverifiedConsensus = UnverifiedDocument<ConsensusBody>;

/// The authorities' flags of a relay, with the bits of `ListedRelay.flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// The relay may be a guard.
    pub const GUARD: Self = Self(1);
    /// The relay's exit policy accepts some ports.
    pub const EXIT: Self = Self(2);
    /// The authority has known the relay for a week (by default), or at least as long as the median relay.
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
    /// The part of the relay's descriptor that the consensus repeats.
    pub profile: Profile,
    /// The authorities' flags.
    pub flags: Flags,
    /// The weight in path selection, relative to other relays.
    pub weight: u32,
}

impl ConsensusRelay {
    /// The relay's long-term key.
    #[must_use]
    pub const fn identity(&self) -> RelayId {
        self.profile.identity
    }

    /// The relay's dial target.
    #[must_use]
    pub fn dial_target(&self) -> DialTarget {
        self.profile.dial_target()
    }

    /// The relay's keys for a handshake.
    #[must_use]
    pub fn keys(&self) -> RelayKeys {
        self.profile.keys()
    }

    fn decode(listed: schema::ListedRelay) -> Result<Self, Impossible> {
        let profile = Profile::decode(listed.profile.ok_or(Impossible("a relay has no profile"))?)?;
        Ok(Self { profile, flags: Flags(listed.flags), weight: listed.weight })
    }

    fn encode(&self) -> schema::ListedRelay {
        schema::ListedRelay { profile: Some(self.profile.encode()), flags: self.flags.0, weight: self.weight }
    }
}

/// The content of a consensus: relays and the parameters of the network.
#[derive(Clone, PartialEq, Eq)]
pub struct ConsensusBody {
    parameters: Parameters,
    /// Ascending by identity.
    relays: Vec<ConsensusRelay>,
}

impl ConsensusBody {
    /// The content with `relays`, which may be in any order. The caller caps them at [`MAX_RELAYS`].
    pub(super) fn new(parameters: Parameters, relays: impl IntoIterator<Item = ConsensusRelay>) -> Self {
        let mut relays: Vec<_> = relays.into_iter().collect();
        relays.sort_unstable_by_key(ConsensusRelay::identity);
        Self { parameters, relays }
    }
}

impl DocumentKind for ConsensusBody {
    const NAME: &'static str = "consensus";
    const PURPOSE: &'static str = "directory consensus";
    const MAX_LEN: usize = MAX_CONSENSUS_LEN;
    const MAX_VALIDITY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
    const REPEATED: &'static [(u32, usize, usize)] = &[(4, 256, 96), (5, MAX_RELAYS, MAX_DESCRIPTOR_LEN)];
    type Schema = schema::Consensus;

    fn decode(document: schema::Consensus) -> Result<(Self, Dates), DocumentError> {
        let parameters = Parameters::decode(document.parameters)?;
        let relays = document.relays.into_iter().map(ConsensusRelay::decode).collect::<Result<Vec<_>, _>>()?;
        let is_ascending = relays.is_sorted_by(|one, next| one.identity() < next.identity());
        require(is_ascending, "relays are out of order or duplicated")?;
        let dates = Dates::from_unix(document.valid_after, document.fresh_until, document.valid_until);
        Ok((Self { parameters, relays }, dates))
    }

    fn encode(&self, dates: &Dates) -> schema::Consensus {
        schema::Consensus {
            valid_after: dates.valid_after.as_unix(),
            fresh_until: dates.fresh_until.as_unix(),
            valid_until: dates.valid_until.as_unix(),
            parameters: self.parameters.encode(),
            relays: self.relays.iter().map(ConsensusRelay::encode).collect(),
        }
    }
}

impl fmt::Debug for ConsensusBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} relays", self.relays.len())
    }
}

impl Consensus {
    /// The network's parameters.
    #[must_use]
    pub const fn parameters(&self) -> &Parameters {
        &self.body().parameters
    }

    /// Every relay, ascending by identity.
    #[must_use]
    pub fn relays(&self) -> &[ConsensusRelay] {
        &self.body().relays
    }

    /// The relay with this identity.
    #[must_use]
    pub fn relay(&self, identity: &RelayId) -> Option<&ConsensusRelay> {
        let position = self.relays().binary_search_by(|relay| relay.identity().cmp(identity)).ok()?;
        self.relays().get(position)
    }
}

/// The relays of the current and the previous consensus. A relay extends circuits to all of them, because clients may
/// still use the previous consensus.
#[derive(Clone, Debug, Default)]
pub struct KnownRelays {
    current: Option<Arc<Consensus>>,
    previous: Option<Arc<Consensus>>,
}

impl KnownRelays {
    /// Sets the current consensus; the replaced consensus becomes the previous. An unchanged consensus has no effect.
    pub fn update(&mut self, consensus: Arc<Consensus>) {
        if self.current.as_ref().is_some_and(|current| current.digest() == consensus.digest()) {
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
