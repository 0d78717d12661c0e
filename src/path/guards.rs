//! The guard sample: the few relays that a client uses as first hops, kept for months.
//!
//! All dates are the `valid_after` of consensuses, not times of the client's clock. So a stored sample doesn't reveal
//! when the client ran.

mod bias;
mod layer_two;
mod reachability;

use core::{fmt, time::Duration};

use prost::Message;
use rand::{CryptoRng, RngExt};

use super::{
    hop::PathRelay,
    weigh::{ExitShare, pick_by_weight},
};
use crate::{
    base::{Instant, RelayId, WallTime},
    directory::{Consensus, ConsensusRelay, Flags, decode_identity, schema},
};
use bias::{MAX_NEXT_RELAYS, NextRelays};
use layer_two::LayerTwoGuards;
use reachability::{FurtherGuards, GuardReachability, PRIMARIES};

/// Maximum guards of the sample, listed or not.
const MAX_GUARDS: usize = 120;
/// Number of listed guards below which relays with a weight of zero are sampled too.
const MIN_GUARDS: usize = 3;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum days for which an unlisted guard stays in the sample.
const MAX_UNLISTED_DAYS: u32 = 20;

/// The error for a stored guard sample that can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guard sample is corrupted")]
pub struct GuardSampleError;

/// A client's guards, in order of preference. Prints redacted.
#[derive(Clone, Default)]
pub struct GuardSample {
    guards: Vec<Guard>,
    /// The date of the last consensus.
    consensus_date: Option<WallTime>,
    further: FurtherGuards,
    layer_two: LayerTwoGuards,
    /// The date of the consensus with which the counts of next relays were last halved.
    halved_at: Option<WallTime>,
    /// Whether circuits were counted since the last [`Self::take_counts_changed`].
    counts_changed: bool,
}

#[derive(Clone)]
struct Guard {
    identity: RelayId,
    /// The start of the guard's lifetime.
    added: WallTime,
    /// The date of the last consensus that listed the guard.
    last_listed: WallTime,
    /// Circuits whose first hop was built.
    circuits_begun: u64,
    /// Of these, the circuits that were built completely and not ended early.
    circuits_built: u64,
    next_relays: NextRelays,
    reachability: GuardReachability,
}

impl GuardSample {
    /// Decodes the output of [`Self::encode`].
    ///
    /// # Errors
    /// When `bytes` are not a valid sample.
    pub fn decode(bytes: &[u8]) -> Result<Self, GuardSampleError> {
        let sample = schema::GuardSample::decode(bytes).map_err(|_| GuardSampleError)?;
        let guards: Option<Vec<Guard>> = sample.guards.iter().map(Guard::decode).collect();
        let guards = guards.filter(|guards| guards.len() <= MAX_GUARDS).ok_or(GuardSampleError)?;
        let pairs = guards.iter().map(|guard| guard.next_relays.len()).fold(0, usize::saturating_add);
        if pairs > PRIMARIES.saturating_mul(MAX_NEXT_RELAYS) {
            return Err(GuardSampleError);
        }
        let halved_at = (sample.halved > 0).then(|| WallTime::from_unix(sample.halved));
        let layer_two = LayerTwoGuards::decode(&sample.layer_two, sample.layer_two_replaced).ok_or(GuardSampleError)?;
        Ok(Self { guards, halved_at, layer_two, ..Self::default() })
    }

    /// Encodes the sample for storage, with the counts of next relays of the primaries only.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut guards: Vec<_> = self.guards.iter().map(Guard::encode).collect();
        if self.consensus_date.is_some() {
            let primaries: Vec<_> = self.primaries().map(|guard| guard.identity).collect();
            let others = guards.iter_mut().zip(&self.guards).filter(|(_, guard)| !primaries.contains(&guard.identity));
            others.for_each(|(encoded, _)| encoded.next_relays.clear());
        }
        let sample = schema::GuardSample {
            guards,
            halved: self.halved_at.map_or(0, WallTime::as_unix),
            layer_two: self.layer_two.encode(),
            layer_two_replaced: self.layer_two.encode_replaced_at(),
        };
        sample.encode_to_vec()
    }

    /// Updates the sample to a new consensus. Removes guards past their lifetime, guards unlisted for too long, and at
    /// most one guard with path bias; then adds guards, and updates the layer-2 guards. Returns whether guards were added
    /// or removed, so that the sample should be stored.
    pub fn update<R: CryptoRng + ?Sized>(&mut self, consensus: &Consensus, rng: &mut R) -> bool {
        let date = consensus.valid_after();
        self.consensus_date = Some(date);
        self.layer_two.handle_consensus(consensus);
        for guard in &mut self.guards {
            if listed_guard(consensus, &guard.identity).is_some() {
                guard.last_listed = date;
            }
        }
        let lifetime = lifetime(consensus);
        let before = self.guards.len();
        self.guards.retain(|guard| {
            date.since(guard.added) <= lifetime
                && date.since(guard.last_listed) <= DAY.saturating_mul(MAX_UNLISTED_DAYS)
        });
        self.remove_biased_guard(consensus);
        let removed = self.guards.len() != before;
        let added = self.fill(consensus, rng);
        let layer_two_changed = self.update_layer_two(consensus, rng);
        removed || added || layer_two_changed
    }

    /// Records that the guard built the first hop of a circuit.
    pub fn handle_answered(&mut self, relay: &RelayId) {
        if let Some(guard) = self.guard(relay) {
            guard.reachability = GuardReachability::Usable;
        }
    }

    /// Records that a channel to the guard opened. The next dials of all unreachable guards are due now. If this guard
    /// was unreachable, returns the later guards of the sample: circuits through them were built only for that reason.
    pub fn handle_opened(&mut self, now: Instant, relay: &RelayId) -> Vec<RelayId> {
        let Some(position) = self.listed().position(|guard| guard.identity == *relay) else { return Vec::new() };
        self.further.handle_opened(position < PRIMARIES);
        let was_unreachable = self.guard(relay).is_some_and(|guard| {
            let unreachable = !guard.reachability.is_usable();
            guard.reachability.handle_opened(now);
            unreachable
        });
        for guard in &mut self.guards {
            guard.reachability.retry_now(now);
        }
        let later = self.listed().skip(position.saturating_add(1)).map(|guard| guard.identity);
        if was_unreachable { later.collect() } else { Vec::new() }
    }

    /// Records that the guard was silent: it left a channel or circuit unanswered that began at `began`. The guard
    /// stays usable, and the next circuit dials it again. The guard becomes unreachable only if it is silent a second
    /// time before it has built a first hop.
    pub fn handle_silent(&mut self, now: Instant, relay: &RelayId, began: Instant) {
        let offline = self.is_offline_without(relay);
        if let Some(guard) = self.guard(relay) {
            guard.reachability.handle_silent(now, began, offline);
        }
    }

    /// Records that a dial of the guard failed, or did not succeed in time. Other guards precede the guard until a
    /// channel to it opens. The next dial is due after 5 s. The delay doubles with each failure, up to a minute, or up
    /// to 15 s while no other guard is reachable.
    pub fn handle_unreachable(&mut self, now: Instant, relay: &RelayId) {
        let offline = self.is_offline_without(relay);
        if let Some(guard) = self.guard(relay) {
            guard.reachability.handle_unreachable(now, offline);
        }
    }

    /// Records an answer of a node that isn't a guard: a new document of a directory. One more guard beyond the
    /// primaries is used after two such answers, ten minutes apart, if all guards in use were unreachable throughout.
    pub fn handle_contact(&mut self, now: Instant) {
        if self.in_use().next().is_some() && self.in_use().all(|guard| !guard.reachability.is_usable()) {
            self.further.handle_contact(now);
        }
    }

    /// The unreachable guards in use whose next dials are due.
    pub fn guards_to_dial<'a>(&self, consensus: &'a Consensus, now: Instant) -> Vec<&'a ConsensusRelay> {
        let due = self.in_use().filter(|guard| guard.reachability.retry_at().is_some_and(|at| at <= now));
        due.filter_map(|guard| listed_guard(consensus, &guard.identity)).collect()
    }

    /// Returns whether circuits were counted since the last call.
    pub const fn take_counts_changed(&mut self) -> bool {
        core::mem::replace(&mut self.counts_changed, false)
    }

    /// Listed guards in the order to try: the usable ones in use, then the unreachable ones in use by the times of
    /// their next dials. The other guards follow, for networks in which no path leads through a guard in use. If
    /// `path.guards-in-use` is 2, either of the first two usable guards is first with equal probability.
    pub(super) fn candidates<'a, R: CryptoRng + ?Sized>(
        &self,
        consensus: &'a Consensus,
        rng: &mut R,
    ) -> Vec<&'a ConsensusRelay> {
        let listed = self.guards.iter().filter_map(|guard| Some((guard, listed_guard(consensus, &guard.identity)?)));
        let max_in_use = self.max_in_use();
        let mut guards: Vec<((bool, Option<Instant>), &ConsensusRelay)> = Vec::new();
        for (position, (guard, relay)) in listed.enumerate() {
            let rank = (position >= max_in_use, guard.reachability.retry_at());
            // Usable guards keep the order of the sample.
            let place = guards.partition_point(|(other, _)| *other <= rank);
            guards.insert(place, (rank, relay));
        }
        let usable = guards.iter().filter(|((beyond, retry), _)| !beyond && retry.is_none()).count();
        let usable_in_use = usize::try_from(consensus.parameters().guards_in_use()).unwrap_or(1);
        if usable_in_use.min(usable) == 2 && rng.random() {
            guards.swap(0, 1);
        }
        guards.into_iter().map(|(_, relay)| relay).collect()
    }

    /// The guards that the last consensus lists.
    fn listed(&self) -> impl Iterator<Item = &Guard> {
        self.guards.iter().filter(|guard| Some(guard.last_listed) == self.consensus_date)
    }

    fn primaries(&self) -> impl Iterator<Item = &Guard> {
        self.listed().take(PRIMARIES)
    }

    /// The maximum number of guards in use: the primaries, and the guards in use beyond them.
    const fn max_in_use(&self) -> usize {
        PRIMARIES.saturating_add(self.further.count())
    }

    fn in_use(&self) -> impl Iterator<Item = &Guard> {
        self.listed().take(self.max_in_use())
    }

    /// Whether no guard in use except `relay` is usable.
    fn is_offline_without(&self, relay: &RelayId) -> bool {
        !self.in_use().any(|guard| guard.identity != *relay && guard.reachability.is_usable())
    }

    fn guard(&mut self, relay: &RelayId) -> Option<&mut Guard> {
        self.guards.iter_mut().find(|guard| guard.identity == *relay)
    }

    /// Adds guards by weight until the sample has the required number of listed guards, or its maximum length. Returns
    /// whether guards were added.
    fn fill<R: CryptoRng + ?Sized>(&mut self, consensus: &Consensus, rng: &mut R) -> bool {
        let required = usize::try_from(consensus.parameters().guard_sample()).unwrap_or(MAX_GUARDS);
        let share = ExitShare::of(consensus);
        let sampled =
            |guards: &[Guard], relay: &ConsensusRelay| guards.iter().any(|guard| guard.identity == relay.identity());
        let before = self.guards.len();
        let listed = self.guards.iter().filter(|guard| guard.last_listed == consensus.valid_after()).count();
        for count in listed..required {
            if self.guards.len() >= MAX_GUARDS {
                break;
            }
            let eligible: Vec<PathRelay<'_>> = consensus
                .relays()
                .iter()
                .filter(|relay| relay.flags.contains(Flags::GUARD) && !sampled(&self.guards, relay))
                .map(PathRelay::Listed)
                .filter(|hop| count < MIN_GUARDS || share.weight(hop) > 0)
                .collect();
            let Some(relay) = pick_by_weight(&eligible, |hop| share.weight(hop), rng) else { break };
            self.guards.push(Guard::new(relay.identity(), consensus, rng));
        }
        self.guards.len() != before
    }
}

impl fmt::Debug for GuardSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardSample({} guards)", self.guards.len())
    }
}

impl Guard {
    /// A new guard. `added` is backdated by up to a tenth of the lifetime, so that guards don't expire together and the
    /// date doesn't reveal the time of the choice.
    fn new<R: CryptoRng + ?Sized>(identity: RelayId, consensus: &Consensus, rng: &mut R) -> Self {
        let tenth = lifetime(consensus).as_secs() / 10;
        let added = consensus.valid_after().before(Duration::from_secs(rng.random_range(0..=tenth)));
        Self {
            identity,
            added,
            last_listed: consensus.valid_after(),
            circuits_begun: 0,
            circuits_built: 0,
            next_relays: NextRelays::default(),
            reachability: GuardReachability::default(),
        }
    }

    fn encode(&self) -> schema::SampledGuard {
        schema::SampledGuard {
            identity: self.identity.as_bytes().to_vec(),
            added: self.added.as_unix(),
            listed: self.last_listed.as_unix(),
            circuits_begun: self.circuits_begun,
            circuits_built: self.circuits_built,
            next_relays: self.next_relays.encode(),
        }
    }

    fn decode(guard: &schema::SampledGuard) -> Option<Self> {
        Some(Self {
            identity: decode_identity(&guard.identity)?,
            added: WallTime::from_unix(guard.added),
            last_listed: WallTime::from_unix(guard.listed),
            circuits_begun: guard.circuits_begun,
            circuits_built: guard.circuits_built,
            next_relays: NextRelays::decode(&guard.next_relays)?,
            reachability: GuardReachability::default(),
        })
    }
}

/// The relay `relay`, if the consensus lists it with the flag guard.
fn listed_guard<'a>(consensus: &'a Consensus, relay: &RelayId) -> Option<&'a ConsensusRelay> {
    consensus.relay(relay).filter(|relay| relay.flags.contains(Flags::GUARD))
}

/// The time for which a guard is kept.
fn lifetime(consensus: &Consensus) -> Duration {
    DAY.saturating_mul(u32::try_from(consensus.parameters().guard_lifetime_days()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
