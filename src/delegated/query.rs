//! The client's side of a search: the choice of engine and exits, and the second try; for native programs and pages.
//!
//! [`Query`] is one search without I/O. The owner sends the query's frame to an exit that is not in
//! [`Query::excluded_exits`], over a separate circuit. The owner passes the outcome to [`Query::handle_outcome`], which
//! returns the result or requests a second try. Exits that the engine blocks are avoided for ten minutes
//! ([`ExitStatistics`]).
//!
//! Governed by `proto/09-delegated.md` §3. Exits are not trusted: an answer is bounded in length and time, decoded
//! strictly and cleaned.

#[cfg(test)]
mod tests;

use core::{fmt, time::Duration};

use super::{
    EngineName, ExitStatistics, FailedTry, FailedTryReason, Offers, SearchAnswer, SearchError, SearchRequest,
    SearchResult, engines, exits_offering,
};
use crate::base::{Instant, RelayId};

/// Time limit of the exit's answer. The exit's own limit for the engine is 8 s ([`super::service::ENGINE_TIMEOUT`]).
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A user's query. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchQuery {
    /// The search terms.
    pub terms: String,
    /// The engine; `None` for the default one.
    pub engine: Option<EngineName>,
    /// The page of results, from 1.
    pub page: u16,
    /// The language tag, such as `en` or `pt-BR`; `None` for any language.
    pub language: Option<String>,
}

impl SearchQuery {
    /// A query for the first page of results from the default engine, in any language.
    #[must_use]
    pub fn new(terms: impl Into<String>) -> Self {
        Self { terms: terms.into(), engine: None, page: 1, language: None }
    }
}

impl fmt::Debug for SearchQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SearchQuery([redacted])")
    }
}

/// Why a query is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The query is invalid.
    #[error("{0}")]
    Invalid(#[from] SearchError),
    /// The client has no consensus yet.
    #[error("there is no list of relays yet")]
    NotReady,
    /// No exit offers any engine.
    #[error("no exit of this network offers a search engine")]
    NoEngines,
    /// No exit offers this engine.
    #[error("no exit of this network offers this engine")]
    NoSuchEngine,
    /// The engine blocks every exit that offers it.
    #[error("the engine blocks every exit that offers it; try again in ten minutes, or use another engine")]
    AllBlocked,
}

/// Why one try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryError<E> {
    /// There is no circuit to an exit.
    NoCircuit(E),
    /// The exit returned no results.
    Failed(FailedTry),
}

/// The results in an exit's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Results {
    /// The results, in the engine's order.
    pub results: Vec<SearchResult>,
    /// The total number of results, if the engine stated it.
    pub total: Option<u64>,
    /// Whether there is a further page.
    pub more: bool,
}

impl Results {
    /// Decodes the complete frame of an answer.
    ///
    /// # Errors
    /// When the frame is invalid or contains a refusal.
    pub fn decode(framed: &[u8]) -> Result<Self, FailedTryReason> {
        match SearchAnswer::decode(framed) {
            Ok(SearchAnswer::Results { results, total, more }) => Ok(Self { results, total, more }),
            Ok(SearchAnswer::Refused(refusal)) => Err(FailedTryReason::Refused(refusal)),
            Err(_) => Err(FailedTryReason::Broken),
        }
    }
}

/// One search in progress: at most two tries at different exits.
pub struct Query {
    engine: EngineName,
    framed: Vec<u8>,
    excluded_exits: Vec<RelayId>,
    /// The failure of the first try, if a second try followed.
    failed_try: Option<FailedTry>,
}

impl Query {
    /// Begins a search. The engine is that of `query`, or else `default`, or else the one that most exits offer.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn new(
        now: Instant,
        query: &SearchQuery,
        offers: &Offers,
        default: Option<&EngineName>,
        statistics: &ExitStatistics,
    ) -> Result<Self, QueryError> {
        let offered = engines(offers, default);
        let most_offered =
            offered.first().ok_or(if offers.is_none() { QueryError::NotReady } else { QueryError::NoEngines })?;
        let engine = query.engine.as_ref().or(default).unwrap_or(most_offered);
        if !offered.contains(engine) {
            return Err(QueryError::NoSuchEngine);
        }
        let request = SearchRequest::new(engine.clone(), &query.terms, query.page, query.language.as_deref())?;
        let framed = request.encode()?;
        let excluded_exits = statistics.blocked(now, engine);
        if exits_offering(offers, engine).all(|exit| excluded_exits.contains(&exit)) {
            return Err(QueryError::AllBlocked);
        }
        Ok(Self { engine: engine.clone(), framed, excluded_exits, failed_try: None })
    }

    /// The engine.
    #[must_use]
    pub const fn engine(&self) -> &EngineName {
        &self.engine
    }

    /// The bytes to send to the exit.
    #[must_use]
    pub fn framed(&self) -> &[u8] {
        &self.framed
    }

    /// The excluded exits.
    #[must_use]
    pub fn excluded_exits(&self) -> &[RelayId] {
        &self.excluded_exits
    }

    /// Adds `exit` to the excluded exits.
    pub fn exclude(&mut self, exit: RelayId) {
        self.excluded_exits.push(exit);
    }

    /// The failure of the first try, if a second try followed.
    #[must_use]
    pub const fn failed_try(&self) -> Option<FailedTry> {
        self.failed_try
    }

    /// Handles the outcome of a try. Returns the outcome of the search, or `None` for a second try at another exit. A
    /// second try follows a first failure that [allows it](FailedTryReason::allows_second_try).
    pub fn handle_outcome<T, E>(&mut self, outcome: Result<T, TryError<E>>) -> Option<Result<T, TryError<E>>> {
        match (outcome, self.failed_try) {
            (Err(TryError::Failed(failed)), None) if failed.reason.allows_second_try() => {
                self.exclude(failed.exit);
                self.failed_try = Some(failed);
                None
            }
            // The second try had no circuit, usually because no other exit offers the engine: reports the first.
            (Err(TryError::NoCircuit(_)), Some(failed)) => Some(Err(TryError::Failed(failed))),
            (outcome, _) => Some(outcome),
        }
    }
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Query([redacted])")
    }
}
