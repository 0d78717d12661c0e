//! The reader view: fetches a web page through the overlay, ends TLS in this client, and shows the page as cleaned text.
//!
//! The page is untrusted. Its length, redirects and fetch time are capped. Blocking threads clean a few pages at a
//! time. The result loads nothing and contains no scripts ([`clean`]). Each page has a separate isolation.

mod clean;
mod view;

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{HeaderMap, Request, Response, StatusCode, header};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use url::Url;

use crate::{
    connector::{Connector, Isolation},
    delegated::text,
    requests::http::{RequestError, Requester, ResponseBody},
};

pub(super) use view::{read_failure, reader_view};

/// The title and the cleaned content of an HTML page.
#[cfg(any(test, fuzzing))]
pub(crate) fn cleaned_page(content_type: &str, body: &[u8], url: &Url) -> Option<(String, String)> {
    clean::clean(&clean::decode(content_type, body, true), url)
}

/// Maximum bytes of a page.
const MAX_PAGE_LEN: usize = 3 << 20;
/// Maximum redirects of one fetch.
const MAX_REDIRECTS: usize = 5;
/// Time limit of a fetch with its redirects.
const FETCH_TIMEOUT: Duration = Duration::from_secs(45);
/// Cap on pages cleaned concurrently; others wait.
const MAX_CLEANING: usize = 2;
/// Cap on pages whose bodies are in memory: while their fetch ends, while they wait to be cleaned, and while they are
/// cleaned.
const MAX_BODIES: usize = 8;
/// Time limit for a page to wait for one of [`MAX_BODIES`] places before its body is read.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// A cleaned page.
pub(super) struct CleanedPage {
    /// The URL after all redirects.
    url: Url,
    title: String,
    content: CleanedContent,
    /// Whether all requests used TLS, which ends in this client.
    verified: bool,
}

enum CleanedContent {
    /// Cleaned HTML.
    Html(String),
    Plain(String),
}

/// The reason why a page can't be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("the page is larger than {} MiB", MAX_PAGE_LEN >> 20)]
    TooLarge,
    #[error("the page did not arrive in time")]
    TooSlow,
    #[error("the site redirects too often, or to a URL that is not http or https")]
    Redirects,
    #[error("the site answered with status {0}")]
    Status(StatusCode),
    #[error("the page has a content encoding that the reader doesn't support")]
    Encoded,
    #[error("the URL is not a page of text but a file of type {0}")]
    ContentType(String),
    #[error("the page has too many or too deeply nested elements")]
    Unreadable,
    #[error("the reader is busy with other pages; try again in a moment")]
    Busy,
}

/// Fetches and cleans pages. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PageReader<C> {
    requester: Requester<C>,
    /// The places of pages that are being cleaned ([`MAX_CLEANING`]).
    cleaning: Arc<Semaphore>,
    /// The places of pages whose bodies are in memory ([`MAX_BODIES`]).
    bodies: Arc<Semaphore>,
    /// [`PLACE_TIMEOUT`], shorter in tests.
    place_timeout: Duration,
}

impl<C: Connector> PageReader<C> {
    pub(crate) fn new(requester: Requester<C>) -> Self {
        let [cleaning, bodies] = [MAX_CLEANING, MAX_BODIES].map(|max| Arc::new(Semaphore::new(max)));
        Self { requester, cleaning, bodies, place_timeout: PLACE_TIMEOUT }
    }

    /// Fetches the page at `url` and cleans it.
    pub(super) async fn read(&self, url: Url) -> Result<CleanedPage, ReadError> {
        let (fetched, place) = timeout(FETCH_TIMEOUT, self.fetch(url, self.requester.new_isolation()))
            .await
            .map_err(|_| ReadError::TooSlow)??;
        let permit = Arc::clone(&self.cleaning).acquire_owned().await.map_err(|_| ReadError::Unreadable)?;
        let cleaned = tokio::task::spawn_blocking(move || {
            // The permits are released at the end of the cleaning, even if the browser has disconnected.
            let (_permit, _place) = (permit, place);
            fetched.clean()
        });
        cleaned.await.ok().flatten().ok_or(ReadError::Unreadable)
    }

    /// Fetches a page, and acquires its place in memory.
    async fn fetch(
        &self,
        mut url: Url,
        isolation: Isolation,
    ) -> Result<(FetchedPage, OwnedSemaphorePermit), ReadError> {
        let mut verified = true;
        for _ in 0..=MAX_REDIRECTS {
            verified &= url.scheme() == "https";
            let response = self.get(&url, isolation).await?;
            match redirect(&url, &response) {
                Some(next) => url = next?,
                None => {
                    let place = timeout(self.place_timeout, Arc::clone(&self.bodies).acquire_owned()).await;
                    let place = place.ok().and_then(Result::ok).ok_or(ReadError::Busy)?;
                    return Ok((read_page(url, response, verified).await?, place));
                }
            }
        }
        Err(ReadError::Redirects)
    }

    async fn get(&self, url: &Url, isolation: Isolation) -> Result<Response<ResponseBody>, RequestError> {
        let request = Request::get(url.as_str())
            .header(header::ACCEPT, "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.5")
            .header(header::ACCEPT_LANGUAGE, "en,*;q=0.5")
            .body(Empty::<Bytes>::new())
            .map_err(|_| RequestError::Address)?;
        self.requester.over_stream(request, isolation).await
    }
}

/// The target of a redirect; `None` if the response is not a redirect.
fn redirect(url: &Url, response: &Response<ResponseBody>) -> Option<Result<Url, ReadError>> {
    const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
    if !REDIRECTS.contains(&response.status().as_u16()) {
        return None;
    }
    let next = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let mut next = next.and_then(|next| url.join(next).ok()).filter(|next| matches!(next.scheme(), "http" | "https"));
    if let Some(next) = &mut next {
        // A user name before the host could be mistaken for the host. Neither user name nor fragment is sent.
        next.set_fragment(None);
        let _ = (next.set_username(""), next.set_password(None));
    }
    Some(next.ok_or(ReadError::Redirects))
}

/// Reads the content of a response with a supported content type.
async fn read_page(url: Url, response: Response<ResponseBody>, verified: bool) -> Result<FetchedPage, ReadError> {
    let (head, body) = response.into_parts();
    if head.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ReadError::Encoded);
    }
    let content_type = content_type(&head.headers);
    let html = match content_type.split(';').next().unwrap_or_default().trim() {
        "text/html" | "application/xhtml+xml" | "" => true,
        content_type if content_type.starts_with("text/") || content_type == "application/json" => false,
        // For an error status, the status is the better reason than the content type.
        _ if !head.status.is_success() => return Err(ReadError::Status(head.status)),
        content_type => return Err(ReadError::ContentType(text::plain(content_type, 60))),
    };
    let body =
        Limited::new(body, MAX_PAGE_LEN).collect().await.map_err(|error| match error.downcast::<RequestError>() {
            Ok(error) => ReadError::Request(*error),
            Err(_) => ReadError::TooLarge,
        })?;
    let body = body.to_bytes();
    if body.is_empty() && !head.status.is_success() {
        return Err(ReadError::Status(head.status));
    }
    Ok(FetchedPage { url, content_type, html, body, verified })
}

/// The content type, in lower case.
fn content_type(fields: &HeaderMap) -> String {
    let content_type = fields.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.unwrap_or_default().to_ascii_lowercase()
}

/// A fetched page before its cleaning.
struct FetchedPage {
    url: Url,
    content_type: String,
    html: bool,
    body: Bytes,
    verified: bool,
}

impl FetchedPage {
    fn clean(self) -> Option<CleanedPage> {
        let text = clean::decode(&self.content_type, &self.body, self.html);
        let (title, content) = if self.html {
            let (title, html) = clean::clean(&text, &self.url)?;
            (title, CleanedContent::Html(html))
        } else {
            (String::new(), CleanedContent::Plain(text))
        };
        Some(CleanedPage { url: self.url, title, content, verified: self.verified })
    }
}

#[cfg(test)]
mod tests;
