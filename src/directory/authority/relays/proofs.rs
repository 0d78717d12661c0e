//! The order of proofs: proved relays have places of their own, and unproved relays take turns by their publishers.
//!
//! The addresses of an unproved relay are only claimed, and a dial without an answer takes a place for seconds. So the
//! turns follow the networks and sources from which the descriptors came.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use core::time::Duration;

use super::{Proof, RelayEntries, RelayEntry, count_prefixes};
use crate::{
    base::{AddressPrefix, Counter as _, DialTarget, RelayId, WallTime},
    directory::authority::Publisher,
};

/// Maximum running proofs at addresses in one [`AddressPrefix::network`].
const MAX_PROOFS_OF_NETWORK: usize = 4;
/// Maximum running proofs of unproved relays whose descriptors came from one [`AddressPrefix::network`].
const MAX_PROOFS_OF_PUBLISHER: usize = 4;

/// The last turns of publishers, by network and by source.
#[derive(Default)]
pub(super) struct Turns {
    last_turns: HashMap<AddressPrefix, u64>,
    /// The number of turns so far.
    count: u64,
}

impl Turns {
    /// The last turns of the publisher's network and of its source; 0 for none.
    fn of(&self, publisher: &Publisher) -> (u64, u64) {
        let last = |prefix| self.last_turns.get(prefix).copied().unwrap_or_default();
        (last(&publisher.network), last(&publisher.source))
    }

    /// Records a turn of the publisher.
    fn take(&mut self, publisher: &Publisher) {
        self.count.increment();
        self.last_turns.insert(publisher.network, self.count);
        self.last_turns.insert(publisher.source, self.count);
    }
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
        let running = || entries.entries.values().filter(|entry| entry.is_being_proved());
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

    /// Whether a proof of `entry` may run, so that at most `max_proofs` run. Half of the places are for proved relays,
    /// and half for unproved ones. If `uncapped` is set, only `max_proofs` applies.
    fn admits(&self, entry: &RelayEntry, max_proofs: usize, uncapped: bool) -> bool {
        if uncapped {
            return self.proved.saturating_add(self.unproved) < max_proofs;
        }
        let is_below = |counts: &BTreeMap<AddressPrefix, usize>, network: AddressPrefix, cap| {
            counts.get(&network).is_none_or(|count| *count < cap)
        };
        let half = max_proofs / 2;
        let has_place = if entry.is_proved() {
            self.proved < half
        } else {
            self.unproved < half && is_below(&self.by_publisher, entry.publisher.network, MAX_PROOFS_OF_PUBLISHER)
        };
        has_place && entry.networks().all(|network| is_below(&self.by_network, network, MAX_PROOFS_OF_NETWORK))
    }
}

impl RelayEntries {
    /// Fails proofs that began at least `timeout` ago. `interval` is the maximum time to the next try.
    pub(in super::super) fn time_out_proofs(&mut self, now: WallTime, timeout: Duration, interval: Duration) {
        for entry in self.entries.values_mut() {
            if matches!(entry.proof, Proof::Running { at, .. } if now >= at.after(timeout)) {
                entry.handle_failed(now, interval);
            }
        }
    }

    /// Starts due proofs, so that at most `max_proofs` run: proofs of proved relays the longest due first, proofs of
    /// unproved relays by turns of their publishers. Returns the dials.
    pub(in super::super) fn start_proofs(&mut self, now: WallTime, max_proofs: usize) -> Vec<DialTarget> {
        let mut running = RunningProofs::of(self);
        let (mut proved, mut unproved) = (Vec::new(), BTreeMap::<Publisher, Vec<(WallTime, RelayId)>>::new());
        for (relay, entry) in &self.entries {
            match entry.proof {
                Proof::Due(at) if at <= now && entry.is_proved() => proved.push((at, *relay)),
                Proof::Due(at) if at <= now => unproved.entry(entry.publisher).or_default().push((at, *relay)),
                _ => {}
            }
        }
        let mut dials = Vec::new();
        proved.sort_unstable();
        for (_, relay) in proved {
            dials.extend(self.start(now, &relay, &mut running, max_proofs));
        }
        for due in unproved.values_mut() {
            // The longest due is the last, because `pop` takes the last.
            due.sort_unstable_by(|one, other| other.cmp(one));
        }
        let mut order: BTreeSet<_> = unproved.keys().map(|publisher| (self.turns.of(publisher), *publisher)).collect();
        while let Some((turn, publisher)) = order.pop_first() {
            // The turn has changed if another source of the network had a turn since.
            let current = self.turns.of(&publisher);
            if current != turn {
                order.insert((current, publisher));
                continue;
            }
            let due = unproved.get_mut(&publisher).into_iter();
            let started = due.flat_map(|due| core::iter::from_fn(|| due.pop())).find_map(|(_, relay)| {
                Some(self.start(now, &relay, &mut running, max_proofs)).filter(|started| !started.is_empty())
            });
            if let Some(started) = started {
                dials.extend(started);
                self.turns.take(&publisher);
                order.insert((self.turns.of(&publisher), publisher));
            }
        }
        if self.turns.last_turns.len() > self.entries.len().saturating_mul(4) {
            self.remove_old_turns();
        }
        dials
    }

    /// Starts the proof of `relay` and returns its dials; none if the proof may not run yet.
    fn start(
        &mut self,
        now: WallTime,
        relay: &RelayId,
        running: &mut RunningProofs,
        max_proofs: usize,
    ) -> Vec<DialTarget> {
        let uncapped = self.uncapped;
        let Some(entry) = self.entries.get_mut(relay).filter(|entry| running.admits(entry, max_proofs, uncapped))
        else {
            return Vec::new();
        };
        running.add(entry);
        entry.start_proof(now)
    }

    /// Removes the turns of publishers of which no relay is stored.
    fn remove_old_turns(&mut self) {
        let publishers = || self.entries.values().map(|entry| entry.publisher);
        let known: HashSet<AddressPrefix> =
            publishers().flat_map(|publisher| [publisher.network, publisher.source]).collect();
        self.turns.last_turns.retain(|prefix, _| known.contains(prefix));
    }

    /// The next time at which a proof that may run is due, or a running proof fails after `timeout`.
    pub(in super::super) fn next_deadline(&self, timeout: Duration, max_proofs: usize) -> Option<WallTime> {
        let running = RunningProofs::of(self);
        let deadline = |entry: &RelayEntry| match entry.proof {
            Proof::Due(at) => running.admits(entry, max_proofs, self.uncapped).then_some(at),
            Proof::Running { at, .. } => Some(at.after(timeout)),
        };
        self.entries.values().filter_map(deadline).min()
    }
}
