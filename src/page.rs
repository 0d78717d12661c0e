//! The search page: an HTTP server for the user's browser and command line, by default on loopback.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the search form |
//! | `GET /search?q=…` | results, and the path of the query |
//! | `GET /read?url=…` | the reader view of a page, fetched through the overlay |
//! | `GET /leave?url=…` | a confirmation before a URL is opened outside the overlay, with a proxy check |
//! | `GET /go?url=…` | a redirect to the URL |
//! | `GET /opensearch.xml` | the description of this search page for a browser (OpenSearch 1.1) |
//! | `GET /style.css`, `/keys.js`, `/icon.svg` | style, keyboard shortcuts and icon of the pages |
//! | `/api/…` | the API for the command line ([`api`]) |
//!
//! The pages work without scripts, load nothing from other sites and store nothing. Only the proxy check's image has
//! another address ([`check`]). Threats addressed: other pages in the same browser ([`request_check`]); URLs or markup
//! planted by exits ([`results`], [`reader`]).

pub(crate) mod api;
pub(crate) mod check;
mod layout;
mod leave;
mod reader;
mod request_check;
mod results;
#[cfg(test)]
mod tests;

use core::time::Duration;
use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse as _, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use crate::{
    delegated::EngineName,
    io::listener::{accept_or_shed, refuse_http},
    requests::{
        http::Requester,
        search::{SearchQuery, Searcher},
    },
};

use super::connector::Connector;
use check::ProxyCheck;
use layout::failure_page;

pub(crate) use reader::PageReader;
#[cfg(any(test, fuzzing))]
pub(crate) use reader::cleaned_page;

/// Cap on TCP connections; a further connection receives status 503.
pub(crate) const MAX_CONNECTIONS: usize = 256;
/// Time limit of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum bytes of a request's head; enough for the longest query, percent-encoded.
const MAX_HEAD_LEN: usize = 64 * 1024;
/// Maximum bytes of the parameter `url`.
const MAX_URL_LEN: usize = 8 * 1024;

const STYLE: &str = include_str!("page/style.css");
const SHORTCUTS: &str = include_str!("page/keys.js");
const ICON: &str = include_str!("page/icon.svg");

/// The state of the search page, shared by its handlers.
#[derive(Clone)]
pub(crate) struct SearchPage<C> {
    pub(crate) searcher: Searcher<C>,
    pub(crate) reader: PageReader<C>,
    pub(crate) requester: Requester<C>,
    pub(crate) check: ProxyCheck,
    /// The client's SOCKS port, shown for the configuration of a browser.
    pub(crate) socks: SocketAddr,
}

/// Serves the page on `listener`. Dropping the future closes its TCP connections. A connection beyond the cap
/// `max_connections` receives status 503.
///
/// # Errors
/// When the listener's address can't be read.
pub(crate) async fn serve<C: Connector>(
    listener: TcpListener,
    page: SearchPage<C>,
    max_connections: usize,
) -> std::io::Result<()> {
    let router = router(listener.local_addr()?, page);
    let serve = |socket| {
        let router = router.clone();
        async move {
            // A failed connection of a browser needs no action.
            let _ = serve_one(socket, router).await;
        }
    };
    accept_or_shed(listener, max_connections, serve, refuse_http).await;
    Ok(())
}

async fn serve_one(socket: TcpStream, router: Router) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_LEN)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router))
        .await
}

fn router<C: Connector>(listener: SocketAddr, page: SearchPage<C>) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text) })
    };
    Router::new()
        .route("/", get(home))
        .route("/search", get(search))
        .route("/read", get(read))
        .route("/leave", get(leave))
        .route("/go", get(go))
        .route("/opensearch.xml", get(move || async move { opensearch_description(listener) }))
        .route("/style.css", file("text/css; charset=utf-8", STYLE))
        .route("/keys.js", file("text/javascript; charset=utf-8", SHORTCUTS))
        .route("/icon.svg", file("image/svg+xml", ICON))
        .merge(api::router())
        .fallback(|| async {
            failure_page(StatusCode::NOT_FOUND, "There is no such page", "Select Umbel above to search.", None)
        })
        .layer(middleware::from_fn_with_state(Arc::new(listener), request_check::restrict_access))
        .with_state(page)
}

async fn home<C: Connector>(State(page): State<SearchPage<C>>) -> Response {
    results::home(&page.searcher.engines())
}

/// The query parameters of a search. Empty terms show the home page; an empty engine or language counts as absent.
#[derive(Deserialize)]
struct SearchParameters {
    #[serde(default)]
    q: String,
    #[serde(default)]
    engine: String,
    #[serde(default)]
    language: String,
    page: Option<u16>,
}

async fn search<C: Connector>(
    State(page): State<SearchPage<C>>,
    parameters: Result<Query<SearchParameters>, QueryRejection>,
) -> Response {
    let Ok(Query(parameters)) = parameters else { return invalid_request() };
    let engines = page.searcher.engines();
    if parameters.q.trim().is_empty() {
        return results::home(&engines);
    }
    let engine = match parameters.engine.as_str() {
        "" => None,
        name => match EngineName::parse(name) {
            Some(engine) => Some(engine),
            None => return invalid_request(),
        },
    };
    let language = Some(parameters.language).filter(|language| !language.is_empty());
    let query = SearchQuery { terms: parameters.q, engine, page: parameters.page.unwrap_or(1), language };
    match page.searcher.search(&query).await {
        Ok(found) => results::results(&query, &found, &engines),
        Err(failure) => results::failure(&query, failure, &engines),
    }
}

#[derive(Deserialize)]
struct UrlParameter {
    url: String,
}

impl UrlParameter {
    /// The cleaned URL. `None` unless it is an http or https URL of at most [`MAX_URL_LEN`] bytes.
    fn parse(query: Result<Query<Self>, QueryRejection>) -> Option<Url> {
        let Query(Self { url }) = query.ok()?;
        if url.len() > MAX_URL_LEN {
            return None;
        }
        crate::delegated::clean_url::clean(&url, None)
    }
}

async fn read<C: Connector>(
    State(page): State<SearchPage<C>>,
    query: Result<Query<UrlParameter>, QueryRejection>,
) -> Response {
    let Some(url) = UrlParameter::parse(query) else { return invalid_request() };
    match page.reader.read(url.clone()).await {
        Ok(cleaned) => reader::reader_view(&cleaned),
        Err(error) => reader::read_failure(&url, &error),
    }
}

async fn leave<C: Connector>(
    State(page): State<SearchPage<C>>,
    query: Result<Query<UrlParameter>, QueryRejection>,
) -> Response {
    UrlParameter::parse(query).map_or_else(invalid_request, |url| leave::confirm(&url, page.check, page.socks))
}

async fn go(query: Result<Query<UrlParameter>, QueryRejection>) -> Response {
    UrlParameter::parse(query).map_or_else(invalid_request, |url| leave::go(&url))
}

fn invalid_request() -> Response {
    let text = "A parameter is missing or invalid. A URL must begin with http:// or https:// and have at most 8 KiB.";
    failure_page(StatusCode::BAD_REQUEST, "The request is invalid", text, None)
}

/// The OpenSearch description with which a browser adds this page as a search engine.
fn opensearch_description(listener: SocketAddr) -> Response {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <OpenSearchDescription xmlns=\"http://a9.com/-/spec/opensearch/1.1/\">\n  \
           <ShortName>Umbel</ShortName>\n  \
           <Description>Search through the Umbel overlay: the engine doesn't see your address</Description>\n  \
           <InputEncoding>UTF-8</InputEncoding>\n  \
           <Image width=\"16\" height=\"16\" type=\"image/svg+xml\">http://{listener}/icon.svg</Image>\n  \
           <Url type=\"text/html\" method=\"get\" template=\"http://{listener}/search?q={{searchTerms}}\"/>\n\
         </OpenSearchDescription>\n"
    );
    let kind = HeaderValue::from_static("application/opensearchdescription+xml; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
