//! A page's directory client: fetches and verifies the consensus and the volunteer list, stores the consensus, and
//! registers a volunteer.
//!
//! The counterpart of `directory_http::client`, over `fetch`. Directory servers are not trusted. No redirect is
//! followed and no cookie sent; lengths and times are capped. A consensus needs the authorities' signatures, and never
//! replaces a newer one. Specified in `proto/07-directory.md`, "HTTP".

use core::{cell::Cell, fmt, time::Duration};

use js_sys::{Reflect, Uint8Array};
use wasm_bindgen::{JsCast as _, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    AbortSignal, ReadableStreamDefaultReader, ReferrerPolicy, Request, RequestCache, RequestCredentials, RequestInit,
    RequestMode, RequestRedirect, Response,
};

use super::{
    clock,
    failure::{FailureKind, PageFailure},
    js,
    store::{Store, StoreEntry},
};
use crate::{
    delegated::text,
    directory::{
        AuthorityId, Consensus, Document, DocumentError, DocumentKind, NotCounted, Registration,
        follow::{FetchRound, Followed, accept},
    },
};

/// Largest answer to a registration, in bytes.
const MAX_REGISTRATION_LEN: usize = 1 << 10;
/// Largest error text of a directory, in bytes.
const MAX_REASON_LEN: usize = 4 << 10;
/// Maximum number of characters of an error text in a message.
const MAX_REASON_CHARS: usize = 200;
/// Time limit of one request, including its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The end of a message about a rejected document.
const REJECTED: &str = "so it is not used and nothing was sent to any relay";

/// The reason for a failed request to a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DocumentFetchError {
    /// The directory can't be reached, or the transfer broke off.
    Unreachable,
    /// The directory has no document yet.
    NoneYet,
    /// The document in use is no longer fresh, and the directory has no newer one.
    NothingNewer,
    /// The directory refused the request, with this status and reason.
    Refused(u16, String),
    /// The directory's answer exceeds the length limit.
    TooLong,
    /// The document is invalid.
    Document(DocumentError),
    /// The directory's answer to a volunteer is not a valid registration.
    NoRegistration,
}

impl fmt::Display for DocumentFetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("the network's directory can't be reached"),
            Self::NoneYet => f.write_str("the network is starting: its directory has not published the document yet"),
            Self::NothingNewer => {
                f.write_str("the network's directory has no newer document, and the document in use is no longer fresh")
            }
            Self::Refused(status, reason) => write!(f, "the network's directory refused ({status}): {reason}"),
            Self::TooLong => write!(f, "the directory's answer exceeds the maximum length of the document, {REJECTED}"),
            Self::Document(error) => write!(f, "{}, {REJECTED}", describe(error)),
            Self::NoRegistration => f.write_str("the directory's answer to the registration is invalid"),
        }
    }
}

/// The description of an invalid document, for the user.
const fn describe(error: &DocumentError) -> &'static str {
    match error {
        DocumentError::NotCounted(NotCounted::NoAuthorities | NotCounted::TooFewSignatures { .. }) => {
            "the directory's document is not signed by this network's authorities"
        }
        DocumentError::NotCounted(NotCounted::Conflicting) => {
            "the authorities have signed two documents with the same date"
        }
        DocumentError::NotCounted(NotCounted::Older) => "the directory's document is older than the one in use",
        DocumentError::NotCounted(NotCounted::Expired | NotCounted::NotYetValid) => {
            "the directory's document is not valid at the time of this device's clock"
        }
        DocumentError::Malformed(_) | DocumentError::Impossible(_) | DocumentError::Parameter(_) => {
            "the directory's answer is not a valid document"
        }
    }
}

/// The failure for a consensus that is not valid at the time of this device's clock.
pub(super) fn clock_failure() -> PageFailure {
    let message = "the consensus is not valid at the time of this device's clock: check the clock, its date and its \
                 time zone. If they are right, the directory's consensus is old";
    PageFailure::new(FailureKind::Clock, message)
}

impl From<DocumentFetchError> for PageFailure {
    fn from(error: DocumentFetchError) -> Self {
        match &error {
            DocumentFetchError::Document(DocumentError::NotCounted(NotCounted::Expired | NotCounted::NotYetValid)) => {
                clock_failure()
            }
            DocumentFetchError::Document(_) | DocumentFetchError::TooLong | DocumentFetchError::NothingNewer => {
                Self::new(FailureKind::Consensus, error.to_string())
            }
            _ => Self::new(FailureKind::Network, error.to_string()),
        }
    }
}

/// The directories and authorities of a page.
pub(super) struct Directories {
    /// Base URLs, without a slash at the end.
    bases: Vec<String>,
    /// The index of the directory that is tried first.
    preferred: Cell<usize>,
    authorities: Vec<AuthorityId>,
    store: Store,
}

impl Directories {
    /// The directories and authorities of the network's description: base URLs, and keys as text.
    pub(super) fn new(directories: &[String], authorities: &[String], store: Store) -> Result<Self, PageFailure> {
        let bad = |text: String| PageFailure::new(FailureKind::BadInput, text);
        let is_web = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
        let bases: Vec<_> = directories.iter().filter(is_web).map(|url| url.trim_end_matches('/').to_owned()).collect();
        if bases.is_empty() || bases.len() != directories.len() {
            return Err(bad(
                "the network's description has no directory, or a directory that is not an http or https URL".into(),
            ));
        }
        let parse = |text: &String| {
            text.parse().map_err(|_| bad("an authority in the network's description is not a valid key".into()))
        };
        let authorities: Vec<_> = authorities.iter().map(parse).collect::<Result<_, _>>()?;
        if authorities.is_empty() {
            return Err(bad("the network's description has no authority".into()));
        }
        Ok(Self { bases, preferred: Cell::new(0), authorities, store })
    }

    /// The stored consensus, if it is still valid.
    pub(super) async fn stored(&self) -> Option<Consensus> {
        let bytes = self.store.read(StoreEntry::Consensus).await?;
        self.accept(&bytes, None).ok().flatten()
    }

    /// A document newer than `in_use`, from the first directory that has one; `None` if `in_use` is still fresh and a
    /// directory has no newer document.
    pub(super) async fn fetch<B: Followed>(
        &self,
        in_use: Option<&Document<B>>,
    ) -> Result<Option<Document<B>>, DocumentFetchError> {
        let mut round = self.round().newer_than(clock::wall_time(), in_use);
        loop {
            let outcome = self.fetch_from(round.index(), in_use).await;
            if let Some(outcome) = round.handle_outcome(outcome, DocumentFetchError::NothingNewer) {
                self.preferred.set(round.index());
                return outcome;
            }
        }
    }

    async fn fetch_from<B: Followed>(
        &self,
        index: usize,
        in_use: Option<&Document<B>>,
    ) -> Result<Option<Document<B>>, DocumentFetchError> {
        let bytes = request("GET", &self.url(index, B::PATH), None, B::MAX_LEN).await?;
        let document = self.accept(&bytes, in_use).map_err(DocumentFetchError::Document)?;
        if B::IS_STORED && document.is_some() {
            self.store.write(StoreEntry::Consensus, &bytes);
        }
        Ok(document)
    }

    /// Registers a volunteer by its signed descriptor, at the first directory that accepts it.
    pub(super) async fn register(&self, descriptor: &[u8]) -> Result<Registration, DocumentFetchError> {
        let mut round = self.round();
        loop {
            let url = self.url(round.index(), "volunteer");
            let answer = match request("POST", &url, Some(descriptor), MAX_REGISTRATION_LEN).await {
                // The messages of these errors are about a document, and this answer is a registration.
                Err(DocumentFetchError::TooLong | DocumentFetchError::NoneYet) => {
                    Err(DocumentFetchError::NoRegistration)
                }
                answer => answer.map(Some),
            };
            if let Some(outcome) = round.handle_outcome(answer, DocumentFetchError::NoRegistration) {
                self.preferred.set(round.index());
                let answer = outcome?.unwrap_or_default();
                return Registration::decode(&answer).map_err(|_| DocumentFetchError::NoRegistration);
            }
        }
    }

    fn round(&self) -> FetchRound {
        FetchRound::new(self.bases.len(), self.preferred.get())
    }

    /// The URL of `path` at the directory with this index.
    fn url(&self, index: usize, path: &str) -> String {
        let base = self.bases.get(index).map(String::as_str).unwrap_or_default();
        format!("{base}/v1/{path}")
    }

    fn accept<B: DocumentKind>(
        &self,
        bytes: &[u8],
        in_use: Option<&Document<B>>,
    ) -> Result<Option<Document<B>>, DocumentError> {
        accept(bytes, &self.authorities, clock::wall_time(), in_use)
    }
}

/// Sends a request to a directory, and reads at most `max_len` bytes of the answer.
async fn request(method: &str, url: &str, body: Option<&[u8]>, max_len: usize) -> Result<Vec<u8>, DocumentFetchError> {
    let outcome = async {
        let response: Response = JsFuture::from(js::fetch(&prepare(method, url, body)?)).await?.dyn_into()?;
        Ok::<_, JsValue>(match response.status() {
            200 => read_at_most(&response, max_len).await?.ok_or(DocumentFetchError::TooLong),
            404 => Err(DocumentFetchError::NoneYet),
            status => {
                let reason = read_at_most(&response, MAX_REASON_LEN).await?.unwrap_or_default();
                Err(DocumentFetchError::Refused(
                    status,
                    text::plain(&String::from_utf8_lossy(&reason), MAX_REASON_CHARS),
                ))
            }
        })
    };
    outcome.await.unwrap_or(Err(DocumentFetchError::Unreachable))
}

fn prepare(method: &str, url: &str, body: Option<&[u8]>) -> Result<Request, JsValue> {
    let options = RequestInit::new();
    options.set_method(method);
    options.set_mode(RequestMode::Cors);
    options.set_credentials(RequestCredentials::Omit);
    options.set_redirect(RequestRedirect::Error);
    options.set_referrer_policy(ReferrerPolicy::NoReferrer);
    // A cached copy would be revalidated by its entity tag, by which a directory could recognise the browser.
    options.set_cache(RequestCache::NoStore);
    let limit = u32::try_from(REQUEST_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    options.set_signal(Some(&AbortSignal::timeout_with_u32(limit)));
    if let Some(body) = body {
        options.set_body(&Uint8Array::from(body));
    }
    Request::new_with_str_and_init(url, &options)
}

/// The body, or `None` if it is longer than `max_len` bytes.
pub(super) async fn read_at_most(response: &Response, max_len: usize) -> Result<Option<Vec<u8>>, JsValue> {
    let Some(stream) = response.body() else { return Ok(Some(Vec::new())) };
    let reader: ReadableStreamDefaultReader = stream.get_reader().dyn_into()?;
    let mut bytes = Vec::new();
    loop {
        let read = JsFuture::from(reader.read()).await?;
        if Reflect::get(&read, &"done".into())?.is_truthy() {
            return Ok(Some(bytes));
        }
        let piece: Uint8Array = Reflect::get(&read, &"value".into())?.dyn_into()?;
        if bytes.len().saturating_add(usize::try_from(piece.length()).unwrap_or(usize::MAX)) > max_len {
            // A failed cancellation has no effect on the result.
            let _ = reader.cancel();
            return Ok(None);
        }
        bytes.extend_from_slice(&piece.to_vec());
    }
}
