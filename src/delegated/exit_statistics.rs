//! Statistics of exits by engine: successes, failures and blocks that this client observed.
//!
//! In memory only, for the exits of the consensus. Bounded: the least recently updated entry is evicted first. They
//! keep a client from sending a query to an exit that an engine blocks. Such a query would fail, and disclose its terms
//! to one more exit.

use core::time::Duration;
use std::collections::BTreeMap;

use super::{Block, EngineName};
use crate::base::{Instant, RelayId};

/// Time for which a client avoids an exit that an engine blocks: ten minutes.
pub const BLOCKED_FOR: Duration = Duration::from_secs(600);
const MAX_RECORDS: usize = 4096;

/// Statistics of one exit with one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineRecord {
    /// Answered queries.
    pub answered: u32,
    /// Failed queries.
    pub failed: u32,
    /// The kind of block by the engine, and its end.
    pub blocked: Option<(Block, Instant)>,
    touched: Option<Instant>,
}

/// Statistics of all exits with all engines.
#[derive(Debug, Default)]
pub struct ExitStatistics {
    records: BTreeMap<(EngineName, RelayId), EngineRecord>,
}

impl ExitStatistics {
    /// Counts an answered query.
    pub fn handle_answered(&mut self, now: Instant, engine: &EngineName, exit: RelayId) {
        let record = self.touch(now, engine, exit);
        record.answered = record.answered.saturating_add(1);
        record.blocked = None;
    }

    /// Counts a query that failed through the exit or the engine.
    pub fn handle_failed(&mut self, now: Instant, engine: &EngineName, exit: RelayId) {
        let record = self.touch(now, engine, exit);
        record.failed = record.failed.saturating_add(1);
    }

    /// Counts a query that the engine blocked. The exit is avoided for [`BLOCKED_FOR`].
    pub fn handle_blocked(&mut self, now: Instant, engine: &EngineName, exit: RelayId, block: Block) {
        let record = self.touch(now, engine, exit);
        record.failed = record.failed.saturating_add(1);
        record.blocked = Some((block, now.after(BLOCKED_FOR)));
    }

    /// Exits to avoid for this engine now.
    #[must_use]
    pub fn blocked(&self, now: Instant, engine: &EngineName) -> Vec<RelayId> {
        let blocked = |record: &EngineRecord| record.blocked.is_some_and(|(_, until)| until > now);
        self.records
            .iter()
            .filter(|((of, _), record)| of == engine && blocked(record))
            .map(|((_, exit), _)| *exit)
            .collect()
    }

    /// The statistics of the exit with the engine.
    #[must_use]
    pub fn record(&self, engine: &EngineName, exit: &RelayId) -> EngineRecord {
        self.records.get(&(engine.clone(), *exit)).copied().unwrap_or_default()
    }

    fn touch(&mut self, now: Instant, engine: &EngineName, exit: RelayId) -> &mut EngineRecord {
        let key = (engine.clone(), exit);
        if self.records.len() >= MAX_RECORDS && !self.records.contains_key(&key) {
            let oldest = self.records.iter().min_by_key(|(_, record)| record.touched).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.records.remove(&oldest);
            }
        }
        let record = self.records.entry(key).or_default();
        record.touched = Some(now);
        record
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const EXIT: RelayId = RelayId::from_bytes([1; 32]);

    #[test]
    fn a_blocked_exit_is_left_alone_for_its_time_and_that_engine_only() {
        let (engine, other) = (EngineName::parse("a").unwrap(), EngineName::parse("b").unwrap());
        let mut records = ExitStatistics::default();
        let now = Instant::START;
        records.handle_blocked(now, &engine, EXIT, Block::Captcha);
        assert_eq!(records.blocked(now, &engine), [EXIT]);
        assert_eq!(records.blocked(now, &other), []);
        assert_eq!(records.blocked(now.after(BLOCKED_FOR), &engine), []);
        assert_eq!(records.record(&engine, &EXIT).failed, 1);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let engine = EngineName::parse("a").unwrap();
        let mut records = ExitStatistics::default();
        for number in 0..=MAX_RECORDS {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
            let now = Instant::START.after(Duration::from_secs(u64::try_from(number).unwrap()));
            records.handle_answered(now, &engine, RelayId::from_bytes(id));
        }
        assert_eq!(records.records.len(), MAX_RECORDS);
        assert_eq!(records.record(&engine, &RelayId::from_bytes([0; 32])).answered, 0);
    }
}
