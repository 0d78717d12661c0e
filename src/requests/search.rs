//! Searches of a client over a [`Connector`], and comparisons of exits.
//!
//! [`Query`] selects the engine and the exits, and determines whether there is a second try. This module sends each
//! query over a stream with a separate isolation, therefore on a separate circuit. It owns the statistics of exits by
//! engine ([`ExitStatistics`]). Governed by `proto/09-delegated.md` §3. Exits are not trusted: an answer is bounded in
//! length and time, and the answers of several exits can be compared.

mod comparison;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
    time::timeout,
};

use crate::{
    base::{Instant, RelayId},
    client::StreamFailure,
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Hop, Isolation},
    delegated::{
        Delegation, EngineName, ExitCounts, ExitStatistics, SearchResult, exits_offering,
        frame::{RESPONSE_BUCKETS, max_frame_len},
        query::{ANSWER_TIMEOUT, Query, Results, TryError},
    },
    path::PathError,
};

pub(crate) use crate::delegated::engines;
pub use crate::delegated::{
    FailedTry, FailedTryReason, Offers,
    query::{QueryError, SearchQuery},
};
pub use comparison::{Comparison, ExitOutcome, MAX_COMPARED, Row};

/// Time limit for a circuit. It is longer than the limit of the client's core, whose error contains the reason.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(35);

/// The results of a query, and the query's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The engine.
    pub engine: EngineName,
    /// The results, in the engine's order.
    pub results: Vec<SearchResult>,
    /// The total number of results, if the engine stated it.
    pub total: Option<u64>,
    /// Whether there is a further page of results.
    pub more: bool,
    /// The path of query and answer.
    pub route: Route,
    /// The failure of the first try, with its exit, if there was a second try.
    pub failed_try: Option<FailedTry>,
}

/// The path of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The hops, from guard to exit.
    pub hops: Vec<Hop>,
    /// Whether the exit also carries other streams of this client, or did so recently, because no other exit was
    /// suitable.
    pub shared_exit: bool,
    /// The time from the sending of the query to the complete answer.
    pub duration: Duration,
}

/// The reason why a search failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchFailure {
    /// The query was not sent.
    #[error("{0}")]
    Query(#[from] QueryError),
    /// Fewer exits are available than the comparison requires.
    #[error("only {0} exits of this network are available for this query")]
    TooFewExits(usize),
    /// There is no circuit.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The last try failed at this exit, for this reason.
    #[error("{}", .0.reason)]
    Failed(FailedTry),
}

impl From<TryError<ConnectError>> for SearchFailure {
    fn from(error: TryError<ConnectError>) -> Self {
        match error {
            TryError::NoCircuit(ConnectError::Stream(StreamFailure::NoPath(PathError::NotOffered))) => {
                Self::Query(QueryError::NoSuchEngine)
            }
            TryError::NoCircuit(error) => Self::Connect(error),
            TryError::Failed(failed) => Self::Failed(failed),
        }
    }
}

/// The statistics of one exit with one engine.
#[derive(Clone, Copy, Debug)]
pub struct ExitReport {
    /// The exit.
    pub exit: RelayId,
    /// The number of answers and failures.
    pub counts: ExitCounts,
    /// The remaining time for which the client avoids the exit, if the engine blocked it.
    pub blocked_for: Option<Duration>,
}

/// The exits with their offers and statistics. Outlives the [`Searcher`]s. Cheap to clone; clones share the state.
#[derive(Clone, Debug)]
pub struct Exits(Arc<ExitsState>);

#[derive(Debug)]
struct ExitsState {
    offers: watch::Receiver<Offers>,
    default_engine: Option<EngineName>,
    exit_statistics: Mutex<ExitStatistics>,
    /// The number of queries for which a circuit was requested.
    query_count: AtomicU64,
    /// The start of the time that the statistics use.
    start: std::time::Instant,
}

impl Exits {
    /// The exits of `offers`. Queries without an engine use `default_engine`, or else the engine that most exits offer.
    #[must_use]
    pub fn new(offers: watch::Receiver<Offers>, default_engine: Option<EngineName>) -> Self {
        let start = std::time::Instant::now();
        Self(Arc::new(ExitsState {
            offers,
            default_engine,
            exit_statistics: Mutex::default(),
            query_count: AtomicU64::new(0),
            start,
        }))
    }
}

/// Searches over a [`Connector`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Searcher<C> {
    connector: C,
    exits: Exits,
}

impl<C: Connector> Searcher<C> {
    /// A searcher over `connector` with the exits of the same network.
    #[must_use]
    pub const fn new(connector: C, exits: Exits) -> Self {
        Self { connector, exits }
    }

    /// The offered engines: first the default one, if an exit offers it; then by number of exits, most first.
    #[must_use]
    pub fn engines(&self) -> Vec<EngineName> {
        engines(&self.state().offers.borrow(), self.state().default_engine.as_ref())
    }

    /// The statistics of the exits that offer `engine`.
    #[must_use]
    pub fn exit_statistics(&self, engine: &EngineName) -> Vec<ExitReport> {
        let (now, statistics) = (self.now(), self.lock());
        let report = |exit: RelayId| {
            let counts = statistics.counts(engine, &exit);
            let remaining = |until: Instant| Some(until.since(now)).filter(|time| !time.is_zero());
            ExitReport { exit, counts, blocked_for: counts.blocked.and_then(|(_, until)| remaining(until)) }
        };
        exits_offering(&self.state().offers.borrow(), engine).map(report).collect()
    }

    /// Sends the query to an exit. Sends it to a second exit if the failure of the first
    /// [allows a second try](FailedTryReason::allows_second_try).
    ///
    /// # Errors
    /// See [`SearchFailure`].
    pub async fn search(&self, query: &SearchQuery) -> Result<Found, SearchFailure> {
        let mut query = self.begin(query)?;
        loop {
            let outcome = match self.open(&query).await {
                Ok(delegated) => self.send(&query, delegated).await,
                Err(error) => Err(TryError::NoCircuit(error)),
            };
            if let Some(outcome) = query.handle_outcome(outcome) {
                return Ok(Found { failed_try: query.failed_try(), ..outcome? });
            }
        }
    }

    fn begin(&self, query: &SearchQuery) -> Result<Query, QueryError> {
        // The mutex is locked before the offers are borrowed. A thread that waits for the mutex while it borrows the
        // offers would block the client's task when the task writes them.
        let (state, statistics) = (self.state(), self.lock());
        Query::new(self.now(), query, &state.offers.borrow(), state.default_engine.as_ref(), &statistics)
    }

    /// Opens a stream to an exit for `query`, on a separate circuit.
    async fn open(&self, query: &Query) -> Result<Delegated, ConnectError> {
        let number = self.state().query_count.fetch_add(1, Ordering::Relaxed);
        let isolation = Isolation::new("search", &number.to_be_bytes(), &[]);
        let delegation = Delegation::Search(query.engine().clone());
        let excluded_exits = query.excluded_exits().to_vec();
        let opening = self.connector.delegate(DelegatedRequest { delegation, excluded_exits, isolation });
        timeout(CONNECT_TIMEOUT, opening).await.unwrap_or(Err(StreamFailure::NoCircuit.into()))
    }

    /// Sends the query to the exit at the end of `delegated`, and records the outcome.
    async fn send(&self, query: &Query, delegated: Delegated) -> Result<Found, TryError<ConnectError>> {
        let Some(exit) = delegated.path.last().map(|hop| hop.relay) else {
            return Err(TryError::NoCircuit(StreamFailure::NoCircuit.into()));
        };
        let start = std::time::Instant::now();
        let exchanged = timeout(ANSWER_TIMEOUT, exchange(delegated.stream, query.framed())).await;
        let duration = start.elapsed();
        let outcome = match exchanged {
            Ok(Ok(answer)) => Results::decode(&answer),
            Ok(Err(_)) => Err(FailedTryReason::Broken),
            Err(_) => Err(FailedTryReason::TimedOut),
        };
        let engine = query.engine();
        self.lock().handle_outcome(self.now(), engine, exit, outcome.as_ref().map(|_| ()).map_err(|reason| *reason));
        let Results { results, total, more } =
            outcome.map_err(|reason| TryError::Failed(FailedTry { exit, reason }))?;
        let route = Route { hops: delegated.path, shared_exit: delegated.shared_exit, duration };
        Ok(Found { engine: engine.clone(), results, total, more, route, failed_try: None })
    }

    fn state(&self) -> &ExitsState {
        &self.exits.0
    }

    fn now(&self) -> Instant {
        Instant::START.after(self.state().start.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, ExitStatistics> {
        self.state().exit_statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the query and reads the answer.
async fn exchange(mut stream: crate::io::stream::Stream, framed: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(framed).await?;
    stream.shutdown().await?;
    let cap = max_frame_len(RESPONSE_BUCKETS).saturating_add(1);
    let mut answer = Vec::new();
    (&mut stream).take(u64::try_from(cap).unwrap_or(u64::MAX)).read_to_end(&mut answer).await?;
    Ok(answer)
}
