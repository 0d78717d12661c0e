//! Results in a page of HTML, by CSS selectors that the description names.
//!
//! An HTML parser makes a tree of whatever it is given, and a few bytes can make it repeat all the elements that are open,
//! nest them out of sight, or compare thousands of attributes with each other. So the page goes in in small pieces, and what
//! each has made of the tree is looked at: too deep or too large, and the page is given up.

use core::cell::Cell;

use super::{Found, Listed, Unread, description::DescriptionError};
use crate::delegated::{MAX_RESULTS, url::Url};
use html5ever::{
    TokenizerResult,
    tokenizer::{BufferQueue, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts},
    tree_builder::{TreeBuilder, TreeBuilderOpts, TreeSink as _},
};
use scraper::{ElementRef, Html, HtmlTreeSink, Node, Selector};

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
/// Attributes that are taken of an element.
const MOST_ATTRIBUTES: usize = 64;
/// Places in a tag where an attribute may begin: the parser compares each attribute of a tag with all before it.
const MOST_UNFINISHED: usize = 4096;
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
    let most_bytes = page.len().saturating_mul(MOST_REPEATED);
    let sink = HtmlTreeSink::new(Html::new_document());
    let builder = TreeBuilder::new(sink, TreeBuilderOpts::default());
    let tokenizer = Tokenizer::new(Guarded::new(builder), TokenizerOpts::default());
    let input = BufferQueue::default();
    let (mut rest, mut seen, mut repeated, mut unfinished) = (page, 0_usize, 0_usize, 0_usize);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(PIECE));
        input.push_back(piece.into());
        // It pauses for scripts that are to be run and for encodings that are named.
        while !matches!(tokenizer.feed(&input), TokenizerResult::Done) {}
        rest = after;
        if tokenizer.sink.got_on.take() {
            unfinished = 0;
        }
        unfinished = unfinished.saturating_add(piece.bytes().filter(|byte| may_separate(*byte)).count());
        let html = tokenizer.sink.builder.sink.0.borrow();
        let count = html.tree.nodes().len();
        // Each new one, since the last need not be the deepest: a comment behind </body> stands at the top.
        let too_deep = html.tree.nodes().rev().take(count.saturating_sub(seen)).any(|node| {
            repeated = repeated.saturating_add(attribute_bytes(node.value()));
            node.ancestors().nth(MOST_DEPTH).is_some()
        });
        seen = count;
        if count > most_nodes || too_deep || repeated > most_bytes || unfinished > MOST_UNFINISHED {
            return None;
        }
    }
    tokenizer.end();
    let html = tokenizer.sink.builder.sink.finish();
    let bytes = html.tree.values().map(bytes).fold(0_usize, usize::saturating_add);
    // Once more, for what was moved.
    let too_deep = html.tree.nodes().any(|node| node.ancestors().nth(MOST_DEPTH).is_some());
    (bytes <= most_bytes && !too_deep).then_some(html)
}

/// Whether an attribute may begin behind this byte.
const fn may_separate(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'/' | b'"' | b'\'')
}

fn attribute_bytes(node: &Node) -> usize {
    let Node::Element(element) = node else { return 0 };
    element.attrs().map(|(name, value)| name.len().saturating_add(value.len())).sum()
}

fn bytes(node: &Node) -> usize {
    match node {
        Node::Text(text) => text.len(),
        node => attribute_bytes(node),
    }
}

/// Hands a page's tokens on to what makes the tree, without attributes beyond measure.
struct Guarded<S> {
    builder: S,
    /// A token came since this was last taken.
    got_on: Cell<bool>,
    /// A tag for the whole document came; the attributes of each further one would be sorted in among those it has.
    rooted: [Cell<bool>; 2],
}

impl<S> Guarded<S> {
    const fn new(builder: S) -> Self {
        Self { builder, got_on: Cell::new(false), rooted: [Cell::new(false), Cell::new(false)] }
    }

    fn most_attributes(&self, name: &str, kind: TagKind) -> usize {
        let [html, body] = &self.rooted;
        let again = match (name, kind) {
            ("html", TagKind::StartTag) => html.replace(true),
            ("body", TagKind::StartTag) => body.replace(true),
            _ => false,
        };
        if again { 0 } else { MOST_ATTRIBUTES }
    }
}

impl<S: TokenSink> TokenSink for Guarded<S> {
    type Handle = S::Handle;

    fn process_token(&self, mut token: Token, line: u64) -> TokenSinkResult<S::Handle> {
        match &mut token {
            // An error may come in the midst of a tag.
            Token::ParseError(_) => {}
            Token::TagToken(tag) => {
                self.got_on.set(true);
                tag.attrs.truncate(self.most_attributes(&tag.name, tag.kind));
            }
            _ => self.got_on.set(true),
        }
        self.builder.process_token(token, line)
    }

    fn end(&self) {
        self.builder.end();
    }

    fn adjusted_current_node_present_but_not_in_html_namespace(&self) -> bool {
        self.builder.adjusted_current_node_present_but_not_in_html_namespace()
    }
}
