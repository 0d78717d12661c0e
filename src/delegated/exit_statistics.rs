//! Statistics of exits by engine: successes, failures and blocks that this client observed.
//!
//! A client avoids an exit that an engine blocks. A query through that exit would fail, and disclose its terms to one
//! more exit. Statistics are in memory only. At the cap, the least recently updated entry is evicted.

use core::time::Duration;
use std::collections::BTreeMap;

use super::{Block, EngineName, FailedTryReason, SearchRefusal};
use crate::base::{Counter as _, Instant, RelayId};

/// Time for which a client avoids an exit that an engine blocks (`proto/09-delegated.md` §3): ten minutes.
pub const BLOCK_DURATION: Duration = Duration::from_secs(600);
/// Cap on pairs of exit and engine.
const MAX_COUNTS: usize = 4096;

/// Statistics of one exit with one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// Queries answered with results.
    pub answered: u32,
    /// Failed queries.
    pub failed: u32,
    /// How the engine blocked the exit, and the time until which the client avoids the exit.
    pub blocked: Option<(Block, Instant)>,
    updated: Option<Instant>,
}

/// Statistics of all exits with all engines.
#[derive(Debug, Default)]
pub struct ExitStatistics {
    counts: BTreeMap<(EngineName, RelayId), ExitCounts>,
}

impl ExitStatistics {
    /// Counts the outcome of a query. An exit that the engine blocks is avoided for [`BLOCK_DURATION`].
    pub fn handle_outcome(
        &mut self,
        now: Instant,
        engine: &EngineName,
        exit: RelayId,
        outcome: Result<(), FailedTryReason>,
    ) {
        let counts = self.entry_mut(now, engine, exit);
        let Err(reason) = outcome else {
            counts.answered.increment();
            counts.blocked = None;
            return;
        };
        counts.failed.increment();
        if let FailedTryReason::Refused(SearchRefusal::EngineBlocked(block)) = reason {
            counts.blocked = Some((block, now.after(BLOCK_DURATION)));
        }
    }

    /// Exits to avoid for this engine now.
    #[must_use]
    pub fn blocked(&self, now: Instant, engine: &EngineName) -> Vec<RelayId> {
        let blocked = |counts: &ExitCounts| counts.blocked.is_some_and(|(_, until)| until > now);
        self.counts
            .iter()
            .filter(|((name, _), counts)| name == engine && blocked(counts))
            .map(|((_, exit), _)| *exit)
            .collect()
    }

    /// The statistics of one exit with one engine; zeros if there are none.
    #[must_use]
    pub fn counts(&self, engine: &EngineName, exit: &RelayId) -> ExitCounts {
        self.counts.get(&(engine.clone(), *exit)).copied().unwrap_or_default()
    }

    fn entry_mut(&mut self, now: Instant, engine: &EngineName, exit: RelayId) -> &mut ExitCounts {
        let key = (engine.clone(), exit);
        if self.counts.len() >= MAX_COUNTS && !self.counts.contains_key(&key) {
            let oldest = self.counts.iter().min_by_key(|(_, counts)| counts.updated).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.counts.remove(&oldest);
            }
        }
        let counts = self.counts.entry(key).or_default();
        counts.updated = Some(now);
        counts
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const EXIT: RelayId = RelayId::from_bytes([1; 32]);

    #[test]
    fn a_blocked_exit_is_avoided_for_ten_minutes_with_that_engine_only() {
        let (engine, other) = (EngineName::parse("a").unwrap(), EngineName::parse("b").unwrap());
        let mut statistics = ExitStatistics::default();
        let now = Instant::START;
        let blocked = FailedTryReason::Refused(SearchRefusal::EngineBlocked(Block::Captcha));
        statistics.handle_outcome(now, &engine, EXIT, Err(blocked));
        assert_eq!(statistics.blocked(now, &engine), [EXIT]);
        assert_eq!(statistics.blocked(now, &other), []);
        assert_eq!(statistics.blocked(now.after(BLOCK_DURATION), &engine), []);
        assert_eq!(statistics.counts(&engine, &EXIT).failed, 1);
    }

    #[test]
    fn statistics_are_bounded_and_the_oldest_entry_is_evicted() {
        let engine = EngineName::parse("a").unwrap();
        let mut statistics = ExitStatistics::default();
        for number in 0..=MAX_COUNTS {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
            let now = Instant::START.after(Duration::from_secs(u64::try_from(number).unwrap()));
            statistics.handle_outcome(now, &engine, RelayId::from_bytes(id), Ok(()));
        }
        assert_eq!(statistics.counts.len(), MAX_COUNTS);
        assert_eq!(statistics.counts(&engine, &RelayId::from_bytes([0; 32])).answered, 0);
    }
}
