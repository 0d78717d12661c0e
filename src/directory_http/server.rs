//! The HTTP server of a directory: accepts descriptors, registrations of volunteers and reports of gateways; serves
//! the consensus and the volunteer list.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/descriptor`, a signed descriptor | 202, or 400 with the reason as text |
//! | `POST /v1/volunteer`, a volunteer's signed descriptor | 200 with the registration, 503 at the cap, or 400 |
//! | `POST /v1/presence`, a gateway's signed report | 200 with the volunteers for which it counts, or 400 |
//! | `GET /v1/consensus` | 200 with a signed consensus and its `ETag`; 304; 404 before the first one |
//! | `GET /v1/volunteers` | the same for the signed volunteer list |
//! | others | the answer of [`crate::web`], if the pages are served |
//!
//! Every POST is answered with 503 while the queue for the authority is full, and with 413 if its body is too long.
//! CORS admits pages of any origin, because all documents are public.
//!
//! Owns the HTTP side and the task that drives an [`Authority`] ([`run_authority`]). Governed by
//! `proto/07-directory.md` §7. Floods are bounded by caps on connections, bodies and times. Peers' addresses are
//! neither read nor logged.
//!
//! [`Authority`]: crate::directory::Authority

mod service;

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
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

/// Maximum bytes of a request's content.
const MAX_BODY_LEN: usize = 64 << 10;
/// Cap on TCP connections; further ones wait in the listener's backlog. Each connection serves one request, because a
/// client sends the next one after an interval at the earliest.
const MAX_CONNECTIONS: usize = 512;
/// Cap on submissions queued for the authority; further ones are answered with 503.
const MAX_SUBMISSIONS: usize = 256;
/// Time for which a browser may cache the answer to a CORS preflight (`Access-Control-Max-Age`).
const CORS_AGE: Duration = Duration::from_secs(24 * 60 * 60);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Time limit of a connection, for clients that read the answer slowly.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(180);
/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A submission for the authority, with the channel for its answer.
#[derive(Debug)]
pub enum Submission {
    /// A signed descriptor.
    Descriptor(Bytes, oneshot::Sender<Result<(), DescriptorError>>),
    /// A volunteer's signed descriptor.
    Volunteer(Bytes, oneshot::Sender<Result<Registration, DescriptorError>>),
    /// A gateway's signed report.
    Presence(Bytes, oneshot::Sender<Result<Counted, PresenceError>>),
}

/// The HTTP side of a directory. Clones share their state.
#[derive(Clone)]
pub struct DirectoryServer {
    submissions: mpsc::Sender<Submission>,
    consensus: Arc<Publication>,
    volunteers: Arc<Publication>,
    web: Option<Router>,
}

/// The current document of one kind.
type Publication = watch::Sender<Option<Served>>;

#[derive(Clone)]
struct Served {
    document: Bytes,
    etag: HeaderValue,
}

impl DirectoryServer {
    /// A server without documents, and the receiver of its submissions.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Submission>) {
        let (submissions, receiver) = mpsc::channel(MAX_SUBMISSIONS);
        let publication = || Arc::new(watch::Sender::new(None));
        (Self { submissions, consensus: publication(), volunteers: publication(), web: None }, receiver)
    }

    /// Sets the router for all other paths.
    #[must_use]
    pub(crate) fn with_web(mut self, web: Router) -> Self {
        self.web = Some(web);
        self
    }

    /// Sets the consensus to serve.
    pub fn publish(&self, consensus: &SignedConsensus) {
        publish_document(&self.consensus, consensus.as_bytes());
    }

    /// Sets the volunteer list to serve.
    pub fn publish_volunteers(&self, list: &SignedVolunteerList) {
        publish_document(&self.volunteers, list.as_bytes());
    }

    /// Accepts connections on `listener` and answers their requests, until the future is dropped.
    ///
    /// # Errors
    /// Never in practice: a failed `accept` is retried after a pause.
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
                        // A failed connection of a peer needs no action.
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
            .route("/v1/descriptor", post(post_descriptor))
            .route("/v1/volunteer", post(post_volunteer))
            .route("/v1/presence", post(post_presence))
            .route("/v1/consensus", get(get_consensus))
            .route("/v1/volunteers", get(get_volunteers))
            .route_layer(cors)
            .route_layer(map_response(close))
            .layer(DefaultBodyLimit::disable())
            .layer(RequestBodyLimitLayer::new(MAX_BODY_LEN))
            .layer(CompressionLayer::new())
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_TIMEOUT))
            .with_state(self)
            // The pages' router is merged without these layers, because it has its own limits and compressed files.
            .merge(web)
    }

    /// Queues a submission for the authority and returns its answer; `None` if the queue is full.
    async fn submit<T>(
        &self,
        body: Bytes,
        submission: impl FnOnce(Bytes, oneshot::Sender<T>) -> Submission,
    ) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.submissions.try_send(submission(body, sender)).ok()?;
        answer.await.ok()
    }
}

fn publish_document(publication: &Publication, document: &[u8]) {
    let document = Bytes::copy_from_slice(document);
    // A weak tag, because it is the same for all content encodings (RFC 9110 §8.8.1).
    let etag = format!("W/\"{}\"", HEXLOWER.encode(&sha256(&document)));
    match HeaderValue::try_from(etag) {
        Ok(etag) => _ = publication.send_replace(Some(Served { document, etag })),
        Err(error) => tracing::error!(%error, "can't compute the entity tag; the document is not served"),
    }
}

/// Closes the connection after the response, so that idle clients hold no connection.
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

async fn post_descriptor(State(directory): State<DirectoryServer>, body: Bytes) -> Response {
    match directory.submit(body, Submission::Descriptor).await {
        Some(Ok(())) => {
            (StatusCode::ACCEPTED, "accepted; the relay is listed after the proof of its addresses").into_response()
        }
        Some(Err(error)) => refused(&error),
        None => busy(),
    }
}

async fn post_volunteer(State(directory): State<DirectoryServer>, body: Bytes) -> Response {
    match directory.submit(body, Submission::Volunteer).await {
        Some(Ok(registration)) => (DOCUMENT, registration.encode()).into_response(),
        // The authority evicts volunteers each interval, so a later try may succeed.
        Some(Err(DescriptorError::Full)) | None => busy(),
        Some(Err(error)) => refused(&error),
    }
}

async fn post_presence(State(directory): State<DirectoryServer>, body: Bytes) -> Response {
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

async fn get_consensus(State(directory): State<DirectoryServer>, headers: HeaderMap) -> Response {
    serve_document(&directory.consensus, &headers, "no consensus yet: not enough relays have registered")
}

async fn get_volunteers(State(directory): State<DirectoryServer>, headers: HeaderMap) -> Response {
    serve_document(&directory.volunteers, &headers, "no volunteer list yet: there is no consensus")
}

/// The document, 304 if the request has its entity tag, or 404 with the text `none_yet`.
fn serve_document(publication: &Publication, headers: &HeaderMap, none_yet: &'static str) -> Response {
    let Some(served) = publication.borrow().clone() else { return (StatusCode::NOT_FOUND, none_yet).into_response() };
    let tag = [(header::ETAG, served.etag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if headers.get_all(header::IF_NONE_MATCH).iter().any(|value| matches_etag(value, &served.etag)) {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    (tag, DOCUMENT, served.document).into_response()
}

/// Whether an `If-None-Match` value (RFC 9110 §13.1.2) contains `etag`, by weak comparison.
fn matches_etag(value: &HeaderValue, etag: &HeaderValue) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let (Ok(value), Ok(etag)) = (value.to_str(), etag.to_str()) else { return false };
    value.trim() == "*" || value.split(',').any(|tag| opaque(tag) == opaque(etag))
}

#[cfg(test)]
mod tests;
