//! The order of proofs: proved relays have places of their own, and unproved relays take turns by their publishers.
//!
//! The addresses of an unproved relay are only claimed, and a dial without an answer takes a place for seconds. So the
//! turns follow the networks and sources from which the descriptors came.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use core::time::Duration;

use super::{Proof, RelayEntries, RelayEntry, count_prefixes, unproved_queue::UnprovedQueue};
use crate::{
    base::{AddressPrefix, Counter as _, Deadlines, DialTarget, Instant, RelayId, WallTime},
    directory::{
        DESCRIPTOR_LIFETIME,
        authority::{Publisher, instant},
    },
};

/// Time after which a proof without an outcome counts as failed.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum running proofs at addresses in one [`AddressPrefix::network`].
const MAX_PROOFS_OF_NETWORK: usize = 4;
/// Maximum running proofs of unproved relays whose descriptors came from one [`AddressPrefix::network`].
const MAX_PROOFS_OF_PUBLISHER: usize = 4;

/// The deadlines of relays, and the due proofs. A turn handles no other relays.
#[derive(Default)]
pub(super) struct ProofSchedule {
    /// The next deadline of each relay: its descriptor becomes stale, its proof is due, or its proof times out.
    deadlines: Deadlines<RelayId>,
    /// The relays whose proofs run.
    running: BTreeSet<RelayId>,
    /// The relays whose proofs are due and haven't started for lack of a place.
    waiting: BTreeMap<RelayId, DueProof>,
    /// The due proofs of proved relays, the longest due first.
    proved: BTreeSet<(WallTime, RelayId)>,
    /// The due proofs of unproved relays.
    unproved: UnprovedQueue,
    /// The number of publishers' networks that were examined for the starts of proofs.
    #[cfg(test)]
    examined_networks: u64,
}

/// The time from which on a proof is due, and the publisher if the relay is unproved.
type DueProof = (WallTime, Option<Publisher>);

impl ProofSchedule {
    /// Updates the schedule after a change of the relay.
    pub(super) fn update(&mut self, entry: &RelayEntry) {
        let relay = entry.identity();
        self.remove(&relay);
        let at = match entry.proof {
            Proof::Due(at) => at,
            Proof::Running { at, .. } => {
                self.running.insert(relay);
                at.after(PROOF_TIMEOUT)
            }
        };
        self.deadlines.set(relay, instant(at.min(stale_at(entry))));
    }

    /// Removes a relay.
    pub(super) fn remove(&mut self, relay: &RelayId) {
        self.deadlines.remove(*relay);
        self.running.remove(relay);
        let Some((at, publisher)) = self.waiting.remove(relay) else { return };
        match publisher {
            None => _ = self.proved.remove(&(at, *relay)),
            Some(publisher) => self.unproved.remove(&publisher, at, *relay),
        }
    }

    /// Queues the proof of a relay, due since `at`, until there is a place.
    fn queue_proof(&mut self, entry: &RelayEntry, at: WallTime) {
        let relay = entry.identity();
        self.remove(&relay);
        let publisher = (!entry.is_proved()).then_some(entry.publisher);
        match publisher {
            None => _ = self.proved.insert((at, relay)),
            Some(publisher) => self.unproved.insert(&publisher, at, relay),
        }
        self.waiting.insert(relay, (at, publisher));
        self.deadlines.set(relay, instant(stale_at(entry)));
    }
}

/// The time from which on the relay's descriptor is stale.
fn stale_at(entry: &RelayEntry) -> WallTime {
    entry.descriptor.published.after(DESCRIPTOR_LIFETIME).after(Duration::from_secs(1))
}

/// Counts of running proofs.
struct RunningProofs {
    /// Proofs of proved relays.
    proved: usize,
    /// Proofs of unproved relays.
    unproved: usize,
    /// All proofs, by the networks of the relays' addresses.
    by_network: BTreeMap<AddressPrefix, usize>,
    /// Proofs of unproved relays, by the networks of the publishers.
    by_publisher: BTreeMap<AddressPrefix, usize>,
}

impl RunningProofs {
    fn of(entries: &RelayEntries) -> Self {
        let running = || entries.schedule.running.iter().filter_map(|relay| entries.entries.get(relay));
        let unproved = || running().filter(|entry| !entry.is_proved());
        Self {
            proved: running().count().saturating_sub(unproved().count()),
            unproved: unproved().count(),
            by_network: count_prefixes(running().flat_map(RelayEntry::networks)),
            by_publisher: count_prefixes(unproved().map(|entry| entry.publisher.network)),
        }
    }

    fn add(&mut self, entry: &RelayEntry) {
        if entry.is_proved() {
            self.proved.increment();
        } else {
            self.unproved.increment();
            self.by_publisher.entry(entry.publisher.network).or_default().increment();
        }
        for network in entry.networks() {
            self.by_network.entry(network).or_default().increment();
        }
    }

    /// Whether there is a place for a proof of some relay, proved or not, so that at most `max_proofs` run. Half of the
    /// places are for proved relays, and half for unproved ones. If `uncapped` is set, only `max_proofs` applies.
    const fn has_place(&self, is_proved: bool, max_proofs: usize, uncapped: bool) -> bool {
        if uncapped {
            return self.proved.saturating_add(self.unproved) < max_proofs;
        }
        let running = if is_proved { self.proved } else { self.unproved };
        running < max_proofs / 2
    }

    /// Whether a proof of an unproved relay of a publisher in `network` may run.
    fn admits_publisher(&self, network: AddressPrefix, uncapped: bool) -> bool {
        uncapped || is_below(&self.by_publisher, network, MAX_PROOFS_OF_PUBLISHER)
    }

    /// Whether a proof at the addresses of `entry` may run.
    fn admits_networks(&self, entry: &RelayEntry, uncapped: bool) -> bool {
        uncapped || entry.networks().all(|network| is_below(&self.by_network, network, MAX_PROOFS_OF_NETWORK))
    }
}

fn is_below(counts: &BTreeMap<AddressPrefix, usize>, network: AddressPrefix, cap: usize) -> bool {
    counts.get(&network).is_none_or(|count| *count < cap)
}

impl RelayEntries {
    /// Handles the relays with a due deadline: removes those with stale descriptors, fails proofs without an outcome,
    /// and queues due proofs. `interval` is the maximum time to the next try of a failed proof. Returns the removed
    /// relays.
    pub(in super::super) fn handle_due(&mut self, now: WallTime, interval: Duration) -> Vec<RelayEntry> {
        let mut stale = Vec::new();
        while let Some(relay) = self.schedule.deadlines.pop_due(instant(now)) {
            let Some(entry) = self.entries.get_mut(&relay) else { continue };
            if entry.descriptor.is_stale(now) {
                stale.extend(self.remove(&relay));
                continue;
            }
            match entry.proof {
                Proof::Due(at) if at <= now => {
                    self.schedule.queue_proof(entry, at);
                    continue;
                }
                Proof::Running { at, .. } if now >= at.after(PROOF_TIMEOUT) => entry.handle_failed(now, interval),
                _ => {}
            }
            self.counts.update(entry);
            self.schedule.update(entry);
        }
        stale
    }

    /// Starts proofs of waiting relays, so that at most `max_proofs` run: proofs of proved relays the longest due
    /// first, proofs of unproved relays by turns of their publishers. Returns the dials.
    pub(in super::super) fn start_proofs(&mut self, now: WallTime, max_proofs: usize) -> Vec<DialTarget> {
        let mut running = RunningProofs::of(self);
        let mut dials = Vec::new();
        while running.has_place(true, max_proofs, self.uncapped)
            && let Some(relay) = self.first_admitted(&running, self.schedule.proved.iter())
        {
            dials.extend(self.start(now, &relay, &mut running));
        }
        // A network without an admitted relay has none during the rest of this call, because no proof ends meanwhile.
        // Few relays have addresses in networks with the maximum of running proofs (`MAX_UNPROVED_OF_NETWORK`).
        let mut turn = None;
        while running.has_place(false, max_proofs, self.uncapped)
            && let Some(next) = self.schedule.unproved.next_network(turn)
        {
            #[cfg(test)]
            self.schedule.examined_networks.increment();
            turn = Some(next);
            let (_, network) = next;
            if !running.admits_publisher(network, self.uncapped) {
                continue;
            }
            if let Some(relay) = self.first_admitted(&running, self.schedule.unproved.of_network(network))
                && let Some(publisher) = self.entries.get(&relay).map(|entry| entry.publisher)
            {
                dials.extend(self.start(now, &relay, &mut running));
                self.schedule.unproved.take_turn(&publisher);
            }
        }
        if self.schedule.unproved.turns_len() > self.entries.len().saturating_mul(4) {
            self.remove_old_turns();
        }
        dials
    }

    /// The first of the due relays at whose addresses a proof may run.
    fn first_admitted<'a>(
        &self,
        running: &RunningProofs,
        mut due: impl Iterator<Item = &'a (WallTime, RelayId)>,
    ) -> Option<RelayId> {
        let is_admitted = |relay: &RelayId| {
            self.entries.get(relay).is_some_and(|entry| running.admits_networks(entry, self.uncapped))
        };
        due.find(|(_, relay)| is_admitted(relay)).map(|(_, relay)| *relay)
    }

    /// Starts the proof of `relay` and returns its dials.
    fn start(&mut self, now: WallTime, relay: &RelayId, running: &mut RunningProofs) -> Vec<DialTarget> {
        let Some(entry) = self.entries.get_mut(relay) else {
            self.schedule.remove(relay);
            return Vec::new();
        };
        running.add(entry);
        let dials = entry.start_proof(now);
        self.counts.update(entry);
        self.schedule.update(entry);
        dials
    }

    /// Removes the turns of publishers of which no relay is stored.
    fn remove_old_turns(&mut self) {
        let publishers = || self.entries.values().map(|entry| entry.publisher);
        let known: HashSet<AddressPrefix> =
            publishers().flat_map(|publisher| [publisher.network, publisher.source]).collect();
        self.schedule.unproved.retain_turns(|prefix| known.contains(prefix));
    }

    /// The next time for [`Self::handle_due`]. A relay that waits for a place is started after the end of another
    /// proof.
    pub(in super::super) fn next_visit(&self) -> Option<WallTime> {
        let earliest = self.schedule.deadlines.earliest()?;
        Some(WallTime::from_unix(earliest.since(Instant::START).as_secs()))
    }
}

#[cfg(test)]
impl RelayEntries {
    /// The number of publishers' networks that were examined for the starts of proofs.
    pub(in super::super) fn examined_networks(&self) -> u64 {
        self.schedule.examined_networks
    }
}

#[cfg(any(test, fuzzing))]
impl RelayEntries {
    /// Asserts that the counts and the schedule agree with the relays after a turn at `now`: each relay is in its
    /// place, and each due proof that may run does run.
    pub(in super::super) fn assert_scheduled(&self, now: WallTime, max_proofs: usize) {
        let Self { entries, counts, schedule, uncapped, .. } = self;
        counts.assert_counted(entries);
        let running = RunningProofs::of(self);
        for (relay, entry) in entries {
            assert_eq!(schedule.running.contains(relay), entry.is_being_proved());
            let Proof::Due(at) = entry.proof else { continue };
            let Some((due, publisher)) = schedule.waiting.get(relay) else {
                assert!(at > now, "a due proof neither runs nor waits");
                continue;
            };
            assert_eq!((*due, publisher.is_none()), (at, entry.is_proved()));
            let is_queued = match publisher {
                None => schedule.proved.contains(&(at, *relay)),
                Some(publisher) => *publisher == entry.publisher && schedule.unproved.contains(publisher, at, *relay),
            };
            assert!(is_queued);
            let may_run = running.has_place(entry.is_proved(), max_proofs, *uncapped)
                && running.admits_networks(entry, *uncapped)
                && (entry.is_proved() || running.admits_publisher(entry.publisher.network, *uncapped));
            assert!(!may_run, "a due proof waits despite a free place");
        }
        let queued = schedule.proved.len() + schedule.unproved.len();
        assert_eq!(queued, schedule.waiting.len());
        assert!(schedule.waiting.keys().chain(&schedule.running).all(|relay| entries.contains_key(relay)));
        assert_eq!(schedule.deadlines.len(), entries.len());
    }
}
