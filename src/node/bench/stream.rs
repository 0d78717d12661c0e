//! One stream of a measurement: SOCKS5, then sequential HTTP requests. Every received byte is verified.

use core::{net::SocketAddr, time::Duration};
use std::{io, sync::Arc, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::node::Failure;

use super::server::{BenchServer, ServerState, read_head};

const BUFFER_LEN: usize = 64 * 1024;
pub(super) const MIB: f64 = 1_048_576.0;

/// The failure of a measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("the SOCKS5 port can't be reached: {0}")]
    NoPort(#[source] io::Error),
    #[error("the port is not a SOCKS5 port, or refused the user name")]
    NotSocks,
    #[error("the SOCKS5 port could not open a stream: {}", reply_text(*.0))]
    Refused(u8),
    #[error("a stream failed: {0}")]
    Broken(#[source] io::Error),
    #[error("a stream ended {missing} bytes too early")]
    Short {
        /// The number of bytes missing.
        missing: u64,
    },
    #[error("the head of a response differs from the one that the server sent")]
    HeadDiffers,
    #[error("a body differs from the one that the server sent, after {at} bytes or more")]
    BodyDiffers {
        /// The number of bytes received before the read that differs.
        at: u64,
    },
    #[error("the measurement took longer than {0} s; reduce the load, or increase --limit")]
    TimedOut(u64),
}

impl From<io::Error> for BenchError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl BenchError {
    /// The failure of the command, with advice.
    pub(crate) fn into_failure(self, socks: SocketAddr) -> Failure {
        const NETWORK_UNREACHABLE: u8 = 3;
        match self {
            Self::NoPort(_) | Self::NotSocks => Failure::failed(format!(
                "{self}; start `umbel testnet`, or give the port of a running client with --socks (now {socks})"
            )),
            Self::Refused(NETWORK_UNREACHABLE) => Failure::Unreachable(self.into()),
            _ => Failure::failed(self),
        }
    }
}

const fn reply_text(code: u8) -> &'static str {
    match code {
        2 => "not allowed; the network must allow targets on this machine, as a testnet does",
        3 => "the client has no path through the network, or built no circuit",
        4 => "the exit can't reach the target; check that the exit runs on this machine",
        5 => "the target refused the TCP connection; check that the exit runs on this machine",
        6 => "the target did not answer in time",
        _ => "general failure",
    }
}

/// The durations of one request, and the length of the response's body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FetchSample {
    /// Time until the SOCKS5 port reports the stream as open; zero for a request on a stream that was already open.
    pub(crate) connect: Duration,
    /// Time from sending the request to the complete head of the response, which counts as its first byte.
    pub(crate) first_byte: Duration,
    /// Time from sending the request to the last byte of the response.
    pub(crate) last_byte: Duration,
    /// Length of the body.
    pub(crate) bytes: u64,
}

/// MiB/s of `bytes` in `elapsed`.
pub(super) fn rate_mib(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / MIB / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}

impl FetchSample {
    /// MiB/s of the body.
    pub(crate) fn rate_mib(&self) -> f64 {
        rate_mib(self.bytes, self.last_byte)
    }
}

/// Fetches `length` bytes from `server` through `socks` and verifies them.
///
/// # Errors
/// When the stream can't be opened or breaks, or a byte differs.
pub(crate) async fn fetch(socks: SocketAddr, server: &BenchServer, length: u64) -> Result<FetchSample, BenchError> {
    BenchStream::open(socks, server.address(), Arc::clone(server.state()), 0).await?.request(length, 0).await
}

/// A stream to a [`BenchServer`].
pub(super) struct BenchStream {
    socket: TcpStream,
    server_state: Arc<ServerState>,
    /// Time to open the stream; zero after the first request.
    connect: Duration,
    input: Vec<u8>,
}

impl BenchStream {
    /// Opens a stream through `socks`. `isolation` determines the SOCKS5 user name, and so the circuits that the stream
    /// may use.
    pub(super) async fn open(
        socks: SocketAddr,
        server_address: SocketAddr,
        server_state: Arc<ServerState>,
        isolation: u32,
    ) -> Result<Self, BenchError> {
        let start = Instant::now();
        let mut socket = TcpStream::connect(socks).await.map_err(BenchError::NoPort)?;
        socket.set_nodelay(true)?;
        connect_through_socks(&mut socket, server_address, &format!("umbel-bench-{isolation}")).await?;
        Ok(Self { socket, server_state, connect: start.elapsed(), input: Vec::with_capacity(BUFFER_LEN) })
    }

    /// Fetches `length` bytes of the server's body from `position` on, and verifies them.
    pub(super) async fn request(&mut self, length: u64, position: u64) -> Result<FetchSample, BenchError> {
        let start = Instant::now();
        let request = format!("GET /{length}/{position} HTTP/1.1\r\nHost: bench\r\n\r\n");
        self.socket.write_all(request.as_bytes()).await?;
        self.input.clear();
        let head = read_head(&mut self.socket, &mut self.input).await?;
        let first_byte = start.elapsed();
        let head = head.ok_or(BenchError::Short { missing: length })?;
        if head != format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n") {
            return Err(BenchError::HeadDiffers);
        }
        let mut received = 0_u64;
        loop {
            let more = self.input.len() as u64;
            if more > length.saturating_sub(received)
                || !self.server_state.body.is_at(position.saturating_add(received), &self.input)
            {
                return Err(BenchError::BodyDiffers { at: received });
            }
            received = received.saturating_add(more);
            self.server_state.count_bytes(more);
            if received == length {
                break;
            }
            self.input.clear();
            if self.socket.read_buf(&mut self.input).await? == 0 {
                return Err(BenchError::Short { missing: length.saturating_sub(received) });
            }
        }
        self.server_state.count_response();
        Ok(FetchSample {
            connect: core::mem::take(&mut self.connect),
            first_byte,
            last_byte: start.elapsed(),
            bytes: length,
        })
    }
}

/// Opens a stream to `target` by SOCKS5 (RFC 1928), with the user name `user` (RFC 1929) if the port accepts one.
async fn connect_through_socks(socket: &mut TcpStream, target: SocketAddr, user: &str) -> Result<(), BenchError> {
    const NO_AUTHENTICATION: u8 = 0;
    const USER_NAME: u8 = 2;
    socket.write_all(&[5, 2, NO_AUTHENTICATION, USER_NAME]).await?;
    match read::<2>(socket).await? {
        [5, USER_NAME] => {
            let length = u8::try_from(user.len()).map_err(|_| BenchError::NotSocks)?;
            socket.write_all(&[&[1, length], user.as_bytes(), &[1, b'-']].concat()).await?;
            if read::<2>(socket).await? != [1, 0] {
                return Err(BenchError::NotSocks);
            }
        }
        [5, NO_AUTHENTICATION] => {}
        _ => return Err(BenchError::NotSocks),
    }
    let SocketAddr::V4(target) = target else { return Err(BenchError::NotSocks) };
    let request = [&[5, 1, 0, 1], &target.ip().octets()[..], &target.port().to_be_bytes()].concat();
    socket.write_all(&request).await?;
    let [5, code, _, address_type] = read::<4>(socket).await? else { return Err(BenchError::NotSocks) };
    if code != 0 {
        return Err(BenchError::Refused(code));
    }
    match address_type {
        1 => read::<6>(socket).await.map(drop),
        4 => read::<18>(socket).await.map(drop),
        _ => Err(BenchError::NotSocks),
    }
}

async fn read<const N: usize>(socket: &mut TcpStream) -> Result<[u8; N], BenchError> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes).await?;
    Ok(bytes)
}
