//! The exit's search service: one query, one answer, each in a padded frame (`proto/09-delegated.md` §3).
//!
//! The exit sends the engine's request, with the same header fields for every client, over a new connection and
//! without cookies. Redirects are followed within the engine's host only. Engines are not trusted: time, length and
//! encoding of their answers are capped, and parsing runs on blocking threads. Queries are never logged.

#[cfg(test)]
mod tests;

use core::{num::NonZero, time::Duration};
use std::{io, sync::Arc};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, Response, StatusCode, header};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Semaphore,
    time::timeout,
};
use url::Url;

use crate::{
    delegated::{
        EngineName, SearchAnswer, SearchRefusal, SearchRequest,
        limits::RequestOwner,
        service::{ENGINE_TIMEOUT, PartialQuery, QUERY_TIMEOUT, Refused, STALL_TIMEOUT},
    },
    engine,
    exit::outbound::OutboundError,
    http_exchange::{
        fields::USER_AGENT,
        http1::{ExchangeError, StreamedBody, read_whole},
        refusal::Refusal,
    },
    wire::EndReason,
};

use super::engines::{Engines, ExitEngine};

/// Maximum redirects within the engine's host.
const MAX_REDIRECTS: usize = 3;

/// Caps on length and time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchCaps {
    /// Time limit for the query; [`QUERY_TIMEOUT`].
    pub(crate) query_timeout: Duration,
    /// Time limit for the engine; [`ENGINE_TIMEOUT`].
    pub(crate) engine_timeout: Duration,
    /// Time limit of sending the answer to the client; [`STALL_TIMEOUT`].
    pub(crate) stall_timeout: Duration,
    /// Maximum bytes of an engine's answer; 2 MiB.
    pub(crate) max_answer_len: usize,
    /// Maximum answers parsed concurrently; the number of processors, at least two. Others wait, at most for the
    /// engine's time limit.
    pub(crate) parsers: usize,
}

impl Default for SearchCaps {
    fn default() -> Self {
        Self {
            query_timeout: QUERY_TIMEOUT,
            engine_timeout: ENGINE_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
            max_answer_len: 2 * 1024 * 1024,
            parsers: std::thread::available_parallelism().map_or(2, NonZero::get).max(2),
        }
    }
}

/// The search service of an exit.
#[derive(Debug)]
pub(crate) struct ExitSearch {
    engines: Engines,
    caps: SearchCaps,
    /// Permits for parsing. The parsing of a hostile answer can take a multiple of the answer's length in memory, and one
    /// processor.
    parsers: Arc<Semaphore>,
}

impl ExitSearch {
    pub(crate) fn new(engines: Engines, caps: SearchCaps) -> Self {
        Self { engines, caps, parsers: Arc::new(Semaphore::new(caps.parsers)) }
    }

    /// The offered engines.
    pub(crate) fn engines(&self) -> Vec<EngineName> {
        self.engines.names()
    }

    /// Waits until an engine is added. At most one task may wait.
    pub(crate) async fn engine_added(&self) {
        self.engines.engine_added().await;
    }

    /// Refreshes the engines' descriptions. Never ends.
    pub(crate) async fn refresh_engines(&self) {
        self.engines.refresh_engines().await;
    }

    /// Answers the query that arrives over `stream`, if `admit` allows. The admission lasts from the complete query to
    /// the engine's answer, so that a client that sends or reads slowly holds no admission.
    ///
    /// # Errors
    /// The reason for the operator's counts. The client receives the corresponding [`SearchRefusal`], if its stream is
    /// open and the answer could be encoded.
    pub(crate) async fn serve<S, A>(
        &self,
        mut stream: S,
        owner: RequestOwner,
        admit: impl FnOnce() -> Result<A, Refusal> + Send,
    ) -> Result<(), Refusal>
    where
        A: Send,
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let query = match timeout(self.caps.query_timeout, read_query(&mut stream)).await {
            Ok(Ok(query)) => query,
            Ok(Err(_)) | Err(_) => return Err(Refusal::ClientGone),
        };
        let received = match query {
            Ok(query) => query.handle_finished(admit).ok_or(Refusal::ClientGone)?,
            // The query is admitted before it is refused, so that it counts towards the limits.
            Err(refused) => match admit() {
                Ok(_) => Err(refused),
                Err(cause) => Err(Refused { answer: SearchRefusal::RateLimited, cause }),
            },
        };
        let answered = match received {
            Ok((request, admitted)) => {
                let answered = self.answer(owner, request).await;
                drop(admitted);
                answered
            }
            Err(refused) => Err(refused),
        };
        let (answer, outcome) = match answered {
            Ok(answer) => (answer, Ok(())),
            Err(Refused { answer, cause }) => (SearchAnswer::Refused(answer), Err(cause)),
        };
        let framed = answer.encode().map_err(|_| Refusal::AnswerTooLarge)?;
        let writing = async {
            stream.write_all(&framed).await?;
            stream.shutdown().await
        };
        match timeout(self.caps.stall_timeout, writing).await {
            Ok(Ok(())) => outcome,
            Ok(Err(_)) | Err(_) => Err(Refusal::ClientGone),
        }
    }

    async fn answer(&self, owner: RequestOwner, request: SearchRequest) -> Result<SearchAnswer, Refused> {
        let unknown = Refused { answer: SearchRefusal::UnknownEngine, cause: Refusal::NotOffered };
        let offered = self.engines.find(request.engine()).ok_or(unknown)?;
        if offered.engine.lacks_page(request.page()) {
            return Ok(SearchAnswer::Results { results: Vec::new(), total: None, more: false });
        }
        let querying = query_engine(&offered, owner, &request, self.caps.max_answer_len);
        let querying = timeout(self.caps.engine_timeout, querying).await;
        let timed_out = Refused { answer: SearchRefusal::EngineTimedOut, cause: Refusal::ResponseTimedOut };
        let (url, status, body) = querying.unwrap_or(Err(timed_out))?;
        let busy = Refused { answer: SearchRefusal::RateLimited, cause: Refusal::Busy };
        let permit = timeout(self.caps.engine_timeout, Arc::clone(&self.parsers).acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok).ok_or(busy)?;
        let reading = tokio::task::spawn_blocking(move || {
            // Held until the parsing ends, also if the client has disconnected.
            let _permit = permit;
            let response = engine::Response { url: &url, status: status.as_u16(), body: &body };
            offered.engine.read(&request, &response)
        });
        let broken = Refused { answer: SearchRefusal::EngineMalformed, cause: Refusal::Misconfigured };
        match reading.await.map_err(|_| broken)? {
            SearchAnswer::Refused(answer) => Err(Refused { answer, cause: Refusal::NoResults }),
            results => Ok(results),
        }
    }
}

/// The complete query, or its refusal.
async fn read_query(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Result<PartialQuery, Refused>> {
    let (mut query, mut piece) = (PartialQuery::default(), [0; 1024]);
    loop {
        let read = reader.read(&mut piece).await?;
        if read == 0 {
            return Ok(Ok(query));
        }
        if let Err(refused) = query.handle_data(piece.get(..read).unwrap_or_default()) {
            return Ok(Err(refused));
        }
    }
}

/// Queries an engine. Returns the URL after redirects, the status and the body of the answer, at most `cap` bytes.
async fn query_engine(
    offered: &Arc<ExitEngine>,
    owner: RequestOwner,
    request: &SearchRequest,
    cap: usize,
) -> Result<(Url, StatusCode, Vec<u8>), Refused> {
    let bad = Refused { answer: SearchRefusal::BadRequest, cause: Refusal::Malformed };
    let engine::EngineRequest { url, accept, accept_language } = offered.engine.http_request(request).ok_or(bad)?;
    let mut at = url;
    for _ in 0..=MAX_REDIRECTS {
        let request = Request::get(at.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, accept)
            .header(header::ACCEPT_LANGUAGE, accept_language.as_str())
            .body(Empty::<Bytes>::new())
            .map_err(|_| bad)?;
        let response = offered.outbound.send(Some(owner), request).await?;
        if response.status().is_redirection() {
            at = redirect(&at, &response).ok_or(REDIRECTED)?;
            continue;
        }
        let encoded = response.headers().get(header::CONTENT_ENCODING);
        if encoded.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            // The request permits no encoding. A decompressed answer could have any length.
            return Err(Refused { answer: SearchRefusal::EngineMalformed, cause: Refusal::NotHttp });
        }
        let status = response.status();
        return Ok((at, status, read_whole(response.into_body(), cap).await?));
    }
    Err(REDIRECTED)
}

const REDIRECTED: Refused = Refused { answer: SearchRefusal::EngineRedirected, cause: Refusal::NoResults };

/// The target of a redirect from `at`, if the target has the same host, and either the same scheme and port, or `https`
/// instead of `http`, both at the default port.
fn redirect(at: &Url, response: &Response<StreamedBody>) -> Option<Url> {
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    let next = at.join(location).ok()?;
    let same = next.scheme() == at.scheme() && next.port_or_known_default() == at.port_or_known_default();
    let upgraded = at.scheme() == "http" && next.scheme() == "https" && at.port().is_none() && next.port().is_none();
    (next.host() == at.host() && (same || upgraded)).then_some(next)
}

impl From<OutboundError> for Refused {
    fn from(error: OutboundError) -> Self {
        let answer = match error {
            OutboundError::Connect(EndReason::TimedOut) | OutboundError::Exchange(ExchangeError::TimedOut) => {
                SearchRefusal::EngineTimedOut
            }
            OutboundError::Exchange(ExchangeError::TooLarge) => SearchRefusal::EngineTooLarge,
            OutboundError::Exchange(ExchangeError::NotHttp) => SearchRefusal::EngineMalformed,
            OutboundError::Address
            | OutboundError::Connect(_)
            | OutboundError::Tls(_)
            | OutboundError::Exchange(ExchangeError::Broken | ExchangeError::RequestBody) => {
                SearchRefusal::EngineUnreachable
            }
        };
        Self { answer, cause: error.into() }
    }
}

impl From<ExchangeError> for Refused {
    fn from(error: ExchangeError) -> Self {
        OutboundError::from(error).into()
    }
}
