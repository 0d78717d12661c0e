//! Layer-2 guards: the few relays behind the guard, kept for days and common to all circuits of a client.
//!
//! If each circuit had another relay behind the guard, relays of an adversary would soon see the guard. A path with a
//! layer-2 guard has one more relay, chosen for each circuit, between the layer-2 guard and the exit. An exit that saw
//! the layer-2 guard could link circuits of different isolations (`proto/08-paths.md` §4).

use core::time::Duration;

use rand::{CryptoRng, RngExt};

use super::{DAY, GuardSample};
use crate::{
    base::{RelayId, WallTime},
    directory::{Consensus, Flags, decode_identity, schema},
    path::{
        hop::PathRelay,
        restrict::related,
        weigh::{ExitShare, pick_by_weight},
    },
};

/// Bounds of the lifetime. The lifetime is the greater of two times drawn uniformly between these bounds.
const MIN_LIFETIME: Duration = DAY;
const MAX_LIFETIME: Duration = DAY.saturating_mul(12);
/// Minimum time between two replacements of failing layer-2 guards. Without this bound, a malicious guard that ends
/// circuits could soon replace all layer-2 guards by relays of its operator.
const REPLACEMENT_INTERVAL: Duration = Duration::from_secs(DAY.as_secs() / 2);
/// Time for which a layer-2 guard that isn't listed as stable keeps its place. An attacker who floods relays until a
/// consensus omits them must not move clients to other layer-2 guards for days.
const MAX_UNLISTED: Duration = DAY.saturating_mul(2);
/// Maximum number of layer-2 guards; the maximum of `path.layer-2-guards`.
const MAX_LAYER_TWO_GUARDS: usize = 16;

/// The layer-2 guards of a client.
#[derive(Clone, Default)]
pub(super) struct LayerTwoGuards {
    /// In the order in which they were drawn. More than the number in use, if substitutes were drawn.
    guards: Vec<LayerTwoGuard>,
    /// Whether the current consensus has enough stable relays.
    is_on: bool,
    /// The first of `guards` that are listed as stable in the current consensus.
    in_use: Vec<RelayId>,
    /// The date of the consensus with which a failing layer-2 guard was last replaced.
    replaced_at: Option<WallTime>,
}

#[derive(Clone)]
struct LayerTwoGuard {
    identity: RelayId,
    /// The end of the lifetime.
    expires: WallTime,
    /// The date of the last consensus that lists it as stable.
    last_listed: WallTime,
}

impl LayerTwoGuards {
    pub(super) fn identities(&self) -> impl Iterator<Item = RelayId> {
        self.guards.iter().map(|guard| guard.identity)
    }

    /// Whether paths have a layer-2 guard.
    pub(super) const fn is_on(&self) -> bool {
        self.is_on && !self.guards.is_empty()
    }

    pub(super) fn contains(&self, relay: &RelayId) -> bool {
        self.identities().any(|guard| guard == *relay)
    }

    /// Decides by a new consensus whether layer-2 guards are used. A client that has some uses them down to half of the
    /// minimum. So an attacker who stops a few relays of a network at the minimum doesn't turn them off.
    pub(super) fn handle_consensus(&mut self, consensus: &Consensus) {
        let stable = consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::STABLE)).count();
        let min_network = consensus.parameters().min_layer_two_network();
        let min = if self.guards.is_empty() { min_network } else { min_network / 2 };
        self.is_on = u64::try_from(stable).is_ok_and(|stable| stable >= min);
    }

    /// Removes layer-2 guards past their lifetime, and those that weren't listed as stable for [`MAX_UNLISTED`]. Also
    /// removes those whose lifetime ends later than [`MAX_LIFETIME`] from now.
    fn remove_unusable(&mut self, consensus: &Consensus) {
        let date = consensus.valid_after();
        self.guards.retain_mut(|guard| {
            if is_stable(consensus, &guard.identity) {
                guard.last_listed = date;
            }
            date < guard.expires
                && guard.expires.since(date) <= MAX_LIFETIME
                && date.since(guard.last_listed) <= MAX_UNLISTED
        });
    }

    /// The layer-2 guards that are listed as stable.
    fn listed(&self, consensus: &Consensus) -> impl Iterator<Item = RelayId> {
        self.identities().filter(|guard| is_stable(consensus, guard))
    }

    /// Whether one more layer-2 guard must be drawn: there are fewer than `number`, or fewer than half of them are listed.
    fn is_short(&self, consensus: &Consensus, number: usize) -> bool {
        let has_room = self.guards.len() < MAX_LAYER_TWO_GUARDS;
        self.guards.len() < number || has_room && self.listed(consensus).count() < number.div_ceil(2)
    }

    /// Removes one layer-2 guard in `failing`, if the last replacement was long enough ago.
    fn remove_failing(&mut self, date: WallTime, failing: &[RelayId]) {
        let is_due = self.replaced_at.is_none_or(|at| date.since(at) >= REPLACEMENT_INTERVAL);
        let position = self.guards.iter().position(|guard| failing.contains(&guard.identity));
        if let Some(position) = position.filter(|_| is_due) {
            self.guards.remove(position);
            self.replaced_at = Some(date);
        }
    }

    pub(super) fn encode(&self) -> Vec<schema::LayerTwoGuard> {
        let encode = |guard: &LayerTwoGuard| schema::LayerTwoGuard {
            identity: guard.identity.as_bytes().to_vec(),
            expires: guard.expires.as_unix(),
            last_listed: guard.last_listed.as_unix(),
        };
        self.guards.iter().map(encode).collect()
    }

    /// The date of the last replacement, in Unix seconds; 0 if there was none.
    pub(super) fn encode_replaced_at(&self) -> u64 {
        self.replaced_at.map_or(0, WallTime::as_unix)
    }

    /// Decodes the output of [`Self::encode`] and [`Self::encode_replaced_at`]; `None` if it is invalid.
    pub(super) fn decode(guards: &[schema::LayerTwoGuard], replaced_at: u64) -> Option<Self> {
        if guards.len() > MAX_LAYER_TWO_GUARDS {
            return None;
        }
        let decode = |guard: &schema::LayerTwoGuard| {
            let identity = decode_identity(&guard.identity)?;
            let (expires, last_listed) = (guard.expires, guard.last_listed);
            let (expires, last_listed) = (WallTime::from_unix(expires), WallTime::from_unix(last_listed));
            Some(LayerTwoGuard { identity, expires, last_listed })
        };
        let guards = guards.iter().map(decode).collect::<Option<_>>()?;
        Some(Self {
            guards,
            is_on: false,
            in_use: Vec::new(),
            replaced_at: (replaced_at > 0).then(|| WallTime::from_unix(replaced_at)),
        })
    }
}

impl GuardSample {
    /// The layer-2 guards in use; none if the consensus turns them off, or has too few stable relays.
    pub(crate) fn layer_two(&self) -> Vec<RelayId> {
        self.layer_two.in_use.clone()
    }

    /// Updates the layer-2 guards to a new consensus. Returns whether some were added or removed. While the consensus has
    /// too few stable relays, the layer-2 guards stay but are not used, so that a return to more relays draws no others.
    /// Layer-2 guards that a consensus omits stay too. Substitutes are drawn if more than half are omitted, and stay behind
    /// them.
    pub(super) fn update_layer_two<R: CryptoRng + ?Sized>(&mut self, consensus: &Consensus, rng: &mut R) -> bool {
        let number = consensus.parameters().layer_two_guards();
        let number = usize::try_from(number).unwrap_or(MAX_LAYER_TWO_GUARDS).min(MAX_LAYER_TWO_GUARDS);
        let before: Vec<_> = self.layer_two.identities().collect();
        self.layer_two.remove_unusable(consensus);
        let failing: Vec<_> = self.primaries().flat_map(|guard| guard.next_relays.failing_often()).collect();
        self.layer_two.remove_failing(consensus.valid_after(), &failing);
        while self.layer_two.is_on
            && self.layer_two.is_short(consensus, number)
            && let Some(identity) = self.draw_layer_two(consensus, rng)
        {
            let expires = consensus.valid_after().after(draw_lifetime(rng));
            let last_listed = consensus.valid_after();
            self.layer_two.guards.push(LayerTwoGuard { identity, expires, last_listed });
        }
        let in_use = self.layer_two.listed(consensus).take(if self.layer_two.is_on { number } else { 0 });
        self.layer_two.in_use = in_use.collect();
        !self.layer_two.identities().eq(before)
    }

    /// Draws a layer-2 guard by weight. Relays that fail behind a primary guard are drawn only if no others remain. The
    /// same holds for relays related to a primary guard or another layer-2 guard. So the path restrictions permit most
    /// layer-2 guards on each path.
    fn draw_layer_two<R: CryptoRng + ?Sized>(&self, consensus: &Consensus, rng: &mut R) -> Option<RelayId> {
        let share = ExitShare::of(consensus);
        let listed = consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::STABLE));
        let eligible: Vec<_> = listed
            .filter(|relay| !self.layer_two.contains(&relay.identity()))
            .map(PathRelay::Listed)
            .filter(|hop| share.weight(hop) > 0)
            .collect();
        let failing: Vec<_> = self.primaries().flat_map(|guard| guard.next_relays.failing()).collect();
        let others: Vec<_> = self.primaries().map(|guard| guard.identity).chain(self.layer_two.identities()).collect();
        let others: Vec<_> = others.iter().filter_map(|relay| consensus.relay(relay)).map(PathRelay::Listed).collect();
        let is_related = |hop: &PathRelay<'_>| others.iter().any(|other| related(hop, other, consensus.parameters()));
        let preferred: Vec<_> =
            eligible.iter().copied().filter(|hop| !failing.contains(&hop.identity()) && !is_related(hop)).collect();
        let relays = if preferred.is_empty() { &eligible } else { &preferred };
        pick_by_weight(relays, |hop| share.weight(hop), rng).map(|hop| hop.identity())
    }
}

fn is_stable(consensus: &Consensus, relay: &RelayId) -> bool {
    consensus.relay(relay).is_some_and(|relay| relay.flags.contains(Flags::STABLE))
}

/// The lifetime of a layer-2 guard. The greater of two times makes short lifetimes rare.
fn draw_lifetime<R: CryptoRng + ?Sized>(rng: &mut R) -> Duration {
    let mut draw = || rng.random_range(MIN_LIFETIME.as_secs()..=MAX_LIFETIME.as_secs());
    Duration::from_secs(draw().max(draw()))
}

#[cfg(test)]
mod tests;
