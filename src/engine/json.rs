//! Results in JSON: what SearXNG answers, OpenSearch suggestions, and anything whose description says where things stand in it.

use serde_json::Value;
use url::Url;

use super::{Found, Listed, Unread, description::DescriptionError, template::encoded};
use crate::delegated::MAX_RESULTS;

/// Where in an answer the results stand, in JSON pointers (RFC 6901).
#[derive(Debug)]
pub(super) struct Mapping {
    /// The array of results.
    pub(super) results: String,
    /// The number of all results, if it is told.
    pub(super) total: Option<String>,
    /// Within a result, the title.
    pub(super) title: Pattern,
    /// Within a result, the link.
    pub(super) link: Pattern,
    /// Within a result, the snippet.
    pub(super) snippet: Option<Pattern>,
}

/// A pointer into a result, or a text with pointers in braces: `/url`, `https://engine.example/page/{/key}`.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Literal(String),
    /// A pointer. In a text with others the value is percent-encoded.
    Pointer(String),
}

impl Pattern {
    /// Takes `text` apart.
    pub(super) fn parse(text: &str) -> Result<Self, DescriptionError> {
        let invalid = || DescriptionError::Pattern(text.to_owned());
        if !text.contains(['{', '}']) {
            return pointer(text).map(|pointer| Self(vec![Part::Pointer(pointer)]));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((literal, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(invalid)?;
            if !literal.is_empty() || parts.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            parts.push(Part::Pointer(pointer(name)?));
            rest = after;
        }
        if rest.contains('}') {
            return Err(invalid());
        }
        parts.push(Part::Literal(rest.to_owned()));
        Ok(Self(parts))
    }

    fn text(&self, result: &Value) -> Option<String> {
        let alone = self.0.len() == 1;
        let part = |part: &Part| match part {
            Part::Literal(text) => Some(text.clone()),
            Part::Pointer(pointer) if alone => text_of(result.pointer(pointer)?),
            Part::Pointer(pointer) => text_of(result.pointer(pointer)?).map(|text| encoded(&text)),
        };
        self.0.iter().map(part).collect()
    }
}

/// A JSON pointer of the operator's.
pub(super) fn pointer(text: &str) -> Result<String, DescriptionError> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(DescriptionError::Pattern(text.to_owned())) }
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The results in `body`, where `mapping` says or in the form of SearXNG.
pub(super) fn read(body: &[u8], mapping: Option<&Mapping>, base: &Url) -> Result<Listed, Unread> {
    // Its recursion is bounded by the library.
    let body: Value = serde_json::from_slice(body).map_err(|_| Unread::Malformed)?;
    match mapping {
        Some(mapping) => mapped(&body, mapping, base),
        None => searxng(&body, base),
    }
}

fn mapped(body: &Value, mapping: &Mapping, base: &Url) -> Result<Listed, Unread> {
    let results = body.pointer(&mapping.results).and_then(Value::as_array).ok_or(Unread::Malformed)?;
    let results = results.iter().filter_map(|result| {
        let snippet = mapping.snippet.as_ref().and_then(|snippet| snippet.text(result)).unwrap_or_default();
        Found { title: mapping.title.text(result)?, link: mapping.link.text(result)?, snippet }.cleaned(base)
    });
    let total = mapping.total.as_ref().and_then(|total| body.pointer(total)).and_then(Value::as_u64);
    Ok(Listed { results: results.take(MAX_RESULTS).collect(), total })
}

fn searxng(body: &Value, base: &Url) -> Result<Listed, Unread> {
    let results = body.get("results").and_then(Value::as_array).ok_or(Unread::Malformed)?;
    let of = |result: &Value, key: &str| result.get(key).and_then(text_of);
    let results = results.iter().filter_map(|result| {
        let snippet = of(result, "content").unwrap_or_default();
        Found { title: of(result, "title")?, link: result.get("url")?.as_str()?.to_owned(), snippet }.cleaned(base)
    });
    // It says 0 when its own engines don't say.
    let total = body.get("number_of_results").and_then(Value::as_f64).filter(|total| *total >= 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is at least one, and a float saturates"
    )]
    let total = total.map(|total| total as u64);
    Ok(Listed { results: results.take(MAX_RESULTS).collect(), total })
}

/// The results in OpenSearch suggestions: arrays of the query, completions, descriptions and links, of which those with a
/// link are results.
pub(super) fn suggestions(body: &[u8], base: &Url) -> Result<Listed, Unread> {
    let body: Value = serde_json::from_slice(body).map_err(|_| Unread::Malformed)?;
    let column = |index: usize| body.get(index).and_then(Value::as_array).map(Vec::as_slice);
    let titles = column(1).ok_or(Unread::Malformed)?;
    let (snippets, links) = (column(2).unwrap_or_default(), column(3).unwrap_or_default());
    let results = titles.iter().zip(links).enumerate().filter_map(|(index, (title, link))| {
        let snippet = snippets.get(index).and_then(text_of).unwrap_or_default();
        Found { title: text_of(title)?, link: link.as_str()?.to_owned(), snippet }.cleaned(base)
    });
    Ok(Listed { results: results.take(MAX_RESULTS).collect(), total: None })
}
