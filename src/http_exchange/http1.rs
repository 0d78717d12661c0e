//! The HTTP/1.1 client: one request and its response over one stream (RFC 9112).
//!
//! Used by the HTTP proxy port, by an exit for delegated requests, and by a client for its own requests. Owns the task
//! that moves the bytes; dropping the response ends the task and the stream. The target is not trusted: the size of its
//! head, its silence before the head and, optionally, its pauses within the body are capped. A truncated body is an
//! error, never an end. No state, such as cookies or an open connection, is kept for later requests.

use core::{
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Request, Response, Uri, Version,
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
    http::uri::PathAndQuery,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::body::OutgoingBody;
use crate::wire::{Host, Target};

/// Hop-by-hop fields (RFC 9110 §7.6.1), and fields for proxies.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
];
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Limits on the time of the target and on the size of its response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExchangeLimits {
    /// Maximum time from the last sent piece of the request to the response's head.
    pub(crate) head_timeout: Duration,
    /// Maximum time between two pieces of the response's body; `None` for no limit.
    pub(crate) idle_timeout: Option<Duration>,
    /// Maximum bytes of the response's head; at least 8 KiB.
    pub(crate) max_head_bytes: usize,
    /// Maximum fields of the response's head.
    pub(crate) max_fields: usize,
}

/// The reason why the response is missing or truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// A timeout of [`ExchangeLimits`] expired.
    #[error("the target accepted the request but did not answer in time")]
    TimedOut,
    /// The bytes are not an HTTP response.
    #[error("the target's answer is not HTTP")]
    NotHttp,
    /// The head or body exceeds a limit.
    #[error("the target's response exceeds the maximum size")]
    TooLarge,
    /// The stream ended before the end of the response.
    #[error("the target closed the stream before the end of its response")]
    Broken,
    /// The request's body failed.
    #[error("the request's body is truncated")]
    RequestBody,
}

impl From<hyper::Error> for ExchangeError {
    fn from(error: hyper::Error) -> Self {
        if error.is_user() {
            Self::RequestBody
        } else if error.is_parse_too_large() {
            Self::TooLarge
        } else if error.is_parse() {
            Self::NotHttp
        } else {
            Self::Broken
        }
    }
}

/// The body of a response, with the task that moves the bytes.
#[derive(Debug)]
pub(crate) struct StreamedBody {
    body: Incoming,
    idle_timeout: Option<(Duration, Pin<Box<Sleep>>)>,
    _connection_task: AbortOnDropHandle<()>,
}

impl Body for StreamedBody {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let Some((_, sleep)) = &mut this.idle_timeout else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            return Poll::Ready(Some(Err(ExchangeError::TimedOut)));
        };
        if let Some((duration, sleep)) = &mut this.idle_timeout {
            sleep.as_mut().reset(deadline_after(*duration));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(ExchangeError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The instant after `duration`. Unlike an addition, `sleep` doesn't overflow.
fn deadline_after(duration: Duration) -> Instant {
    sleep(duration).deadline()
}

/// The body of a request, with a counter of its sent pieces.
struct CountedBody<B> {
    body: Pin<Box<B>>,
    pieces: Arc<AtomicU64>,
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = self.body.as_mut().poll_frame(cx);
        if polled.is_ready() {
            self.pieces.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Sends `request`, whose URL must be absolute, over `stream` in origin form. Returns the response without hop-by-hop
/// fields; the body is read from the stream as the caller polls it.
///
/// # Errors
/// When the request's body fails, the response's head is late, too large or malformed, or the stream ends before the
/// head.
pub(crate) async fn exchange<S, B>(
    stream: S,
    request: Request<B>,
    limits: ExchangeLimits,
) -> Result<Response<StreamedBody>, ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: OutgoingBody,
{
    let pieces = Arc::new(AtomicU64::new(0));
    let counted = request.map(|body| CountedBody { body: Box::pin(body), pieces: Arc::clone(&pieces) });
    let mut sending = pin!(send(stream, for_origin(counted), limits));
    loop {
        let before = pieces.load(Ordering::Relaxed);
        match timeout(limits.head_timeout, &mut sending).await {
            Ok(response) => return response,
            Err(_) if pieces.load(Ordering::Relaxed) == before => return Err(ExchangeError::TimedOut),
            Err(_) => {}
        }
    }
}

async fn send<S, B>(
    stream: S,
    request: Request<CountedBody<B>>,
    limits: ExchangeLimits,
) -> Result<Response<StreamedBody>, ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: OutgoingBody,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(limits.max_fields)
        .max_buf_size(limits.max_head_bytes)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection_task = AbortOnDropHandle::new(tokio::spawn(async move {
        // The sender or the body also returns an error of the connection.
        let _ = connection.await;
    }));
    let (mut head, body) = sender.send_request(request).await?.into_parts();
    remove_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    let idle_timeout = limits.idle_timeout.map(|duration| (duration, Box::pin(sleep(duration))));
    Ok(Response::from_parts(head, StreamedBody { body, idle_timeout, _connection_task: connection_task }))
}

/// Reads the whole `body`.
///
/// # Errors
/// When the body is truncated or longer than `cap` bytes.
pub(crate) async fn read_whole<B: Body<Error = ExchangeError>>(body: B, cap: usize) -> Result<Vec<u8>, ExchangeError> {
    let mut body = pin!(body);
    let lower_bound = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if lower_bound > cap {
        return Err(ExchangeError::TooLarge);
    }
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame?.into_data() else { continue };
        while data.has_remaining() {
            let chunk = data.chunk();
            if chunk.len() > cap.saturating_sub(whole.len()) {
                return Err(ExchangeError::TooLarge);
            }
            whole.extend_from_slice(chunk);
            let length = chunk.len();
            data.advance(length);
        }
    }
    Ok(whole)
}

/// The request for the origin server: in origin form, with `Host` from the URL (RFC 9112 §3.2.2), without hop-by-hop
/// and proxy fields.
fn for_origin<B>(mut request: Request<B>) -> Request<B> {
    let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    remove_hop_by_hop(request.headers_mut());
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    request
}

/// Removes hop-by-hop fields, and the fields named in `Connection`.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Transfer-Encoding overrides Content-Length (RFC 9112 §6.3), so Content-Length is not forwarded.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP).chain([&PROXY_CONNECTION]) {
        headers.remove(name);
    }
}

/// Whether an absolute URL uses TLS, and the target of the URL. `None` if the scheme is not `http` or `https`, or the
/// URL has a user name, an invalid host or an invalid port.
pub(crate) fn target_of(uri: &Uri) -> Option<(bool, Target)> {
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let uses_tls = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    if authority.as_str().contains('@') {
        return None;
    }
    let host = Host::parse(authority.host()).ok()?;
    // An invalid port must not count as an absent one.
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" | ":" => {
            if uses_tls {
                443
            } else {
                80
            }
        }
        _ => authority.port_u16().filter(|port| *port != 0)?,
    };
    Some((uses_tls, Target { host, port }))
}
