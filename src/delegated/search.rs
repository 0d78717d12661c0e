//! Search queries and answers.
//!
//! The same code checks both where they are made and where they arrive: neither end trusts the other.

use core::fmt;

use super::{
    EngineName,
    frame::{self, FrameError, REQUEST_BUCKETS, RESPONSE_BUCKETS},
    link, schema, text,
    url::Url,
};
use prost::Message as _;

/// Maximum bytes of the search terms.
pub const MAX_TERMS_LEN: usize = 2048;
/// The last page of results.
pub const MAX_PAGE: u16 = 50;
/// Maximum results of one page.
pub const MAX_RESULTS: usize = 50;

const MAX_LANGUAGE_LEN: usize = 35;
const MAX_TITLE: usize = 200;
const MAX_SNIPPET: usize = 500;
/// An empty result is two bytes long. Answers with more results than this are not decoded.
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
    /// The language is no valid tag.
    #[error("the language is not a tag such as \"en\" or \"pt-BR\"")]
    Language,
    /// The frame is invalid.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The message doesn't decode, or has invalid content.
    #[error("not a message of this kind")]
    Malformed,
}

/// A search query, without any identity of its client. Prints redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchRequest {
    engine: EngineName,
    terms: String,
    page: u16,
    language: Option<String>,
}

impl SearchRequest {
    /// A query to `engine` for `terms`, trimmed.
    ///
    /// # Errors
    /// When a part exceeds the bounds that [`SearchError`] states.
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

    /// Encodes it for the exit.
    ///
    /// # Errors
    /// [`SearchError::Frame`], which the bounds of a query prevent.
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
    /// When the frame is invalid, or its query is out of bounds.
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
    /// Its URL: http or https, cleaned ([`link::clean`]).
    pub link: Url,
    /// One line, at most 500 characters.
    pub snippet: String,
}

impl SearchResult {
    /// A result with its texts and URL cleaned; `None` if the URL is unusable. The host replaces an empty title.
    #[must_use]
    pub fn new(title: &str, link: &str, base: Option<&Url>, snippet: &str) -> Option<Self> {
        let link = link::clean(link, base)?;
        let mut title = text::plain(title, MAX_TITLE);
        if title.is_empty() {
            link.host_str()?.clone_into(&mut title);
        }
        Some(Self { title, link, snippet: text::plain(snippet, MAX_SNIPPET) })
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
    /// It sent a CAPTCHA.
    Captcha,
    /// It answered 403.
    Forbidden,
    /// It answered 429.
    TooManyRequests,
}

/// Why there are no results, as coarse as on the wire.
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
    /// The engine can't be reached, or not securely.
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
    /// The engine redirected the exit to another host.
    #[error("the engine redirected the exit to another host")]
    EngineRedirected,
    /// The engine reported a failure, or the exit's reason is unknown here.
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
        /// In the engine's order, at most 50.
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
    /// Encodes it for the client.
    ///
    /// # Errors
    /// [`SearchError::Frame`] when the results exceed the longest frame, which results of [`SearchResult::new`]
    /// don't.
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

    /// Decodes a complete frame. Results are cleaned again, because the sender isn't trusted. Results with unusable
    /// URLs are dropped.
    ///
    /// # Errors
    /// When the frame or its answer is invalid.
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
            |result: &schema::SearchResult| SearchResult::new(&result.title, &result.link, None, &result.snippet);
        let results = message.results.iter().filter_map(clean).take(MAX_RESULTS).collect();
        Ok(Self::Results { results, total: message.total, more: message.more })
    }
}

fn encode_result(result: &SearchResult) -> schema::SearchResult {
    schema::SearchResult {
        title: result.title.clone(),
        link: result.link.as_str().to_owned(),
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
    fn a_query_out_of_bounds_is_none_and_says_which() {
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
    fn a_query_in_any_script_arrives_as_it_was_asked() {
        for terms in ["rust ownership", "所有権とは何か", "ما هي الملكية", "c++ & \"move\" #1 %41"] {
            let asked = SearchRequest::new(engine(), terms, 3, Some("pt-BR")).unwrap();
            assert_eq!(SearchRequest::decode(&asked.encode().unwrap()), Ok(asked));
        }
    }

    #[test]
    fn queries_of_usual_length_all_look_alike() {
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
    fn every_refusal_arrives_as_it_was_given() {
        for reason in 1..=12 {
            let reason = schema::search_refusal::Reason::try_from(reason).unwrap();
            let answer = SearchAnswer::Refused(SearchRefusal::decode(reason));
            let framed = answer.encode().unwrap();
            assert_eq!(framed.len(), RESPONSE_BUCKETS[0]);
            assert_eq!(SearchAnswer::decode(&framed), Ok(answer));
        }
    }

    #[test]
    fn what_a_lying_exit_sends_is_cleaned_or_left_out() {
        let hostile = |title: &str, link: &str| schema::SearchResult {
            title: title.to_owned(),
            link: link.to_owned(),
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
        assert_eq!(results[0].link.as_str(), "https://a.example/?q=1");
        assert!(!results[0].snippet.contains(['\u{202e}', '\0']));
    }

    #[test]
    fn an_answer_of_countless_empty_results_is_not_taken() {
        let results = vec![schema::SearchResult::default(); 65];
        let message = schema::SearchResponse { results, ..schema::SearchResponse::default() };
        let framed = frame::encode(&message.encode_to_vec(), RESPONSE_BUCKETS).unwrap();
        assert_eq!(SearchAnswer::decode(&framed), Err(SearchError::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_fall(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            for buckets in [REQUEST_BUCKETS, RESPONSE_BUCKETS] {
                let framed = frame::encode(&bytes, buckets).unwrap();
                let _ = SearchRequest::decode(&framed);
                let _ = SearchAnswer::decode(&framed);
            }
        }
    }
}
