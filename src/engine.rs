//! Search engines, as an exit asks them: from their description and a client's words to a request, and from the answer to
//! results.
//!
//! An [`Engine`] is made from an OpenSearch 1.1 description of the operator's. The client gives terms, page and language and
//! nothing else; address and headers of the request follow from the description, so nothing of a person is in it. What the
//! engine answers is hostile until read: every form has caps on length, depth and count, results are plain text with cleaned links.
//! What takes XML and JSON apart is `native` in a process, and in a page `page`, which has the browser do it and leaves HTML out.
//! No I/O here; `io::delegated` drives it, and in a page `browser::volunteer`. Governed by `proto/09-delegated.md` §4.

mod blocked;
mod description;
mod feed;
#[cfg(feature = "native")]
mod html;
mod json;
mod markup;
#[cfg(feature = "native")]
mod native;
#[cfg(feature = "browser")]
#[cfg_attr(feature = "native", allow(dead_code, reason = "here for lints alone"))]
mod page;
mod template;
#[cfg(feature = "native")]
#[cfg(test)]
mod tests;
mod xml;

#[cfg(feature = "native")]
use self::native as parser;
#[cfg(not(feature = "native"))]
use self::page as parser;

#[cfg(feature = "native")]
pub(crate) use self::html::bounded as bounded_html;
use self::template::{Template, Values};
pub use self::{
    description::{DescriptionError, MAX_DESCRIPTION_LEN},
    template::TemplateError,
    xml::XmlError,
};
use crate::delegated::{Block, EngineName, SearchAnswer, SearchRefusal, SearchRequest, SearchResult, link, url::Url};

/// Results asked for, where an engine lets one say.
const RESULTS_PER_PAGE: u32 = 10;
/// Characters that are taken of a title or snippet; [`SearchResult`] cuts further.
const MOST_CHARS: usize = 500;

/// A search engine that an exit asks for clients.
#[derive(Debug)]
pub struct Engine {
    name: EngineName,
    title: String,
    template: Template,
    form: Form,
    index_offset: u32,
    page_offset: u32,
}

/// How an engine answers.
#[derive(Debug)]
enum Form {
    /// RSS or Atom.
    Feed,
    /// JSON, where the mapping says or as SearXNG does.
    Json(Option<json::Mapping>),
    /// OpenSearch suggestions.
    Suggestions,
    /// HTML.
    #[cfg(feature = "native")]
    Html(html::Selectors),
}

/// What an engine is asked: a GET of this address with these two headers, and with others that are the same for all.
#[derive(Debug)]
pub struct Question {
    /// The address.
    pub url: Url,
    /// `Accept`.
    pub accept: &'static str,
    /// `Accept-Language`.
    pub accept_language: String,
}

/// An engine's answer as it came, redirects followed.
#[derive(Debug)]
pub struct Response<'a> {
    /// Where it came from.
    pub url: &'a Url,
    /// HTTP status.
    pub status: u16,
    /// The body, within the caller's cap, not compressed.
    pub body: &'a [u8],
}

/// An answer is not what it should be.
#[derive(Debug, PartialEq, Eq)]
enum Unread {
    Malformed,
}

/// A result as it stood in the answer.
struct Found {
    title: String,
    link: String,
    snippet: String,
}

/// The results of an answer.
#[derive(Debug, Default)]
struct Listed {
    results: Vec<SearchResult>,
    total: Option<u64>,
}

impl Found {
    /// As a result: plain text, a cleaned link. `None` if the link is none.
    fn cleaned(&self, base: &Url) -> Option<SearchResult> {
        // Before the texts, which cost more.
        link::clean(&self.link, Some(base))?;
        let [title, snippet] = [&self.title, &self.snippet].map(|html| markup::stripped(html, MOST_CHARS));
        SearchResult::new(&title, &self.link, Some(base), &snippet)
    }
}

impl Engine {
    /// What clients call it.
    #[must_use]
    pub const fn name(&self) -> &EngineName {
        &self.name
    }

    /// What it calls itself.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The origins that it may be asked at, such as `https://engine.example`; more than one where the language chooses the host.
    #[must_use]
    pub fn origins(&self) -> Vec<String> {
        self.template.origins()
    }

    /// What to ask for `request`. `None` if it can't be asked: terms that no address of this engine can hold.
    #[must_use]
    pub fn question(&self, request: &SearchRequest) -> Option<Question> {
        let before = u32::from(request.page().saturating_sub(1));
        let url = self.template.fill(&Values {
            terms: request.terms(),
            count: RESULTS_PER_PAGE,
            start_index: before.saturating_mul(RESULTS_PER_PAGE).saturating_add(self.index_offset),
            start_page: before.saturating_add(self.page_offset),
            language: request.language(),
        })?;
        let accept_language =
            request.language().map_or_else(|| "en,*;q=0.5".to_owned(), |language| format!("{language},*;q=0.5"));
        Some(Question { url, accept: self.form.accept(), accept_language })
    }

    /// Whether the engine has no page of that number: all its results stand on the first.
    #[must_use]
    pub fn lacks_page(&self, page: u16) -> bool {
        page > 1 && !self.template.has_pages()
    }

    /// What `response` says in answer to `request`.
    #[must_use]
    pub fn read(&self, request: &SearchRequest, response: &Response<'_>) -> SearchAnswer {
        let Response { url, status, body } = response;
        if let Some(block) = blocked::by_status(*status, body) {
            return SearchAnswer::Refused(SearchRefusal::EngineBlocked(block));
        }
        if !(200..300).contains(status) {
            return SearchAnswer::Refused(SearchRefusal::EngineFailed);
        }
        let listed = self.form.read(body, url);
        let empty = listed.as_ref().map_or(true, |listed| listed.results.is_empty());
        if empty && self.may_ask(listed.is_err()) && blocked::asks(body) {
            return SearchAnswer::Refused(SearchRefusal::EngineBlocked(Block::Captcha));
        }
        match listed {
            Ok(Listed { results, total }) => {
                let more = self.has_more(request.page(), results.len(), total);
                SearchAnswer::Results { results, total, more }
            }
            Err(Unread::Malformed) => SearchAnswer::Refused(SearchRefusal::EngineMalformed),
        }
    }

    /// Whether an answer may be a page that asks for a proof of being human: one of HTML where something else was expected,
    /// or without results.
    const fn may_ask(&self, unread: bool) -> bool {
        unread || self.form.is_html()
    }

    fn has_more(&self, page: u16, results: usize, total: Option<u64>) -> bool {
        let shown = u64::from(page).saturating_mul(u64::from(RESULTS_PER_PAGE));
        results > 0 && self.template.has_pages() && total.is_none_or(|total| total > shown)
    }
}

impl Form {
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

    fn read(&self, body: &[u8], base: &Url) -> Result<Listed, Unread> {
        match self {
            Self::Feed => feed::read(str::from_utf8(body).map_err(|_| Unread::Malformed)?, base),
            Self::Json(mapping) => json::read(body, mapping.as_ref(), base),
            Self::Suggestions => json::suggestions(body, base),
            #[cfg(feature = "native")]
            Self::Html(selectors) => html::read(&String::from_utf8_lossy(body), selectors, base),
        }
    }
}
