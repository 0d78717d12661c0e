//! How an engine is asked from a page, and what it answers.

use core::{cell::Cell, time::Duration};

use wasm_bindgen::{JsCast as _, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    AbortController, Headers, ReferrerPolicy, Request, RequestCache, RequestCredentials, RequestInit, RequestMode,
    RequestRedirect, Response, ResponseType,
};

use crate::{
    browser::{clock, directory::read_at_most, js},
    delegated::{SearchAnswer, SearchRefusal, SearchRequest, url::Url},
    engine::{self, Engine},
};

/// For the engine, from the question to the end of its answer.
const LIMIT: Duration = Duration::from_secs(8);
/// Bytes of its answer. Less than natively: the page does nothing else while it reads one, and is to relay all the time.
const MOST: usize = 256 * 1024;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// The browser gives nothing of it: no CORS, no connection, no TLS, or the client has gone.
    Unreadable,
    Refused(SearchRefusal),
}

impl Miss {
    /// Whether it may be the engine's own, whatever it is asked.
    pub(super) const fn casts_doubt(self) -> bool {
        use SearchRefusal::{EngineBlocked, EngineFailed, EngineTimedOut};

        matches!(self, Self::Unreadable | Self::Refused(EngineBlocked(_) | EngineTimedOut | EngineFailed))
    }
}

impl From<Miss> for SearchRefusal {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Unreadable => Self::EngineUnreachable,
            Miss::Refused(refusal) => refusal,
        }
    }
}

/// Adds so many bytes.
pub(in super::super) fn count(carried: &Cell<u64>, bytes: usize) {
    carried.set(carried.get().saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX)));
}

/// What `engine` says to `request`; its length is added to `carried`.
pub(super) async fn ask(
    engine: &Engine,
    request: &SearchRequest,
    abort: &AbortController,
    carried: &Cell<u64>,
) -> Result<SearchAnswer, Miss> {
    if engine.lacks_page(request.page()) {
        return Ok(SearchAnswer::Results { results: Vec::new(), total: None, more: false });
    }
    let asked = clock::within(LIMIT, fetch(engine, request, abort, carried)).await;
    let (url, status, body) = asked.unwrap_or_else(|| {
        abort.abort();
        Err(Miss::Refused(SearchRefusal::EngineTimedOut))
    })?;
    match engine.read(request, &engine::Response { url: &url, status, body: &body }) {
        SearchAnswer::Refused(refusal) => Err(Miss::Refused(refusal)),
        results => Ok(results),
    }
}

/// What the engine answers, from where.
async fn fetch(
    engine: &Engine,
    request: &SearchRequest,
    abort: &AbortController,
    carried: &Cell<u64>,
) -> Result<(Url, u16, Vec<u8>), Miss> {
    let unreadable = |_| Miss::Unreadable;
    let question = engine.question(request).ok_or(Miss::Refused(SearchRefusal::BadRequest))?;
    let prepared = prepare(&question, abort).map_err(unreadable)?;
    let response = JsFuture::from(js::fetch(&prepared)).await.map_err(unreadable)?;
    let response: Response = response.dyn_into().map_err(unreadable)?;
    if response.type_() == ResponseType::Opaqueredirect {
        return Err(Miss::Refused(SearchRefusal::EngineRedirected));
    }
    let body = read_at_most(&response, MOST).await.map_err(unreadable)?;
    count(carried, body.as_ref().map_or(MOST, Vec::len));
    let body = body.ok_or(Miss::Refused(SearchRefusal::EngineTooLarge))?;
    Ok((question.url, response.status(), body))
}

fn prepare(question: &engine::Question, abort: &AbortController) -> Result<Request, JsValue> {
    let (options, headers) = (RequestInit::new(), Headers::new()?);
    // The two that any page may set without asking first.
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
