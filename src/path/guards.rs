//! The guard sample: the few relays that a client uses as first hops, kept for months.
//!
//! All dates are dates of consensuses, not of the client's clock. They are precise enough, and a stored sample doesn't
//! reveal when the client ran.

use core::{fmt, time::Duration};

use prost::Message;
use rand::{CryptoRng, RngExt};

use super::{
    hop::PathRelay,
    weigh::{ExitShare, pick},
};
use crate::{
    base::{Counter as _, Instant, RelayId, WallTime},
    directory::{Consensus, ConsensusRelay, Flags, decode_identity, schema},
};

/// Maximum guards of the sample, listed or not.
const MAX_GUARDS: usize = 120;
/// Number of listed guards below which relays with a weight of zero are sampled too.
const MIN_GUARDS: usize = 3;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Days without a listing after which a guard is removed.
const UNLISTED_DAYS: u32 = 20;
const FIRST_RETRY: Duration = Duration::from_secs(10);
const LAST_RETRY: Duration = Duration::from_secs(30 * 60);

/// A stored guard sample can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guard sample is corrupted")]
pub struct GuardSampleError;

/// A client's guards, in order of preference. Prints redacted.
#[derive(Clone, Default)]
pub struct GuardSample {
    guards: Vec<Guard>,
}

#[derive(Clone)]
struct Guard {
    identity: RelayId,
    added: WallTime,
    /// The last consensus that listed the guard.
    listed: WallTime,
    circuits_begun: u64,
    circuits_built: u64,
    unreachable: Option<Unreachable>,
}

/// The state after a failed dial. Not stored on disk.
#[derive(Clone, Copy)]
struct Unreachable {
    failures: u32,
    retry: Instant,
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
        Ok(Self { guards })
    }

    /// Encodes the sample for storage.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        schema::GuardSample { guards: self.guards.iter().map(Guard::encode).collect() }.encode_to_vec()
    }

    /// Updates the sample to a new consensus: removes guards past their lifetime or unlisted for too long, and adds
    /// guards. Returns whether guards were added or removed, so that the sample should be stored.
    pub fn update<R: CryptoRng + ?Sized>(&mut self, consensus: &Consensus, rng: &mut R) -> bool {
        let today = consensus.valid_after();
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
        let removed = self.guards.len() != before;
        let added = self.fill(consensus, rng);
        removed || added
    }

    /// Records that the guard was reached.
    pub fn handle_reached(&mut self, relay: &RelayId) {
        if let Some(guard) = self.guard(relay) {
            guard.unreachable = None;
        }
    }

    /// Records that the guard could not be reached. Other guards precede it until its retry: after 10 s, doubled for
    /// each failure, at most half an hour.
    pub fn handle_unreachable(&mut self, now: Instant, relay: &RelayId) {
        if let Some(guard) = self.guard(relay) {
            let failures = guard.unreachable.map_or(0, |unreachable| unreachable.failures);
            let wait = FIRST_RETRY.saturating_mul(1 << failures.min(16)).min(LAST_RETRY);
            guard.unreachable = Some(Unreachable { failures: failures.saturating_add(1), retry: now.after(wait) });
        }
    }

    /// Counts a circuit whose first hop, the guard, was reached, and whether the circuit was `built` completely.
    /// Failures beyond a guard never change the guard. Otherwise relays that fail circuits could move a client to their
    /// own guard.
    pub fn handle_circuit(&mut self, relay: &RelayId, built: bool) {
        if let Some(guard) = self.guard(relay) {
            guard.circuits_begun.increment();
            guard.circuits_built = guard.circuits_built.saturating_add(u64::from(built));
            let suspicious = guard.circuits_built < guard.circuits_begun / 2;
            if suspicious && guard.circuits_begun % 100 == 0 {
                tracing::warn!("most circuits through one guard fail beyond it");
            }
        }
    }

    /// Listed guards in the order to try: those in use (shuffled), the others without a pending retry, then the
    /// unreachable ones by their retry times.
    pub(super) fn candidates<'a, R: CryptoRng + ?Sized>(
        &self,
        consensus: &'a Consensus,
        now: Instant,
        rng: &mut R,
    ) -> Vec<&'a ConsensusRelay> {
        let retry = |guard: &Guard| guard.unreachable.map(|unreachable| unreachable.retry).filter(|retry| *retry > now);
        let mut guards: Vec<(Option<Instant>, &ConsensusRelay)> = Vec::new();
        // Inserts each guard behind those with the same time. The list is short.
        for (due, relay) in
            self.guards.iter().filter_map(|guard| Some((retry(guard), is_guard(consensus, &guard.identity)?)))
        {
            guards.insert(guards.partition_point(|(before, _)| *before <= due), (due, relay));
        }
        let usable = guards.iter().filter(|(retry, _)| retry.is_none()).count();
        let in_use = usize::try_from(consensus.parameters().guards_in_use()).unwrap_or(1);
        if in_use.min(usable) == 2 && rng.random() {
            guards.swap(0, 1);
        }
        guards.into_iter().map(|(_, relay)| relay).collect()
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
        let listed = consensus.valid_after();
        Self { identity, added, listed, circuits_begun: 0, circuits_built: 0, unreachable: None }
    }

    fn encode(&self) -> schema::SampledGuard {
        schema::SampledGuard {
            identity: self.identity.as_bytes().to_vec(),
            added: self.added.as_unix(),
            listed: self.listed.as_unix(),
            circuits_begun: self.circuits_begun,
            circuits_built: self.circuits_built,
        }
    }

    fn decode(guard: &schema::SampledGuard) -> Option<Self> {
        Some(Self {
            identity: decode_identity(&guard.identity)?,
            added: WallTime::from_unix(guard.added),
            listed: WallTime::from_unix(guard.listed),
            circuits_begun: guard.circuits_begun,
            circuits_built: guard.circuits_built,
            unreachable: None,
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
