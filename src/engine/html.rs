//! Results in a page of HTML, by CSS selectors that the description names.
//!
//! An HTML parser makes a tree of whatever it is given, and a few bytes can make it repeat all the elements that are open.
//! So the page goes in in small pieces, and the tree is looked at after each: too deep or too large, and it is given up.

use html5ever::{driver, tendril::TendrilSink as _};
use scraper::{ElementRef, Html, HtmlTreeSink, Node, Selector};
use url::Url;

use super::{Found, Listed, Unread, description::DescriptionError};
use crate::delegated::MAX_RESULTS;

/// Bytes of a page; the rest is not looked at.
const MOST_BYTES: usize = 512 * 1024;
/// Bytes that go in at a time.
const PIECE: usize = 64;
/// Nodes of its tree.
const MOST_NODES: usize = 50_000;
/// Elements within each other.
const MOST_DEPTH: usize = 256;
/// How many times the page's length its texts and attributes may have in the tree.
const MOST_REPEATED: usize = 4;
/// Bytes of a selector.
const MOST_SELECTOR: usize = 256;

/// Where on a page the results stand.
#[derive(Debug)]
pub(super) struct Selectors {
    /// Each result.
    pub(super) result: Selector,
    /// Within it, the title.
    pub(super) title: Selector,
    /// Within it, the element whose `href` is the link.
    pub(super) link: Selector,
    /// Within it, the snippet, if there is one.
    pub(super) snippet: Option<Selector>,
}

/// A selector of the operator's.
pub(super) fn selector(text: &str) -> Result<Selector, DescriptionError> {
    let invalid = || DescriptionError::Selector(text.to_owned());
    if text.len() > MOST_SELECTOR {
        return Err(invalid());
    }
    Selector::parse(text).map_err(|_| invalid())
}

/// The results in `page`.
pub(super) fn read(page: &str, selectors: &Selectors, base: &Url) -> Result<Listed, Unread> {
    let page = page.get(..page.floor_char_boundary(MOST_BYTES)).unwrap_or_default();
    let html = bounded(page, MOST_NODES).ok_or(Unread::Malformed)?;
    let results = html.select(&selectors.result).filter_map(|result| {
        let link = result.select(&selectors.link).next()?.value().attr("href")?;
        let title = result.select(&selectors.title).next()?.inner_html();
        let snippet = selectors.snippet.as_ref().and_then(|selector| result.select(selector).next());
        let snippet = snippet.map(|snippet: ElementRef<'_>| snippet.inner_html()).unwrap_or_default();
        Found { title, link: link.to_owned(), snippet }.cleaned(base)
    });
    Ok(Listed { results: results.take(MAX_RESULTS).collect(), total: None })
}

/// The tree of `page`; none if it has more than `most_nodes`, is nested too deep, or repeats more than it says.
pub(crate) fn bounded(page: &str, most_nodes: usize) -> Option<Html> {
    let mut parser = driver::parse_document(HtmlTreeSink::new(Html::new_document()), driver::ParseOpts::default());
    let mut rest = page;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(PIECE));
        parser.process(piece.into());
        rest = after;
        let html = parser.tokenizer.sink.sink.0.borrow();
        let mut nodes = html.tree.nodes();
        let (count, newest) = (nodes.len(), nodes.next_back());
        if count > most_nodes || newest.is_some_and(|newest| newest.ancestors().nth(MOST_DEPTH).is_some()) {
            return None;
        }
    }
    let html = parser.finish();
    let bytes = html.tree.values().map(bytes).fold(0_usize, usize::saturating_add);
    (bytes <= page.len().saturating_mul(MOST_REPEATED)).then_some(html)
}

fn bytes(node: &Node) -> usize {
    match node {
        Node::Element(element) => element.attrs().map(|(name, value)| name.len().saturating_add(value.len())).sum(),
        Node::Text(text) => text.len(),
        _ => 0,
    }
}
