//! Parses results in JSON: SearXNG's format, OpenSearch suggestions, and any format with a mapping in the
//! description.

use super::{
    AnswerResults, DescriptionError, RawResult, Unread, json_value::Json, parser::json::Tree, template::encoded,
};
use crate::delegated::{MAX_RESULTS, url::Url};

/// The locations of the results in an answer, as JSON pointers (RFC 6901).
#[derive(Debug)]
pub(super) struct Mapping {
    /// The array of results.
    pub(super) results: String,
    /// The total number of results, if the answer has it.
    pub(super) total: Option<String>,
    /// The title, within a result.
    pub(super) title: Pattern,
    /// Within a result, the URL.
    pub(super) link: Pattern,
    /// Within a result, the snippet.
    pub(super) snippet: Option<Pattern>,
}

/// A pointer into a result, or a text with pointers in braces: `/url`, `https://engine.example/page/{/key}`.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Vec<PatternPart>);

#[derive(Clone, Debug)]
enum PatternPart {
    Literal(String),
    /// A pointer. In a text with other parts the value is percent-encoded.
    Pointer(String),
}

impl Pattern {
    /// Parses `text`.
    pub(super) fn parse(text: &str) -> Result<Self, DescriptionError> {
        let invalid = || DescriptionError::Pattern(text.to_owned());
        if !text.contains(['{', '}']) {
            return pointer(text).map(|pointer| Self(vec![PatternPart::Pointer(pointer)]));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((literal, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(invalid)?;
            if !literal.is_empty() || parts.is_empty() {
                parts.push(PatternPart::Literal(literal.to_owned()));
            }
            parts.push(PatternPart::Pointer(pointer(name)?));
            rest = after;
        }
        if rest.contains('}') {
            return Err(invalid());
        }
        parts.push(PatternPart::Literal(rest.to_owned()));
        Ok(Self(parts))
    }

    fn text(&self, result: &impl Json) -> Option<String> {
        let alone = self.0.len() == 1;
        let part = |part: &PatternPart| match part {
            PatternPart::Literal(text) => Some(text.clone()),
            PatternPart::Pointer(pointer) if alone => result.at(pointer)?.words(),
            PatternPart::Pointer(pointer) => result.at(pointer)?.words().map(|text| encoded(&text)),
        };
        self.0.iter().map(part).collect()
    }
}

/// Checks a JSON pointer of a description.
pub(super) fn pointer(text: &str) -> Result<String, DescriptionError> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(DescriptionError::Pattern(text.to_owned())) }
}

/// Parses the results in `body`, by `mapping` or in SearXNG's format.
pub(super) fn read(body: &[u8], mapping: Option<&Mapping>, base: &Url) -> Result<AnswerResults, Unread> {
    let body = Tree::parse(body).ok_or(Unread::Malformed)?;
    match mapping {
        Some(mapping) => mapped(&body.root(), mapping, base),
        None => searxng(&body.root(), base),
    }
}

fn mapped(body: &impl Json, mapping: &Mapping, base: &Url) -> Result<AnswerResults, Unread> {
    let results = body.at(&mapping.results).and_then(|results| results.items()).ok_or(Unread::Malformed)?;
    let results = results.iter().filter_map(|result| {
        let snippet = mapping.snippet.as_ref().and_then(|snippet| snippet.text(result)).unwrap_or_default();
        RawResult { title: mapping.title.text(result)?, link: mapping.link.text(result)?, snippet }.cleaned(base)
    });
    let total = mapping.total.as_ref().and_then(|total| body.at(total)).and_then(|total| total.number());
    Ok(AnswerResults { results: results.take(MAX_RESULTS).collect(), total: total.and_then(count) })
}

fn searxng(body: &impl Json, base: &Url) -> Result<AnswerResults, Unread> {
    let results = body.at("/results").and_then(|results| results.items()).ok_or(Unread::Malformed)?;
    let results = results.iter().filter_map(|result| {
        let snippet = result.at("/content").and_then(|text| text.words()).unwrap_or_default();
        RawResult { title: result.at("/title")?.words()?, link: result.at("/url")?.text()?, snippet }.cleaned(base)
    });
    // SearXNG returns 0 for an unknown total.
    let total = body.at("/number_of_results").and_then(|total| total.number()).and_then(count);
    Ok(AnswerResults { results: results.take(MAX_RESULTS).collect(), total: total.filter(|total| *total > 0) })
}

/// A number of results as an integer.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; the conversion saturates")]
fn count(number: f64) -> Option<u64> {
    (number >= 0.0).then_some(number as u64)
}

/// Parses OpenSearch suggestions: arrays of the query, completions, descriptions and URLs. Completions with a URL are
/// results.
pub(super) fn suggestions(body: &[u8], base: &Url) -> Result<AnswerResults, Unread> {
    let body = Tree::parse(body).ok_or(Unread::Malformed)?;
    columns(&body.root(), base)
}

fn columns(body: &impl Json, base: &Url) -> Result<AnswerResults, Unread> {
    let column = |pointer: &str| body.at(pointer).and_then(|column| column.items());
    let titles = column("/1").ok_or(Unread::Malformed)?;
    let (snippets, links) = (column("/2").unwrap_or_default(), column("/3").unwrap_or_default());
    let results = titles.iter().zip(&links).enumerate().filter_map(|(index, (title, link))| {
        let snippet = snippets.get(index).and_then(Json::words).unwrap_or_default();
        RawResult { title: title.words()?, link: link.text()?, snippet }.cleaned(base)
    });
    Ok(AnswerResults { results: results.take(MAX_RESULTS).collect(), total: None })
}
