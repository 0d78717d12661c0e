//! History of circuit builds: failures with their pauses, times of guards' hops with their timeouts, relays to avoid.
//!
//! Isolations share only the history of the guard's hop. The relays behind the guard could otherwise recognise circuits
//! of one client: one relay could determine the paths or timeouts of other circuits.

use core::time::Duration;
use std::collections::VecDeque;

use super::{
    avoided_relays::AvoidedRelays,
    build_pauses::{BuildPauses, doubled},
};
use crate::{
    base::{Counter as _, Instant, RelayId},
    client::Isolation,
};

/// Number of guards that are dialled in sequence without a pause.
const GUARDS_WITHOUT_PAUSE: u32 = 3;

/// Timeout of a guard's hop or dial before the first built circuit.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds of the timeout of a guard's hop.
const MIN_GUARD_TIMEOUT: Duration = Duration::from_millis(1500);
const MAX_GUARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of stored build times of guards' hops.
const MAX_GUARD_TIMES: usize = 16;
/// Bounds of the time for which circuits wait for a dial of a guard.
const MIN_DIAL_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum pause after failed dials of guards. Short, so that a client recovers soon after its line does.
const MAX_GUARD_PAUSE: Duration = Duration::from_secs(5);

/// Failures of one guard within this time count as one.
const SAME_FAILURE_INTERVAL: Duration = Duration::from_secs(1);

/// The history of builds: failures, pauses, times of guards' hops, and relays to avoid.
#[derive(Default)]
pub(super) struct BuildHistory {
    pauses: BuildPauses,
    /// Number of guards that could not be reached since a channel to a guard last opened.
    guard_failures: u32,
    /// The end of the pause after failed dials of guards.
    guard_pause: Option<Instant>,
    /// Build times of the first hops of recent circuits.
    guard_times: VecDeque<Duration>,
    avoided_relays: AvoidedRelays,
}

impl BuildHistory {
    /// Whether a build for `isolation` may start now. `None` stands for spare circuits.
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
        !self.guard_times.is_empty()
    }

    /// A circuit for `isolation` was built. Returns whether it is the first circuit of all.
    pub(super) fn handle_built(&mut self, isolation: Option<Isolation>, hop_times: &[Duration]) -> bool {
        let first = !self.has_built();
        self.pauses.handle_built(isolation);
        self.guard_pause = None;
        self.guard_times.extend(hop_times.first());
        let surplus = self.guard_times.len().saturating_sub(MAX_GUARD_TIMES);
        self.guard_times.drain(..surplus);
        first
    }

    /// A build for `isolation` that began at `began` failed although its guard was reached, at `relay` if known.
    /// Returns whether waiting requests of the isolation should fail.
    pub(super) fn handle_failed(
        &mut self,
        now: Instant,
        isolation: Option<Isolation>,
        began: Instant,
        relay: Option<RelayId>,
    ) -> bool {
        if let Some(relay) = relay {
            self.avoided_relays.handle_failed(now, isolation, relay);
        }
        self.pauses.handle_failed(now, isolation, began)
    }

    /// The guard `relay` could not be reached. From the third failure on, the next guard is dialled only after a pause.
    pub(super) fn handle_guard_failed(&mut self, now: Instant, relay: RelayId) {
        // The end of the wait for a dial and the later failure of that dial count once.
        let last = self.avoided_relays.guard_failed_at(&relay);
        if last.is_some_and(|at| now.since(at) < SAME_FAILURE_INTERVAL) {
            return;
        }
        self.avoided_relays.handle_guard_failed(now, relay);
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

    /// The timeout of a circuit's first hop: five times the longest recent build time of a first hop.
    pub(super) fn guard_timeout(&self) -> Duration {
        match self.guard_times.iter().max() {
            None => DEFAULT_TIMEOUT,
            Some(slowest) => slowest.saturating_mul(5).clamp(MIN_GUARD_TIMEOUT, MAX_GUARD_TIMEOUT),
        }
    }

    /// The time for which circuits wait for a dial of a guard: 15 times the longest recent build time of a first hop,
    /// because a dial takes several round trips. The dial continues after that time.
    pub(super) fn dial_timeout(&self) -> Duration {
        match self.guard_times.iter().max() {
            None => DEFAULT_TIMEOUT,
            Some(slowest) => slowest.saturating_mul(15).clamp(MIN_DIAL_TIMEOUT, MAX_DIAL_TIMEOUT),
        }
    }

    /// Relays that builds for `isolation` avoid, because they recently failed to answer.
    pub(super) fn avoided(&self, now: Instant, isolation: Option<Isolation>) -> Vec<RelayId> {
        self.avoided_relays.avoided(now, isolation)
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
    fn timeouts_depend_on_the_times_of_the_first_hops_alone() {
        let mut history = BuildHistory::default();
        let millis = Duration::from_millis;
        assert_eq!((history.guard_timeout(), history.dial_timeout()), (millis(5000), millis(5000)));
        history.handle_built(None, &[millis(400), millis(9000), millis(9000)]);
        assert_eq!((history.guard_timeout(), history.dial_timeout()), (millis(2000), millis(3000)));
        for _ in 0..MAX_GUARD_TIMES {
            history.handle_built(None, &[millis(10), millis(9000), millis(9000)]);
        }
        assert_eq!((history.guard_timeout(), history.dial_timeout()), (millis(1500), millis(1000)));
    }

    #[test]
    fn three_guards_are_dialled_in_sequence_without_a_pause_and_the_fourth_after_a_pause() {
        let mut history = BuildHistory::default();
        for guard in [1, 1, 2] {
            history.handle_guard_failed(Instant::START, RelayId::from_bytes([guard; 32]));
        }
        assert!(history.may_build(Instant::START, None), "two guards failed, one of them reported twice");
        history.handle_guard_failed(Instant::START, RelayId::from_bytes([3; 32]));
        assert!(!history.may_build(Instant::START, None));
    }
}
