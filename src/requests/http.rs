//! HTTP requests of a client: performed by an exit, or sent over a stream to the target, with TLS in this client.
//!
//! Each request has a separate stream. Bodies are forwarded in pieces. Exits and targets are not trusted: heads and
//! pauses are limited, and a truncated message is an error. An exit can read the requests that it performs, so
//! identifying fields are removed from these requests (`crate::http_exchange::fields`). Governed by
//! `proto/09-delegated.md` §6.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use core::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};
use std::sync::Arc;

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Frame, SizeHint},
    header::{self, HeaderValue},
};
use tokio::{
    io::{AsyncWriteExt as _, ReadHalf, WriteHalf},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    base::RelayId,
    client::StreamFailure,
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Hop, Isolation},
    delegated::Delegation,
    http_exchange::{
        binary::{MessageError, PipedBody, fill, read_response, request_head, write_content},
        body::{BodyError, OutgoingBody},
        fields::{USER_AGENT, fix_request, fix_response},
        http1::{ExchangeError, ExchangeLimits, StreamedBody, exchange, target_of},
        refusal::Refusal,
    },
    io::{
        stream::Stream,
        tls::{Tls, TlsError},
    },
    path::PathError,
};

/// Timeout for opening a stream, from the request to the head of the response, between two pieces of the response, and
/// for sending one piece.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const LIMITS: ExchangeLimits = ExchangeLimits {
    head_timeout: IDLE_TIMEOUT,
    idle_timeout: Some(IDLE_TIMEOUT),
    max_head_bytes: 64 * 1024,
    max_fields: 128,
};

/// The reason why a response is missing or truncated. The text contains no part of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The URL is not an absolute `http` or `https` URL, or has a user name.
    #[error("the URL is not an http or https URL of a host")]
    Address,
    /// No exit performs requests to this host.
    #[error("no exit of the network performs requests to this host")]
    NoExit,
    /// The stream could not be opened.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The exit refused the request.
    #[error("{0}")]
    Refused(Refusal),
    /// The TLS handshake with the target failed; the exit may have interfered.
    #[error("{0}")]
    Tls(TlsError),
    /// A timeout expired, such as [`IDLE_TIMEOUT`].
    #[error("no answer arrived in time")]
    TimedOut,
    /// The answer is not an HTTP response, or its head is too large.
    #[error("the answer is not HTTP, or its head is too large")]
    NotHttp,
    /// The answer is truncated.
    #[error("the answer is truncated")]
    Broken,
    /// The request's body failed.
    #[error("the request's body is truncated")]
    Body,
}

impl From<ExchangeError> for RequestError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::TimedOut => Self::TimedOut,
            ExchangeError::NotHttp | ExchangeError::TooLarge => Self::NotHttp,
            ExchangeError::Broken => Self::Broken,
            ExchangeError::RequestBody => Self::Body,
        }
    }
}

impl From<MessageError> for RequestError {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Broken => Self::Broken,
            MessageError::Malformed(_) | MessageError::TooLarge => Self::NotHttp,
            MessageError::Source => Self::Body,
        }
    }
}

/// The result of a request that an exit performed.
#[derive(Debug)]
pub(crate) struct PerformedRequest {
    /// The target's answer.
    pub(crate) response: Response<ResponseBody>,
    /// The circuit's path, from guard to exit.
    pub(crate) path: Vec<Hop>,
}

/// The body of a response, in pieces. A complete body ends with `None`, and a truncated one with an error.
#[derive(Debug)]
pub struct ResponseBody(BodySource);

#[derive(Debug)]
enum BodySource {
    /// From an exit that performs the request. A task sends the request, because a target may answer before it has
    /// received the whole request.
    Exit { body: PipedBody, _sending: AbortOnDropHandle<Result<(), MessageError>>, _receiving: AbortOnDropHandle<()> },
    /// From the target, over a stream.
    Target(Box<StreamedBody>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        match &mut self.0 {
            BodySource::Exit { body, .. } => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|error| RequestError::from(error.0)))),
            BodySource::Target(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(RequestError::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodySource::Exit { body, .. } => body.is_end_stream(),
            BodySource::Target(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodySource::Exit { body, .. } => body.size_hint(),
            BodySource::Target(body) => body.size_hint(),
        }
    }
}

/// Sends requests for a client. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Requester<C> {
    connector: C,
    tls: Tls,
    /// The number of isolations that were assigned.
    isolation_count: Arc<AtomicU64>,
}

impl<C: Connector> Requester<C> {
    pub(crate) fn new(connector: C, tls: Tls) -> Self {
        Self { connector, tls, isolation_count: Arc::default() }
    }

    /// An isolation that no other request has.
    pub(crate) fn new_isolation(&self) -> Isolation {
        let number = self.isolation_count.fetch_add(1, Ordering::Relaxed);
        Isolation::new("request", &number.to_be_bytes(), &[])
    }

    /// Sends `request` to an exit that performs it. The exit offers requests to the host and isn't in `excluded_exits`.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub(crate) async fn perform<B: OutgoingBody>(
        &self,
        mut request: Request<B>,
        excluded_exits: Vec<RelayId>,
        isolation: Isolation,
    ) -> Result<PerformedRequest, RequestError> {
        let (_, target) = target_of(request.uri()).ok_or(RequestError::Address)?;
        fix_request(request.headers_mut());
        match request.body().size_hint().exact() {
            Some(0) => drop(request.headers_mut().remove(header::CONTENT_LENGTH)),
            Some(length) => drop(request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length))),
            // The length is unknown, so the caller's field is kept.
            None => {}
        }
        let head = request_head(&request)?;
        let host = target.host.to_text().to_ascii_lowercase();
        let delegation = Delegation::Http { host };
        let delegated = self.connector.delegate(DelegatedRequest { delegation, excluded_exits, isolation }).await;
        let Delegated { stream, path, .. } = delegated.map_err(|error| match error {
            ConnectError::Stream(StreamFailure::NoPath(PathError::NotOffered)) => RequestError::NoExit,
            error => RequestError::Connect(error),
        })?;
        let (reader, writer) = tokio::io::split(stream);
        let sending = AbortOnDropHandle::new(tokio::spawn(send(writer, head, request.into_body())));
        receive(reader, sending).await.map(|response| PerformedRequest { response, path })
    }

    /// Sends `request` over a stream to its target. With an `https` URL, TLS ends in this client and at the target.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub(crate) async fn over_stream<B: OutgoingBody>(
        &self,
        mut request: Request<B>,
        isolation: Isolation,
    ) -> Result<Response<ResponseBody>, RequestError> {
        let (is_https, target) = target_of(request.uri()).ok_or(RequestError::Address)?;
        let headers = request.headers_mut();
        headers.entry(header::USER_AGENT).or_insert(USER_AGENT);
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let host = target.host.to_text();
        let opened = timeout(IDLE_TIMEOUT, async {
            let stream = self.connector.open(target, isolation).await?;
            Ok::<_, RequestError>(if is_https {
                TargetStream::Tls(self.tls.connect(&host, stream).await.map_err(RequestError::Tls)?)
            } else {
                TargetStream::Plain(stream)
            })
        });
        let response = match opened.await.unwrap_or(Err(RequestError::TimedOut))? {
            TargetStream::Plain(stream) => exchange(stream, request, LIMITS).await?,
            TargetStream::Tls(stream) => exchange(stream, request, LIMITS).await?,
        };
        Ok(response.map(|body| ResponseBody(BodySource::Target(Box::new(body)))))
    }
}

/// Sends a request with its body.
async fn send<B: Body<Error: Into<BodyError>>>(
    mut writer: WriteHalf<Stream>,
    head: Vec<u8>,
    body: B,
) -> Result<(), MessageError> {
    timeout(IDLE_TIMEOUT, writer.write_all(&head)).await.map_err(|_| MessageError::Broken)??;
    write_content(&mut writer, body, u64::MAX, IDLE_TIMEOUT).await?;
    writer.shutdown().await?;
    Ok(())
}

/// Reads the head of the response, while `sending` sends the request.
async fn receive(
    reader: ReadHalf<Stream>,
    mut sending: AbortOnDropHandle<Result<(), MessageError>>,
) -> Result<Response<ResponseBody>, RequestError> {
    let sending_failure = async {
        match (&mut sending).await {
            // After a failure of the stream, the reader still returns the reason of the failure or an earlier answer.
            Ok(Ok(()) | Err(MessageError::Broken)) => sleep(IDLE_TIMEOUT).await,
            Ok(Err(error)) => return RequestError::from(error),
            Err(_) => return RequestError::Body,
        }
        RequestError::TimedOut
    };
    let (mut response, mut content) = tokio::select! {
        biased;
        read = read_response(reader, u64::MAX) => read?,
        error = sending_failure => return Err(error),
    };
    if let Some(refusal) = Refusal::from_response(response.status(), response.headers()) {
        return Err(RequestError::Refused(refusal));
    }
    fix_response(response.headers_mut());
    let (pipe, body) = PipedBody::of_unknown_length();
    let receiving = AbortOnDropHandle::new(tokio::spawn(async move {
        // `fill` also passes an error to the body.
        let _ = fill(&mut content, pipe, IDLE_TIMEOUT).await;
    }));
    Ok(response.map(|()| ResponseBody(BodySource::Exit { body, _sending: sending, _receiving: receiving })))
}

#[expect(clippy::large_enum_variant, reason = "short-lived")]
enum TargetStream {
    Plain(Stream),
    Tls(crate::io::tls::TlsStream<Stream>),
}
