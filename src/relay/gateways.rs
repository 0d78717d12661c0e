//! A volunteer's gateways: the relays over whose channels circuits reach the volunteer (`proto/07-directory.md` §9).
//!
//! The volunteer can't influence the ranking. It keeps channels to the first three relays that it can dial. It dials no
//! relay beyond the eighth, because no authority accepts reports of relays ranked lower.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    base::{Counter as _, Instant, RelayId},
    channel::{ChannelId, Channels},
    directory::{Consensus, KnownRelays, gateway_ranking},
};

/// Number of gateways to which a volunteer keeps channels.
const MAX_GATEWAYS: usize = 3;
/// Number of relays, from the first of the ranking, that may be dialled.
const MAX_CANDIDATES: usize = 8;
/// Delay from the first failed dial or lost channel to the next dial. Each failure doubles the delay.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Longest delay to the next dial.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);
/// An open gateway without the directory's confirmation for this many volunteer intervals counts as failed.
const MAX_UNCONFIRMED_INTERVALS: u32 = 4;

/// The state of the channel to a ranked relay.
#[derive(Clone, Copy)]
enum GatewayState {
    Dialling,
    /// The channel, and the time since which the directory has not confirmed the gateway; `None` while confirmed.
    Open(ChannelId, Option<Instant>),
    /// The dial or channel failed; not dialled again before this time.
    Failed(Instant),
}

/// A ranked relay that was dialled.
#[derive(Clone, Copy)]
struct Candidate {
    state: GatewayState,
    /// Failed dials and lost or unconfirmed channels since the directory last confirmed the gateway.
    failures: u32,
}

/// The state of a volunteer's gateways.
#[derive(Default)]
pub(super) struct Gateways {
    seed: Option<[u8; 32]>,
    /// The relays that may be gateways, best first.
    ranking: Vec<RelayId>,
    /// The relays of the ranking that were dialled.
    candidates: BTreeMap<RelayId, Candidate>,
    /// Whether [`Self::plan`] may have channels to dial or release.
    replan: bool,
    /// Whether the set of open gateways has changed since `take_changed`.
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

    /// Updates the ranking after a new seed or consensus.
    pub(super) fn rank(&mut self, own: &RelayId, consensus: Option<&Consensus>) {
        let (Some(seed), Some(consensus)) = (&self.seed, consensus) else { return };
        self.ranking = gateway_ranking(seed, own, consensus);
        self.ranking.truncate(MAX_CANDIDATES);
        self.replan = true;
    }

    /// Handles the directory's confirmations, and drops open gateways without a confirmation for too long.
    pub(super) fn confirm(&mut self, now: Instant, confirmed: &[RelayId], interval: Duration, channels: &mut Channels) {
        let limit = interval.saturating_mul(MAX_UNCONFIRMED_INTERVALS);
        let mut dropped = Vec::new();
        for (relay, candidate) in &mut self.candidates {
            let GatewayState::Open(channel, unconfirmed) = &mut candidate.state else { continue };
            if confirmed.contains(relay) {
                *unconfirmed = None;
                candidate.failures = 0;
            } else if now.since(*unconfirmed.get_or_insert(now)) >= limit {
                dropped.push((*relay, *channel));
            }
        }
        for (relay, channel) in dropped {
            channels.keep(channel, false);
            self.changed = true;
            self.handle_failed(now, &relay);
        }
    }

    /// The relays that may reach this volunteer.
    pub(super) fn ranked(&self) -> BTreeSet<RelayId> {
        let mut ranked = BTreeSet::new();
        // Inserted one by one, since `collect` would sort the relays first (`gateway_ranking` gives the reason).
        ranked.extend(self.ranking.iter().copied());
        ranked
    }

    /// The gateways whose channels are open, ascending.
    pub(super) fn open(&self) -> Vec<RelayId> {
        let open = self.candidates.iter().filter(|(_, candidate)| matches!(candidate.state, GatewayState::Open(..)));
        open.map(|(relay, _)| *relay).collect()
    }

    /// Whether the set of open gateways has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        core::mem::take(&mut self.changed)
    }

    /// Handles an open channel to a relay, dialled as a gateway or for a circuit.
    pub(super) fn handle_open(&mut self, relay: &RelayId) {
        self.replan |= self.candidates.contains_key(relay);
    }

    /// Handles the failure of a dial or of a gateway's channel.
    pub(super) fn handle_failed(&mut self, now: Instant, relay: &RelayId) {
        if let Some(candidate) = self.candidates.get_mut(relay) {
            let delay = FIRST_RETRY_DELAY.saturating_mul(1 << candidate.failures.min(16)).min(MAX_RETRY_DELAY);
            candidate.failures.increment();
            candidate.state = GatewayState::Failed(now.after(delay));
            self.replan = true;
        }
    }

    /// Handles a closed channel.
    pub(super) fn handle_closed(&mut self, now: Instant, channel: ChannelId) {
        let is_lost = |candidate: &Candidate| matches!(candidate.state, GatewayState::Open(open, _) if open == channel);
        let lost = self.candidates.iter().find(|(_, candidate)| is_lost(candidate)).map(|(relay, _)| *relay);
        if let Some(relay) = lost {
            self.changed = true;
            self.handle_failed(now, &relay);
        }
    }

    /// Dials relays in the order of the ranking until there are enough gateways, and releases channels of relays that
    /// are no longer ranked.
    pub(super) fn plan(&mut self, now: Instant, known: &KnownRelays, channels: &mut Channels) {
        if !core::mem::take(&mut self.replan) && self.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        self.release_unranked(channels);
        let is_active = |candidate: &Candidate| !matches!(candidate.state, GatewayState::Failed(_));
        let mut missing =
            MAX_GATEWAYS.saturating_sub(self.candidates.values().filter(|candidate| is_active(candidate)).count());
        for relay in &self.ranking {
            let tried = self.candidates.get(relay).copied();
            let due = match tried.map(|candidate| candidate.state) {
                None => missing > 0,
                Some(GatewayState::Failed(until)) => missing > 0 && until <= now,
                // The channel may have opened meanwhile. If not, a repeated `connect` has no effect.
                Some(GatewayState::Dialling) => true,
                Some(GatewayState::Open(..)) => false,
            };
            let Some(listed) = known.relay(relay).filter(|_| due) else { continue };
            if !tried.as_ref().is_some_and(is_active) {
                missing.decrement();
            }
            let state = match channels.connect(now, &listed.dial_target()) {
                // This channel was opened before the relay was a gateway. It closes when it is idle.
                Some(channel) if !channels.has_requested_reach(channel) => {
                    GatewayState::Failed(now.after(MAX_RETRY_DELAY))
                }
                Some(channel) => {
                    channels.keep(channel, true);
                    self.changed = true;
                    GatewayState::Open(channel, Some(now))
                }
                None => GatewayState::Dialling,
            };
            let failures = tried.map_or(0, |candidate| candidate.failures);
            self.candidates.insert(*relay, Candidate { state, failures });
        }
    }

    /// Releases the channels of relays that are no longer ranked.
    fn release_unranked(&mut self, channels: &mut Channels) {
        let Self { ranking, candidates, changed, .. } = self;
        candidates.retain(|relay, candidate| {
            let ranked = ranking.contains(relay);
            if let (false, GatewayState::Open(channel, _)) = (ranked, candidate.state) {
                channels.keep(channel, false);
                *changed = true;
            }
            ranked
        });
    }

    /// The time of the next retry, if gateways are missing.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let retry = |candidate: &Candidate| match candidate.state {
            GatewayState::Failed(until) => Some(until),
            GatewayState::Dialling | GatewayState::Open(..) => None,
        };
        let active = self.candidates.values().filter(|candidate| retry(candidate).is_none()).count();
        if active >= MAX_GATEWAYS { None } else { self.candidates.values().filter_map(retry).min() }
    }
}
