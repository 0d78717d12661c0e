//! Pauses between builds after failures, for each isolation.
//!
//! Failures of one isolation must not delay another isolation. Otherwise a relay that fails a build would recognise
//! other circuits of the same client by the delay.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::{
    base::{Counter as _, Instant},
    client::Isolation,
};

/// The pauses before the retries of a failed build.
const PAUSES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(2)];
/// The first pause after [`PAUSES`]. The following ones double, up to [`MAX_PAUSE`].
const LATER_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Time after which a failure no longer counts, longer than the maximum pause and a build.
const FAILURE_LIFETIME: Duration = Duration::from_secs(180);
/// Cap on isolations with failures. The one whose last failure is oldest is evicted.
const MAX_ISOLATIONS: usize = 512;

/// The failures since the last built circuit of each isolation. The key of spare circuits is `None`.
#[derive(Default)]
pub(super) struct BuildPauses(BTreeMap<Option<Isolation>, Failures>);

/// The failures of one isolation.
struct Failures {
    count: u32,
    /// The time of the last failure.
    last: Instant,
    /// The end of the pause.
    pause_end: Option<Instant>,
}

impl BuildPauses {
    /// Whether a build for the isolation may start now.
    pub(super) fn may_build(&self, now: Instant, isolation: Option<Isolation>) -> bool {
        self.0.get(&isolation).and_then(|failures| failures.pause_end).is_none_or(|at| at <= now)
    }

    /// Returns whether a pause has ended, once for each pause.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let mut ended = false;
        for failures in self.0.values_mut() {
            ended |= failures.pause_end.take_if(|at| *at <= now).is_some();
        }
        ended
    }

    /// The earliest end of a pause.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().filter_map(|failures| failures.pause_end).min()
    }

    /// A circuit for the isolation was built.
    pub(super) fn handle_built(&mut self, isolation: Option<Isolation>) {
        self.0.remove(&isolation);
    }

    /// A build for the isolation failed that began at `began`. Returns whether waiting requests should fail: after a
    /// failed build and three failed retries. A build that began before the last failure doesn't count as another
    /// failure.
    pub(super) fn handle_failed(&mut self, now: Instant, isolation: Option<Isolation>, began: Instant) -> bool {
        if self.0.get(&isolation).is_some_and(|failures| began < failures.last) {
            return false;
        }
        if self.0.len() >= MAX_ISOLATIONS && !self.0.contains_key(&isolation) {
            let oldest = self.0.iter().min_by_key(|(_, failures)| failures.last).map(|(isolation, _)| *isolation);
            oldest.map(|isolation| self.0.remove(&isolation));
        }
        let failures = self.0.entry(isolation).or_insert(Failures { count: 0, last: now, pause_end: None });
        if now.since(failures.last) > FAILURE_LIFETIME {
            failures.count = 0;
        }
        failures.last = now;
        failures.count.increment();
        let index = usize::try_from(failures.count.saturating_sub(1)).unwrap_or(usize::MAX);
        let doublings = u32::try_from(index.saturating_sub(PAUSES.len())).unwrap_or(u32::MAX);
        let pause = PAUSES.get(index).copied().unwrap_or_else(|| doubled(LATER_PAUSE, doublings));
        failures.pause_end = Some(now.after(pause));
        index >= PAUSES.len()
    }
}

/// The pause, doubled `doublings` times, at most [`MAX_PAUSE`].
pub(super) fn doubled(pause: Duration, doublings: u32) -> Duration {
    pause.saturating_mul(1 << doublings.min(16)).min(MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const A: Option<Isolation> = Some(Isolation([1; 32]));
    const B: Option<Isolation> = Some(Isolation([2; 32]));

    #[test]
    fn failures_of_one_isolation_pause_no_other() {
        let mut pauses = BuildPauses::default();
        let now = Instant::START;
        for _ in 0..4 {
            pauses.handle_failed(now, A, now);
        }
        assert!(!pauses.may_build(now, A));
        assert!(pauses.may_build(now, B) && pauses.may_build(now, None));
        assert!(!pauses.handle_failed(now, B, now), "the first failure");
        pauses.handle_built(B);
        assert!(pauses.handle_failed(now, A, now));
    }

    #[test]
    fn old_failures_do_not_count() {
        let mut pauses = BuildPauses::default();
        let now = Instant::START;
        for _ in 0..4 {
            pauses.handle_failed(now, A, now);
        }
        let later = now.after(Duration::from_secs(600));
        assert!(!pauses.handle_failed(later, A, later), "the first failure for a long time");
    }

    #[test]
    fn isolations_with_failures_are_capped() {
        let mut pauses = BuildPauses::default();
        for number in 0..2000_u16 {
            let now = Instant::from_nanos(number.into());
            pauses.handle_failed(now, Some(Isolation::numbered(number)), now);
        }
        assert_eq!(pauses.0.len(), MAX_ISOLATIONS);
        assert!(pauses.0.values().all(|failures| failures.last >= Instant::from_nanos(2000 - 512)));
    }
}
