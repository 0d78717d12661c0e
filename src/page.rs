//! The search page: a small HTTP server on a loopback port for the user's browser and command line.
//!
//! | request | answered |
//! |---|---|
//! | `GET /` | a search box |
//! | `GET /search?q=…` | results, and the path of the query |
//! | `GET /read?url=…` | the reader view of a page, fetched through the overlay |
//! | `GET /leave?url=…` | the consequences of leaving the overlay, and whether this browser uses it |
//! | `GET /go?url=…` | a redirect to the URL, outside the overlay |
//! | `GET /opensearch.xml` | this page as a search engine for a browser (OpenSearch 1.1) |
//! | `/api/…` | the same for the command line ([`api`]) |
//!
//! The pages work without scripts, load nothing from other sites and store nothing. Threats addressed: other pages of
//! the same browser ([`guard`]); URLs or markup planted by exits ([`results`], [`reader`]).

pub(crate) mod api;
pub(crate) mod check;
mod guard;
mod layout;
mod leave;
mod reader;
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
use check::Check;
use layout::trouble;

pub(crate) use reader::PageReader;
#[cfg(any(test, fuzzing))]
pub(crate) use reader::cleaned_page;

/// Concurrent connections of browsers; further ones are answered 503.
pub(crate) const MAX_CONNECTIONS: usize = 256;
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a request's head. The longest query fits, percent-encoded.
const MAX_HEAD: usize = 64 * 1024;
/// Bytes of a URL that is read or opened.
const MAX_LINK: usize = 8 * 1024;

const STYLE: &str = include_str!("page/style.css");
const KEYS: &str = include_str!("page/keys.js");
const ICON: &str = include_str!("page/icon.svg");

/// The state of the search page, shared by its handlers.
#[derive(Clone)]
pub(crate) struct SearchPage<C> {
    pub(crate) searcher: Searcher<C>,
    pub(crate) reader: PageReader<C>,
    pub(crate) requester: Requester<C>,
    pub(crate) check: Check,
    /// The client's SOCKS port, shown to users who configure a browser to use it.
    pub(crate) socks: SocketAddr,
}

/// Serves the page on `listener` for ever, at most `connections` concurrently; further ones are answered 503. Dropping
/// the future ends its connections.
///
/// # Errors
/// When the listener's address can't be read.
pub(crate) async fn serve<C: Connector>(
    listener: TcpListener,
    page: SearchPage<C>,
    connections: usize,
) -> std::io::Result<()> {
    let router = router(listener.local_addr()?, page);
    let serve = |socket| {
        let router = router.clone();
        async move {
            // An error of a browser's connection needs no action.
            let _ = serve_one(socket, router).await;
        }
    };
    accept_or_shed(listener, connections, serve, refuse_http).await;
    Ok(())
}

async fn serve_one(socket: TcpStream, router: Router) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router))
        .await
}

fn router<C: Connector>(own: SocketAddr, page: SearchPage<C>) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text) })
    };
    Router::new()
        .route("/", get(home))
        .route("/search", get(search))
        .route("/read", get(read))
        .route("/leave", get(leave))
        .route("/go", get(go))
        .route("/opensearch.xml", get(move || async move { describe(own) }))
        .route("/style.css", file("text/css; charset=utf-8", STYLE))
        .route("/keys.js", file("text/javascript; charset=utf-8", KEYS))
        .route("/icon.svg", file("image/svg+xml", ICON))
        .merge(api::router())
        .fallback(|| async { trouble(StatusCode::NOT_FOUND, "There is no such page", "Use the search box.", None) })
        .layer(middleware::from_fn_with_state(Arc::new(own), guard::guard))
        .with_state(page)
}

async fn home<C: Connector>(State(page): State<SearchPage<C>>) -> Response {
    results::home(&page.searcher.engines())
}

/// The query parameters of a search; an empty one counts as absent.
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
    asked: Result<Query<SearchParameters>, QueryRejection>,
) -> Response {
    let Ok(Query(asked)) = asked else { return misread() };
    let engines = page.searcher.engines();
    if asked.q.trim().is_empty() {
        return results::home(&engines);
    }
    let engine = match asked.engine.as_str() {
        "" => None,
        name => match EngineName::parse(name) {
            Some(engine) => Some(engine),
            None => return misread(),
        },
    };
    let language = Some(asked.language).filter(|language| !language.is_empty());
    let query = SearchQuery { terms: asked.q, engine, page: asked.page.unwrap_or(1), language };
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
    /// The URL, if it is valid, at most [`MAX_LINK`] bytes long, and http or https.
    fn parse(link: Result<Query<Self>, QueryRejection>) -> Option<Url> {
        let Query(Self { url }) = link.ok()?;
        if url.len() > MAX_LINK {
            return None;
        }
        crate::delegated::link::clean(&url, None)
    }
}

async fn read<C: Connector>(
    State(page): State<SearchPage<C>>,
    link: Result<Query<UrlParameter>, QueryRejection>,
) -> Response {
    let Some(url) = UrlParameter::parse(link) else { return misread() };
    match page.reader.read(url.clone()).await {
        Ok(reading) => reader::reading(&reading),
        Err(error) => reader::unread(&url, &error),
    }
}

async fn leave<C: Connector>(
    State(page): State<SearchPage<C>>,
    link: Result<Query<UrlParameter>, QueryRejection>,
) -> Response {
    UrlParameter::parse(link).map_or_else(misread, |url| leave::ask(&url, page.check, page.socks))
}

async fn go(link: Result<Query<UrlParameter>, QueryRejection>) -> Response {
    UrlParameter::parse(link).map_or_else(misread, |url| leave::go(&url))
}

fn misread() -> Response {
    let words = "The URL lacks a part, or it is not an http or https URL.";
    trouble(StatusCode::BAD_REQUEST, "The URL is invalid", words, None)
}

/// The OpenSearch description by which a browser adds this page as a search engine.
fn describe(own: SocketAddr) -> Response {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <OpenSearchDescription xmlns=\"http://a9.com/-/spec/opensearch/1.1/\">\n  \
           <ShortName>Umbel</ShortName>\n  \
           <Description>Search through the Umbel overlay: the engine doesn't learn who asks</Description>\n  \
           <InputEncoding>UTF-8</InputEncoding>\n  \
           <Image width=\"16\" height=\"16\" type=\"image/svg+xml\">http://{own}/icon.svg</Image>\n  \
           <Url type=\"text/html\" method=\"get\" template=\"http://{own}/search?q={{searchTerms}}\"/>\n\
         </OpenSearchDescription>\n"
    );
    let kind = HeaderValue::from_static("application/opensearchdescription+xml; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
