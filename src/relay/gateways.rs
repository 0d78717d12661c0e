//! A volunteer's gateways: the relays over whose channels circuits reach it (`proto/07-directory.md` §9).
//!
//! The volunteer can't influence the ranking. It keeps channels to the first three relays that it can reach. It tries
//! none beyond the eighth, because no authority accepts reports of relays ranked lower.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    base::{Counter as _, Instant, RelayId},
    channel::{ChannelId, Channels},
    directory::{Consensus, KnownRelays, gateway_ranking},
};

/// Gateways that a volunteer keeps.
const KEPT: usize = 3;
/// Relays of the ranking that may be tried.
const RANKED: usize = 8;
/// Time from a failed dial or lost channel to the next try, doubled with each failure up to `LAST_RETRY`.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// An open gateway without the directory's confirmation for this many volunteer intervals counts as failed.
const UNCONFIRMED_INTERVALS: u32 = 4;

/// The state of the channel to a ranked relay.
#[derive(Clone, Copy)]
enum GatewayState {
    Dialling,
    /// The channel, and the time since which the directory has not confirmed it.
    Open(ChannelId, Option<Instant>),
    /// Not to be retried before this time.
    Failed(Instant),
}

/// A ranked relay that was tried.
#[derive(Clone, Copy)]
struct Candidate {
    state: GatewayState,
    /// Failed dials and lost or unconfirmed channels since the directory last confirmed it.
    failures: u32,
}

/// The state of a volunteer's gateways.
#[derive(Default)]
pub(super) struct Gateways {
    seed: Option<[u8; 32]>,
    /// The relays that may be gateways, best first.
    ranking: Vec<RelayId>,
    /// The relays of the ranking that were tried.
    tried: BTreeMap<RelayId, Candidate>,
    /// Dials may be due.
    replan: bool,
    /// The set of open gateways has changed since `take_changed`.
    changed: bool,
}

impl Gateways {
    /// Sets the seed of the ranking.
    pub(super) fn set_seed(&mut self, own: &RelayId, seed: [u8; 32], consensus: Option<&Consensus>) {
        if self.seed != Some(seed) {
            self.seed = Some(seed);
            self.rank(own, consensus);
        }
    }

    /// Ranks again after a new seed or consensus.
    pub(super) fn rank(&mut self, own: &RelayId, consensus: Option<&Consensus>) {
        let (Some(seed), Some(consensus)) = (&self.seed, consensus) else { return };
        self.ranking = gateway_ranking(seed, own, consensus);
        self.ranking.truncate(RANKED);
        self.replan = true;
    }

    /// Handles the directory's confirmations, and drops open gateways that have lacked one for too long.
    pub(super) fn confirm(&mut self, now: Instant, confirmed: &[RelayId], interval: Duration, channels: &mut Channels) {
        let limit = interval.saturating_mul(UNCONFIRMED_INTERVALS);
        let mut late = Vec::new();
        for (relay, candidate) in &mut self.tried {
            let GatewayState::Open(channel, unconfirmed) = &mut candidate.state else { continue };
            if confirmed.contains(relay) {
                *unconfirmed = None;
                candidate.failures = 0;
            } else if now.since(*unconfirmed.get_or_insert(now)) >= limit {
                late.push((*relay, *channel));
            }
        }
        for (relay, channel) in late {
            channels.keep(channel, false);
            self.changed = true;
            self.handle_failed(now, &relay);
        }
    }

    /// The relays that may reach this volunteer.
    pub(super) fn ranked(&self) -> BTreeSet<RelayId> {
        let mut ranked = BTreeSet::new();
        // One by one: `collect` would sort them first (`gateway_ranking` gives the reason).
        ranked.extend(self.ranking.iter().copied());
        ranked
    }

    /// The gateways whose channels are open, ascending.
    pub(super) fn open(&self) -> Vec<RelayId> {
        let open = self.tried.iter().filter(|(_, candidate)| matches!(candidate.state, GatewayState::Open(..)));
        open.map(|(relay, _)| *relay).collect()
    }

    /// Whether the set of open gateways has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        core::mem::take(&mut self.changed)
    }

    /// A channel to a relay is open, for this purpose or for a circuit.
    pub(super) fn handle_open(&mut self, relay: &RelayId) {
        self.replan |= self.tried.contains_key(relay);
    }

    /// Handles a failed dial.
    pub(super) fn handle_failed(&mut self, now: Instant, relay: &RelayId) {
        if let Some(candidate) = self.tried.get_mut(relay) {
            let wait = FIRST_RETRY.saturating_mul(1 << candidate.failures.min(16)).min(LAST_RETRY);
            candidate.failures.increment();
            candidate.state = GatewayState::Failed(now.after(wait));
            self.replan = true;
        }
    }

    /// Handles a closed channel.
    pub(super) fn handle_closed(&mut self, now: Instant, channel: ChannelId) {
        let is_lost = |candidate: &Candidate| matches!(candidate.state, GatewayState::Open(open, _) if open == channel);
        let lost = self.tried.iter().find(|(_, candidate)| is_lost(candidate)).map(|(relay, _)| *relay);
        if let Some(relay) = lost {
            self.changed = true;
            self.handle_failed(now, &relay);
        }
    }

    /// Dials, keeps and releases channels that are due.
    pub(super) fn plan(&mut self, now: Instant, known: &KnownRelays, channels: &mut Channels) {
        if !core::mem::take(&mut self.replan) && self.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        self.release_unranked(channels);
        let is_active = |candidate: &Candidate| !matches!(candidate.state, GatewayState::Failed(_));
        let mut lacking = KEPT.saturating_sub(self.tried.values().filter(|candidate| is_active(candidate)).count());
        for relay in &self.ranking {
            let tried = self.tried.get(relay).copied();
            let due = match tried.map(|candidate| candidate.state) {
                None => lacking > 0,
                Some(GatewayState::Failed(until)) => lacking > 0 && until <= now,
                // It may have opened meanwhile; a repeated `connect` has no other effect.
                Some(GatewayState::Dialling) => true,
                Some(GatewayState::Open(..)) => false,
            };
            let Some(listed) = known.relay(relay).filter(|_| due) else { continue };
            if !tried.as_ref().is_some_and(is_active) {
                lacking.decrement();
            }
            let state = match channels.connect(now, &listed.dial_target()) {
                // Opened before the relay was a gateway; closes when it is idle.
                Some(channel) if !channels.has_requested_reach(channel) => GatewayState::Failed(now.after(LAST_RETRY)),
                Some(channel) => {
                    channels.keep(channel, true);
                    self.changed = true;
                    GatewayState::Open(channel, Some(now))
                }
                None => GatewayState::Dialling,
            };
            let failures = tried.map_or(0, |candidate| candidate.failures);
            self.tried.insert(*relay, Candidate { state, failures });
        }
    }

    /// Releases the channels of relays that are no longer ranked.
    fn release_unranked(&mut self, channels: &mut Channels) {
        let Self { ranking, tried, changed, .. } = self;
        tried.retain(|relay, candidate| {
            let ranked = ranking.contains(relay);
            if let (false, GatewayState::Open(channel, _)) = (ranked, candidate.state) {
                channels.keep(channel, false);
                *changed = true;
            }
            ranked
        });
    }

    /// The time of the next retry, if gateways are lacking.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let retry = |candidate: &Candidate| match candidate.state {
            GatewayState::Failed(until) => Some(until),
            GatewayState::Dialling | GatewayState::Open(..) => None,
        };
        let active = self.tried.values().filter(|candidate| retry(candidate).is_none()).count();
        if active >= KEPT { None } else { self.tried.values().filter_map(retry).min() }
    }
}
