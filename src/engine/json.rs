//! Parser of results in JSON: SearXNG's format, OpenSearch suggestions, and any format with a mapping in the
//! description.

use super::{
    AnswerError, AnswerResults, DescriptionError, RawResult, json_value::Json, parser::json::Tree, template::encoded,
};
use crate::delegated::{MAX_RESULTS, url::Url};

/// The locations of the results in an answer, as JSON pointers (RFC 6901).
#[derive(Debug)]
pub(super) struct Mapping {
    /// The array of results.
    pub(super) results: String,
    /// The total number of results.
    pub(super) total: Option<String>,
    /// The title within a result.
    pub(super) title: Pattern,
    /// The URL within a result.
    pub(super) link: Pattern,
    /// The snippet within a result.
    pub(super) snippet: Option<Pattern>,
}

/// A pointer into a result, such as `/url`, or a text with pointers in braces, such as
/// `https://engine.example/page/{/key}`.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Vec<PatternPart>);

#[derive(Clone, Debug)]
enum PatternPart {
    Literal(String),
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

    /// The pattern as a text with the values in `result`; `None` if a value is missing.
    fn text(&self, result: &impl Json) -> Option<String> {
        self.filled(result, |value| value)
    }

    /// The pattern as a URL with the values in `result`; `None` if a value is missing. The value of a single pointer is
    /// a URL. Values in a text are percent-encoded.
    fn url(&self, result: &impl Json) -> Option<String> {
        let is_pointer = self.0.len() == 1;
        self.filled(result, |value| if is_pointer { value } else { encoded(&value) })
    }

    fn filled(&self, result: &impl Json, value: impl Fn(String) -> String) -> Option<String> {
        let part = |part: &PatternPart| match part {
            PatternPart::Literal(text) => Some(text.clone()),
            PatternPart::Pointer(pointer) => result.at(pointer)?.scalar_text().map(&value),
        };
        self.0.iter().map(part).collect()
    }
}

/// Checks a JSON pointer of a description.
pub(super) fn pointer(text: &str) -> Result<String, DescriptionError> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(DescriptionError::Pattern(text.to_owned())) }
}

/// Parses the results in `body`, by `mapping` or in SearXNG's format.
pub(super) fn read(body: &[u8], mapping: Option<&Mapping>, base: &Url) -> Result<AnswerResults, AnswerError> {
    let body = Tree::parse(body).ok_or(AnswerError::Malformed)?;
    match mapping {
        Some(mapping) => mapped(&body.root(), mapping, base),
        None => searxng(&body.root(), base),
    }
}

fn mapped(body: &impl Json, mapping: &Mapping, base: &Url) -> Result<AnswerResults, AnswerError> {
    let results = body.at(&mapping.results).and_then(|results| results.items()).ok_or(AnswerError::Malformed)?;
    let results = results.iter().filter_map(|result| {
        let snippet = mapping.snippet.as_ref().and_then(|snippet| snippet.text(result)).unwrap_or_default();
        RawResult { title: mapping.title.text(result)?, url: mapping.link.url(result)?, snippet }.cleaned(base)
    });
    let total = mapping.total.as_ref().and_then(|total| body.at(total)).and_then(|total| total.number());
    Ok(AnswerResults { results: results.take(MAX_RESULTS).collect(), total: total.and_then(count) })
}

fn searxng(body: &impl Json, base: &Url) -> Result<AnswerResults, AnswerError> {
    let results = body.at("/results").and_then(|results| results.items()).ok_or(AnswerError::Malformed)?;
    let results = results.iter().filter_map(|result| {
        let snippet = result.at("/content").and_then(|text| text.scalar_text()).unwrap_or_default();
        RawResult { title: result.at("/title")?.scalar_text()?, url: result.at("/url")?.text()?, snippet }.cleaned(base)
    });
    // In SearXNG's format, 0 is an unknown total.
    let total = body.at("/number_of_results").and_then(|total| total.number()).and_then(count);
    Ok(AnswerResults { results: results.take(MAX_RESULTS).collect(), total: total.filter(|total| *total > 0) })
}

/// A number of results as an integer; `None` if negative.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; the conversion saturates")]
fn count(number: f64) -> Option<u64> {
    (number >= 0.0).then_some(number as u64)
}

/// Parses OpenSearch suggestions: the query, and arrays of completions, descriptions and URLs. Each completion with a
/// URL is a result.
pub(super) fn suggestions(body: &[u8], base: &Url) -> Result<AnswerResults, AnswerError> {
    let body = Tree::parse(body).ok_or(AnswerError::Malformed)?;
    suggested(&body.root(), base)
}

fn suggested(body: &impl Json, base: &Url) -> Result<AnswerResults, AnswerError> {
    let column = |pointer: &str| body.at(pointer).and_then(|column| column.items());
    let titles = column("/1").ok_or(AnswerError::Malformed)?;
    let (snippets, links) = (column("/2").unwrap_or_default(), column("/3").unwrap_or_default());
    let results = titles.iter().zip(&links).enumerate().filter_map(|(index, (title, link))| {
        let snippet = snippets.get(index).and_then(Json::scalar_text).unwrap_or_default();
        RawResult { title: title.scalar_text()?, url: link.text()?, snippet }.cleaned(base)
    });
    Ok(AnswerResults { results: results.take(MAX_RESULTS).collect(), total: None })
}
