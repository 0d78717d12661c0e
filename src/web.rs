//! The HTTP server of the pages for browsers: the volunteer's page, the search page, the badge and the library.
//!
//! | request | answer |
//! |---|---|
//! | `GET /volunteer`, `/search` | the page |
//! | `GET /` | a redirect to `/volunteer` |
//! | `GET /badge.js`, `/umbel.js`, `/umbel.d.ts`, `/assets/…` | the file |
//! | `GET /umbel.json` | the network: directories and authorities, and search engines for volunteers |
//!
//! The files are built from `web/`. The program contains the files that existed when it was built ([`embedded`]).
//! Header fields of each answer restrict the sources and scripts of a page. Any site may read the answers, because
//! other programs use the library. Pages send queries and requests to relays, never to this server. Threats addressed:
//! other sites that frame the volunteer's page; a server that serves modified pages ([`verify`]); visitors that hold
//! all connections ([`crate::io::connections`]).

pub(crate) mod manifest;
#[cfg(test)]
mod tests;
pub(crate) mod verify;

use core::time::Duration;

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};
use data_encoding::HEXLOWER;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    crypto::sha256,
    directory::AuthorityId,
    http_exchange::content_coding::is_accepted,
    io::connections::{ConnectionCaps, HttpConnectionPlace, accept_with_places},
};

/// Cap on TCP connections.
const MAX_CONNECTIONS: usize = 256;
/// Time limit of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of a connection, for clients that read slowly.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(180);
/// Maximum bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// The answer to a connection beyond the caps: its head and its text.
const REFUSAL: [&str; 2] = [
    "HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-type: text/plain; charset=utf-8\r\n\
     x-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
    "too many connections to this server, in total or from this network; try again later\n",
];

/// Content security policy of pages. The pages contain the policy as a `meta` element too, for other servers
/// (`web/vite.config.ts` has the reasons). Only the header field can forbid framing.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data:; \
     connect-src http: https:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
/// Content security policy of all other responses, which forbids all sources.
const FILE_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// Header fields of each response.
const FIELDS: [(HeaderName, &str); 8] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::VARY, "accept-encoding"),
];

/// One built file.
#[derive(Clone, Copy)]
pub(crate) struct File {
    /// The path in the folder of built files, such as `assets/a.js`.
    pub(crate) name: &'static str,
    /// The uncompressed content.
    pub(crate) whole: &'static [u8],
    /// The content in the coding `br`; `None` if the coding makes the content no smaller.
    pub(crate) brotli: Option<&'static [u8]>,
    /// The content in the coding `gzip`; `None` if the coding makes the content no smaller.
    pub(crate) gzip: Option<&'static [u8]>,
}

/// The files embedded in this program; empty if `web/` was not built before the program.
pub(crate) fn embedded() -> &'static [File] {
    include!(concat!(env!("OUT_DIR"), "/pages.rs"))
}

/// The paths of the file `name` on the server: without and with the suffix `.html`.
pub(crate) fn paths(name: &str) -> impl Iterator<Item = &str> {
    [name.strip_suffix(".html"), Some(name)].into_iter().flatten()
}

/// The network that a page joins: directories, authorities and search engines.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct NetworkDescription {
    pub(crate) directories: Vec<String>,
    pub(crate) authorities: Vec<String>,
    /// Search engines that volunteers in pages may query for clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) engines: Vec<PageEngine>,
}

/// A search engine that allows pages to read its answers (CORS).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PageEngine {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) title: String,
    /// The complete OpenSearch description, so that a page needs no other request for it.
    pub(crate) description: String,
}

/// The directories for the served pages.
#[derive(Clone, Debug)]
pub(crate) enum PageDirectories {
    /// This server is the directory, at the origin of each request.
    Here,
    /// The directories are at these URLs.
    At(Vec<String>),
}

/// The router for `files`, and for the network of `directories`, `authorities` and `engines`.
pub(crate) fn router(
    files: &'static [File],
    directories: PageDirectories,
    authorities: &[AuthorityId],
    engines: Vec<PageEngine>,
) -> Router {
    let authorities = authorities.iter().map(ToString::to_string).collect();
    let description = NetworkDescription { directories: Vec::new(), authorities, engines };
    let network = move |fields: HeaderMap| {
        let (directories, description) = (directories.clone(), description.clone());
        async move { serve_network(&fields, directories, description) }
    };
    let mut router = Router::new()
        .route("/", get(|| async { with_fields(Redirect::temporary("/volunteer").into_response(), FILE_POLICY) }))
        .route("/umbel.json", get(network));
    for file in files {
        let etag = HeaderValue::try_from(format!("W/\"{}\"", HEXLOWER.encode(&sha256(file.whole))));
        let etag = etag.unwrap_or(HeaderValue::from_static("\"\""));
        for path in paths(file.name) {
            let etag = etag.clone();
            router = router.route(
                &format!("/{path}"),
                get(move |fields: HeaderMap| async move { serve_file(file, &etag, &fields) }),
            );
        }
    }
    with_fallbacks(router)
}

/// The router of a program without pages, which answers requests for pages with status 404 and `text`.
pub(crate) fn router_without_pages(text: &'static str) -> Router {
    let answer = move || async move {
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        with_fields((StatusCode::NOT_FOUND, [content_type], text).into_response(), FILE_POLICY)
    };
    let names = ["/", "/volunteer", "/search", "/volunteer.html", "/search.html"];
    with_fallbacks(names.into_iter().fold(Router::new(), |router, name| router.route(name, get(answer))))
}

/// Adds the answers to other paths (404) and to other methods (405), with the header fields of all answers.
fn with_fallbacks(router: Router) -> Router {
    let answer = |status: StatusCode| move || async move { with_fields(status.into_response(), FILE_POLICY) };
    router.method_not_allowed_fallback(answer(StatusCode::METHOD_NOT_ALLOWED)).fallback(answer(StatusCode::NOT_FOUND))
}

/// Serves `router` on `listener` until the future is dropped, which closes the connections.
pub(crate) async fn serve(listener: TcpListener, router: Router) {
    let caps = ConnectionCaps::default();
    serve_within(listener, router, ConnectionCaps { all: caps.all.min(MAX_CONNECTIONS), ..caps }).await;
}

/// [`serve`] with these caps on connections.
async fn serve_within(listener: TcpListener, router: Router, caps: ConnectionCaps) {
    let serve = |socket, _, place| serve_connection(socket, place, router.clone());
    accept_with_places(listener, caps, Some, serve, REFUSAL).await;
}

async fn serve_connection(socket: TcpStream, mut place: HttpConnectionPlace, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(place.socket(socket)), TowerToHyperService::new(router));
    // A failed or evicted connection of a browser needs no action.
    tokio::select! {
        _ = timeout(CONNECTION_TIMEOUT, connection) => {}
        () = place.wait_for_end() => {}
    }
}

fn serve_file(file: &'static File, etag: &HeaderValue, request: &HeaderMap) -> Response {
    // Names under assets/ contain a hash of the content.
    let caching = if file.name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let is_match = |value: &HeaderValue| value.as_bytes() == etag.as_bytes() || value.as_bytes() == b"*";
    let mut response = if request.get_all(header::IF_NONE_MATCH).iter().any(is_match) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let encoded = [("br", file.brotli), ("gzip", file.gzip)];
        let encoded = encoded
            .into_iter()
            .find_map(|(coding, bytes)| Some((coding, bytes?)).filter(|_| is_accepted(request, coding)));
        let mut response = encoded.map_or(file.whole, |(_, bytes)| bytes).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(file.name)));
        if let Some((coding, _)) = encoded {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        response
    };
    response.headers_mut().insert(header::ETAG, etag.clone());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    with_fields(response, if file.name.ends_with(".html") { PAGE_POLICY } else { FILE_POLICY })
}

fn serve_network(request: &HeaderMap, directories: PageDirectories, description: NetworkDescription) -> Response {
    let directories = match directories {
        PageDirectories::At(directories) => directories,
        PageDirectories::Here => match own_origin(request) {
            Some(origin) => vec![origin],
            None => {
                return with_fields(
                    (StatusCode::BAD_REQUEST, "the request's Host header field is missing or invalid").into_response(),
                    FILE_POLICY,
                );
            }
        },
    };
    let Ok(text) = serde_json::to_string(&NetworkDescription { directories, ..description }) else {
        return with_fields(StatusCode::INTERNAL_SERVER_ERROR.into_response(), FILE_POLICY);
    };
    let content_type = HeaderValue::from_static("application/json");
    let mut response = ([(header::CONTENT_TYPE, content_type)], text).into_response();
    // The answer depends on the request's header fields.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    with_fields(response, FILE_POLICY)
}

/// The origin of this server according to the request. A TLS proxy before the server sets `x-forwarded-proto`. A forged
/// field affects only its sender.
fn own_origin(request: &HeaderMap) -> Option<String> {
    let host: Authority = request.get(header::HOST)?.to_str().ok()?.parse().ok()?;
    if host.as_str().contains('@') {
        return None;
    }
    let is_https = request.get("x-forwarded-proto").is_some_and(|scheme| scheme.as_bytes() == b"https");
    Some(format!("{}://{host}", if is_https { "https" } else { "http" }))
}

/// Adds [`FIELDS`] and the content security policy.
fn with_fields(mut response: Response, policy: &'static str) -> Response {
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    for (name, value) in FIELDS {
        fields.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "ts" => "text/plain; charset=utf-8",
        "svg" => "image/svg+xml",
        "json" => "application/json",
        "wasm" => "application/wasm",
        _ => "application/octet-stream",
    }
}
