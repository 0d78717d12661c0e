//! What an authority knows of each relay, and what it makes of it.

use std::collections::{BTreeMap, BTreeSet};

use core::time::Duration;

use prost::Message;

use crate::{
    base::{DialTarget, RelayId, WallTime},
    directory::{ConsensusRelay, Descriptor, Flags, UnverifiedDescriptor, schema},
};

/// While nobody measures bandwidth, every relay weighs the same.
const WEIGHT: u32 = 1000;
/// A listed relay that fails so many proofs in a row is listed no more.
const MAX_FAILURES: u32 = 2;
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// One relay.
pub(super) struct Entry {
    pub(super) descriptor: Descriptor,
    signed: schema::SignedDescriptor,
    first_seen: WallTime,
    /// When it last proved itself where its descriptor says.
    proved: Option<WallTime>,
    /// Failed proofs since.
    failures: u32,
    proof: Proof,
}

enum Proof {
    /// Wanted at that time.
    Due(WallTime),
    /// Asked for at that time.
    Asked(WallTime),
}

impl Entry {
    pub(super) fn new(descriptor: Descriptor, signed: &[u8], now: WallTime) -> Self {
        let signed = decode_signed(signed);
        Self { descriptor, signed, first_seen: now, proved: None, failures: 0, proof: Proof::Due(now) }
    }

    /// Takes a newer descriptor. A proof stays good while the relay is reached in the same way.
    pub(super) fn replace(&mut self, descriptor: Descriptor, signed: &[u8], now: WallTime) {
        let moved = !self.is_reached_by(&descriptor.profile.dial_target());
        // One under way is waited for, so that descriptors sent in quick succession don't multiply dials.
        if (moved || self.failures > 0) && matches!(self.proof, Proof::Due(_)) {
            self.proof = Proof::Due(now);
        }
        if moved {
            self.proved = None;
            self.failures = 0;
        }
        self.descriptor = descriptor;
        self.signed = decode_signed(signed);
    }

    pub(super) fn proved(&mut self, now: WallTime, again: Duration) {
        self.proved = Some(now);
        self.failures = 0;
        self.proof = Proof::Due(now.after(again));
    }

    /// The outcome came for where the relay was before.
    pub(super) fn outdated(&mut self, now: WallTime) {
        self.proof = Proof::Due(now);
    }

    /// Asks again soon, then ever more rarely up to the ordinary rhythm.
    pub(super) fn failed(&mut self, now: WallTime, again: Duration) {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.proof = Proof::Due(now.after(wait.min(again)));
    }

    /// Whether its descriptor says to dial it so.
    pub(super) fn is_reached_by(&self, target: &DialTarget) -> bool {
        self.descriptor.profile.dial_target() == *target
    }

    fn is_listed(&self, now: WallTime) -> bool {
        self.proved.is_some() && self.failures < MAX_FAILURES && !self.descriptor.is_stale(now)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        schema::RelayRecord {
            descriptor: Some(self.signed.clone()),
            first_seen: self.first_seen.as_unix(),
            proved: self.proved.map_or(0, WallTime::as_unix),
        }
        .encode_to_vec()
    }

    /// The entry that [`Self::encode`] wrote, if its descriptor still counts. It proves itself again at once, and stays
    /// listed meanwhile.
    pub(super) fn decode(record: &[u8], now: WallTime) -> Option<Self> {
        let record = schema::RelayRecord::decode(record).ok()?;
        let signed = record.descriptor?;
        let descriptor = UnverifiedDescriptor::decode(&signed.encode_to_vec()).ok()?.verify(now).ok()?;
        let proved = Some(record.proved).filter(|proved| *proved > 0).map(WallTime::from_unix);
        let first_seen = WallTime::from_unix(record.first_seen).min(now);
        Some(Self { descriptor, signed, first_seen, proved, failures: 0, proof: Proof::Due(now) })
    }
}

/// The encoding was verified before; should it not decode, the record is empty and passed over when it is restored.
fn decode_signed(bytes: &[u8]) -> schema::SignedDescriptor {
    schema::SignedDescriptor::decode(bytes).unwrap_or_default()
}

/// All relays, by identity.
#[derive(Default)]
pub(super) struct Relays(BTreeMap<RelayId, Entry>);

impl Relays {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.0.insert(entry.descriptor.profile.identity, entry);
    }

    pub(super) fn entry(&mut self, relay: &RelayId) -> Option<&mut Entry> {
        self.0.get_mut(relay)
    }

    /// Removes the longest known of those that never proved themselves.
    pub(super) fn evict_unproved(&mut self) -> Option<RelayId> {
        let unproved = self.0.iter().filter(|(_, entry)| entry.proved.is_none());
        let oldest = unproved.min_by_key(|(_, entry)| entry.first_seen).map(|(relay, _)| *relay)?;
        self.0.remove(&oldest);
        Some(oldest)
    }

    pub(super) fn remove_stale(&mut self, now: WallTime) -> Vec<RelayId> {
        self.0.extract_if(.., |_, entry| entry.descriptor.is_stale(now)).map(|(relay, _)| relay).collect()
    }

    pub(super) fn listed(&self, now: WallTime) -> impl Iterator<Item = &Entry> {
        self.0.values().filter(move |entry| entry.is_listed(now))
    }

    /// Counts proofs as failed that were asked for `timeout` ago.
    pub(super) fn time_out_proofs(&mut self, now: WallTime, timeout: Duration, again: Duration) {
        for entry in self.0.values_mut() {
            if matches!(entry.proof, Proof::Asked(at) if now >= at.after(timeout)) {
                entry.failed(now, again);
            }
        }
    }

    /// Marks proofs that are due as asked for, the longest due first, so that at most `most` are under way.
    pub(super) fn wanted_proofs(&mut self, now: WallTime, most: usize) -> Vec<DialTarget> {
        let asked = self.proofs_under_way();
        let mut due: Vec<(WallTime, &mut Entry)> = Vec::new();
        for entry in self.0.values_mut() {
            if let Proof::Due(at) = entry.proof
                && at <= now
            {
                due.push((at, entry));
            }
        }
        due.sort_by_key(|(at, _)| *at);
        due.truncate(most.saturating_sub(asked));
        let ask = |(_, entry): (WallTime, &mut Entry)| {
            entry.proof = Proof::Asked(now);
            entry.descriptor.profile.dial_target()
        };
        due.into_iter().map(ask).collect()
    }

    /// When the next proof falls due, unless `most` are under way, or counts as failed after `timeout`.
    pub(super) fn next_deadline(&self, timeout: Duration, most: usize) -> Option<WallTime> {
        let full = self.proofs_under_way() >= most;
        let deadline = |entry: &Entry| match entry.proof {
            Proof::Due(at) => (!full).then_some(at),
            Proof::Asked(at) => Some(at.after(timeout)),
        };
        self.0.values().filter_map(deadline).min()
    }

    fn proofs_under_way(&self) -> usize {
        self.0.values().filter(|entry| matches!(entry.proof, Proof::Asked(_))).count()
    }

    /// The relays as a consensus made at `now` lists them.
    pub(super) fn list(&self, now: WallTime, stable_after: Duration) -> Vec<ConsensusRelay> {
        let mut ages: Vec<Duration> = self.listed(now).map(|entry| now.since(entry.first_seen)).collect();
        ages.sort_unstable();
        let median = ages.get(ages.len() / 2).copied().unwrap_or_default();
        let stable_age = stable_after.min(median);
        let families: BTreeMap<RelayId, BTreeSet<RelayId>> = self
            .listed(now)
            .map(|entry| (entry.descriptor.profile.identity, entry.descriptor.profile.family.iter().copied().collect()))
            .collect();
        let list = |entry: &Entry| {
            let mut profile = entry.descriptor.profile.clone();
            // Naming counts when it is mutual (proto/08-paths.md, "Families").
            let names_back =
                |other: &RelayId| families.get(other).is_some_and(|names| names.contains(&profile.identity));
            let family: BTreeSet<RelayId> = profile.family.iter().copied().filter(names_back).collect();
            profile.family = family.into_iter().collect();
            let stable = now.since(entry.first_seen) >= stable_age;
            let flags = Flags::default()
                .with_if(Flags::STABLE | Flags::GUARD, stable)
                .with_if(Flags::EXIT, !profile.exit.is_empty());
            ConsensusRelay { profile, flags, weight: WEIGHT }
        };
        self.listed(now).map(list).collect()
    }
}
