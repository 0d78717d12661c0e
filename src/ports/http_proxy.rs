//! The HTTP proxy port for applications (RFC 9110 §7.6, RFC 9112 §3.2).
//!
//! | request | answer |
//! |---|---|
//! | `CONNECT host:port` | 200 once the stream is open, then the stream's bytes in both directions |
//! | `GET http://host/…` and other methods | the target's answer, over a separate stream |
//! | `GET /…` (origin form) | 400: this port is not a web server |
//! | `GET https://…` | 400: `https` requires CONNECT |
//!
//! Hop-by-hop fields are removed. The value of `Proxy-Authorization` selects the isolation; the field is never
//! forwarded. A failure has a status and a text: 400 if the request is invalid, 403 if no exit allows the target or the
//! target is not public, 502 for a failure of the target, 503 for a failure of the network or a limit, 504 for a
//! timeout. Requests are never logged, and the texts don't contain the host.

#[cfg(test)]
mod tests;

use core::{convert::Infallible, pin::Pin, time::Duration};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, PROXY_AUTHORIZATION, RETRY_AFTER, X_FRAME_OPTIONS},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    accept::serve_port,
    places::{ConnectionPlace, ConnectionPlaces},
};
use crate::{
    base::ErrorClass,
    client::StreamFailure,
    connector::{ConnectError, Connector, Isolation},
    http_exchange::http1::{ExchangeError, ExchangeLimits, StreamedBody, exchange},
    io::{
        listener::{LocalPort, refuse_http},
        stream::{SocketEnd, Stream, reset_on_close, splice},
    },
    wire::{EndReason, Host, Target},
};

const HTTP_PORT: u16 = 80;
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Limits of the HTTP proxy port.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Timeout of a request's head, including the pause after the previous request. Default 30 s.
    pub head_timeout: Duration,
    /// Timeout for opening the stream of a request, with any method. Default 60 s.
    pub open_timeout: Duration,
    /// Timeout from the last piece of the request to the head of the response. Default 120 s.
    pub response_timeout: Duration,
    /// Maximum bytes of a request's or response's head. Default 64 KiB.
    pub max_head_bytes: usize,
    /// Maximum fields of a request's or response's head. Default 128.
    pub max_fields: usize,
    /// Cap on TCP connections of applications; further connections are answered 503. While connections hold three
    /// quarters of the cap, a request on a further connection is answered 503 if its isolation holds a quarter of the
    /// cap or more. Default 1,024.
    pub max_connections: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(30),
            open_timeout: Duration::from_secs(60),
            response_timeout: Duration::from_secs(120),
            max_head_bytes: 64 * 1024,
            max_fields: 128,
            max_connections: 1024,
        }
    }
}

/// Serves the HTTP proxy on `listener` until the future is dropped, which closes the connections.
pub async fn serve<C: Connector>(listener: TcpListener, connector: C, limits: HttpLimits) {
    let serve_one = |socket, connector, places| serve_one(socket, connector, places, limits);
    serve_port(LocalPort::Http, listener, connector, limits.max_connections, serve_one, refuse_http).await;
}

/// The upgrade and the stream of an accepted CONNECT (RFC 9110 §9.3.6), which are joined after the response.
type AcceptedConnect = Arc<Mutex<Option<(OnUpgrade, Stream)>>>;

/// The place that a connection holds, with the isolation of its latest request.
type HeldPlace = Mutex<Option<(Isolation, ConnectionPlace)>>;

/// Takes a place for `isolation`, unless the connection holds one for it already. Returns `false` if the remaining
/// places are reserved for other isolations.
fn hold_place(held: &HeldPlace, places: &ConnectionPlaces, isolation: Isolation) -> bool {
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    if held.as_ref().is_some_and(|(held_for, _)| *held_for == isolation) {
        return true;
    }
    // The old place is released first, so that a connection never holds two places.
    *held = None;
    *held = places.take(isolation).map(|place| (isolation, place));
    held.is_some()
}

async fn serve_one<C: Connector>(
    socket: TcpStream,
    connector: C,
    places: ConnectionPlaces,
    limits: HttpLimits,
) -> io::Result<()> {
    let accepted = AcceptedConnect::default();
    let held = HeldPlace::default();
    let service = service_fn(|request: Request<Incoming>| {
        let (connector, accepted) = (connector.clone(), Arc::clone(&accepted));
        let isolation = isolation(request.headers());
        let has_place = hold_place(&held, &places, isolation);
        async move {
            Ok::<_, Infallible>(match has_place {
                true => respond(request, &connector, isolation, &accepted, limits).await,
                false => busy_response(),
            })
        }
    });
    let mut serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.max_fields)
        .max_buf_size(limits.max_head_bytes)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    if let Err(error) = Pin::new(&mut serving).await {
        // Without a reset, an application that reads to the end would treat a truncated body as complete.
        if let (true, Some(parts)) = (error.is_user(), serving.into_parts()) {
            reset_on_close(parts.io.inner());
        }
        return Err(io::Error::other(error));
    }
    let Some((upgrade, stream)) = accepted.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    splice(parts.io.into_inner(), stream, &parts.read_buf, SocketEnd::Application).await
}

/// A response with a text of this port, or with the target's content.
type ProxyResponse = Response<Either<Full<Bytes>, StreamedBody>>;

async fn respond<C: Connector>(
    mut request: Request<Incoming>,
    connector: &C,
    isolation: Isolation,
    accepted: &AcceptedConnect,
    limits: HttpLimits,
) -> ProxyResponse {
    let is_connect = *request.method() == Method::CONNECT;
    let target = match if is_connect { connect_target(request.uri()) } else { absolute_target(request.uri()) } {
        Ok(target) => target,
        Err(explanation) => return text_response(StatusCode::BAD_REQUEST, explanation),
    };
    let opening = connector.open(target, isolation);
    let stream = match timeout(limits.open_timeout, opening).await.unwrap_or(Err(EndReason::TimedOut.into())) {
        Ok(stream) => stream,
        Err(error) => return failure_response(error),
    };
    if is_connect {
        let upgrade = hyper::upgrade::on(&mut request);
        *accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, stream));
        return Response::new(Either::Left(Full::default()));
    }
    let limits = ExchangeLimits {
        head_timeout: limits.response_timeout,
        // A pause within a body is not limited, as over a direct connection.
        idle_timeout: None,
        max_head_bytes: limits.max_head_bytes,
        max_fields: limits.max_fields,
    };
    match exchange(stream, request, limits).await {
        Ok(response) => response.map(Either::Right),
        Err(error) => {
            tracing::debug!(%error, "the exchange with the target failed");
            let status = match error {
                ExchangeError::RequestBody => StatusCode::BAD_REQUEST,
                ExchangeError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
                ExchangeError::NotHttp | ExchangeError::TooLarge | ExchangeError::Broken => StatusCode::BAD_GATEWAY,
            };
            text_response(status, &error.to_string())
        }
    }
}

fn connect_target(uri: &Uri) -> Result<Target, &'static str> {
    const EXPLANATION: &str = "CONNECT needs a host and a port, such as example.org:443";
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or(EXPLANATION)?;
    let port = authority.port_u16().filter(|port| *port != 0).ok_or(EXPLANATION)?;
    Ok(Target { host: Host::parse(authority.host()).map_err(|_| EXPLANATION)?, port })
}

fn absolute_target(uri: &Uri) -> Result<Target, &'static str> {
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(
            "this is Umbel's HTTP proxy, not a web server; set it as the proxy of an application, whose requests \
                    must have an absolute URL (http://…) or use CONNECT",
        );
    };
    if !scheme.eq_ignore_ascii_case("http") {
        return Err("only http:// URLs are forwarded; use CONNECT for others");
    }
    if authority.as_str().contains('@') {
        return Err("a URL with a user name is not forwarded");
    }
    let host = Host::parse(authority.host()).map_err(|_| "the host is neither a name nor an address")?;
    // `port_u16` returns `None` both for an invalid port and for an absent one.
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("" | ":") => HTTP_PORT,
        _ => authority.port_u16().filter(|port| *port != 0).ok_or("the port is not a number from 1 to 65535")?,
    };
    Ok(Target { host, port })
}

fn isolation(headers: &HeaderMap) -> Isolation {
    const LISTENER: &str = "http";
    headers
        .get(PROXY_AUTHORIZATION)
        .map_or_else(|| Isolation::of_listener(LISTENER), |value| Isolation::new(LISTENER, value.as_bytes(), &[]))
}

fn failure_response(error: ConnectError) -> ProxyResponse {
    let status = match error {
        ConnectError::Stream(StreamFailure::Ended(EndReason::Policy)) => StatusCode::FORBIDDEN,
        ConnectError::Stream(StreamFailure::Ended(EndReason::TimedOut)) => StatusCode::GATEWAY_TIMEOUT,
        ConnectError::Stream(failure) => match failure.class() {
            ErrorClass::Network | ErrorClass::Limit => StatusCode::SERVICE_UNAVAILABLE,
            ErrorClass::Local => StatusCode::FORBIDDEN,
            ErrorClass::Peer | ErrorClass::Bug => StatusCode::BAD_GATEWAY,
        },
        ConnectError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
    };
    text_response(status, &error.to_string())
}

/// The answer to a request whose isolation already holds its share of the connections.
fn busy_response() -> ProxyResponse {
    let explanation = "the applications with these proxy credentials, or with none, use their share of this port's \
                       connections; close some, or try again later";
    let mut response = text_response(StatusCode::SERVICE_UNAVAILABLE, explanation);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn text_response(status: StatusCode, explanation: &str) -> ProxyResponse {
    let mut response = Response::new(Either::Left(Full::from(format!("Umbel: {explanation}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // These fields hide from a probing web page whether this port answers.
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // The remaining content of the request isn't read, so the connection can't be reused.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
