//! Cleaning of web pages for the reader view, which keeps text, its structure, and URLs.
//!
//! `ammonia` parses the page as a browser does, and serialises a short list of elements and attributes. The result has
//! no pictures, scripts, styles, classes, forms or frames. Its URLs open in the reader view.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use ammonia::{Builder, UrlRelative};
use encoding_rs::{Encoding, UTF_8};
use scraper::{Html, Selector};
use url::Url;

use crate::{
    delegated::{clean_url, text},
    engine::bounded_html,
    page::layout::address,
};

/// Prefix of each `id`, which prevents collisions with each `id` of the reader view itself.
const ID_PREFIX: &str = "page-";
/// Maximum characters of a title.
const MAX_TITLE_CHARS: usize = 200;
/// Minimum bytes of text of a main part. A shorter main part is ignored.
const MIN_MAIN_LEN: usize = 250;
/// Maximum nodes of a page's tree.
const MAX_NODES: usize = 100_000;
/// Maximum bytes from the start of a page to the end of its encoding declaration.
const MAX_META_LEN: usize = 1024;

/// Elements that are kept.
const TAGS: &[&str] = &[
    "a",
    "abbr",
    "article",
    "b",
    "bdi",
    "bdo",
    "blockquote",
    "br",
    "caption",
    "cite",
    "code",
    "col",
    "colgroup",
    "dd",
    "del",
    "details",
    "dfn",
    "div",
    "dl",
    "dt",
    "em",
    "figcaption",
    "figure",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "i",
    "ins",
    "kbd",
    "li",
    "mark",
    "ol",
    "p",
    "pre",
    "q",
    "rp",
    "rt",
    "ruby",
    "s",
    "samp",
    "section",
    "small",
    "span",
    "strong",
    "sub",
    "summary",
    "sup",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "time",
    "tr",
    "u",
    "ul",
    "var",
    "wbr",
];

/// Elements that are removed with their content.
const REMOVED: &[&str] = &[
    "audio", "button", "canvas", "dialog", "embed", "head", "iframe", "math", "noscript", "object", "option", "script",
    "select", "style", "svg", "template", "textarea", "title", "video",
];

/// The title and the cleaned content of the page `html` at `url`. `None` if the page's tree exceeds its bounds.
pub(super) fn clean(html: &str, url: &Url) -> Option<(String, String)> {
    let PageParts { title, base, main } = page_parts(&bounded_html(html, MAX_NODES)?, url);
    let attributes = [
        ("a", vec!["href"]),
        ("ol", vec!["start"]),
        ("col", vec!["span"]),
        ("colgroup", vec!["span"]),
        ("td", vec!["colspan", "rowspan"]),
        ("th", vec!["colspan", "rowspan"]),
    ];
    let attributes: HashMap<_, HashSet<_>> =
        attributes.into_iter().map(|(tag, names)| (tag, names.into_iter().collect())).collect();
    let cleaned = Builder::empty()
        .tags(TAGS.iter().copied().collect())
        .clean_content_tags(REMOVED.iter().copied().collect())
        .tag_attributes(attributes)
        .generic_attributes(["id", "lang", "dir"].into_iter().collect())
        .url_schemes(["http", "https"].into_iter().collect())
        .url_relative(UrlRelative::PassThrough)
        .id_prefix(Some(ID_PREFIX))
        .attribute_filter(move |element, attribute, value| match (element, attribute) {
            ("a", "href") => rewritten_href(value, &base).map(Cow::Owned),
            _ => Some(Cow::Borrowed(value)),
        })
        // `main` was serialised from a bounded tree, so the second parse is bounded too.
        .clean(&main)
        .to_string();
    Some((title, cleaned))
}

/// The rewritten `href` of an `a` element: a fragment of this page, or the reader view of another page.
fn rewritten_href(value: &str, base: &Url) -> Option<String> {
    if let Some(fragment) = value.trim().strip_prefix('#') {
        return (!fragment.is_empty()).then(|| format!("#{ID_PREFIX}{fragment}"));
    }
    let mut target = clean_url::clean(value, Some(base))?;
    let fragment = target.fragment().map(|fragment| format!("#{ID_PREFIX}{fragment}")).unwrap_or_default();
    target.set_fragment(None);
    Some(address("/read", &[("url", target.as_str())]) + &fragment)
}

/// The parts of a page for the reader view.
struct PageParts {
    title: String,
    /// The base of relative URLs.
    base: Url,
    /// The main part, or else the whole body.
    main: String,
}

fn page_parts(page: &Html, url: &Url) -> PageParts {
    let first = |selector: &str| Selector::parse(selector).ok().and_then(|selector| page.select(&selector).next());
    let title = first("title").map(|title| title.text().collect::<String>()).unwrap_or_default();
    let base = first("base[href]").and_then(|base| url.join(base.attr("href")?).ok());
    let base = base.filter(|base| matches!(base.scheme(), "http" | "https")).unwrap_or_else(|| url.clone());
    let main = ["main", "[role=main]", "article"].into_iter().filter_map(first);
    let mut main = main.filter(|main| main.text().map(str::len).sum::<usize>() >= MIN_MAIN_LEN);
    let main = main.next().or_else(|| first("body")).map(|main| main.inner_html()).unwrap_or_default();
    PageParts { title: text::plain(&title, MAX_TITLE_CHARS), base, main }
}

/// The text of `body`. The encoding is that of the byte-order mark, the content type or the HTML declaration, in this
/// order of precedence, or else UTF-8.
pub(super) fn decode(content_type: &str, body: &[u8], html: bool) -> String {
    let by_type = label(content_type).and_then(|label| Encoding::for_label(label.as_bytes()));
    let head = String::from_utf8_lossy(body.get(..MAX_META_LEN).unwrap_or(body)).to_ascii_lowercase();
    let by_page = || if html { label(&head).and_then(|label| Encoding::for_label(label.as_bytes())) } else { None };
    let encoding = by_type.or_else(by_page).unwrap_or(UTF_8);
    // In `Encoding::decode`, a byte-order mark has precedence.
    encoding.decode(body).0.into_owned()
}

/// The label after the first `charset=`.
fn label(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("charset=")?;
    rest.trim_start_matches(['"', '\'', ' ']).split(['"', '\'', ' ', ';', '/', '>']).next()
}
