//! An authority's state of each relay: proofs, caps, and listing in the consensus (`proto/07-directory.md` §6).

use std::collections::{BTreeMap, BTreeSet};

use core::{net::IpAddr, time::Duration};

use prost::Message;

use super::ProofError;
use crate::{
    base::{AddressPrefix, Counter as _, DialError, DialTarget, RelayId, WallTime},
    directory::{ConsensusRelay, Descriptor, Flags, UnverifiedDescriptor, schema},
};

/// The weight of every relay; bandwidth isn't measured.
const WEIGHT: u32 = 1000;
/// Consecutive failed proofs after which a relay is no longer listed.
const MAX_FAILURES: u32 = 2;
/// The time from a first failed proof to the next try, and the minimum time between proofs after a new descriptor.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Maximum listed relays of one [`AddressPrefix::source`].
const MAX_LISTED_OF_SOURCE: usize = 8;
/// Maximum unproved relays of one [`AddressPrefix::network`].
const MAX_UNPROVED_OF_NETWORK: usize = 32;
/// Maximum proofs in progress in one [`AddressPrefix::network`].
const MAX_PROOFS_OF_NETWORK: usize = 4;

/// One relay.
pub(super) struct RelayEntry {
    pub(super) descriptor: Descriptor,
    signed: schema::SignedDescriptor,
    first_seen: WallTime,
    /// The time of the last successful proof with the current dial target.
    proved: Option<WallTime>,
    /// Whether any proof has succeeded, with any dial target.
    proved_once: bool,
    /// Failed proofs since the last successful one.
    failures: u32,
    /// The start of the last proof.
    started: Option<WallTime>,
    proof: Proof,
}

/// The next proof of a relay.
enum Proof {
    /// Due at this time.
    Due(WallTime),
    /// In progress since `at`. `pending` are the dials without success yet. `outdated` states whether the relay's dial
    /// target has changed since.
    Running { at: WallTime, pending: Vec<DialTarget>, outdated: bool },
}

impl RelayEntry {
    pub(super) fn new(descriptor: Descriptor, signed: &[u8], now: WallTime) -> Self {
        let (signed, proof) = (decode_signed(signed), Proof::Due(now));
        let (proved, proved_once, failures, started) = (None, false, 0, None);
        Self { descriptor, signed, first_seen: now, proved, proved_once, failures, started, proof }
    }

    /// Handles a newer descriptor. A proof stays valid while the dial target is unchanged. The next proof of an
    /// unproved relay isn't advanced. Otherwise, descriptors with another node's address could direct many dials there.
    pub(super) fn replace(&mut self, descriptor: Descriptor, signed: &[u8], now: WallTime) {
        let is_moved = self.descriptor.profile.dial_target() != descriptor.profile.dial_target();
        let is_advanced = self.proved.is_some() && (is_moved || self.failures > 0);
        match &mut self.proof {
            Proof::Due(at) if is_advanced => {
                let earliest = self.started.map_or(now, |started| started.after(FIRST_RETRY).max(now));
                *at = earliest.min(*at);
            }
            // A proof in progress isn't restarted, so that descriptors in quick succession don't multiply dials.
            Proof::Running { outdated, .. } => *outdated |= is_moved,
            Proof::Due(_) => {}
        }
        if is_moved && self.proved.take().is_some() {
            self.failures = 0;
        }
        self.descriptor = descriptor;
        self.signed = decode_signed(signed);
    }

    /// Handles the outcome of one dial. The proof succeeds once all dials have succeeded. The next one is due after
    /// `interval`. The outcome of a dial that isn't pending is ignored.
    pub(super) fn handle_dial(
        &mut self,
        now: WallTime,
        target: &DialTarget,
        outcome: Result<(), ProofError>,
        interval: Duration,
    ) {
        let Proof::Running { pending, outdated, .. } = &mut self.proof else { return };
        let Some(position) = pending.iter().position(|dial| dial == target) else { return };
        match outcome {
            // The authority has no route or socket for the address, which isn't the relay's failure.
            Err(ProofError::Dial(DialError::Unable)) => self.proof = Proof::Due(now.after(FIRST_RETRY)),
            Ok(()) if !*outdated => {
                pending.swap_remove(position);
                if pending.is_empty() {
                    self.proved(now, interval);
                }
            }
            // A success with an outdated dial target doesn't count.
            Ok(()) | Err(_) => self.failed(now, interval),
        }
    }

    pub(super) fn proved(&mut self, now: WallTime, interval: Duration) {
        self.proved = Some(now);
        self.proved_once = true;
        self.failures = 0;
        self.proof = Proof::Due(now.after(interval));
    }

    /// Schedules the next try: soon, then with doubled intervals up to `interval`.
    fn failed(&mut self, now: WallTime, interval: Duration) {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures.increment();
        self.proof = Proof::Due(now.after(wait.min(interval)));
    }

    /// Whether the record is stored on disk: only after a first proof, because new identities cost nothing.
    pub(super) const fn is_stored(&self) -> bool {
        self.proved_once
    }

    /// Starts a proof and returns its dials: one for each address, so that no unproved address is listed.
    fn start_proof(&mut self, now: WallTime) -> Vec<DialTarget> {
        let target = self.descriptor.profile.dial_target();
        let at_address = |address| DialTarget { addresses: vec![address], ..target.clone() };
        let dials: Vec<DialTarget> = target.addresses.iter().copied().map(at_address).collect();
        self.started = Some(now);
        self.proof = Proof::Running { at: now, pending: dials.clone(), outdated: false };
        dials
    }

    const fn is_running(&self) -> bool {
        matches!(self.proof, Proof::Running { .. })
    }

    /// The prefixes of the relay's addresses.
    fn prefixes(&self, of: fn(IpAddr) -> AddressPrefix) -> impl Iterator<Item = AddressPrefix> {
        self.descriptor.profile.addresses.iter().map(move |address| of(address.ip()))
    }

    /// The networks of the relay's addresses.
    fn networks(&self) -> impl Iterator<Item = AddressPrefix> {
        self.prefixes(AddressPrefix::network)
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

    /// Decodes the output of [`Self::encode`], unless the descriptor is invalid or stale. A proof is due at once, and a
    /// proved relay is listed meanwhile.
    pub(super) fn decode(record: &[u8], now: WallTime) -> Option<Self> {
        let record = schema::RelayRecord::decode(record).ok()?;
        let signed = record.descriptor?;
        let descriptor = UnverifiedDescriptor::decode(&signed.encode_to_vec()).ok()?.verify(now).ok()?;
        let proved = Some(record.proved).filter(|proved| *proved > 0).map(WallTime::from_unix);
        let first_seen = WallTime::from_unix(record.first_seen).min(now);
        let (proved_once, failures, started, proof) = (true, 0, None, Proof::Due(now));
        Some(Self { descriptor, signed, first_seen, proved, proved_once, failures, started, proof })
    }
}

/// Counts the occurrences of each prefix.
fn count(prefixes: impl Iterator<Item = AddressPrefix>) -> BTreeMap<AddressPrefix, usize> {
    let mut counts = BTreeMap::new();
    for prefix in prefixes {
        let count: &mut usize = counts.entry(prefix).or_default();
        count.increment();
    }
    counts
}

/// Decodes a descriptor that was verified before. An empty result, which the caller excludes, would be skipped when the
/// record is restored.
fn decode_signed(bytes: &[u8]) -> schema::SignedDescriptor {
    schema::SignedDescriptor::decode(bytes).unwrap_or_default()
}

/// All relays, by identity.
pub(super) struct RelayEntries {
    entries: BTreeMap<RelayId, RelayEntry>,
    /// Whether the caps on relays of one address or network are off, as in a testnet.
    uncapped: bool,
}

impl RelayEntries {
    pub(super) const fn new(uncapped: bool) -> Self {
        Self { entries: BTreeMap::new(), uncapped }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(&mut self, entry: RelayEntry) {
        self.entries.insert(entry.descriptor.profile.identity, entry);
    }

    pub(super) fn entry(&mut self, relay: &RelayId) -> Option<&mut RelayEntry> {
        self.entries.get_mut(relay)
    }

    /// Whether the descriptor of `relay` names `other` as family.
    pub(super) fn names_family(&self, relay: &RelayId, other: &RelayId) -> bool {
        self.entries.get(relay).is_some_and(|entry| entry.descriptor.profile.family.contains(other))
    }

    /// Evicts an unproved relay from the network with most unproved relays: the one with most failures, and among these
    /// the longest known. Relays with a proof in progress stay, so that the caps on proofs hold.
    pub(super) fn evict_unproved(&mut self) -> Option<RelayId> {
        let counts = self.unproved();
        let fullest = |entry: &RelayEntry| entry.networks().filter_map(|network| counts.get(&network)).max().copied();
        let unproved = self.entries.iter().filter(|(_, entry)| entry.proved.is_none() && !entry.is_running());
        let (relay, _) =
            unproved.max_by_key(|(_, entry)| (fullest(entry), entry.failures, core::cmp::Reverse(entry.first_seen)))?;
        let relay = *relay;
        self.entries.remove(&relay);
        Some(relay)
    }

    /// Evicts one unproved relay from each network of `new` that is at the cap. Returns the evicted relays.
    pub(super) fn make_room(&mut self, new: &RelayEntry) -> Vec<RelayId> {
        if self.uncapped {
            return Vec::new();
        }
        let counts = self.unproved();
        let full = |network: &AddressPrefix| counts.get(network).is_some_and(|count| *count >= MAX_UNPROVED_OF_NETWORK);
        let mut removed = Vec::new();
        for network in new.networks().filter(full) {
            let inside = self.entries.iter().filter(|(_, entry)| {
                entry.proved.is_none() && !entry.is_running() && entry.networks().any(|other| other == network)
            });
            let evicted = inside.max_by_key(|(_, entry)| (entry.failures, core::cmp::Reverse(entry.first_seen)));
            if let Some(relay) = evicted.map(|(relay, _)| *relay) {
                self.entries.remove(&relay);
                removed.push(relay);
            }
        }
        removed
    }

    /// The number of unproved relays in each network.
    fn unproved(&self) -> BTreeMap<AddressPrefix, usize> {
        count(self.entries.values().filter(|entry| entry.proved.is_none()).flat_map(RelayEntry::networks))
    }

    pub(super) fn remove_stale(&mut self, now: WallTime) -> Vec<RelayId> {
        self.entries.extract_if(.., |_, entry| entry.descriptor.is_stale(now)).map(|(relay, _)| relay).collect()
    }

    pub(super) fn listed(&self, now: WallTime) -> impl Iterator<Item = &RelayEntry> {
        self.entries.values().filter(move |entry| entry.is_listed(now))
    }

    /// Treats proofs that have been in progress for `timeout` as failed.
    pub(super) fn time_out_proofs(&mut self, now: WallTime, timeout: Duration, interval: Duration) {
        for entry in self.entries.values_mut() {
            if matches!(entry.proof, Proof::Running { at, .. } if now >= at.after(timeout)) {
                entry.failed(now, interval);
            }
        }
    }

    /// Starts due proofs, the longest due first. At most `most` are in progress in total, and at most
    /// [`MAX_PROOFS_OF_NETWORK`] in one network. Returns the dials.
    pub(super) fn start_proofs(&mut self, now: WallTime, most: usize) -> Vec<DialTarget> {
        let mut free = most.saturating_sub(self.running_proofs());
        let mut networks = self.proofs_by_network();
        let mut due: Vec<(WallTime, &mut RelayEntry)> = Vec::new();
        for entry in self.entries.values_mut() {
            if let Proof::Due(at) = entry.proof
                && at <= now
            {
                due.push((at, entry));
            }
        }
        due.sort_by_key(|(at, _)| *at);
        let mut dials = Vec::new();
        for (_, entry) in due {
            if free == 0 {
                break;
            }
            if !self.uncapped && is_full(&networks, entry) {
                continue;
            }
            free.decrement();
            for network in entry.networks() {
                let running = networks.entry(network).or_default();
                running.increment();
            }
            dials.extend(entry.start_proof(now));
        }
        dials
    }

    /// The next time at which a proof can start or times out. `most` and `timeout` are those of [`Self::start_proofs`]
    /// and [`Self::time_out_proofs`].
    pub(super) fn next_deadline(&self, timeout: Duration, most: usize) -> Option<WallTime> {
        let full = self.running_proofs() >= most;
        let networks = self.proofs_by_network();
        let deadline = |entry: &RelayEntry| match entry.proof {
            Proof::Due(at) => (!full && (self.uncapped || !is_full(&networks, entry))).then_some(at),
            Proof::Running { at, .. } => Some(at.after(timeout)),
        };
        self.entries.values().filter_map(deadline).min()
    }

    fn running_proofs(&self) -> usize {
        self.entries.values().filter(|entry| entry.is_running()).count()
    }

    /// The number of proofs in progress in each network.
    fn proofs_by_network(&self) -> BTreeMap<AddressPrefix, usize> {
        count(self.entries.values().filter(|entry| entry.is_running()).flat_map(RelayEntry::networks))
    }

    /// The relays to list in a consensus at `now`: of each address the [`MAX_LISTED_OF_SOURCE`] longest known ones, and
    /// of these the `most` longest known.
    pub(super) fn list(&self, now: WallTime, stable_after: Duration, most: usize) -> Vec<ConsensusRelay> {
        let mut listed: Vec<&RelayEntry> = self.listed(now).collect();
        listed.sort_by_key(|entry| entry.first_seen);
        if !self.uncapped {
            let mut counts: BTreeMap<AddressPrefix, usize> = BTreeMap::new();
            listed.retain(|entry| {
                let fits = |source| counts.get(&source).is_none_or(|count| *count < MAX_LISTED_OF_SOURCE);
                let fits = entry.prefixes(AddressPrefix::source).all(fits);
                for source in entry.prefixes(AddressPrefix::source).filter(|_| fits) {
                    let count = counts.entry(source).or_default();
                    count.increment();
                }
                fits
            });
        }
        listed.truncate(most);
        let mut ages: Vec<Duration> = listed.iter().map(|entry| now.since(entry.first_seen)).collect();
        ages.sort_unstable();
        let median = ages.get(ages.len() / 2).copied().unwrap_or_default();
        let stable_age = stable_after.min(median);
        let families: BTreeMap<RelayId, BTreeSet<RelayId>> = listed
            .iter()
            .map(|entry| (entry.descriptor.profile.identity, entry.descriptor.profile.family.iter().copied().collect()))
            .collect();
        let list = |entry: &&RelayEntry| {
            let mut profile = entry.descriptor.profile.clone();
            // Only mutual family counts (proto/07-directory.md §6).
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
        listed.iter().map(list).collect()
    }
}

/// Whether a network of `entry` is at its cap on proofs in progress.
fn is_full(networks: &BTreeMap<AddressPrefix, usize>, entry: &RelayEntry) -> bool {
    entry.networks().any(|network| networks.get(&network).is_some_and(|count| *count >= MAX_PROOFS_OF_NETWORK))
}
