//! Parser of results in RSS (0.9 to 2.0) or Atom, with OpenSearch's total number of results.
//!
//! No feed library is used, for two reasons. Engines mark matched words by elements within a description (`<b>`), which
//! feed libraries treat as its end. And the check of entities and depth must parse the document in any case.

use core::mem;

use super::{
    AnswerError, AnswerResults, RawResult,
    description_error::OPENSEARCH,
    parser::xml::walk,
    xml::{Attributes, XmlEvent},
};
use crate::{
    base::Counter as _,
    delegated::{MAX_RESULTS, SearchResult, url::Url},
};

/// The namespace of `totalResults` in OpenSearch 1.0.
const OPENSEARCH_RSS: &str = "http://a9.com/-/spec/opensearchrss/1.0/";

/// Parses the results in `body`.
pub(super) fn read(body: &str, base: &Url) -> Result<AnswerResults, AnswerError> {
    let mut parser = FeedParser::new(base);
    let outcome = walk(body.trim_start_matches('\u{feff}').trim_start(), |event| parser.handle_event(event));
    if outcome.is_err() || !parser.is_feed {
        return Err(AnswerError::Malformed);
    }
    Ok(AnswerResults { results: parser.results, total: parser.total.trim().parse().ok() })
}

/// The state of parsing a feed.
struct FeedParser<'a> {
    base: &'a Url,
    is_feed: bool,
    depth: usize,
    /// The current item or entry, with its depth and namespace.
    item: Option<(usize, String, Item)>,
    /// The field of the current text, and the depth of its element.
    field: Option<(usize, FeedField)>,
    results: Vec<SearchResult>,
    total: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FeedField {
    Title,
    Link,
    Snippet,
    /// The snippet of an item without a description or summary.
    Content,
    Total,
}

#[derive(Default)]
struct Item {
    title: String,
    link: String,
    snippet: String,
    content: String,
}

impl<'a> FeedParser<'a> {
    const fn new(base: &'a Url) -> Self {
        Self { base, is_feed: false, depth: 0, item: None, field: None, results: Vec::new(), total: String::new() }
    }

    fn handle_event(&mut self, event: XmlEvent<'_>) {
        match event {
            XmlEvent::Open { namespace, name, attributes } => {
                self.depth.increment();
                self.open(namespace, name, attributes);
            }
            XmlEvent::Text(text) => {
                if let Some(field) = self.text() {
                    field.push_str(text);
                }
            }
            XmlEvent::Close => {
                if self.field.is_some_and(|(depth, _)| depth == self.depth) {
                    self.field = None;
                }
                if self.item.as_ref().is_some_and(|(depth, ..)| *depth == self.depth)
                    && let Some((_, _, item)) = self.item.take()
                    && self.results.len() < MAX_RESULTS
                {
                    self.results.extend(item.found().cleaned(self.base));
                }
                self.depth.decrement();
            }
        }
    }

    fn open(&mut self, namespace: &str, name: &str, attributes: Attributes<'_>) {
        if self.depth == 1 {
            self.is_feed = matches!(name, "rss" | "RDF" | "feed");
        } else if let Some(text) = self.text() {
            // An element within a text becomes markup again, and is removed later together with escaped markup.
            text.extend(["<", name, ">"]);
        } else if let Some((depth, item_namespace, item)) = &mut self.item {
            if depth.saturating_add(1) == self.depth && namespace == item_namespace {
                self.field = item.field(name, attributes).map(|field| (self.depth, field));
            }
        } else if matches!(name, "item" | "entry") {
            self.item = Some((self.depth, namespace.to_owned(), Item::default()));
        } else if name == "totalResults" && [OPENSEARCH, OPENSEARCH_RSS].contains(&namespace) && self.total.is_empty() {
            self.field = Some((self.depth, FeedField::Total));
        }
    }

    /// The text of the current field.
    fn text(&mut self) -> Option<&mut String> {
        let (_, field) = self.field?;
        if field == FeedField::Total {
            return Some(&mut self.total);
        }
        let (_, _, item) = self.item.as_mut()?;
        Some(match field {
            FeedField::Title => &mut item.title,
            FeedField::Link => &mut item.link,
            FeedField::Snippet => &mut item.snippet,
            FeedField::Content => &mut item.content,
            FeedField::Total => return None,
        })
    }
}

impl Item {
    /// The field of the text in the element `name`. Stores the URL of an Atom entry, which is an attribute.
    fn field(&mut self, name: &str, attributes: Attributes<'_>) -> Option<FeedField> {
        match name {
            "title" => Some(FeedField::Title),
            "description" | "summary" => Some(FeedField::Snippet),
            "content" => Some(FeedField::Content),
            "link" => match attributes.value("href") {
                Some(link) => {
                    let is_alternate = attributes.value("rel").is_none_or(|rel| rel == "alternate");
                    if is_alternate && self.link.is_empty() {
                        self.link = link;
                    }
                    None
                }
                None => self.link.is_empty().then_some(FeedField::Link),
            },
            _ => None,
        }
    }

    fn found(mut self) -> RawResult {
        let snippet = if self.snippet.is_empty() { mem::take(&mut self.content) } else { self.snippet };
        RawResult { title: self.title, url: self.link, snippet }
    }
}
