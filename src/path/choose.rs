//! One path: guard, middles, exit.
//!
//! A volunteer can be a hop only behind a gateway of its own; so it stands right behind the guard, or last.

use core::fmt;

use rand::{CryptoRng, RngExt as _};

use super::{
    GuardSample,
    hop::{Hop, Relays},
    restrict::related,
    weigh::{ExitShare, one_in, pick},
};
use crate::{
    base::{HopIndex, Instant, RelayId},
    delegated::Delegation,
    directory::{ConsensusRelay, Flags},
    handshake::RelayKeys,
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
pub struct Path {
    hops: Vec<RelayKeys>,
    /// Those of them that are volunteers.
    volunteers: Vec<RelayId>,
}

impl Path {
    fn of(hops: &[Hop<'_>]) -> Self {
        let volunteers = hops.iter().filter(|hop| matches!(hop, Hop::Volunteer(_))).map(Hop::identity).collect();
        Self { hops: hops.iter().map(Hop::keys).collect(), volunteers }
    }

    /// The relays, the guard first; never fewer than two.
    #[must_use]
    pub fn hops(&self) -> Vec<RelayId> {
        self.hops.iter().map(|hop| hop.identity).collect()
    }

    /// All that handshakes with the relays must know, and which of them are volunteers.
    #[must_use]
    pub fn into_keys(self) -> (Vec<RelayKeys>, Vec<RelayId>) {
        (self.hops, self.volunteers)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({} hops)", self.hops.len())
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
    relays: &Relays<'_>,
    guards: &GuardSample,
    requirement: &Requirement,
    avoid: &[RelayId],
    now: Instant,
    rng: &mut R,
) -> Result<Path, PathError> {
    let guards = guards.candidates(relays.consensus, now, rng);
    if guards.is_empty() {
        return Err(PathError::NoGuard);
    }
    let exits = exits(relays, &requirement.purpose);
    if exits.is_empty() {
        return Err(PathError::NoExit);
    }
    let choice = Choice { relays, exits, hops: usize::from(requirement.hops.clamp(2, HopIndex::MAX)) };
    // Whoever fails circuits fills `avoid`, so a guard gives way to it as little as to a target.
    let path = guards.iter().find_map(|guard| match choice.through(guard, avoid, rng) {
        None if !avoid.is_empty() => choice.through(guard, &[], rng),
        path => path,
    });
    path.ok_or(PathError::TooFewRelays)
}

/// Another relay in place of the one at `position` (from 0), which is gone; the others of the path stay. A volunteer only
/// if `volunteers` says so.
pub fn replace<R: CryptoRng + ?Sized>(
    relays: &Relays<'_>,
    path: &[RelayKeys],
    position: usize,
    volunteers: bool,
    avoid: &[RelayId],
    rng: &mut R,
) -> Option<Path> {
    let mut hops: Vec<Hop<'_>> = path.iter().map(|keys| relays.hop(&keys.identity)).collect::<Option<_>>()?;
    let last = position.saturating_add(1) == hops.len();
    if position == 0 || last || position >= hops.len() {
        return None;
    }
    hops.remove(position);
    let choice = Choice { relays, exits: Vec::new(), hops: path.len() };
    let middle = choice
        .middle(&hops, position, volunteers, avoid, rng)
        .or_else(|| choice.middle(&hops, position, false, &[], rng))?;
    hops.insert(position, middle);
    Some(Path::of(&hops))
}

/// Exits for the purpose.
pub(crate) fn exits<'a>(relays: &Relays<'a>, purpose: &Purpose) -> Vec<Hop<'a>> {
    let listed = || relays.consensus.relays().iter();
    let exits = |fits: &dyn Fn(&ConsensusRelay) -> bool| -> Vec<_> {
        let suiting = listed().filter(|relay| relay.flags.contains(Flags::EXIT) && fits(relay));
        suiting.map(Hop::Listed).collect()
    };
    match purpose {
        Purpose::Delegated(delegation) => {
            let volunteers = relays.volunteers().map(Hop::Volunteer);
            let offering = listed().map(Hop::Listed).chain(volunteers);
            offering.filter(|hop| delegation.is_offered(hop.offer())).collect()
        }
        Purpose::Target(target) => exits(&|relay| suits(relay, target)),
        Purpose::Streams => {
            let usual = exits(&|relay| relay.profile.exit.may_allow_name(USUAL_PORT));
            if usual.is_empty() { exits(&|_| true) } else { usual }
        }
    }
}

struct Choice<'a, 'b> {
    relays: &'b Relays<'a>,
    exits: Vec<Hop<'a>>,
    hops: usize,
}

impl<'a> Choice<'a, '_> {
    fn fits(&self, hop: &Hop<'a>, path: &[Hop<'a>], avoid: &[RelayId]) -> bool {
        let parameters = self.relays.consensus.parameters();
        !avoid.contains(&hop.identity()) && !path.iter().any(|other| related(hop, other, parameters))
    }

    fn through<R: CryptoRng + ?Sized>(
        &self,
        guard: &'a ConsensusRelay,
        avoid: &[RelayId],
        rng: &mut R,
    ) -> Option<Path> {
        let mut path = vec![Hop::Listed(guard)];
        let exits = self.exits.iter().copied().filter(|hop| self.fits(hop, &path, avoid));
        let exits: Vec<_> = exits.filter(|exit| self.leads_to(&path, exit, avoid)).collect();
        // A listed one counts also when it is avoided: who can have all of them avoided must not so get what they did.
        let fits = |hop: &Hop<'a>| matches!(hop, Hop::Listed(_)) && self.fits(hop, &path, &[]);
        let volunteers_alone = !self.exits.iter().any(fits);
        path.push(self.exit(&exits, volunteers_alone, rng)?);
        while path.len() < self.hops {
            let position = path.len().saturating_sub(1);
            path.insert(position, self.middle(&path, position, true, avoid, rng)?);
        }
        Some(Path::of(&path))
    }

    /// Whether a path that begins like this can end at `exit`: a volunteer must not be able to name gateways that fit no guard,
    /// and so move clients from one guard to the next.
    fn leads_to(&self, path: &[Hop<'a>], exit: &Hop<'a>, avoid: &[RelayId]) -> bool {
        let Hop::Volunteer(volunteer) = exit else { return true };
        if self.hops == 2 {
            return path.last().is_some_and(|guard| exit.follows(guard));
        }
        let gateways = volunteer.gateways.iter().filter_map(|gateway| self.relays.consensus.relay(gateway));
        let with_exit: Vec<_> = path.iter().chain([exit]).copied().collect();
        gateways.map(Hop::Listed).any(|gateway| self.fits(&gateway, &with_exit, avoid))
    }

    /// One of `exits`: by weight among those that are listed, by chance among volunteers, which get no more than their share
    /// unless they are alone in what they do.
    fn exit<R: CryptoRng + ?Sized>(&self, exits: &[Hop<'a>], volunteers_alone: bool, rng: &mut R) -> Option<Hop<'a>> {
        let (listed, volunteers): (Vec<_>, Vec<_>) = exits.iter().partition(|hop| matches!(hop, Hop::Listed(_)));
        let share = self.relays.consensus.parameters().volunteer_exit_share();
        if volunteers_alone || volunteers_turn(share, volunteers.len(), listed.len(), rng) {
            return one_in(&volunteers, rng);
        }
        pick(&listed, Hop::weight, rng)
    }

    /// A middle for `position` of a path that so far has the relays before it and the exit.
    fn middle<R: CryptoRng + ?Sized>(
        &self,
        path: &[Hop<'a>],
        position: usize,
        volunteers: bool,
        avoid: &[RelayId],
        rng: &mut R,
    ) -> Option<Hop<'a>> {
        let (before, exit) = (path.get(position.checked_sub(1)?)?, path.last()?);
        // What comes before a volunteer at the end must be a gateway of its.
        let before_exit = position.saturating_add(2) == self.hops;
        let leads_on = |hop: &Hop<'a>| !before_exit || exit.follows(hop);
        let fits = |hop: &Hop<'a>| self.fits(hop, path, avoid) && hop.follows(before) && leads_on(hop);
        if let Some(wanted) = self.relays.middle.filter(|_| position == 1) {
            return self.relays.hop(&wanted).filter(fits);
        }
        let listed: Vec<_> = self.relays.consensus.relays().iter().map(Hop::Listed).filter(fits).collect();
        let doubted = self.relays.doubted.contains(&before.identity());
        if volunteers && position == 1 && !doubted {
            let reached: Vec<_> = self.relays.volunteers().map(Hop::Volunteer).filter(fits).collect();
            let share = self.relays.consensus.parameters().volunteer_share();
            if volunteers_turn(share, reached.len(), listed.len(), rng) {
                return one_in(&reached, rng);
            }
        }
        let share = ExitShare::of(self.relays.consensus);
        pick(&listed, |hop| share.weight(hop), rng)
    }
}

/// Whether one of so many volunteers is to have a place that one of so many listed relays could have: with `share` percent
/// at most, and no more often than if all were as likely, so that few volunteers don't get much.
fn volunteers_turn<R: CryptoRng + ?Sized>(share: u64, volunteers: usize, listed: usize, rng: &mut R) -> bool {
    let all = volunteers.saturating_add(listed);
    let part = volunteers.saturating_mul(10_000).checked_div(all).unwrap_or_default();
    rng.random_range(0..10_000) < share.saturating_mul(100).min(u64::try_from(part).unwrap_or_default())
}

#[cfg(test)]
mod tests;
