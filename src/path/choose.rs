//! The choice of one path: guard, middles, exit.
//!
//! With layer-2 guards, the first middle is one of them, and a path has one relay more: otherwise the exit would see
//! the client's few layer-2 guards. A volunteer can be a hop only directly behind one of its gateways: as the first
//! middle that isn't a layer-2 guard, or as last hop.

use core::fmt;

use rand::{CryptoRng, RngExt as _};

use super::{
    GuardSample,
    hop::{PathRelay, Relays},
    names::SpecialHost,
    restrict::{related, related_by_consent},
    weigh::{ExitShare, pick_by_weight, pick_uniformly},
};
use crate::{
    base::{ErrorClass, HopIndex, RelayId},
    delegated::Delegation,
    directory::{ConsensusRelay, Flags},
    handshake::RelayKeys,
    wire::{Host, Target},
};

/// The port of most targets. A circuit built ahead ends at an exit that allows this port, if there is such an exit.
const USUAL_PORT: u16 = 443;

/// The requirements for a path.
#[derive(Clone, Debug)]
pub struct Requirement {
    /// Number of hops without a layer-2 guard, clamped to 2 to 8.
    pub hops: u8,
    /// Purpose of the exit.
    pub purpose: Purpose,
    /// The exits that are never chosen, because they have refused this request, for example.
    pub excluded: Vec<RelayId>,
}

/// The purpose of a path's exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Forward streams with targets not known yet, for a circuit built ahead.
    Streams,
    /// Forward a stream to this target.
    Target(Target),
    /// Perform delegated requests.
    Delegated(Delegation),
}

impl Purpose {
    /// The error if no exit fits this purpose.
    pub(crate) const fn error_without_exit(&self) -> PathError {
        match self {
            Self::Streams | Self::Target(_) => PathError::NoExit,
            Self::Delegated(_) => PathError::NotOffered,
        }
    }
}

impl Requirement {
    /// Three hops to an exit for `purpose`, or four with a layer-2 guard.
    #[must_use]
    pub const fn three_hops(purpose: Purpose) -> Self {
        Self { hops: 3, purpose, excluded: Vec::new() }
    }
}

/// Why there is no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No guard of the sample is listed.
    #[error("the consensus lists no guard: no relay is public and stable")]
    NoGuard,
    /// No exit's policy allows the target.
    #[error("no exit of the network allows this target")]
    NoExit,
    /// No exit offers the delegated request.
    #[error("no exit of the network offers this service")]
    NotOffered,
    /// All exits for the purpose are related to the client's guard.
    #[error("all exits for this request may belong to the operator of this client's guard")]
    OnlyRelatedExits,
    /// The network has too few unrelated relays for a path.
    #[error("the network has too few unrelated relays for a path")]
    TooFewRelays,
}

impl PathError {
    /// The error's class.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::NoExit | Self::NotOffered | Self::OnlyRelatedExits => ErrorClass::Local,
            Self::NoGuard | Self::TooFewRelays => ErrorClass::Network,
        }
    }
}

/// The relays of one circuit, from guard to exit. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct Path {
    hops: Vec<RelayKeys>,
    /// The volunteers among the hops.
    volunteers: Vec<RelayId>,
}

impl Path {
    fn of(hops: &[PathRelay<'_>]) -> Self {
        let volunteers =
            hops.iter().filter(|hop| matches!(hop, PathRelay::Volunteer(_))).map(PathRelay::identity).collect();
        Self { hops: hops.iter().map(PathRelay::keys).collect(), volunteers }
    }

    /// The relays from guard to exit, at least two.
    #[must_use]
    pub fn hops(&self) -> Vec<RelayId> {
        self.hops.iter().map(|hop| hop.identity).collect()
    }

    /// The relays' keys for handshakes, and the volunteers among the relays.
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

/// Whether `relay` is an exit that may forward to `target`. A name fits if the exit allows the port in either address
/// family, because only the exit resolves names. A private name fits only if the exit allows private addresses too.
#[must_use]
pub fn permits_target(relay: &ConsensusRelay, target: &Target) -> bool {
    let exit = &relay.profile.exit;
    let is_allowed = match &target.host {
        Host::Ip(ip) => exit.may_allow(*ip, target.port),
        Host::Name(name) => {
            exit.may_allow_name(target.port) && (exit.private_addresses() || SpecialHost::of_name(name).is_none())
        }
    };
    relay.flags.contains(Flags::EXIT) && is_allowed
}

/// Chooses a path for `requirement`. The guard is chosen first and independently of the target, so that a target can't
/// change the guard. The next guard is used only if the network is too small for a path through the first guard to any
/// exit, or if the guard and its family are the only exits for the purpose. Otherwise an exit that no other
/// exit can replace could claim to be related to some guards, and learn from a change which guard a client has. Relays
/// in `avoid` (recently failed, for example) are middle or exit only if no others remain. In a network with too few
/// relays for a path with a layer-2 guard, the path has none.
///
/// # Errors
/// When there is no guard, no exit for the purpose, no exit unrelated to the guard, or no path of unrelated relays.
pub fn choose<R: CryptoRng + ?Sized>(
    relays: &Relays<'_>,
    guards: &GuardSample,
    requirement: &Requirement,
    avoid: &[RelayId],
    rng: &mut R,
) -> Result<Path, PathError> {
    let candidates = guards.candidates(relays.consensus, rng);
    if candidates.is_empty() {
        return Err(PathError::NoGuard);
    }
    let is_excluded = |exit: &PathRelay<'_>| requirement.excluded.contains(&exit.identity());
    let exits: Vec<_> = exits(relays, &requirement.purpose).filter(|exit| !is_excluded(exit)).collect();
    if exits.is_empty() {
        return Err(requirement.purpose.error_without_exit());
    }
    let hops = usize::from(requirement.hops.clamp(2, HopIndex::MAX));
    let choice = Choice { relays, exits: &exits, hops, layer_two: &[], volunteer_position: 1 };
    let layer_two = if hops > 2 && relays.middle.is_none() { guards.layer_two() } else { Vec::new() };
    let longer = hops.saturating_add(1).min(usize::from(HopIndex::MAX));
    let with_layer_two = Choice { hops: longer, layer_two: &layer_two, volunteer_position: 2, ..choice };
    let choices = [(!layer_two.is_empty()).then_some(with_layer_two), Some(choice)];
    // An adversary that fails circuits can fill `avoid`, so `avoid` must not change the guard or the number of hops.
    for guard in candidates {
        let avoided_next = guards.avoided_next(relays.consensus, &guard.identity());
        let path =
            choices.iter().flatten().find_map(|choice| match choice.path_through(guard, avoid, &avoided_next, rng) {
                None if !avoid.is_empty() => choice.path_through(guard, &[], &avoided_next, rng),
                path => path,
            });
        if let Some(path) = path {
            return Ok(path);
        }
        let hop = PathRelay::Listed(guard);
        if exits.iter().all(|exit| related_by_consent(&hop, exit)) {
            continue;
        }
        let any_exits: Vec<_> = self::exits(relays, &Purpose::Streams).collect();
        if (Choice { exits: &any_exits, ..choice }).path_through(guard, &[], &[], rng).is_some() {
            return Err(PathError::OnlyRelatedExits);
        }
    }
    Err(PathError::TooFewRelays)
}

/// A path for a circuit without requests. The circuit measures whether a suspect guard or the relays behind that guard
/// fail circuits. The path begins with another primary guard and one of these relays. `None` if no guard is suspect, if
/// all these relays are measured, or if no other path fits.
pub fn measure<R: CryptoRng + ?Sized>(relays: &Relays<'_>, guards: &GuardSample, rng: &mut R) -> Option<Path> {
    let (guard, next) = guards.measurement(relays.consensus, rng)?;
    let relays = Relays { middle: Some(next), ..*relays };
    let exits: Vec<_> = exits(&relays, &Purpose::Streams).collect();
    let choice = Choice { relays: &relays, exits: &exits, hops: 3, layer_two: &[], volunteer_position: 1 };
    choice.path_through(guard, &[], &[], rng)
}

/// Replaces the unreachable relay at `position` (from 0); the other relays of the path stay. A volunteer is chosen only
/// if `allow_volunteer` is set. `None` for the position of the guard or the exit, if no relay fits, or if a relay of
/// the path is no longer listed.
pub fn replace<R: CryptoRng + ?Sized>(
    relays: &Relays<'_>,
    path: &[RelayKeys],
    position: usize,
    allow_volunteer: bool,
    avoid: &[RelayId],
    rng: &mut R,
) -> Option<Path> {
    let mut hops: Vec<PathRelay<'_>> = path.iter().map(|keys| relays.hop(&keys.identity)).collect::<Option<_>>()?;
    let is_last = position.saturating_add(1) == hops.len();
    if position == 0 || is_last || position >= hops.len() {
        return None;
    }
    hops.remove(position);
    let choice = Choice { relays, exits: &[], hops: path.len(), layer_two: &[], volunteer_position: position };
    let middle = choice
        .middle(&hops, position, allow_volunteer, avoid, rng)
        .or_else(|| choice.middle(&hops, position, false, &[], rng))?;
    hops.insert(position, middle);
    Some(Path::of(&hops))
}

/// The relays that fit the exit position for `purpose`, first those of the consensus; for delegated requests also
/// volunteers.
pub(crate) fn exits<'a>(relays: &Relays<'a>, purpose: &Purpose) -> impl Iterator<Item = PathRelay<'a>> {
    let listed = relays.consensus.relays().iter();
    let allows_usual_port =
        |relay: &ConsensusRelay| relay.flags.contains(Flags::EXIT) && relay.profile.exit.may_allow_name(USUAL_PORT);
    let is_usual_port_allowed = matches!(purpose, Purpose::Streams) && listed.clone().any(allows_usual_port);
    let fits = move |hop: &PathRelay<'a>| match (purpose, hop) {
        (Purpose::Delegated(delegation), _) => delegation.is_offered(hop.offer()),
        (Purpose::Target(target), PathRelay::Listed(relay)) => permits_target(relay, target),
        (Purpose::Streams, PathRelay::Listed(relay)) if is_usual_port_allowed => allows_usual_port(relay),
        (Purpose::Streams, PathRelay::Listed(relay)) => relay.flags.contains(Flags::EXIT),
        (Purpose::Streams | Purpose::Target(_), PathRelay::Volunteer(_)) => false,
    };
    listed.map(PathRelay::Listed).chain(relays.volunteers().map(PathRelay::Volunteer)).filter(fits)
}

/// The choice of one path.
#[derive(Clone, Copy)]
struct Choice<'a, 'b> {
    relays: &'b Relays<'a>,
    /// The relays that fit the exit position.
    exits: &'b [PathRelay<'a>],
    /// Number of hops.
    hops: usize,
    /// The layer-2 guards, one of which follows the guard. If there are none, any relay does.
    layer_two: &'b [RelayId],
    /// The position of the middle that may be a volunteer.
    volunteer_position: usize,
}

impl<'a> Choice<'a, '_> {
    /// Whether `hop` is not in `avoid`, and unrelated to all relays of `path`.
    fn fits(&self, hop: &PathRelay<'a>, path: &[PathRelay<'a>], avoid: &[RelayId]) -> bool {
        let parameters = self.relays.consensus.parameters();
        !avoid.contains(&hop.identity()) && !path.iter().any(|other| related(hop, other, parameters))
    }

    /// Chooses a path that begins with `guard`. A relay in `avoided_next` follows the guard only if no other remains.
    fn path_through<R: CryptoRng + ?Sized>(
        &self,
        guard: &'a ConsensusRelay,
        avoid: &[RelayId],
        avoided_next: &[RelayId],
        rng: &mut R,
    ) -> Option<Path> {
        let mut path = vec![PathRelay::Listed(guard)];
        let exits = self.exits_within_bound(&path).into_iter().filter(|hop| self.fits(hop, &path, avoid));
        let exits: Vec<_> = exits.filter(|exit| self.leads_to(&path, exit, avoid)).collect();
        // Avoided listed exits count too: an adversary that fails circuits through them must not receive their traffic.
        let fits = |hop: &PathRelay<'a>| matches!(hop, PathRelay::Listed(_)) && self.fits(hop, &path, &[]);
        let only_volunteers = !self.exits.iter().any(fits);
        path.push(self.exit(&exits, only_volunteers, rng)?);
        while path.len() < self.hops {
            let position = path.len().saturating_sub(1);
            let preferred = if position == 1 && !self.layer_two.is_empty() {
                self.layer_two_guard(&path, avoid, avoided_next, rng)
            } else if position == 1 && !avoided_next.is_empty() {
                self.middle(&path, position, true, &[avoid, avoided_next].concat(), rng)
            } else {
                None
            };
            let middle = preferred.or_else(|| self.middle(&path, position, true, avoid, rng))?;
            path.insert(position, middle);
        }
        Some(Path::of(&path))
    }

    /// The exits for a path that begins with `path`, without those that exclude more than one of the layer-2 guards
    /// that `path` permits, or the only one. By an operator and addresses in common with layer-2 guards, such an exit
    /// could steer its clients to a layer-2 guard of its choice, or to another relay. These exits stay if all listed
    /// exits, or all volunteers, are such exits. Exits to avoid count as others, because an adversary may fail circuits
    /// through these.
    fn exits_within_bound(&self, path: &[PathRelay<'a>]) -> Vec<PathRelay<'a>> {
        if self.layer_two.is_empty() {
            return self.exits.to_vec();
        }
        let permitted = self.permitted_layer_two_guards(path);
        let max_excluded = permitted.len().saturating_sub(1).min(1);
        let is_within = |exit: &PathRelay<'a>| {
            let excluded = permitted.iter().filter(|hop| !self.fits(hop, &[*exit], &[])).count();
            excluded <= max_excluded && self.fits(exit, path, &[]) && self.leads_to(path, exit, &[])
        };
        let (mut listed, mut volunteers): (Vec<PathRelay<'a>>, Vec<PathRelay<'a>>) =
            self.exits.iter().partition(|hop| matches!(hop, PathRelay::Listed(_)));
        for exits in [&mut listed, &mut volunteers] {
            if exits.iter().any(is_within) {
                exits.retain(is_within);
            }
        }
        [listed, volunteers].concat()
    }

    /// The layer-2 guards that the path restrictions permit on a path with these relays.
    fn permitted_layer_two_guards(&self, path: &[PathRelay<'a>]) -> Vec<PathRelay<'a>> {
        let listed = self.layer_two.iter().filter_map(|relay| self.relays.consensus.relay(relay));
        listed.map(PathRelay::Listed).filter(|hop| self.fits(hop, path, &[])).collect()
    }

    /// Chooses one of the layer-2 guards that the path restrictions permit; `None` if they permit none. Relays to avoid
    /// are chosen if no other layer-2 guards remain. Otherwise an adversary that fails circuits could lead a client
    /// beyond its layer-2 guards.
    fn layer_two_guard<R: CryptoRng + ?Sized>(
        &self,
        path: &[PathRelay<'a>],
        avoid: &[RelayId],
        avoided_next: &[RelayId],
        rng: &mut R,
    ) -> Option<PathRelay<'a>> {
        let permitted = self.permitted_layer_two_guards(path);
        let is_avoided = |hop: &PathRelay<'a>| [avoid, avoided_next].iter().any(|it| it.contains(&hop.identity()));
        let preferred: Vec<_> = permitted.iter().copied().filter(|hop| !is_avoided(hop)).collect();
        pick_uniformly(&preferred, rng).or_else(|| pick_uniformly(&permitted, rng))
    }

    /// Whether a path that begins with `path` can end at `exit`. Without this check, a volunteer whose gateways fit no
    /// path behind a guard could move clients to other guards.
    fn leads_to(&self, path: &[PathRelay<'a>], exit: &PathRelay<'a>, avoid: &[RelayId]) -> bool {
        let PathRelay::Volunteer(volunteer) = exit else { return true };
        if self.hops == 2 {
            return path.last().is_some_and(|guard| exit.follows(guard));
        }
        let gateways = volunteer.gateways.iter().filter_map(|gateway| self.relays.consensus.relay(gateway));
        let with_exit: Vec<_> = path.iter().chain([exit]).copied().collect();
        gateways.map(PathRelay::Listed).any(|gateway| self.fits(&gateway, &with_exit, avoid))
    }

    /// Chooses one of `exits`: listed ones by weight, volunteers uniformly. A volunteer is chosen with at most the
    /// probability `path.volunteer-exit-share`, and always if `only_volunteers` is set: no listed exit fits.
    fn exit<R: CryptoRng + ?Sized>(
        &self,
        exits: &[PathRelay<'a>],
        only_volunteers: bool,
        rng: &mut R,
    ) -> Option<PathRelay<'a>> {
        let (listed, volunteers): (Vec<_>, Vec<_>) = exits.iter().partition(|hop| matches!(hop, PathRelay::Listed(_)));
        let share = self.relays.consensus.parameters().volunteer_exit_share();
        if only_volunteers || volunteer_selected(share, volunteers.len(), listed.len(), rng) {
            return pick_uniformly(&volunteers, rng);
        }
        pick_by_weight(&listed, PathRelay::weight, rng)
    }

    /// Chooses a middle for `position` of `path`, which has the relays before that position and the exit. A volunteer
    /// is chosen only if `allow_volunteer` is set.
    fn middle<R: CryptoRng + ?Sized>(
        &self,
        path: &[PathRelay<'a>],
        position: usize,
        allow_volunteer: bool,
        avoid: &[RelayId],
        rng: &mut R,
    ) -> Option<PathRelay<'a>> {
        let (before, exit) = (path.get(position.checked_sub(1)?)?, path.last()?);
        // The hop before a volunteer at the exit position must be one of the volunteer's gateways.
        let is_before_exit = position.saturating_add(2) == self.hops;
        let leads_to_exit = |hop: &PathRelay<'a>| !is_before_exit || exit.follows(hop);
        let fits = |hop: &PathRelay<'a>| self.fits(hop, path, avoid) && hop.follows(before) && leads_to_exit(hop);
        if let Some(required) = self.relays.middle.filter(|_| position == 1) {
            return self.relays.hop(&required).filter(fits);
        }
        let listed: Vec<_> = self.relays.consensus.relays().iter().map(PathRelay::Listed).filter(fits).collect();
        let gets_volunteers = !self.relays.gateways_without_volunteers.contains(&before.identity());
        if allow_volunteer && position == self.volunteer_position && gets_volunteers {
            let reached: Vec<_> = self.relays.volunteers().map(PathRelay::Volunteer).filter(fits).collect();
            let share = self.relays.consensus.parameters().volunteer_share();
            if volunteer_selected(share, reached.len(), listed.len(), rng) {
                return pick_uniformly(&reached, rng);
            }
        }
        let share = ExitShare::of(self.relays.consensus);
        pick_by_weight(&listed, |hop| share.weight(hop), rng)
    }
}

/// Whether a volunteer takes a position that `volunteers` volunteers and `listed` listed relays fit. The probability is
/// `share` percent, but at most the proportion of volunteers, so that few volunteers get little traffic.
fn volunteer_selected<R: CryptoRng + ?Sized>(share: u64, volunteers: usize, listed: usize, rng: &mut R) -> bool {
    let all = volunteers.saturating_add(listed);
    let proportion = volunteers.saturating_mul(10_000).checked_div(all).unwrap_or_default();
    rng.random_range(0..10_000) < share.saturating_mul(100).min(u64::try_from(proportion).unwrap_or_default())
}

#[cfg(test)]
mod tests;
