//! The search engines of an exit: reads their descriptions from files and URLs, and refreshes those from URLs daily.
//!
//! A URL that fails at the start is retried until it succeeds; its engine is offered from then on.
//!
//! Governed by `proto/09-delegated.md` §4. The operator chooses the descriptions, never a client. A description in a
//! file, or of an engine at the host of its URL, may name addresses of this machine or network. Any other may not;
//! otherwise its server could turn the exit against its local network.

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
    exit::outbound::{Outbound, OutboundError},
    http_exchange::{
        fields::USER_AGENT,
        http1::{ExchangeError, read_whole},
    },
};

/// Interval between two fetches of a URL.
const REFRESH_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// First and longest delay between retries of a URL without an engine yet; doubled each time.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10 * 60));
/// Time limit for one description, and at the start for all of them.
const DESCRIPTION_TIMEOUT: Duration = Duration::from_secs(20);

/// The reason why an engine can't be offered. Contains the operator's text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The text before the `=` is no engine name.
    #[error("engine \"{0}\": the text before the \"=\" is not an engine name; names consist of a-z, 0-9 and -")]
    Name(String),
    /// The file can't be read.
    #[error("engine \"{0}\": {1}")]
    File(String, std::io::Error),
    /// The URL is invalid.
    #[error("engine \"{0}\" is neither a file nor an http or https URL of an OpenSearch description")]
    Url(String),
    /// The URL can't be fetched.
    #[error("engine \"{0}\": {1}")]
    Unreachable(String, FetchError),
    /// The description is invalid or unsupported.
    #[error("engine \"{0}\": {1}")]
    Description(String, DescriptionError),
    /// Two engines have the same name.
    #[error("two engines have the name \"{0}\"; write another name before one, as in other=FILE")]
    Twice(EngineName),
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
            Self::Twice(_) => "another engine has the same name".to_owned(),
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

/// The senders of an exit's requests to engines, by the source of the URL.
#[derive(Clone, Debug)]
pub(crate) struct Senders {
    /// For URLs from the operator's configuration, local network included.
    pub(crate) configured: Outbound,
    /// For URLs from other hosts' descriptions.
    pub(crate) public: Outbound,
}

/// An engine, and the sender of its requests.
#[derive(Debug)]
pub(crate) struct ExitEngine {
    pub(crate) engine: Engine,
    pub(crate) outbound: Outbound,
}

/// The source of a description.
#[derive(Debug)]
struct DescriptionSource {
    /// The operator's text.
    written: String,
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
    /// The name under which the engine is offered, once it is.
    offered: OnceLock<EngineName>,
}

/// All engines of an exit.
#[derive(Debug)]
pub(crate) struct Engines {
    senders: Senders,
    remote: Vec<Remote>,
    engines: RwLock<BTreeMap<EngineName, Arc<ExitEngine>>>,
    /// Notified when an engine is added.
    grown: Notify,
}

impl Engines {
    /// Reads the descriptions that the operator configured: files or URLs, optionally with a name and `=` before,
    /// which replaces the description's name. [`Self::keep_fresh`] retries URLs that can't be fetched now.
    ///
    /// # Errors
    /// When a description can't be used, so that an exit with a configuration error doesn't start.
    pub(crate) async fn load<S: AsRef<str>>(written: &[S], senders: Senders) -> Result<Self, EngineError> {
        if written.len() > MAX_ENGINES {
            return Err(EngineError::TooMany);
        }
        let sources = written.iter().map(|written| DescriptionSource::parse(written.as_ref()));
        let mut sources: Vec<_> = (1..).zip(sources.collect::<Result<Vec<_>, _>>()?).collect();
        // Files first, so that an error in one is reported at once.
        sources.sort_by_key(|(_, source)| source.is_remote());
        let (mut engines, mut remote, mut names) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let by = after(DESCRIPTION_TIMEOUT);
        for (number, source) in sources {
            let late = |_| Err(EngineError::Unreachable(source.written.clone(), FetchError::TimedOut));
            let engine = match timeout_at(by, source.describe(source.name.clone(), &senders)).await.unwrap_or_else(late)
            {
                Err(error @ EngineError::Unreachable(..)) => {
                    tracing::warn!(number, reason = error.reason(), "can't offer an engine yet; retrying its URL");
                    None
                }
                read => Some(read?),
            };
            let name = engine.as_ref().map(|offered| offered.engine.name()).or(source.name.as_ref()).cloned();
            if let Some(name) = name.clone().filter(|name| !names.insert(name.clone())) {
                return Err(EngineError::Twice(name));
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
        Ok(Self { senders, remote, engines: RwLock::new(engines), grown: Notify::new() })
    }

    /// The engines' names, ascending.
    pub(crate) fn names(&self) -> Vec<EngineName> {
        self.engines.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    pub(crate) fn find(&self, name: &EngineName) -> Option<Arc<ExitEngine>> {
        self.engines.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Waits until an engine is added. At most one task may wait.
    pub(crate) async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Refreshes descriptions from URLs daily, and retries failed URLs sooner. After a failure, the previous
    /// description stays. Never ends.
    pub(crate) async fn keep_fresh(&self) {
        let wait = |remote: &Remote| if remote.offered.get().is_some() { REFRESH_INTERVAL } else { RETRY.0 };
        let mut due: Vec<_> = self.remote.iter().map(|remote| (after(wait(remote)), RETRY.0, remote)).collect();
        loop {
            let Some((at, pause, remote)) = due.iter_mut().min_by_key(|(at, ..)| *at) else {
                return core::future::pending().await;
            };
            sleep_until(*at).await;
            self.renew(remote).await;
            *pause = pause.saturating_mul(2).min(RETRY.1);
            *at = after(if remote.offered.get().is_some() { REFRESH_INTERVAL } else { *pause });
        }
    }

    #[cfg(test)]
    pub(super) async fn refresh(&self) {
        for remote in &self.remote {
            self.renew(remote).await;
        }
    }

    async fn renew(&self, remote: &Remote) {
        let number = remote.number;
        let name = remote.offered.get().or(remote.source.name.as_ref()).cloned();
        let read = remote.source.describe(name, &self.senders).await;
        let Err(error) = read.and_then(|engine| self.offer(remote, engine)) else { return };
        if remote.offered.get().is_some() {
            tracing::warn!(number, reason = error.reason(), "can't refresh an engine's description");
        } else {
            tracing::warn!(number, reason = error.reason(), "can't offer an engine yet; retrying its URL");
        }
    }

    /// Offers the engine of `remote` from now on, or its new description.
    fn offer(&self, remote: &Remote, offered: ExitEngine) -> Result<(), EngineError> {
        let name = offered.engine.name().clone();
        let mut engines = self.engines.write().unwrap_or_else(PoisonError::into_inner);
        if remote.offered.get().is_none() && engines.contains_key(&name) {
            return Err(EngineError::Twice(name));
        }
        engines.insert(name.clone(), Arc::new(offered));
        drop(engines);
        if remote.offered.set(name).is_ok() {
            tracing::info!(number = remote.number, "received an engine's description; offering the engine");
            self.grown.notify_one();
        }
        Ok(())
    }
}

/// Engines for volunteers' pages, each with its description: files only, in the syntax of [`Engines::load`].
///
/// # Errors
/// When pages can't use one of them.
pub(crate) async fn for_pages<S: AsRef<str>>(written: &[S]) -> Result<Vec<(Engine, String)>, EngineError> {
    if written.len() > MAX_ENGINES {
        return Err(EngineError::TooMany);
    }
    let mut engines: Vec<(Engine, String)> = Vec::new();
    for source in written {
        let DescriptionSource { written, name, location } = DescriptionSource::parse(source.as_ref())?;
        let SourceLocation::File(path) = location else { return Err(EngineError::NoFile(written)) };
        let document = read_file(&path).await.map_err(|error| EngineError::File(written.clone(), error))?;
        let engine =
            Engine::describe_for_page(&document, name).map_err(|error| EngineError::Description(written, error))?;
        if engines.iter().any(|(other, _)| other.name() == engine.name()) {
            return Err(EngineError::Twice(engine.name().clone()));
        }
        // A description that was parsed is UTF-8.
        engines.push((engine, String::from_utf8_lossy(&document).into_owned()));
    }
    Ok(engines)
}

fn after(wait: Duration) -> Instant {
    sleep(wait).deadline()
}

impl DescriptionSource {
    fn parse(written: &str) -> Result<Self, EngineError> {
        // A URL may contain an equals sign too, but not before its scheme.
        let named = written.split_once('=').filter(|(name, _)| !name.contains(['/', ':', '.', '?']));
        let (name, location) = match named {
            Some((name, location)) => {
                let name = EngineName::parse(name).ok_or_else(|| EngineError::Name(written.to_owned()))?;
                (Some(name), location)
            }
            None => (None, written),
        };
        let location = if location.contains("://") {
            let url =
                Url::parse(location).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            SourceLocation::Url(url.ok_or_else(|| EngineError::Url(written.to_owned()))?)
        } else {
            SourceLocation::File(PathBuf::from(location))
        };
        Ok(Self { written: written.to_owned(), name, location })
    }

    const fn is_remote(&self) -> bool {
        matches!(self.location, SourceLocation::Url(_))
    }

    async fn describe(&self, name: Option<EngineName>, senders: &Senders) -> Result<ExitEngine, EngineError> {
        let written = || self.written.clone();
        let (document, origin) = match &self.location {
            SourceLocation::File(path) => {
                let read = read_file(path).await;
                (read.map_err(|error| EngineError::File(written(), error))?, None)
            }
            SourceLocation::Url(url) => {
                let fetched = timeout(DESCRIPTION_TIMEOUT, fetch(url, &senders.configured))
                    .await
                    .unwrap_or(Err(FetchError::TimedOut));
                (fetched.map_err(|error| EngineError::Unreachable(written(), error))?, Some(url))
            }
        };
        let engine =
            Engine::describe(&document, origin, name).map_err(|error| EngineError::Description(written(), error))?;
        let configured = origin.is_none_or(|origin| is_at(&engine, origin));
        let outbound = if configured { senders.configured.clone() } else { senders.public.clone() };
        Ok(ExitEngine { engine, outbound })
    }
}

/// Whether `engine` has the same host as the URL of its description.
fn is_at(engine: &Engine, origin: &Url) -> bool {
    let probe = SearchRequest::new(engine.name().clone(), "x", 1, None).ok();
    let question = probe.and_then(|probe| engine.question(&probe));
    question.is_some_and(|question| question.url.host() == origin.host())
}

async fn read_file(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let most = u64::try_from(MAX_DESCRIPTION_LEN).unwrap_or(u64::MAX);
    let mut document = Vec::new();
    // One byte more than allowed, so that the parser detects an oversized file.
    tokio::fs::File::open(path).await?.take(most.saturating_add(1)).read_to_end(&mut document).await?;
    Ok(document)
}

async fn fetch(url: &Url, outbound: &Outbound) -> Result<Vec<u8>, FetchError> {
    let request = Request::get(url.as_str())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "application/opensearchdescription+xml,application/xml;q=0.9")
        .body(Empty::<Bytes>::new())
        .map_err(|_| OutboundError::Address)?;
    let response = outbound.send(request).await?;
    if response.status() != hyper::StatusCode::OK {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    Ok(read_whole(response.into_body(), MAX_DESCRIPTION_LEN).await?)
}
