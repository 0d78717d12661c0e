//! The engines that the network's exits offer, and the reasons why an exit returned no results.

use core::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{EngineName, Offer, SearchRefusal};
use crate::base::{Counter as _, RelayId};

/// The offers of all exits; `None` before the first consensus.
pub type Offers = Option<Vec<(RelayId, Offer)>>;

/// The engines in `offers`, the default one first: `default` if it is offered, else the one that most exits offer.
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
pub fn exits_with<'a>(offers: &'a Offers, engine: &'a EngineName) -> impl Iterator<Item = RelayId> + 'a {
    offers.iter().flatten().filter(|(_, offer)| offer.engines.contains(engine)).map(|(exit, _)| *exit)
}

/// A failed try of a search at an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The exit.
    pub exit: RelayId,
    /// The reason.
    pub why: MissReason,
}

/// Why an exit returned no results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissReason {
    /// The exit refused the query.
    #[error("{0}")]
    Refused(SearchRefusal),
    /// The exit or its circuit failed, or the answer was invalid.
    #[error("the exit closed the stream early, or its answer is malformed")]
    Broken,
    /// The exit exceeded the time limit of 20 s.
    #[error("the exit did not answer in time")]
    Silent,
}

impl MissReason {
    /// Whether a second try at another exit is reasonable. False for [`Self::Silent`], whose second try could take
    /// 20 s more.
    #[must_use]
    pub const fn allows_second_try(self) -> bool {
        match self {
            Self::Broken => true,
            Self::Silent => false,
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
