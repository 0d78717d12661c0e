//! One path: guard, middles, exit.

use core::fmt;

use rand::CryptoRng;

use super::{
    GuardSample,
    restrict::related,
    weigh::{ExitShare, pick},
};
use crate::{
    base::{HopIndex, Instant, RelayId},
    delegated::Delegation,
    directory::{Consensus, ConsensusRelay, Flags},
    wire::{Host, Target},
};

/// A port that most targets have; circuits built ahead of need end at an exit for it if there is one.
const USUAL_PORT: u16 = 443;

/// What a path is for.
#[derive(Clone, Debug)]
pub struct Requirement {
    /// Hops, 2 to 8; what is outside is taken as the nearest.
    pub hops: u8,
    /// What its exit must do.
    pub purpose: Purpose,
}

/// What the exit of a path must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Forward streams, not yet known where to: a circuit ahead of need.
    Streams,
    /// Forward a stream to this target.
    Target(Target),
    /// Perform requests.
    Delegated(Delegation),
}

impl Requirement {
    /// Three hops to an exit that does this.
    #[must_use]
    pub const fn three_hops(purpose: Purpose) -> Self {
        Self { hops: 3, purpose }
    }
}

/// Why there is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The sample holds no guard that is listed.
    #[error("no guard: the consensus lists no stable public relay")]
    NoGuard,
    /// No exit's policy fits.
    #[error("no exit's policy allows the target")]
    NoExit,
    /// Relays that may be on one path are too few.
    #[error("too few relays for a path of unrelated ones")]
    TooFewRelays,
}

/// Relays of one circuit, the guard first, the exit last. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct Path(Vec<RelayId>);

impl Path {
    /// The relays, the guard first; never fewer than two.
    #[must_use]
    pub fn hops(&self) -> &[RelayId] {
        &self.0
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({} hops)", self.0.len())
    }
}

/// Whether `relay` is an exit that may well forward to `target`. Names fit where a port is open in either address
/// family, since only the exit resolves them.
#[must_use]
pub fn suits(relay: &ConsensusRelay, target: &Target) -> bool {
    let exit = &relay.profile.exit;
    let open = match &target.host {
        Host::Ip(ip) => exit.may_allow(*ip, target.port),
        Host::Name(_) => exit.may_allow_name(target.port),
    };
    relay.flags.contains(Flags::EXIT) && open
}

/// A path for `requirement`. The guard comes first and without regard to the target, so a target can't move it, unless no
/// exit for it goes with the guard. Relays in `avoid` (failed of late, say) are middle or exit only when nothing else is
/// left.
///
/// # Errors
/// When there is no guard, no exit for the target, or no path of relays that may be together.
pub fn choose<R: CryptoRng + ?Sized>(
    consensus: &Consensus,
    guards: &GuardSample,
    requirement: &Requirement,
    avoid: &[RelayId],
    now: Instant,
    rng: &mut R,
) -> Result<Path, PathError> {
    let guards = guards.candidates(consensus, now, rng);
    if guards.is_empty() {
        return Err(PathError::NoGuard);
    }
    let exits = exits(consensus, &requirement.purpose);
    if exits.is_empty() {
        return Err(PathError::NoExit);
    }
    let choice = Choice { consensus, exits, hops: usize::from(requirement.hops.clamp(2, HopIndex::MAX)) };
    // Whoever fails circuits fills `avoid`, so a guard gives way to it as little as to a target.
    let path = guards.iter().find_map(|guard| match choice.through(guard, avoid, rng) {
        None if !avoid.is_empty() => choice.through(guard, &[], rng),
        path => path,
    });
    path.ok_or(PathError::TooFewRelays)
}

/// Exits for the purpose.
pub(crate) fn exits<'a>(consensus: &'a Consensus, purpose: &Purpose) -> Vec<&'a ConsensusRelay> {
    let suiting = |fits: &dyn Fn(&ConsensusRelay) -> bool| -> Vec<_> {
        consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::EXIT) && fits(relay)).collect()
    };
    match purpose {
        Purpose::Delegated(delegation) => {
            let offers = |relay: &&ConsensusRelay| delegation.is_offered(&relay.profile.offer);
            consensus.relays().iter().filter(offers).collect()
        }
        Purpose::Target(target) => suiting(&|relay| suits(relay, target)),
        Purpose::Streams => {
            let usual = suiting(&|relay| relay.profile.exit.may_allow_name(USUAL_PORT));
            if usual.is_empty() { suiting(&|_| true) } else { usual }
        }
    }
}

struct Choice<'a> {
    consensus: &'a Consensus,
    exits: Vec<&'a ConsensusRelay>,
    hops: usize,
}

impl<'a> Choice<'a> {
    fn through<R: CryptoRng + ?Sized>(
        &self,
        guard: &'a ConsensusRelay,
        avoid: &[RelayId],
        rng: &mut R,
    ) -> Option<Path> {
        let parameters = self.consensus.parameters();
        let fits = |relay: &ConsensusRelay, path: &[&ConsensusRelay]| {
            !avoid.contains(&relay.identity()) && !path.iter().any(|hop| related(relay, hop, parameters))
        };
        let mut path = vec![guard];
        let exits: Vec<_> = self.exits.iter().copied().filter(|relay| fits(relay, &path)).collect();
        path.push(pick(&exits, |relay| relay.weight.into(), rng)?);
        let share = ExitShare::of(self.consensus);
        while path.len() < self.hops {
            let middles: Vec<_> = self.consensus.relays().iter().filter(|relay| fits(relay, &path)).collect();
            let middle = pick(&middles, |relay| share.weight(relay), rng)?;
            let exit_position = path.len().saturating_sub(1);
            path.insert(exit_position, middle);
        }
        Some(Path(path.into_iter().map(ConsensusRelay::identity).collect()))
    }
}

#[cfg(test)]
mod tests;
