//! Path bias: the circuits of one guard, counted by the relay behind the guard.
//!
//! A guard that ends circuits to honest exits steers its clients to its accomplices. A middle can end circuits too, to
//! make an honest guard suspect. The counts tell both apart: a middle fails behind every guard, a guard with almost
//! every middle (`proto/08-paths.md` §4). Volunteers aren't counted, because their addresses aren't published.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use rand::CryptoRng;

use super::{DAY, Guard, GuardSample, is_guard};
use crate::{
    base::{AddressPrefix, Counter as _, RelayId, WallTime},
    directory::{Consensus, ConsensusRelay, decode_identity, schema},
    path::{hop::PathRelay, weigh::one_in},
};

/// Cap on counted next relays of one guard. The one with the fewest circuits is evicted.
pub(super) const MAX_NEXT: usize = 1024;
/// Number of circuits from which on a pair is rated.
const MIN_CIRCUITS: u16 = 6;
/// Number of built circuits over a pair from which on it works.
const MIN_BUILT: u16 = 2;
/// Number of blocks of addresses of failing next relays that makes a guard suspect; also the number by which the failing
/// relays must outnumber three times the others.
const MIN_BLOCKS: usize = 20;
/// Interval at which the counts are halved.
const HALVED_AFTER: Duration = Duration::from_secs(DAY.as_secs() * 14);

/// Circuits over one guard and one next relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PairCount {
    /// Circuits whose first hop was built.
    begun: u16,
    /// Of these, the circuits that were built to their last hop and not ended at their first use.
    built: u16,
}

impl PairCount {
    /// Whether at least three quarters of enough circuits failed.
    fn fails(self) -> bool {
        self.is_rated() && u32::from(self.built).saturating_mul(4) <= u32::from(self.begun)
    }

    /// Whether at least half of the circuits were built.
    const fn works(self) -> bool {
        self.built >= MIN_BUILT && self.built.saturating_mul(2) >= self.begun
    }

    const fn is_rated(self) -> bool {
        self.begun >= MIN_CIRCUITS
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
        if !self.pairs.contains_key(&next) && self.pairs.len() >= MAX_NEXT {
            let fewest = self.pairs.iter().min_by_key(|(_, count)| count.begun).map(|(relay, _)| *relay);
            fewest.and_then(|relay| self.pairs.remove(&relay));
        }
        let count = self.pairs.entry(next).or_default();
        count.begun.increment();
        count.built = count.built.saturating_add(u16::from(built));
    }

    /// A circuit that was counted as built ended at its first use.
    fn handle_ended(&mut self, next: &RelayId) {
        if let Some(count) = self.pairs.get_mut(next) {
            count.built.decrement();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Halves all counts, and removes empty ones.
    fn halve(&mut self) {
        self.pairs.values_mut().for_each(|count| *count = count.halved());
        self.pairs.retain(|_, count| count.begun > 0);
    }

    /// The next relays that fail, in the order of identities.
    fn failing(&self) -> impl Iterator<Item = RelayId> {
        self.pairs.iter().filter(|(_, count)| count.fails()).map(|(relay, _)| *relay)
    }

    fn works(&self, next: &RelayId) -> bool {
        self.pairs.get(next).is_some_and(|count| count.works())
    }

    /// Relays that should not follow this guard: those that fail, if they are at most a quarter of all relays. A guard
    /// that fails more pairs is the more likely cause, and would steer its clients by them.
    fn avoided_next(&self, consensus: &Consensus) -> Vec<RelayId> {
        let failing: Vec<_> = self.failing().collect();
        if failing.len().saturating_mul(4) <= consensus.relays().len() { failing } else { Vec::new() }
    }

    /// The failing next relays of a suspect guard: they are in enough blocks of addresses, and far more than the others.
    /// Middles of which half are hostile don't reach this margin by chance.
    fn failing_if_suspect(&self, consensus: &Consensus) -> Option<Vec<RelayId>> {
        let rated = self.pairs.values().filter(|count| count.is_rated()).count();
        let failing: Vec<_> = self.failing().collect();
        let others = rated.saturating_sub(failing.len());
        let many = failing.len() >= others.saturating_mul(3).saturating_add(MIN_BLOCKS);
        (many && blocks(consensus, failing.iter()) >= MIN_BLOCKS).then_some(failing)
    }
}

impl GuardSample {
    /// Counts a circuit whose first hop, the guard, was built, and whether the circuit was `built` completely. `next` is
    /// the relay behind the guard, `None` for a volunteer. A single failure beyond a guard never changes the guard.
    /// Otherwise relays that fail circuits could move a client to their own guard.
    pub fn handle_circuit(&mut self, relay: &RelayId, next: Option<RelayId>, built: bool) {
        self.counted = true;
        if let Some(guard) = self.guard(relay) {
            guard.circuits_begun.increment();
            guard.circuits_built = guard.circuits_built.saturating_add(u64::from(built));
            let most_fail = guard.circuits_built < guard.circuits_begun / 2;
            if most_fail && guard.circuits_begun % 100 == 0 {
                tracing::warn!("most circuits through one guard fail beyond it");
            }
            if let Some(next) = next {
                guard.next.count(next, built);
            }
        }
    }

    /// A circuit that was counted as built was ended by a relay before or soon after its first use.
    pub fn handle_early_end(&mut self, relay: &RelayId, next: Option<RelayId>) {
        self.counted = true;
        if let Some(guard) = self.guard(relay) {
            guard.circuits_built.decrement();
            if let Some(next) = next {
                guard.next.handle_ended(&next);
            }
        }
    }

    /// Relays that should not follow this guard.
    pub(in crate::path) fn avoided_next(&self, consensus: &Consensus, guard: &RelayId) -> Vec<RelayId> {
        let guard = self.guards.iter().find(|it| it.identity == *guard);
        guard.map(|guard| guard.next.avoided_next(consensus)).unwrap_or_default()
    }

    /// A pair of relays to measure while a guard is suspect: another usable primary, and a relay that fails behind the
    /// suspect guard.
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
        let usable = usable.filter_map(|guard| is_guard(consensus, &guard.identity)).map(PathRelay::Listed);
        let (guard, next) = (one_in(&usable.collect::<Vec<_>>(), rng)?, one_in(&unmeasured, rng)?);
        Some((consensus.relay(&guard.identity())?, next.identity()))
    }

    /// Removes a guard that is the cause of failures, at most one. Halves the counts with time.
    pub(super) fn remove_biased_guard(&mut self, consensus: &Consensus) {
        let biased = |(guard, failing): &(&Guard, Vec<RelayId>)| {
            is_biased(consensus, failing, &self.counts_without(guard)).then_some(guard.identity)
        };
        let (suspects, guard) = {
            let suspects: Vec<_> = self.suspects(consensus).collect();
            (suspects.len(), suspects.iter().find_map(biased))
        };
        if let Some(guard) = guard {
            tracing::warn!("a guard is replaced: circuits fail behind it, but not behind another guard");
            self.guards.retain(|it| it.identity != guard);
        } else if suspects > 0 {
            tracing::warn!("circuits to most relays behind one guard fail");
        }
        self.age(consensus.valid_after());
    }

    fn suspects(&self, consensus: &Consensus) -> impl Iterator<Item = (&Guard, Vec<RelayId>)> {
        self.primaries().filter_map(|guard| Some((guard, guard.next.failing_if_suspect(consensus)?)))
    }

    /// The counts of the primaries except one.
    fn counts_without(&self, guard: &Guard) -> Vec<&NextRelays> {
        self.primaries().filter(|other| other.identity != guard.identity).map(|other| &other.next).collect()
    }

    fn age(&mut self, today: WallTime) {
        let due = self.halved.is_some_and(|at| today.since(at) >= HALVED_AFTER);
        if due || self.halved.is_none() {
            self.halved = Some(today);
        }
        let primaries: Vec<_> = self.primaries().map(|guard| guard.identity).collect();
        for guard in &mut self.guards {
            if !primaries.contains(&guard.identity) {
                guard.next = NextRelays::default();
            } else if due {
                guard.next.halve();
            }
        }
    }
}

/// Whether a suspect guard is the cause: enough of its `failing` next relays work behind one of the `others`, and at
/// least three quarters of those measured there.
fn is_biased(consensus: &Consensus, failing: &[RelayId], others: &[&NextRelays]) -> bool {
    let measured = failing.iter().filter(|relay| is_measured(relay, others)).count();
    let works = |relay: &&RelayId| others.iter().any(|other| other.works(relay));
    let working: Vec<_> = failing.iter().filter(works).collect();
    let many = working.len().saturating_mul(4) >= measured.saturating_mul(3);
    many && blocks(consensus, working.into_iter()) >= MIN_BLOCKS
}

/// Whether enough circuits behind one of the `others` show if the relay works.
fn is_measured(relay: &RelayId, others: &[&NextRelays]) -> bool {
    let measured = |count: &PairCount| count.works() || count.begun >= MIN_BUILT.saturating_mul(2);
    others.iter().any(|other| other.pairs.get(relay).is_some_and(measured))
}

/// The number of blocks of addresses of these relays: one for each relay, of its IPv4 address if it has one.
fn blocks<'a>(consensus: &Consensus, relays: impl Iterator<Item = &'a RelayId>) -> usize {
    let relays = relays.filter_map(|relay| consensus.relay(relay));
    let addresses = relays.filter_map(|relay| relay.profile.addresses.iter().map(core::net::SocketAddr::ip).min());
    addresses.map(AddressPrefix::block).collect::<BTreeSet<_>>().len()
}

impl NextRelays {
    pub(super) fn encode(&self) -> Vec<schema::NextRelay> {
        let encode = |(relay, count): (&RelayId, &PairCount)| schema::NextRelay {
            identity: relay.as_bytes().to_vec(),
            circuits_begun: count.begun.into(),
            circuits_built: count.built.into(),
        };
        self.pairs.iter().map(encode).collect()
    }

    pub(super) fn decode(pairs: &[schema::NextRelay]) -> Option<Self> {
        if pairs.len() > MAX_NEXT {
            return None;
        }
        let decode = |pair: &schema::NextRelay| {
            let begun = u16::try_from(pair.circuits_begun).ok()?;
            let built = u16::try_from(pair.circuits_built).ok()?;
            Some((decode_identity(&pair.identity)?, PairCount { begun, built }))
        };
        Some(Self { pairs: pairs.iter().map(decode).collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests;
