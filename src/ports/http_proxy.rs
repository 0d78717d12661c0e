//! The HTTP proxy port for applications (RFC 9110 §7.6, RFC 9112 §3.2).
//!
//! | request | answer |
//! |---|---|
//! | `CONNECT host:port` | 200 once the stream is open, then the stream's bytes in both directions |
//! | `GET http://host/…` and other methods | the target's answer, over a stream to the target |
//! | the same with `Upgrade`, also `GET ws://host/…` | the target's answer; after 101, the stream's bytes in both directions |
//! | `GET /…` (origin form) | 400: this port is not a web server |
//! | `GET https://…` | 400: `https` requires CONNECT |
//!
//! Heads are forwarded as bytes, so the target gets what it would get over CONNECT, and so does the application: the
//! case and order of field names, URLs with any visible character, trailers, 100 and 101. This port forwards no other
//! interim response, since some clients take it as final. Only the fields that concern one connection are removed or
//! replaced (`Connection`, `Keep-Alive`, `Proxy-…`, `TE`, `Upgrade` without effect), and chunks are rewritten. No HTTP
//! library forwards heads so: hyper changes the case, refuses some URLs and fields, drops interim responses, and
//! answers 100 (Continue) itself. Requests are parsed strictly, against request smuggling. Responses are parsed
//! leniently, as browsers do; after an inexact one, the connection ends.
//!
//! Successive requests of one connection to one target and with one isolation use one stream. The value of
//! `Proxy-Authorization` selects the isolation; the field is never forwarded. A failure has a status and a text: 400 if
//! the request is invalid, 403 if no exit allows the target or the target is not public, 502 for a failure of the
//! target, 503 for a failure of the network or a limit, 504 for a timeout. Requests are never logged, and the texts don't
//! contain the host.

mod body;
mod exchange;
mod head;
mod refusal;
mod request;
mod response;
mod target;
#[cfg(test)]
mod tests;

use core::time::Duration;
use std::{
    io,
    sync::{Mutex, PoisonError},
};

use hyper::StatusCode;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::timeout,
};

use self::{
    body::Framing,
    exchange::{Exchanged, ForwardedRequest, Incomplete, exchange},
    head::{FieldLine, HeadError},
    refusal::PortRefusal,
    request::{AbsoluteUrl, RequestHead, connect_target},
    target::WaitingStreams,
};
use super::{
    accept::serve_port,
    places::{ConnectionPlace, ConnectionPlaces},
};
use crate::{
    connector::{Connector, Isolation},
    http_exchange::http1::ExchangeError,
    io::{
        listener::{LocalPort, answer_and_close, refuse_http},
        stream::{SocketEnd, Stream, await_acknowledged, reset_on_close, splice},
    },
    wire::{EndReason, Target},
};

/// Limits of the HTTP proxy port.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Timeout of a request's head from its first byte, and of the first byte of a connection. A pause between requests
    /// is not limited, nor is a body or the wait for a response. Default 30 s.
    pub head_timeout: Duration,
    /// Timeout for opening the stream of a request, with any method. Default 60 s.
    pub open_timeout: Duration,
    /// Maximum bytes of a request's or response's head, and of a trailer. Default 384 KiB, which is more than curl
    /// accepts.
    pub max_head_bytes: usize,
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
            max_head_bytes: 384 * 1024,
            max_connections: 1024,
        }
    }
}

/// Serves the HTTP proxy on `listener` until the future is dropped, which closes the connections.
pub async fn serve<C: Connector>(listener: TcpListener, connector: C, limits: HttpLimits) {
    let serve_one = |socket, connector, places| serve_one(socket, connector, places, limits);
    serve_port(LocalPort::Http, listener, connector, limits.max_connections, serve_one, refuse_http).await;
}

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

/// How an application's connection ends.
enum ConnectionEnd {
    /// After these last bytes.
    Close(Vec<u8>),
    /// By a reset, because a response is truncated.
    Reset,
    /// As a tunnel over the stream, after the bytes for the application and those for the target.
    Tunnel { stream: Stream, answer: &'static [u8], early: Vec<u8> },
}

impl From<PortRefusal> for ConnectionEnd {
    fn from(refusal: PortRefusal) -> Self {
        Self::Close(refusal.to_bytes(false))
    }
}

async fn serve_one<C: Connector>(
    mut socket: TcpStream,
    connector: C,
    places: ConnectionPlaces,
    limits: HttpLimits,
) -> io::Result<()> {
    // The place is held until the connection has ended.
    let held = HeldPlace::default();
    let ending = {
        let (reader, writer) = socket.split();
        let (reader, waiting) = (BufReader::new(reader), WaitingStreams::default());
        let mut connection = Connection { reader, writer, waiting, connector, places, held: &held, limits };
        let ending = connection.serve().await;
        connection.waiting.finish();
        ending?
    };
    match ending {
        ConnectionEnd::Close(last) => answer_and_close(socket, &last).await,
        ConnectionEnd::Reset => {
            // Without a reset, an application that reads to the end would treat a truncated body as complete.
            await_acknowledged(&socket, SocketEnd::Application).await;
            reset_on_close(&socket);
            Err(io::ErrorKind::ConnectionReset.into())
        }
        ConnectionEnd::Tunnel { stream, answer, early } => {
            socket.write_all(answer).await?;
            splice(socket, stream, &early, SocketEnd::Application).await
        }
    }
}

/// An application's connection while it carries requests.
struct Connection<'a, C> {
    reader: BufReader<ReadHalf<'a>>,
    writer: WriteHalf<'a>,
    /// Streams to targets that wait for further requests.
    waiting: WaitingStreams,
    connector: C,
    places: ConnectionPlaces,
    held: &'a HeldPlace,
    limits: HttpLimits,
}

impl<C: Connector> Connection<'_, C> {
    /// Serves requests up to the last.
    async fn serve(&mut self) -> io::Result<ConnectionEnd> {
        let mut is_first = true;
        loop {
            let Some(first_byte) = self.await_request(is_first).await? else {
                return Ok(ConnectionEnd::Close(Vec::new()));
            };
            if let (true, Some(refusal)) = (is_first, PortRefusal::of_first_byte(first_byte)) {
                return Ok(refusal.into());
            }
            is_first = false;
            let reading = head::read_head(&mut self.reader, self.limits.max_head_bytes);
            let head = match timeout(self.limits.head_timeout, reading).await {
                Ok(Ok(Some(head))) => head,
                Ok(Ok(None)) => return Ok(ConnectionEnd::Close(Vec::new())),
                Ok(Err(error)) => return unreadable_head(error).map(ConnectionEnd::from),
                Err(_) => {
                    let text = "the head of the request did not arrive in time";
                    return Ok(PortRefusal::new(StatusCode::REQUEST_TIMEOUT, text).into());
                }
            };
            let request = match RequestHead::parse(&head) {
                Ok(request) => request,
                Err(refusal) => return Ok(refusal.into()),
            };
            match self.respond(&request).await {
                Ok(None) => {}
                Ok(Some(ending)) => return Ok(ending),
                Err(refusal) => return Ok(ConnectionEnd::Close(refusal.to_bytes(request.is_head()))),
            }
        }
    }

    /// Waits for the next request, without a time limit except for the first. Returns the first byte.
    async fn await_request(&mut self, is_first: bool) -> io::Result<Option<u8>> {
        if is_first {
            let first = timeout(self.limits.head_timeout, self.reader.fill_buf()).await;
            return first.map_or(Ok(None), |bytes| Ok(bytes?.first().copied()));
        }
        loop {
            tokio::select! {
                bytes = self.reader.fill_buf() => return Ok(bytes?.first().copied()),
                () = self.waiting.remove_useless() => {}
            }
        }
    }

    /// Answers a request. Returns how the connection ends, if the request is the last.
    async fn respond(&mut self, head: &RequestHead<'_>) -> Result<Option<ConnectionEnd>, PortRefusal> {
        let isolation = isolation(&head.fields);
        if !hold_place(self.held, &self.places, isolation) {
            return Err(PortRefusal::busy());
        }
        if head.method == b"CONNECT" {
            let target = connect_target(head.target).map_err(PortRefusal::bad_request)?;
            let stream = tokio::select! {
                opened = open(&self.connector, &target, isolation, self.limits) => opened?,
                () = ended(&mut self.reader) => return Ok(Some(ConnectionEnd::Close(Vec::new()))),
            };
            let early = self.reader.buffer().to_vec();
            return Ok(Some(ConnectionEnd::Tunnel { stream, answer: b"HTTP/1.1 200 OK\r\n\r\n", early }));
        }
        let url = AbsoluteUrl::parse(head.target).map_err(PortRefusal::bad_request)?;
        let framing = head.framing()?;
        let bytes = head.to_target(&url);
        let request = ForwardedRequest { head, bytes, framing, max_head_bytes: self.limits.max_head_bytes };
        self.forward(&request, &url.target, isolation).await
    }

    /// Forwards a request and its response.
    async fn forward(
        &mut self,
        request: &ForwardedRequest<'_>,
        target: &Target,
        isolation: Isolation,
    ) -> Result<Option<ConnectionEnd>, PortRefusal> {
        let is_repeatable = request.head.is_idempotent() && matches!(request.framing, Framing::Empty);
        let mut waiting = self.waiting.take(target, isolation, is_repeatable);
        loop {
            let is_reused = waiting.is_some();
            let mut stream = match waiting.take() {
                Some(stream) => stream,
                None => open(&self.connector, target, isolation, self.limits).await?,
            };
            match exchange(&mut self.reader, &mut self.writer, &mut stream, request).await {
                Ok(Exchanged { is_upgraded: true, .. }) => {
                    let early = self.reader.buffer().to_vec();
                    return Ok(Some(ConnectionEnd::Tunnel { stream, answer: &[], early }));
                }
                Ok(Exchanged { persists, is_reusable, .. }) => {
                    if is_reusable {
                        self.waiting.insert(target.clone(), isolation, stream);
                    } else {
                        target::finish(stream);
                    }
                    return Ok((!persists).then(|| ConnectionEnd::Close(Vec::new())));
                }
                // The target may have closed the stream before it received the request.
                Err(Incomplete::Unanswered) if is_reused && is_repeatable => {}
                Err(incomplete) => {
                    tokio::spawn(stream.reset_after_bytes(EndReason::Reset));
                    return match incomplete {
                        Incomplete::Cut => Ok(Some(ConnectionEnd::Reset)),
                        Incomplete::Unanswered => Err(ExchangeError::Broken.into()),
                        Incomplete::Failed(error) => Err(error.into()),
                    };
                }
            }
        }
    }
}

async fn open<C: Connector>(
    connector: &C,
    target: &Target,
    isolation: Isolation,
    limits: HttpLimits,
) -> Result<Stream, PortRefusal> {
    let opened = timeout(limits.open_timeout, connector.open(target.clone(), isolation)).await;
    Ok(opened.unwrap_or(Err(EndReason::TimedOut.into()))?)
}

/// Completes if the application's bytes end, so that it awaits no tunnel. Never completes if there are further bytes.
async fn ended(reader: &mut BufReader<ReadHalf<'_>>) {
    if reader.fill_buf().await.is_ok_and(|bytes| !bytes.is_empty()) {
        core::future::pending::<()>().await;
    }
}

/// The refusal of a head that can't be read to its end.
fn unreadable_head(error: HeadError) -> io::Result<PortRefusal> {
    match error {
        HeadError::Io(error) => Err(error),
        HeadError::Truncated => Ok(PortRefusal::bad_request("the request ends within its head")),
        HeadError::TooLarge(head) if head.contains(&b'\n') => {
            let text = "the header fields of the request exceed the maximum size";
            Ok(PortRefusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text))
        }
        HeadError::TooLarge(_) => {
            Ok(PortRefusal::new(StatusCode::URI_TOO_LONG, "the URL of the request exceeds the maximum length"))
        }
    }
}

fn isolation(fields: &[FieldLine<'_>]) -> Isolation {
    const LISTENER: &str = "http";
    fields
        .iter()
        .find(|field| field.is("proxy-authorization"))
        .map_or_else(|| Isolation::of_listener(LISTENER), |field| Isolation::new(LISTENER, field.value, &[]))
}
