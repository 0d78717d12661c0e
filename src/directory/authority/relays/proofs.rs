//! The order of proofs: relays that are proved have places of their own, and new relays take turns by their publishers.
//!
//! The addresses of a new relay are a claim, and a dial without an answer takes its place for seconds. So the turns
//! follow the networks and sources from which the descriptors came.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use core::time::Duration;

use super::{Proof, RelayEntries, RelayEntry, count};
use crate::{
    base::{AddressPrefix, Counter as _, DialTarget, RelayId, WallTime},
    directory::authority::Publisher,
};

/// Maximum running proofs of one [`AddressPrefix::network`].
const MAX_TOGETHER: usize = 4;
/// Maximum running proofs of new relays whose descriptors came from one [`AddressPrefix::network`].
const MAX_OF_PUBLISHER: usize = 4;

/// The last turns of publishers, by network and by source.
#[derive(Default)]
pub(super) struct Turns {
    last: HashMap<AddressPrefix, u64>,
    next: u64,
}

impl Turns {
    fn of(&self, publisher: &Publisher) -> (u64, u64) {
        let last = |prefix| self.last.get(prefix).copied().unwrap_or_default();
        (last(&publisher.network), last(&publisher.source))
    }

    fn take(&mut self, publisher: &Publisher) {
        self.next.increment();
        self.last.insert(publisher.network, self.next);
        self.last.insert(publisher.source, self.next);
    }
}

/// Counts of running proofs.
struct Running {
    proved: usize,
    new: usize,
    /// By the networks of the addresses.
    dialled: BTreeMap<AddressPrefix, usize>,
    /// Those of new relays, by the networks of the publishers.
    published: BTreeMap<AddressPrefix, usize>,
}

impl Running {
    fn of(entries: &RelayEntries) -> Self {
        let running = || entries.entries.values().filter(|entry| entry.is_running());
        let new = || running().filter(|entry| !entry.is_proved());
        Self {
            proved: running().count().saturating_sub(new().count()),
            new: new().count(),
            dialled: count(running().flat_map(RelayEntry::networks)),
            published: count(new().map(|entry| entry.publisher.network)),
        }
    }

    fn add(&mut self, entry: &RelayEntry) {
        if entry.is_proved() {
            self.proved.increment();
        } else {
            self.new.increment();
            self.published.entry(entry.publisher.network).or_default().increment();
        }
        for network in entry.networks() {
            self.dialled.entry(network).or_default().increment();
        }
    }

    /// Whether another proof may run, of at most `most`. A half of them is for relays that are proved, a half for new
    /// ones, unless the caps are off.
    fn admits(&self, entry: &RelayEntry, most: usize, uncapped: bool) -> bool {
        if uncapped {
            return self.proved.saturating_add(self.new) < most;
        }
        let is_below = |counts: &BTreeMap<AddressPrefix, usize>, network: AddressPrefix, cap| {
            counts.get(&network).is_none_or(|count| *count < cap)
        };
        let half = most / 2;
        let has_place = if entry.is_proved() {
            self.proved < half
        } else {
            self.new < half && is_below(&self.published, entry.publisher.network, MAX_OF_PUBLISHER)
        };
        has_place && entry.networks().all(|network| is_below(&self.dialled, network, MAX_TOGETHER))
    }
}

impl RelayEntries {
    /// Counts proofs that began `timeout` ago as failed.
    pub(in super::super) fn time_out_proofs(&mut self, now: WallTime, timeout: Duration, interval: Duration) {
        for entry in self.entries.values_mut() {
            if matches!(entry.proof, Proof::Running { at, .. } if now >= at.after(timeout)) {
                entry.failed(now, interval);
            }
        }
    }

    /// Starts due proofs, of at most `most` running ones: of proved relays the longest due first, of new ones in turns.
    pub(in super::super) fn start_proofs(&mut self, now: WallTime, most: usize) -> Vec<DialTarget> {
        let mut running = Running::of(self);
        let (mut proved, mut new) = (Vec::new(), BTreeMap::<Publisher, Vec<(WallTime, RelayId)>>::new());
        for (relay, entry) in &self.entries {
            match entry.proof {
                Proof::Due(at) if at <= now && entry.is_proved() => proved.push((at, *relay)),
                Proof::Due(at) if at <= now => new.entry(entry.publisher).or_default().push((at, *relay)),
                _ => {}
            }
        }
        let mut wanted = Vec::new();
        proved.sort_unstable();
        for (_, relay) in proved {
            wanted.extend(self.start(now, &relay, &mut running, most));
        }
        for due in new.values_mut() {
            // The longest due is the last.
            due.sort_unstable_by(|one, other| other.cmp(one));
        }
        let mut order: BTreeSet<_> = new.keys().map(|publisher| (self.turns.of(publisher), *publisher)).collect();
        while let Some((turn, publisher)) = order.pop_first() {
            // Later than before if another source of the network had its turn meanwhile.
            let current = self.turns.of(&publisher);
            if current != turn {
                order.insert((current, publisher));
                continue;
            }
            let due = new.get_mut(&publisher).into_iter();
            let started = due.flat_map(|due| core::iter::from_fn(|| due.pop())).find_map(|(_, relay)| {
                Some(self.start(now, &relay, &mut running, most)).filter(|dials| !dials.is_empty())
            });
            if let Some(dials) = started {
                wanted.extend(dials);
                self.turns.take(&publisher);
                order.insert((self.turns.of(&publisher), publisher));
            }
        }
        if self.turns.last.len() > self.entries.len().saturating_mul(4) {
            self.forget_turns();
        }
        wanted
    }

    /// Starts the proof of `relay`, if there is room, and returns its dials.
    fn start(&mut self, now: WallTime, relay: &RelayId, running: &mut Running, most: usize) -> Vec<DialTarget> {
        let uncapped = self.uncapped;
        let Some(entry) = self.entries.get_mut(relay).filter(|entry| running.admits(entry, most, uncapped)) else {
            return Vec::new();
        };
        running.add(entry);
        entry.start_proof(now)
    }

    /// Forgets the turns of publishers without a relay here.
    fn forget_turns(&mut self) {
        let publishers = || self.entries.values().map(|entry| entry.publisher);
        let known: HashSet<AddressPrefix> =
            publishers().flat_map(|publisher| [publisher.network, publisher.source]).collect();
        self.turns.last.retain(|prefix, _| known.contains(prefix));
    }

    /// The next time at which a proof is due, if there is room for it, or fails after `timeout`.
    pub(in super::super) fn next_deadline(&self, timeout: Duration, most: usize) -> Option<WallTime> {
        let running = Running::of(self);
        let deadline = |entry: &RelayEntry| match entry.proof {
            Proof::Due(at) => running.admits(entry, most, self.uncapped).then_some(at),
            Proof::Running { at, .. } => Some(at.after(timeout)),
        };
        self.entries.values().filter_map(deadline).min()
    }
}
