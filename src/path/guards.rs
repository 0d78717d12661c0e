//! The guard sample: the few relays that a client uses as first hops, kept for months.
//!
//! All dates are dates of consensuses, not of the client's clock. They are precise enough, and a stored sample doesn't
//! reveal when the client ran.

mod bias;
mod reachability;

use core::{fmt, time::Duration};

use prost::Message;
use rand::{CryptoRng, RngExt};

use super::{
    hop::PathRelay,
    weigh::{ExitShare, pick},
};
use crate::{
    base::{Instant, RelayId, WallTime},
    directory::{Consensus, ConsensusRelay, Flags, decode_identity, schema},
};
use bias::{MAX_NEXT, NextRelays};
use reachability::{GuardReach, PRIMARIES, Reserve};

/// Maximum guards of the sample, listed or not.
const MAX_GUARDS: usize = 120;
/// Number of listed guards below which relays with a weight of zero are sampled too.
const MIN_GUARDS: usize = 3;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Days without a listing after which a guard is removed.
const UNLISTED_DAYS: u32 = 20;

/// A stored guard sample can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guard sample is corrupted")]
pub struct GuardSampleError;

/// A client's guards, in order of preference. Prints redacted.
#[derive(Clone, Default)]
pub struct GuardSample {
    guards: Vec<Guard>,
    /// The date of the last consensus.
    today: Option<WallTime>,
    reserve: Reserve,
    /// The consensus at which the counts of next relays were last halved.
    halved: Option<WallTime>,
    /// Circuits were counted since the sample was stored.
    counted: bool,
}

#[derive(Clone)]
struct Guard {
    identity: RelayId,
    added: WallTime,
    /// The last consensus that listed the guard.
    listed: WallTime,
    circuits_begun: u64,
    circuits_built: u64,
    next: NextRelays,
    reachability: GuardReach,
}

impl GuardSample {
    /// Decodes the output of [`Self::encode`].
    ///
    /// # Errors
    /// When `bytes` are not a valid sample.
    pub fn decode(bytes: &[u8]) -> Result<Self, GuardSampleError> {
        let sample = schema::GuardSample::decode(bytes).map_err(|_| GuardSampleError)?;
        let guards: Option<Vec<Guard>> = sample.guards.iter().map(Guard::decode).collect();
        let guards = guards.filter(|guards| guards.len() <= MAX_GUARDS).ok_or(GuardSampleError)?;
        let pairs = guards.iter().map(|guard| guard.next.len()).fold(0, usize::saturating_add);
        if pairs > PRIMARIES.saturating_mul(MAX_NEXT) {
            return Err(GuardSampleError);
        }
        let halved = (sample.halved > 0).then(|| WallTime::from_unix(sample.halved));
        Ok(Self { guards, halved, ..Self::default() })
    }

    /// Encodes the sample for storage.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut guards: Vec<_> = self.guards.iter().map(Guard::encode).collect();
        if self.today.is_some() {
            let primaries: Vec<_> = self.primaries().map(|guard| guard.identity).collect();
            let others = guards.iter_mut().zip(&self.guards).filter(|(_, guard)| !primaries.contains(&guard.identity));
            others.for_each(|(encoded, _)| encoded.next_relays.clear());
        }
        schema::GuardSample { guards, halved: self.halved.map_or(0, WallTime::as_unix) }.encode_to_vec()
    }

    /// Updates the sample to a new consensus: removes guards past their lifetime, unlisted for too long, or with
    /// path bias, and adds guards. Returns whether guards were added or removed, so that the sample should be stored.
    pub fn update<R: CryptoRng + ?Sized>(&mut self, consensus: &Consensus, rng: &mut R) -> bool {
        let today = consensus.valid_after();
        self.today = Some(today);
        for guard in &mut self.guards {
            if is_guard(consensus, &guard.identity).is_some() {
                guard.listed = today;
            }
        }
        let lifetime = lifetime(consensus);
        let before = self.guards.len();
        self.guards.retain(|guard| {
            today.since(guard.added) <= lifetime && today.since(guard.listed) <= DAY.saturating_mul(UNLISTED_DAYS)
        });
        self.remove_biased_guard(consensus);
        let removed = self.guards.len() != before;
        let added = self.fill(consensus, rng);
        removed || added
    }

    /// Records that the guard built the first hop of a circuit.
    pub fn handle_answered(&mut self, relay: &RelayId) {
        if let Some(guard) = self.guard(relay) {
            guard.reachability = GuardReach::Usable;
        }
    }

    /// Records that a channel to the guard opened. Returns the guards that it precedes from now on: circuits through
    /// these were built only because this guard was unreachable. All unreachable guards are dialled again at once.
    pub fn handle_opened(&mut self, now: Instant, relay: &RelayId) -> Vec<RelayId> {
        let Some(position) = self.listed().position(|guard| guard.identity == *relay) else { return Vec::new() };
        self.reserve.handle_opened(position < PRIMARIES);
        let returned = self.guard(relay).is_some_and(|guard| {
            let unreachable = !guard.reachability.is_usable();
            guard.reachability.handle_opened(now);
            unreachable
        });
        for guard in &mut self.guards {
            guard.reachability.retry_at_once(now);
        }
        let later = self.listed().skip(position.saturating_add(1)).map(|guard| guard.identity);
        if returned { later.collect() } else { Vec::new() }
    }

    /// Records that the guard left a channel or circuit unanswered that began at `began`. It stays first: the next
    /// circuit dials it again. Only if it is silent once more, before it has built a first hop, it is unreachable.
    pub fn handle_silent(&mut self, now: Instant, relay: &RelayId, began: Instant) {
        let offline = self.is_offline_without(relay);
        if let Some(guard) = self.guard(relay) {
            guard.reachability.handle_silent(now, began, offline);
        }
    }

    /// Records that a dial of the guard failed, or did not succeed in time. Other guards precede it until a channel to
    /// it opens. It is dialled again after 5 s, then each time after twice as long, at most a minute; at most 15 s
    /// while no guard is reachable.
    pub fn handle_unreachable(&mut self, now: Instant, relay: &RelayId) {
        let offline = self.is_offline_without(relay);
        if let Some(guard) = self.guard(relay) {
            guard.reachability.handle_unreachable(now, offline);
        }
    }

    /// Records that something other than a guard answered, a directory for example. One more guard beyond the primaries
    /// is used if this happened twice, ten minutes apart, and all guards in use were unreachable throughout.
    pub fn handle_contact(&mut self, now: Instant) {
        if self.in_use().next().is_some() && self.in_use().all(|guard| !guard.reachability.is_usable()) {
            self.reserve.handle_contact(now);
        }
    }

    /// The unreachable guards in use whose next dial is due.
    pub fn due<'a>(&self, consensus: &'a Consensus, now: Instant) -> Vec<&'a ConsensusRelay> {
        let due = self.in_use().filter(|guard| guard.reachability.retry().is_some_and(|retry| retry <= now));
        due.filter_map(|guard| is_guard(consensus, &guard.identity)).collect()
    }

    /// Whether circuits were counted since the last call.
    pub const fn take_counted(&mut self) -> bool {
        core::mem::replace(&mut self.counted, false)
    }

    /// Listed guards in the order to try: the usable ones in use (shuffled if the consensus demands two), then the
    /// unreachable ones by the times of their next dials. The other guards follow, for networks in which no path leads
    /// through a guard in use.
    pub(super) fn candidates<'a, R: CryptoRng + ?Sized>(
        &self,
        consensus: &'a Consensus,
        rng: &mut R,
    ) -> Vec<&'a ConsensusRelay> {
        let listed = self.guards.iter().filter_map(|guard| Some((guard, is_guard(consensus, &guard.identity)?)));
        let limit = self.limit();
        let mut guards: Vec<_> = listed
            .enumerate()
            .map(|(position, (guard, relay))| (position >= limit, guard.reachability.retry(), relay))
            .collect();
        let usable = guards.iter().filter(|(beyond, retry, _)| !beyond && retry.is_none()).count();
        // The sort is stable.
        guards.sort_by_key(|(beyond, retry, _)| (*beyond, *retry));
        let in_use = usize::try_from(consensus.parameters().guards_in_use()).unwrap_or(1);
        if in_use.min(usable) == 2 && rng.random() {
            guards.swap(0, 1);
        }
        guards.into_iter().map(|(_, _, relay)| relay).collect()
    }

    /// The guards that the last consensus listed.
    fn listed(&self) -> impl Iterator<Item = &Guard> {
        self.guards.iter().filter(|guard| Some(guard.listed) == self.today)
    }

    fn primaries(&self) -> impl Iterator<Item = &Guard> {
        self.listed().take(PRIMARIES)
    }

    /// The number of guards in use: the primaries, and those beyond.
    const fn limit(&self) -> usize {
        PRIMARIES.saturating_add(self.reserve.guards())
    }

    fn in_use(&self) -> impl Iterator<Item = &Guard> {
        self.listed().take(self.limit())
    }

    /// Whether no guard in use except `relay` is usable.
    fn is_offline_without(&self, relay: &RelayId) -> bool {
        !self.in_use().any(|guard| guard.identity != *relay && guard.reachability.is_usable())
    }

    fn guard(&mut self, relay: &RelayId) -> Option<&mut Guard> {
        self.guards.iter_mut().find(|guard| guard.identity == *relay)
    }

    /// Adds guards by weight, until the sample holds the required number of listed guards. Returns whether it added
    /// guards.
    fn fill<R: CryptoRng + ?Sized>(&mut self, consensus: &Consensus, rng: &mut R) -> bool {
        let required = usize::try_from(consensus.parameters().guard_sample()).unwrap_or(MAX_GUARDS);
        let share = ExitShare::of(consensus);
        let sampled =
            |guards: &[Guard], relay: &ConsensusRelay| guards.iter().any(|guard| guard.identity == relay.identity());
        let before = self.guards.len();
        let listed = self.guards.iter().filter(|guard| guard.listed == consensus.valid_after()).count();
        for count in listed..required {
            if self.guards.len() >= MAX_GUARDS {
                break;
            }
            let eligible: Vec<PathRelay<'_>> = consensus
                .relays()
                .iter()
                .filter(|relay| relay.flags.contains(Flags::GUARD) && !sampled(&self.guards, relay))
                .map(PathRelay::Listed)
                .filter(|hop| count < MIN_GUARDS || share.weight(hop) > 0)
                .collect();
            let Some(relay) = pick(&eligible, |hop| share.weight(hop), rng) else { break };
            self.guards.push(Guard::new(relay.identity(), consensus, rng));
        }
        self.guards.len() != before
    }
}

impl fmt::Debug for GuardSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardSample({} guards)", self.guards.len())
    }
}

impl Guard {
    /// Backdates `added` by up to a tenth of the lifetime, so that guards don't expire together and the date doesn't
    /// reveal when they were chosen.
    fn new<R: CryptoRng + ?Sized>(identity: RelayId, consensus: &Consensus, rng: &mut R) -> Self {
        let tenth = lifetime(consensus).as_secs() / 10;
        let added = consensus.valid_after().before(Duration::from_secs(rng.random_range(0..=tenth)));
        Self {
            identity,
            added,
            listed: consensus.valid_after(),
            circuits_begun: 0,
            circuits_built: 0,
            next: NextRelays::default(),
            reachability: GuardReach::default(),
        }
    }

    fn encode(&self) -> schema::SampledGuard {
        schema::SampledGuard {
            identity: self.identity.as_bytes().to_vec(),
            added: self.added.as_unix(),
            listed: self.listed.as_unix(),
            circuits_begun: self.circuits_begun,
            circuits_built: self.circuits_built,
            next_relays: self.next.encode(),
        }
    }

    fn decode(guard: &schema::SampledGuard) -> Option<Self> {
        Some(Self {
            identity: decode_identity(&guard.identity)?,
            added: WallTime::from_unix(guard.added),
            listed: WallTime::from_unix(guard.listed),
            circuits_begun: guard.circuits_begun,
            circuits_built: guard.circuits_built,
            next: NextRelays::decode(&guard.next_relays)?,
            reachability: GuardReach::default(),
        })
    }
}

fn is_guard<'a>(consensus: &'a Consensus, relay: &RelayId) -> Option<&'a ConsensusRelay> {
    consensus.relay(relay).filter(|relay| relay.flags.contains(Flags::GUARD))
}

fn lifetime(consensus: &Consensus) -> Duration {
    DAY.saturating_mul(u32::try_from(consensus.parameters().guard_lifetime_days()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
