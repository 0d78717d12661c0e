//! Searches of a page over exchanges; the counterpart of `requests::search`.
//!
//! [`Query`] chooses engine and exits and decides on a second try. Each try has a separate circuit. Specified in
//! `proto/09-delegated.md`, "Search". An exit is not trusted: its answer is bounded in length and time.

use core::time::Duration;

use super::{
    client::{ExchangeFailure, ExchangeParameters, ExchangePath, exchange},
    clock,
    failure::{FailureKind, PageFailure},
    page::Page,
};
use crate::{
    client::StreamFailure,
    delegated::{
        Delegation, EngineName, FailedTry, FailedTryReason, SearchRefusal, SearchResult, engines, exits_offering,
        frame::{RESPONSE_BUCKETS, max_frame_len},
        query::{ANSWER_TIMEOUT, Query, QueryError, Results, SearchQuery, TryError},
    },
};

/// The results of a query, with its engine and circuit.
#[derive(Debug)]
pub(super) struct SearchOutcome {
    pub(super) engine: EngineName,
    pub(super) results: Vec<SearchResult>,
    /// Whether the engine has a further page of results.
    pub(super) more: bool,
    pub(super) path: ExchangePath,
    /// The time from the sending of the query to the end of the answer.
    pub(super) duration: Duration,
}

/// The engines that exits offer, each with its number of exits; most exits first, then by name.
pub(super) fn offered(page: &Page) -> Vec<(EngineName, usize)> {
    let offers = page.offers();
    let exits = |engine: &EngineName| exits_offering(&offers, engine).count();
    engines(&offers, None).into_iter().map(|engine| (engine.clone(), exits(&engine))).collect()
}

/// Searches through an exit and, after a failure, perhaps through a second exit. `number` is the page of results.
pub(super) async fn search(
    page: &Page,
    engine: Option<&str>,
    terms: &str,
    number: u16,
    language: Option<&str>,
) -> Result<SearchOutcome, PageFailure> {
    let parse = |name| {
        EngineName::parse(name).ok_or_else(|| PageFailure::new(FailureKind::BadInput, "the engine's name is invalid"))
    };
    let query = SearchQuery {
        terms: terms.to_owned(),
        engine: engine.map(parse).transpose()?,
        page: number,
        language: language.map(str::to_owned),
    };
    let mut query = new_query(page, &query)?;
    loop {
        let outcome = try_once(page, &query).await;
        if page.drive.is_stopped() {
            return Err(PageFailure::closed());
        }
        if let Some(outcome) = query.handle_outcome(outcome) {
            return outcome.map_err(|error| match error {
                TryError::NoCircuit(failure) => failure,
                TryError::Failed(failed) => failed.into(),
            });
        }
    }
}

impl From<QueryError> for PageFailure {
    fn from(error: QueryError) -> Self {
        let kind = match error {
            QueryError::Invalid(_) => FailureKind::BadInput,
            QueryError::NotReady => FailureKind::Network,
            QueryError::NoEngines | QueryError::NoSuchEngine | QueryError::AllBlocked => FailureKind::Engine,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<FailedTry> for PageFailure {
    fn from(FailedTry { reason, .. }: FailedTry) -> Self {
        let kind = match reason {
            FailedTryReason::Broken | FailedTryReason::TimedOut => FailureKind::Exit,
            FailedTryReason::Refused(SearchRefusal::RateLimited | SearchRefusal::BadRequest) => FailureKind::Refused,
            FailedTryReason::Refused(_) => FailureKind::Engine,
        };
        Self::new(kind, reason.to_string())
    }
}

fn new_query(page: &Page, query: &SearchQuery) -> Result<Query, PageFailure> {
    let statistics = page.exit_statistics.try_borrow().map_err(|_| PageFailure::closed())?;
    Ok(Query::new(clock::now(), query, &page.offers(), None, &statistics)?)
}

/// Performs one try.
async fn try_once(page: &Page, query: &Query) -> Result<SearchOutcome, TryError<PageFailure>> {
    let engine = query.engine();
    let parameters = ExchangeParameters {
        delegation: Delegation::Search(engine.clone()),
        excluded_exits: query.excluded_exits().to_vec(),
        isolation: page.isolation(),
        request: query.framed().to_vec(),
        max_len: max_frame_len(RESPONSE_BUCKETS),
        timeout: ANSWER_TIMEOUT,
    };
    let (path, outcome) = match exchange(&page.drive, parameters).await {
        Ok(exchanged) => {
            (exchanged.path, Results::decode(&exchanged.answer).map(|results| (results, exchanged.duration)))
        }
        Err(ExchangeFailure::Broken(path)) => (path, Err(FailedTryReason::Broken)),
        Err(ExchangeFailure::TimedOut(path)) => (path, Err(FailedTryReason::TimedOut)),
        Err(ExchangeFailure::NoCircuit(failure)) => return Err(TryError::NoCircuit(failure.into())),
        Err(ExchangeFailure::Closed) => return Err(TryError::NoCircuit(PageFailure::closed())),
    };
    let Some(exit) = path.hops.last().map(|hop| hop.relay) else {
        return Err(TryError::NoCircuit(StreamFailure::NoCircuit.into()));
    };
    if let Ok(mut statistics) = page.exit_statistics.try_borrow_mut() {
        let outcome = outcome.as_ref().map(|_| ()).map_err(|reason| *reason);
        statistics.handle_outcome(clock::now(), engine, exit, outcome);
    }
    let (Results { results, more, .. }, duration) =
        outcome.map_err(|reason| TryError::Failed(FailedTry { exit, reason }))?;
    Ok(SearchOutcome { engine: engine.clone(), results, more, path, duration })
}
