//! An authority's state of volunteers: registrations, reports of gateways, and the resulting list.
//!
//! Governed by `proto/07-directory.md`, "Volunteers". All state is in memory only: after a restart, volunteers and
//! gateways send it again within an interval. Identities are free, so a volunteer that no gateway confirms is
//! evicted, and only gateways of its ranking can confirm it.

use std::collections::{BTreeMap, BTreeSet};

use core::time::Duration;

use rand::CryptoRng;

use crate::{
    base::{RelayId, WallTime},
    directory::{
        CLOCK_SKEW, Consensus, Counted, Dates, DescriptorError, MAX_GATEWAYS, MAX_VOLUNTEERS, Parameters,
        PresenceError, Registration, UnverifiedPresence, UnverifiedVolunteer, Volunteer, VolunteerDescriptor,
        VolunteerList, VolunteerListBody, gateway_ranking,
    },
};

/// Time after which a volunteer without a gateway is removed; two intervals if those are longer.
const UNCONFIRMED_FOR: Duration = Duration::from_secs(60);
/// Time for which a volunteer keeps its seed, and so its gateways.
const SEED_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Cap on stored seeds of volunteers that left; the earliest to leave is evicted. A flood doesn't affect the seeds of
/// volunteers that stay.
const MAX_LEFT_SEEDS: usize = 65_536;
/// A volunteer is not evicted before it has been known for an interval, and for at least this time: enough to dial
/// gateways and be reported.
const SHORTEST_CHANCE: Duration = Duration::from_secs(15);
/// Intervals for which a report counts.
const REPORT_INTERVALS: u32 = 3;
const LIST_INTERVALS: u32 = 5;

/// One volunteer.
struct VolunteerEntry {
    descriptor: VolunteerDescriptor,
    /// Digest of the registration ([`UnverifiedVolunteer::digest`]).
    digest: [u8; 32],
    seed: Seed,
    first_seen: WallTime,
    /// The time of the last report by a gateway of its ranking.
    confirmed: Option<WallTime>,
    /// The gateways whose last report counted for it.
    reported_by: BTreeSet<RelayId>,
    ranking: Ranking,
}

/// The ranking of a volunteer, and the consensus it was made by. Made only for volunteers that a gateway reports: it
/// takes a digest of each relay, and registration is open to all.
#[derive(Default)]
struct Ranking {
    consensus: Option<[u8; 32]>,
    gateways: Vec<RelayId>,
}

impl VolunteerEntry {
    /// Its ranking by `consensus`, made once for each consensus.
    fn ranking(&mut self, consensus: &Consensus) -> &[RelayId] {
        if self.ranking.consensus.as_ref() != Some(consensus.digest()) {
            let gateways = gateway_ranking(&self.seed.drawn, &self.descriptor.profile.identity, consensus);
            self.ranking = Ranking { consensus: Some(*consensus.digest()), gateways };
        }
        &self.ranking.gateways
    }

    /// The time since which no gateway has confirmed it.
    fn unconfirmed_since(&self) -> WallTime {
        self.confirmed.unwrap_or(self.first_seen)
    }
}

/// A gateway's last report.
struct GatewayReport {
    at_ms: u64,
    came: WallTime,
    /// The volunteers for which it counted.
    volunteers: Vec<RelayId>,
}

/// All volunteers, by identity, and the reports of gateways.
#[derive(Default)]
pub(super) struct Volunteers {
    entries: BTreeMap<RelayId, VolunteerEntry>,
    left: LeftSeeds,
    reports: BTreeMap<RelayId, GatewayReport>,
    /// The date of the last list.
    listed: Option<WallTime>,
    next_list: Option<WallTime>,
}

impl Volunteers {
    /// Handles a registration. For the same bytes again, only the current state is returned, without verification of
    /// a signature.
    pub(super) fn register(
        &mut self,
        now: WallTime,
        bytes: &[u8],
        consensus: Option<&Consensus>,
        rng: &mut dyn CryptoRng,
    ) -> Result<Registration, DescriptorError> {
        let unverified = UnverifiedVolunteer::decode(bytes)?;
        let identity = unverified.claimed().profile.identity;
        if consensus.is_some_and(|consensus| consensus.relay(&identity).is_some()) {
            return Err(DescriptorError::Public);
        }
        let digest = unverified.digest();
        match self.entries.get_mut(&identity) {
            Some(known) if known.digest == digest && !known.descriptor.is_stale(now) => {}
            Some(known) if known.descriptor.published >= unverified.claimed().published => {
                return Err(DescriptorError::Older);
            }
            Some(known) => (known.descriptor, known.digest) = (unverified.verify(now)?, digest),
            None => {
                let descriptor = unverified.verify(now)?;
                self.make_room(now, consensus)?;
                let seed = self.left.take(&identity).unwrap_or_else(|| Seed::draw(now, rng));
                let (reported_by, ranking) = (BTreeSet::new(), Ranking::default());
                let entry =
                    VolunteerEntry { descriptor, digest, seed, first_seen: now, confirmed: None, reported_by, ranking };
                self.entries.insert(identity, entry);
            }
        }
        let Some(entry) = self.entries.get_mut(&identity) else { return Err(DescriptorError::Full) };
        if now.since(entry.seed.at) >= SEED_LIFETIME {
            (entry.seed, entry.ranking) = (Seed::draw(now, rng), Ranking::default());
        }
        let seed = entry.seed.drawn;
        let gateways = consensus.map(|consensus| reached_by(entry, &self.reports, consensus, now)).unwrap_or_default();
        Ok(Registration { seed, gateways })
    }

    /// Handles a gateway's report, which is complete: volunteers missing from it have left. Returns the volunteers
    /// for which it counts.
    pub(super) fn report(
        &mut self,
        now: WallTime,
        bytes: &[u8],
        consensus: Option<&Consensus>,
    ) -> Result<Counted, PresenceError> {
        let unverified = UnverifiedPresence::decode(bytes)?;
        let gateway = unverified.claimed().gateway;
        let consensus = consensus.filter(|consensus| consensus.relay(&gateway).is_some());
        let consensus = consensus.ok_or(PresenceError::NotListed)?;
        if self.reports.get(&gateway).is_some_and(|last| last.at_ms >= unverified.claimed().at_ms) {
            return Err(PresenceError::Older);
        }
        let mut presence = unverified.verify(now)?;
        presence.volunteers.retain(|volunteer| {
            let Some(entry) = self.entries.get_mut(volunteer) else { return false };
            entry.ranking(consensus).contains(&gateway)
        });
        self.withdraw(&gateway);
        for volunteer in &presence.volunteers {
            let Some(entry) = self.entries.get_mut(volunteer) else { continue };
            entry.confirmed = Some(now);
            entry.reported_by.insert(gateway);
        }
        let counted = Counted { volunteers: presence.volunteers.clone() };
        let report = GatewayReport { at_ms: presence.at_ms, came: now, volunteers: presence.volunteers };
        self.reports.insert(gateway, report);
        Ok(counted)
    }

    /// Removes a gateway's last report.
    fn withdraw(&mut self, gateway: &RelayId) {
        let Some(report) = self.reports.remove(gateway) else { return };
        for volunteer in &report.volunteers {
            if let Some(entry) = self.entries.get_mut(volunteer) {
                entry.reported_by.remove(gateway);
            }
        }
    }

    /// The time of the next list, once there is a consensus.
    pub(super) const fn next_list(&self) -> Option<WallTime> {
        self.next_list
    }

    /// The encoded list, if one is due. `names` returns whether a relay names a volunteer as its family.
    pub(super) fn list(
        &mut self,
        now: WallTime,
        consensus: &Consensus,
        names: impl Fn(&RelayId, &RelayId) -> bool,
    ) -> Option<Vec<u8>> {
        if self.next_list.is_some_and(|next| now < next) {
            return None;
        }
        let interval = consensus.parameters().volunteer_interval();
        self.next_list = Some(now.after(interval));
        self.forget(now, interval);
        let listed = self.reached(now, consensus, names);
        let dates = Dates::of_next(now, self.listed, interval, interval.saturating_mul(LIST_INTERVALS));
        match VolunteerList::new(&dates, &VolunteerListBody::new(listed)) {
            Ok((list, encoded)) => {
                tracing::debug!(volunteers = list.volunteers().len(), "made a volunteer list");
                self.listed = Some(list.valid_after());
                Some(encoded)
            }
            Err(error) => {
                tracing::error!(%error, "can't make a volunteer list");
                None
            }
        }
    }

    /// The volunteers that can be reached.
    fn reached(
        &mut self,
        now: WallTime,
        consensus: &Consensus,
        names: impl Fn(&RelayId, &RelayId) -> bool,
    ) -> Vec<Volunteer> {
        let mut reached = Vec::new();
        for (identity, entry) in &mut self.entries {
            let gateways = reached_by(entry, &self.reports, consensus, now);
            if !gateways.is_empty() && consensus.relay(identity).is_none() {
                reached.push(Volunteer { profile: entry.descriptor.profile.clone(), gateways });
            }
        }
        let naming = |one: &RelayId, other: &RelayId| match self.entries.get(one) {
            Some(entry) => entry.descriptor.profile.family.contains(other),
            None => names(one, other),
        };
        for volunteer in &mut reached {
            // A family counts if both name each other (proto/08-paths.md, "Families").
            let identity = volunteer.profile.identity;
            volunteer.profile.family.retain(|member| naming(member, &identity));
            volunteer.profile.family.sort_unstable();
            volunteer.profile.family.dedup();
        }
        reached
    }

    /// Removes volunteers with stale descriptors or without confirmation, and reports too old to be replayed.
    fn forget(&mut self, now: WallTime, interval: Duration) {
        let patience = UNCONFIRMED_FOR.max(interval.saturating_mul(2));
        self.entries.retain(|identity, entry| {
            let stays = now.since(entry.unconfirmed_since()) < patience && !entry.descriptor.is_stale(now);
            if !stays {
                self.left.keep(*identity, entry.seed);
            }
            stays
        });
        let is_old = |report: &GatewayReport| WallTime::from_unix(report.at_ms / 1000).after(CLOCK_SKEW) < now;
        let old: Vec<_> =
            self.reports.iter().filter(|(_, report)| is_old(report)).map(|(gateway, _)| *gateway).collect();
        for gateway in old {
            self.withdraw(&gateway);
        }
    }

    /// Makes room for one more: evicts volunteers that were never confirmed, the longest known first, then those
    /// without a recent confirmation. Each first has an interval, and at least [`SHORTEST_CHANCE`], to be confirmed;
    /// otherwise a flood would evict all before their confirmation.
    fn make_room(&mut self, now: WallTime, consensus: Option<&Consensus>) -> Result<(), DescriptorError> {
        if self.entries.len() < MAX_VOLUNTEERS {
            return Ok(());
        }
        let interval = consensus.map_or_else(Parameters::default, |it| it.parameters().clone()).volunteer_interval();
        let (chance, counts_for) = (interval.max(SHORTEST_CHANCE), interval.saturating_mul(REPORT_INTERVALS));
        let gives_way = |entry: &VolunteerEntry| match entry.confirmed {
            None => now.since(entry.first_seen) >= chance,
            Some(at) => now.since(at) >= counts_for,
        };
        let candidates = self.entries.iter().filter(|(_, entry)| gives_way(entry));
        let first = candidates.min_by_key(|(_, entry)| (entry.confirmed, entry.first_seen));
        let first = *first.ok_or(DescriptorError::Full)?.0;
        if let Some(entry) = self.entries.remove(&first) {
            self.left.keep(first, entry.seed);
        }
        Ok(())
    }
}

fn report_lifetime(consensus: &Consensus) -> Duration {
    consensus.parameters().volunteer_interval().saturating_mul(REPORT_INTERVALS)
}

/// The gateways over which the volunteer can be reached, the best ranked first.
fn reached_by(
    entry: &mut VolunteerEntry,
    reports: &BTreeMap<RelayId, GatewayReport>,
    consensus: &Consensus,
    now: WallTime,
) -> Vec<RelayId> {
    let counts_for = report_lifetime(consensus);
    let counts = |gateway: &&RelayId| reports.get(*gateway).is_some_and(|report| now.since(report.came) < counts_for);
    let reporting: BTreeSet<RelayId> = entry.reported_by.iter().filter(counts).copied().collect();
    if reporting.is_empty() {
        return Vec::new();
    }
    let ranked = entry.ranking(consensus).iter();
    ranked.filter(|gateway| reporting.contains(*gateway)).take(MAX_GATEWAYS).copied().collect()
}

/// The seed of a volunteer's ranking.
#[derive(Clone, Copy)]
struct Seed {
    drawn: [u8; 32],
    at: WallTime,
}

impl Seed {
    fn draw(now: WallTime, rng: &mut dyn CryptoRng) -> Self {
        let mut drawn = [0; 32];
        rng.fill_bytes(&mut drawn);
        Self { drawn, at: now }
    }
}

/// The seeds of volunteers that left. Without them, an identity could register again until it gets certain
/// gateways.
#[derive(Default)]
struct LeftSeeds {
    seeds: BTreeMap<RelayId, (u64, Seed)>,
    /// By the order in which they left.
    order: BTreeMap<u64, RelayId>,
    next: u64,
}

impl LeftSeeds {
    fn keep(&mut self, volunteer: RelayId, seed: Seed) {
        if self.seeds.len() >= MAX_LEFT_SEEDS
            && let Some((_, longest)) = self.order.pop_first()
        {
            self.seeds.remove(&longest);
        }
        self.seeds.insert(volunteer, (self.next, seed));
        self.order.insert(self.next, volunteer);
        self.next = self.next.saturating_add(1);
    }

    fn take(&mut self, volunteer: &RelayId) -> Option<Seed> {
        let (position, seed) = self.seeds.remove(volunteer)?;
        self.order.remove(&position);
        Some(seed)
    }
}

#[cfg(test)]
mod tests;
