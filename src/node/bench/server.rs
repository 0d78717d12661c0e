//! The HTTP server of a measurement, on loopback. Each position of a body has a predictable byte.

use core::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use crate::io::listener::accept_each;

/// Length of the period, in bytes. Prime, so that it is not a multiple of a cell, page or buffer: a shift by these is
/// detected.
const PERIOD: usize = 1_048_573;
const MAX_HEAD: usize = 8 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_TCP_CONNECTIONS: usize = 2048;
/// Maximum bytes of the body in the first write of a response.
const FIRST_WRITE: u64 = 16 * 1024;
const GREETING: &str = "This text came over three hops of your own testnet.\n";

/// The bytes of all bodies: a pseudo-random period, repeated without end.
pub(super) struct PseudoRandomBody(Vec<u8>);

impl PseudoRandomBody {
    fn new() -> Self {
        // SplitMix64: reproducible, and no pattern within a period.
        let mut state = 0x756d_6265_6c00_0001_u64;
        let words = core::iter::repeat_with(move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        });
        Self(words.flat_map(u64::to_be_bytes).take(PERIOD).collect())
    }

    /// The bytes from `position` on, up to `limit` or the end of the period; at least one if `limit` isn't zero.
    fn at(&self, position: u64, limit: u64) -> &[u8] {
        let start = usize::try_from(position.checked_rem(PERIOD as u64).unwrap_or(0)).unwrap_or(0);
        let rest = self.0.get(start..).unwrap_or_default();
        rest.get(..usize::try_from(limit).unwrap_or(usize::MAX)).unwrap_or(rest)
    }

    /// Whether the body has `bytes` at `position`.
    pub(super) fn is_at(&self, mut position: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.at(position, bytes.len() as u64);
            match bytes.split_at_checked(expected.len()) {
                Some((piece, rest)) if piece == expected => bytes = rest,
                _ => return false,
            }
            position = position.saturating_add(expected.len() as u64);
        }
        true
    }
}

/// An HTTP server on loopback. `GET /LENGTH/POSITION` returns `LENGTH` bytes of [`PseudoRandomBody`] from `POSITION`
/// on. The server stops when this value is dropped.
pub(crate) struct BenchServer {
    address: SocketAddr,
    state: Arc<ServerState>,
    _serving: AbortOnDropHandle<()>,
}

/// State that the server shares with the streams of a measurement.
pub(super) struct ServerState {
    pub(super) body: PseudoRandomBody,
    verified_bytes: AtomicU64,
    verified_responses: AtomicU64,
}

impl BenchServer {
    /// Starts the server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free.
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(ServerState {
            body: PseudoRandomBody::new(),
            verified_bytes: AtomicU64::new(0),
            verified_responses: AtomicU64::new(0),
        });
        let serving = accept_each(listener, MAX_TCP_CONNECTIONS, {
            let state = Arc::clone(&state);
            move |socket| {
                let state = Arc::clone(&state);
                async move {
                    // The client's end of the stream reports the same failure.
                    let _ = serve(socket, &state.body).await;
                }
            }
        });
        Ok(Self { address, state, _serving: AbortOnDropHandle::new(tokio::spawn(serving)) })
    }

    /// The URL of the greeting.
    pub(crate) fn greeting_url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) const fn state(&self) -> &Arc<ServerState> {
        &self.state
    }

    /// The numbers of verified bytes and of verified responses.
    pub(super) fn verified(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.state.verified_bytes), count(&self.state.verified_responses))
    }
}

impl ServerState {
    pub(super) fn count_bytes(&self, bytes: u64) {
        self.verified_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_response(&self) {
        self.verified_responses.fetch_add(1, Ordering::Relaxed);
    }
}

async fn serve(mut socket: TcpStream, body: &PseudoRandomBody) -> io::Result<()> {
    let mut input = Vec::new();
    loop {
        let Some(head) = timeout(HEAD_TIMEOUT, read_head(&mut socket, &mut input)).await?? else { return Ok(()) };
        match parse_request(&head) {
            Some(RequestedContent::Greeting) => {
                let length = GREETING.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
                socket.write_all(&[head.as_bytes(), GREETING.as_bytes()].concat()).await?;
            }
            Some(RequestedContent::Body { length, position }) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                send_response(&mut socket, head.into_bytes(), body, length, position).await?;
            }
            None => {
                let response = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                return socket.write_all(response).await;
            }
        }
    }
}

/// Sends `head` and `length` bytes of the body from `position` on. The first write has up to [`FIRST_WRITE`] bytes of
/// the body, so that a short response is one write.
async fn send_response(
    socket: &mut TcpStream,
    head: Vec<u8>,
    body: &PseudoRandomBody,
    length: u64,
    position: u64,
) -> io::Result<()> {
    let piece = body.at(position, length.min(FIRST_WRITE));
    let mut sent = piece.len() as u64;
    socket.write_all(&[head.as_slice(), piece].concat()).await?;
    while sent < length {
        let piece = body.at(position.saturating_add(sent), length.saturating_sub(sent));
        socket.write_all(piece).await?;
        sent = sent.saturating_add(piece.len() as u64);
    }
    Ok(())
}

enum RequestedContent {
    Greeting,
    Body { length: u64, position: u64 },
}

fn parse_request(head: &str) -> Option<RequestedContent> {
    let mut words = head.split_ascii_whitespace();
    let ("GET", path) = (words.next()?, words.next()?) else { return None };
    let path = path.strip_prefix('/')?;
    if path.is_empty() {
        return Some(RequestedContent::Greeting);
    }
    let (length, position) = path.split_once('/')?;
    Some(RequestedContent::Body { length: length.parse().ok()?, position: position.parse().ok()? })
}

/// Reads the head of a message, including the empty line. `None` if the peer closes before the first byte. Further
/// bytes stay in `input`.
pub(super) async fn read_head(socket: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = input.drain(..end.saturating_add(4)).collect();
            return String::from_utf8(head).map(Some).map_err(|_| io::ErrorKind::InvalidData.into());
        }
        if input.len() > MAX_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if socket.read_buf(input).await? == 0 {
            return if input.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}
