//! Detection of gateways that report too many volunteers as gone.
//!
//! The gateway is the guard, or a layer-2 guard where paths have one.
//!
//! Some reports are true, because volunteers leave and the list is minutes old. But a gateway could report all
//! volunteers except its accomplices. If a gateway reports more than half of the requested volunteers, no volunteer
//! follows that gateway until the period ends.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::base::{Counter as _, Instant, RelayId};

/// The period for which the answers of a gateway are counted.
const PERIOD: Duration = Duration::from_secs(600);
/// Minimum answers of a gateway that can be excluded.
const MIN_ANSWERS: u32 = 8;

/// The counted answers of one gateway.
#[derive(Clone, Copy)]
struct AnswerCount {
    /// The start of the period.
    since: Instant,
    answers: u32,
    /// Of these, GONE.
    gone: u32,
}

/// The counted answers of each gateway, at most as many as the listed relays.
#[derive(Default)]
pub(super) struct GoneReports(BTreeMap<RelayId, AnswerCount>);

impl GoneReports {
    /// Records the answer of `gateway` to an EXTEND to a volunteer: `gone`, or extended.
    pub(super) fn handle_answer(&mut self, now: Instant, gateway: RelayId, gone: bool) {
        self.0.retain(|_, count| now.since(count.since) < PERIOD);
        let count = self.0.entry(gateway).or_insert(AnswerCount { since: now, answers: 0, gone: 0 });
        count.answers.increment();
        count.gone = count.gone.saturating_add(u32::from(gone));
    }

    /// Gateways after which a path has no volunteer as middle.
    pub(super) fn gateways_without_volunteers(&self, now: Instant) -> Vec<RelayId> {
        let exceeds = |count: &AnswerCount| {
            now.since(count.since) < PERIOD && count.answers >= MIN_ANSWERS && count.gone > count.answers / 2
        };
        self.0.iter().filter(|(_, count)| exceeds(count)).map(|(gateway, _)| *gateway).collect()
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const GATEWAY: RelayId = RelayId::from_bytes([1; 32]);

    #[test]
    fn a_gateway_that_reports_most_volunteers_as_gone_gets_none_for_ten_minutes() {
        let mut reports = GoneReports::default();
        for _ in 0..7 {
            reports.handle_answer(Instant::START, GATEWAY, true);
            assert_eq!(reports.gateways_without_volunteers(Instant::START), []);
        }
        reports.handle_answer(Instant::START, GATEWAY, true);
        assert_eq!(reports.gateways_without_volunteers(Instant::START), [GATEWAY]);
        assert_eq!(reports.gateways_without_volunteers(Instant::START.after(PERIOD)), []);
    }

    #[test]
    fn a_gateway_that_reports_a_third_of_its_volunteers_as_gone_keeps_them() {
        let mut reports = GoneReports::default();
        for number in 0..100 {
            reports.handle_answer(Instant::START, GATEWAY, number % 3 == 0);
        }
        assert_eq!(reports.gateways_without_volunteers(Instant::START), []);
    }
}
