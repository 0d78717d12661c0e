//! Adapter for a search engine: converts a query to an HTTP request, and the engine's answer to results.
//!
//! An operator's OpenSearch 1.1 description defines an [`Engine`]. The client supplies only terms, page number and
//! language. The description determines the rest of the request, so no other part identifies the client. Answers are
//! untrusted: each format has caps on length, depth and count, and results are plain text with cleaned URLs.
//!
//! `native` contains the parsers for native nodes. `browser` uses the browser's parsers, and doesn't support HTML
//! answers. This module has no I/O: `exit::delegated` sends the request, and `browser::volunteer` does so in a page.
//! Governed by `proto/09-delegated.md` §4.

mod blocked;
#[cfg(feature = "browser")]
#[cfg_attr(feature = "native", allow(dead_code, reason = "compiled here for the lints only"))]
mod browser;
mod description;
mod description_error;
mod feed;
#[cfg(feature = "native")]
mod html;
mod json;
mod json_value;
mod markup;
#[cfg(feature = "native")]
mod native;
mod template;
#[cfg(feature = "native")]
#[cfg(test)]
mod tests;
mod xml;

#[cfg(not(feature = "native"))]
use self::browser as parser;
#[cfg(feature = "native")]
use self::native as parser;

#[cfg(feature = "native")]
pub(crate) use self::html::bounded as bounded_html;
use self::template::{Template, Values};
pub use self::{
    description_error::{DescriptionError, MAX_DESCRIPTION_LEN},
    template::TemplateError,
    xml::XmlError,
};
use crate::delegated::{
    Block, EngineName, SearchAnswer, SearchRefusal, SearchRequest, SearchResult, clean_url, url::Url,
};

/// Number of results for each page in a request, if the template has a parameter for the number.
const RESULTS_PER_PAGE: u32 = 10;
/// Maximum characters of a title or snippet; [`SearchResult`] truncates further.
const MAX_TEXT_CHARS: usize = 500;

/// A search engine that an exit queries for clients.
#[derive(Debug)]
pub struct Engine {
    name: EngineName,
    title: String,
    template: Template,
    format: AnswerFormat,
    /// The index of the first result.
    index_offset: u32,
    /// The number of the first page.
    page_offset: u32,
}

/// The format of an engine's answers.
#[derive(Debug)]
enum AnswerFormat {
    /// RSS or Atom.
    Feed,
    /// JSON with this mapping; `None`: in SearXNG's format.
    Json(Option<json::Mapping>),
    /// OpenSearch suggestions.
    Suggestions,
    /// HTML.
    #[cfg(feature = "native")]
    Html(html::Selectors),
}

/// The request to an engine: a GET of this URL with these two header fields. The other fields are the same for all
/// clients.
#[derive(Debug)]
pub struct EngineRequest {
    /// The URL.
    pub url: Url,
    /// `Accept`.
    pub accept: &'static str,
    /// `Accept-Language`.
    pub accept_language: String,
}

/// An engine's answer after redirects.
#[derive(Debug)]
pub struct Response<'a> {
    /// The URL of the answer.
    pub url: &'a Url,
    /// The HTTP status code.
    pub status: u16,
    /// The content, without content encoding. The caller caps its length.
    pub body: &'a [u8],
}

/// Why an answer can't be parsed.
#[derive(Debug, PartialEq, Eq)]
enum AnswerError {
    Malformed,
}

/// A result as in the answer, with markup.
struct RawResult {
    title: String,
    url: String,
    snippet: String,
}

/// The results of an answer.
#[derive(Debug, Default)]
struct AnswerResults {
    results: Vec<SearchResult>,
    total: Option<u64>,
}

impl RawResult {
    /// The result as plain text with a cleaned URL. `None` if cleaning removes the URL.
    fn cleaned(&self, base: &Url) -> Option<SearchResult> {
        // The URL is checked first, because cleaning texts takes more time.
        clean_url::clean(&self.url, Some(base))?;
        let [title, snippet] = [&self.title, &self.snippet].map(|html| markup::stripped(html, MAX_TEXT_CHARS));
        SearchResult::new(&title, &self.url, Some(base), &snippet)
    }
}

impl Engine {
    /// The name that clients use.
    #[must_use]
    pub const fn name(&self) -> &EngineName {
        &self.name
    }

    /// The title in the description.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The origins of request URLs, such as `https://engine.example`. There are several origins if the language
    /// determines the host.
    #[must_use]
    pub fn origins(&self) -> Vec<String> {
        self.template.origins()
    }

    /// The HTTP request for the query `request`. `None` if the terms give no valid URL.
    #[must_use]
    pub fn http_request(&self, request: &SearchRequest) -> Option<EngineRequest> {
        let pages_before = u32::from(request.page().saturating_sub(1));
        let url = self.template.fill(&Values {
            terms: request.terms(),
            count: RESULTS_PER_PAGE,
            start_index: pages_before.saturating_mul(RESULTS_PER_PAGE).saturating_add(self.index_offset),
            start_page: pages_before.saturating_add(self.page_offset),
            language: request.language(),
        })?;
        let accept_language =
            request.language().map_or_else(|| "en,*;q=0.5".to_owned(), |language| format!("{language},*;q=0.5"));
        Some(EngineRequest { url, accept: self.format.accept(), accept_language })
    }

    /// Whether the engine can't return this page of results: `page` isn't the first, and the template has no parameter
    /// for the page.
    #[must_use]
    pub fn lacks_page(&self, page: u16) -> bool {
        page > 1 && !self.template.has_pages()
    }

    /// Parses `response` as the answer to `request`.
    #[must_use]
    pub fn read(&self, request: &SearchRequest, response: &Response<'_>) -> SearchAnswer {
        let Response { url, status, body } = response;
        if let Some(block) = blocked::by_status(*status, body) {
            return SearchAnswer::Refused(SearchRefusal::EngineBlocked(block));
        }
        if !(200..300).contains(status) {
            return SearchAnswer::Refused(SearchRefusal::EngineFailed);
        }
        let parsed = self.format.read(body, url);
        let is_empty = parsed.as_ref().map_or(true, |answer| answer.results.is_empty());
        if is_empty && self.may_be_captcha(parsed.is_err()) && blocked::is_captcha(body) {
            return SearchAnswer::Refused(SearchRefusal::EngineBlocked(Block::Captcha));
        }
        match parsed {
            Ok(AnswerResults { results, total }) => {
                let more = self.has_more(request.page(), results.len(), total);
                SearchAnswer::Results { results, total, more }
            }
            Err(AnswerError::Malformed) => SearchAnswer::Refused(SearchRefusal::EngineMalformed),
        }
    }

    /// Whether an answer without results may be a CAPTCHA page: HTML, or malformed in another format.
    const fn may_be_captcha(&self, is_malformed: bool) -> bool {
        is_malformed || self.format.is_html()
    }

    fn has_more(&self, page: u16, results: usize, total: Option<u64>) -> bool {
        let returned = u64::from(page).saturating_mul(u64::from(RESULTS_PER_PAGE));
        results > 0 && self.template.has_pages() && total.is_none_or(|total| total > returned)
    }
}

impl AnswerFormat {
    const fn is_html(&self) -> bool {
        match self {
            #[cfg(feature = "native")]
            Self::Html(_) => true,
            Self::Feed | Self::Json(_) | Self::Suggestions => false,
        }
    }

    const fn accept(&self) -> &'static str {
        match self {
            Self::Feed => "application/rss+xml,application/atom+xml,application/xml;q=0.9,text/xml;q=0.8",
            Self::Json(_) => "application/json",
            Self::Suggestions => "application/x-suggestions+json,application/json;q=0.9",
            #[cfg(feature = "native")]
            Self::Html(_) => "text/html,application/xhtml+xml;q=0.9",
        }
    }

    fn read(&self, body: &[u8], base: &Url) -> Result<AnswerResults, AnswerError> {
        match self {
            Self::Feed => feed::read(str::from_utf8(body).map_err(|_| AnswerError::Malformed)?, base),
            Self::Json(mapping) => json::read(body, mapping.as_ref(), base),
            Self::Suggestions => json::suggestions(body, base),
            #[cfg(feature = "native")]
            Self::Html(selectors) => html::read(&String::from_utf8_lossy(body), selectors, base),
        }
    }
}
