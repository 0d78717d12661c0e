//! One HTTPS request and its response, as a state machine without I/O.

use core::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};
use std::{
    collections::VecDeque,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Wake,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, Response, body::Incoming, client::conn::http1, header};

use super::{
    HttpsError, Trust,
    tls::{TlsConnection, TlsIo},
};
use crate::delegated::{
    binary_http::{MAX_FIELDS, MAX_HEAD_LEN},
    fields,
    message::{HttpRequest, HttpRequestError},
};

/// Buffered bytes of a body, not yet polled by the caller, at which reading stops.
const MAX_BUFFERED_BODY: usize = 64 << 10;

/// An event of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeEvent {
    /// The head of the response, once.
    Head {
        /// Final status, 200 to 599.
        status: u16,
        /// Header fields, with names in lower case; without hop-by-hop fields and fields that set state.
        fields: Vec<(String, Vec<u8>)>,
    },
    /// The next piece of the body.
    Body(Vec<u8>),
    /// The response is complete; no events follow.
    End,
}

/// One request and its response over TLS.
///
/// **Drain contract.** After [`Self::new`] and after each input, call [`Self::poll_event`] until it returns `None`,
/// then [`Self::poll_transmit`] until it returns `None`. Repeat both until both return `None` in one pass: a polled
/// event or output makes room for more.
pub struct Exchange {
    tls: Rc<RefCell<TlsConnection>>,
    events: Rc<RefCell<VecDeque<ExchangeEvent>>>,
    /// The future that performs the exchange by hyper; `None` once the exchange has ended.
    work: Option<Work>,
    /// The outcome of `work`; `Ok` until then.
    outcome: Result<(), HttpsError>,
    woken: Arc<Woken>,
    host: String,
    port: u16,
}

type Work = Pin<Box<dyn Future<Output = Result<(), HttpsError>>>>;

impl Exchange {
    /// An exchange with a request to `url`, which is serialised as by a browser's `URL`. The request has the permitted
    /// fields of `fields`, and the fields common to all requests.
    ///
    /// # Errors
    /// When the URL, the method or a field is invalid.
    pub fn new(
        trust: &Trust,
        method: &str,
        url: &str,
        fields: impl IntoIterator<Item = (String, String)>,
        body: Vec<u8>,
    ) -> Result<Self, HttpsError> {
        let request = HttpRequest::new(method, url, fields, body).map_err(|error| match error {
            HttpRequestError::Address => HttpsError::Address,
            _ => HttpsError::Request,
        })?;
        if !request.is_https() {
            return Err(HttpsError::Address);
        }
        let (host, port) = (request.host().to_owned(), request.port());
        let tls = Rc::new(RefCell::new(TlsConnection::new(trust, &host)?));
        let events = Rc::default();
        let work: Work = Box::pin(perform(TlsIo(Rc::clone(&tls)), for_origin(request)?, Rc::clone(&events)));
        let (work, woken) = (Some(work), Arc::default());
        Ok(Self { tls, events, work, outcome: Ok(()), woken, host, port })
    }

    /// Host of the stream; an IPv6 address has no brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port of the stream.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Handles `bytes` received from the stream.
    pub fn handle_received(&mut self, bytes: &[u8]) {
        if let Ok(mut tls) = self.tls.try_borrow_mut() {
            tls.handle_received(bytes);
        }
    }

    /// Handles the end of the stream.
    pub fn handle_end(&mut self) {
        if let Ok(mut tls) = self.tls.try_borrow_mut() {
            tls.handle_end();
        }
    }

    /// The next bytes to send over the stream.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.run();
        let bytes = self.tls.try_borrow_mut().map(|mut tls| tls.take_outgoing()).unwrap_or_default();
        (!bytes.is_empty()).then_some(bytes)
    }

    /// The next event; `None` until more bytes are received.
    ///
    /// # Errors
    /// When the response fails or is truncated, after all earlier events have been returned.
    pub fn poll_event(&mut self) -> Result<Option<ExchangeEvent>, HttpsError> {
        self.run();
        let event = self.events.try_borrow_mut().ok().and_then(|mut events| events.pop_front());
        if event.is_some() { Ok(event) } else { self.outcome.map(|()| None) }
    }

    /// Polls hyper until there is no progress.
    fn run(&mut self) {
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut context = Context::from_waker(&waker);
        while let Some(work) = &mut self.work {
            self.woken.0.store(false, Ordering::Relaxed);
            match work.as_mut().poll(&mut context) {
                Poll::Ready(outcome) => {
                    self.work = None;
                    // An error of the TLS layer has caused hyper's error.
                    let tls_failure = self.tls.try_borrow().ok().and_then(|tls| tls.failure());
                    self.outcome = outcome.map_err(|error| tls_failure.unwrap_or(error));
                }
                Poll::Pending if !self.woken.0.load(Ordering::Relaxed) => return,
                Poll::Pending => {}
            }
        }
    }
}

/// Whether the future was woken during its last poll.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The request for the origin server: origin form, `Host` from the URL (RFC 9112 §3.2.2).
fn for_origin(request: HttpRequest) -> Result<Request<Full<Bytes>>, HttpsError> {
    let mut builder = Request::builder().method(request.method()).uri(request.path());
    builder = builder.header(header::HOST, request.authority());
    for (name, value) in request.fields() {
        builder = builder.header(name, value);
    }
    builder.body(Full::new(request.into_body().into())).map_err(|_| HttpsError::Request)
}

async fn perform(
    io: TlsIo,
    request: Request<Full<Bytes>>,
    events: Rc<RefCell<VecDeque<ExchangeEvent>>>,
) -> Result<(), HttpsError> {
    let tls = Rc::clone(&io.0);
    let builder = http1::Builder::new().max_headers(MAX_FIELDS).max_buf_size(MAX_HEAD_LEN).handshake(io);
    let (mut sender, connection) = builder.await?;
    let mut response_future = pin!(async move {
        let response = sender.send_request(request).await?;
        if let Ok(mut tls) = tls.try_borrow_mut() {
            tls.handle_head();
        }
        emit_response(response, &events).await
    });
    let (mut connection, mut open) = (pin!(connection), true);
    // An error of the connection is not lost: the response returns it too.
    poll_fn(|context| {
        open = open && connection.as_mut().poll(context).is_pending();
        response_future.as_mut().poll(context)
    })
    .await
}

async fn emit_response(
    response: Response<Incoming>,
    events: &RefCell<VecDeque<ExchangeEvent>>,
) -> Result<(), HttpsError> {
    let (head, mut body) = response.into_parts();
    let status = head.status.as_u16();
    if !(200..600).contains(&status) {
        return Err(HttpsError::NotHttp);
    }
    push_event(events, ExchangeEvent::Head { status, fields: permitted_fields(&head.headers) });
    while let Some(frame) = body.frame().await {
        // Trailers are ignored.
        let Ok(piece) = frame?.into_data() else { continue };
        push_event(events, ExchangeEvent::Body(piece.into()));
        poll_fn(|_| if buffered_len(events) < MAX_BUFFERED_BODY { Poll::Ready(()) } else { Poll::Pending }).await;
    }
    push_event(events, ExchangeEvent::End);
    Ok(())
}

/// Queues an event. Joins consecutive pieces of the body.
fn push_event(events: &RefCell<VecDeque<ExchangeEvent>>, event: ExchangeEvent) {
    if let Ok(mut events) = events.try_borrow_mut() {
        match (events.back_mut(), event) {
            (Some(ExchangeEvent::Body(last)), ExchangeEvent::Body(piece)) => last.extend_from_slice(&piece),
            (_, event) => events.push_back(event),
        }
    }
}

/// Bytes of the body in the queue.
fn buffered_len(events: &RefCell<VecDeque<ExchangeEvent>>) -> usize {
    let length = |event: &ExchangeEvent| if let ExchangeEvent::Body(piece) = event { piece.len() } else { 0 };
    events.try_borrow().map(|events| events.iter().map(length).sum()).unwrap_or_default()
}

/// The permitted fields of a response: those that a response from an exit may have.
fn permitted_fields(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name).trim().to_ascii_lowercase())
        .collect();
    let is_permitted = |name: &str| {
        !fields::is_hop_by_hop(name)
            && !fields::is_removed_from_responses(name)
            && !named.iter().any(|other| other == name)
    };
    let fields = headers.iter().filter(|(name, _)| is_permitted(name.as_str()));
    fields.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}
