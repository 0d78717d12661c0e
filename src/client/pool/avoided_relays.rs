//! Relays to avoid after failed builds, for each isolation.
//!
//! A relay that fails a build for one isolation is not avoided by others. Otherwise the relay could recognise the other
//! circuits of the client by its absence from their paths. Only guards that can't be reached are avoided by all
//! isolations, because all isolations share the guard.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use crate::{
    base::{Instant, RelayId},
    client::Isolation,
};

/// Time for which an unresponsive relay is avoided.
const AVOIDANCE_TIME: Duration = Duration::from_secs(60);
/// Cap on avoided relays of one isolation, and on unreachable guards. The one avoided longest is evicted.
const MAX_AVOIDED: usize = 16;
/// Cap on isolations with avoided relays. The one whose last failure is oldest is evicted.
const MAX_ISOLATIONS: usize = 512;

/// Relays with the times of their failures, the earliest first.
#[derive(Default)]
struct Failed(VecDeque<(RelayId, Instant)>);

impl Failed {
    fn insert(&mut self, now: Instant, relay: RelayId) {
        self.0.retain(|(other, _)| *other != relay);
        if self.0.len() >= MAX_AVOIDED {
            self.0.pop_front();
        }
        self.0.push_back((relay, now));
    }

    fn last(&self) -> Option<Instant> {
        self.0.back().map(|(_, at)| *at)
    }

    fn recent(&self, now: Instant) -> impl Iterator<Item = RelayId> {
        self.0.iter().filter(move |(_, at)| is_recent(now, *at)).map(|(relay, _)| *relay)
    }
}

/// Relays that recently failed to answer.
#[derive(Default)]
pub(super) struct AvoidedRelays {
    guards: Failed,
    /// The key of spare circuits is `None`.
    by_isolation: BTreeMap<Option<Isolation>, Failed>,
}

impl AvoidedRelays {
    /// `relay` failed a build for `isolation`.
    pub(super) fn handle_failed(&mut self, now: Instant, isolation: Option<Isolation>, relay: RelayId) {
        self.by_isolation.retain(|_, failed| failed.last().is_some_and(|at| is_recent(now, at)));
        if self.by_isolation.len() >= MAX_ISOLATIONS && !self.by_isolation.contains_key(&isolation) {
            let oldest = self.by_isolation.iter().min_by_key(|(_, failed)| failed.last());
            oldest.map(|(isolation, _)| *isolation).map(|isolation| self.by_isolation.remove(&isolation));
        }
        self.by_isolation.entry(isolation).or_default().insert(now, relay);
    }

    /// The guard `relay` can't be reached.
    pub(super) fn handle_guard_failed(&mut self, now: Instant, relay: RelayId) {
        self.guards.insert(now, relay);
    }

    /// The time of the last failure of the guard `relay`.
    pub(super) fn guard_failed_at(&self, relay: &RelayId) -> Option<Instant> {
        self.guards.0.iter().find(|(guard, _)| guard == relay).map(|(_, at)| *at)
    }

    /// Relays that builds for `isolation` avoid.
    pub(super) fn avoided(&self, now: Instant, isolation: Option<Isolation>) -> Vec<RelayId> {
        let failed = self.by_isolation.get(&isolation).into_iter().flat_map(|failed| failed.recent(now));
        self.guards.recent(now).chain(failed).collect()
    }
}

fn is_recent(now: Instant, at: Instant) -> bool {
    now.since(at) < AVOIDANCE_TIME
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const A: Option<Isolation> = Some(Isolation([1; 32]));
    const B: Option<Isolation> = Some(Isolation([2; 32]));

    const fn relay(number: u8) -> RelayId {
        RelayId::from_bytes([number; 32])
    }

    #[test]
    fn a_relay_that_failed_is_avoided_for_a_minute_by_the_same_isolation() {
        let mut avoided = AvoidedRelays::default();
        for number in 0..40 {
            avoided.handle_failed(Instant::START, A, relay(number));
        }
        assert_eq!(avoided.avoided(Instant::START, A).len(), MAX_AVOIDED);
        assert!(avoided.avoided(Instant::START, B).is_empty() && avoided.avoided(Instant::START, None).is_empty());
        assert_eq!(avoided.avoided(Instant::START.after(AVOIDANCE_TIME), A), []);
    }

    #[test]
    fn a_guard_that_cannot_be_reached_is_avoided_by_all_isolations() {
        let mut avoided = AvoidedRelays::default();
        avoided.handle_guard_failed(Instant::START, relay(1));
        for isolation in [A, B, None] {
            assert_eq!(avoided.avoided(Instant::START, isolation), [relay(1)]);
        }
    }

    #[test]
    fn isolations_with_relays_to_avoid_are_capped() {
        let mut avoided = AvoidedRelays::default();
        for number in 0..2000_u16 {
            avoided.handle_failed(Instant::from_nanos(number.into()), Some(Isolation::numbered(number)), relay(1));
        }
        assert_eq!(avoided.by_isolation.len(), MAX_ISOLATIONS);
        assert!(avoided.by_isolation.values().all(|failed| failed.last() >= Some(Instant::from_nanos(2000 - 512))));
    }
}
