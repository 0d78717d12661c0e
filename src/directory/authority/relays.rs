//! An authority's state of each relay: proofs, caps, and listing in the consensus.

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

/// The weight of every relay, because bandwidth isn't measured.
const WEIGHT: u32 = 1000;
/// Consecutive failed proofs after which a relay is no longer listed.
const MAX_FAILURES: u32 = 2;
/// The rate at which a relay may change its descriptor: one change a minute, five at once.
const CHANGES: Rate = Rate { a_second: 1, burst: 300 };
/// Tokens of one change.
const CHANGE: u64 = 60;
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Age from which on a proved relay is not displaced.
const SETTLED_AFTER: Duration = Duration::from_secs(8 * 24 * 60 * 60);
/// Maximum unproved relays of one [`AddressPrefix::network`].
const MAX_UNPROVED_TOGETHER: usize = 32;

/// One relay.
pub(super) struct RelayEntry {
    pub(super) descriptor: Descriptor,
    signed: schema::SignedDescriptor,
    /// The addresses from which the descriptor came. If they aren't known, those that it names.
    publisher: Publisher,
    first_seen: WallTime,
    /// The time of its last proof at the addresses of its descriptor.
    proved: Option<WallTime>,
    /// Whether it has ever proved itself, at any address.
    proved_once: bool,
    /// Failed proofs since its last proof, or since it is known.
    failures: u32,
    /// The time of the last request for a proof.
    asked: Option<WallTime>,
    /// The changes of its descriptor.
    changes: TokenBucket,
    proof: Proof,
}

enum Proof {
    /// Due at this time.
    Due(WallTime),
    /// Requested at this time; `left` are the dials that have not succeeded yet. `outdated`: the relay has moved
    /// since.
    Asked { at: WallTime, left: Vec<DialTarget>, outdated: bool },
}

impl RelayEntry {
    pub(super) fn new(descriptor: Descriptor, signed: &[u8], now: WallTime) -> Self {
        let (signed, proof) = (decode_signed(signed), Proof::Due(now));
        let (proved, proved_once, failures, asked) = (None, false, 0, None);
        let publisher = Publisher::claimed(&descriptor);
        let changes = TokenBucket::new();
        Self { descriptor, signed, publisher, first_seen: now, proved, proved_once, failures, asked, changes, proof }
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

    /// Handles a newer descriptor. A proof stays valid while the dial target is unchanged. An unproved relay gets no
    /// earlier dial by it: otherwise descriptors with another node's address would direct dials there.
    pub(super) fn replace(
        &mut self,
        descriptor: Descriptor,
        signed: &[u8],
        publisher: Option<Publisher>,
        now: WallTime,
    ) {
        self.changes.spend(instant(now), CHANGES, CHANGE);
        self.publisher = publisher.unwrap_or_else(|| Publisher::claimed(&descriptor));
        let moved = self.descriptor.profile.dial_target() != descriptor.profile.dial_target();
        let wanted = self.proved.is_some() && (moved || self.failures > 0);
        match &mut self.proof {
            Proof::Due(at) if wanted => {
                let least = self.asked.map_or(now, |asked| asked.after(FIRST_RETRY).max(now));
                *at = least.min(*at);
            }
            // A running proof is awaited, so that descriptors in quick succession don't multiply dials.
            Proof::Asked { outdated, .. } => *outdated |= moved,
            Proof::Due(_) => {}
        }
        if moved && self.proved.take().is_some() {
            self.failures = 0;
        }
        self.descriptor = descriptor;
        self.signed = decode_signed(signed);
    }

    /// Handles the outcome of one dial. The relay is proved once all dials have succeeded. Outcomes that weren't
    /// requested are ignored.
    pub(super) fn dialled(
        &mut self,
        now: WallTime,
        target: &DialTarget,
        outcome: Result<(), ProofError>,
        again: Duration,
    ) {
        let Proof::Asked { left, outdated, .. } = &mut self.proof else { return };
        let Some(position) = left.iter().position(|one| one == target) else { return };
        match outcome {
            // The authority's fault, so it doesn't count against the relay.
            Err(ProofError::Dial(DialError::Unable)) => self.proof = Proof::Due(now.after(FIRST_RETRY)),
            Ok(()) if !*outdated => {
                left.swap_remove(position);
                if left.is_empty() {
                    self.proved(now, again);
                }
            }
            // A success at an outdated address doesn't count.
            Ok(()) | Err(_) => self.failed(now, again),
        }
    }

    pub(super) fn proved(&mut self, now: WallTime, again: Duration) {
        self.proved = Some(now);
        self.proved_once = true;
        self.failures = 0;
        self.proof = Proof::Due(now.after(again));
    }

    /// Schedules the next try: soon, then with doubled intervals up to `again`.
    fn failed(&mut self, now: WallTime, again: Duration) {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures.increment();
        self.proof = Proof::Due(now.after(wait.min(again)));
    }

    /// Whether its record is stored: only once it has proved itself, because identities are free.
    pub(super) const fn is_kept(&self) -> bool {
        self.proved_once
    }

    /// Starts a proof and returns its dials, one for each address, so that no unproved address is listed.
    fn ask(&mut self, now: WallTime) -> Vec<DialTarget> {
        let whole = self.descriptor.profile.dial_target();
        let one = |address| DialTarget { addresses: vec![address], ..whole.clone() };
        let left: Vec<DialTarget> = whole.addresses.iter().copied().map(one).collect();
        self.asked = Some(now);
        self.proof = Proof::Asked { at: now, left: left.clone(), outdated: false };
        left
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.descriptor.profile.addresses
    }

    /// Whether it is proved at the addresses of its descriptor.
    pub(super) const fn is_proved(&self) -> bool {
        self.proved.is_some()
    }

    const fn is_under_way(&self) -> bool {
        matches!(self.proof, Proof::Asked { .. })
    }

    /// The prefixes of its addresses.
    fn prefixes(&self, of: fn(IpAddr) -> AddressPrefix) -> impl Iterator<Item = AddressPrefix> {
        self.addresses().iter().map(move |address| of(address.ip()))
    }

    /// The networks of its addresses.
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

    /// Decodes the output of [`Self::encode`], if the descriptor still counts. A proof is due at once; the relay
    /// stays listed meanwhile.
    pub(super) fn decode(record: &[u8], now: WallTime) -> Option<Self> {
        let record = schema::RelayRecord::decode(record).ok()?;
        let signed = record.descriptor?;
        let descriptor = UnverifiedDescriptor::decode(&signed.encode_to_vec()).ok()?.verify(now).ok()?;
        let proved = Some(record.proved).filter(|proved| *proved > 0).map(WallTime::from_unix);
        let first_seen = WallTime::from_unix(record.first_seen).min(now);
        let (proved_once, failures, asked, proof) = (true, 0, None, Proof::Due(now));
        let publisher = Publisher::claimed(&descriptor);
        let changes = TokenBucket::new();
        Some(Self { descriptor, signed, publisher, first_seen, proved, proved_once, failures, asked, changes, proof })
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
        let counted: &mut usize = counts.entry(prefix).or_default();
        counted.increment();
    }
    counts
}

/// The encoding was verified before. If it doesn't decode, the record is empty and is skipped when it is restored.
fn decode_signed(bytes: &[u8]) -> schema::SignedDescriptor {
    schema::SignedDescriptor::decode(bytes).unwrap_or_default()
}

/// All relays, by identity.
pub(super) struct RelayEntries {
    entries: BTreeMap<RelayId, RelayEntry>,
    turns: Turns,
    /// Whether the caps on relays of one network are off, as at one site.
    together: bool,
}

impl RelayEntries {
    pub(super) fn new(together: bool) -> Self {
        Self { entries: BTreeMap::new(), turns: Turns::default(), together }
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
            let fits = self.together || !entry.is_proved() || held.admit(entry.addresses());
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

    /// Whether `relay` names `other` as its family.
    pub(super) fn names(&self, relay: &RelayId, other: &RelayId) -> bool {
        self.entries.get(relay).is_some_and(|entry| entry.descriptor.profile.family.contains(other))
    }

    /// Whether relays other than `relay` are proved at one of `addresses`, in its network or block, as many as the caps
    /// allow.
    pub(super) fn is_crowded(&self, relay: &RelayId, addresses: &[SocketAddr]) -> bool {
        let others = self.entries.iter().filter(|(identity, entry)| *identity != relay && entry.is_proved());
        !self.together && crowding::is_crowded(&HELD, addresses, others.map(|(_, entry)| entry.addresses()))
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
        let young = proved().filter(|(_, entry)| !self.together && now.since(entry.first_seen) < SETTLED_AFTER);
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
        let unproved = self.entries.iter().filter(|(_, entry)| entry.proved.is_none() && !entry.is_under_way());
        let (relay, _) = unproved.max_by_key(|(_, entry)| {
            let publishers = published.get(&entry.publisher.network);
            (publishers, fullest(entry), entry.failures, core::cmp::Reverse(entry.first_seen))
        })?;
        let relay = *relay;
        self.entries.remove(&relay);
        Some(relay)
    }

    /// Evicts one unproved relay from each network of `new` that has reached its cap.
    pub(super) fn make_room(&mut self, new: &RelayEntry) -> Vec<RelayId> {
        if self.together {
            return Vec::new();
        }
        let (counts, published) = (self.unproved(), self.published());
        let full = |network: &AddressPrefix| counts.get(network).is_some_and(|count| *count >= MAX_UNPROVED_TOGETHER);
        let mut removed = Vec::new();
        for network in new.networks().filter(full) {
            let inside = self.entries.iter().filter(|(_, entry)| {
                entry.proved.is_none() && !entry.is_under_way() && entry.networks().any(|other| other == network)
            });
            let worst = inside.max_by_key(|(_, entry)| {
                let publishers = published.get(&entry.publisher.network);
                (publishers, entry.failures, core::cmp::Reverse(entry.first_seen))
            });
            if let Some(relay) = worst.map(|(relay, _)| *relay) {
                self.entries.remove(&relay);
                removed.push(relay);
            }
        }
        removed
    }

    /// Number of unproved relays in each network.
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
        if !self.together {
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
            // A family counts if both name each other (proto/08-paths.md, "Families").
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
