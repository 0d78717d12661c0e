//! Splices a TCP connection and a stream: copies bytes both ways until both directions have ended.

use core::{
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};
use std::io;

use bytes::{BufMut, BytesMut};
use nix::{getsockopt_impl, sockopt_impl, sys::socket::getsockopt};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, sleep},
};

use crate::wire::EndReason;

use super::{Stream, StreamFailed, StreamReader, StreamWriter, io_error, receive_window::ReceiveWindow};

/// Cap on bytes of one read from a socket.
const MAX_READ_LEN: usize = 64 * 1024;
/// Time limit without bytes once one direction has ended. The other end has then most likely disappeared, which TCP
/// does not report.
pub(crate) const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Time limit for writing the last bytes of a failed stream to a target.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);
/// Time without progress after which an application gets no further last bytes of a failed stream.
const LAST_BYTES_PAUSE: Duration = Duration::from_secs(10);
/// Pause between two measurements of the bytes that the socket's other end has not acknowledged.
const ACKNOWLEDGED_PAUSE: Duration = Duration::from_millis(5);

// The first words of the kernel's `tcp_info`, whose order never changes.
sockopt_impl!(TcpInfo, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, [u32; 37]);
/// The words of `tcp_info` with the unacknowledged segments and the unsent bytes.
const UNACKNOWLEDGED_AND_UNSENT: [usize; 2] = [6, 36];

/// The other end of a spliced socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SocketEnd {
    /// An application on this machine. It gets the last bytes of a failed stream unless it pauses for
    /// [`LAST_BYTES_PAUSE`].
    Application,
    /// A target, with the round trip to it, if known. It gets the last bytes of a failed stream within
    /// [`LAST_BYTES_TIMEOUT`] in all, because the cap on ended streams is low.
    Target(Option<Duration>),
}

impl SocketEnd {
    /// The time limit for the last bytes of a failed stream, and whether progress extends it.
    const fn last_bytes_limit(self) -> (Duration, bool) {
        match self {
            Self::Application => (LAST_BYTES_PAUSE, true),
            Self::Target(_) => (LAST_BYTES_TIMEOUT, false),
        }
    }
}

/// The reason why a splice ended early.
enum SpliceError {
    Socket(io::Error),
    Stream(io::Error),
}

impl SpliceError {
    fn of_stream(reason: EndReason) -> Self {
        Self::Stream(io_error(reason))
    }
}

/// Forwards bytes between `socket` and `stream` until both directions have ended.
///
/// A half-close of one side half-closes the other. If one side fails, the other gets the bytes that arrived before the
/// failure, and is then reset (not closed), so that truncated data never looks complete. A failed write to the socket
/// ends the other direction only when that direction is read to its end. `early` are bytes already read from the
/// socket. With a round trip, the socket's receive window is limited while the stream is the slower side.
///
/// # Errors
/// The failure, unless both directions ended cleanly.
pub(crate) async fn splice(
    mut socket: TcpStream,
    mut stream: Stream,
    early: &[u8],
    other_end: SocketEnd,
) -> io::Result<()> {
    match join(&mut socket, &mut stream, early, other_end).await {
        Ok(()) => Ok(()),
        Err(SpliceError::Stream(error)) => {
            tokio::select! {
                () = stream.discarded() => {}
                () = await_acknowledged(&socket, other_end) => {}
            }
            reset_on_close(&socket);
            Err(error)
        }
        Err(SpliceError::Socket(error)) => {
            reset_on_close(&socket);
            drop(socket);
            let is_timeout = error.kind() == io::ErrorKind::TimedOut;
            stream.reset_after_bytes(if is_timeout { EndReason::TimedOut } else { EndReason::Reset }).await;
            Err(error)
        }
    }
}

/// Makes `socket` send a TCP reset when it is closed.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // An error means that the socket has already failed.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Waits until the socket's other end has acknowledged all written bytes, because a reset discards the others.
pub(crate) async fn await_acknowledged(socket: &TcpStream, other_end: SocketEnd) {
    let (limit, progress_extends) = other_end.last_bytes_limit();
    let mut since = Instant::now();
    let mut before = None;
    while since.elapsed() < limit {
        // An error means that the socket has failed.
        let Ok(words) = getsockopt(socket, TcpInfo) else { return };
        let missing = UNACKNOWLEDGED_AND_UNSENT.map(|word| words.get(word).copied().unwrap_or_default());
        if missing == [0, 0] {
            return;
        }
        if progress_extends && before != Some(missing) {
            (before, since) = (Some(missing), Instant::now());
        }
        sleep(ACKNOWLEDGED_PAUSE).await;
    }
}

async fn join(
    socket: &mut TcpStream,
    stream: &mut Stream,
    early: &[u8],
    other_end: SocketEnd,
) -> Result<(), SpliceError> {
    // The failure is polled separately, since both directions may wait for the socket when the stream fails.
    let mut failure = pin!(stream.failure());
    let mut discarded = pin!(stream.discarded());
    let (socket_reader, socket_writer) = socket.split();
    let (reader, writer) = stream.split();
    // The number of reads and writes in both directions.
    let transfers = AtomicU64::new(0);
    let write_has_failed = AtomicBool::new(false);
    let mut sending = pin!(async {
        writer.write_all(early).await?;
        let round_trip = if let SocketEnd::Target(round_trip) = other_end { round_trip } else { None };
        let window = round_trip.and_then(|round_trip| ReceiveWindow::new(Instant::now(), round_trip));
        from_socket(&socket_reader, writer, &transfers, &write_has_failed, window).await
    });
    let mut receiving = pin!(to_socket(reader, socket_writer, &transfers));
    let (mut is_sending, mut is_receiving) = (true, true);
    let (mut write_error, mut stream_failure) = (None, None);
    while is_sending || is_receiving {
        let has_limit = !(is_sending && is_receiving);
        let (limit, progress_extends) = match stream_failure {
            Some(_) => other_end.last_bytes_limit(),
            None => (HALF_CLOSED_TIMEOUT, true),
        };
        tokio::select! {
            // The bytes before a failure of the stream are written first.
            biased;
            result = &mut receiving, if is_receiving => {
                is_receiving = false;
                match result {
                    Err(error) if is_of_stream(&error) => return Err(SpliceError::Stream(error)),
                    Err(error) => {
                        write_has_failed.store(true, Ordering::Relaxed);
                        write_error = Some(error);
                    }
                    Ok(()) => {}
                }
            }
            reason = &mut failure, if stream_failure.is_none() => {
                stream_failure = Some(reason);
                is_sending = false;
            }
            () = &mut discarded, if stream_failure.is_some() => break,
            result = &mut sending, if is_sending => {
                is_sending = false;
                match result {
                    // The failure of the stream is handled above, after the bytes before it.
                    Err(error) if !is_of_stream(&error) => return Err(SpliceError::Socket(error)),
                    _ => {}
                }
            }
            () = idle(&transfers, limit, progress_extends), if has_limit => {
                return Err(stream_failure.map_or(SpliceError::Socket(io::ErrorKind::TimedOut.into()), SpliceError::of_stream));
            }
        }
    }
    match (write_error, stream_failure) {
        (_, Some(reason)) => Err(SpliceError::of_stream(reason)),
        (Some(error), None) => Err(SpliceError::Socket(error)),
        (None, None) => Ok(()),
    }
}

fn is_of_stream(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<StreamFailed>())
}

/// Completes after `limit`, with `progress_extends` after that time without a transfer.
pub(crate) async fn idle(transfers: &AtomicU64, limit: Duration, progress_extends: bool) {
    loop {
        let before = transfers.load(Ordering::Relaxed);
        sleep(limit).await;
        if !progress_extends || transfers.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// Reads from `socket` into the stream, until the socket's other end finishes. `transfers` counts the reads. After a
/// failed write, the end of the socket's bytes doesn't finish the stream.
async fn from_socket(
    socket: &ReadHalf<'_>,
    writer: &StreamWriter,
    transfers: &AtomicU64,
    write_has_failed: &AtomicBool,
    mut window: Option<ReceiveWindow>,
) -> io::Result<()> {
    loop {
        let room = poll_fn(|cx| writer.poll_room(cx)).await?;
        if let Some(window) = &mut window {
            window.handle_room(Instant::now(), socket.as_ref());
        }
        socket.readable().await?;
        // Allocated here, so that an idle stream holds no buffer.
        let limit = room.min(MAX_READ_LEN);
        let mut buffer = BytesMut::with_capacity(limit);
        let read = match socket.try_read_buf(&mut (&mut buffer).limit(limit)) {
            Ok(0) => {
                // The kernel reports a reset once. If a write has reported it, the end of the bytes is not clean.
                if !write_has_failed.load(Ordering::Relaxed) {
                    writer.finish();
                }
                return Ok(());
            }
            Ok(read) => {
                writer.write_buffer(buffer);
                transfers.fetch_add(1, Ordering::Relaxed);
                read
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if let Some(window) = &mut window {
            window.handle_bytes(Instant::now(), read);
        }
    }
}

/// Writes the bytes of the stream to `socket`, until the stream ends. `transfers` counts the writes.
async fn to_socket(reader: &mut StreamReader, mut socket: WriteHalf<'_>, transfers: &AtomicU64) -> io::Result<()> {
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return socket.shutdown().await;
        }
        let written = socket.write(chunk).await?;
        reader.consume(written);
        transfers.fetch_add(1, Ordering::Relaxed);
    }
}
