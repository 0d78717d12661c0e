//! What an authority knows of each relay, and what it makes of it.

use std::collections::{BTreeMap, BTreeSet};

use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use prost::Message;

use super::ProofError;
use crate::{
    base::{DialError, DialTarget, RelayId, WallTime},
    directory::{ConsensusRelay, Descriptor, Flags, UnverifiedDescriptor, schema},
};

/// While nobody measures bandwidth, every relay weighs the same.
const WEIGHT: u32 = 1000;
/// A listed relay that fails so many proofs in a row is listed no more.
const MAX_FAILURES: u32 = 2;
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Relays listed at one IPv4 address or in one IPv6 /64.
const MAX_LISTED_TOGETHER: usize = 8;
/// Relays in one IPv4 /24 or IPv6 /48 that have not proved themselves.
const MAX_UNPROVED_TOGETHER: usize = 32;
/// Proofs under way in one IPv4 /24 or IPv6 /48.
const MAX_PROOFS_TOGETHER: usize = 4;

/// One relay.
pub(super) struct Entry {
    pub(super) descriptor: Descriptor,
    signed: schema::SignedDescriptor,
    first_seen: WallTime,
    /// When it last proved itself where its descriptor says.
    proved: Option<WallTime>,
    /// Whether it ever proved itself anywhere.
    proved_once: bool,
    /// Failed proofs since, or since it is known.
    failures: u32,
    /// When a proof was last asked for.
    asked: Option<WallTime>,
    proof: Proof,
}

enum Proof {
    /// Wanted at that time.
    Due(WallTime),
    /// Asked for at that time; these dials have not succeeded yet. `outdated`: the relay has moved since.
    Asked { at: WallTime, left: Vec<DialTarget>, outdated: bool },
}

impl Entry {
    pub(super) fn new(descriptor: Descriptor, signed: &[u8], now: WallTime) -> Self {
        let (signed, proof) = (decode_signed(signed), Proof::Due(now));
        let (proved, proved_once, failures, asked) = (None, false, 0, None);
        Self { descriptor, signed, first_seen: now, proved, proved_once, failures, asked, proof }
    }

    /// Takes a newer descriptor. A proof stays good while the relay is reached in the same way. A relay that has not proved
    /// itself gains no earlier dial by it: whoever signs descriptors for someone else's address would aim dials there.
    pub(super) fn replace(&mut self, descriptor: Descriptor, signed: &[u8], now: WallTime) {
        let moved = self.descriptor.profile.dial_target() != descriptor.profile.dial_target();
        let wanted = self.proved.is_some() && (moved || self.failures > 0);
        match &mut self.proof {
            Proof::Due(at) if wanted => {
                let least = self.asked.map_or(now, |asked| asked.after(FIRST_RETRY).max(now));
                *at = least.min(*at);
            }
            // One under way is waited for, so that descriptors sent in quick succession don't multiply dials.
            Proof::Asked { outdated, .. } => *outdated |= moved,
            Proof::Due(_) => {}
        }
        if moved && self.proved.take().is_some() {
            self.failures = 0;
        }
        self.descriptor = descriptor;
        self.signed = decode_signed(signed);
    }

    /// Takes the outcome of one dial; it proved itself once all of them have succeeded. What was not asked for is ignored.
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
            // The authority's fault, so it says nothing of the relay.
            Err(ProofError::Dial(DialError::Unable)) => self.proof = Proof::Due(now.after(FIRST_RETRY)),
            Ok(()) if !*outdated => {
                left.swap_remove(position);
                if left.is_empty() {
                    self.proved(now, again);
                }
            }
            // What came for where the relay was before is worth nothing.
            Ok(()) | Err(_) => self.failed(now, again),
        }
    }

    pub(super) fn proved(&mut self, now: WallTime, again: Duration) {
        self.proved = Some(now);
        self.proved_once = true;
        self.failures = 0;
        self.proof = Proof::Due(now.after(again));
    }

    /// Asks again soon, then ever more rarely up to the ordinary rhythm.
    fn failed(&mut self, now: WallTime, again: Duration) {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.proof = Proof::Due(now.after(wait.min(again)));
    }

    /// Whether its record is worth keeping: identities cost nothing, so only once it has proved itself.
    pub(super) const fn is_kept(&self) -> bool {
        self.proved_once
    }

    /// Marks a proof as asked for, and gives what to dial: each address on its own, so that none is listed unproved.
    fn ask(&mut self, now: WallTime) -> Vec<DialTarget> {
        let whole = self.descriptor.profile.dial_target();
        let one = |address| DialTarget { addresses: vec![address], ..whole.clone() };
        let left: Vec<DialTarget> = whole.addresses.iter().copied().map(one).collect();
        self.asked = Some(now);
        self.proof = Proof::Asked { at: now, left: left.clone(), outdated: false };
        left
    }

    const fn is_under_way(&self) -> bool {
        matches!(self.proof, Proof::Asked { .. })
    }

    /// What its addresses lie in, by the lengths of IPv4 and IPv6 prefixes.
    fn prefixes(&self, v4: u32, v6: u32) -> impl Iterator<Item = IpAddr> {
        self.descriptor.profile.addresses.iter().map(move |address| prefix(address.ip(), v4, v6))
    }

    /// The networks that an authority is careful with as a whole.
    fn networks(&self) -> impl Iterator<Item = IpAddr> {
        self.prefixes(24, 48)
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
        let (proved_once, failures, asked, proof) = (true, 0, None, Proof::Due(now));
        Some(Self { descriptor, signed, first_seen, proved, proved_once, failures, asked, proof })
    }
}

/// The first bits of the address, the others zero.
fn prefix(ip: IpAddr, v4: u32, v6: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(v4)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(v6)).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

/// How often each comes up.
fn count(prefixes: impl Iterator<Item = IpAddr>) -> BTreeMap<IpAddr, usize> {
    let mut counts = BTreeMap::new();
    for prefix in prefixes {
        let counted: &mut usize = counts.entry(prefix).or_default();
        *counted = counted.saturating_add(1);
    }
    counts
}

/// The encoding was verified before; should it not decode, the record is empty and passed over when it is restored.
fn decode_signed(bytes: &[u8]) -> schema::SignedDescriptor {
    schema::SignedDescriptor::decode(bytes).unwrap_or_default()
}

/// All relays, by identity.
pub(super) struct Relays {
    entries: BTreeMap<RelayId, Entry>,
    /// Whether they may lie in one network without limit, as at one site.
    together: bool,
}

impl Relays {
    pub(super) const fn new(together: bool) -> Self {
        Self { entries: BTreeMap::new(), together }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.descriptor.profile.identity, entry);
    }

    pub(super) fn entry(&mut self, relay: &RelayId) -> Option<&mut Entry> {
        self.entries.get_mut(relay)
    }

    /// Whether this relay names `other` as its family.
    pub(super) fn names(&self, relay: &RelayId, other: &RelayId) -> bool {
        self.entries.get(relay).is_some_and(|entry| entry.descriptor.profile.family.contains(other))
    }

    /// Removes, of those that have not proved themselves, one from the network that holds most of them: which failed most
    /// often, and of these the longest known. Those being dialled stay, or the dials under way could not be counted.
    pub(super) fn evict_unproved(&mut self) -> Option<RelayId> {
        let counts = self.unproved();
        let fullest = |entry: &Entry| entry.networks().filter_map(|network| counts.get(&network)).max().copied();
        let unproved = self.entries.iter().filter(|(_, entry)| entry.proved.is_none() && !entry.is_under_way());
        let (relay, _) =
            unproved.max_by_key(|(_, entry)| (fullest(entry), entry.failures, core::cmp::Reverse(entry.first_seen)))?;
        let relay = *relay;
        self.entries.remove(&relay);
        Some(relay)
    }

    /// Removes one that has not proved itself from each network that holds too many for `new` to join.
    pub(super) fn make_room(&mut self, new: &Entry) -> Vec<RelayId> {
        if self.together {
            return Vec::new();
        }
        let counts = self.unproved();
        let full = |network: &IpAddr| counts.get(network).is_some_and(|count| *count >= MAX_UNPROVED_TOGETHER);
        let mut removed = Vec::new();
        for network in new.networks().filter(full) {
            let inside = self.entries.iter().filter(|(_, entry)| {
                entry.proved.is_none() && !entry.is_under_way() && entry.networks().any(|other| other == network)
            });
            let worst = inside.max_by_key(|(_, entry)| (entry.failures, core::cmp::Reverse(entry.first_seen)));
            if let Some(relay) = worst.map(|(relay, _)| *relay) {
                self.entries.remove(&relay);
                removed.push(relay);
            }
        }
        removed
    }

    /// Relays in each network that have not proved themselves.
    fn unproved(&self) -> BTreeMap<IpAddr, usize> {
        count(self.entries.values().filter(|entry| entry.proved.is_none()).flat_map(Entry::networks))
    }

    pub(super) fn remove_stale(&mut self, now: WallTime) -> Vec<RelayId> {
        self.entries.extract_if(.., |_, entry| entry.descriptor.is_stale(now)).map(|(relay, _)| relay).collect()
    }

    pub(super) fn listed(&self, now: WallTime) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(move |entry| entry.is_listed(now))
    }

    /// Counts proofs as failed that were asked for `timeout` ago.
    pub(super) fn time_out_proofs(&mut self, now: WallTime, timeout: Duration, again: Duration) {
        for entry in self.entries.values_mut() {
            if matches!(entry.proof, Proof::Asked { at, .. } if now >= at.after(timeout)) {
                entry.failed(now, again);
            }
        }
    }

    /// Marks proofs that are due as asked for, the longest due first, so that at most `most` are under way, and few in one
    /// network.
    pub(super) fn wanted_proofs(&mut self, now: WallTime, most: usize) -> Vec<DialTarget> {
        let mut free = most.saturating_sub(self.proofs_under_way());
        let mut networks = self.dialled_networks();
        let mut due: Vec<(WallTime, &mut Entry)> = Vec::new();
        for entry in self.entries.values_mut() {
            if let Proof::Due(at) = entry.proof
                && at <= now
            {
                due.push((at, entry));
            }
        }
        due.sort_by_key(|(at, _)| *at);
        let mut wanted = Vec::new();
        for (_, entry) in due {
            if free == 0 {
                break;
            }
            if !self.together && is_full(&networks, entry) {
                continue;
            }
            free = free.saturating_sub(1);
            for network in entry.networks() {
                let dialled = networks.entry(network).or_default();
                *dialled = dialled.saturating_add(1);
            }
            wanted.extend(entry.ask(now));
        }
        wanted
    }

    /// When the next proof falls due, unless `most` are under way, or counts as failed after `timeout`.
    pub(super) fn next_deadline(&self, timeout: Duration, most: usize) -> Option<WallTime> {
        let full = self.proofs_under_way() >= most;
        let networks = self.dialled_networks();
        let deadline = |entry: &Entry| match entry.proof {
            Proof::Due(at) => (!full && (self.together || !is_full(&networks, entry))).then_some(at),
            Proof::Asked { at, .. } => Some(at.after(timeout)),
        };
        self.entries.values().filter_map(deadline).min()
    }

    fn proofs_under_way(&self) -> usize {
        self.entries.values().filter(|entry| entry.is_under_way()).count()
    }

    /// Proofs under way in each network.
    fn dialled_networks(&self) -> BTreeMap<IpAddr, usize> {
        count(self.entries.values().filter(|entry| entry.is_under_way()).flat_map(Entry::networks))
    }

    /// The relays as a consensus made at `now` lists them: of those at one address the longest known, and of all the `most`
    /// longest known.
    pub(super) fn list(&self, now: WallTime, stable_after: Duration, most: usize) -> Vec<ConsensusRelay> {
        let mut listed: Vec<&Entry> = self.listed(now).collect();
        listed.sort_by_key(|entry| entry.first_seen);
        if !self.together {
            let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
            listed.retain(|entry| {
                let fits = |place| counts.get(&place).is_none_or(|count| *count < MAX_LISTED_TOGETHER);
                let fits = entry.prefixes(32, 64).all(fits);
                for place in entry.prefixes(32, 64).filter(|_| fits) {
                    let count = counts.entry(place).or_default();
                    *count = count.saturating_add(1);
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
        let list = |entry: &&Entry| {
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
        listed.iter().map(list).collect()
    }
}

fn is_full(networks: &BTreeMap<IpAddr, usize>, entry: &Entry) -> bool {
    entry.networks().any(|network| networks.get(&network).is_some_and(|count| *count >= MAX_PROOFS_TOGETHER))
}
