//! Queries an engine from a page by `fetch`, and parses its answer.

use core::cell::Cell;

use wasm_bindgen::{JsCast as _, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    AbortController, Headers, ReferrerPolicy, Request, RequestCache, RequestCredentials, RequestInit, RequestMode,
    RequestRedirect, Response, ResponseType,
};

use crate::{
    browser::{clock, directory::read_at_most, js},
    delegated::{SearchAnswer, SearchRefusal, SearchRequest, service::ENGINE_TIMEOUT, url::Url},
    engine::{self, Engine},
};

/// Largest answer in bytes. Smaller than in native nodes, because parsing blocks the page's thread, which also
/// forwards cells.
const MAX_ANSWER_LEN: usize = 256 * 1024;

/// The reason for a missing answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EngineFailure {
    /// The browser returned nothing: no CORS, a network error, a TLS error, or the query was aborted.
    Unreadable,
    Refused(SearchRefusal),
}

impl EngineFailure {
    /// Whether the engine may have caused the failure, independent of the query.
    pub(super) const fn suspects_engine(self) -> bool {
        use SearchRefusal::{EngineBlocked, EngineFailed, EngineTimedOut};

        matches!(self, Self::Unreadable | Self::Refused(EngineBlocked(_) | EngineTimedOut | EngineFailed))
    }
}

impl From<EngineFailure> for SearchRefusal {
    fn from(miss: EngineFailure) -> Self {
        match miss {
            EngineFailure::Unreadable => Self::EngineUnreachable,
            EngineFailure::Refused(refusal) => refusal,
        }
    }
}

/// Adds `bytes` to the counter.
pub(in super::super) fn count(carried: &Cell<u64>, bytes: usize) {
    carried.set(carried.get().saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX)));
}

/// The answer of `engine` to `request`; its length is added to `carried`.
pub(super) async fn query(
    engine: &Engine,
    request: &SearchRequest,
    abort: &AbortController,
    carried: &Cell<u64>,
) -> Result<SearchAnswer, EngineFailure> {
    if engine.lacks_page(request.page()) {
        return Ok(SearchAnswer::Results { results: Vec::new(), total: None, more: false });
    }
    let outcome = clock::within(ENGINE_TIMEOUT, fetch(engine, request, abort, carried)).await;
    let (url, status, body) = outcome.unwrap_or_else(|| {
        abort.abort();
        Err(EngineFailure::Refused(SearchRefusal::EngineTimedOut))
    })?;
    match engine.read(request, &engine::Response { url: &url, status, body: &body }) {
        SearchAnswer::Refused(refusal) => Err(EngineFailure::Refused(refusal)),
        results => Ok(results),
    }
}

/// The engine's answer, and its URL.
async fn fetch(
    engine: &Engine,
    request: &SearchRequest,
    abort: &AbortController,
    carried: &Cell<u64>,
) -> Result<(Url, u16, Vec<u8>), EngineFailure> {
    let unreadable = |_| EngineFailure::Unreadable;
    let question = engine.question(request).ok_or(EngineFailure::Refused(SearchRefusal::BadRequest))?;
    let prepared = prepare(&question, abort).map_err(unreadable)?;
    let response = JsFuture::from(js::fetch(&prepared)).await.map_err(unreadable)?;
    let response: Response = response.dyn_into().map_err(unreadable)?;
    if response.type_() == ResponseType::Opaqueredirect {
        return Err(EngineFailure::Refused(SearchRefusal::EngineRedirected));
    }
    let body = read_at_most(&response, MAX_ANSWER_LEN).await.map_err(unreadable)?;
    count(carried, body.as_ref().map_or(MAX_ANSWER_LEN, Vec::len));
    let body = body.ok_or(EngineFailure::Refused(SearchRefusal::EngineTooLarge))?;
    Ok((question.url, response.status(), body))
}

fn prepare(question: &engine::Question, abort: &AbortController) -> Result<Request, JsValue> {
    let (options, headers) = (RequestInit::new(), Headers::new()?);
    // Both fields are CORS-safelisted, so the browser sends no preflight request.
    headers.set("accept", question.accept)?;
    headers.set("accept-language", &question.accept_language)?;
    options.set_headers(&headers);
    options.set_method("GET");
    options.set_mode(RequestMode::Cors);
    options.set_credentials(RequestCredentials::Omit);
    options.set_redirect(RequestRedirect::Manual);
    options.set_referrer_policy(ReferrerPolicy::NoReferrer);
    options.set_cache(RequestCache::NoStore);
    options.set_signal(Some(&abort.signal()));
    Request::new_with_str_and_init(question.url.as_str(), &options)
}
