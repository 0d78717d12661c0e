//! Path bias: the circuits through each guard, counted by the relay behind the guard.
//!
//! A guard that ends circuits to honest exits steers its clients to its accomplices. A middle can end circuits too, to
//! make an honest guard suspect. The counts distinguish the two: a hostile middle fails behind every guard, but behind
//! a hostile guard almost every middle fails (`proto/08-paths.md` §4). Volunteers aren't counted, because their
//! addresses aren't published.
//!
//! With layer-2 guards, few relays are behind a guard. A layer-2 guard whose circuits fail is replaced, so that a hostile
//! guard soon has failed circuits over many relays. Hostile layer-2 guards that fail circuits give their places to
//! others, until the remaining ones work.

use core::time::Duration;
use std::collections::BTreeMap;

use rand::CryptoRng;

use super::{DAY, Guard, GuardSample, listed_guard};
use crate::{
    base::{AddressPrefix, Counter as _, RelayId, WallTime},
    directory::{Consensus, ConsensusRelay, decode_identity, schema},
    path::{hop::PathRelay, weigh::pick_uniformly},
};

/// Cap on counted next relays of one guard. The one with the fewest circuits is evicted.
pub(super) const MAX_NEXT_RELAYS: usize = 1024;
/// Minimum circuits over a pair for a rating of the pair.
const MIN_RATED_CIRCUITS: u16 = 6;
/// Minimum built circuits over a pair that works.
const MIN_BUILT_CIRCUITS: u16 = 2;
/// Minimum circuits over a failing pair before its layer-2 guard is replaced.
const MIN_CIRCUITS_OF_REPLACED: u16 = 20;
/// Minimum address blocks of the failing next relays of a suspect guard. Also the number by which these relays must
/// outnumber three times the other rated ones.
const MIN_FAILING_BLOCKS: usize = 20;
/// Interval at which the counts are halved.
const HALVING_INTERVAL: Duration = Duration::from_secs(DAY.as_secs() * 14);

/// Counts of the circuits over one pair: a guard and the relay behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PairCount {
    /// Circuits whose first hop was built.
    begun: u16,
    /// Of these, the circuits that were built to their last hop and not ended early by a relay.
    built: u16,
}

impl PairCount {
    /// Whether the pair is rated, and at least three quarters of its circuits failed.
    fn fails(self) -> bool {
        self.is_rated() && u32::from(self.built).saturating_mul(4) <= u32::from(self.begun)
    }

    /// Whether at least two circuits, and at least half of all, were built.
    const fn works(self) -> bool {
        self.built >= MIN_BUILT_CIRCUITS && self.built.saturating_mul(2) >= self.begun
    }

    /// Whether the circuits are enough to rate the pair.
    const fn is_rated(self) -> bool {
        self.begun >= MIN_RATED_CIRCUITS
    }

    const fn halved(self) -> Self {
        Self { begun: self.begun / 2, built: self.built / 2 }
    }
}

/// Counts of the relays behind one guard.
#[derive(Clone, Default)]
pub(super) struct NextRelays {
    pairs: BTreeMap<RelayId, PairCount>,
}

impl NextRelays {
    /// Counts a circuit.
    fn count(&mut self, next: RelayId, built: bool) {
        if !self.pairs.contains_key(&next) && self.pairs.len() >= MAX_NEXT_RELAYS {
            let fewest = self.pairs.iter().min_by_key(|(_, count)| count.begun).map(|(relay, _)| *relay);
            fewest.and_then(|relay| self.pairs.remove(&relay));
        }
        let count = self.pairs.entry(next).or_default();
        count.begun.increment();
        count.built = count.built.saturating_add(u16::from(built));
    }

    /// A circuit that was counted as built was ended early by a relay.
    fn handle_early_end(&mut self, next: &RelayId) {
        if let Some(count) = self.pairs.get_mut(next) {
            count.built.decrement();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Halves the counts of the relays for which `is_kept` holds. Removes all others, and empty ones.
    fn halve(&mut self, is_kept: impl Fn(&RelayId) -> bool) {
        self.pairs.values_mut().for_each(|count| *count = count.halved());
        self.pairs.retain(|relay, count| count.begun > 0 && is_kept(relay));
    }

    /// The next relays that fail, after enough circuits to replace them as layer-2 guards.
    pub(super) fn failing_often(&self) -> impl Iterator<Item = RelayId> {
        let often = self.pairs.iter().filter(|(_, count)| count.fails() && count.begun >= MIN_CIRCUITS_OF_REPLACED);
        often.map(|(relay, _)| *relay)
    }

    /// The next relays that fail, in the order of identities.
    pub(super) fn failing(&self) -> impl Iterator<Item = RelayId> {
        self.pairs.iter().filter(|(_, count)| count.fails()).map(|(relay, _)| *relay)
    }

    /// Whether the pair with the relay `next` works.
    fn works(&self, next: &RelayId) -> bool {
        self.pairs.get(next).is_some_and(|count| count.works())
    }

    /// Relays that should not follow this guard: the failing next relays, if they are at most a quarter of all relays.
    /// If more pairs fail, the guard is the more likely cause, and could steer its clients by ending circuits.
    fn avoided_next(&self, consensus: &Consensus) -> Vec<RelayId> {
        let failing: Vec<_> = self.failing().collect();
        if failing.len().saturating_mul(4) <= consensus.relays().len() { failing } else { Vec::new() }
    }

    /// The failing next relays if the guard is suspect: they are in enough address blocks, and outnumber the other
    /// rated relays by far. If half of the middles are hostile, they don't reach this margin by chance.
    fn failing_if_suspect(&self, consensus: &Consensus) -> Option<Vec<RelayId>> {
        let rated = self.pairs.values().filter(|count| count.is_rated()).count();
        let failing: Vec<_> = self.failing().collect();
        let others = rated.saturating_sub(failing.len());
        let many = failing.len() >= others.saturating_mul(3).saturating_add(MIN_FAILING_BLOCKS);
        (many && blocks(consensus, failing.iter()) >= MIN_FAILING_BLOCKS).then_some(failing)
    }
}

impl GuardSample {
    /// Counts a circuit whose first hop, the guard `relay`, was built. `built` states whether all hops were built.
    /// `next` is the relay behind the guard, `None` on a path with a volunteer. A single failure beyond a guard never
    /// changes the guard. Otherwise relays that fail circuits could move a client to malicious guards.
    pub fn handle_circuit(&mut self, relay: &RelayId, next: Option<RelayId>, built: bool) {
        self.counts_changed = true;
        if let Some(guard) = self.guard(relay) {
            guard.circuits_begun.increment();
            guard.circuits_built = guard.circuits_built.saturating_add(u64::from(built));
            let most_fail = guard.circuits_built < guard.circuits_begun / 2;
            if most_fail && guard.circuits_begun % 100 == 0 {
                tracing::warn!("most circuits through one guard fail beyond it");
            }
            if let Some(next) = next {
                guard.next_relays.count(next, built);
            }
        }
    }

    /// Counts a circuit as failed that was counted as built: a relay ended it before or soon after its first use.
    pub fn handle_early_end(&mut self, relay: &RelayId, next: Option<RelayId>) {
        self.counts_changed = true;
        if let Some(guard) = self.guard(relay) {
            guard.circuits_built.decrement();
            if let Some(next) = next {
                guard.next_relays.handle_early_end(&next);
            }
        }
    }

    /// Relays that should not follow the guard `guard` on a path.
    pub(in crate::path) fn avoided_next(&self, consensus: &Consensus, guard: &RelayId) -> Vec<RelayId> {
        let guard = self.guards.iter().find(|it| it.identity == *guard);
        guard.map(|guard| guard.next_relays.avoided_next(consensus)).unwrap_or_default()
    }

    /// A pair of relays to measure while a guard is suspect: another usable primary, and an unmeasured relay that fails
    /// behind the suspect guard.
    pub(in crate::path) fn measurement<'a, R: CryptoRng + ?Sized>(
        &self,
        consensus: &'a Consensus,
        rng: &mut R,
    ) -> Option<(&'a ConsensusRelay, RelayId)> {
        let (suspect, failing) = self.suspects(consensus).next()?;
        let counts = self.counts_without(suspect);
        let unmeasured = failing.iter().filter(|relay| !is_measured(relay, &counts));
        let unmeasured: Vec<_> = unmeasured.filter_map(|relay| consensus.relay(relay)).map(PathRelay::Listed).collect();
        let usable =
            self.primaries().filter(|guard| guard.identity != suspect.identity && guard.reachability.is_usable());
        let usable = usable.filter_map(|guard| listed_guard(consensus, &guard.identity)).map(PathRelay::Listed);
        let (guard, next) = (pick_uniformly(&usable.collect::<Vec<_>>(), rng)?, pick_uniformly(&unmeasured, rng)?);
        Some((consensus.relay(&guard.identity())?, next.identity()))
    }

    /// Removes at most one suspect guard that is the cause of the failures behind it. Halves the counts at intervals.
    pub(super) fn remove_biased_guard(&mut self, consensus: &Consensus) {
        let biased = |(guard, failing): &(&Guard, Vec<RelayId>)| {
            is_biased(consensus, failing, &self.counts_without(guard)).then_some(guard.identity)
        };
        let (suspects, removed) = {
            let suspects: Vec<_> = self.suspects(consensus).collect();
            (suspects.len(), suspects.iter().find_map(biased))
        };
        if let Some(guard) = removed {
            tracing::warn!("replaced a guard: its circuits fail at relays that work behind another guard");
            self.guards.retain(|it| it.identity != guard);
        } else if suspects > 0 {
            tracing::warn!("circuits to most relays behind one guard fail");
        }
        self.age(consensus.valid_after());
    }

    /// The suspect primaries, with their failing next relays.
    fn suspects(&self, consensus: &Consensus) -> impl Iterator<Item = (&Guard, Vec<RelayId>)> {
        self.primaries().filter_map(|guard| Some((guard, guard.next_relays.failing_if_suspect(consensus)?)))
    }

    /// The counts of the primaries except one.
    fn counts_without(&self, guard: &Guard) -> Vec<&NextRelays> {
        self.primaries().filter(|other| other.identity != guard.identity).map(|other| &other.next_relays).collect()
    }

    /// Halves the counts if the interval has passed at the date of a consensus. Then deletes the counts of relays that
    /// are no longer layer-2 guards. Otherwise the counts of earlier layer-2 guards, which get no more circuits, would
    /// outnumber those of the present ones. Deletes the counts of other guards than the primaries.
    fn age(&mut self, date: WallTime) {
        let due = self.halved_at.is_some_and(|at| date.since(at) >= HALVING_INTERVAL);
        if due || self.halved_at.is_none() {
            self.halved_at = Some(date);
        }
        let primaries: Vec<_> = self.primaries().map(|guard| guard.identity).collect();
        let Self { guards, layer_two, .. } = self;
        for guard in guards {
            if !primaries.contains(&guard.identity) {
                guard.next_relays = NextRelays::default();
            } else if due {
                guard.next_relays.halve(|relay| !layer_two.is_on() || layer_two.contains(relay));
            }
        }
    }
}

/// Whether a suspect guard is the cause of the failures behind it. Its `failing` next relays must work behind one of
/// the other primaries, whose counts are `others`: in enough address blocks, and at least three quarters of those
/// measured.
fn is_biased(consensus: &Consensus, failing: &[RelayId], others: &[&NextRelays]) -> bool {
    let measured = failing.iter().filter(|relay| is_measured(relay, others)).count();
    let works = |relay: &&RelayId| others.iter().any(|other| other.works(relay));
    let working: Vec<_> = failing.iter().filter(works).collect();
    let many = working.len().saturating_mul(4) >= measured.saturating_mul(3);
    many && blocks(consensus, working.into_iter()) >= MIN_FAILING_BLOCKS
}

/// Whether the circuits behind one of the other primaries are enough to show whether the relay works.
fn is_measured(relay: &RelayId, others: &[&NextRelays]) -> bool {
    let measured = |count: &PairCount| count.works() || count.begun >= MIN_BUILT_CIRCUITS.saturating_mul(2);
    others.iter().any(|other| other.pairs.get(relay).is_some_and(measured))
}

/// The number of address blocks of these relays. One block counts for each relay: that of its IPv4 address, if any.
fn blocks<'a>(consensus: &Consensus, relays: impl Iterator<Item = &'a RelayId>) -> usize {
    let relays = relays.filter_map(|relay| consensus.relay(relay));
    let addresses = relays.filter_map(|relay| relay.profile.addresses.iter().map(core::net::SocketAddr::ip).min());
    let mut blocks = Vec::new();
    for block in addresses.map(AddressPrefix::block) {
        if let Err(place) = blocks.binary_search(&block) {
            blocks.insert(place, block);
        }
    }
    blocks.len()
}

impl NextRelays {
    /// Encodes the counts for storage.
    pub(super) fn encode(&self) -> Vec<schema::NextRelay> {
        let encode = |(relay, count): (&RelayId, &PairCount)| schema::NextRelay {
            identity: relay.as_bytes().to_vec(),
            circuits_begun: count.begun.into(),
            circuits_built: count.built.into(),
        };
        self.pairs.iter().map(encode).collect()
    }

    /// Decodes the output of [`Self::encode`]; `None` if it is invalid.
    pub(super) fn decode(pairs: &[schema::NextRelay]) -> Option<Self> {
        if pairs.len() > MAX_NEXT_RELAYS {
            return None;
        }
        let mut decoded = BTreeMap::new();
        // Inserted one by one, because `collect` would sort the pairs first (see `gateway_ranking`).
        for pair in pairs {
            let begun = u16::try_from(pair.circuits_begun).ok()?;
            let built = u16::try_from(pair.circuits_built).ok()?;
            decoded.insert(decode_identity(&pair.identity)?, PairCount { begun, built });
        }
        Some(Self { pairs: decoded })
    }
}

#[cfg(test)]
mod tests;
