//! The API of a running client for the command line, in JSON and Binary HTTP.
//!
//! | request | answer |
//! |---|---|
//! | `POST /api/search`, an [`ApiSearch`] | [`ApiResults`], or [`ApiComparison`] for a search through several exits |
//! | `GET /api/engines` | a list of [`OfferedEngine`] |
//! | `POST /api/request`, a request in Binary HTTP | the response in Binary HTTP ([`request`]) |
//!
//! The access checks of the page apply, and a header field is required ([`super::request_check`]). The answer to a
//! failed request is an [`ApiFailure`] with a status:
//!
//! | status | failure |
//! |---|---|
//! | 400 | invalid request |
//! | 429 | limit |
//! | 502 | failure of the exit, the engine or the target |
//! | 503 | failure of the network |

pub(crate) mod request;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};

use crate::{
    base::ErrorClass,
    connector::{ConnectError, Connector, Hop},
    delegated::{EngineName, SearchResult},
    requests::search::{
        Comparison, ExitReport, FailedTry, Found, MAX_COMPARED, QueryError, SearchFailure, SearchQuery,
    },
};

use super::{SearchPage, layout::address};

pub(crate) use super::request_check::API_FIELD;

/// Maximum bytes of a search request's content.
const MAX_BODY: usize = 64 * 1024;

/// A search request.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiSearch {
    pub(crate) terms: String,
    #[serde(default)]
    pub(crate) engine: Option<String>,
    #[serde(default)]
    pub(crate) page: Option<u16>,
    #[serde(default)]
    pub(crate) language: Option<String>,
    /// The number of exits to query. The results of two or more exits are compared.
    #[serde(default)]
    pub(crate) exits: Option<usize>,
}

/// The results of a search.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ApiResults {
    pub(crate) engine: String,
    /// The number of this page of results, from 1.
    pub(crate) page: u16,
    /// The total number of results, if the engine returned it.
    pub(crate) total: Option<u64>,
    /// Whether the engine has a further page of results.
    pub(crate) more: bool,
    /// The time from the sending of the query to the end of the answer, in milliseconds.
    #[serde(rename = "took_ms")]
    pub(crate) duration_ms: f64,
    pub(crate) results: Vec<ApiResult>,
    /// The circuit's path, from guard to exit.
    pub(crate) path: Vec<PathHop>,
    /// Whether the exit also carries other streams of this client, or did so recently, because no other exit was
    /// suitable.
    pub(crate) shared_exit: bool,
    /// The failed exit of the first try, if there was a second try.
    pub(crate) failed_try: Option<ApiFailedTry>,
}

/// One result.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ApiResult {
    pub(crate) title: String,
    pub(crate) url: String,
    pub(crate) snippet: String,
}

/// One hop of a path.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct PathHop {
    pub(crate) relay: String,
    /// The time of the handshake with this hop, in milliseconds.
    #[serde(rename = "took_ms")]
    pub(crate) handshake_ms: f64,
}

/// An exit that returned no results.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ApiFailedTry {
    pub(crate) exit: String,
    pub(crate) reason: String,
}

/// The results of one query through several exits.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ApiComparison {
    /// Whether all successful exits returned the same results.
    pub(crate) agree: bool,
    pub(crate) exits: Vec<ApiExitOutcome>,
    pub(crate) rows: Vec<ApiComparisonRow>,
}

/// The outcome of one exit in a comparison.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ApiExitOutcome {
    pub(crate) exit: String,
    pub(crate) error: Option<String>,
    pub(crate) answer: Option<ApiResults>,
}

/// A result of at least one exit in a comparison.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ApiComparisonRow {
    #[serde(flatten)]
    pub(crate) result: ApiResult,
    /// The rank at each exit, from 1; absent for exits that didn't return the result.
    pub(crate) places: Vec<Option<usize>>,
    /// Whether title and snippet are equal at all exits that returned the result.
    pub(crate) same_words: bool,
}

/// An engine, and the exits that offer it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct OfferedEngine {
    pub(crate) engine: String,
    /// Whether searches that name no engine use this engine.
    pub(crate) default: bool,
    pub(crate) exits: Vec<EngineExit>,
}

/// The number of answers and failures of one exit with one engine since the client's start.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct EngineExit {
    pub(crate) exit: String,
    pub(crate) answered: u32,
    pub(crate) failed: u32,
    /// Seconds until the client uses this exit for the engine again, if the engine blocked the exit.
    pub(crate) blocked_for: Option<u64>,
}

/// The reason for a failure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ApiFailure {
    pub(crate) error: String,
}

/// The path and query of the reader view of the URL `url` on the search page.
pub(crate) fn read_address(url: &str) -> String {
    address("/read", &[("url", url)])
}

pub(super) fn router<C: Connector>() -> Router<SearchPage<C>> {
    Router::new()
        .route("/api/search", post(search))
        .route("/api/engines", get(engines))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .merge(request::router())
}

async fn search<C: Connector>(State(page): State<SearchPage<C>>, body: Bytes) -> Response {
    let search: ApiSearch = match serde_json::from_slice(&body) {
        Ok(search) => search,
        Err(error) => {
            return failure_response(StatusCode::BAD_REQUEST, format!("the request is not a search: {error}"));
        }
    };
    let engine = match search.engine.as_deref().map(EngineName::parse) {
        None => None,
        Some(Some(engine)) => Some(engine),
        Some(None) => {
            return failure_response(
                StatusCode::BAD_REQUEST,
                "the engine is not a name; names consist of a-z, 0-9 and -".into(),
            );
        }
    };
    let number = search.page.unwrap_or(1);
    let query = SearchQuery { terms: search.terms, engine, page: number, language: search.language };
    match search.exits.unwrap_or(1) {
        1 => match page.searcher.search(&query).await {
            Ok(found) => json(StatusCode::OK, &api_results(&found, number)),
            Err(failure) => refusal_response(failure),
        },
        exits if (2..=MAX_COMPARED).contains(&exits) => match page.searcher.compare(&query, exits).await {
            Ok(comparison) => json(StatusCode::OK, &api_comparison(&comparison, number)),
            Err(failure) => refusal_response(failure),
        },
        _ => failure_response(StatusCode::BAD_REQUEST, format!("the number of exits is not from 1 to {MAX_COMPARED}")),
    }
}

async fn engines<C: Connector>(State(page): State<SearchPage<C>>) -> Response {
    let exit = |report: ExitReport| EngineExit {
        exit: report.exit.to_string(),
        answered: report.counts.answered,
        failed: report.counts.failed,
        blocked_for: report.blocked_for.map(|time| time.as_secs().max(1)),
    };
    let engines = page.searcher.engines().into_iter().enumerate().map(|(index, engine)| OfferedEngine {
        exits: page.searcher.exit_statistics(&engine).into_iter().map(exit).collect(),
        default: index == 0,
        engine: engine.to_string(),
    });
    json(StatusCode::OK, &engines.collect::<Vec<_>>())
}

fn api_results(found: &Found, page: u16) -> ApiResults {
    ApiResults {
        engine: found.engine.to_string(),
        page,
        total: found.total,
        more: found.more,
        duration_ms: milliseconds(found.route.duration),
        results: found.results.iter().map(result).collect(),
        path: found.route.hops.iter().map(hop).collect(),
        shared_exit: found.route.shared_exit,
        failed_try: found.failed_try.as_ref().map(api_failed_try),
    }
}

fn api_comparison(comparison: &Comparison, page: u16) -> ApiComparison {
    let exits = comparison.outcomes.iter().map(|exit| ApiExitOutcome {
        exit: exit.exit.to_string(),
        error: exit.outcome.as_ref().err().map(ToString::to_string),
        answer: exit.outcome.as_ref().ok().map(|found| api_results(found, page)),
    });
    let rows = comparison.rows.iter().map(|row| ApiComparisonRow {
        result: result(&row.result),
        places: row.places.clone(),
        same_words: row.same_words,
    });
    ApiComparison { agree: comparison.agrees(), exits: exits.collect(), rows: rows.collect() }
}

fn result(result: &SearchResult) -> ApiResult {
    ApiResult { title: result.title.clone(), url: result.url.as_str().to_owned(), snippet: result.snippet.clone() }
}

fn hop(hop: &Hop) -> PathHop {
    PathHop { relay: hop.relay.to_string(), handshake_ms: milliseconds(hop.handshake_time) }
}

fn api_failed_try(failed: &FailedTry) -> ApiFailedTry {
    ApiFailedTry { exit: failed.exit.to_string(), reason: failed.reason.to_string() }
}

fn milliseconds(duration: core::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn refusal_response(failure: SearchFailure) -> Response {
    let status = match failure {
        SearchFailure::Query(QueryError::Invalid(_) | QueryError::NoSuchEngine) | SearchFailure::TooFewExits(_) => {
            StatusCode::BAD_REQUEST
        }
        SearchFailure::Connect(error) => connect_status(error),
        SearchFailure::Query(QueryError::NotReady | QueryError::NoEngines) => StatusCode::SERVICE_UNAVAILABLE,
        SearchFailure::Query(QueryError::AllBlocked) | SearchFailure::Failed(_) => StatusCode::BAD_GATEWAY,
    };
    failure_response(status, failure.to_string())
}

/// The HTTP status code for a failure to open a circuit or stream.
pub(super) fn connect_status(error: ConnectError) -> StatusCode {
    let ConnectError::Stream(failure) = error else { return StatusCode::SERVICE_UNAVAILABLE };
    match failure.class() {
        ErrorClass::Network => StatusCode::SERVICE_UNAVAILABLE,
        ErrorClass::Limit => StatusCode::TOO_MANY_REQUESTS,
        ErrorClass::Peer | ErrorClass::Local | ErrorClass::Bug => StatusCode::BAD_GATEWAY,
    }
}

fn failure_response(status: StatusCode, error: String) -> Response {
    json(status, &ApiFailure { error })
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => {
            (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
