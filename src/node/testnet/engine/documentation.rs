//! A search engine over Umbel's documentation, in the testnet's process.
//!
//! The engine serves an OpenSearch 1.1 description, results as RSS, and the pages of the results. The engine listens on
//! loopback. Queries are neither logged nor repeated in answers.

mod index;

use core::net::SocketAddr;
use std::{io, sync::Arc};

use axum::{
    Router,
    extract::{Path, Query, State},
    http::{
        StatusCode,
        header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE},
    },
    response::{Html, IntoResponse, Response},
    routing::get,
    serve::ListenerExt as _,
};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use self::index::{Index, Section};

const RESULTS_PER_PAGE: usize = 10;
const XML: PreEscaped<&str> = PreEscaped("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
const OPENSEARCH: &str = "http://a9.com/-/spec/opensearch/1.1/";

macro_rules! documents {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $name)))),*]
    };
}

/// The corpus: the path and the Markdown of each file.
const DOCUMENTS: &[(&str, &str)] = documents![
    "README.md",
    "threat-model.md",
    "docs/architecture.md",
    "docs/attacks.md",
    "docs/chaos.md",
    "docs/engines.md",
    "docs/fuzzing.md",
    "docs/performance.md",
    "docs/resources.md",
    "docs/search.md",
    "docs/transport.md",
    "docs/web.md",
    "proto/01-transport.md",
    "proto/02-channel.md",
    "proto/03-cells.md",
    "proto/04-handshake.md",
    "proto/05-relay-messages.md",
    "proto/06-flow.md",
    "proto/07-directory.md",
    "proto/08-paths.md",
    "proto/09-delegated.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
];

/// The running engine. Dropping the value stops the engine.
pub(in super::super) struct Documentation {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Documentation {
    /// Starts the engine on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be opened.
    pub(super) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route(
                "/description.xml",
                get(async move || xml("application/opensearchdescription+xml", description(address))),
            )
            .route("/search", get(search))
            .route("/", get(contents))
            .route("/{*path}", get(page))
            .with_state(Arc::new(Index::new(DOCUMENTS)));
        // Errors are ignored: without TCP_NODELAY answers are only slower, and the exit detects a failed answer.
        let listener = listener.tap_io(|socket| _ = socket.set_nodelay(true));
        let serving = tokio::spawn(async move { _ = axum::serve(listener, router).await });
        Ok(Self { address, _serving: AbortOnDropHandle::new(serving) })
    }

    /// The OpenSearch description of this engine.
    pub(super) fn description(&self) -> String {
        description(self.address)
    }

    /// The engine's name and URL, for the output of `umbel testnet`.
    pub(super) fn to_text(&self) -> String {
        format!("Umbel's own documentation, http://{}", self.address)
    }
}

/// A response with `document`. A page of any origin may read the response (CORS), as with Kiwix.
fn xml(kind: &'static str, document: String) -> Response {
    ([(CONTENT_TYPE, kind), (ACCESS_CONTROL_ALLOW_ORIGIN, "*")], document).into_response()
}

fn description(address: SocketAddr) -> String {
    let template = format!("http://{address}/search?terms={{searchTerms}}&page={{startPage?}}");
    let document = html! {
        (XML)
        OpenSearchDescription xmlns=(OPENSEARCH) {
            ShortName { "Umbel" }
            Description { "Umbel's own documentation" }
            Url type="application/rss+xml" template=(template) {}
        }
    };
    document.into_string()
}

/// The parameters of a search. A missing or invalid page number stands for page 1.
#[derive(Deserialize)]
struct DocumentationQuery {
    #[serde(default)]
    terms: String,
    #[serde(default)]
    page: String,
}

async fn search(State(index): State<Arc<Index>>, Query(query): Query<DocumentationQuery>) -> Response {
    let found = index.search(&query.terms);
    let offset = query.page.parse::<usize>().unwrap_or(1).saturating_sub(1).saturating_mul(RESULTS_PER_PAGE);
    let document = html! {
        (XML)
        rss version="2.0" xmlns:opensearch=(OPENSEARCH) {
            channel {
                title { "Umbel's own documentation" }
                opensearch:totalResults { (found.len()) }
                opensearch:startIndex { (offset.saturating_add(1)) }
                opensearch:itemsPerPage { (RESULTS_PER_PAGE) }
                @for section in found.iter().skip(offset).take(RESULTS_PER_PAGE) {
                    item {
                        title { (section.title) }
                        link { (section.path) }
                        description { (section.snippet(&query.terms)) }
                    }
                }
            }
        }
    };
    xml("application/rss+xml; charset=utf-8", document.into_string())
}

async fn contents(State(index): State<Arc<Index>>) -> Html<String> {
    document(
        "Umbel's own documentation",
        &html! {
            ul { @for section in index.all() { li { a href=(section.path) { (section.title) } } } }
        },
    )
}

async fn page(State(index): State<Arc<Index>>, Path(path): Path<String>) -> Response {
    match index.at(&format!("/{path}")) {
        Some(section) => document(&section.title, &rendered(section)).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn document(title: &str, body: &Markup) -> Html<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; title { (title) } }
            body { h1 { (title) } (body) p { a href="/" { "All documents" } } }
        }
    };
    Html(page.into_string())
}

/// A section's Markdown as HTML. Code and tables are verbatim, lists with `-` are lists, other blocks are paragraphs.
/// Other markup is removed.
fn rendered(section: &Section) -> Markup {
    let mut blocks = Vec::new();
    // Pieces with an odd index are code.
    for (index, piece) in section.text.split("```").enumerate() {
        if index.is_multiple_of(2) {
            blocks.extend(piece.split("\n\n").map(str::trim).filter(|block| !block.is_empty()).map(block));
        } else {
            blocks.push(html! { pre { (piece.split_once('\n').map_or("", |(_, code)| code)) } });
        }
    }
    html! { @for block in blocks { (block) } }
}

fn block(text: &str) -> Markup {
    if text.starts_with('|') {
        return html! { pre { (text) } };
    }
    if let Some(items) = text.strip_prefix("- ") {
        return html! { ul { @for item in items.split("\n- ") { li { (index::plain(item)) } } } };
    }
    html! { p { (index::plain(text)) } }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    async fn fetch(url: &str) -> (u16, String, String) {
        let answer = reqwest::get(url).await.unwrap();
        let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        (answer.status().as_u16(), kind.unwrap_or_default(), answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn the_urls_of_the_description_are_served() {
        let engine = Documentation::start().await.unwrap();
        let (_, kind, description) = fetch(&format!("http://{}/description.xml", engine.address)).await;
        assert_eq!(kind, "application/opensearchdescription+xml");
        assert_eq!(description, engine.description());
        let template = description.split("template=\"").nth(1).unwrap().split('"').next().unwrap();
        let template = template.replace("&amp;", "&");
        let search_url =
            |terms: &str, page: &str| template.replace("{searchTerms}", terms).replace("{startPage?}", page);
        let (_, kind, first) = fetch(&search_url("guard%20sample", "")).await;
        assert!(kind.starts_with("application/rss+xml"), "{kind}");
        assert_eq!(first.matches("<item>").count(), RESULTS_PER_PAGE, "{first}");
        assert!(first.split("<item>").nth(1).unwrap().to_lowercase().contains("guard"), "{first}");
        let (_, _, second) = fetch(&search_url("guard%20sample", "2")).await;
        assert_ne!(first.split("<item>").nth(1), second.split("<item>").nth(1));
        let (_, _, none) = fetch(&search_url("%00%3Cnosuchword%3E%22", "99999999999999999999")).await;
        assert!(!none.contains("<item>") && !none.contains("nosuchword>"), "{none}");
        let link = first.split("<link>").nth(1).unwrap().split('<').next().unwrap();
        let (status, kind, page) = fetch(&format!("http://{}{link}", engine.address)).await;
        assert!(status == 200 && kind.starts_with("text/html") && page.contains("<h1>"), "{page}");
        assert_eq!(fetch(&format!("http://{}/no/such/page", engine.address)).await.0, 404);
    }

    #[test]
    fn every_document_in_docs_and_proto_is_searched() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let named: BTreeSet<&str> = DOCUMENTS.iter().map(|(name, _)| *name).collect();
        for folder in ["docs", "proto"] {
            for file in fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()) {
                let name = format!("{folder}/{}", file.file_name().unwrap().to_string_lossy());
                assert!(!name.ends_with(".md") || named.contains(name.as_str()), "{name} is not searched");
            }
        }
    }
}
