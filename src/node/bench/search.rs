//! `umbel bench --mode search`: compares searches through a running client with the same queries sent to the engine
//! directly.
//!
//! Both routes use the engine of the exits' OpenSearch description and a separate TCP connection for each query. Each
//! route sends each query once. The order differs between the routes, so that the engine's cache serves both equally.

use core::{net::SocketAddr, time::Duration};
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    BenchOptions,
    measure::Percentiles,
    process::{ProcessUsage, Processes},
};
use crate::{
    delegated::{SearchAnswer, SearchRequest},
    engine::{Engine, Response},
    node::{Failure, control},
    page::api,
};

/// Number of results compared for each query.
const COMPARED_RESULTS: usize = 10;
/// Searches of each worker in a round of concurrent searches.
const SEARCHES_PER_WORKER: usize = 2;
/// Searches on each route before the measurement.
const WARM_UP_SEARCHES: usize = 3;

const WORD_COUNT: usize = 32;
const WORDS: [&str; WORD_COUNT] = [
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

/// The terms of query `number`, distinct for each number: an ordered pair of words, and from number 1,024 on further
/// words.
fn terms(number: usize) -> String {
    let word = |at: usize| WORDS.get(at % WORD_COUNT).copied().unwrap_or_default();
    let distance = (number / WORD_COUNT % WORD_COUNT).saturating_add(1);
    let mut terms = format!("{} {}", word(number), word(number.saturating_add(distance)));
    let mut rest = number / WORD_COUNT / WORD_COUNT;
    while rest > 0 {
        terms.push(' ');
        terms.push_str(word(rest));
        rest /= WORD_COUNT;
    }
    terms
}

/// The engine and the client, to which searches are sent.
struct SearchBench {
    http: reqwest::Client,
    engine: Engine,
    control: SocketAddr,
}

/// Route of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SearchRoute {
    /// To the engine directly.
    Direct,
    /// Through the client and the overlay.
    Overlay,
}

/// The result of one search.
struct TimedSearch {
    duration: Duration,
    /// The URLs of the first results.
    urls: Vec<String>,
}

/// The rate of concurrent searches on one route.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct SearchRate {
    searches: usize,
    per_second: f64,
    durations: Percentiles,
}

/// The result of the measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SearchReport {
    engine: String,
    /// Durations of sequential searches, directly.
    direct: Percentiles,
    /// Durations of sequential searches, through the client.
    client: Percentiles,
    /// Difference of the medians.
    overhead_p50_ms: f64,
    /// Number of sequential queries whose first results are the same on both routes, in the same order.
    equal_queries: usize,
    /// Number of sequential queries.
    queries: usize,
    /// Concurrent searches, if more than one worker was chosen.
    concurrent: Option<ConcurrentReport>,
    processes: Option<Processes>,
}

/// The result of concurrent searches.
#[derive(Clone, Copy, Debug, Serialize)]
struct ConcurrentReport {
    workers: usize,
    direct: SearchRate,
    client: SearchRate,
    /// Rate through the client, as a fraction of the direct rate.
    rate_ratio: f64,
    /// Number of circuits that the client used.
    circuits: u64,
}

/// Measures searches on both routes.
pub(super) async fn measure(options: &BenchOptions) -> Result<SearchReport, Failure> {
    let bench = Arc::new(SearchBench::new(options)?);
    let queries = usize::try_from(options.requests.unwrap_or(100)).unwrap_or(usize::MAX);
    for number in 0..WARM_UP_SEARCHES {
        bench.search(SearchRoute::Direct, number).await?;
        bench.search(SearchRoute::Overlay, number).await?;
    }
    let before = ProcessUsage::now(&options.pid);
    let (mut direct, mut client) = (BTreeMap::new(), BTreeMap::new());
    for step in 0..queries {
        let number = step.saturating_add(WARM_UP_SEARCHES);
        let other_step = step.saturating_add(queries / 2).checked_rem(queries).unwrap_or(0);
        let other = other_step.saturating_add(WARM_UP_SEARCHES);
        direct.insert(number, bench.search(SearchRoute::Direct, number).await?);
        client.insert(other, bench.search(SearchRoute::Overlay, other).await?);
    }
    let is_equal =
        |(number, search): &(&usize, &TimedSearch)| client.get(number).is_some_and(|other| other.urls == search.urls);
    let equal_queries = direct.iter().filter(is_equal).count();
    let durations =
        |searches: &BTreeMap<usize, TimedSearch>| Percentiles::of(searches.values().map(|search| search.duration));
    let (direct, client) = (durations(&direct), durations(&client));
    let concurrent = match usize::from(options.streams) {
        0 | 1 => None,
        workers => Some(ConcurrentReport::measure(&bench, workers, queries.saturating_add(WARM_UP_SEARCHES)).await?),
    };
    Ok(SearchReport {
        engine: bench.engine.title().to_owned(),
        direct,
        client,
        overhead_p50_ms: client.p50_ms - direct.p50_ms,
        equal_queries,
        queries,
        concurrent,
        processes: ProcessUsage::now(&options.pid).since(&before),
    })
}

impl ConcurrentReport {
    /// Alternates the routes, so that changes of the machine's load affect both. Within a round the routes send
    /// different queries, from number `from` on.
    ///
    /// The number of rounds is small because each search uses a circuit. A guard limits a client to 200 new circuits at
    /// once, and then 50 per second (`creates_of_client`). More rounds would measure this limit.
    async fn measure(bench: &Arc<SearchBench>, workers: usize, from: usize) -> Result<Self, Failure> {
        const ROUNDS: usize = 3;
        let (mut direct, mut client) = (SearchRounds::default(), SearchRounds::default());
        let before = bench.circuits().await?;
        for round in 0..ROUNDS {
            let first =
                |round: usize| from.saturating_add(round.saturating_mul(workers).saturating_mul(SEARCHES_PER_WORKER));
            let other = round.saturating_add(1).checked_rem(ROUNDS).unwrap_or(0);
            direct.add(bench.round(SearchRoute::Direct, workers, first(round)).await?);
            client.add(bench.round(SearchRoute::Overlay, workers, first(other)).await?);
        }
        let circuits = bench.circuits().await?.saturating_sub(before);
        let (direct, client) = (direct.rate(), client.rate());
        let rate_ratio = client.per_second / direct.per_second.max(f64::MIN_POSITIVE);
        Ok(Self { workers, direct, client, rate_ratio, circuits })
    }
}

/// The durations of searches, and the total time of their rounds.
#[derive(Default)]
struct SearchRounds {
    durations: Vec<Duration>,
    elapsed: Duration,
}

impl SearchRounds {
    fn add(&mut self, (durations, elapsed): (Vec<Duration>, Duration)) {
        self.durations.extend(durations);
        self.elapsed = self.elapsed.saturating_add(elapsed);
    }

    fn rate(&self) -> SearchRate {
        let searches = self.durations.len();
        let per_second = searches as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        SearchRate { searches, per_second, durations: Percentiles::of(self.durations.iter().copied()) }
    }
}

impl SearchBench {
    fn new(options: &BenchOptions) -> Result<Self, Failure> {
        let path = options.description.as_deref().ok_or_else(|| {
            Failure::usage("--description is missing; give the OpenSearch description file of the exits")
        })?;
        let subject = path.display().to_string();
        let document = std::fs::read(path).map_err(Failure::invalid(&*subject))?;
        let engine = Engine::describe(&document, None, None).map_err(Failure::invalid(subject))?;
        // A separate TCP connection for each request, as at an exit.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().map_err(Failure::failed)?;
        Ok(Self { http, engine, control: options.control })
    }

    /// Performs search `number`.
    async fn search(&self, route: SearchRoute, number: usize) -> Result<TimedSearch, Failure> {
        match route {
            SearchRoute::Direct => self.query_engine(&terms(number)).await,
            SearchRoute::Overlay => self.query_client(&terms(number)).await,
        }
    }

    async fn query_engine(&self, terms: &str) -> Result<TimedSearch, Failure> {
        let request = SearchRequest::new(self.engine.name().clone(), terms, 1, None).map_err(Failure::failed)?;
        let question = self.engine.question(&request).ok_or_else(|| {
            Failure::failed(format!(
                "the engine's URL template can't contain the terms \"{terms}\"; check --description"
            ))
        })?;
        let start = Instant::now();
        let query = self.http.get(question.url.clone()).header("accept", question.accept);
        let response = query.send().await.map_err(|_| self.no_answer())?;
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(|_| self.no_answer())?;
        let duration = start.elapsed();
        match self.engine.read(&request, &Response { url: &question.url, status, body: &body }) {
            SearchAnswer::Results { results, .. } => {
                let urls = results.iter().take(COMPARED_RESULTS).map(|result| result.url.to_string()).collect();
                Ok(TimedSearch { duration, urls })
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
        let duration = start.elapsed();
        let urls = found.results.into_iter().take(COMPARED_RESULTS).map(|result| result.url).collect();
        Ok(TimedSearch { duration, urls })
    }

    fn no_answer(&self) -> Failure {
        Failure::failed(format!("{} does not answer; check that it is running", self.engine.title()))
    }

    /// Number of circuits that the client has used for the engine: one for each request to an exit.
    async fn circuits(&self) -> Result<u64, Failure> {
        let engines: Vec<api::OfferedEngine> = control::request(self.control, "/api/engines", None::<&()>).await?;
        let own = engines.iter().filter(|engine| engine.engine == self.engine.name().as_str());
        let exits = own.flat_map(|engine| &engine.exits);
        Ok(exits.map(|exit| u64::from(exit.answered).saturating_add(exit.failed.into())).sum())
    }

    /// Performs [`SEARCHES_PER_WORKER`] searches in each of `workers` concurrent tasks, with the queries from number
    /// `from` on. Returns their durations and the total time.
    async fn round(
        self: &Arc<Self>,
        route: SearchRoute,
        workers: usize,
        from: usize,
    ) -> Result<(Vec<Duration>, Duration), Failure> {
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for worker in 0..workers {
            let bench = Arc::clone(self);
            tasks.spawn(async move {
                let mut durations = Vec::new();
                for step in 0..SEARCHES_PER_WORKER {
                    let number = from.saturating_add(step.saturating_mul(workers)).saturating_add(worker);
                    durations.push(bench.search(route, number).await?.duration);
                }
                Ok::<_, Failure>(durations)
            });
        }
        let mut durations = Vec::new();
        while let Some(worked) = tasks.join_next().await {
            durations.extend(worked.map_err(Failure::failed)??);
        }
        Ok((durations, start.elapsed()))
    }
}

impl SearchReport {
    pub(super) fn to_text(&self) -> String {
        let percentiles = |times: Percentiles| format!("p50 {:.1} ms   p99 {:.1} ms", times.p50_ms, times.p99_ms);
        let mut text = format!(
            "Sequential searches of {}, {} queries, each once per route\
             \n  direct        {}\
             \n  client        {}\
             \n  overhead      {:.1} ms (p50)\
             \n  equal         {} of {} queries: the same first {COMPARED_RESULTS} results in the same order",
            self.engine,
            self.queries,
            percentiles(self.direct),
            percentiles(self.client),
            self.overhead_p50_ms,
            self.equal_queries,
            self.queries,
        );
        if let Some(ConcurrentReport { workers, direct, client, rate_ratio, circuits }) = self.concurrent {
            let rate =
                |rate: SearchRate| format!("{:.0} per second   {}", rate.per_second, percentiles(rate.durations));
            // Writing to a string can't fail.
            let _ = write!(
                text,
                "\n {workers} concurrent workers, {} searches per route:\
                 \n  direct        {}\
                 \n  client        {}\
                 \n  ratio         {:.0} % of the direct rate; {circuits} circuits",
                direct.searches,
                rate(direct),
                rate(client),
                rate_ratio * 100.0,
            );
        }
        if let Some(processes) = self.processes {
            let _ = write!(text, "\n  CPU time      {:.2} s in {} processes", processes.cpu_seconds, processes.count);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn query_numbers_have_distinct_terms() {
        const NUMBERS: usize = 100_000;
        let queries: BTreeSet<String> = (0..NUMBERS).map(terms).collect();
        assert_eq!(queries.len(), NUMBERS);
        for (number, query) in [(0, "array borrow"), (1023, "vector vector"), (1024, "array borrow borrow")] {
            assert_eq!(terms(number), query);
        }
    }
}
