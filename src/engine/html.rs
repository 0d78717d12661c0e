//! Parser of results in HTML, by CSS selectors in the description.
//!
//! An HTML parser builds a tree from any input. A few bytes can cause the repetition of all open elements, deep
//! nesting, or comparisons of thousands of attributes with each other. Therefore the input is fed in small pieces, and
//! the tree is checked after each piece. A tree that is too deep or too large is rejected.

use core::cell::Cell;

use super::{AnswerError, AnswerResults, DescriptionError, RawResult};
use crate::delegated::{MAX_RESULTS, url::Url};
use html5ever::{
    TokenizerResult,
    tokenizer::{BufferQueue, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts},
    tree_builder::{TreeBuilder, TreeBuilderOpts, TreeSink as _},
};
use scraper::{ElementRef, Html, HtmlTreeSink, Node, Selector};

/// Maximum bytes of a page that are parsed; the rest is ignored.
const MAX_BYTES: usize = 512 * 1024;
/// Bytes fed to the parser at a time.
const PIECE_LEN: usize = 64;
/// Maximum nodes of the tree.
const MAX_NODES: usize = 50_000;
/// Maximum depth of elements.
const MAX_DEPTH: usize = 256;
/// Maximum bytes of texts and attributes in the tree, as a multiple of the page's length.
const MAX_GROWTH: usize = 4;
/// Maximum attributes of an element; further attributes are dropped.
const MAX_ATTRIBUTES: usize = 64;
/// Maximum separators in an incomplete tag. The parser compares each attribute of a tag with all previous ones.
const MAX_SEPARATORS: usize = 4096;
/// Maximum bytes of a selector.
const MAX_SELECTOR_LEN: usize = 256;

/// The CSS selectors of the results on a page.
#[derive(Debug)]
pub(super) struct Selectors {
    /// The elements of the results. The other selectors apply within each element.
    pub(super) result: Selector,
    /// The title.
    pub(super) title: Selector,
    /// The element whose `href` is the URL.
    pub(super) link: Selector,
    /// The snippet.
    pub(super) snippet: Option<Selector>,
}

/// Parses a selector of a description.
pub(super) fn selector(text: &str) -> Result<Selector, DescriptionError> {
    let invalid = || DescriptionError::Selector(text.to_owned());
    if text.len() > MAX_SELECTOR_LEN {
        return Err(invalid());
    }
    Selector::parse(text).map_err(|_| invalid())
}

/// Parses the results in `page`.
pub(super) fn read(page: &str, selectors: &Selectors, base: &Url) -> Result<AnswerResults, AnswerError> {
    let page = page.get(..page.floor_char_boundary(MAX_BYTES)).unwrap_or_default();
    let html = bounded(page, MAX_NODES).ok_or(AnswerError::Malformed)?;
    let results = html.select(&selectors.result).filter_map(|result| {
        let url = result.select(&selectors.link).next()?.value().attr("href")?;
        let title = result.select(&selectors.title).next()?.inner_html();
        let snippet = selectors.snippet.as_ref().and_then(|selector| result.select(selector).next());
        let snippet = snippet.map(|snippet: ElementRef<'_>| snippet.inner_html()).unwrap_or_default();
        RawResult { title, url: url.to_owned(), snippet }.cleaned(base)
    });
    Ok(AnswerResults { results: results.take(MAX_RESULTS).collect(), total: None })
}

/// The tree of `page`; `None` if the page exceeds [`MAX_SEPARATORS`], or its tree exceeds `max_nodes`, [`MAX_DEPTH`] or
/// [`MAX_GROWTH`].
pub(crate) fn bounded(page: &str, max_nodes: usize) -> Option<Html> {
    let max_len = page.len().saturating_mul(MAX_GROWTH);
    let sink = HtmlTreeSink::new(Html::new_document());
    let builder = TreeBuilder::new(sink, TreeBuilderOpts::default());
    let tokenizer = Tokenizer::new(TokenGuard::new(builder), TokenizerOpts::default());
    let input = BufferQueue::default();
    let (mut rest, mut checked, mut attribute_len, mut separators) = (page, 0_usize, 0_usize, 0_usize);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(PIECE_LEN));
        input.push_back(piece.into());
        // The parser pauses at scripts and at declared encodings.
        while !matches!(tokenizer.feed(&input), TokenizerResult::Done) {}
        rest = after;
        if tokenizer.sink.got_token.take() {
            separators = 0;
        }
        separators = separators.saturating_add(piece.bytes().filter(|byte| may_separate(*byte)).count());
        let html = tokenizer.sink.builder.sink.0.borrow();
        let count = html.tree.nodes().len();
        // All new nodes are checked. The last node need not be the deepest: a comment after `</body>` is added at the
        // top.
        let is_too_deep = html.tree.nodes().rev().take(count.saturating_sub(checked)).any(|node| {
            attribute_len = attribute_len.saturating_add(attributes_len(node.value()));
            node.ancestors().nth(MAX_DEPTH).is_some()
        });
        checked = count;
        if count > max_nodes || is_too_deep || attribute_len > max_len || separators > MAX_SEPARATORS {
            return None;
        }
    }
    tokenizer.end();
    let html = tokenizer.sink.builder.sink.finish();
    let content_len = html.tree.values().map(node_len).fold(0_usize, usize::saturating_add);
    // The depth is checked again, because the parser may have moved nodes.
    let is_too_deep = html.tree.nodes().any(|node| node.ancestors().nth(MAX_DEPTH).is_some());
    (content_len <= max_len && !is_too_deep).then_some(html)
}

/// Whether an attribute may begin after this byte.
const fn may_separate(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'/' | b'"' | b'\'')
}

/// Bytes of the attributes of an element.
fn attributes_len(node: &Node) -> usize {
    let Node::Element(element) = node else { return 0 };
    element.attrs().map(|(name, value)| name.len().saturating_add(value.len())).sum()
}

/// Bytes of a text, or of the attributes of an element.
fn node_len(node: &Node) -> usize {
    match node {
        Node::Text(text) => text.len(),
        node => attributes_len(node),
    }
}

/// Passes tokens to the tree builder, with a cap on attributes.
struct TokenGuard<S> {
    builder: S,
    /// Whether a token has been received since the last check.
    got_token: Cell<bool>,
    /// Whether a start tag of `html`, and one of `body`, has been received. The tree builder adds the attributes of
    /// further such tags to the first element.
    has_root: [Cell<bool>; 2],
}

impl<S> TokenGuard<S> {
    const fn new(builder: S) -> Self {
        Self { builder, got_token: Cell::new(false), has_root: [Cell::new(false), Cell::new(false)] }
    }

    /// Maximum attributes of the element that a tag opens.
    fn max_attributes(&self, name: &str, kind: TagKind) -> usize {
        let [html, body] = &self.has_root;
        let is_repeated = match (name, kind) {
            ("html", TagKind::StartTag) => html.replace(true),
            ("body", TagKind::StartTag) => body.replace(true),
            _ => false,
        };
        if is_repeated { 0 } else { MAX_ATTRIBUTES }
    }
}

impl<S: TokenSink> TokenSink for TokenGuard<S> {
    type Handle = S::Handle;

    fn process_token(&self, mut token: Token, line: u64) -> TokenSinkResult<S::Handle> {
        match &mut token {
            // A parse error may occur within a tag, so it doesn't complete the tag.
            Token::ParseError(_) => {}
            Token::TagToken(tag) => {
                self.got_token.set(true);
                tag.attrs.truncate(self.max_attributes(&tag.name, tag.kind));
            }
            _ => self.got_token.set(true),
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
