//! An authority's state of each relay: proofs, caps, and listing in the consensus (`proto/07-directory.md` §6).

mod counts;
mod proofs;
mod unproved_queue;

use std::collections::{BTreeMap, BTreeSet};

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use prost::Message as _;

use super::{
    ProofError, Publisher,
    ages::{FormerRelay, age_after_absence},
    crowding::{Crowds, LISTED_CAPS, PROVED_CAPS, select_by_length},
    instant,
};
use crate::{
    base::{AddressPrefix, Counter as _, DialError, DialTarget, Rate, RelayId, TokenBucket, WallTime},
    directory::{ConsensusRelay, Descriptor, Flags, Statement as _, UnverifiedDescriptor, schema},
};
use counts::RelayCounts;
use proofs::ProofSchedule;

/// Maximum bytes of a consensus for the flags, the weight and the lengths of one entry, beside its profile.
const LISTED_RESERVE: usize = 24;
/// The weight of every relay; bandwidth isn't measured.
const WEIGHT: u32 = 1000;
/// Consecutive failed proofs after which a relay is no longer listed.
const MAX_FAILURES: u32 = 2;
/// Time after the last successful proof from which on a relay that fails its proofs isn't proved any more. So it has
/// no place among the proved relays. Longer than an outage of an honest relay, and longer than a due proof waits for a
/// place: 16 of 10,000 proofs run concurrently for at most 20 s each, so all proofs end in less than four hours.
pub(super) const PROOF_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The rate at which a relay may change its descriptor: one change a minute, in bursts of five. A change takes
/// [`CHANGE_TOKENS`].
const CHANGE_RATE: Rate = Rate { per_second: 1, burst: 300 };
/// The tokens that one change takes.
const CHANGE_TOKENS: u64 = 60;
/// The time from a first failed proof to the next try, and the minimum time between proofs after a new descriptor.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(5);
/// Minimum age of a proved relay that is never displaced.
const UNDISPLACED_AGE: Duration = Duration::from_secs(8 * 24 * 60 * 60);
/// Maximum unproved relays of one [`AddressPrefix::network`].
const MAX_UNPROVED_OF_NETWORK: usize = 32;

/// The state of one relay.
pub(super) struct RelayEntry {
    pub(super) descriptor: Descriptor,
    signed: schema::SignedDescriptor,
    /// The publisher of the descriptor: its sender, or, if the sender's address is unknown or not global, a substitute
    /// at the descriptor's first address.
    publisher: Publisher,
    /// The time of the first descriptor, or of the restart after that.
    added_at: WallTime,
    /// The time of the first successful proof, with any dial target, after which the relay got a place.
    known_since: Option<WallTime>,
    /// The time of the last successful proof with the current dial target. `None` without such a proof, and after the
    /// end of its [`PROOF_LIFETIME`].
    proved_at: Option<WallTime>,
    /// The time of the last successful proof with any dial target. Stays after the end of the proof.
    last_success: Option<WallTime>,
    /// The addresses of the last successful proof. After a restart, those of the descriptor.
    proved_addresses: Vec<SocketAddr>,
    /// Failed proofs since the last successful one.
    failures: u32,
    /// The start of the last proof.
    proof_started: Option<WallTime>,
    /// Limits the rate of changes of the descriptor.
    changes: TokenBucket,
    proof: Proof,
}

/// The next proof of a relay.
enum Proof {
    /// Due at this time.
    Due(WallTime),
    /// In progress since `at`. `pending` are the dials without success yet. `outdated` states whether the relay's dial
    /// target has changed after the start of the proof.
    Running { at: WallTime, pending: Vec<DialTarget>, outdated: bool },
}

impl RelayEntry {
    /// An unproved relay whose first proof is due now.
    pub(super) fn new(descriptor: Descriptor, signed: &[u8], now: WallTime) -> Self {
        Self::unproved(descriptor, decode_signed(signed), now)
    }

    fn unproved(descriptor: Descriptor, signed: schema::SignedDescriptor, now: WallTime) -> Self {
        let proof = Proof::Due(now);
        let (known_since, proved_at, last_success, proved_addresses) = (None, None, None, Vec::new());
        let (failures, proof_started) = (0, None);
        let (publisher, changes, added_at) = (Publisher::claimed(&descriptor), TokenBucket::new(), now);
        Self {
            descriptor,
            signed,
            publisher,
            added_at,
            known_since,
            proved_at,
            last_success,
            proved_addresses,
            failures,
            proof_started,
            changes,
            proof,
        }
    }

    /// The same relay, with the sender of its descriptor if that is known.
    pub(super) fn with_publisher(self, publisher: Option<Publisher>) -> Self {
        let publisher = publisher.unwrap_or(self.publisher);
        Self { publisher, ..self }
    }

    /// Whether the rate of changes allows a new descriptor.
    pub(super) fn may_change(&self, now: WallTime) -> bool {
        self.changes.available(instant(now), CHANGE_RATE) >= CHANGE_TOKENS
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
        self.changes.spend(instant(now), CHANGE_RATE, CHANGE_TOKENS);
        self.publisher = publisher.unwrap_or_else(|| Publisher::claimed(&descriptor));
        let is_moved = self.descriptor.profile.dial_target() != descriptor.profile.dial_target();
        let is_advanced = self.proved_at.is_some() && (is_moved || self.failures > 0);
        match &mut self.proof {
            Proof::Due(at) if is_advanced => {
                let earliest = self.proof_started.map_or(now, |started| started.after(FIRST_RETRY_DELAY).max(now));
                *at = earliest.min(*at);
            }
            // A proof in progress isn't restarted, so that descriptors in quick succession don't multiply dials.
            Proof::Running { outdated, .. } => *outdated |= is_moved,
            Proof::Due(_) => {}
        }
        if is_moved && self.proved_at.take().is_some() {
            self.failures = 0;
        }
        self.descriptor = descriptor;
        self.signed = decode_signed(signed);
    }

    /// Handles the outcome of one dial. The proof succeeds once all its dials have succeeded; the next proof is then
    /// due after `interval`. The outcome of a dial that isn't pending is ignored.
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
            Err(ProofError::Dial(DialError::Unable)) => self.proof = Proof::Due(now.after(FIRST_RETRY_DELAY)),
            Ok(()) if !*outdated => {
                pending.swap_remove(position);
                if pending.is_empty() {
                    self.handle_proved(now, interval);
                }
            }
            // A success with an outdated dial target doesn't count.
            Ok(()) | Err(_) => self.handle_failed(now, interval),
        }
    }

    /// A proof has succeeded. The next one is due after `interval`. The time of an absence adds no age. Otherwise, an
    /// attacker would get old relays by descriptors alone, and need addresses only on the first and the last day.
    pub(super) fn handle_proved(&mut self, now: WallTime, interval: Duration) {
        if self.is_absent()
            && let (Some(known_since), Some(last)) = (self.known_since, self.last_success)
        {
            self.known_since = Some(age_after_absence(known_since, last, now).unwrap_or(now));
        }
        self.last_success = Some(now);
        self.proved_at = Some(now);
        self.proved_addresses = self.addresses().to_vec();
        self.failures = 0;
        self.proof = Proof::Due(now.after(interval));
    }

    /// A proof has failed. The next try is due after a delay, which doubles with each failure up to `interval`. Only a
    /// failure ends the lifetime of the last proof: a proof that waits for a place, or for a restart of the authority,
    /// isn't the relay's failure.
    fn handle_failed(&mut self, now: WallTime, interval: Duration) {
        let wait = FIRST_RETRY_DELAY.saturating_mul(1 << self.failures.min(16));
        self.failures.increment();
        if self.failures >= MAX_FAILURES && self.proved_at.is_some_and(|proved| now.since(proved) >= PROOF_LIFETIME) {
            self.proved_at = None;
        }
        self.proof = Proof::Due(now.after(wait.min(interval)));
    }

    /// Whether the relay counts as absent since its last successful proof: it isn't proved with its current dial
    /// target, or has failed too many proofs.
    const fn is_absent(&self) -> bool {
        self.proved_at.is_none() || self.failures >= MAX_FAILURES
    }

    /// Whether the record is stored on disk. A record is stored only after a first proof, because new identities cost
    /// nothing.
    pub(super) const fn is_stored(&self) -> bool {
        self.known_since.is_some()
    }

    /// Sets the time since which the relay is known, after its first proof.
    pub(super) const fn set_known_since(&mut self, known_since: WallTime) {
        self.known_since = Some(known_since);
    }

    /// The time since which the relay is known; the time of its first descriptor if it was never proved.
    pub(super) fn known_since(&self) -> WallTime {
        self.known_since.unwrap_or(self.added_at)
    }

    /// The relay's identity.
    pub(super) const fn identity(&self) -> RelayId {
        self.descriptor.profile.identity
    }

    /// The former relay, after the authority has dropped the relay at `now`; `None` if the relay was never proved.
    pub(super) fn former(self, now: WallTime) -> Option<FormerRelay> {
        let known_since = self.known_since?;
        let absent_since = self.last_success.filter(|_| self.is_absent()).unwrap_or(now);
        Some(FormerRelay { known_since, absent_since, addresses: self.proved_addresses })
    }

    /// Whether the descriptor's date is valid at `now`.
    pub(super) fn is_current(&self, now: WallTime) -> bool {
        self.descriptor.check_date(now).is_ok()
    }

    /// Starts a proof and returns its dials: one for each address, so that no unproved address is listed.
    fn start_proof(&mut self, now: WallTime) -> Vec<DialTarget> {
        let target = self.descriptor.profile.dial_target();
        let at_address = |address| DialTarget { addresses: vec![address], ..target.clone() };
        let dials: Vec<DialTarget> = target.addresses.iter().copied().map(at_address).collect();
        self.proof_started = Some(now);
        self.proof = Proof::Running { at: now, pending: dials.clone(), outdated: false };
        dials
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.descriptor.profile.addresses
    }

    /// Whether the relay is proved at the addresses of its descriptor, and has not failed its proofs for
    /// [`PROOF_LIFETIME`].
    pub(super) const fn is_proved(&self) -> bool {
        self.proved_at.is_some()
    }

    /// Whether a proof is in progress.
    const fn is_being_proved(&self) -> bool {
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

    /// Whether the relay may be listed in a consensus.
    fn is_listed(&self, now: WallTime) -> bool {
        self.proved_at.is_some() && self.failures < MAX_FAILURES && !self.descriptor.is_stale(now)
    }

    /// The maximum length of the relay's entry in a consensus.
    fn listed_len(&self) -> usize {
        self.descriptor.profile.encode().encoded_len().saturating_add(LISTED_RESERVE)
    }

    /// Encodes the relay's record for storage.
    pub(super) fn encode(&self) -> Vec<u8> {
        schema::RelayRecord {
            descriptor: Some(self.signed.clone()),
            known_since: self.known_since().as_unix(),
            proved: self.proved_at.map_or(0, WallTime::as_unix),
            former: None,
            last_success: self.last_success.map_or(0, WallTime::as_unix),
        }
        .encode_to_vec()
    }

    /// Decodes the output of [`Self::encode`]; `None` if the descriptor is invalid. Its date isn't checked
    /// ([`Self::is_current`]). A proof is due immediately. A relay that was proved when the record was encoded may be
    /// listed before that proof.
    pub(super) fn decode(record: &[u8], now: WallTime) -> Option<Self> {
        let record = schema::RelayRecord::decode(record).ok()?;
        let signed = record.descriptor?;
        let descriptor = UnverifiedDescriptor::decode(&signed.encode_to_vec()).ok()?;
        let published = descriptor.claimed().published;
        let descriptor = descriptor.verify(published).ok()?;
        // Dates of a clock that was ahead must not extend the lifetime of a proof.
        let time = |seconds| Some(seconds).filter(|at| *at > 0).map(|at| WallTime::from_unix(at).min(now));
        let proved_at = time(record.proved);
        // An older record of an unproved relay has neither time. Its absence counts from the restart on.
        let last_success = time(record.last_success).or(proved_at).or(Some(now));
        let known_since = Some(WallTime::from_unix(record.known_since).min(now));
        let proved_addresses = descriptor.profile.addresses.clone();
        Some(Self { known_since, proved_at, last_success, proved_addresses, ..Self::unproved(descriptor, signed, now) })
    }
}

/// Counts the occurrences of each prefix.
fn count_prefixes(prefixes: impl Iterator<Item = AddressPrefix>) -> BTreeMap<AddressPrefix, usize> {
    let mut counts = BTreeMap::new();
    for prefix in prefixes {
        let count: &mut usize = counts.entry(prefix).or_default();
        count.increment();
    }
    counts
}

/// Decodes a descriptor that the caller has verified, for which the decoding can't fail.
fn decode_signed(bytes: &[u8]) -> schema::SignedDescriptor {
    schema::SignedDescriptor::decode(bytes).unwrap_or_default()
}

/// All relays, by identity.
pub(super) struct RelayEntries {
    entries: BTreeMap<RelayId, RelayEntry>,
    counts: RelayCounts,
    schedule: ProofSchedule,
    /// Whether the caps for each address, network and block are off, as in a testnet.
    uncapped: bool,
}

impl RelayEntries {
    pub(super) fn new(uncapped: bool) -> Self {
        let (counts, schedule) = (RelayCounts::new(uncapped), ProofSchedule::default());
        Self { entries: BTreeMap::new(), counts, schedule, uncapped }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The number of proved relays.
    pub(super) const fn proved(&self) -> usize {
        self.counts.proved()
    }

    pub(super) fn insert(&mut self, entry: RelayEntry) {
        self.counts.update(&entry);
        self.schedule.update(&entry);
        self.entries.insert(entry.identity(), entry);
    }

    /// Inserts stored relays, first the proved ones, then the longest known, up to the caps on proved relays and
    /// `max_relays` in total. Returns the omitted relays.
    pub(super) fn restore(&mut self, mut stored: Vec<RelayEntry>, max_relays: usize) -> Vec<RelayEntry> {
        stored.sort_by_key(|entry| (!entry.is_proved(), entry.known_since()));
        let (mut proved, mut omitted) = (Crowds::new(&PROVED_CAPS), Vec::new());
        for entry in stored {
            let fits = self.uncapped || !entry.is_proved() || proved.admit(entry.addresses());
            if fits && self.len() < max_relays {
                self.insert(entry);
            } else {
                omitted.push(entry);
            }
        }
        omitted
    }

    pub(super) fn remove(&mut self, relay: &RelayId) -> Option<RelayEntry> {
        self.counts.remove(relay);
        self.schedule.remove(relay);
        self.entries.remove(relay)
    }

    pub(super) fn entry(&self, relay: &RelayId) -> Option<&RelayEntry> {
        self.entries.get(relay)
    }

    /// Changes a relay.
    pub(super) fn change(&mut self, relay: &RelayId, change: impl FnOnce(&mut RelayEntry)) {
        if let Some(entry) = self.entries.get_mut(relay) {
            change(entry);
            self.counts.update(entry);
            self.schedule.update(entry);
        }
    }

    /// Whether the descriptor of `relay` names `other` as family.
    pub(super) fn names_family(&self, relay: &RelayId, other: &RelayId) -> bool {
        self.entries.get(relay).is_some_and(|entry| entry.descriptor.profile.family.contains(other))
    }

    /// Whether proved relays other than `relay` have reached a cap at one of `addresses`, in its network or in its
    /// block.
    pub(super) fn is_crowded(&self, relay: &RelayId, addresses: &[SocketAddr]) -> bool {
        self.counts.is_crowded(relay, addresses)
    }

    /// The proved relay that a new relay at `addresses` displaces after its first proof. It is the youngest relay of
    /// the block with the most proved relays. The relay must be younger than eight days, and its block must have more
    /// proved relays than each block of `addresses`.
    pub(super) fn displaceable(&self, now: WallTime, addresses: &[SocketAddr]) -> Option<RelayId> {
        let proved = self.counts.proved_by_prefix();
        let own = addresses.iter().map(|address| proved.count(&AddressPrefix::block(address.ip()))).max();
        let is_young = |known_since| !self.uncapped && now.since(known_since) < UNDISPLACED_AGE;
        proved.youngest_of_most_crowded(own.unwrap_or_default(), is_young)
    }

    /// Evicts an unproved relay that is not being proved ([`RelayCounts::first_eviction`]).
    pub(super) fn evict_unproved(&mut self) -> Option<RelayEntry> {
        let relay = self.counts.first_eviction()?;
        self.remove(&relay)
    }

    /// Evicts one other unproved relay from each network of `addresses` that has reached its cap on unproved relays, so
    /// that the unproved `relay` is admitted. Returns the evicted relays.
    pub(super) fn evict_for(&mut self, relay: &RelayId, addresses: &[SocketAddr]) -> Vec<RelayEntry> {
        let mut evicted = Vec::new();
        for network in addresses.iter().map(|address| AddressPrefix::network(address.ip())) {
            if self.counts.others_unproved(&network, relay) >= MAX_UNPROVED_OF_NETWORK {
                let first = self.counts.first_eviction_in(&network, relay);
                evicted.extend(first.and_then(|first| self.remove(&first)));
            }
        }
        evicted
    }

    /// The relays that may be listed in a consensus.
    pub(super) fn listed(&self, now: WallTime) -> impl Iterator<Item = &RelayEntry> {
        self.entries.values().filter(move |entry| entry.is_listed(now))
    }

    /// The relays of a consensus created at `now`. The longest known relays are listed, up to the caps for each
    /// address, network and block, and up to `max_relays` in total. Their entries have at most `max_len` bytes
    /// ([`select_by_length`]).
    pub(super) fn list(
        &self,
        now: WallTime,
        stable_after: Duration,
        max_relays: usize,
        max_len: usize,
    ) -> Vec<ConsensusRelay> {
        let mut listed: Vec<&RelayEntry> = self.listed(now).collect();
        listed.sort_by_key(|entry| entry.known_since());
        if !self.uncapped {
            let mut crowds = Crowds::new(&LISTED_CAPS);
            listed.retain(|entry| crowds.admit(entry.addresses()));
        }
        listed.truncate(max_relays);
        let entries: Vec<_> = listed.iter().map(|entry| (entry.listed_len(), entry.addresses())).collect();
        let mut selected = select_by_length(&entries, max_len).into_iter();
        listed.retain(|_| selected.next().unwrap_or_default());
        let omitted = entries.len().saturating_sub(listed.len());
        if omitted > 0 {
            tracing::warn!(
                omitted,
                "all entries exceed the length of a consensus; omitting long ones of the fullest blocks"
            );
        }
        let mut ages: Vec<Duration> = listed.iter().map(|entry| now.since(entry.known_since())).collect();
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
            let stable = now.since(entry.known_since()) >= stable_age;
            let flags = Flags::default()
                .with_if(Flags::STABLE | Flags::GUARD, stable)
                .with_if(Flags::EXIT, !profile.exit.is_empty());
            ConsensusRelay { profile, flags, weight: WEIGHT }
        };
        listed.iter().map(list).collect()
    }
}
