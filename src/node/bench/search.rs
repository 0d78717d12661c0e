//! `umbel bench --mode search`: compares searches through a running client with the same queries sent to the engine
//! directly.
//!
//! Both ways use the engine of the exits' OpenSearch description and a separate TCP connection for each query. Queries
//! are distinct until the word list is exhausted. The two ways send them in different order, so a cache of the engine
//! favours neither.

use core::{net::SocketAddr, time::Duration};
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    BenchOptions,
    measure::Spread,
    process::{Processes, Watched},
};
use crate::{
    delegated::{SearchAnswer, SearchRequest},
    engine::{Engine, Response},
    node::{Failure, control},
    page::api,
};

/// Number of results compared for each query.
const COMPARED: usize = 10;
/// Searches on each stream in a round of concurrent searches.
const SEARCHES_PER_STREAM: usize = 2;

const WORDS: &[&str] = &[
    "array",
    "borrow",
    "cargo",
    "channel",
    "closure",
    "compiler",
    "crate",
    "enum",
    "error",
    "function",
    "generic",
    "iterator",
    "lifetime",
    "macro",
    "memory",
    "module",
    "mutex",
    "ownership",
    "pattern",
    "pointer",
    "reference",
    "release",
    "slice",
    "stream",
    "string",
    "struct",
    "test",
    "thread",
    "trait",
    "type",
    "value",
    "vector",
];

/// The terms of query `number`: two words. Each pair of words occurs once.
fn terms(number: usize) -> String {
    let word = |at: usize| at.checked_rem(WORDS.len()).and_then(|at| WORDS.get(at)).copied().unwrap_or_default();
    let step = number.checked_div(WORDS.len()).unwrap_or(0).saturating_add(1);
    format!("{} {}", word(number), word(number.saturating_add(step)))
}

/// Targets of both ways.
struct Sides {
    http: reqwest::Client,
    engine: Engine,
    control: SocketAddr,
}

/// The way that a search takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    Through,
}

/// The result of one search.
struct TimedSearch {
    took: Duration,
    links: Vec<String>,
}

/// The rate of concurrent searches on one way.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct SearchRate {
    searches: usize,
    per_second: f64,
    spread: Spread,
}

/// The result of the measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SearchReport {
    engine: String,
    /// Sequential searches.
    direct: Spread,
    through: Spread,
    overhead_p50_ms: f64,
    /// Number of queries whose first results equal the engine's, in the same order.
    same: usize,
    compared: usize,
    /// Concurrent searches.
    at_once: Option<AtOnce>,
    processes: Option<Processes>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct AtOnce {
    streams: usize,
    direct: SearchRate,
    through: SearchRate,
    share: f64,
    circuits: u64,
}

/// Measures both ways.
pub(super) async fn measure(options: &BenchOptions) -> Result<SearchReport, Failure> {
    let sides = Arc::new(Sides::new(options)?);
    let count = usize::try_from(options.requests.unwrap_or(100)).unwrap_or(usize::MAX);
    let streams = usize::from(options.streams);
    for number in 0..3 {
        sides.search(Way::Direct, number).await?;
        sides.search(Way::Through, number).await?;
    }
    let before = Watched::now(&options.pid);
    let (mut direct, mut through) = (BTreeMap::new(), BTreeMap::new());
    for number in 0..count {
        let other = number.saturating_add(count / 2).checked_rem(count).unwrap_or(0);
        direct.insert(number, sides.search(Way::Direct, number).await?);
        through.insert(other, sides.search(Way::Through, other).await?);
    }
    let is_same = |(number, outcome): &(&usize, &TimedSearch)| {
        through.get(number).is_some_and(|other| other.links == outcome.links)
    };
    let same = direct.iter().filter(is_same).count();
    let spread = |outcome: &BTreeMap<usize, TimedSearch>| Spread::of(outcome.values().map(|outcome| outcome.took));
    let (direct, through) = (spread(&direct), spread(&through));
    let at_once = match streams {
        0 | 1 => None,
        streams => Some(AtOnce::measure(&sides, streams, count).await?),
    };
    Ok(SearchReport {
        engine: sides.engine.title().to_owned(),
        direct,
        through,
        overhead_p50_ms: through.p50_ms - direct.p50_ms,
        same,
        compared: count,
        at_once,
        processes: Watched::now(&options.pid).since(&before),
    })
}

impl AtOnce {
    /// Alternates the two ways, with different queries in each round, so that changes of the machine's load affect both.
    /// The number of rounds is small because each search uses a circuit. A guard allows a client a burst of some hundreds
    /// of new circuits, then fifty per second, and more rounds would measure that limit.
    async fn measure(sides: &Arc<Sides>, streams: usize, from: usize) -> Result<Self, Failure> {
        const ROUNDS: usize = 3;
        let (mut direct, mut through) = (SearchRounds::default(), SearchRounds::default());
        let before = sides.circuits().await?;
        for round in 0..ROUNDS {
            let first =
                |round: usize| from.saturating_add(round.saturating_mul(streams).saturating_mul(SEARCHES_PER_STREAM));
            let other = round.saturating_add(1).checked_rem(ROUNDS).unwrap_or(0);
            direct.add(sides.round(Way::Direct, streams, first(round)).await?);
            through.add(sides.round(Way::Through, streams, first(other)).await?);
        }
        let circuits = sides.circuits().await?.saturating_sub(before);
        let (direct, through) = (direct.rate(), through.rate());
        let share = through.per_second / direct.per_second.max(f64::MIN_POSITIVE);
        Ok(Self { streams, direct, through, share, circuits })
    }
}

/// The durations of rounds of searches.
#[derive(Default)]
struct SearchRounds {
    took: Vec<Duration>,
    elapsed: Duration,
}

impl SearchRounds {
    fn add(&mut self, (took, elapsed): (Vec<Duration>, Duration)) {
        self.took.extend(took);
        self.elapsed = self.elapsed.saturating_add(elapsed);
    }

    fn rate(&self) -> SearchRate {
        let per_second = self.took.len() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        SearchRate { searches: self.took.len(), per_second, spread: Spread::of(self.took.iter().copied()) }
    }
}

impl Sides {
    fn new(options: &BenchOptions) -> Result<Self, Failure> {
        let path = options.description.as_deref().ok_or_else(|| {
            Failure::usage("--description: none is given; add the file of the description that the exits use")
        })?;
        let subject = path.display().to_string();
        let document = std::fs::read(path).map_err(Failure::invalid(&*subject))?;
        let engine = Engine::describe(&document, None, None).map_err(Failure::invalid(subject))?;
        // A separate TCP connection for each request, as at an exit.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().map_err(Failure::failed)?;
        Ok(Self { http, engine, control: options.control })
    }

    /// Performs search `number` on one way.
    async fn search(&self, way: Way, number: usize) -> Result<TimedSearch, Failure> {
        match way {
            Way::Direct => self.query_engine(&terms(number)).await,
            Way::Through => self.query_client(&terms(number)).await,
        }
    }

    async fn query_engine(&self, terms: &str) -> Result<TimedSearch, Failure> {
        let request = SearchRequest::new(self.engine.name().clone(), terms, 1, None).map_err(Failure::failed)?;
        let question = self.engine.question(&request).ok_or_else(|| self.no_answer())?;
        let start = Instant::now();
        let answer = self.http.get(question.url.clone()).header("accept", question.accept);
        let answer = answer.send().await.map_err(|_| self.no_answer())?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|_| self.no_answer())?;
        let took = start.elapsed();
        match self.engine.read(&request, &Response { url: &question.url, status, body: &body }) {
            SearchAnswer::Results { results, .. } => {
                let links = results.iter().take(COMPARED).map(|result| result.link.to_string()).collect();
                Ok(TimedSearch { took, links })
            }
            SearchAnswer::Refused(refusal) => {
                Err(Failure::failed(format!("the engine refused a direct query: {refusal}")))
            }
        }
    }

    async fn query_client(&self, terms: &str) -> Result<TimedSearch, Failure> {
        let engine = Some(self.engine.name().to_string());
        let search = api::ApiSearch { terms: terms.to_owned(), engine, ..api::ApiSearch::default() };
        let start = Instant::now();
        let found: api::Searched = control::request(self.control, "/api/search", Some(&search)).await?;
        let took = start.elapsed();
        Ok(TimedSearch { took, links: found.results.into_iter().take(COMPARED).map(|result| result.link).collect() })
    }

    fn no_answer(&self) -> Failure {
        Failure::failed(format!("{} does not answer; check that it is running", self.engine.title()))
    }

    /// Number of circuits that the client has used for this engine: one for each request to an exit.
    async fn circuits(&self) -> Result<u64, Failure> {
        let engines: Vec<api::OfferedEngine> = control::request(self.control, "/api/engines", None::<&()>).await?;
        let own = engines.iter().filter(|engine| engine.engine == self.engine.name().as_str());
        let exits = own.flat_map(|engine| &engine.exits);
        Ok(exits.map(|exit| u64::from(exit.answered).saturating_add(exit.failed.into())).sum())
    }

    /// Performs [`SEARCHES_PER_STREAM`] searches on each of `streams`, with the queries from number `from` on.
    async fn round(
        self: &Arc<Self>,
        way: Way,
        streams: usize,
        from: usize,
    ) -> Result<(Vec<Duration>, Duration), Failure> {
        let start = Instant::now();
        let mut workers = JoinSet::new();
        for worker in 0..streams {
            let sides = Arc::clone(self);
            workers.spawn(async move {
                let mut took = Vec::new();
                for step in 0..SEARCHES_PER_STREAM {
                    let number = from.saturating_add(step.saturating_mul(streams)).saturating_add(worker);
                    took.push(sides.search(way, number).await?.took);
                }
                Ok::<_, Failure>(took)
            });
        }
        let mut took = Vec::new();
        while let Some(worked) = workers.join_next().await {
            took.extend(worked.map_err(Failure::failed)??);
        }
        Ok((took, start.elapsed()))
    }
}

impl SearchReport {
    pub(super) fn to_text(&self) -> String {
        let spread = |spread: Spread| format!("p50 {:.1} ms   p99 {:.1} ms", spread.p50_ms, spread.p99_ms);
        let mut text = format!(
            "Sequential searches of {}, all queries distinct\
             \n  directly      {}\
             \n  through       {}\
             \n  overhead      {:.1} ms (p50)\
             \n  results       {} of {} queries with the engine's own first {COMPARED} results, in its order",
            self.engine,
            spread(self.direct),
            spread(self.through),
            self.overhead_p50_ms,
            self.same,
            self.compared,
        );
        if let Some(AtOnce { streams, direct, through, share, circuits }) = self.at_once {
            let rate = |rate: SearchRate| format!("{:.0} per second   {}", rate.per_second, spread(rate.spread));
            // Writing to a string can't fail.
            let _ = write!(
                text,
                "\n {streams} concurrent, {} on each way:\
                 \n  directly      {}\
                 \n  through       {}\
                 \n  share         {:.0} %, over {circuits} circuits",
                direct.searches,
                rate(direct),
                rate(through),
                share * 100.0,
            );
        }
        if let Some(processes) = self.processes {
            let _ = write!(text, "\n  processor     {:.2} s in {} processes", processes.cpu_seconds, processes.count);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_thousand_queries_are_all_different() {
        let queries: BTreeSet<String> = (0..1000).map(terms).collect();
        assert_eq!(queries.len(), 1000);
    }
}
