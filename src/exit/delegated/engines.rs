//! The search engines of an exit: reads their descriptions from files and URLs, and refreshes those from URLs daily.
//!
//! A fetch that fails at the start is retried until it succeeds; then the engine is offered.
//!
//! Governed by `proto/09-delegated.md` §4. The operator chooses the descriptions, never a client. A description in a
//! file may name addresses of this machine or network, and so may a description whose engine has the host of the
//! description's URL. Any other description may not; otherwise its server could direct the exit to the local network.

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, header};
use tokio::{
    io::AsyncReadExt as _,
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use url::Url;

use crate::{
    delegated::{EngineName, MAX_ENGINES, SearchRequest},
    engine::{DescriptionError, Engine, MAX_DESCRIPTION_LEN},
    exit::outbound::{OutboundClient, OutboundError},
    http_exchange::{
        fields::USER_AGENT,
        http1::{ExchangeError, read_whole},
    },
};

/// Interval between two fetches of the description of an offered engine.
const REFRESH_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// First delay before a retry of a URL whose engine is not offered yet. Each failure doubles the delay.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Longest delay before a retry.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10 * 60);
/// Time limit for one description, and at the start for all descriptions together.
const DESCRIPTION_TIMEOUT: Duration = Duration::from_secs(20);

/// The reason why an engine can't be offered. The first field is the operator's entry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The text before the `=` is not an engine name.
    #[error("engine \"{0}\": the text before the \"=\" is not an engine name; names consist of a-z, 0-9 and -")]
    InvalidName(String),
    /// The file can't be read.
    #[error("engine \"{0}\": {1}")]
    File(String, std::io::Error),
    /// The URL is invalid.
    #[error("engine \"{0}\" is neither a file nor an http or https URL of an OpenSearch description")]
    InvalidUrl(String),
    /// The URL can't be fetched.
    #[error("engine \"{0}\": {1}")]
    Unreachable(String, FetchError),
    /// The description is invalid or unsupported.
    #[error("engine \"{0}\": {1}")]
    Description(String, DescriptionError),
    /// Two engines have the same name.
    #[error("two engines have the name \"{0}\"; write another name before one, as in other=FILE")]
    DuplicateName(EngineName),
    /// An engine for pages is configured as a URL.
    #[error("engine \"{0}\" is a URL; for pages, write a file with the description")]
    NoFile(String),
    /// There are too many engines.
    #[error("the number of engines exceeds {MAX_ENGINES}")]
    TooMany,
}

impl EngineError {
    /// The error for the log, without the operator's URL and the server's text.
    fn reason(&self) -> String {
        match self {
            Self::Unreachable(_, error) => error.to_string(),
            Self::DuplicateName(_) => "another engine has the same name".to_owned(),
            _ => "the document at its URL is not a valid description".to_owned(),
        }
    }
}

/// The reason why a description can't be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// There is no response.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// The response is truncated or too large.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The status is not 200.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// The time limit expired.
    #[error("the server did not answer in time")]
    TimedOut,
}

/// The senders of an exit's requests to engines, by the source of the engine's URL.
#[derive(Clone, Debug)]
pub(crate) struct Senders {
    /// For descriptions, and for engines whose host the operator configured, by a file or by the description's URL. May
    /// reach the local network.
    pub(crate) configured: OutboundClient,
    /// For engines at another host than the description's URL.
    pub(crate) public: OutboundClient,
}

/// An engine, and the sender of its requests.
#[derive(Debug)]
pub(crate) struct ExitEngine {
    pub(crate) engine: Engine,
    pub(crate) outbound: OutboundClient,
}

/// The source of a description.
#[derive(Debug)]
struct DescriptionSource {
    /// The operator's entry.
    entry: String,
    /// The name before the `=`, which replaces the description's name.
    name: Option<EngineName>,
    location: SourceLocation,
}

#[derive(Debug)]
enum SourceLocation {
    File(PathBuf),
    Url(Url),
}

/// An engine whose description comes from a URL.
#[derive(Debug)]
struct Remote {
    source: DescriptionSource,
    /// The position in the operator's list, from 1, used in the log.
    number: usize,
    /// The engine's name, set when the exit first offers the engine.
    offered: OnceLock<EngineName>,
}

/// All engines of an exit.
#[derive(Debug)]
pub(crate) struct Engines {
    senders: Senders,
    remote: Vec<Remote>,
    engines: RwLock<BTreeMap<EngineName, Arc<ExitEngine>>>,
    /// Notified when an engine is added.
    added: Notify,
}

impl Engines {
    /// Reads the descriptions that the operator configured. An entry is a file or URL, optionally preceded by a name
    /// and `=`. This name replaces the description's. [`Self::refresh_engines`] retries URLs that can't be fetched now.
    ///
    /// # Errors
    /// When a description can't be used, so that an exit with a configuration error doesn't start.
    pub(crate) async fn load<S: AsRef<str>>(entries: &[S], senders: Senders) -> Result<Self, EngineError> {
        if entries.len() > MAX_ENGINES {
            return Err(EngineError::TooMany);
        }
        let sources = entries.iter().map(|entry| DescriptionSource::parse(entry.as_ref()));
        let mut sources: Vec<_> = (1..).zip(sources.collect::<Result<Vec<_>, _>>()?).collect();
        // Files first, so that an error in a file is reported before any fetch.
        sources.sort_by_key(|(_, source)| source.is_remote());
        let (mut engines, mut remote, mut names) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let deadline = after(DESCRIPTION_TIMEOUT);
        for (number, source) in sources {
            let timed_out = |_| Err(EngineError::Unreachable(source.entry.clone(), FetchError::TimedOut));
            let describing = timeout_at(deadline, source.describe(source.name.clone(), &senders));
            let engine = match describing.await.unwrap_or_else(timed_out) {
                Err(error @ EngineError::Unreachable(..)) => {
                    tracing::warn!(number, reason = error.reason(), "can't offer an engine yet; retrying its URL");
                    None
                }
                described => Some(described?),
            };
            let name = engine.as_ref().map(|exit_engine| exit_engine.engine.name()).or(source.name.as_ref()).cloned();
            if let Some(name) = name.clone().filter(|name| !names.insert(name.clone())) {
                return Err(EngineError::DuplicateName(name));
            }
            let offered = name.zip(engine).map(|(name, engine)| {
                engines.insert(name.clone(), Arc::new(engine));
                name
            });
            if source.is_remote() {
                let offered = offered.map_or_else(OnceLock::new, OnceLock::from);
                remote.push(Remote { source, number, offered });
            }
        }
        Ok(Self { senders, remote, engines: RwLock::new(engines), added: Notify::new() })
    }

    /// The engines' names, ascending.
    pub(crate) fn names(&self) -> Vec<EngineName> {
        self.engines.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The engine named `name`, if the exit offers it.
    pub(crate) fn find(&self, name: &EngineName) -> Option<Arc<ExitEngine>> {
        self.engines.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Waits until an engine is added. At most one task may wait.
    pub(crate) async fn engine_added(&self) {
        self.added.notified().await;
    }

    /// Refreshes descriptions from URLs daily, and retries URLs of engines that are not offered yet sooner. After a
    /// failed refresh, the previous description stays. Never ends.
    pub(crate) async fn refresh_engines(&self) {
        let delay = |remote: &Remote, retry: Duration| match remote.offered.get() {
            Some(_) => REFRESH_INTERVAL,
            None => retry,
        };
        let scheduled = |remote| (after(delay(remote, FIRST_RETRY_DELAY)), FIRST_RETRY_DELAY, remote);
        let mut schedule: Vec<_> = self.remote.iter().map(scheduled).collect();
        loop {
            let Some((at, retry_delay, remote)) = schedule.iter_mut().min_by_key(|(at, ..)| *at) else {
                return core::future::pending().await;
            };
            sleep_until(*at).await;
            self.refresh(remote).await;
            *retry_delay = retry_delay.saturating_mul(2).min(MAX_RETRY_DELAY);
            *at = after(delay(remote, *retry_delay));
        }
    }

    #[cfg(test)]
    pub(super) async fn refresh_all(&self) {
        for remote in &self.remote {
            self.refresh(remote).await;
        }
    }

    async fn refresh(&self, remote: &Remote) {
        let number = remote.number;
        let name = remote.offered.get().or(remote.source.name.as_ref()).cloned();
        let described = remote.source.describe(name, &self.senders).await;
        let Err(error) = described.and_then(|engine| self.offer(remote, engine)) else { return };
        if remote.offered.get().is_some() {
            tracing::warn!(number, reason = error.reason(), "can't refresh an engine's description");
        } else {
            tracing::warn!(number, reason = error.reason(), "can't offer an engine yet; retrying its URL");
        }
    }

    /// Offers the engine of `remote`, or replaces its description.
    fn offer(&self, remote: &Remote, exit_engine: ExitEngine) -> Result<(), EngineError> {
        let name = exit_engine.engine.name().clone();
        let mut engines = self.engines.write().unwrap_or_else(PoisonError::into_inner);
        if remote.offered.get().is_none() && engines.contains_key(&name) {
            return Err(EngineError::DuplicateName(name));
        }
        engines.insert(name.clone(), Arc::new(exit_engine));
        drop(engines);
        if remote.offered.set(name).is_ok() {
            tracing::info!(number = remote.number, "received an engine's description; offering the engine");
            self.added.notify_one();
        }
        Ok(())
    }
}

/// Engines for volunteers' pages, each with its description: files only, in the syntax of [`Engines::load`].
///
/// # Errors
/// When pages can't use one of the engines.
pub(crate) async fn for_pages<S: AsRef<str>>(entries: &[S]) -> Result<Vec<(Engine, String)>, EngineError> {
    if entries.len() > MAX_ENGINES {
        return Err(EngineError::TooMany);
    }
    let mut engines: Vec<(Engine, String)> = Vec::new();
    for source in entries {
        let DescriptionSource { entry, name, location } = DescriptionSource::parse(source.as_ref())?;
        let SourceLocation::File(path) = location else { return Err(EngineError::NoFile(entry)) };
        let document = read_file(&path).await.map_err(|error| EngineError::File(entry.clone(), error))?;
        let engine =
            Engine::describe_for_page(&document, name).map_err(|error| EngineError::Description(entry, error))?;
        if engines.iter().any(|(other, _)| other.name() == engine.name()) {
            return Err(EngineError::DuplicateName(engine.name().clone()));
        }
        // A parsed description is UTF-8.
        engines.push((engine, String::from_utf8_lossy(&document).into_owned()));
    }
    Ok(engines)
}

fn after(wait: Duration) -> Instant {
    sleep(wait).deadline()
}

impl DescriptionSource {
    fn parse(entry: &str) -> Result<Self, EngineError> {
        // A URL may contain an equals sign too, but not before its scheme.
        let named = entry.split_once('=').filter(|(name, _)| !name.contains(['/', ':', '.', '?']));
        let (name, location) = match named {
            Some((name, location)) => {
                let name = EngineName::parse(name).ok_or_else(|| EngineError::InvalidName(entry.to_owned()))?;
                (Some(name), location)
            }
            None => (None, entry),
        };
        let location = if location.contains("://") {
            let url =
                Url::parse(location).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            SourceLocation::Url(url.ok_or_else(|| EngineError::InvalidUrl(entry.to_owned()))?)
        } else {
            SourceLocation::File(PathBuf::from(location))
        };
        Ok(Self { entry: entry.to_owned(), name, location })
    }

    const fn is_remote(&self) -> bool {
        matches!(self.location, SourceLocation::Url(_))
    }

    async fn describe(&self, name: Option<EngineName>, senders: &Senders) -> Result<ExitEngine, EngineError> {
        let entry = || self.entry.clone();
        let (document, origin) = match &self.location {
            SourceLocation::File(path) => {
                let read = read_file(path).await;
                (read.map_err(|error| EngineError::File(entry(), error))?, None)
            }
            SourceLocation::Url(url) => {
                let fetched = timeout(DESCRIPTION_TIMEOUT, fetch(url, &senders.configured))
                    .await
                    .unwrap_or(Err(FetchError::TimedOut));
                (fetched.map_err(|error| EngineError::Unreachable(entry(), error))?, Some(url))
            }
        };
        let engine =
            Engine::describe(&document, origin, name).map_err(|error| EngineError::Description(entry(), error))?;
        let configured = origin.is_none_or(|origin| has_host_of(&engine, origin));
        let outbound = if configured { senders.configured.clone() } else { senders.public.clone() };
        Ok(ExitEngine { engine, outbound })
    }
}

/// Whether `engine` has the same host as the URL of its description.
fn has_host_of(engine: &Engine, origin: &Url) -> bool {
    let probe = SearchRequest::new(engine.name().clone(), "x", 1, None).ok();
    let request = probe.and_then(|probe| engine.http_request(&probe));
    request.is_some_and(|request| request.url.host() == origin.host())
}

async fn read_file(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let cap = u64::try_from(MAX_DESCRIPTION_LEN).unwrap_or(u64::MAX);
    let mut document = Vec::new();
    // One byte more than allowed, so that the parser detects an oversized file.
    tokio::fs::File::open(path).await?.take(cap.saturating_add(1)).read_to_end(&mut document).await?;
    Ok(document)
}

async fn fetch(url: &Url, outbound: &OutboundClient) -> Result<Vec<u8>, FetchError> {
    let request = Request::get(url.as_str())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "application/opensearchdescription+xml,application/xml;q=0.9")
        .body(Empty::<Bytes>::new())
        .map_err(|_| OutboundError::Address)?;
    let response = outbound.send(None, request).await?;
    if response.status() != hyper::StatusCode::OK {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    Ok(read_whole(response.into_body(), MAX_DESCRIPTION_LEN).await?)
}
