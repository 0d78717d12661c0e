//! Parses results from an HTML page, by CSS selectors in the description.
//!
//! An HTML parser builds a tree from any input. A few bytes can make it repeat all open elements, nest them deeply,
//! or compare thousands of attributes with each other. So the page is fed in small pieces, and the tree is checked
//! after each: a tree that is too deep or too large is rejected.

use core::cell::Cell;

use super::{AnswerResults, DescriptionError, RawResult, Unread};
use crate::delegated::{MAX_RESULTS, url::Url};
use html5ever::{
    TokenizerResult,
    tokenizer::{BufferQueue, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts},
    tree_builder::{TreeBuilder, TreeBuilderOpts, TreeSink as _},
};
use scraper::{ElementRef, Html, HtmlTreeSink, Node, Selector};

/// Largest part of a page that is parsed, in bytes; the rest is ignored.
const MAX_BYTES: usize = 512 * 1024;
/// Bytes fed at a time.
const PIECE: usize = 64;
/// Largest number of nodes of the tree.
const MAX_NODES: usize = 50_000;
/// Largest depth of elements.
const MAX_DEPTH: usize = 256;
/// Largest size of texts and attributes in the tree, as a multiple of the page's length.
const MAX_REPEATED: usize = 4;
/// Attributes kept of an element.
const MAX_ATTRIBUTES: usize = 64;
/// Largest number of separators in an unfinished tag: the parser compares each attribute of a tag with all before it.
const MAX_UNFINISHED: usize = 4096;
/// Longest selector in bytes.
const MAX_SELECTOR: usize = 256;

/// The CSS selectors of the results on a page.
#[derive(Debug)]
pub(super) struct Selectors {
    /// Each result.
    pub(super) result: Selector,
    /// Within it, the title.
    pub(super) title: Selector,
    /// Within it, the element whose `href` is the URL.
    pub(super) link: Selector,
    /// Within it, the snippet, if there is one.
    pub(super) snippet: Option<Selector>,
}

/// Parses a selector of a description.
pub(super) fn selector(text: &str) -> Result<Selector, DescriptionError> {
    let invalid = || DescriptionError::Selector(text.to_owned());
    if text.len() > MAX_SELECTOR {
        return Err(invalid());
    }
    Selector::parse(text).map_err(|_| invalid())
}

/// Parses the results in `page`.
pub(super) fn read(page: &str, selectors: &Selectors, base: &Url) -> Result<AnswerResults, Unread> {
    let page = page.get(..page.floor_char_boundary(MAX_BYTES)).unwrap_or_default();
    let html = bounded(page, MAX_NODES).ok_or(Unread::Malformed)?;
    let results = html.select(&selectors.result).filter_map(|result| {
        let link = result.select(&selectors.link).next()?.value().attr("href")?;
        let title = result.select(&selectors.title).next()?.inner_html();
        let snippet = selectors.snippet.as_ref().and_then(|selector| result.select(selector).next());
        let snippet = snippet.map(|snippet: ElementRef<'_>| snippet.inner_html()).unwrap_or_default();
        RawResult { title, link: link.to_owned(), snippet }.cleaned(base)
    });
    Ok(AnswerResults { results: results.take(MAX_RESULTS).collect(), total: None })
}

/// The tree of `page`; `None` if it exceeds `most_nodes`, the depth limit, or the size limit.
pub(crate) fn bounded(page: &str, most_nodes: usize) -> Option<Html> {
    let most_bytes = page.len().saturating_mul(MAX_REPEATED);
    let sink = HtmlTreeSink::new(Html::new_document());
    let builder = TreeBuilder::new(sink, TreeBuilderOpts::default());
    let tokenizer = Tokenizer::new(Guarded::new(builder), TokenizerOpts::default());
    let input = BufferQueue::default();
    let (mut rest, mut seen, mut repeated, mut unfinished) = (page, 0_usize, 0_usize, 0_usize);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(PIECE));
        input.push_back(piece.into());
        // The parser pauses for scripts to run and for declared encodings.
        while !matches!(tokenizer.feed(&input), TokenizerResult::Done) {}
        rest = after;
        if tokenizer.sink.got_on.take() {
            unfinished = 0;
        }
        unfinished = unfinished.saturating_add(piece.bytes().filter(|byte| may_separate(*byte)).count());
        let html = tokenizer.sink.builder.sink.0.borrow();
        let count = html.tree.nodes().len();
        // Every new node is checked, because the last need not be the deepest: a comment after `</body>` is attached
        // at the top.
        let too_deep = html.tree.nodes().rev().take(count.saturating_sub(seen)).any(|node| {
            repeated = repeated.saturating_add(attribute_bytes(node.value()));
            node.ancestors().nth(MAX_DEPTH).is_some()
        });
        seen = count;
        if count > most_nodes || too_deep || repeated > most_bytes || unfinished > MAX_UNFINISHED {
            return None;
        }
    }
    tokenizer.end();
    let html = tokenizer.sink.builder.sink.finish();
    let bytes = html.tree.values().map(bytes).fold(0_usize, usize::saturating_add);
    // Checked again, because the parser may have moved nodes.
    let too_deep = html.tree.nodes().any(|node| node.ancestors().nth(MAX_DEPTH).is_some());
    (bytes <= most_bytes && !too_deep).then_some(html)
}

/// Whether an attribute may begin after this byte.
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

/// Passes a page's tokens to the tree builder, with a cap on attributes.
struct Guarded<S> {
    builder: S,
    /// Whether a token was received since the last check.
    got_on: Cell<bool>,
    /// Whether the tag of the whole document was received; attributes of further ones would be merged into its own.
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
        if again { 0 } else { MAX_ATTRIBUTES }
    }
}

impl<S: TokenSink> TokenSink for Guarded<S> {
    type Handle = S::Handle;

    fn process_token(&self, mut token: Token, line: u64) -> TokenSinkResult<S::Handle> {
        match &mut token {
            // An error may occur within a tag.
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
