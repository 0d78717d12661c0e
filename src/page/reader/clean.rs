//! Cleaning of web pages for the reader view: text, its structure, and URLs that open in the reader view.
//!
//! `ammonia` parses the page as a browser does and serialises it with a short list of elements and attributes. The
//! result loads, runs and styles nothing: no pictures, scripts, styles, classes, forms or frames.

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

/// Prefix of each `id`, against collisions with ours.
const PREFIX: &str = "page-";
const MAX_TITLE: usize = 200;
/// Minimum bytes of text of a main part; a shorter one is ignored.
const LEAST_MAIN: usize = 250;
/// Maximum elements and texts of a page.
const MAX_NODES: usize = 100_000;
/// The encoding declaration must be within this many bytes of the page's start.
const META_WITHIN: usize = 1024;

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

/// Elements removed with their content.
const EMPTIED: &[&str] = &[
    "audio", "button", "canvas", "dialog", "embed", "head", "iframe", "math", "noscript", "object", "option", "script",
    "select", "style", "svg", "template", "textarea", "title", "video",
];

/// The title and the cleaned content of the page `html` at `url`; `None` if the page exceeds the bounds.
pub(super) fn clean(html: &str, url: &Url) -> Option<(String, String)> {
    let Dissected { title, base, main } = dissect(&bounded_html(html, MAX_NODES)?, url);
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
        .clean_content_tags(EMPTIED.iter().copied().collect())
        .tag_attributes(attributes)
        .generic_attributes(["id", "lang", "dir"].into_iter().collect())
        .url_schemes(["http", "https"].into_iter().collect())
        .url_relative(UrlRelative::PassThrough)
        .id_prefix(Some(PREFIX))
        .attribute_filter(move |element, attribute, value| match (element, attribute) {
            ("a", "href") => lead(value, &base).map(Cow::Owned),
            _ => Some(Cow::Borrowed(value)),
        })
        // Serialised from a bounded tree, so that parsing it again is bounded too.
        .clean(&main)
        .to_string();
    Some((title, cleaned))
}

/// The rewritten `href` of an `a` element: an anchor in the page, or the reader view of another page.
fn lead(value: &str, base: &Url) -> Option<String> {
    if let Some(place) = value.trim().strip_prefix('#') {
        return (!place.is_empty()).then(|| format!("#{PREFIX}{place}"));
    }
    let mut target = clean_url::clean(value, Some(base))?;
    let place = target.fragment().map(|place| format!("#{PREFIX}{place}")).unwrap_or_default();
    target.set_fragment(None);
    Some(address("/read", &[("url", target.as_str())]) + &place)
}

/// The parts of a page that the reader view uses.
struct Dissected {
    title: String,
    /// The base of relative URLs.
    base: Url,
    /// The main part if the page has one, otherwise the whole body.
    main: String,
}

fn dissect(page: &Html, url: &Url) -> Dissected {
    let first = |selector: &str| Selector::parse(selector).ok().and_then(|selector| page.select(&selector).next());
    let title = first("title").map(|title| title.text().collect::<String>()).unwrap_or_default();
    let base = first("base[href]").and_then(|base| url.join(base.attr("href")?).ok());
    let base = base.filter(|base| matches!(base.scheme(), "http" | "https")).unwrap_or_else(|| url.clone());
    let main = ["main", "[role=main]", "article"].into_iter().filter_map(first);
    let mut main = main.filter(|main| main.text().map(str::len).sum::<usize>() >= LEAST_MAIN);
    let main = main.next().or_else(|| first("body")).map(|main| main.inner_html()).unwrap_or_default();
    Dissected { title: text::plain(&title, MAX_TITLE), base, main }
}

/// The text of `body`, decoded by its byte-order mark, content type or HTML declaration, in this order.
pub(super) fn decode(kind: &str, body: &[u8], html: bool) -> String {
    let told = label(kind).and_then(|label| Encoding::for_label(label.as_bytes()));
    let head = String::from_utf8_lossy(body.get(..META_WITHIN).unwrap_or(body)).to_ascii_lowercase();
    let within = || if html { label(&head).and_then(|label| Encoding::for_label(label.as_bytes())) } else { None };
    let encoding = told.or_else(within).unwrap_or(UTF_8);
    // `decode` gives a byte-order mark precedence.
    encoding.decode(body).0.into_owned()
}

/// The label after the first `charset=`.
fn label(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("charset=")?;
    rest.trim_start_matches(['"', '\'', ' ']).split(['"', '\'', ' ', ';', '/', '>']).next()
}
