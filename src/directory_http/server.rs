//! The HTTP server of a directory: accepts descriptors, registrations of volunteers and reports of gateways; serves
//! the consensus and the volunteer list.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/descriptor`, a signed descriptor | 202, or 400 with the reason as text; 503 if the relay changes it too often |
//! | `POST /v1/volunteer`, a volunteer's signed descriptor | 200 with the registration, 503 at the cap, or 400 |
//! | `POST /v1/presence`, a gateway's signed report | 200 with the volunteers for which it counts, or 400 |
//! | `GET /v1/consensus` | 200 with a signed consensus and its `ETag`; 304; 404 before the first one |
//! | `GET /v1/volunteers` | as for the consensus, with the signed volunteer list |
//! | others | the answer of [`crate::web`], if the pages are served |
//!
//! A POST is answered with 503 if it has no place in the queue for the authority ([`submissions`]) or the sender exceeds
//! its rate, and with 413 if
//! the body is too long. CORS admits pages of any origin, because all documents are public.
//!
//! Owns the HTTP side and the task that drives an [`Authority`] ([`run_authority`]). Governed by
//! `proto/07-directory.md` §7. Floods are bounded by caps on connections ([`crate::io::connections`]), rates, bodies and times.
//! Peers' addresses are not logged. Memory contains only their prefixes: of open connections, of recent
//! senders, and of the publishers of relays.
//!
//! [`Authority`]: crate::directory::Authority

mod documents;
mod proxies;
mod rates;
mod service;
mod submissions;

use std::{convert::Infallible, io, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::{Instant, timeout},
};
use tower_http::{
    cors::{Any, CorsLayer},
    limit::RequestBodyLimitLayer,
    timeout::TimeoutLayer,
};

use crate::{
    directory::{
        Counted, DescriptorError, PresenceError, Publisher, Registration, SignedConsensus, SignedVolunteerList,
    },
    io::{
        clock::running_time,
        connections::{ConnectionCaps, HttpConnectionPlace, accept_with_places, network_of},
    },
};

use documents::{CurrentDocument, DOCUMENT_TYPE};
pub use proxies::{InvalidProxy, TrustedProxies};
use rates::SubmissionRates;
pub use service::{Prover, run_authority};
use submissions::SubmissionSender;
pub use submissions::Submissions;

/// Maximum bytes of a request's body.
const MAX_BODY_LEN: usize = 64 << 10;
/// Time for which a browser may cache the answer to a CORS preflight (`Access-Control-Max-Age`).
const PREFLIGHT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum time for which a connection is open, even if the peer reads the answer steadily.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(180);
/// The head of the answer to a connection without a place. The text follows.
const REFUSAL_HEAD: &str = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\naccess-control-allow-origin: *\r\n\
     content-type: text/plain; charset=utf-8\r\ncontent-length: 86\r\nconnection: close\r\n\r\n";
const REFUSAL_TEXT: &str = "too many connections to the directory, in total or from this network; try again later\n";

/// A submission for the authority, with the channel for its answer.
#[derive(Debug)]
pub enum Submission {
    /// A signed descriptor, and its publisher if the sender's address is global.
    Descriptor(Bytes, Option<Publisher>, oneshot::Sender<Result<(), DescriptorError>>),
    /// A volunteer's signed descriptor.
    Volunteer(Bytes, oneshot::Sender<Result<Registration, DescriptorError>>),
    /// A gateway's signed report.
    Presence(Bytes, oneshot::Sender<Result<Counted, PresenceError>>),
}

/// The address of the client that sent a request: the peer of the connection, or the client of a trusted proxy. Not
/// logged.
#[derive(Clone, Copy)]
struct Peer(IpAddr);

/// The HTTP side of a directory. Clones share their state.
#[derive(Clone)]
pub struct DirectoryServer {
    submissions: SubmissionSender,
    consensus: Arc<CurrentDocument>,
    volunteers: Arc<CurrentDocument>,
    web: Option<Router>,
    caps: ConnectionCaps,
    proxies: TrustedProxies,
    rates: Arc<SubmissionRates>,
}

impl DirectoryServer {
    /// A server without documents, and the receiver of its submissions.
    #[must_use]
    pub fn new() -> (Self, Submissions) {
        let (submissions, receiver) = submissions::queue();
        let empty = || Arc::new(CurrentDocument::new());
        let (caps, proxies, rates) = (ConnectionCaps::default(), TrustedProxies::default(), Arc::default());
        (Self { submissions, consensus: empty(), volunteers: empty(), web: None, caps, proxies, rates }, receiver)
    }

    /// Sets the trusted proxies, whose clients are distinguished by `X-Forwarded-For`. By default there are none.
    #[must_use]
    pub fn with_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.proxies = proxies;
        self
    }

    /// Sets the router for all other paths.
    #[must_use]
    pub(crate) fn with_web(mut self, web: Router) -> Self {
        self.web = Some(web);
        self
    }

    /// Compresses and serves this consensus in place of the last one.
    pub async fn publish(&self, consensus: SignedConsensus) {
        self.consensus.replace(consensus).await;
    }

    /// Compresses and serves this volunteer list in place of the last one.
    pub async fn publish_volunteers(&self, list: SignedVolunteerList) {
        self.volunteers.replace(list).await;
    }

    /// Accepts connections on `listener` and answers their requests, until the future is dropped.
    ///
    /// # Errors
    /// Never in practice: a failed `accept` is retried after a pause.
    pub async fn serve(self, listener: TcpListener) -> io::Result<Infallible> {
        let (caps, proxies) = (self.caps, self.proxies.clone());
        let router = self.router();
        // A connection of a trusted proxy counts for no network before its first request.
        let client = |peer| Some(peer).filter(|peer| !proxies.contains(*peer));
        let serve = |socket, peer, place| serve_connection(socket, peer, place, proxies.clone(), router.clone());
        Ok(accept_with_places(listener, caps, client, serve, [REFUSAL_HEAD, REFUSAL_TEXT]).await)
    }

    fn router(mut self) -> Router {
        let web = self.web.take().unwrap_or_default();
        let cors = CorsLayer::new()
            .allow_origin(Any)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(Any)
            .expose_headers([header::ETAG])
            .max_age(PREFLIGHT_LIFETIME);
        Router::new()
            .route("/v1/descriptor", post(post_descriptor))
            .route("/v1/volunteer", post(post_volunteer))
            .route("/v1/presence", post(post_presence))
            .route("/v1/consensus", get(get_consensus))
            .route("/v1/volunteers", get(get_volunteers))
            .route_layer(cors)
            .route_layer(map_response(close_after))
            .layer(DefaultBodyLimit::disable())
            .layer(RequestBodyLimitLayer::new(MAX_BODY_LEN))
            .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_TIMEOUT))
            .with_state(self)
            // The pages' router is merged without these layers, because it has its own limits and compressed files.
            .merge(web)
    }

    /// Queues a submission of `peer` for the authority, and returns the authority's answer. `None` if the submission has
    /// no place in the queue, if the peer exceeds its rate, or if the submission is dropped without an answer.
    async fn submit<T>(
        &self,
        peer: Peer,
        body: Bytes,
        submission: impl FnOnce(Bytes, oneshot::Sender<T>) -> Submission,
    ) -> Option<T> {
        if !self.rates.admit(running_time(), peer.0) {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        self.submissions.send(network_of(peer.0), submission(body, sender));
        answer.await.ok()
    }
}

/// Closes the connection after the response, so that no connection is open while it is idle.
async fn close_after(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn serve_connection(
    socket: TcpStream,
    peer: IpAddr,
    mut place: HttpConnectionPlace,
    proxies: TrustedProxies,
    router: Router,
) {
    let router = TowerToHyperService::new(router);
    let (share, is_of_proxy) = (place.share(), proxies.contains(peer));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let client = proxies.client(peer, request.headers());
        let is_admitted = !is_of_proxy || share.take(Instant::now(), client);
        request.extensions_mut().insert(Peer(client));
        let answer = is_admitted.then(|| router.call(request));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => Ok(no_place()),
            }
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(place.socket(socket)), service);
    // Neither an error nor the end of a connection needs an action.
    tokio::select! {
        _ = timeout(CONNECTION_TIMEOUT, served) => {}
        () = place.wait_for_end() => {}
    }
}

/// The answer to a request of a proxy's client whose network has no further place.
fn no_place() -> Response {
    let headers =
        [(header::RETRY_AFTER, "5"), (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"), (header::CONNECTION, "close")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, REFUSAL_TEXT).into_response()
}

async fn post_descriptor(
    State(directory): State<DirectoryServer>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Response {
    let publisher = Publisher::at(peer.0);
    let submission = |body, answer| Submission::Descriptor(body, publisher, answer);
    let outcome = directory.submit(peer, body, submission).await;
    answer(
        outcome,
        |error| *error == DescriptorError::TooSoon,
        |()| (StatusCode::ACCEPTED, "accepted; the relay is listed after the proof of its addresses").into_response(),
    )
}

async fn post_volunteer(
    State(directory): State<DirectoryServer>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Response {
    let outcome = directory.submit(peer, body, Submission::Volunteer).await;
    // The authority evicts volunteers each interval.
    let is_full = |error: &DescriptorError| *error == DescriptorError::Full;
    answer(outcome, is_full, |registration| (DOCUMENT_TYPE, registration.encode()).into_response())
}

async fn post_presence(
    State(directory): State<DirectoryServer>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Response {
    let outcome = directory.submit(peer, body, Submission::Presence).await;
    answer(outcome, |_| false, |counted| (DOCUMENT_TYPE, counted.encode()).into_response())
}

/// The response to a submission. `None`: the submission was not processed. A later try may succeed after an error for
/// which `is_temporary` is true.
fn answer<T, E: std::error::Error>(
    outcome: Option<Result<T, E>>,
    is_temporary: impl FnOnce(&E) -> bool,
    accepted: impl FnOnce(T) -> Response,
) -> Response {
    match outcome {
        Some(Ok(answer)) => accepted(answer),
        Some(Err(error)) => {
            let status = if is_temporary(&error) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_REQUEST };
            (status, error.to_string()).into_response()
        }
        None => {
            let busy = "the directory is busy, or this address or its network exceeds its rate; try again later";
            (StatusCode::SERVICE_UNAVAILABLE, busy).into_response()
        }
    }
}

async fn get_consensus(State(directory): State<DirectoryServer>, headers: HeaderMap) -> Response {
    directory.consensus.answer(&headers, "no consensus yet: the addresses of too few relays are proved")
}

async fn get_volunteers(State(directory): State<DirectoryServer>, headers: HeaderMap) -> Response {
    directory.volunteers.answer(&headers, "no volunteer list yet")
}

#[cfg(test)]
mod tests;
