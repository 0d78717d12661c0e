//! Guards that say of volunteers that they are gone.
//!
//! Volunteers do come and go, and the list is a while old. But a guard could call all gone except those of its own, so one
//! that says it of more than half of those it was asked for gets no more of them behind it for a while.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::base::{Instant, RelayId};

/// Volunteers asked of a guard are counted for so long, and then anew.
const PERIOD: Duration = Duration::from_secs(600);
/// From so many answers on they tell something.
const TELLING: u32 = 8;

#[derive(Clone, Copy)]
struct Account {
    since: Instant,
    asked: u32,
    gone: u32,
}

/// What each guard answered of late. Holds no more guards than a sample has.
#[derive(Default)]
pub(super) struct Gone(BTreeMap<RelayId, Account>);

impl Gone {
    /// A circuit through `guard` was to go on to a volunteer; whether that was gone.
    pub(super) fn handle_answer(&mut self, now: Instant, guard: RelayId, gone: bool) {
        self.0.retain(|_, account| now.since(account.since) < PERIOD);
        let account = self.0.entry(guard).or_insert(Account { since: now, asked: 0, gone: 0 });
        account.asked = account.asked.saturating_add(1);
        account.gone = account.gone.saturating_add(u32::from(gone));
    }

    /// Guards behind which no volunteer is to be.
    pub(super) fn doubted(&self, now: Instant) -> Vec<RelayId> {
        let counts = |account: &Account| {
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
