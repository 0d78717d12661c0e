//! The pages of a search: the home page, the results with the path of the query, and failures.
//!
//! Results are from an exit and untrusted. They are shown as text. Their URLs open in the reader view, or after a
//! confirmation in the browser. A planted URL would reveal the user's address if a browser opened it outside the
//! overlay.

use core::time::Duration;

use axum::{http::StatusCode, response::Response};
use maud::{Markup, html};

use crate::{
    client::StreamFailure,
    connector::ConnectError,
    delegated::{Block, EngineName, MAX_PAGE, SearchRefusal, SearchResult},
    requests::search::{FailedTry, FailedTryReason, Found, QueryError, Route, SearchFailure, SearchQuery},
};

use super::{
    api::connect_status,
    layout::{Form, PageKind, address, brand, failure_page, foot, page},
};

/// The home page, with an empty search form.
pub(super) fn home(engines: &[EngineName]) -> Response {
    let form = Form { terms: "", engine: None, language: None, engines, focus: true };
    let body = html! {
        main.home {
            (brand())
            p.promise { "Private search: the search engine sees your query, but not your address." }
            (form.markup())
            @if engines.is_empty() {
                p.warn {
                    "There is no search engine yet. Either the client has no consensus yet (reload this page in a moment), or no "
                    "exit of this network offers a search engine."
                }
            }
            section.how {
                h2 { "The path of your query" }
                ol {
                    li { "Your computer encrypts the query in three layers and sends it to a first relay. This relay sees your "
                        "address but can't read the query." }
                    li { "A second relay forwards it. This relay sees neither your address nor the query." }
                    li { "A third relay, the exit, decrypts the last layer and sends the query to the search engine. The exit reads "
                        "the query but doesn't see your address. The engine sees the exit's address." }
                }
                p { "Don't write anything into a query that identifies you." }
            }
        }
        (foot())
    };
    page(PageKind::Own, StatusCode::OK, "Umbel search", &body)
}

/// The results of `query`.
pub(super) fn results(query: &SearchQuery, found: &Found, engines: &[EngineName]) -> Response {
    let form = form(query, Some(&found.engine), engines);
    let body = html! {
        header.top {
            a.skip href="#results" { "Skip to the results" }
            (brand())
            (form.markup())
        }
        main {
            p.count { (count_text(query, found)) }
            @if found.results.is_empty() {
                p { "No results. Try other or fewer search terms." }
            }
            ol.results #results {
                @for result in &found.results { (result_markup(result)) }
            }
            (pages(query, found))
            (query_path(&found.engine, &found.route, found.failed_try.as_ref()))
        }
        (foot())
    };
    page(PageKind::Own, StatusCode::OK, &format!("{} · Umbel search", query.terms), &body)
}

/// A page with the reason of a failed search.
pub(super) fn failure(query: &SearchQuery, failure: SearchFailure, engines: &[EngineName]) -> Response {
    let (status, title, text) = explain(failure);
    failure_page(status, title, &text, Some(form(query, query.engine.as_ref(), engines)))
}

fn form<'a>(query: &'a SearchQuery, engine: Option<&'a EngineName>, engines: &'a [EngineName]) -> Form<'a> {
    Form { terms: &query.terms, engine, language: query.language.as_deref(), engines, focus: false }
}

/// The status, title and text of a failure.
fn explain(failure: SearchFailure) -> (StatusCode, &'static str, String) {
    let message = failure.to_string();
    match failure {
        SearchFailure::Query(QueryError::NotReady) => connect_failure(StreamFailure::NoConsensus.into()),
        SearchFailure::Query(QueryError::Invalid(_)) => {
            (StatusCode::BAD_REQUEST, "The query is invalid", format!("{}. Nothing was sent.", capital(&message)))
        }
        SearchFailure::Query(QueryError::NoEngines) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "No search engine",
            "No exit of this network offers a search engine. Nothing was sent. The operator of an exit can enable one."
                .to_owned(),
        ),
        SearchFailure::Query(QueryError::NoSuchEngine) => (
            StatusCode::NOT_FOUND,
            "No exit offers this engine",
            "Choose another engine, if the form lists one. Nothing was sent.".to_owned(),
        ),
        SearchFailure::Query(QueryError::AllBlocked) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The engine blocks all exits",
            "The engine detected automated queries, or received too many. Try again in ten minutes, or choose another \
             engine. Nothing was sent."
                .to_owned(),
        ),
        SearchFailure::TooFewExits(_) => (StatusCode::BAD_REQUEST, "Too few exits", format!("{}.", capital(&message))),
        SearchFailure::Connect(error) => connect_failure(error),
        SearchFailure::Failed(failed) => (
            StatusCode::BAD_GATEWAY,
            "The search failed",
            format!("{} (exit {}). Try again; another exit may succeed.", capital(&message), failed.exit),
        ),
    }
}

/// The status, title and text of a failure to open a circuit or stream.
pub(super) fn connect_failure(error: ConnectError) -> (StatusCode, &'static str, String) {
    let title = match error {
        ConnectError::Stream(StreamFailure::Ended(_)) => "The stream failed",
        ConnectError::Stream(StreamFailure::NoConsensus) => "The client has no consensus yet",
        ConnectError::Stream(StreamFailure::ConsensusExpired) => "The consensus has expired",
        ConnectError::Stream(StreamFailure::NotPublic) => "The host is not public",
        ConnectError::Stream(StreamFailure::NoPath(_)) => "There is no path to this target",
        ConnectError::Stream(StreamFailure::GuardUnreachable | StreamFailure::NoCircuit) => "No circuit was built",
        ConnectError::Stream(StreamFailure::LimitReached) => "The client is at its limit",
        ConnectError::Stopped => "The client has stopped",
    };
    let is_retried = !matches!(error, ConnectError::Stream(StreamFailure::NotPublic | StreamFailure::NoCircuit));
    let advice = if is_retried { " Reload the page to try again." } else { "" };
    (connect_status(error), title, format!("{}.{advice}", capital(&error.to_string())))
}

/// `text` with a capital first letter.
pub(super) fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn count_text(query: &SearchQuery, found: &Found) -> String {
    let page = if query.page > 1 { format!("page {}: ", query.page) } else { String::new() };
    let results = match (found.total, found.results.len()) {
        (Some(1), _) | (None, 1) => "one result".to_owned(),
        (Some(total), _) => format!("{} results", grouped(total)),
        (None, count) => format!("{count} results"),
    };
    capital(&format!("{page}{results} from {}, in {}", found.engine, duration_text(found.route.duration)))
}

/// The decimal digits of `number` in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && digits.len().saturating_sub(index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration_text(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 { format!("{} ms", milliseconds.max(1)) } else { format!("{:.1} s", duration.as_secs_f64()) }
}

fn result_markup(result: &SearchResult) -> Markup {
    let url = result.url.as_str();
    html! {
        li {
            h2 dir="auto" { a href=(address("/read", &[("url", url)])) { (result.title) } }
            p.where { (host_and_path(result)) }
            @if !result.snippet.is_empty() { p.snippet dir="auto" { (result.snippet) } }
            p.aside { a href=(address("/leave", &[("url", url)])) { "open directly in this browser…" } }
        }
    }
}

/// The host and path of a result, cut after 80 characters. An internationalised host name is shown in its ASCII form
/// against homographs of other names.
fn host_and_path(result: &SearchResult) -> String {
    const MAX_CHARS: usize = 80;
    let host = result.url.host_str().unwrap_or_default();
    let host = result.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let parts = result.url.path_segments().into_iter().flatten().filter(|part| !part.is_empty());
    let whole = core::iter::once(host.as_str()).chain(parts).collect::<Vec<_>>().join(" › ");
    if whole.chars().count() <= MAX_CHARS { whole } else { whole.chars().take(MAX_CHARS).chain(['…']).collect() }
}

fn pages(query: &SearchQuery, found: &Found) -> Markup {
    let url = |page: u16| {
        let page = page.to_string();
        let mut pairs = vec![("q", query.terms.as_str()), ("engine", found.engine.as_str()), ("page", &page)];
        pairs.extend(query.language.as_deref().map(|language| ("language", language)));
        address("/search", &pairs)
    };
    let next = query.page.saturating_add(1);
    html! {
        @if query.page > 1 || found.more {
            nav.pages aria-label="Pages of results" {
                @if query.page > 1 {
                    a.button.quiet rel="prev" href=(url(query.page.saturating_sub(1))) { "← Previous" }
                } @else { span {} }
                span { "Page " (query.page) }
                @if found.more && next <= MAX_PAGE { a.button rel="next" href=(url(next)) { "Next →" } } @else { span {} }
            }
        }
    }
}

/// The path of a query with the role of each hop.
fn query_path(engine: &EngineName, route: &Route, failed_try: Option<&FailedTry>) -> Markup {
    let last = route.hops.len().saturating_sub(1);
    html! {
        details.route open {
            summary { "The path of your query " small { "answered in " (duration_text(route.duration)) } }
            ol {
                li.end { b { "This computer" } " encrypted the query in a layer for each relay below." }
                @for (index, hop) in route.hops.iter().enumerate() {
                    li {
                        b { (ROLES.get(if index == last { 2 } else { index.min(1) }).copied().unwrap_or_default()) }
                        " " code { (hop.relay) } " " span.ms { "(" (duration_text(hop.handshake_time)) ")" } ": "
                        @if index == last {
                            "decrypted the last layer, read the query and sent it to the engine. It doesn't see your address."
                        } @else if index == 0 {
                            "sees your address, but can't read the query."
                        } @else {
                            "forwarded the query, and sees neither it nor your address."
                        }
                    }
                }
                li.end { b { (engine) } " (the search engine) received the query from the exit." }
            }
            p.note {
                "The circuit was built before the query and carries this query only. The times in brackets are the times to reach "
                "each relay when it was built."
            }
            @if let Some(failed) = failed_try {
                p.note { "The query was first sent to another exit, " code { (failed.exit) } ", which failed: " (failure_reason(*failed)) }
            }
            @if route.shared_exit {
                p.warn {
                    "This exit also carries other traffic of yours, or did so recently, because no other exit was suitable. It could "
                    "link that traffic with this query."
                }
            }
        }
    }
}

const ROLES: [&str; 3] = ["First relay", "Middle relay", "Exit"];

fn failure_reason(failed: FailedTry) -> String {
    match failed.reason {
        FailedTryReason::Refused(SearchRefusal::EngineBlocked(block)) => {
            let how = match block {
                Block::Captcha => "sent the exit a CAPTCHA",
                Block::Forbidden => "blocked the exit",
                Block::TooManyRequests => "received too many queries from the exit",
            };
            format!("the engine {how}. The client avoids that exit for this engine for ten minutes.")
        }
        reason => format!("{reason}."),
    }
}
