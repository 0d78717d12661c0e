//! The directory over HTTP: takes descriptors, volunteers and gateways' reports, gives the consensus and the volunteer list.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/descriptor`, a signed descriptor | 202, or 400 with the reason as text |
//! | `POST /v1/volunteer`, a signed volunteer | 200 with its registration, 503 when there is no place, or 400 |
//! | `POST /v1/presence`, a gateway's signed report | 200 with whom it counts for, or 400 |
//! | `GET /v1/consensus` | 200 with a signed consensus and its `ETag`; 304; 404 before there is one |
//! | `GET /v1/volunteers` | the same of the signed volunteer list |
//! | others | those of [`super::web`], if the pages are to be served |
//!
//! Pages of any origin may ask, for there is nothing here that isn't everybody's.
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
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::map_response,
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
use tower_http::{
    compression::CompressionLayer,
    cors::{Any, CorsLayer},
    limit::RequestBodyLimitLayer,
    timeout::TimeoutLayer,
};

use crate::{
    crypto::sha256,
    directory::{Counted, DescriptorError, PresenceError, Registration, SignedConsensus, SignedVolunteerList},
};

pub use service::{Prover, run_authority};

/// Bytes of a request's body at the most.
const MAX_BODY_LEN: usize = 64 << 10;
/// Connections at the same time; more wait to be accepted. Each is for one request, for whoever asks comes back after an
/// interval at the soonest.
const MAX_CONNECTIONS: usize = 512;
/// What was sent and waits for the authority; more is answered "busy".
const MAX_SUBMISSIONS: usize = 256;
/// For how long a browser may remember that it may ask, in its words `Access-Control-Max-Age`.
const CORS_AGE: Duration = Duration::from_secs(24 * 60 * 60);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// For one connection, so that reading an answer slowly doesn't hold it for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(180);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What came in, to be judged by the authority, which answers each.
#[derive(Debug)]
pub enum Submission {
    /// A signed descriptor.
    Descriptor(Bytes, oneshot::Sender<Result<(), DescriptorError>>),
    /// A signed volunteer.
    Volunteer(Bytes, oneshot::Sender<Result<Registration, DescriptorError>>),
    /// A gateway's signed report.
    Presence(Bytes, oneshot::Sender<Result<Counted, PresenceError>>),
}

/// The HTTP side of a directory. Clones are the same directory.
#[derive(Clone)]
pub struct DirectoryServer {
    submissions: mpsc::Sender<Submission>,
    consensus: Arc<Shelf>,
    volunteers: Arc<Shelf>,
    web: Option<Router>,
}

/// Where the last document of a kind stands.
type Shelf = watch::Sender<Option<Served>>;

#[derive(Clone)]
struct Served {
    document: Bytes,
    etag: HeaderValue,
}

impl DirectoryServer {
    /// A directory that has no consensus yet, and where what is sent to it comes out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Submission>) {
        let (submissions, receiver) = mpsc::channel(MAX_SUBMISSIONS);
        let shelf = || Arc::new(watch::Sender::new(None));
        (Self { submissions, consensus: shelf(), volunteers: shelf(), web: None }, receiver)
    }

    /// The same directory, which answers by `web` what isn't asked of it.
    #[must_use]
    pub(crate) fn with_web(mut self, web: Router) -> Self {
        self.web = Some(web);
        self
    }

    /// Serves this consensus from now on.
    pub fn publish(&self, consensus: &SignedConsensus) {
        put(&self.consensus, consensus.as_bytes());
    }

    /// Serves this volunteer list from now on.
    pub fn publish_volunteers(&self, list: &SignedVolunteerList) {
        put(&self.volunteers, list.as_bytes());
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

    fn router(mut self) -> Router {
        let web = self.web.take().unwrap_or_default();
        let cors = CorsLayer::new()
            .allow_origin(Any)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(Any)
            .expose_headers([header::ETAG])
            .max_age(CORS_AGE);
        Router::new()
            .route("/v1/descriptor", post(take_descriptor))
            .route("/v1/volunteer", post(take_volunteer))
            .route("/v1/presence", post(take_presence))
            .route("/v1/consensus", get(give_consensus))
            .route("/v1/volunteers", get(give_volunteers))
            .route_layer(cors)
            .route_layer(map_response(close))
            .layer(DefaultBodyLimit::disable())
            .layer(RequestBodyLimitLayer::new(MAX_BODY_LEN))
            .layer(CompressionLayer::new())
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_TIMEOUT))
            .with_state(self)
            // What the pages' router takes is small and what it gives is packed already.
            .merge(web)
    }

    /// Puts what came to the authority, and gives its verdict; `None` when that is busy.
    async fn submit<T>(
        &self,
        body: Bytes,
        submission: impl FnOnce(Bytes, oneshot::Sender<T>) -> Submission,
    ) -> Option<T> {
        let (answer, verdict) = oneshot::channel();
        self.submissions.try_send(submission(body, answer)).ok()?;
        verdict.await.ok()
    }
}

fn put(shelf: &Shelf, document: &[u8]) {
    let document = Bytes::copy_from_slice(document);
    // Weak, since it is the same for every compression.
    let etag = format!("W/\"{}\"", HEXLOWER.encode(&sha256(&document)));
    match HeaderValue::try_from(etag) {
        Ok(etag) => _ = shelf.send_replace(Some(Served { document, etag })),
        Err(error) => tracing::error!(%error, "no entity tag; a document is not served"),
    }
}

/// Nobody holds a connection until it asks again.
async fn close(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn serve_connection(socket: TcpStream, router: Router) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router))
        .await
}

type Body = Result<Bytes, BytesRejection>;

async fn take_descriptor(State(directory): State<DirectoryServer>, body: Body) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    match directory.submit(body, Submission::Descriptor).await {
        Some(Ok(())) => (StatusCode::ACCEPTED, "accepted; listed once the relay has proved itself").into_response(),
        Some(Err(error)) => refused(&error),
        None => busy(),
    }
}

async fn take_volunteer(State(directory): State<DirectoryServer>, body: Body) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    match directory.submit(body, Submission::Volunteer).await {
        Some(Ok(registration)) => (DOCUMENT, registration.encode()).into_response(),
        // Places come free from one interval to the next.
        Some(Err(DescriptorError::Full)) | None => busy(),
        Some(Err(error)) => refused(&error),
    }
}

async fn take_presence(State(directory): State<DirectoryServer>, body: Body) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    match directory.submit(body, Submission::Presence).await {
        Some(Ok(counted)) => (DOCUMENT, counted.encode()).into_response(),
        Some(Err(error)) => refused(&error),
        None => busy(),
    }
}

const DOCUMENT: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/x-protobuf")];

fn refused(error: &dyn std::error::Error) -> Response {
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}

fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the directory is busy; try again later").into_response()
}

async fn give_consensus(State(directory): State<DirectoryServer>, headers: HeaderMap) -> Response {
    give(&directory.consensus, &headers, "no consensus yet: not enough relays have registered")
}

async fn give_volunteers(State(directory): State<DirectoryServer>, headers: HeaderMap) -> Response {
    give(&directory.volunteers, &headers, "no volunteer list yet: there is no consensus")
}

fn give(shelf: &Shelf, headers: &HeaderMap, none_yet: &'static str) -> Response {
    let Some(served) = shelf.borrow().clone() else { return (StatusCode::NOT_FOUND, none_yet).into_response() };
    let tag = [(header::ETAG, served.etag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if headers.get_all(header::IF_NONE_MATCH).iter().any(|value| names(value, &served.etag)) {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    (tag, DOCUMENT, served.document).into_response()
}

/// Whether an `If-None-Match` value (RFC 9110 §13.1.2) holds `etag`, compared weakly.
fn names(value: &HeaderValue, etag: &HeaderValue) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let (Ok(value), Ok(etag)) = (value.to_str(), etag.to_str()) else { return false };
    value.trim() == "*" || value.split(',').any(|tag| opaque(tag) == opaque(etag))
}

#[cfg(test)]
mod tests;
