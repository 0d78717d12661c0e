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
        Delegation, EngineName, Miss, MissReason, SearchRefusal, SearchResult, engines, exits_with,
        frame::{RESPONSE_BUCKETS, longest},
        query::{ANSWER_TIMEOUT, Query, QueryError, Results, SearchQuery, TryError},
    },
};

/// The results of a query, with its engine and circuit.
#[derive(Debug)]
pub(super) struct SearchOutcome {
    pub(super) engine: EngineName,
    pub(super) results: Vec<SearchResult>,
    pub(super) more: bool,
    pub(super) path: ExchangePath,
    pub(super) took: Duration,
}

/// The engines that exits offer, the default first, each with its number of exits.
pub(super) fn offered(page: &Page) -> Vec<(EngineName, usize)> {
    let offers = page.offers();
    let exits = |engine: &EngineName| exits_with(&offers, engine).count();
    engines(&offers, None).into_iter().map(|engine| (engine.clone(), exits(&engine))).collect()
}

/// Searches through an exit, and through another one after a failure of the first.
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
        if page.driver.is_stopped() {
            return Err(PageFailure::closed());
        }
        if let Some(outcome) = query.handle_outcome(outcome) {
            return outcome.map_err(|error| match error {
                TryError::NoCircuit(failure) => failure,
                TryError::Missed(miss) => miss.into(),
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

impl From<Miss> for PageFailure {
    fn from(Miss { why, .. }: Miss) -> Self {
        let kind = match why {
            MissReason::Broken | MissReason::Silent => FailureKind::Exit,
            MissReason::Refused(SearchRefusal::RateLimited | SearchRefusal::BadRequest) => FailureKind::Refused,
            MissReason::Refused(_) => FailureKind::Engine,
        };
        Self::new(kind, why.to_string())
    }
}

fn new_query(page: &Page, query: &SearchQuery) -> Result<Query, PageFailure> {
    let statistics = page.exit_statistics.try_borrow().map_err(|_| PageFailure::closed())?;
    Ok(Query::new(clock::now(), query, &page.offers(), None, &statistics)?)
}

/// Performs one try.
async fn try_once(page: &Page, query: &Query) -> Result<SearchOutcome, TryError<PageFailure>> {
    let engine = query.engine();
    let wanted = ExchangeParameters {
        delegation: Delegation::Search(engine.clone()),
        excluded_exits: query.excluded_exits().to_vec(),
        isolation: page.isolation(),
        request: query.framed().to_vec(),
        max_len: longest(RESPONSE_BUCKETS),
        timeout: ANSWER_TIMEOUT,
    };
    let (path, outcome) = match exchange(&page.driver, wanted).await {
        Ok(exchanged) => (exchanged.path, Results::decode(&exchanged.answer).map(|results| (results, exchanged.took))),
        Err(ExchangeFailure::Broken(path)) => (path, Err(MissReason::Broken)),
        Err(ExchangeFailure::Silent(path)) => (path, Err(MissReason::Silent)),
        Err(ExchangeFailure::NoCircuit(failure)) => return Err(TryError::NoCircuit(failure.into())),
        Err(ExchangeFailure::Closed) => return Err(TryError::NoCircuit(PageFailure::closed())),
    };
    let Some(exit) = path.hops.last().map(|hop| hop.relay) else {
        return Err(TryError::NoCircuit(StreamFailure::NoCircuit.into()));
    };
    if let Ok(mut statistics) = page.exit_statistics.try_borrow_mut() {
        let outcome = outcome.as_ref().map(|_| ()).map_err(|why| *why);
        statistics.handle_outcome(clock::now(), engine, exit, outcome);
    }
    let (Results { results, more, .. }, took) = outcome.map_err(|why| TryError::Missed(Miss { exit, why }))?;
    Ok(SearchOutcome { engine: engine.clone(), results, more, path, took })
}
