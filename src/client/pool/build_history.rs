//! Retry policy of circuit builds: pauses after failures, hop timeouts, relays to avoid.

use core::time::Duration;
use std::collections::VecDeque;

use crate::base::{Counter as _, Instant, RelayId};

/// The pauses before the retries of a failed build.
const PAUSES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(2)];
/// The pause after the last of [`PAUSES`], doubled each time, up to [`LONGEST_PAUSE`].
const LONG_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Guards tried in sequence without a pause.
const GUARDS_AT_ONCE: u32 = 3;

const HOP_TIMEOUT_UNKNOWN: Duration = Duration::from_secs(5);
const HOP_TIMEOUT_MIN: Duration = Duration::from_millis(1500);
const HOP_TIMEOUT_MAX: Duration = Duration::from_secs(10);
const HOP_TIMES: usize = 32;
/// Bounds of the time for which circuits wait for a dial of a guard.
const DIAL_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const DIAL_TIMEOUT_MAX: Duration = Duration::from_secs(3);
/// The longest pause after failed dials of guards. Short, so that a client recovers soon after its line does.
const LONGEST_GUARD_PAUSE: Duration = Duration::from_secs(5);

/// Time for which an unresponsive relay is avoided, and the cap on such relays.
const AVOID: Duration = Duration::from_secs(60);
const AVOIDED: usize = 16;
/// Failures of one guard within this time count as one.
const ONE_FAILURE: Duration = Duration::from_secs(1);

/// The history of builds: failures, pauses, times of hops, and relays to avoid.
#[derive(Default)]
pub(super) struct BuildHistory {
    failures: u32,
    guard_failures: u32,
    last_failure: Option<Instant>,
    next_at: Option<Instant>,
    hop_times: VecDeque<Duration>,
    avoided: VecDeque<(RelayId, Instant)>,
}

impl BuildHistory {
    /// Whether a build may start now.
    pub(super) fn may_build(&self, now: Instant) -> bool {
        self.next_at.is_none_or(|at| at <= now)
    }

    /// Returns whether a pause has ended, once for each pause.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.next_at.take_if(|at| *at <= now).is_some()
    }

    /// The end of the pause, if there is one.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.next_at
    }

    /// A circuit was built; returns whether it is the first one.
    pub(super) fn handle_built(&mut self, hop_times: &[Duration]) -> bool {
        let first = self.hop_times.is_empty();
        self.failures = 0;
        self.next_at = None;
        self.hop_times.extend(hop_times);
        let surplus = self.hop_times.len().saturating_sub(HOP_TIMES);
        self.hop_times.drain(..surplus);
        first
    }

    /// A build that began at `began` failed beyond its guard, at `relay` if known. Returns whether waiting requests
    /// should fail, which is after the build and three retries. Builds that began before the last failure count as
    /// one with it.
    pub(super) fn handle_failed(&mut self, now: Instant, began: Instant, relay: Option<RelayId>) -> bool {
        if let Some(relay) = relay {
            self.avoid(now, relay);
        }
        if self.last_failure.is_some_and(|last| began < last) {
            return false;
        }
        self.last_failure = Some(now);
        self.failures.increment();
        let index = usize::try_from(self.failures.saturating_sub(1)).unwrap_or(usize::MAX);
        match PAUSES.get(index) {
            Some(pause) => {
                self.next_at = Some(now.after(*pause));
                false
            }
            None => {
                let doublings = u32::try_from(index.saturating_sub(PAUSES.len())).unwrap_or(u32::MAX);
                self.next_at = Some(now.after(doubled(LONG_PAUSE, doublings)));
                true
            }
        }
    }

    /// A guard could not be reached. The next guard is tried at once, from the third failure on after a pause.
    pub(super) fn handle_guard_failed(&mut self, now: Instant, relay: RelayId) {
        // Each circuit that was being built through it reports the failure; it counts once.
        let counted = self
            .avoided
            .iter()
            .any(|(other, until)| *other == relay && until.since(now) > AVOID.saturating_sub(ONE_FAILURE));
        if counted {
            return;
        }
        self.avoid(now, relay);
        self.guard_failures.increment();
        if let Some(doublings) = self.guard_failures.checked_sub(GUARDS_AT_ONCE) {
            self.next_at = Some(now.after(doubled(Duration::from_secs(1), doublings).min(LONGEST_GUARD_PAUSE)));
        }
    }

    /// A channel to a guard is open. A pause after failed dials ends.
    pub(super) const fn handle_guard_reached(&mut self) {
        if self.guard_failures >= GUARDS_AT_ONCE {
            self.next_at = None;
        }
        self.guard_failures = 0;
    }

    /// Whether the last guard that was tried could not be reached.
    pub(super) const fn is_guard_unreachable(&self) -> bool {
        self.guard_failures > 0
    }

    /// The timeout of one hop: five times the slowest recent hop.
    pub(super) fn hop_timeout(&self) -> Duration {
        match self.hop_times.iter().max() {
            None => HOP_TIMEOUT_UNKNOWN,
            Some(slowest) => slowest.saturating_mul(5).clamp(HOP_TIMEOUT_MIN, HOP_TIMEOUT_MAX),
        }
    }

    /// The time for which circuits wait for a dial of a guard. The dial itself continues.
    pub(super) fn dial_timeout(&self) -> Duration {
        match self.hop_times.iter().max() {
            None => HOP_TIMEOUT_UNKNOWN,
            Some(slowest) => slowest.saturating_mul(5).clamp(DIAL_TIMEOUT_MIN, DIAL_TIMEOUT_MAX),
        }
    }

    fn avoid(&mut self, now: Instant, relay: RelayId) {
        self.avoided.retain(|(avoided, until)| *avoided != relay && *until > now);
        if self.avoided.len() >= AVOIDED {
            self.avoided.pop_front();
        }
        self.avoided.push_back((relay, now.after(AVOID)));
    }

    /// Relays to avoid: they recently failed to answer.
    pub(super) fn avoided(&self, now: Instant) -> Vec<RelayId> {
        self.avoided.iter().filter(|(_, until)| *until > now).map(|(relay, _)| *relay).collect()
    }
}

fn doubled(pause: Duration, doublings: u32) -> Duration {
    pause.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE)
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
            assert!(history.may_build(now));
            given_up.push(history.handle_failed(now, now, None));
            assert!(!history.may_build(now));
            let next = history.poll_timeout().unwrap();
            pauses.push(next.since(now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [50, 500, 2000, 5000, 10_000]);
        assert_eq!(given_up, [false, false, false, true, true]);
        history.handle_built(&[Duration::from_millis(5)]);
        assert!(!history.handle_failed(now, now, None));
    }

    #[test]
    fn a_pause_ends_once() {
        let mut history = BuildHistory::default();
        history.handle_failed(Instant::START, Instant::START, None);
        let due = history.poll_timeout().unwrap();
        assert!(!history.handle_timeout(Instant::START));
        assert_eq!(history.poll_timeout(), Some(due));
        assert!(history.handle_timeout(due));
        assert_eq!(history.poll_timeout(), None);
        assert!(!history.handle_timeout(due));
        assert!(history.may_build(due));
    }

    #[test]
    fn builds_in_flight_together_count_as_one_failure() {
        let mut history = BuildHistory::default();
        let (began, now) = (Instant::START, Instant::START.after(Duration::from_secs(1)));
        for _ in 0..10 {
            assert!(!history.handle_failed(now, began, None));
        }
        assert_eq!(history.failures, 1);
    }

    #[test]
    fn a_relay_that_failed_is_avoided_for_a_minute() {
        let mut history = BuildHistory::default();
        for number in 0..40 {
            history.handle_failed(Instant::START, Instant::START, Some(RelayId::from_bytes([number; 32])));
        }
        assert_eq!(history.avoided(Instant::START).len(), AVOIDED);
        assert_eq!(history.avoided(Instant::START.after(AVOID)), []);
    }

    #[test]
    fn two_further_guards_are_tried_without_a_pause_and_others_after_one() {
        let mut history = BuildHistory::default();
        for guard in [1, 1, 2] {
            history.handle_guard_failed(Instant::START, RelayId::from_bytes([guard; 32]));
        }
        assert!(history.may_build(Instant::START), "two guards failed, one of them reported twice");
        history.handle_guard_failed(Instant::START, RelayId::from_bytes([3; 32]));
        assert!(!history.may_build(Instant::START));
    }
}
