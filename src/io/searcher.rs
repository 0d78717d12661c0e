//! Searches of a client: chooses engine and exit, sends the query, and retries after a refusal.
//!
//! Owns the record of each exit's answers and failures with each engine ([`ExitStatistics`]). Each query has its own
//! isolation, and thus its own circuit. An exit that an engine blocks is not used for a while, and the query is sent
//! once more through another. Governed by `proto/09-delegated.md`, "Search". Exits are not trusted: an answer is
//! bounded in length and time, decoded strictly and cleaned ([`SearchAnswer::decode`]), and the answers of several
//! exits can be compared.

mod comparison;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
    time::timeout,
};

use crate::{
    base::{Instant, RelayId},
    client::StreamFailure,
    delegated::{
        Delegation, EngineName, ExitCounts, ExitStatistics, SearchAnswer, SearchError, SearchRefusal, SearchRequest,
        SearchResult,
        frame::{RESPONSE_BUCKETS, longest},
    },
    path::PathError,
};

use super::connector::{ConnectError, Connector, Delegated, Hop, Isolation};

pub(crate) use crate::delegated::engines;
pub use crate::delegated::{Miss, MissReason, Offers};
pub use comparison::{Asked, Comparison, MAX_COMPARED, Row};

/// Time limit for getting a circuit, longer than the client's, whose error says why there is none.
const CONNECT_LIMIT: Duration = Duration::from_secs(35);
/// Time limit for the exit's answer; the exit gives the engine eight seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

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

/// The results of a query, and its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The engine that answered.
    pub engine: EngineName,
    /// The results, in the engine's order.
    pub results: Vec<SearchResult>,
    /// The total number of results, if the engine gave it.
    pub total: Option<u64>,
    /// Whether there is a further page.
    pub more: bool,
    /// The path of query and answer.
    pub route: Route,
    /// The exit of the first attempt, if that attempt failed.
    pub missed: Option<Miss>,
}

/// The path of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The hops, from guard to exit.
    pub hops: Vec<Hop>,
    /// Whether the exit also carries other streams of this client, because no other exit offers the engine.
    pub shared_exit: bool,
    /// The time from query to answer.
    pub took: Duration,
}

/// The reason why a search failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchFailure {
    /// The query is invalid.
    #[error("{0}")]
    Query(#[from] SearchError),
    /// No exit offers to search.
    #[error("no exit of this network offers a search engine")]
    NoEngines,
    /// No exit offers this engine.
    #[error("no exit of this network offers this engine")]
    NoSuchEngine,
    /// Fewer exits are available than the comparison needs.
    #[error("only {0} exits of this network are available for this query")]
    TooFewExits(usize),
    /// The engine blocks every exit that offers it.
    #[error("the engine blocks every exit that offers it; try again in ten minutes, or use another engine")]
    AllBlocked,
    /// There is no circuit.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The exit gave no results, and neither did a second one where a retry was possible; the last exit's reason.
    #[error("{}", .0.why)]
    Missed(Miss),
}

/// The record of one exit with one engine.
#[derive(Clone, Copy, Debug)]
pub struct ExitReport {
    /// The exit.
    pub exit: RelayId,
    /// Its answers and failures.
    pub counts: ExitCounts,
    /// The remaining time of its block, if any.
    pub blocked_for: Option<Duration>,
}

/// The exits with their offers and records; outlives each [`Searcher`]. Cheap to clone; clones share their state.
#[derive(Clone, Debug)]
pub struct Exits(Arc<Known>);

#[derive(Debug)]
struct Known {
    offers: watch::Receiver<Offers>,
    default: Option<EngineName>,
    exit_statistics: Mutex<ExitStatistics>,
    queries: AtomicU64,
    start: std::time::Instant,
}

impl Exits {
    /// The exits of `offers`. Queries without an engine use `default`, or else the engine that most exits offer.
    #[must_use]
    pub fn new(offers: watch::Receiver<Offers>, default: Option<EngineName>) -> Self {
        let start = std::time::Instant::now();
        Self(Arc::new(Known { offers, default, exit_statistics: Mutex::default(), queries: AtomicU64::new(0), start }))
    }
}

/// Searches over a [`Connector`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Searcher<C> {
    connector: C,
    exits: Exits,
}

impl<C: Connector> Searcher<C> {
    /// A searcher over `connector` that uses `exits`, which must be of the same network.
    #[must_use]
    pub const fn new(connector: C, exits: Exits) -> Self {
        Self { connector, exits }
    }

    /// The offered engines, the default one first.
    #[must_use]
    pub fn engines(&self) -> Vec<EngineName> {
        engines(&self.known().offers.borrow(), self.known().default.as_ref())
    }

    /// Reports on the exits that offer `engine`.
    #[must_use]
    pub fn exit_statistics(&self, engine: &EngineName) -> Vec<ExitReport> {
        let (now, statistics) = (self.now(), self.lock());
        let report = |exit: RelayId| {
            let counts = statistics.counts(engine, &exit);
            let left = |until: Instant| Some(until.since(now)).filter(|left| !left.is_zero());
            ExitReport { exit, counts, blocked_for: counts.blocked.and_then(|(_, until)| left(until)) }
        };
        self.exits_with(engine).into_iter().map(report).collect()
    }

    /// Sends the query to an exit, and to another one if the first fails for a reason on its side.
    ///
    /// # Errors
    /// See [`SearchFailure`].
    pub async fn search(&self, query: &SearchQuery) -> Result<Found, SearchFailure> {
        let request = self.request(query)?;
        let mut not_by = self.blocked(request.engine())?;
        match self.ask(&request, not_by.clone()).await {
            Err(SearchFailure::Missed(miss)) if miss.why.is_the_exits() => {
                not_by.push(miss.exit);
                match self.ask(&request, not_by).await {
                    Ok(found) => Ok(Found { missed: Some(miss), ..found }),
                    // There is no other exit.
                    Err(SearchFailure::Connect(_) | SearchFailure::NoSuchEngine) => Err(SearchFailure::Missed(miss)),
                    failed => failed,
                }
            }
            asked => asked,
        }
    }

    async fn ask(&self, request: &SearchRequest, not_by: Vec<RelayId>) -> Result<Found, SearchFailure> {
        let delegated = self.open(request.engine(), not_by).await?;
        self.converse(request, delegated).await
    }

    /// Opens a stream to an exit that offers `engine`, on a circuit that carries nothing else.
    async fn open(&self, engine: &EngineName, not_by: Vec<RelayId>) -> Result<Delegated, SearchFailure> {
        let number = self.known().queries.fetch_add(1, Ordering::Relaxed);
        let isolation = Isolation::new("search", &number.to_be_bytes(), &[]);
        let opening = self.connector.delegate(Delegation::Search(engine.clone()), not_by, isolation);
        match timeout(CONNECT_LIMIT, opening).await.unwrap_or(Err(StreamFailure::NoCircuit.into())) {
            Err(ConnectError::Stream(StreamFailure::NoPath(PathError::NotOffered))) => Err(SearchFailure::NoSuchEngine),
            Err(error) => Err(error.into()),
            Ok(delegated) => Ok(delegated),
        }
    }

    /// Sends the request to the exit at the end of `delegated`, and records the outcome.
    async fn converse(&self, request: &SearchRequest, delegated: Delegated) -> Result<Found, SearchFailure> {
        let Some(exit) = delegated.path.last().map(|hop| hop.relay) else {
            return Err(ConnectError::from(StreamFailure::NoCircuit).into());
        };
        let framed = request.encode()?;
        let began = std::time::Instant::now();
        let exchanged = timeout(ANSWER_LIMIT, exchange(delegated.stream, &framed)).await;
        let took = began.elapsed();
        let answer = match exchanged {
            Ok(Some(SearchAnswer::Results { results, total, more })) => Ok((results, total, more)),
            Ok(Some(SearchAnswer::Refused(refusal))) => Err(MissReason::Refused(refusal)),
            Ok(None) => Err(MissReason::Broken),
            Err(_) => Err(MissReason::Silent),
        };
        let engine = request.engine();
        self.remember(engine, exit, answer.as_ref().err().copied());
        match answer {
            Ok((results, total, more)) => {
                let route = Route { hops: delegated.path, shared_exit: delegated.shared_exit, took };
                Ok(Found { engine: engine.clone(), results, total, more, route, missed: None })
            }
            Err(why) => Err(SearchFailure::Missed(Miss { exit, why })),
        }
    }

    fn remember(&self, engine: &EngineName, exit: RelayId, miss: Option<MissReason>) {
        let (now, mut statistics) = (self.now(), self.lock());
        match miss {
            None => statistics.handle_answered(now, engine, exit),
            Some(MissReason::Refused(SearchRefusal::EngineBlocked(block))) => {
                statistics.handle_blocked(now, engine, exit, block);
            }
            Some(_) => statistics.handle_failed(now, engine, exit),
        }
    }

    fn request(&self, query: &SearchQuery) -> Result<SearchRequest, SearchFailure> {
        let engines = self.engines();
        let engine = match query.engine.as_ref().or(self.known().default.as_ref()) {
            Some(engine) if engines.contains(engine) => engine,
            Some(_) if !engines.is_empty() => return Err(SearchFailure::NoSuchEngine),
            _ => engines.first().ok_or_else(|| self.without_engines())?,
        };
        Ok(SearchRequest::new(engine.clone(), &query.terms, query.page, query.language.as_deref())?)
    }

    fn without_engines(&self) -> SearchFailure {
        if self.known().offers.borrow().is_none() {
            ConnectError::from(StreamFailure::NoConsensus).into()
        } else {
            SearchFailure::NoEngines
        }
    }

    fn exits_with(&self, engine: &EngineName) -> Vec<RelayId> {
        let offers = self.known().offers.borrow();
        offers.iter().flatten().filter(|(_, offer)| offer.engines.contains(engine)).map(|(exit, _)| *exit).collect()
    }

    /// The exits that `engine` blocks now.
    ///
    /// # Errors
    /// When they are all exits that offer the engine.
    fn blocked(&self, engine: &EngineName) -> Result<Vec<RelayId>, SearchFailure> {
        let blocked = self.lock().blocked(self.now(), engine);
        let all = self.exits_with(engine).iter().all(|exit| blocked.contains(exit));
        if all { Err(SearchFailure::AllBlocked) } else { Ok(blocked) }
    }

    fn known(&self) -> &Known {
        &self.exits.0
    }

    fn now(&self) -> Instant {
        Instant::START.after(self.known().start.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, ExitStatistics> {
        self.known().exit_statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the query and reads the answer; `None` if the answer is invalid or the stream fails.
async fn exchange(mut stream: super::stream::Stream, framed: &[u8]) -> Option<SearchAnswer> {
    stream.write_all(framed).await.ok()?;
    stream.shutdown().await.ok()?;
    let cap = longest(RESPONSE_BUCKETS).saturating_add(1);
    let mut answer = Vec::new();
    (&mut stream).take(u64::try_from(cap).ok()?).read_to_end(&mut answer).await.ok()?;
    SearchAnswer::decode(&answer).ok()
}
