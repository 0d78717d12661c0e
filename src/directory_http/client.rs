//! The client of directories over HTTP: publishes a node's documents, and fetches the consensus and the volunteer list.
//!
//! Owns the HTTP client and the cache file of the consensus. `directory::follow` chooses the directory and the time of
//! each fetch. Driven by the node's calls or by [`DirectoryClient::follow`]. Governed by `proto/07-directory.md` §7.
//! Directories are not trusted: lengths and times are capped. A consensus is accepted only with the authorities'
//! signatures, and never replaced by an older one.

use std::{fs, io::Read as _, path::PathBuf, sync::Arc, time::Duration};

use rand::CryptoRng;
use reqwest::{Client, Response, StatusCode, Url, header};
use tokio::{sync::watch, time::sleep};

use super::tag::entity_tag;
use crate::{
    base::WallTime,
    directory::{
        AuthorityId, Counted, Document, DocumentError, MAX_COUNTED_LEN, PresenceError, Registration, RegistrationError,
        follow::{FetchRound, Followed, Schedule, accept},
    },
    http_exchange::client::{direct_client, innermost_cause, read_at_most},
    io::files::write_atomically,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(15);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
const POST_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum bytes of a refusal's text in an error.
const MAX_REASON_LEN: usize = 200;
/// Maximum bytes of the answer to a registration.
const MAX_REGISTRATION_LEN: usize = 1 << 10;

/// The directories to query, and the authorities whose signatures count.
#[derive(Clone, Debug)]
pub struct DirectoryConfig {
    /// Base URLs of directories, `http` or `https`, in the order of queries.
    pub directories: Vec<String>,
    /// The keys of the authorities. More than half of them must have signed a document.
    pub authorities: Vec<AuthorityId>,
    /// The cache file of the last consensus; `None` for no cache.
    pub cache: Option<PathBuf>,
}

/// The reason why a directory's answer is not used. The message contains no host except that of an invalid URL.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The configuration has no directory, or a URL that isn't `http` or `https`.
    #[error("\"{0}\" is not a directory's URL; write at least one, as in http://192.0.2.1:9360")]
    Url(String),
    /// The HTTP client can't be created.
    #[error("can't create the HTTP client: {0}")]
    Client(String),
    /// The directory is unreachable, or the transfer was cut off.
    #[error("the exchange with the directory failed: {0}")]
    Unreachable(String),
    /// The directory doesn't have this document yet.
    #[error("the directory has no such document yet")]
    NoneYet,
    /// The directory has no newer document, and the one in use is no longer fresh.
    #[error("the directory has no newer document, and the one in use is no longer fresh")]
    NothingNewer,
    /// The directory answered "not modified" to a request without an entity tag.
    #[error("the directory answered \"not modified\" to an unconditional request")]
    UnexpectedNotModified,
    /// The directory refused the request, with a reason.
    #[error("the directory refused ({status}): {reason}")]
    Refused {
        /// The HTTP status code.
        status: u16,
        /// The directory's text, truncated to 200 bytes, without control characters.
        reason: String,
    },
    /// The answer exceeds the maximum length of such a document.
    #[error("the directory's answer exceeds the maximum length of the document")]
    TooLong,
    /// The document is invalid.
    #[error("{name}: {error}")]
    Document {
        /// The kind of document.
        name: &'static str,
        /// The reason.
        error: DocumentError,
    },
    /// The answer to a registration is invalid.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The answer to a report is invalid.
    #[error(transparent)]
    Presence(#[from] PresenceError),
}

impl DirectoryError {
    /// Whether a fetch of a newer document than `in_use` can fail in this way without a fault.
    fn is_expected<B: Followed>(&self, in_use: Option<&Document<B>>, now: WallTime) -> bool {
        match self {
            Self::NoneYet => true,
            Self::NothingNewer => B::IS_OFTEN_EARLY && in_use.is_some_and(|in_use| !in_use.is_expired(now)),
            _ => false,
        }
    }
}

impl From<reqwest::Error> for DirectoryError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(innermost_cause(error))
    }
}

/// The client of one or more directories.
pub struct DirectoryClient {
    http: Client,
    directories: Vec<Directory>,
    /// The index of the first directory in the next round.
    preferred: usize,
    authorities: Vec<AuthorityId>,
    cache: Option<PathBuf>,
}

/// The base URL of one directory.
struct Directory(Url);

impl DirectoryClient {
    /// A client of the configured directories.
    ///
    /// # Errors
    /// When a directory's URL is invalid, there is no directory, or the HTTP client can't be created.
    pub fn new(config: DirectoryConfig) -> Result<Self, DirectoryError> {
        let directories: Vec<Directory> =
            config.directories.iter().map(|url| Directory::new(url)).collect::<Result<_, _>>()?;
        if directories.is_empty() {
            return Err(DirectoryError::Url(String::new()));
        }
        let http = direct_client(CONNECT_TIMEOUT, READ_TIMEOUT, REQUEST_TIMEOUT)
            .map_err(|error| DirectoryError::Client(error.to_string()))?;
        let (authorities, cache) = (config.authorities, config.cache);
        Ok(Self { http, directories, preferred: 0, authorities, cache })
    }

    /// The document in the cache file, if it is valid at `now`. `None` for a kind of document that is not stored.
    #[must_use]
    pub fn cached<B: Followed>(&self, now: WallTime) -> Option<Document<B>> {
        let file = fs::File::open(self.cache.as_ref().filter(|_| B::IS_STORED)?).ok()?;
        let max_len = u64::try_from(B::MAX_LEN).ok()?;
        let mut bytes = Vec::new();
        file.take(max_len.saturating_add(1)).read_to_end(&mut bytes).ok()?;
        self.accept(&bytes, now, None)
            .inspect_err(|error| tracing::info!(%error, "can't use the cached {}", B::NAME))
            .ok()
            .flatten()
    }

    /// Fetches a newer document than `in_use`, and writes a consensus to the cache file. Queries the directories until
    /// one succeeds, beginning with the last successful one. Returns `None` if that directory has no newer document, and
    /// `in_use` is still fresh. If `in_use` is no longer fresh, an answer without a newer document is a failure.
    ///
    /// # Errors
    /// When all directories failed: the error of the last one.
    pub async fn fetch<B: Followed>(
        &mut self,
        now: WallTime,
        in_use: Option<&Document<B>>,
    ) -> Result<Option<Document<B>>, DirectoryError> {
        let mut round = FetchRound::new(self.directories.len(), self.preferred).newer_than(now, in_use);
        loop {
            let outcome = self.fetch_from(round.index(), now, in_use).await;
            if let Some(outcome) = round.handle_outcome(outcome, DirectoryError::NothingNewer) {
                self.preferred = round.index();
                return outcome;
            }
        }
    }

    /// Sends a signed descriptor to every directory.
    ///
    /// # Errors
    /// When no directory accepts the descriptor: the error of the last one.
    pub async fn publish(&self, descriptor: &[u8]) -> Result<(), DirectoryError> {
        self.post_to_all("descriptor", descriptor).await.map(drop)
    }

    /// Sends a volunteer's signed descriptor to every directory, and returns the first answer. A repeated call returns
    /// the current gateways.
    ///
    /// # Errors
    /// When no directory accepts the descriptor: the error of the last one.
    pub async fn register(&self, volunteer: &[u8]) -> Result<Registration, DirectoryError> {
        let response = self.post_to_all("volunteer", volunteer).await?;
        let bytes = read_at_most(response, MAX_REGISTRATION_LEN).await?.ok_or(DirectoryError::TooLong)?;
        Ok(Registration::decode(&bytes)?)
    }

    /// Sends a gateway's signed report to every directory, and returns the first answer.
    ///
    /// # Errors
    /// When no directory accepts the report: the error of the last one.
    pub async fn report(&self, presence: &[u8]) -> Result<Counted, DirectoryError> {
        let response = self.post_to_all("presence", presence).await?;
        let bytes = read_at_most(response, MAX_COUNTED_LEN).await?.ok_or(DirectoryError::TooLong)?;
        Ok(Counted::decode(&bytes)?)
    }

    /// Posts `body` to `path` at every directory. Returns the first success, or else the last failure.
    async fn post_to_all(&self, path: &str, body: &[u8]) -> Result<Response, DirectoryError> {
        let mut outcome = Err(DirectoryError::NoneYet);
        for directory in &self.directories {
            let request = self.http.post(directory.url(path)).timeout(POST_TIMEOUT).body(body.to_vec());
            let sent = match request.send().await {
                Ok(response) if response.status().is_success() => Ok(response),
                Ok(response) => Err(refusal(response).await),
                Err(error) => Err(error.into()),
            };
            if outcome.is_err() {
                outcome = sent;
            }
        }
        outcome
    }

    /// Sends the cached document to `sender`, and fetches a newer one. Then fetches and sends a new document whenever
    /// the current one is no longer fresh. Ends when all receivers are dropped. While fetches fail, the current document
    /// stays, even if it expires.
    pub async fn follow<B: Followed, R: CryptoRng + Send>(
        mut self,
        sender: watch::Sender<Option<Arc<Document<B>>>>,
        clock: impl Fn() -> WallTime + Send,
        mut rng: R,
    ) {
        let mut in_use = self.cached(clock()).map(Arc::new);
        if in_use.is_some() {
            sender.send_replace(in_use.clone());
        }
        let mut schedule = Schedule::default();
        while !sender.is_closed() {
            if let Some(delay) = schedule.poll_wait(clock()) {
                tokio::select! {
                    () = sender.closed() => return,
                    () = sleep(delay) => continue,
                }
            }
            let fetched = self.fetch(clock(), in_use.as_deref()).await;
            let is_new = matches!(fetched, Ok(Some(_)));
            match fetched {
                Ok(Some(fetched)) => {
                    in_use = Some(Arc::new(fetched));
                    sender.send_replace(in_use.clone());
                }
                Ok(None) => {}
                Err(error) if error.is_expected(in_use.as_deref(), clock()) => {
                    tracing::debug!(%error, "no new {}", B::NAME);
                }
                Err(error) => tracing::warn!(%error, "no new {}", B::NAME),
            }
            schedule.handle_fetch(clock(), is_new, in_use.as_deref(), &mut rng);
        }
    }

    async fn fetch_from<B: Followed>(
        &self,
        index: usize,
        now: WallTime,
        in_use: Option<&Document<B>>,
    ) -> Result<Option<Document<B>>, DirectoryError> {
        let Some(directory) = self.directories.get(index) else { return Err(DirectoryError::NoneYet) };
        let mut request = self.http.get(directory.url(B::PATH));
        // The tag is computed, because a directory could choose another tag for each client.
        let tag = in_use.and_then(|in_use| entity_tag(in_use.digest()).ok());
        let is_conditional = tag.is_some();
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let response = request.send().await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if is_conditional => return Ok(None),
            StatusCode::NOT_MODIFIED => return Err(DirectoryError::UnexpectedNotModified),
            StatusCode::NOT_FOUND => return Err(DirectoryError::NoneYet),
            _ => return Err(refusal(response).await),
        }
        let bytes = read_at_most(response, B::MAX_LEN).await?.ok_or(DirectoryError::TooLong)?;
        let document = self.accept(&bytes, now, in_use)?;
        if B::IS_STORED && document.is_some() {
            self.write_cache(bytes).await;
        }
        Ok(document)
    }

    fn accept<B: Followed>(
        &self,
        bytes: &[u8],
        now: WallTime,
        in_use: Option<&Document<B>>,
    ) -> Result<Option<Document<B>>, DirectoryError> {
        let accepted = accept(bytes, &self.authorities, now, in_use);
        accepted.map_err(|error| DirectoryError::Document { name: B::NAME, error })
    }

    /// Writes the consensus to the cache file. A failure is logged, and the consensus is used nevertheless.
    async fn write_cache(&self, bytes: Vec<u8>) {
        let Some(path) = self.cache.clone() else { return };
        match tokio::task::spawn_blocking(move || write_atomically(&path, &bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "can't cache the consensus"),
            Err(error) => tracing::warn!(%error, "can't cache the consensus"),
        }
    }
}

impl Directory {
    fn new(text: &str) -> Result<Self, DirectoryError> {
        let invalid = || DirectoryError::Url(text.to_owned());
        let base = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https")).ok_or_else(invalid)?;
        Ok(Self(base))
    }

    /// The URL of `path` at this directory.
    fn url(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        // Each `http` and `https` URL has path segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1", path]);
        }
        url
    }
}

/// The error for a response with an unexpected status.
async fn refusal(mut response: Response) -> DirectoryError {
    let status = response.status().as_u16();
    let chunk = response.chunk().await.ok().flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(chunk.get(..MAX_REASON_LEN).unwrap_or(&chunk)).into_owned();
    let reason = text.chars().filter(|character| !character.is_control()).collect();
    DirectoryError::Refused { status, reason }
}

#[cfg(test)]
mod tests;
