//! An authority's state of each relay: proofs, caps, and listing in the consensus (`proto/07-directory.md` §6).

mod proofs;

use std::collections::{BTreeMap, BTreeSet};

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use prost::Message;

use super::{
    ProofError, Publisher,
    crowding::{self, Crowds, HELD, LISTED},
};
use crate::{
    base::{AddressPrefix, Counter as _, DialError, DialTarget, Instant, Rate, RelayId, TokenBucket, WallTime},
    directory::{ConsensusRelay, Descriptor, Flags, UnverifiedDescriptor, schema},
};
use proofs::Turns;

/// The weight of every relay; bandwidth isn't measured.
const WEIGHT: u32 = 1000;
/// Consecutive failed proofs after which a relay is no longer listed.
const MAX_FAILURES: u32 = 2;
/// The rate at which a relay may change its descriptor: one change a minute, five at once.
const CHANGES: Rate = Rate { per_second: 1, burst: 300 };
/// Tokens of one change.
const CHANGE: u64 = 60;
/// The time from a first failed proof to the next try, and the minimum time between proofs after a new descriptor.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Age from which on a proved relay is not displaced.
const SETTLED_AFTER: Duration = Duration::from_secs(8 * 24 * 60 * 60);
/// Maximum unproved relays of one [`AddressPrefix::network`].
const MAX_UNPROVED_OF_NETWORK: usize = 32;

/// One relay.
pub(super) struct RelayEntry {
    pub(super) descriptor: Descriptor,
    signed: schema::SignedDescriptor,
    /// The addresses from which the descriptor came. If they aren't known, those that it names.
    publisher: Publisher,
    first_seen: WallTime,
    /// The time of the last successful proof with the current dial target.
    proved: Option<WallTime>,
    /// Whether any proof has succeeded, with any dial target.
    proved_once: bool,
    /// Failed proofs since the last successful one.
    failures: u32,
    /// The start of the last proof.
    started: Option<WallTime>,
    /// The changes of its descriptor.
    changes: TokenBucket,
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
        let publisher = Publisher::claimed(&descriptor);
        let changes = TokenBucket::new();
        Self { descriptor, signed, publisher, first_seen: now, proved, proved_once, failures, started, changes, proof }
    }

    /// The same relay, with the addresses from which its descriptor came.
    pub(super) fn from(self, publisher: Option<Publisher>) -> Self {
        let publisher = publisher.unwrap_or(self.publisher);
        Self { publisher, ..self }
    }

    /// Whether it may change its descriptor.
    pub(super) fn may_change(&self, now: WallTime) -> bool {
        self.changes.available(instant(now), CHANGES) >= CHANGE
    }

    /// Handles a newer descriptor. A proof stays valid while the dial target is unchanged. The next proof of an
    /// unproved relay isn't advanced. Otherwise, descriptors with another node's address could direct many dials there.
    pub(super) fn replace(
        &mut self,
        descriptor: Descriptor,
        signed: &[u8],
        publisher: Option<Publisher>,
        now: WallTime,
    ) {
        self.changes.spend(instant(now), CHANGES, CHANGE);
        self.publisher = publisher.unwrap_or_else(|| Publisher::claimed(&descriptor));
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

    fn addresses(&self) -> &[SocketAddr] {
        &self.descriptor.profile.addresses
    }

    /// Whether it is proved at the addresses of its descriptor.
    pub(super) const fn is_proved(&self) -> bool {
        self.proved.is_some()
    }

    const fn is_running(&self) -> bool {
        matches!(self.proof, Proof::Running { .. })
    }

    /// The prefixes of the relay's addresses.
    fn prefixes(&self, of: fn(IpAddr) -> AddressPrefix) -> impl Iterator<Item = AddressPrefix> {
        self.addresses().iter().map(move |address| of(address.ip()))
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
        let publisher = Publisher::claimed(&descriptor);
        let changes = TokenBucket::new();
        Some(Self { descriptor, signed, publisher, first_seen, proved, proved_once, failures, started, changes, proof })
    }
}

/// Wall-clock time for a rate.
const fn instant(now: WallTime) -> Instant {
    Instant::from_nanos(now.as_unix().saturating_mul(1_000_000_000))
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
    turns: Turns,
    /// Whether the caps on relays of one address or network are off, as in a testnet.
    uncapped: bool,
}

impl RelayEntries {
    pub(super) fn new(uncapped: bool) -> Self {
        Self { entries: BTreeMap::new(), turns: Turns::default(), uncapped }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(&mut self, entry: RelayEntry) {
        self.entries.insert(entry.descriptor.profile.identity, entry);
    }

    /// Inserts stored relays, the longest known first, as far as there is room. Returns those without room.
    pub(super) fn restore(&mut self, mut stored: Vec<RelayEntry>, most: usize) -> Vec<RelayId> {
        stored.sort_by_key(|entry| entry.first_seen);
        let (mut held, mut left_out) = (Crowds::new(&HELD), Vec::new());
        for entry in stored {
            let fits = self.uncapped || !entry.is_proved() || held.admit(entry.addresses());
            if fits && self.len() < most {
                self.insert(entry);
            } else {
                left_out.push(entry.descriptor.profile.identity);
            }
        }
        left_out
    }

    pub(super) fn remove(&mut self, relay: &RelayId) {
        self.entries.remove(relay);
    }

    pub(super) fn entry(&mut self, relay: &RelayId) -> Option<&mut RelayEntry> {
        self.entries.get_mut(relay)
    }

    /// Whether the descriptor of `relay` names `other` as family.
    pub(super) fn names_family(&self, relay: &RelayId, other: &RelayId) -> bool {
        self.entries.get(relay).is_some_and(|entry| entry.descriptor.profile.family.contains(other))
    }

    /// Whether relays other than `relay` are proved at one of `addresses`, in its network or block, as many as the caps
    /// allow.
    pub(super) fn is_crowded(&self, relay: &RelayId, addresses: &[SocketAddr]) -> bool {
        let others = self.entries.iter().filter(|(identity, entry)| *identity != relay && entry.is_proved());
        !self.uncapped && crowding::is_crowded(&HELD, addresses, others.map(|(_, entry)| entry.addresses()))
    }

    /// Evicts the youngest proved relay of the most crowded block that has one under eight days of age, if the blocks of
    /// `new` have fewer relays.
    pub(super) fn displace(&mut self, now: WallTime, new: &RelayEntry) -> Option<RelayId> {
        let proved = || self.entries.iter().filter(|(_, entry)| entry.is_proved());
        let counts = count(proved().flat_map(|(_, entry)| entry.prefixes(AddressPrefix::block)));
        let crowd = |entry: &RelayEntry| {
            entry
                .prefixes(AddressPrefix::block)
                .filter_map(|block| counts.get(&block))
                .max()
                .copied()
                .unwrap_or_default()
        };
        let young = proved().filter(|(_, entry)| !self.uncapped && now.since(entry.first_seen) < SETTLED_AFTER);
        let (relay, entry) = young.max_by_key(|(_, entry)| (crowd(entry), entry.first_seen))?;
        let relay = *relay;
        if crowd(entry) <= crowd(new) {
            return None;
        }
        self.entries.remove(&relay);
        Some(relay)
    }

    /// Evicts an unproved relay of the publishers' network with most of them: of these one in the network with most of
    /// them, the one with most failures, and among these the longest known. Relays that are being dialled stay, so that
    /// their dials stay counted.
    pub(super) fn evict_unproved(&mut self) -> Option<RelayId> {
        let (counts, published) = (self.unproved(), self.published());
        let fullest = |entry: &RelayEntry| entry.networks().filter_map(|network| counts.get(&network)).max().copied();
        let unproved = self.entries.iter().filter(|(_, entry)| entry.proved.is_none() && !entry.is_running());
        let (relay, _) = unproved.max_by_key(|(_, entry)| {
            let publishers = published.get(&entry.publisher.network);
            (publishers, fullest(entry), entry.failures, core::cmp::Reverse(entry.first_seen))
        })?;
        let relay = *relay;
        self.entries.remove(&relay);
        Some(relay)
    }

    /// Evicts one unproved relay from each network of `new` that is at the cap. Returns the evicted relays.
    pub(super) fn make_room(&mut self, new: &RelayEntry) -> Vec<RelayId> {
        if self.uncapped {
            return Vec::new();
        }
        let (counts, published) = (self.unproved(), self.published());
        let full = |network: &AddressPrefix| counts.get(network).is_some_and(|count| *count >= MAX_UNPROVED_OF_NETWORK);
        let mut removed = Vec::new();
        for network in new.networks().filter(full) {
            let inside = self.entries.iter().filter(|(_, entry)| {
                entry.proved.is_none() && !entry.is_running() && entry.networks().any(|other| other == network)
            });
            let evicted = inside.max_by_key(|(_, entry)| {
                let publishers = published.get(&entry.publisher.network);
                (publishers, entry.failures, core::cmp::Reverse(entry.first_seen))
            });
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

    /// Number of unproved relays from each network of publishers.
    fn published(&self) -> BTreeMap<AddressPrefix, usize> {
        count(self.entries.values().filter(|entry| entry.proved.is_none()).map(|entry| entry.publisher.network))
    }

    pub(super) fn remove_stale(&mut self, now: WallTime) -> Vec<RelayId> {
        self.entries.extract_if(.., |_, entry| entry.descriptor.is_stale(now)).map(|(relay, _)| relay).collect()
    }

    pub(super) fn listed(&self, now: WallTime) -> impl Iterator<Item = &RelayEntry> {
        self.entries.values().filter(move |entry| entry.is_listed(now))
    }

    /// The relays of a consensus made at `now`: of those at one address, network and block the longest known, and in total
    /// the `most` longest known.
    pub(super) fn list(&self, now: WallTime, stable_after: Duration, most: usize) -> Vec<ConsensusRelay> {
        let mut listed: Vec<&RelayEntry> = self.listed(now).collect();
        listed.sort_by_key(|entry| entry.first_seen);
        if !self.uncapped {
            let mut crowds = Crowds::new(&LISTED);
            listed.retain(|entry| crowds.admit(entry.addresses()));
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
