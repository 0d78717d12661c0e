//! The engines that the network's exits offer, and the reasons why an exit returned no results.

use core::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{EngineName, Offer, SearchRefusal};
use crate::base::{Counter as _, RelayId};

/// The offers of all exits; `None` before the first consensus.
pub type Offers = Option<Vec<(RelayId, Offer)>>;

/// The engines in `offers`: first `default`, if an exit offers it; then by number of exits, most first; then by name.
#[must_use]
pub fn engines(offers: &Offers, default: Option<&EngineName>) -> Vec<EngineName> {
    let mut counted: BTreeMap<&EngineName, usize> = BTreeMap::new();
    for engine in offers.iter().flatten().flat_map(|(_, offer)| &offer.engines) {
        let exits = counted.entry(engine).or_default();
        exits.increment();
    }
    let mut ordered = BTreeSet::new();
    ordered.extend(counted.iter().map(|(engine, exits)| (Some(*engine) != default, Reverse(*exits), *engine)));
    ordered.into_iter().map(|(.., engine)| engine.clone()).collect()
}

/// The exits that offer `engine`.
pub fn exits_offering<'a>(offers: &'a Offers, engine: &'a EngineName) -> impl Iterator<Item = RelayId> + 'a {
    offers.iter().flatten().filter(|(_, offer)| offer.engines.contains(engine)).map(|(exit, _)| *exit)
}

/// A failed try of a search at an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedTry {
    /// The exit.
    pub exit: RelayId,
    /// The reason.
    pub reason: FailedTryReason,
}

/// Why an exit returned no results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailedTryReason {
    /// The exit refused the query.
    #[error("{0}")]
    Refused(SearchRefusal),
    /// The exit or the circuit failed, or the answer is malformed.
    #[error("the exit or the circuit failed, or the answer is malformed")]
    Broken,
    /// The whole answer did not arrive within [`ANSWER_TIMEOUT`](super::query::ANSWER_TIMEOUT).
    #[error("the exit did not send its whole answer in time")]
    TimedOut,
}

impl FailedTryReason {
    /// Whether a second try at another exit is reasonable. False after a timeout, because a second try could take as
    /// long again.
    #[must_use]
    pub const fn allows_second_try(self) -> bool {
        match self {
            Self::Broken => true,
            Self::TimedOut => false,
            Self::Refused(refusal) => matches!(
                refusal,
                SearchRefusal::EngineBlocked(_)
                    | SearchRefusal::RateLimited
                    | SearchRefusal::UnknownEngine
                    | SearchRefusal::EngineUnreachable
            ),
        }
    }
}
