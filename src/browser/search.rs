//! Searches of a page: choice of engine and exit, and retry after a refusal; the counterpart of `io::searcher`.
//!
//! Each query has a separate circuit. An exit that an engine has blocked is avoided for a while, and the query is
//! sent once more by another exit. Specified in `proto/09-delegated.md`, "Search". An exit is not trusted: its answer
//! is bounded in length and time, decoded strictly and cleaned.

use core::time::Duration;

use super::{
    client::{ExchangeFailure, Wanted, Way, exchange},
    clock,
    failure::{Failure, Kind},
    page::Page,
};
use crate::{
    base::RelayId,
    client::StreamFailure,
    delegated::{
        Delegation, EngineName, Miss, MissReason, SearchAnswer, SearchRefusal, SearchRequest, SearchResult, engines,
        frame::{RESPONSE_BUCKETS, longest},
    },
    wire::EndReason,
};

/// Time limit of the exit's answer; the engine has eight seconds of it.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The results of a query, with its engine and circuit.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) engine: EngineName,
    pub(super) results: Vec<SearchResult>,
    pub(super) more: bool,
    pub(super) way: Way,
    pub(super) took: Duration,
}

/// The engines that exits offer, the default first, each with its number of exits.
pub(super) fn offered(page: &Page) -> Vec<(EngineName, usize)> {
    let offers = page.offers();
    let exits =
        |engine: &EngineName| offers.iter().flatten().filter(|(_, offer)| offer.engines.contains(engine)).count();
    engines(&offers, None).into_iter().map(|engine| (engine.clone(), exits(&engine))).collect()
}

/// Searches by an exit, and by another one if the first fails for a reason of its own.
pub(super) async fn search(
    page: &Page,
    engine: Option<&str>,
    terms: &str,
    number: u16,
    language: Option<&str>,
) -> Result<Found, Failure> {
    let engine = chosen(page, engine)?;
    let request = SearchRequest::new(engine.clone(), terms, number, language)
        .map_err(|error| Failure::new(Kind::BadInput, error.to_string()))?;
    let mut not_by = blocked(page, &engine)?;
    match ask(page, &request, not_by.clone()).await {
        Err(Missed::Exit(miss)) if miss.why.is_the_exits() => {
            not_by.push(miss.exit);
            match ask(page, &request, not_by).await {
                // There was no other exit.
                Err(Missed::NoWay(_)) => Err(Missed::Exit(miss)),
                asked => asked,
            }
        }
        asked => asked,
    }
    .map_err(Failure::from)
}

enum Missed {
    NoWay(StreamFailure),
    Exit(Miss),
    Closed,
}

impl From<Missed> for Failure {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Closed => Self::closed(),
            Missed::NoWay(failure) => failure.into(),
            Missed::Exit(Miss { why, .. }) => {
                let kind = match why {
                    MissReason::Broken | MissReason::Silent => Kind::Exit,
                    MissReason::Refused(SearchRefusal::RateLimited | SearchRefusal::BadRequest) => Kind::Refused,
                    MissReason::Refused(_) => Kind::Engine,
                };
                Self::new(kind, why.to_string())
            }
        }
    }
}

fn chosen(page: &Page, engine: Option<&str>) -> Result<EngineName, Failure> {
    let offered = engines(&page.offers(), None);
    let none = || Failure::new(Kind::Engine, "no exit of this network offers a search engine");
    match engine {
        None => offered.into_iter().next().ok_or_else(none),
        Some(name) => {
            let wanted =
                EngineName::parse(name).ok_or_else(|| Failure::new(Kind::BadInput, "the engine's name is invalid"))?;
            let other = || Failure::new(Kind::Engine, "no exit of this network offers this engine");
            offered.into_iter().find(|engine| *engine == wanted).ok_or_else(other)
        }
    }
}

/// The exits that `engine` blocks at present.
fn blocked(page: &Page, engine: &EngineName) -> Result<Vec<RelayId>, Failure> {
    let blocked = page
        .exit_statistics
        .try_borrow()
        .map(|statistics| statistics.blocked(clock::now(), engine))
        .unwrap_or_default();
    let offers = page.offers();
    let mut exits = offers.iter().flatten().filter(|(_, offer)| offer.engines.contains(engine));
    if exits.all(|(exit, _)| blocked.contains(exit)) {
        let words = "the engine blocks every exit that offers it; try again in ten minutes, or use another engine";
        return Err(Failure::new(Kind::Engine, words));
    }
    Ok(blocked)
}

async fn ask(page: &Page, request: &SearchRequest, not_by: Vec<RelayId>) -> Result<Found, Missed> {
    let engine = request.engine();
    // The bounds of a `SearchRequest` keep it below the largest frame.
    let framed = request.encode().map_err(|_| Missed::NoWay(StreamFailure::Ended(EndReason::Failed)))?;
    let wanted = Wanted {
        delegation: Delegation::Search(engine.clone()),
        not_by,
        isolation: page.isolation(),
        request: framed,
        most: longest(RESPONSE_BUCKETS),
        patience: ANSWER_LIMIT,
    };
    let (way, answer) = match exchange(&page.driver, wanted).await {
        Ok(exchanged) => {
            let answer = match SearchAnswer::decode(&exchanged.answer) {
                Ok(SearchAnswer::Results { results, more, .. }) => Ok((results, more, exchanged.took)),
                Ok(SearchAnswer::Refused(refusal)) => Err(MissReason::Refused(refusal)),
                Err(_) => Err(MissReason::Broken),
            };
            (exchanged.way, answer)
        }
        Err(ExchangeFailure::Broken(way)) => (way, Err(MissReason::Broken)),
        Err(ExchangeFailure::Silent(way)) => (way, Err(MissReason::Silent)),
        Err(ExchangeFailure::NoWay(failure)) => return Err(Missed::NoWay(failure)),
        Err(ExchangeFailure::Closed) => return Err(Missed::Closed),
    };
    let Some(exit) = way.hops.last().map(|hop| hop.relay) else { return Err(Missed::NoWay(StreamFailure::NoCircuit)) };
    remember(page, engine, exit, answer.as_ref().err().copied());
    let (results, more, took) = answer.map_err(|why| Missed::Exit(Miss { exit, why }))?;
    Ok(Found { engine: engine.clone(), results, more, way, took })
}

fn remember(page: &Page, engine: &EngineName, exit: RelayId, miss: Option<MissReason>) {
    let Ok(mut statistics) = page.exit_statistics.try_borrow_mut() else { return };
    let now = clock::now();
    match miss {
        None => statistics.handle_answered(now, engine, exit),
        Some(MissReason::Refused(SearchRefusal::EngineBlocked(block))) => {
            statistics.handle_blocked(now, engine, exit, block);
        }
        Some(_) => statistics.handle_failed(now, engine, exit),
    }
}
