//! An authority's state of volunteers: registrations, reports of gateways, and the resulting list.
//!
//! Governed by `proto/07-directory.md` §9. All state is in memory only: after a restart, volunteers and gateways send
//! their documents again within an interval. New identities cost nothing. So a volunteer is removed unless it is
//! confirmed: a gateway of its ranking reports a channel to it.

use std::collections::{BTreeMap, BTreeSet};

use core::time::Duration;

use rand::CryptoRng;

use crate::{
    base::{Counter as _, RelayId, WallTime},
    directory::{
        CLOCK_SKEW, Consensus, Counted, Dates, DescriptorError, MAX_GATEWAYS, MAX_VOLUNTEERS, Parameters,
        PresenceError, Registration, UnverifiedPresence, UnverifiedVolunteer, Volunteer, VolunteerDescriptor,
        VolunteerList, VolunteerListBody, gateway_ranking,
    },
};

/// Time after which an unconfirmed volunteer is removed, if it is longer than two intervals; otherwise two intervals.
const MIN_UNCONFIRMED: Duration = Duration::from_secs(60);
/// Time for which a volunteer keeps its seed, which determines its ranking by a consensus.
const SEED_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Cap on stored seeds of removed volunteers; the earliest removed is evicted. Seeds of current volunteers are not
/// affected.
const MAX_REMOVED_SEEDS: usize = 65_536;
/// Minimum time from a volunteer's registration to its eviction, if it is longer than an interval; otherwise an
/// interval. Within this time, the volunteer dials its gateways, and they report it.
const MIN_STAY: Duration = Duration::from_secs(15);
/// Intervals for which a report counts.
const REPORT_INTERVALS: u32 = 3;
/// Intervals for which a list is valid.
const LIST_INTERVALS: u32 = 5;

/// The state of one volunteer.
struct VolunteerEntry {
    descriptor: VolunteerDescriptor,
    /// Digest of the registration ([`UnverifiedVolunteer::digest`]).
    digest: [u8; 32],
    seed: Seed,
    first_seen: WallTime,
    /// The time of the last report by a gateway of the ranking.
    confirmed: Option<WallTime>,
    /// The gateways whose last reports counted for the volunteer.
    reported_by: BTreeSet<RelayId>,
    ranking: Ranking,
}

/// The ranking of a volunteer's gateways, and the digest of the consensus from which it was computed. It is computed
/// only for volunteers that a gateway reports, because registration is open to all and a ranking takes a hash for each
/// guard.
#[derive(Default)]
struct Ranking {
    consensus: Option<[u8; 32]>,
    gateways: Vec<RelayId>,
}

impl VolunteerEntry {
    /// The ranking by `consensus`, computed once for each consensus.
    fn ranking(&mut self, consensus: &Consensus) -> &[RelayId] {
        if self.ranking.consensus.as_ref() != Some(consensus.digest()) {
            let gateways = gateway_ranking(&self.seed.value, &self.descriptor.profile.identity, consensus);
            self.ranking = Ranking { consensus: Some(*consensus.digest()), gateways };
        }
        &self.ranking.gateways
    }

    /// The time of the last confirmation, or else of the registration.
    fn unconfirmed_since(&self) -> WallTime {
        self.confirmed.unwrap_or(self.first_seen)
    }
}

/// A gateway's last report.
struct GatewayReport {
    at_ms: u64,
    received: WallTime,
    /// The volunteers for which the report counted.
    volunteers: Vec<RelayId>,
}

/// All volunteers, by identity, and the reports of gateways.
#[derive(Default)]
pub(super) struct Volunteers {
    entries: BTreeMap<RelayId, VolunteerEntry>,
    removed_seeds: RemovedSeeds,
    reports: BTreeMap<RelayId, GatewayReport>,
    /// `valid_after` of the last list.
    last_list: Option<WallTime>,
    next_list: Option<WallTime>,
}

impl Volunteers {
    /// Handles a registration. A repeated registration is recognised by its digest, and its signature isn't verified
    /// again.
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
                self.evict_at_cap(now, consensus)?;
                let seed = self.removed_seeds.take(&identity).unwrap_or_else(|| Seed::draw(now, rng));
                let (reported_by, ranking) = (BTreeSet::new(), Ranking::default());
                let entry =
                    VolunteerEntry { descriptor, digest, seed, first_seen: now, confirmed: None, reported_by, ranking };
                self.entries.insert(identity, entry);
            }
        }
        let Some(entry) = self.entries.get_mut(&identity) else { return Err(DescriptorError::Full) };
        if now.since(entry.seed.drawn_at) >= SEED_LIFETIME {
            (entry.seed, entry.ranking) = (Seed::draw(now, rng), Ranking::default());
        }
        let seed = entry.seed.value;
        let gateways =
            consensus.map(|consensus| reporting_gateways(entry, &self.reports, consensus, now)).unwrap_or_default();
        Ok(Registration { seed, gateways })
    }

    /// Handles a gateway's report, which replaces the gateway's last report. Returns the volunteers for which the
    /// report counts: registered volunteers whose ranking contains the gateway.
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
        self.remove_report(&gateway);
        for volunteer in &presence.volunteers {
            let Some(entry) = self.entries.get_mut(volunteer) else { continue };
            entry.confirmed = Some(now);
            entry.reported_by.insert(gateway);
        }
        let counted = Counted { volunteers: presence.volunteers.clone() };
        let report = GatewayReport { at_ms: presence.at_ms, received: now, volunteers: presence.volunteers };
        self.reports.insert(gateway, report);
        Ok(counted)
    }

    /// The number of volunteers.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Removes a gateway's last report.
    fn remove_report(&mut self, gateway: &RelayId) {
        let Some(report) = self.reports.remove(gateway) else { return };
        for volunteer in &report.volunteers {
            if let Some(entry) = self.entries.get_mut(volunteer) {
                entry.reported_by.remove(gateway);
            }
        }
    }

    /// The time of the next list; `None` before the first consensus.
    pub(super) const fn next_list(&self) -> Option<WallTime> {
        self.next_list
    }

    /// The encoded list, if one is due. `names_family` returns whether its first argument, a
    /// relay, names its second, a volunteer, as family.
    pub(super) fn list(
        &mut self,
        now: WallTime,
        consensus: &Consensus,
        names_family: impl Fn(&RelayId, &RelayId) -> bool,
    ) -> Option<Vec<u8>> {
        if self.next_list.is_some_and(|next| now < next) {
            return None;
        }
        let interval = consensus.parameters().volunteer_interval();
        self.next_list = Some(now.after(interval));
        self.remove_expired(now, interval);
        let listed = self.reachable(now, consensus, names_family);
        let dates = Dates::of_next(now, self.last_list, interval, interval.saturating_mul(LIST_INTERVALS));
        match VolunteerList::new(&dates, &VolunteerListBody::new(listed)) {
            Ok((list, encoded)) => {
                tracing::debug!(volunteers = list.volunteers().len(), "created a volunteer list");
                self.last_list = Some(list.valid_after());
                Some(encoded)
            }
            Err(error) => {
                tracing::error!(%error, "can't create a volunteer list");
                None
            }
        }
    }

    /// The volunteers for which a gateway's report counts. Relays of the consensus are excluded.
    fn reachable(
        &mut self,
        now: WallTime,
        consensus: &Consensus,
        names_family: impl Fn(&RelayId, &RelayId) -> bool,
    ) -> Vec<Volunteer> {
        let mut reachable = Vec::new();
        for (identity, entry) in &mut self.entries {
            let gateways = reporting_gateways(entry, &self.reports, consensus, now);
            if !gateways.is_empty() && consensus.relay(identity).is_none() {
                reachable.push(Volunteer { profile: entry.descriptor.profile.clone(), gateways });
            }
        }
        let names = |member: &RelayId, volunteer: &RelayId| match self.entries.get(member) {
            Some(entry) => entry.descriptor.profile.family.contains(volunteer),
            None => names_family(member, volunteer),
        };
        for volunteer in &mut reachable {
            // Only mutual family counts (proto/07-directory.md §9).
            let identity = volunteer.profile.identity;
            volunteer.profile.family.retain(|member| names(member, &identity));
            volunteer.profile.family.sort_unstable();
            volunteer.profile.family.dedup();
        }
        reachable
    }

    /// Removes volunteers whose descriptor is stale, and volunteers that have been unconfirmed for too long. Removes a
    /// report once its date is so old that a replay would be refused.
    fn remove_expired(&mut self, now: WallTime, interval: Duration) {
        let max_unconfirmed = MIN_UNCONFIRMED.max(interval.saturating_mul(2));
        self.entries.retain(|identity, entry| {
            let stays = now.since(entry.unconfirmed_since()) < max_unconfirmed && !entry.descriptor.is_stale(now);
            if !stays {
                self.removed_seeds.insert(*identity, entry.seed);
            }
            stays
        });
        let is_old = |report: &GatewayReport| WallTime::from_unix(report.at_ms / 1000).after(CLOCK_SKEW) < now;
        let old: Vec<_> =
            self.reports.iter().filter(|(_, report)| is_old(report)).map(|(gateway, _)| *gateway).collect();
        for gateway in old {
            self.remove_report(&gateway);
        }
    }

    /// At [`MAX_VOLUNTEERS`], evicts the volunteer that has been known longest without any confirmation. If each is
    /// confirmed, evicts the one with the oldest confirmation, if that no longer counts. A new volunteer stays for an
    /// interval, and at least [`MIN_STAY`]. Otherwise a flood would evict volunteers before their confirmation.
    fn evict_at_cap(&mut self, now: WallTime, consensus: Option<&Consensus>) -> Result<(), DescriptorError> {
        if self.entries.len() < MAX_VOLUNTEERS {
            return Ok(());
        }
        let interval = consensus.map_or_else(Parameters::default, |it| it.parameters().clone()).volunteer_interval();
        let (min_stay, report_lifetime) = (interval.max(MIN_STAY), interval.saturating_mul(REPORT_INTERVALS));
        let is_evictable = |entry: &VolunteerEntry| match entry.confirmed {
            None => now.since(entry.first_seen) >= min_stay,
            Some(at) => now.since(at) >= report_lifetime,
        };
        let candidates = self.entries.iter().filter(|(_, entry)| is_evictable(entry));
        let evicted = candidates.min_by_key(|(_, entry)| (entry.confirmed, entry.first_seen));
        let evicted = *evicted.ok_or(DescriptorError::Full)?.0;
        if let Some(entry) = self.entries.remove(&evicted) {
            self.removed_seeds.insert(evicted, entry.seed);
        }
        Ok(())
    }
}

/// Time for which a report counts.
fn report_lifetime(consensus: &Consensus) -> Duration {
    consensus.parameters().volunteer_interval().saturating_mul(REPORT_INTERVALS)
}

/// The gateways of the volunteer's ranking whose reports count, the best ranked first, at most [`MAX_GATEWAYS`].
fn reporting_gateways(
    entry: &mut VolunteerEntry,
    reports: &BTreeMap<RelayId, GatewayReport>,
    consensus: &Consensus,
    now: WallTime,
) -> Vec<RelayId> {
    let lifetime = report_lifetime(consensus);
    let counts = |gateway: &&RelayId| reports.get(*gateway).is_some_and(|report| now.since(report.received) < lifetime);
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
    value: [u8; 32],
    drawn_at: WallTime,
}

impl Seed {
    fn draw(now: WallTime, rng: &mut dyn CryptoRng) -> Self {
        let mut value = [0; 32];
        rng.fill_bytes(&mut value);
        Self { value, drawn_at: now }
    }
}

/// The seeds of removed volunteers. Without them, a volunteer could register repeatedly until its ranking has certain
/// gateways.
#[derive(Default)]
struct RemovedSeeds {
    /// The seed of each removed volunteer, with its number in `order`.
    seeds: BTreeMap<RelayId, (u64, Seed)>,
    /// The volunteers by number, in the order of their removal.
    order: BTreeMap<u64, RelayId>,
    /// The number of the next removed volunteer.
    next: u64,
}

impl RemovedSeeds {
    fn insert(&mut self, volunteer: RelayId, seed: Seed) {
        if self.seeds.len() >= MAX_REMOVED_SEEDS
            && let Some((_, earliest)) = self.order.pop_first()
        {
            self.seeds.remove(&earliest);
        }
        self.seeds.insert(volunteer, (self.next, seed));
        self.order.insert(self.next, volunteer);
        self.next.increment();
    }

    fn take(&mut self, volunteer: &RelayId) -> Option<Seed> {
        let (number, seed) = self.seeds.remove(volunteer)?;
        self.order.remove(&number);
        Some(seed)
    }
}

#[cfg(test)]
mod tests;
