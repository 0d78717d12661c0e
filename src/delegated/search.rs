//! Search queries and answers (`proto/09-delegated.md` §3).
//!
//! Sender and receiver check queries and answers by the same code, because neither end trusts the other.

use core::fmt;

use super::{
    EngineName, clean_url,
    frame::{self, FrameError, REQUEST_BUCKETS, RESPONSE_BUCKETS},
    schema, text,
    url::Url,
};
use prost::Message as _;

/// Maximum bytes of the search terms.
pub const MAX_TERMS_LEN: usize = 2048;
/// The highest page number in a query.
pub const MAX_PAGE: u16 = 50;
/// Maximum results of one page.
pub const MAX_RESULTS: usize = 50;

const MAX_LANGUAGE_LEN: usize = 35;
/// Maximum characters of a title.
const MAX_TITLE_CHARS: usize = 200;
/// Maximum characters of a snippet.
const MAX_SNIPPET_CHARS: usize = 500;
/// Cap on results of a received answer, before cleaning. An empty result has two bytes, so the frame's length is not a
/// sufficient cap.
const MAX_ENCODED_RESULTS: usize = 64;

/// Why a query or an answer is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// The terms are empty.
    #[error("the query is empty")]
    NoTerms,
    /// The terms are too long.
    #[error("the query is longer than 2,048 bytes")]
    TermsTooLong,
    /// The terms contain control characters.
    #[error("the query has control characters")]
    ControlCharacters,
    /// The page is out of range.
    #[error("the page is not a number from 1 to 50")]
    Page,
    /// The language is not a valid tag.
    #[error("the language is not a tag such as \"en\" or \"pt-BR\"")]
    Language,
    /// The frame is invalid.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The message is not valid Protocol Buffers, or has invalid content.
    #[error("the message is malformed")]
    Malformed,
}

/// A search query as sent to an exit. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchRequest {
    engine: EngineName,
    terms: String,
    page: u16,
    language: Option<String>,
}

impl SearchRequest {
    /// A query to `engine` for `terms`. White space around the terms is removed.
    ///
    /// # Errors
    /// When the terms, the page or the language are out of bounds.
    pub fn new(engine: EngineName, terms: &str, page: u16, language: Option<&str>) -> Result<Self, SearchError> {
        let terms = terms.trim();
        if terms.is_empty() {
            return Err(SearchError::NoTerms);
        }
        if terms.len() > MAX_TERMS_LEN {
            return Err(SearchError::TermsTooLong);
        }
        if terms.chars().any(char::is_control) {
            return Err(SearchError::ControlCharacters);
        }
        if !(1..=MAX_PAGE).contains(&page) {
            return Err(SearchError::Page);
        }
        if language.is_some_and(|language| !is_language(language)) {
            return Err(SearchError::Language);
        }
        Ok(Self { engine, terms: terms.to_owned(), page, language: language.map(str::to_owned) })
    }

    /// The engine.
    #[must_use]
    pub const fn engine(&self) -> &EngineName {
        &self.engine
    }

    /// The search terms.
    #[must_use]
    pub fn terms(&self) -> &str {
        &self.terms
    }

    /// The page of results, from 1.
    #[must_use]
    pub const fn page(&self) -> u16 {
        self.page
    }

    /// The requested language, if any.
    #[must_use]
    pub fn language(&self) -> Option<&str> {
        self.language.as_deref()
    }

    /// Encodes the query as a frame.
    ///
    /// # Errors
    /// [`SearchError::Frame`]; not possible within the bounds of a query.
    pub fn encode(&self) -> Result<Vec<u8>, SearchError> {
        let message = schema::SearchRequest {
            engine: self.engine.as_str().to_owned(),
            terms: self.terms.clone(),
            page: self.page.into(),
            language: self.language.clone().unwrap_or_default(),
        };
        Ok(frame::encode(&message.encode_to_vec(), REQUEST_BUCKETS)?)
    }

    /// Decodes a complete frame.
    ///
    /// # Errors
    /// When the frame or the message is invalid, or the query is out of bounds.
    pub fn decode(framed: &[u8]) -> Result<Self, SearchError> {
        let message = frame::decode(framed, REQUEST_BUCKETS)?;
        let message = schema::SearchRequest::decode(message).map_err(|_| SearchError::Malformed)?;
        let engine = EngineName::parse(&message.engine).ok_or(SearchError::Malformed)?;
        let page = u16::try_from(message.page).map_err(|_| SearchError::Page)?;
        let language = (!message.language.is_empty()).then_some(message.language.as_str());
        Self::new(engine, &message.terms, page, language)
    }
}

impl fmt::Debug for SearchRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SearchRequest([redacted] of {})", self.engine)
    }
}

/// Whether `tag` has the form of a language tag (RFC 5646): subtags with hyphens between.
fn is_language(tag: &str) -> bool {
    let is_subtag =
        |subtag: &str| (1..=8).contains(&subtag.len()) && subtag.bytes().all(|byte| byte.is_ascii_alphanumeric());
    tag.len() <= MAX_LANGUAGE_LEN && tag.split('-').all(is_subtag)
}

/// One search result, as plain text. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchResult {
    /// One line, never empty, at most 200 characters.
    pub title: String,
    /// The URL of the page: http or https, cleaned ([`clean_url::clean`]).
    pub url: Url,
    /// One line, at most 500 characters.
    pub snippet: String,
}

impl SearchResult {
    /// A result with cleaned texts and URL. `None` if cleaning removes the URL. The host replaces an empty title.
    #[must_use]
    pub fn new(title: &str, url: &str, base: Option<&Url>, snippet: &str) -> Option<Self> {
        let url = clean_url::clean(url, base)?;
        let mut title = text::plain(title, MAX_TITLE_CHARS);
        if title.is_empty() {
            url.host_str()?.clone_into(&mut title);
        }
        Some(Self { title, url, snippet: text::plain(snippet, MAX_SNIPPET_CHARS) })
    }
}

impl fmt::Debug for SearchResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SearchResult([redacted])")
    }
}

/// How an engine blocks an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// By a CAPTCHA page.
    Captcha,
    /// By the status 403.
    Forbidden,
    /// By the status 429.
    TooManyRequests,
}

/// Why an answer has no results. The wire format has the same reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchRefusal {
    /// The exit doesn't offer the engine.
    #[error("the exit no longer offers this engine")]
    UnknownEngine,
    /// The query is invalid.
    #[error("the exit rejected the query as invalid")]
    BadRequest,
    /// The exit has reached a rate or concurrency limit.
    #[error("the exit has reached its rate limit")]
    RateLimited,
    /// The exit can't reach the engine, or can't verify its certificate.
    #[error("the exit could not reach the engine")]
    EngineUnreachable,
    /// The engine exceeded the time limit.
    #[error("the engine did not answer in time")]
    EngineTimedOut,
    /// The engine blocks the exit.
    #[error("the engine blocks this exit")]
    EngineBlocked(Block),
    /// The engine's answer was too long.
    #[error("the engine's answer is too long")]
    EngineTooLarge,
    /// The engine's answer was malformed.
    #[error("the engine's answer is malformed")]
    EngineMalformed,
    /// The engine redirected the exit to another host or too often, or redirected an exit in a page.
    #[error("the engine redirected the exit to another host or too often")]
    EngineRedirected,
    /// The engine reported a failure, or the received reason is unknown.
    #[error("the engine reported a failure")]
    EngineFailed,
}

impl SearchRefusal {
    const fn encode(self) -> schema::search_refusal::Reason {
        use schema::search_refusal::Reason;
        match self {
            Self::UnknownEngine => Reason::UnknownEngine,
            Self::BadRequest => Reason::BadRequest,
            Self::RateLimited => Reason::RateLimited,
            Self::EngineUnreachable => Reason::EngineUnreachable,
            Self::EngineTimedOut => Reason::EngineTimedOut,
            Self::EngineBlocked(Block::Captcha) => Reason::EngineCaptcha,
            Self::EngineBlocked(Block::Forbidden) => Reason::EngineForbidden,
            Self::EngineBlocked(Block::TooManyRequests) => Reason::EngineTooManyRequests,
            Self::EngineTooLarge => Reason::EngineTooLarge,
            Self::EngineMalformed => Reason::EngineMalformed,
            Self::EngineRedirected => Reason::EngineRedirected,
            Self::EngineFailed => Reason::EngineFailed,
        }
    }

    const fn decode(reason: schema::search_refusal::Reason) -> Self {
        use schema::search_refusal::Reason;
        match reason {
            Reason::UnknownEngine => Self::UnknownEngine,
            Reason::BadRequest => Self::BadRequest,
            Reason::RateLimited => Self::RateLimited,
            Reason::EngineUnreachable => Self::EngineUnreachable,
            Reason::EngineTimedOut => Self::EngineTimedOut,
            Reason::EngineCaptcha => Self::EngineBlocked(Block::Captcha),
            Reason::EngineForbidden => Self::EngineBlocked(Block::Forbidden),
            Reason::EngineTooManyRequests => Self::EngineBlocked(Block::TooManyRequests),
            Reason::EngineTooLarge => Self::EngineTooLarge,
            Reason::EngineMalformed => Self::EngineMalformed,
            Reason::EngineRedirected => Self::EngineRedirected,
            Reason::Unknown | Reason::EngineFailed => Self::EngineFailed,
        }
    }
}

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SearchAnswer {
    /// The engine's results.
    Results {
        /// The results in the engine's order, at most 50.
        results: Vec<SearchResult>,
        /// The total number of results, if the engine stated it.
        total: Option<u64>,
        /// Whether there is a further page.
        more: bool,
    },
    /// No results, for this reason.
    Refused(SearchRefusal),
}

impl SearchAnswer {
    /// Encodes the answer as a frame.
    ///
    /// # Errors
    /// [`SearchError::Frame`] when the results exceed the longest frame; not possible with results of
    /// [`SearchResult::new`].
    pub fn encode(&self) -> Result<Vec<u8>, SearchError> {
        let message = match self {
            Self::Results { results, total, more } => schema::SearchResponse {
                results: results.iter().take(MAX_RESULTS).map(encode_result).collect(),
                total: *total,
                more: *more,
                refusal: None,
            },
            Self::Refused(refusal) => schema::SearchResponse {
                refusal: Some(schema::SearchRefusal { reason: refusal.encode().into() }),
                ..schema::SearchResponse::default()
            },
        };
        Ok(frame::encode(&message.encode_to_vec(), RESPONSE_BUCKETS)?)
    }

    /// Decodes a complete frame. Results are cleaned again, because the sender isn't trusted. A result whose URL is
    /// removed by cleaning is dropped.
    ///
    /// # Errors
    /// When the frame or the message is invalid.
    pub fn decode(framed: &[u8]) -> Result<Self, SearchError> {
        let message = frame::decode(framed, RESPONSE_BUCKETS)?;
        let message = schema::SearchResponse::decode(message).map_err(|_| SearchError::Malformed)?;
        if message.results.len() > MAX_ENCODED_RESULTS {
            return Err(SearchError::Malformed);
        }
        if let Some(refusal) = message.refusal {
            return Ok(Self::Refused(SearchRefusal::decode(refusal.reason())));
        }
        let clean =
            |result: &schema::SearchResult| SearchResult::new(&result.title, &result.url, None, &result.snippet);
        let results = message.results.iter().filter_map(clean).take(MAX_RESULTS).collect();
        Ok(Self::Results { results, total: message.total, more: message.more })
    }
}

fn encode_result(result: &SearchResult) -> schema::SearchResult {
    schema::SearchResult {
        title: result.title.clone(),
        url: result.url.as_str().to_owned(),
        snippet: result.snippet.clone(),
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use proptest::prelude::*;

    use super::*;

    fn engine() -> EngineName {
        EngineName::parse("kiwix").unwrap()
    }

    fn request(terms: &str) -> Result<SearchRequest, SearchError> {
        SearchRequest::new(engine(), terms, 1, None)
    }

    #[test]
    fn a_query_out_of_bounds_is_refused_with_the_reason() {
        assert_eq!(request(" \t "), Err(SearchError::NoTerms));
        assert_eq!(request(&"q".repeat(2049)), Err(SearchError::TermsTooLong));
        assert_eq!(request("a\0b"), Err(SearchError::ControlCharacters));
        assert_eq!(request("a\u{85}b"), Err(SearchError::ControlCharacters));
        assert_eq!(SearchRequest::new(engine(), "q", 0, None), Err(SearchError::Page));
        assert_eq!(SearchRequest::new(engine(), "q", 51, None), Err(SearchError::Page));
        for bad in ["", "e n", "toolongsubtag", "en--us", &"a-".repeat(20)] {
            assert_eq!(SearchRequest::new(engine(), "q", 1, Some(bad)), Err(SearchError::Language), "{bad}");
        }
    }

    #[test]
    fn a_decoded_query_equals_the_encoded_one_in_any_script() {
        for terms in ["rust ownership", "所有権とは何か", "ما هي الملكية", "c++ & \"move\" #1 %41"] {
            let query = SearchRequest::new(engine(), terms, 3, Some("pt-BR")).unwrap();
            assert_eq!(SearchRequest::decode(&query.encode().unwrap()), Ok(query));
        }
    }

    #[test]
    fn queries_of_usual_length_have_frames_of_one_length() {
        let lengths: Vec<_> =
            [1, 20, 900].map(|length| request(&"q".repeat(length)).unwrap().encode().unwrap().len()).into();
        assert_eq!(lengths, [1024; 3]);
    }

    #[test]
    fn queries_and_results_print_redacted() {
        let result = SearchResult::new("secret", "https://secret.example/", None, "secret").unwrap();
        let answer = SearchAnswer::Results { results: vec![result], total: None, more: false };
        for printed in [format!("{:?}", request("secret").unwrap()), format!("{answer:?}")] {
            assert!(!printed.contains("secret"), "{printed}");
        }
    }

    #[test]
    fn a_decoded_refusal_equals_the_encoded_one() {
        for reason in 1..=12 {
            let reason = schema::search_refusal::Reason::try_from(reason).unwrap();
            let answer = SearchAnswer::Refused(SearchRefusal::decode(reason));
            let framed = answer.encode().unwrap();
            assert_eq!(framed.len(), RESPONSE_BUCKETS[0]);
            assert_eq!(SearchAnswer::decode(&framed), Ok(answer));
        }
    }

    #[test]
    fn results_of_a_hostile_exit_are_cleaned_or_dropped() {
        let hostile = |title: &str, url: &str| schema::SearchResult {
            title: title.to_owned(),
            url: url.to_owned(),
            snippet: "a\u{202e}b\0c".to_owned(),
        };
        let message = schema::SearchResponse {
            results: vec![
                hostile("x", "javascript:alert(1)"),
                hostile("", "https://a.example/?q=1&utm_source=exit"),
                hostile("x", "/relative"),
            ],
            ..schema::SearchResponse::default()
        };
        let framed = frame::encode(&message.encode_to_vec(), RESPONSE_BUCKETS).unwrap();
        let Ok(SearchAnswer::Results { results, .. }) = SearchAnswer::decode(&framed) else { panic!() };
        assert_eq!(results.len(), 1);
        assert_eq!(results[0].title, "a.example");
        assert_eq!(results[0].url.as_str(), "https://a.example/?q=1");
        assert!(!results[0].snippet.contains(['\u{202e}', '\0']));
    }

    #[test]
    fn an_answer_with_too_many_empty_results_is_refused() {
        let results = vec![schema::SearchResult::default(); 65];
        let message = schema::SearchResponse { results, ..schema::SearchResponse::default() };
        let framed = frame::encode(&message.encode_to_vec(), RESPONSE_BUCKETS).unwrap();
        assert_eq!(SearchAnswer::decode(&framed), Err(SearchError::Malformed));
    }

    proptest! {
        #[test]
        fn decoders_do_not_panic_on_any_input(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            for buckets in [REQUEST_BUCKETS, RESPONSE_BUCKETS] {
                let framed = frame::encode(&bytes, buckets).unwrap();
                let _ = SearchRequest::decode(&framed);
                let _ = SearchAnswer::decode(&framed);
            }
        }
    }
}
