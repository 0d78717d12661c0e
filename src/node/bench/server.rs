//! The HTTP server of a measurement, on loopback. Its bodies have predictable bytes at each position.

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

/// A prime, so that bytes displaced by any number of cells, pages or buffers are detected.
const PERIOD: usize = 1_048_573;
const HEAD_LIMIT: usize = 8 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_CONNECTIONS: usize = 2048;
const GREETING: &str = "This came through three hops of your own testnet.\n";

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

    /// The bytes at `position`, at most `limit`; at least one if `limit` isn't zero.
    fn at(&self, position: u64, limit: u64) -> &[u8] {
        let start = usize::try_from(position.checked_rem(PERIOD as u64).unwrap_or(0)).unwrap_or(0);
        let rest = self.0.get(start..).unwrap_or_default();
        rest.get(..usize::try_from(limit).unwrap_or(usize::MAX)).unwrap_or(rest)
    }

    /// Whether `bytes` are those at `position`.
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

/// An HTTP server on loopback; `/LENGTH/POSITION` is `LENGTH` bytes of [`PseudoRandomBody`] from `POSITION` on. A drop
/// stops the server.
pub(crate) struct BenchServer {
    address: SocketAddr,
    shared: Arc<TargetState>,
    _serving: AbortOnDropHandle<()>,
}

/// State of the server that the streams of a measurement use.
pub(super) struct TargetState {
    pub(super) body: PseudoRandomBody,
    bytes: AtomicU64,
    requests: AtomicU64,
}

impl BenchServer {
    /// Starts the server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free.
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(TargetState {
            body: PseudoRandomBody::new(),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let serving = accept_each(listener, MAX_CONNECTIONS, {
            let shared = Arc::clone(&shared);
            move |socket| {
                let shared = Arc::clone(&shared);
                async move {
                    // The measuring stream reports the failure.
                    let _ = serve(socket, &shared.body).await;
                }
            }
        });
        Ok(Self { address, shared, _serving: AbortOnDropHandle::new(tokio::spawn(serving)) })
    }

    /// The URL of a page with a greeting.
    pub(crate) fn greeting_url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) const fn shared(&self) -> &Arc<TargetState> {
        &self.shared
    }

    /// Bytes and complete requests that were fetched and verified.
    pub(super) fn checked(&self) -> (u64, u64) {
        (self.shared.bytes.load(Ordering::Relaxed), self.shared.requests.load(Ordering::Relaxed))
    }
}

impl TargetState {
    pub(super) fn count_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

async fn serve(mut socket: TcpStream, body: &PseudoRandomBody) -> io::Result<()> {
    let mut input = Vec::new();
    loop {
        let Some(head) = timeout(HEAD_TIMEOUT, read_head(&mut socket, &mut input)).await?? else { return Ok(()) };
        match parse_request(&head) {
            Some(Requested::Greeting) => {
                let length = GREETING.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
                socket.write_all(&[head.as_bytes(), GREETING.as_bytes()].concat()).await?;
            }
            Some(Requested::Body { length, position }) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                send_body(&mut socket, head.into_bytes(), body, length, position).await?;
            }
            None => {
                let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                return socket.write_all(answer).await;
            }
        }
    }
}

/// Sends the head together with the first bytes of the body, so that a short answer is one piece.
async fn send_body(
    socket: &mut TcpStream,
    mut first: Vec<u8>,
    body: &PseudoRandomBody,
    length: u64,
    position: u64,
) -> io::Result<()> {
    const FIRST: u64 = 16 * 1024;
    let piece = body.at(position, length.min(FIRST));
    first.extend_from_slice(piece);
    let mut sent = piece.len() as u64;
    socket.write_all(&first).await?;
    while sent < length {
        let piece = body.at(position.saturating_add(sent), length.saturating_sub(sent));
        socket.write_all(piece).await?;
        sent = sent.saturating_add(piece.len() as u64);
    }
    Ok(())
}

enum Requested {
    Greeting,
    Body { length: u64, position: u64 },
}

fn parse_request(head: &str) -> Option<Requested> {
    let mut words = head.split_ascii_whitespace();
    let ("GET", path) = (words.next()?, words.next()?) else { return None };
    let path = path.strip_prefix('/')?;
    if path.is_empty() {
        return Some(Requested::Greeting);
    }
    let (length, position) = path.split_once('/')?;
    Some(Requested::Body { length: length.parse().ok()?, position: position.parse().ok()? })
}

/// Reads up to and including the empty line; `None` at an end of file before the first byte. Further bytes stay in
/// `input`.
pub(super) async fn read_head(socket: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = input.drain(..end.saturating_add(4)).collect();
            return String::from_utf8(head).map(Some).map_err(|_| io::ErrorKind::InvalidData.into());
        }
        if input.len() > HEAD_LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if socket.read_buf(input).await? == 0 {
            return if input.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}
