//! The directory over HTTP: takes descriptors, gives the consensus.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/descriptor`, a signed descriptor | 202, or 400 with the reason as text |
//! | `GET /v1/consensus` | 200 with a signed consensus and its `ETag`; 304; 404 before there is one |
//!
//! Owns the HTTP side and the task that drives an [`Authority`] ([`run_authority`]). Governed by
//! `proto/07-directory.md`, "HTTP". Against floods: connections, bodies and times are capped, and no peer's address is
//! ever looked at or logged.
//!
//! [`Authority`]: crate::directory::Authority

mod service;

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use data_encoding::HEXLOWER;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tower_http::{compression::CompressionLayer, limit::RequestBodyLimitLayer, timeout::TimeoutLayer};

use crate::{
    crypto::sha256,
    directory::{DescriptorError, SignedConsensus},
};

pub use service::{Prover, run_authority};

/// Bytes of a request's body at the most.
const MAX_BODY_LEN: usize = 64 << 10;
/// Connections at the same time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// Descriptors waiting for the authority; more are answered "busy".
const MAX_SUBMISSIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// For one connection, so that reading an answer slowly doesn't hold it for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(180);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A descriptor that came in, to be judged by the authority.
#[derive(Debug)]
pub struct Submission {
    /// The encoded, signed descriptor.
    pub descriptor: Bytes,
    /// Takes the verdict.
    pub answer: oneshot::Sender<Result<(), DescriptorError>>,
}

/// The HTTP side of a directory. Clones are the same directory.
#[derive(Clone)]
pub struct DirectoryServer {
    submissions: mpsc::Sender<Submission>,
    served: Arc<watch::Sender<Option<Served>>>,
}

#[derive(Clone)]
struct Served {
    consensus: Bytes,
    etag: HeaderValue,
}

impl DirectoryServer {
    /// A directory that has no consensus yet, and where the descriptors sent to it come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Submission>) {
        let (submissions, receiver) = mpsc::channel(MAX_SUBMISSIONS);
        (Self { submissions, served: Arc::new(watch::Sender::new(None)) }, receiver)
    }

    /// Serves this consensus from now on.
    pub fn publish(&self, consensus: &SignedConsensus) {
        let consensus = Bytes::copy_from_slice(consensus.as_bytes());
        // Weak, since it is the same for every compression.
        let etag = format!("W/\"{}\"", HEXLOWER.encode(&sha256(&consensus)));
        match HeaderValue::try_from(etag) {
            Ok(etag) => _ = self.served.send_replace(Some(Served { consensus, etag })),
            Err(error) => tracing::error!(%error, "no entity tag; the consensus is not served"),
        }
    }

    /// Answers requests that come to `listener`, until dropped.
    ///
    /// # Errors
    /// Never; failures to accept are waited out.
    pub async fn serve(self, listener: TcpListener) -> io::Result<Infallible> {
        let router = self.router();
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let permit = Arc::clone(&connections).acquire_owned().await.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((socket, _)) => {
                    let router = router.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        // Whether a peer behaved is of no interest.
                        _ = timeout(CONNECTION_TIMEOUT, serve_connection(socket, router)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn router(self) -> Router {
        Router::new()
            .route("/v1/descriptor", post(take_descriptor))
            .route("/v1/consensus", get(give_consensus))
            .layer(DefaultBodyLimit::disable())
            .layer(RequestBodyLimitLayer::new(MAX_BODY_LEN))
            .layer(CompressionLayer::new())
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_TIMEOUT))
            .with_state(self)
    }
}

async fn serve_connection(socket: TcpStream, router: Router) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router))
        .await
}

async fn take_descriptor(
    State(directory): State<DirectoryServer>,
    body: Result<Bytes, BytesRejection>,
) -> (StatusCode, String) {
    let descriptor = match body {
        Ok(descriptor) => descriptor,
        Err(rejection) => return (rejection.status(), rejection.body_text()),
    };
    let busy = || (StatusCode::SERVICE_UNAVAILABLE, "the directory is busy; try again later".to_owned());
    let (answer, verdict) = oneshot::channel();
    if directory.submissions.try_send(Submission { descriptor, answer }).is_err() {
        return busy();
    }
    match verdict.await {
        Ok(Ok(())) => (StatusCode::ACCEPTED, "accepted; listed once the relay has proved itself".to_owned()),
        Ok(Err(error)) => (StatusCode::BAD_REQUEST, error.to_string()),
        Err(_) => busy(),
    }
}

async fn give_consensus(State(directory): State<DirectoryServer>, headers: HeaderMap) -> Response {
    let Some(served) = directory.served.borrow().clone() else {
        return (StatusCode::NOT_FOUND, "no consensus yet: not enough relays have registered").into_response();
    };
    let tag = [(header::ETAG, served.etag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if headers.get_all(header::IF_NONE_MATCH).iter().any(|value| names(value, &served.etag)) {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))];
    (tag, kind, served.consensus).into_response()
}

/// Whether an `If-None-Match` value (RFC 9110 §13.1.2) holds `etag`, compared weakly.
fn names(value: &HeaderValue, etag: &HeaderValue) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let (Ok(value), Ok(etag)) = (value.to_str(), etag.to_str()) else { return false };
    value.trim() == "*" || value.split(',').any(|tag| opaque(tag) == opaque(etag))
}

#[cfg(test)]
mod tests;
