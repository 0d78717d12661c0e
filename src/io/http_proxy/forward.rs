//! One request forwarded over a stream of its own.

use core::{
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};
use std::sync::Arc;

use bytes::Bytes;
use hyper::{
    HeaderMap, Request, Response, Uri, Version,
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
    http::uri::PathAndQuery,
};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::io::stream::Stream;

/// Fields between two neighbours (RFC 9110 §7.6.1), and those for a proxy alone.
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

/// An origin's body, with the task that moves it; dropping it ends both.
pub(super) struct Forwarded {
    body: Incoming,
    _moving: AbortOnDropHandle<()>,
}

impl Body for Forwarded {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An application's body, which counts its pieces as they go.
struct Counted {
    body: Incoming,
    pieces: Arc<AtomicU64>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
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

/// Sends `request`, whose address is absolute, over `stream` and gives the response's head and its body to come; none
/// if for as long as `patience` neither more of the request went nor the head came.
pub(super) async fn forward(
    request: Request<Incoming>,
    stream: Stream,
    patience: Duration,
) -> hyper::Result<Option<Response<Forwarded>>> {
    let pieces = Arc::new(AtomicU64::new(0));
    let counted = request.map(|body| Counted { body, pieces: Arc::clone(&pieces) });
    let mut exchange = pin!(exchange(counted, stream));
    loop {
        let before = pieces.load(Ordering::Relaxed);
        match timeout(patience, &mut exchange).await {
            Ok(response) => return response.map(Some),
            Err(_) if pieces.load(Ordering::Relaxed) == before => return Ok(None),
            Err(_) => {}
        }
    }
}

async fn exchange(request: Request<Counted>, stream: Stream) -> hyper::Result<Response<Forwarded>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let moving = AbortOnDropHandle::new(tokio::spawn(async move {
        // What goes wrong shows at the sender or in the body.
        let _ = connection.await;
    }));
    let response = sender.send_request(for_origin(request)).await?;
    let (mut head, body) = response.into_parts();
    strip(&mut head.headers);
    head.version = Version::HTTP_11;
    Ok(Response::from_parts(head, Forwarded { body, _moving: moving }))
}

/// The request as an origin gets it: origin form, `Host` from the address (RFC 9112 §3.2.2), no field meant for us.
fn for_origin<B>(mut request: Request<B>) -> Request<B> {
    let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    strip(request.headers_mut());
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    request
}

/// Removes what concerns two neighbours only, also what `Connection` names.
fn strip(headers: &mut HeaderMap) {
    // Transfer-Encoding overrides it (RFC 9112 §6.3), and must not leave it behind to be believed by the next one.
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
