//! The policy of builds: when a circuit may be built, and over which path.

use super::{build_history::BuildHistory, exit_separation::ExitSeparation, gone_reports::GoneReports};
use crate::{
    base::{Instant, RelayId},
    client::Isolation,
    delegated::Delegation,
    handshake::RelayKeys,
    path::{GuardSample, Path, PathError, PathRelay, Purpose, Relays, Requirement, choose, exits, replace},
};

use rand::CryptoRng;

/// The delegated request of a purpose.
pub(super) const fn delegation_of(purpose: &Purpose) -> Option<&Delegation> {
    match purpose {
        Purpose::Delegated(delegation) => Some(delegation),
        Purpose::Streams | Purpose::Target(_) => None,
    }
}

/// The history of builds, guards and exits that determines the next build.
#[derive(Default)]
pub(super) struct BuildPolicy {
    pub(super) history: BuildHistory,
    pub(super) gone_reports: GoneReports,
    pub(super) exit_separation: ExitSeparation,
    /// The number of scans of the exits for one that isn't avoided.
    #[cfg(test)]
    pub(super) exit_scans: core::cell::Cell<usize>,
}

impl BuildPolicy {
    /// The exits to avoid for `purpose`; none if no other exit remains.
    ///
    /// A stream avoids exits with recent delegated requests. A delegated request avoids exits with recent streams, and
    /// the exits in `carrying`, which carry streams or have carried some. Exits in `refused_by` don't count as
    /// remaining. Volunteers don't count if a listed relay serves the purpose. Otherwise a volunteer would get the
    /// requests of all clients that use the listed exits for streams.
    pub(super) fn avoided_exits(
        &self,
        now: Instant,
        relays: &Relays<'_>,
        purpose: &Purpose,
        refused_by: &[RelayId],
        carrying: impl Iterator<Item = RelayId>,
    ) -> Vec<RelayId> {
        let delegated = delegation_of(purpose).is_some();
        let mut avoided: Vec<RelayId> = self.exit_separation.avoided(now, delegated).collect();
        if delegated {
            avoided.extend(carrying);
        }
        if avoided.is_empty() {
            return avoided;
        }
        #[cfg(test)]
        self.exit_scans.set(self.exit_scans.get().saturating_add(1));
        let remains = |exit: RelayId| !avoided.contains(&exit) && !refused_by.contains(&exit);
        let is_listed = |exit: &PathRelay<'_>| matches!(exit, PathRelay::Listed(_));
        // Usually one of the first exits remains, so the iteration ends early. Volunteers follow the listed relays.
        let mut exits = exits(relays, purpose).peekable();
        let has_listed = exits.peek().is_some_and(is_listed);
        let mut others = exits.take_while(|exit| !has_listed || is_listed(exit));
        if others.any(|exit| remains(exit.identity())) { avoided } else { Vec::new() }
    }

    /// Chooses a path for `isolation`. `None` stands for spare circuits. Relays that recently failed for the same
    /// isolation and the exits in `avoided` are chosen only if no others remain. Exits in `refused_by` are never
    /// chosen.
    ///
    /// # Errors
    /// When there is no path.
    pub(super) fn choose(
        &self,
        now: Instant,
        relays: &Relays<'_>,
        guards: &GuardSample,
        purpose: Purpose,
        (isolation, refused_by, avoided): (Option<Isolation>, &[RelayId], &[RelayId]),
        rng: &mut dyn CryptoRng,
    ) -> Result<Path, PathError> {
        let gateways_without_volunteers = self.gone_reports.gateways_without_volunteers(now);
        let relays = Relays { gateways_without_volunteers: &gateways_without_volunteers, ..*relays };
        let mut avoid = self.history.avoided(now, isolation);
        avoid.extend(avoided);
        let requirement = Requirement { excluded: refused_by.to_vec(), ..Requirement::three_hops(purpose) };
        choose(&relays, guards, &requirement, &avoid, rng)
    }

    /// The path of a circuit for `isolation` with another relay at `position` (from 0). That relay is a volunteer only
    /// if `allow_volunteer` is set. `None` if no relay fits.
    pub(super) fn substitute(
        &self,
        now: Instant,
        relays: &Relays<'_>,
        (isolation, path): (Option<Isolation>, &[RelayKeys]),
        position: usize,
        allow_volunteer: bool,
        rng: &mut dyn CryptoRng,
    ) -> Option<Path> {
        let gateways_without_volunteers = self.gone_reports.gateways_without_volunteers(now);
        let relays = Relays { gateways_without_volunteers: &gateways_without_volunteers, ..*relays };
        let mut avoid = self.history.avoided(now, isolation);
        avoid.extend(path.get(position).map(|relay| relay.identity));
        replace(&relays, path, position, allow_volunteer, &avoid, rng)
    }
}
