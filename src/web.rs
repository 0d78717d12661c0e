//! The HTTP server of the pages for browsers: the volunteer's page, the search page, the badge and the library.
//!
//! | request | answer |
//! |---|---|
//! | `GET /volunteer`, `/search` | the page; `/` redirects to the first |
//! | `GET /badge.js`, `/umbel.js`, `/umbel.d.ts`, `/assets/…` | the file |
//! | `GET /umbel.json` | the network: directories and authorities, and search engines for volunteers |
//!
//! The files are built from `web/` and embedded in the program ([`embedded`]), if they existed at its build. The
//! header fields of each answer limit what a page may load and run. Any site may read the answers, because other
//! programs use the library. Pages use the network without this server: queries and requests never reach it. Threats
//! addressed: other sites that frame the volunteer's switch; a server that serves modified pages ([`verify`]).

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
use tokio::{net::TcpListener, time::timeout};

use crate::{
    crypto::sha256,
    directory::AuthorityId,
    io::{content_coding::is_accepted, listener::accept_each},
};

/// Concurrent connections; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 256;
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of a connection, against clients that read slowly.
const CONNECTION_LIMIT: Duration = Duration::from_secs(180);
const MAX_HEAD: usize = 16 * 1024;

/// Content security policy of pages. The pages also contain it as a `meta` element, for other servers (reasons in
/// `web/vite.config.ts`). A `meta` element can't forbid framing.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data:; \
     connect-src http: https:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
/// Content security policy of all other responses; it allows nothing.
const FILE_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// Header fields of each response of a handler.
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
    /// Its path in the folder of built files, such as `assets/a.js`.
    pub(crate) name: &'static str,
    pub(crate) whole: &'static [u8],
    /// The compressed file; `None` where that would not be smaller.
    pub(crate) brotli: Option<&'static [u8]>,
    pub(crate) gzip: Option<&'static [u8]>,
}

/// The pages embedded in this program; empty if they didn't exist at its build.
pub(crate) fn embedded() -> &'static [File] {
    include!(concat!(env!("OUT_DIR"), "/pages.rs"))
}

/// The paths under which the file `name` is served.
pub(crate) fn paths(name: &str) -> impl Iterator<Item = &str> {
    [name.strip_suffix(".html"), Some(name)].into_iter().flatten()
}

/// The network that a page joins: its directories, trusted authorities, and search engines.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct NetworkDescription {
    pub(crate) directories: Vec<String>,
    pub(crate) authorities: Vec<String>,
    /// Search engines that volunteers' pages may query for other users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) engines: Vec<PageEngine>,
}

/// A search engine whose answers pages may read (CORS).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PageEngine {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) title: String,
    /// Its complete OpenSearch description, so that a page needs no other request for it.
    pub(crate) description: String,
}

/// The directories of the served pages.
#[derive(Clone, Debug)]
pub(crate) enum PageDirectories {
    /// This server is a directory; its URL is that of the request.
    Here,
    /// At these URLs.
    At(Vec<String>),
}

/// The router for `files`, with the network of `directories`, `authorities` and `engines`.
pub(crate) fn router(
    files: &'static [File],
    directories: PageDirectories,
    authorities: &[AuthorityId],
    engines: Vec<PageEngine>,
) -> Router {
    let authorities = authorities.iter().map(ToString::to_string).collect();
    let known = NetworkDescription { directories: Vec::new(), authorities, engines };
    let network = move |fields: HeaderMap| {
        let (directories, known) = (directories.clone(), known.clone());
        async move { tell_network(&fields, directories, known) }
    };
    let mut router = Router::new()
        .route("/", get(|| async { with_fields(Redirect::temporary("/volunteer").into_response(), FILE_POLICY) }))
        .route("/umbel.json", get(network));
    for file in files {
        let tag = HeaderValue::try_from(format!("W/\"{}\"", HEXLOWER.encode(&sha256(file.whole))));
        let tag = tag.unwrap_or(HeaderValue::from_static("\"\""));
        for path in paths(file.name) {
            let tag = tag.clone();
            router = router
                .route(&format!("/{path}"), get(move |fields: HeaderMap| async move { give(file, &tag, &fields) }));
        }
    }
    router
}

/// The router of a program without pages: answers `words` as plain text with status 404.
pub(crate) fn absent(words: &'static str) -> Router {
    let say = move || async move {
        let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        with_fields((StatusCode::NOT_FOUND, [kind], words).into_response(), FILE_POLICY)
    };
    let names = ["/", "/volunteer", "/search", "/volunteer.html", "/search.html"];
    names.into_iter().fold(Router::new(), |router, name| router.route(name, get(say)))
}

/// Serves `router` on `listener` for ever. Dropping the future ends its connections.
pub(crate) async fn serve(listener: TcpListener, router: Router) {
    accept_each(listener, MAX_CONNECTIONS, |socket| {
        let service = TowerToHyperService::new(router.clone());
        async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(socket), service);
            // An error of a browser's connection needs no action.
            _ = timeout(CONNECTION_LIMIT, connection).await;
        }
    })
    .await;
}

fn give(file: &'static File, tag: &HeaderValue, asked: &HeaderMap) -> Response {
    // Names under assets/ contain a hash of the content.
    let keep = if file.name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let known = |value: &HeaderValue| value.as_bytes() == tag.as_bytes() || value.as_bytes() == b"*";
    let mut response = if asked.get_all(header::IF_NONE_MATCH).iter().any(known) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let packed = [("br", file.brotli), ("gzip", file.gzip)];
        let packed = packed
            .into_iter()
            .find_map(|(coding, bytes)| Some((coding, bytes?)).filter(|_| is_accepted(asked, coding)));
        let mut response = packed.map_or(file.whole, |(_, bytes)| bytes).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind(file.name)));
        if let Some((coding, _)) = packed {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        response
    };
    response.headers_mut().insert(header::ETAG, tag.clone());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    with_fields(response, if file.name.ends_with(".html") { PAGE_POLICY } else { FILE_POLICY })
}

fn tell_network(asked: &HeaderMap, directories: PageDirectories, known: NetworkDescription) -> Response {
    let directories = match directories {
        PageDirectories::At(directories) => directories,
        PageDirectories::Here => match own_address(asked) {
            Some(address) => vec![address],
            None => {
                return with_fields(
                    (StatusCode::BAD_REQUEST, "the request's Host header field is missing or invalid").into_response(),
                    FILE_POLICY,
                );
            }
        },
    };
    let Ok(text) = serde_json::to_string(&NetworkDescription { directories, ..known }) else {
        return with_fields(StatusCode::INTERNAL_SERVER_ERROR.into_response(), FILE_POLICY);
    };
    let kind = HeaderValue::from_static("application/json");
    let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
    // The answer depends on the request's header fields.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    with_fields(response, FILE_POLICY)
}

/// The URL of this server in the request. A TLS proxy in front sets `x-forwarded-proto`; a forged field affects only
/// its sender.
fn own_address(asked: &HeaderMap) -> Option<String> {
    let host: Authority = asked.get(header::HOST)?.to_str().ok()?.parse().ok()?;
    if host.as_str().contains('@') {
        return None;
    }
    let sealed = asked.get("x-forwarded-proto").is_some_and(|scheme| scheme.as_bytes() == b"https");
    Some(format!("{}://{host}", if sealed { "https" } else { "http" }))
}

fn with_fields(mut response: Response, policy: &'static str) -> Response {
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    for (name, value) in FIELDS {
        fields.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn kind(name: &str) -> &'static str {
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
