//! How each exit has fared with each engine, as far as this client has seen.
//!
//! Kept in memory only, for the exits of the consensus; bounded, the entry least lately touched goes first. It keeps a
//! client from asking an exit again that an engine keeps out, which would cost a query and show one more exit what is
//! asked.

use core::time::Duration;
use std::collections::BTreeMap;

use super::{Block, EngineName};
use crate::base::{Instant, RelayId};

/// How long an exit isn't asked that an engine keeps out: ten minutes.
pub const BLOCKED_FOR: Duration = Duration::from_secs(600);
const MAX_FARES: usize = 4096;

/// One exit with one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fare {
    /// Queries that were answered.
    pub answered: u32,
    /// Queries that were not.
    pub failed: u32,
    /// How the engine keeps the exit out, and until when.
    pub blocked: Option<(Block, Instant)>,
    touched: Option<Instant>,
}

/// All exits with all engines.
#[derive(Debug, Default)]
pub struct Fares {
    fares: BTreeMap<(EngineName, RelayId), Fare>,
}

impl Fares {
    /// The exit has answered a query.
    pub fn handle_answered(&mut self, now: Instant, engine: &EngineName, exit: RelayId) {
        let fare = self.touch(now, engine, exit);
        fare.answered = fare.answered.saturating_add(1);
        fare.blocked = None;
    }

    /// The exit has not, through its own fault or the engine's.
    pub fn handle_failed(&mut self, now: Instant, engine: &EngineName, exit: RelayId) {
        let fare = self.touch(now, engine, exit);
        fare.failed = fare.failed.saturating_add(1);
    }

    /// The engine keeps the exit out: it isn't asked for [`BLOCKED_FOR`].
    pub fn handle_blocked(&mut self, now: Instant, engine: &EngineName, exit: RelayId, block: Block) {
        let fare = self.touch(now, engine, exit);
        fare.failed = fare.failed.saturating_add(1);
        fare.blocked = Some((block, now.after(BLOCKED_FOR)));
    }

    /// Exits that are not to be asked for this engine now.
    #[must_use]
    pub fn blocked(&self, now: Instant, engine: &EngineName) -> Vec<RelayId> {
        let blocked = |fare: &Fare| fare.blocked.is_some_and(|(_, until)| until > now);
        self.fares.iter().filter(|((of, _), fare)| of == engine && blocked(fare)).map(|((_, exit), _)| *exit).collect()
    }

    /// How the exit has fared with the engine.
    #[must_use]
    pub fn fare(&self, engine: &EngineName, exit: &RelayId) -> Fare {
        self.fares.get(&(engine.clone(), *exit)).copied().unwrap_or_default()
    }

    fn touch(&mut self, now: Instant, engine: &EngineName, exit: RelayId) -> &mut Fare {
        let key = (engine.clone(), exit);
        if self.fares.len() >= MAX_FARES && !self.fares.contains_key(&key) {
            let oldest = self.fares.iter().min_by_key(|(_, fare)| fare.touched).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.fares.remove(&oldest);
            }
        }
        let fare = self.fares.entry(key).or_default();
        fare.touched = Some(now);
        fare
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
        let mut fares = Fares::default();
        let now = Instant::START;
        fares.handle_blocked(now, &engine, EXIT, Block::Captcha);
        assert_eq!(fares.blocked(now, &engine), [EXIT]);
        assert_eq!(fares.blocked(now, &other), []);
        assert_eq!(fares.blocked(now.after(BLOCKED_FOR), &engine), []);
        assert_eq!(fares.fare(&engine, &EXIT).failed, 1);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let engine = EngineName::parse("a").unwrap();
        let mut fares = Fares::default();
        for number in 0..=MAX_FARES {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
            let now = Instant::START.after(Duration::from_secs(u64::try_from(number).unwrap()));
            fares.handle_answered(now, &engine, RelayId::from_bytes(id));
        }
        assert_eq!(fares.fares.len(), MAX_FARES);
        assert_eq!(fares.fare(&engine, &RelayId::from_bytes([0; 32])).answered, 0);
    }
}
