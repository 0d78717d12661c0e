//! Retry policy of circuit builds: pauses after failures, hop timeouts, relays to avoid.

use core::time::Duration;
use std::collections::VecDeque;

use super::build_pauses::{BuildPauses, doubled};
use crate::{
    base::{Counter as _, Instant, RelayId},
    client::Isolation,
};

/// The number of guards that are dialled in sequence without a pause.
const GUARDS_WITHOUT_PAUSE: u32 = 3;

/// The timeout of a hop or dial without a measurement.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const MIN_HOP_TIMEOUT: Duration = Duration::from_millis(1500);
const MAX_HOP_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of recent hop times that are stored.
const MAX_HOP_TIMES: usize = 32;
/// Bounds of the time for which circuits wait for a dial of a guard.
const MIN_DIAL_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum pause after failed dials of guards. Short, so that a client recovers soon after its line does.
const MAX_GUARD_PAUSE: Duration = Duration::from_secs(5);

/// Time for which an unresponsive relay is avoided.
const AVOIDANCE_TIME: Duration = Duration::from_secs(60);
/// Cap on avoided relays. The one avoided longest is evicted.
const MAX_AVOIDED: usize = 16;
/// Failures of one guard within this time count as one.
const SAME_FAILURE_INTERVAL: Duration = Duration::from_secs(1);

/// The history of builds: failures, pauses, times of hops, and relays to avoid.
#[derive(Default)]
pub(super) struct BuildHistory {
    pauses: BuildPauses,
    /// Guards that could not be reached, since a channel to a guard last opened.
    guard_failures: u32,
    /// The end of the pause after failed dials of guards.
    guard_pause: Option<Instant>,
    /// Build times of recent hops.
    hop_times: VecDeque<Duration>,
    /// Relays to avoid, each until a time; the earliest first.
    avoided: VecDeque<(RelayId, Instant)>,
}

impl BuildHistory {
    /// Whether a build may start now, for `isolation` or, if it is `None`, of a spare circuit.
    pub(super) fn may_build(&self, now: Instant, isolation: Option<Isolation>) -> bool {
        self.guard_pause.is_none_or(|at| at <= now) && self.pauses.may_build(now, isolation)
    }

    /// Returns whether a pause has ended, once for each pause.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.guard_pause.take_if(|at| *at <= now).is_some() | self.pauses.handle_timeout(now)
    }

    /// The earliest end of a pause.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.guard_pause, self.pauses.poll_timeout()].into_iter().flatten().min()
    }

    /// Whether a circuit was ever built.
    pub(super) fn has_built(&self) -> bool {
        !self.hop_times.is_empty()
    }

    /// A circuit for `isolation` was built. Returns whether it is the first circuit of all.
    pub(super) fn handle_built(&mut self, isolation: Option<Isolation>, hop_times: &[Duration]) -> bool {
        let first = !self.has_built();
        self.pauses.handle_built(isolation);
        self.guard_pause = None;
        self.hop_times.extend(hop_times);
        let surplus = self.hop_times.len().saturating_sub(MAX_HOP_TIMES);
        self.hop_times.drain(..surplus);
        first
    }

    /// A build for `isolation` that began at `began` failed beyond its guard, at `relay` if known. Returns whether
    /// waiting requests of the isolation should fail.
    pub(super) fn handle_failed(
        &mut self,
        now: Instant,
        isolation: Option<Isolation>,
        began: Instant,
        relay: Option<RelayId>,
    ) -> bool {
        if let Some(relay) = relay {
            self.avoid(now, relay);
        }
        self.pauses.handle_failed(now, isolation, began)
    }

    /// A guard could not be reached. From the third failure on, the next guard is dialled only after a pause.
    pub(super) fn handle_guard_failed(&mut self, now: Instant, relay: RelayId) {
        // Each circuit that was being built through the guard reports the failure, which counts once.
        let is_counted = self.avoided.iter().any(|(other, until)| {
            *other == relay && until.since(now) > AVOIDANCE_TIME.saturating_sub(SAME_FAILURE_INTERVAL)
        });
        if is_counted {
            return;
        }
        self.avoid(now, relay);
        self.guard_failures.increment();
        if let Some(doublings) = self.guard_failures.checked_sub(GUARDS_WITHOUT_PAUSE) {
            self.guard_pause = Some(now.after(doubled(Duration::from_secs(1), doublings).min(MAX_GUARD_PAUSE)));
        }
    }

    /// A channel to a guard is open. A pause after failed dials ends.
    pub(super) const fn handle_guard_reached(&mut self) {
        if self.guard_failures >= GUARDS_WITHOUT_PAUSE {
            self.guard_pause = None;
        }
        self.guard_failures = 0;
    }

    /// Whether the last dialled guard could not be reached.
    pub(super) const fn is_guard_unreachable(&self) -> bool {
        self.guard_failures > 0
    }

    /// The timeout of one hop: five times the slowest recent hop.
    pub(super) fn hop_timeout(&self) -> Duration {
        match self.hop_times.iter().max() {
            None => DEFAULT_TIMEOUT,
            Some(slowest) => slowest.saturating_mul(5).clamp(MIN_HOP_TIMEOUT, MAX_HOP_TIMEOUT),
        }
    }

    /// The time for which circuits wait for a dial of a guard. The dial itself continues.
    pub(super) fn dial_timeout(&self) -> Duration {
        match self.hop_times.iter().max() {
            None => DEFAULT_TIMEOUT,
            Some(slowest) => slowest.saturating_mul(5).clamp(MIN_DIAL_TIMEOUT, MAX_DIAL_TIMEOUT),
        }
    }

    /// Avoids `relay` from now on.
    fn avoid(&mut self, now: Instant, relay: RelayId) {
        self.avoided.retain(|(avoided, until)| *avoided != relay && *until > now);
        if self.avoided.len() >= MAX_AVOIDED {
            self.avoided.pop_front();
        }
        self.avoided.push_back((relay, now.after(AVOIDANCE_TIME)));
    }

    /// Relays to avoid, because they recently failed to answer.
    pub(super) fn avoided(&self, now: Instant) -> Vec<RelayId> {
        self.avoided.iter().filter(|(_, until)| *until > now).map(|(relay, _)| *relay).collect()
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn a_failed_build_is_retried_three_times_with_growing_pauses() {
        let mut history = BuildHistory::default();
        let mut now = Instant::START;
        let mut pauses = Vec::new();
        let mut given_up = Vec::new();
        for _ in 0..5 {
            assert!(history.may_build(now, None));
            given_up.push(history.handle_failed(now, None, now, None));
            assert!(!history.may_build(now, None));
            let next = history.poll_timeout().unwrap();
            pauses.push(next.since(now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [50, 500, 2000, 5000, 10_000]);
        assert_eq!(given_up, [false, false, false, true, true]);
        history.handle_built(None, &[Duration::from_millis(5)]);
        assert!(!history.handle_failed(now, None, now, None));
    }

    #[test]
    fn a_pause_ends_once() {
        let mut history = BuildHistory::default();
        history.handle_failed(Instant::START, None, Instant::START, None);
        let due = history.poll_timeout().unwrap();
        assert!(!history.handle_timeout(Instant::START));
        assert_eq!(history.poll_timeout(), Some(due));
        assert!(history.handle_timeout(due));
        assert_eq!(history.poll_timeout(), None);
        assert!(!history.handle_timeout(due));
        assert!(history.may_build(due, None));
    }

    #[test]
    fn builds_in_flight_together_count_as_one_failure() {
        let mut history = BuildHistory::default();
        let (began, now) = (Instant::START, Instant::START.after(Duration::from_secs(1)));
        for _ in 0..10 {
            assert!(!history.handle_failed(now, None, began, None));
        }
        assert_eq!(history.poll_timeout(), Some(now.after(Duration::from_millis(50))), "the pause of one failure");
    }

    #[test]
    fn a_relay_that_failed_is_avoided_for_a_minute() {
        let mut history = BuildHistory::default();
        for number in 0..40 {
            history.handle_failed(Instant::START, None, Instant::START, Some(RelayId::from_bytes([number; 32])));
        }
        assert_eq!(history.avoided(Instant::START).len(), MAX_AVOIDED);
        assert_eq!(history.avoided(Instant::START.after(AVOIDANCE_TIME)), []);
    }

    #[test]
    fn two_further_guards_are_tried_without_a_pause_and_others_after_one() {
        let mut history = BuildHistory::default();
        for guard in [1, 1, 2] {
            history.handle_guard_failed(Instant::START, RelayId::from_bytes([guard; 32]));
        }
        assert!(history.may_build(Instant::START, None), "two guards failed, one of them reported twice");
        history.handle_guard_failed(Instant::START, RelayId::from_bytes([3; 32]));
        assert!(!history.may_build(Instant::START, None));
    }
}
