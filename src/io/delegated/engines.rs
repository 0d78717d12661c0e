//! The engines that an exit's operator has chosen: their descriptions, read at the start and, where they come from a URL,
//! again each day. A URL that gives nothing at the start is asked again until it does, and its engine offered from then on.
//!
//! Governed by `proto/09-delegated.md` §4. A description is the operator's choice and never a client's. Where it names
//! an address of this machine or network the operator is taken at his word; a description from elsewhere is not, or
//! whoever serves it could turn the exit against its own network.

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
    io::{
        exchange::{ExchangeError, read_whole},
        outbound::{Outbound, OutboundError},
    },
};

use super::fields::USER_AGENT;

/// From one reading of a URL to the next.
const REFRESH_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// The same as long as it has given no engine, at first and at most; doubled each time.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10 * 60));
/// For one description to arrive, and at the start for all of them.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why an engine can't be offered. Names what the operator wrote.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// What stands before the `=` is no name.
    #[error("engine \"{0}\": before the \"=\" stands the engine's name, of a-z, 0-9 and -")]
    Name(String),
    /// The file can't be read.
    #[error("engine \"{0}\": {1}")]
    File(String, std::io::Error),
    /// The URL is none.
    #[error("engine \"{0}\" is neither a file nor an http or https URL of an OpenSearch description")]
    Url(String),
    /// The URL can't be read.
    #[error("engine \"{0}\": {1}")]
    Unreachable(String, FetchError),
    /// It is no description that can be used.
    #[error("engine \"{0}\": {1}")]
    Description(String, DescriptionError),
    /// Two have the same name.
    #[error("two engines are called \"{0}\": write another name before one, as in other=FILE")]
    Twice(EngineName),
    /// One for pages comes from a URL.
    #[error("engine \"{0}\" is a URL: pages are given the description itself, so write a file")]
    NoFile(String),
    /// There are too many.
    #[error("more than {MAX_ENGINES} engines")]
    TooMany,
}

impl EngineError {
    /// The same for the log, without the address that the operator wrote or anything that came from there.
    fn reason(&self) -> String {
        match self {
            Self::Unreachable(_, error) => error.to_string(),
            Self::Twice(_) => "another engine has its name".to_owned(),
            _ => "what its URL gives is no description that can be used".to_owned(),
        }
    }
}

/// Why a description didn't come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// No response.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// Not all of it.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// Another status than 200.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// Too late.
    #[error("the server did not answer in time")]
    TimedOut,
}

/// Ways out of the exit.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    /// To what the operator has written, this network included.
    pub(crate) named: Outbound,
    /// To what others have written.
    pub(crate) public: Outbound,
}

/// An engine, and how it is reached.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) engine: Engine,
    pub(crate) outbound: Outbound,
}

/// Where a description comes from.
#[derive(Debug)]
struct Source {
    /// As the operator wrote it.
    written: String,
    name: Option<EngineName>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Url(Url),
}

/// An engine that comes from a URL.
#[derive(Debug)]
struct Remote {
    source: Source,
    /// Its place among those that the operator has written, from 1: what the log calls it.
    number: usize,
    /// The name it is offered under, once it is.
    offered: OnceLock<EngineName>,
}

/// All engines of an exit.
#[derive(Debug)]
pub(crate) struct Engines {
    ways: Ways,
    remote: Vec<Remote>,
    engines: RwLock<BTreeMap<EngineName, Arc<Reached>>>,
    /// One more is offered than before.
    grown: Notify,
}

impl Engines {
    /// Reads the descriptions that the operator has written down: files or URLs, with a name of their own before a `=` where
    /// the one they give themselves won't do. Those of URLs that can't be fetched now are left to [`Self::keep_fresh`].
    ///
    /// # Errors
    /// When one can't be used; an exit whose operator has made a mistake must not start as if there were none.
    pub(crate) async fn load<S: AsRef<str>>(written: &[S], ways: Ways) -> Result<Self, EngineError> {
        if written.len() > MAX_ENGINES {
            return Err(EngineError::TooMany);
        }
        let sources = written.iter().map(|written| Source::parse(written.as_ref()));
        let mut sources: Vec<_> = (1..).zip(sources.collect::<Result<Vec<_>, _>>()?).collect();
        // Files first, so that a mistake in one is told at once.
        sources.sort_by_key(|(_, source)| source.is_remote());
        let (mut engines, mut remote, mut taken) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let by = after(PATIENCE);
        for (number, source) in sources {
            let late = |_| Err(EngineError::Unreachable(source.written.clone(), FetchError::TimedOut));
            let reached = match timeout_at(by, source.describe(source.name.clone(), &ways)).await.unwrap_or_else(late) {
                Err(error @ EngineError::Unreachable(..)) => {
                    tracing::warn!(
                        number,
                        reason = error.reason(),
                        "an engine is not offered yet; its URL is tried again"
                    );
                    None
                }
                read => Some(read?),
            };
            let name = reached.as_ref().map(|reached| reached.engine.name()).or(source.name.as_ref()).cloned();
            if let Some(name) = name.clone().filter(|name| !taken.insert(name.clone())) {
                return Err(EngineError::Twice(name));
            }
            let offered = name.zip(reached).map(|(name, reached)| {
                engines.insert(name.clone(), Arc::new(reached));
                name
            });
            if source.is_remote() {
                let offered = offered.map_or_else(OnceLock::new, OnceLock::from);
                remote.push(Remote { source, number, offered });
            }
        }
        Ok(Self { ways, remote, engines: RwLock::new(engines), grown: Notify::new() })
    }

    /// Their names, ascending.
    pub(crate) fn names(&self) -> Vec<EngineName> {
        self.engines.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    pub(crate) fn find(&self, name: &EngineName) -> Option<Arc<Reached>> {
        self.engines.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Waits until there are more than when this was last waited for. For one that waits.
    pub(crate) async fn grown(&self) {
        self.grown.notified().await;
    }

    /// Reads those from URLs again each day, and those that have given nothing yet sooner, for ever. One that fails stays as
    /// it was.
    pub(crate) async fn keep_fresh(&self) {
        let wait = |remote: &Remote| if remote.offered.get().is_some() { REFRESH_EVERY } else { RETRY.0 };
        let mut due: Vec<_> = self.remote.iter().map(|remote| (after(wait(remote)), RETRY.0, remote)).collect();
        loop {
            let Some((at, pause, remote)) = due.iter_mut().min_by_key(|(at, ..)| *at) else {
                return core::future::pending().await;
            };
            sleep_until(*at).await;
            self.renew(remote).await;
            *pause = pause.saturating_mul(2).min(RETRY.1);
            *at = after(if remote.offered.get().is_some() { REFRESH_EVERY } else { *pause });
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
        let read = remote.source.describe(name, &self.ways).await;
        let Err(error) = read.and_then(|reached| self.take(remote, reached)) else { return };
        if remote.offered.get().is_some() {
            tracing::warn!(number, reason = error.reason(), "an engine's description is not renewed");
        } else {
            tracing::warn!(number, reason = error.reason(), "an engine is not offered yet; its URL is tried again");
        }
    }

    /// Offers what was read of `remote` from now on.
    fn take(&self, remote: &Remote, reached: Reached) -> Result<(), EngineError> {
        let name = reached.engine.name().clone();
        let mut engines = self.engines.write().unwrap_or_else(PoisonError::into_inner);
        if remote.offered.get().is_none() && engines.contains_key(&name) {
            return Err(EngineError::Twice(name));
        }
        engines.insert(name.clone(), Arc::new(reached));
        drop(engines);
        if remote.offered.set(name).is_ok() {
            tracing::info!(number = remote.number, "an engine's description has come; it is offered now");
            self.grown.notify_one();
        }
        Ok(())
    }
}

/// Engines that pages are to ask, each with its description: files alone, as [`Engines::load`] has them.
///
/// # Errors
/// When one can't be asked from a page.
pub(crate) async fn for_pages<S: AsRef<str>>(written: &[S]) -> Result<Vec<(Engine, String)>, EngineError> {
    if written.len() > MAX_ENGINES {
        return Err(EngineError::TooMany);
    }
    let mut engines: Vec<(Engine, String)> = Vec::new();
    for source in written {
        let Source { written, name, place } = Source::parse(source.as_ref())?;
        let Place::File(path) = place else { return Err(EngineError::NoFile(written)) };
        let document = read_file(&path).await.map_err(|error| EngineError::File(written.clone(), error))?;
        let engine =
            Engine::describe_for_page(&document, name).map_err(|error| EngineError::Description(written, error))?;
        if engines.iter().any(|(other, _)| other.name() == engine.name()) {
            return Err(EngineError::Twice(engine.name().clone()));
        }
        // What was described is UTF-8.
        engines.push((engine, String::from_utf8_lossy(&document).into_owned()));
    }
    Ok(engines)
}

fn after(wait: Duration) -> Instant {
    sleep(wait).deadline()
}

impl Source {
    fn parse(written: &str) -> Result<Self, EngineError> {
        // A URL may have an equals sign of its own, but not before its scheme.
        let named = written.split_once('=').filter(|(name, _)| !name.contains(['/', ':', '.', '?']));
        let (name, place) = match named {
            Some((name, place)) => {
                let name = EngineName::parse(name).ok_or_else(|| EngineError::Name(written.to_owned()))?;
                (Some(name), place)
            }
            None => (None, written),
        };
        let place = if place.contains("://") {
            let url = Url::parse(place).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            Place::Url(url.ok_or_else(|| EngineError::Url(written.to_owned()))?)
        } else {
            Place::File(PathBuf::from(place))
        };
        Ok(Self { written: written.to_owned(), name, place })
    }

    const fn is_remote(&self) -> bool {
        matches!(self.place, Place::Url(_))
    }

    async fn describe(&self, name: Option<EngineName>, ways: &Ways) -> Result<Reached, EngineError> {
        let written = || self.written.clone();
        let (document, origin) = match &self.place {
            Place::File(path) => {
                let read = read_file(path).await;
                (read.map_err(|error| EngineError::File(written(), error))?, None)
            }
            Place::Url(url) => {
                let fetched = timeout(PATIENCE, fetch(url, &ways.named)).await.unwrap_or(Err(FetchError::TimedOut));
                (fetched.map_err(|error| EngineError::Unreachable(written(), error))?, Some(url))
            }
        };
        let engine =
            Engine::describe(&document, origin, name).map_err(|error| EngineError::Description(written(), error))?;
        let named = origin.is_none_or(|origin| is_at(&engine, origin));
        let outbound = if named { ways.named.clone() } else { ways.public.clone() };
        Ok(Reached { engine, outbound })
    }
}

/// Whether `engine` is asked where its description came from.
fn is_at(engine: &Engine, origin: &Url) -> bool {
    let probe = SearchRequest::new(engine.name().clone(), "x", 1, None).ok();
    let asked = probe.and_then(|probe| engine.question(&probe));
    asked.is_some_and(|question| question.url.host() == origin.host())
}

async fn read_file(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let most = u64::try_from(MAX_DESCRIPTION_LEN).unwrap_or(u64::MAX);
    let mut document = Vec::new();
    // One byte more, so that what is too long is found to be.
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
