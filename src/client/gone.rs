//! Detection of guards that report too many volunteers as gone.
//!
//! Some reports are true, because volunteers come and go and the list is a while old. But a guard could report all
//! volunteers except its accomplices. A guard that reports more than half of the requested volunteers gets no
//! volunteers behind it for a while.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::base::{Counter as _, Instant, RelayId};

/// Period of one count of a guard's answers.
const PERIOD: Duration = Duration::from_secs(600);
/// Answers from which on the proportion counts.
const TELLING: u32 = 8;

#[derive(Clone, Copy)]
struct GuardAnswers {
    since: Instant,
    asked: u32,
    gone: u32,
}

/// Recent answers of each guard. At most as many guards as in the sample.
#[derive(Default)]
pub(super) struct Gone(BTreeMap<RelayId, GuardAnswers>);

impl Gone {
    /// Records the answer of `guard` to an EXTEND to a volunteer: `gone`, or extended.
    pub(super) fn handle_answer(&mut self, now: Instant, guard: RelayId, gone: bool) {
        self.0.retain(|_, account| now.since(account.since) < PERIOD);
        let account = self.0.entry(guard).or_insert(GuardAnswers { since: now, asked: 0, gone: 0 });
        account.asked.increment();
        account.gone = account.gone.saturating_add(u32::from(gone));
    }

    /// Guards that no volunteer may follow.
    pub(super) fn doubted(&self, now: Instant) -> Vec<RelayId> {
        let counts = |account: &GuardAnswers| {
            now.since(account.since) < PERIOD && account.asked >= TELLING && account.gone > account.asked / 2
        };
        self.0.iter().filter(|(_, account)| counts(account)).map(|(guard, _)| *guard).collect()
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const GUARD: RelayId = RelayId::from_bytes([1; 32]);

    #[test]
    fn a_guard_that_calls_most_volunteers_gone_gets_none_for_ten_minutes() {
        let mut gone = Gone::default();
        for _ in 0..7 {
            gone.handle_answer(Instant::START, GUARD, true);
            assert_eq!(gone.doubted(Instant::START), []);
        }
        gone.handle_answer(Instant::START, GUARD, true);
        assert_eq!(gone.doubted(Instant::START), [GUARD]);
        assert_eq!(gone.doubted(Instant::START.after(PERIOD)), []);
    }

    #[test]
    fn a_guard_some_of_whose_volunteers_are_gone_keeps_the_others() {
        let mut gone = Gone::default();
        for number in 0..100 {
            gone.handle_answer(Instant::START, GUARD, number % 3 == 0);
        }
        assert_eq!(gone.doubted(Instant::START), []);
    }
}
